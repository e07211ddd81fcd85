package shardctrler

import (
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// drawLoads gives some shards much to do and most of them little.
func drawLoads(t *rapid.T, shards int) map[shardmap.ShardID]ShardLoad {
	loads := make(map[shardmap.ShardID]ShardLoad)
	usual := rapid.Uint64Range(0, 200).Draw(t, "usual")
	for i := range shards {
		loads[shardmap.ShardID(i)] = ShardLoad{Shard: shardmap.ShardID(i), Reads: usual, Bytes: usual * 100}
	}
	for range rapid.IntRange(0, 6).Draw(t, "hot") {
		i := shardmap.ShardID(rapid.IntRange(0, shards-1).Draw(t, "shard"))
		loads[i] = ShardLoad{Shard: i, Reads: usual, Writes: rapid.Uint64Range(0, 50_000).Draw(t, "writes")}
	}
	return loads
}

// loadsAt are the loads of a group's shards as its leader would report them.
func loadsAt(s *State, g raft.GroupID, loads map[shardmap.ShardID]ShardLoad) []ShardLoad {
	var all []ShardLoad
	for _, shard := range s.shardsOf(g) {
		if l := loads[shard]; l.weight() > 0 {
			all = append(all, l)
		}
	}
	return all
}

// loadWorld is a cluster all of whose groups are well and do at once what they
// are told.
type loadWorld struct {
	run
	loads map[shardmap.ShardID]ShardLoad
}

func (w *loadWorld) observe() Observed {
	o := Observed{Quiet: loadSettle}
	for _, n := range w.state.Nodes {
		o.Nodes = append(o.Nodes, ObservedNode{ID: n.ID, Alive: true, Ready: true})
	}
	for _, g := range w.state.Groups {
		seen := ObservedGroup{ID: g.ID, Epoch: g.Epoch, Term: 1, Leader: g.Members[0].Node, Hold: true,
			Measured: loadSettle, Over: loadSettle, Loads: loadsAt(w.state, g.ID, w.loads)}
		for _, m := range g.Members {
			seen.Members = append(seen.Members, ObservedMember{Member: m})
		}
		o.Groups = append(o.Groups, seen)
	}
	return o
}

// weights are what the groups have to do, the most first.
func (w *loadWorld) weights() (all []uint64) {
	for _, g := range w.observe().Groups {
		all = append(all, g.weight())
	}
	slices.Sort(all)
	slices.Reverse(all)
	return all
}

// planned is the one order to balance loads that a plan has; false: none.
func planned(t interface{ Fatalf(string, ...any) }, s *State, o Observed) (Operation, bool) {
	all := Plan(s, o)
	if !reflect.DeepEqual(all, Plan(s, o)) {
		t.Fatalf("the same question has two answers")
	}
	for _, op := range all {
		if _, is := op.Body.(Reassign); is {
			if len(all) > 1 {
				t.Fatalf("loads are balanced together with %+v", all)
			}
			return op, true
		}
	}
	return Operation{}, false
}

// carryOut commits an order and has all shards moved.
func (w *loadWorld) carryOut(t interface{ Fatalf(string, ...any) }, o Operation) {
	if refused := w.apply(Commit{Operations: []Operation{o}}).(Committed).Refused[0]; refused != nil {
		t.Fatalf("%+v is refused: %v", o, refused)
	}
	for round := 0; ; round++ {
		for _, m := range w.state.underWay() {
			w.apply(ReportMove{Move: m.ID, State: MoveDone})
		}
		all := Plan(w.state, w.observe())
		if _, more := planned(t, w.state, w.observe()); len(all) == 0 && len(w.state.movingShards()) == 0 || more {
			return
		}
		if round > 200 {
			t.Fatalf("the moves do not end: %+v", all)
		}
		if len(all) > 0 {
			w.apply(Commit{Operations: all})
		}
	}
}

// TestLoadsAreEvenedOut: whatever the loads are, the busiest group has ever less,
// no pinned shard moves, it ends soon, and it does not go on for ever when the
// loads change a little all the time.
func TestLoadsAreEvenedOut(t *testing.T) {
	base := *afterBringUp(t)
	rapid.Check(t, func(t *rapid.T) {
		w := &loadWorld{run: base, loads: drawLoads(t, len(base.state.Shards))}
		for range rapid.IntRange(0, 5).Draw(t, "pins") {
			shard := shardmap.ShardID(rapid.IntRange(0, len(base.state.Shards)-1).Draw(t, "pinned"))
			w.apply(OrderMove{Shard: shard, To: w.state.Shards[shard].Group})
		}
		noise := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "noise"), 0))
		pinned := w.state.config().Pinned
		owners := slices.Clone(w.state.Shards)
		for round := 0; ; round++ {
			o, more := planned(t, w.state, w.observe())
			if !more {
				break
			}
			before, config := w.weights(), w.state.config().Num
			w.carryOut(t, o)
			if now := w.state.config().Num; now != config+1 {
				t.Fatalf("%+v makes config %d of %d", o, now, config)
			}
			if after := w.weights(); slices.Compare(after, before) >= 0 {
				t.Fatalf("%s: the groups had %d and have %d", o.Reason, before, after)
			}
			if round > 10 {
				t.Fatal("it does not come to an end")
			}
		}
		for _, shard := range pinned {
			if w.state.Shards[shard] != owners[shard] {
				t.Fatalf("shard %d is pinned to %+v and is at %+v", shard, owners[shard], w.state.Shards[shard])
			}
		}
		anew := 0
		for range 20 {
			steady := maps.Clone(w.loads)
			for _, shard := range slices.Sorted(maps.Keys(w.loads)) {
				part, l := uint64(noise.IntN(7)+97), w.loads[shard]
				w.loads[shard] = ShardLoad{Shard: shard, Reads: l.Reads * part / 100, Writes: l.Writes * part / 100, Bytes: l.Bytes * part / 100}
			}
			if o, more := planned(t, w.state, w.observe()); more {
				w.carryOut(t, o)
				anew++
			}
			w.loads = steady
		}
		if anew > len(w.state.servingGroups()) {
			t.Fatalf("a little more or less, and it begins anew %d times", anew)
		}
	})
}

// TestAHotShardIsIsolated: its neighbours leave its group, and it stays.
func TestAHotShardIsIsolated(t *testing.T) {
	w := &loadWorld{run: *afterBringUp(t), loads: make(map[shardmap.ShardID]ShardLoad)}
	for i := range w.state.Shards {
		w.loads[shardmap.ShardID(i)] = ShardLoad{Shard: shardmap.ShardID(i), Writes: 20}
	}
	hot := shardmap.ShardID(5)
	w.loads[hot] = ShardLoad{Shard: hot, Writes: 9_000}
	home := w.state.Shards[hot].Group
	for range 10 {
		o, more := planned(t, w.state, w.observe())
		if !more {
			break
		}
		if !strings.Contains(o.Reason, "shard 5 alone has 9000") {
			t.Errorf("the reason is %q", o.Reason)
		}
		w.carryOut(t, o)
	}
	if at := w.state.shardsOf(home); !slices.Equal(at, []shardmap.ShardID{hot}) {
		t.Errorf("with the hot shard, group %d has %v", home, at)
	}
	least, most := 1<<30, 0
	for _, g := range w.state.servingGroups() {
		if n := len(w.state.shardsOf(g)); g != home {
			least, most = min(least, n), max(most, n)
		}
	}
	if most-least > 1 {
		t.Errorf("the neighbours went so that the others have %d to %d shards", least, most)
	}
}

// TestLoadsThatMoveNothing: what is not known well enough, or not worth it.
func TestLoadsThatMoveNothing(t *testing.T) {
	hot := map[shardmap.ShardID]ShardLoad{}
	for i := range shardmap.ShardID(512) {
		hot[i] = ShardLoad{Shard: i, Reads: 3}
	}
	for _, i := range []shardmap.ShardID{1, 9} { // of one group
		hot[i] = ShardLoad{Shard: i, Reads: 4_000}
	}
	fewer := maps.Clone(hot)
	for i, l := range fewer {
		fewer[i] = ShardLoad{Shard: i, Reads: l.Reads / 10}
	}
	for name, c := range map[string]struct {
		loads map[shardmap.ShardID]ShardLoad
		spoil func(*Observed)
		moves bool
	}{
		"all is known":            {hot, func(*Observed) {}, true},
		"little is asked for":     {fewer, func(*Observed) {}, false},
		"shards moved just now":   {hot, func(o *Observed) { o.Quiet = loadSettle - 1 }, false},
		"it is over soon":         {hot, func(o *Observed) { o.Groups[2].Over = loadSettle - 1 }, false},
		"a leader is new":         {hot, func(o *Observed) { o.Groups[2].Measured = loadSettle - 1 }, false},
		"a group is not heard of": {hot, func(o *Observed) { o.Groups = slices.Delete(o.Groups, 2, 3) }, false},
		"it is asked for at a former owner": {hot, func(o *Observed) {
			for i := range o.Groups {
				o.Groups[i].Loads = slices.DeleteFunc(o.Groups[i].Loads, func(l ShardLoad) bool { return l.Reads > 3 })
			}
			o.Groups[3].Loads = append(o.Groups[3].Loads, ShardLoad{Shard: 1, Reads: 4_000})
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := &loadWorld{run: *afterBringUp(t), loads: c.loads}
			if w.state.Shards[1].Group != w.state.Shards[9].Group {
				t.Fatal("shards 1 and 9 are not of one group")
			}
			o := w.observe()
			c.spoil(&o)
			if op, moves := planned(t, w.state, o); moves != c.moves {
				t.Errorf("it moves: %v %+v", moves, op)
			}
		})
	}
}
