package multiraft

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/raft"
)

func TestAGroupElectsProposesAndReads(t *testing.T) {
	w := newWorld(t, 3, nil)
	w.group(2, 2, 1, 2, 3)
	if leader := w.leader(2); leader != 2 {
		t.Fatalf("node %d leads, preferred was 2", leader)
	}
	for i := 1; i <= 10; i++ {
		res := w.propose(2, 2, fmt.Sprintf("k=%d", i))
		if res.Err != nil || res.Value != uint64(i) {
			t.Fatalf("command %d: %+v", i, res)
		}
	}
	res := w.propose(1, 2, "no")
	var nl *NotLeaderError
	if !errors.As(res.Err, &nl) || nl.Leader.Node != 2 || !errors.Is(res.Err, ErrNotLeader) {
		t.Fatalf("at a follower: %v", res.Err)
	}
	for _, id := range w.order {
		index, err := w.read(id, 2, ReadOptions{Follower: true})
		if err != nil || index < 11 {
			t.Fatalf("read at node %d: index %d, %v", id, index, err)
		}
		if v, ok, _ := w.nodes[id].tally[2].state.Get([]byte("kk")); !ok || string(v) != "10" {
			t.Fatalf("node %d reads %q", id, v)
		}
	}
	if _, err := w.read(3, 2, ReadOptions{}); !errors.Is(err, ErrNotLeader) {
		t.Fatalf("read at a follower that was not asked to forward: %v", err)
	}
	if res := w.propose(1, 9, "x"); !errors.Is(res.Err, ErrNoGroup) {
		t.Fatalf("unknown group: %v", res.Err)
	}
	w.same(2, 10)
}

func TestProposalsOfATurnShareAnEntryAndKeepTheirOrder(t *testing.T) {
	w := newWorld(t, 3, func(o *Options) { o.Limits.EntryBytes = 1000 })
	w.group(2, 1, 1, 2, 3)
	w.leader(2)
	before := w.nodes[1].host.Stats().EntriesProposed
	var got []Result
	command := make([]byte, 90)
	for range 100 {
		w.nodes[1].host.Propose(2, command, func(r Result) { got = append(got, r) })
	}
	w.until("all are answered", func() bool { return len(got) == 100 })
	for i, r := range got {
		if r.Err != nil || r.Value != uint64(i+1) {
			t.Fatalf("answer %d is %+v", i, r)
		}
		if i > 0 && r.Index < got[i-1].Index {
			t.Fatalf("answer %d is of entry %d, the one before of %d", i, r.Index, got[i-1].Index)
		}
	}
	if entries := w.nodes[1].host.Stats().EntriesProposed - before; entries != 10 {
		t.Errorf("100 commands of 90 bytes became %d entries of up to 1000", entries)
	}
}

func TestADeadLeaderIsReplacedAndComesBack(t *testing.T) {
	w := newWorld(t, 3, nil)
	w.group(2, 1, 1, 2, 3)
	w.mustPropose(2, "a")
	w.crash(1)
	from := w.now
	if leader := w.leader(2); leader == 1 {
		t.Fatal("the dead lead")
	}
	took := w.now.Sub(from)
	if took > 150*time.Millisecond {
		t.Errorf("a known death took %v to a new leader", took)
	}
	if res := w.mustPropose(2, "b"); res.Value != uint64(2) {
		t.Fatalf("%+v", res)
	}
	w.up(1)
	w.mustPropose(2, "c")
	w.same(2, 3)
}

func TestAllCrashAtOnce(t *testing.T) {
	w := newWorld(t, 3, nil)
	w.group(2, 1, 1, 2, 3)
	for i := range 20 {
		w.mustPropose(2, fmt.Sprint(i))
	}
	for _, id := range w.order {
		w.crash(id)
	}
	for _, id := range w.order {
		w.up(id)
	}
	if res := w.mustPropose(2, "after"); res.Value != uint64(21) {
		t.Fatalf("after the restart the next command is number %v", res.Value)
	}
	w.same(2, 21)
}

// What was flushed before a crash is not applied again from the log, and what
// was not is: no entry twice, none left out, whichever commit to the state store
// was the last to become durable.
func TestARestartAppliesEachEntryOnce(t *testing.T) {
	w := newWorld(t, 3, nil)
	w.group(2, 1, 1, 2, 3)
	const rounds, commands = 8, 3
	for round := range rounds {
		for i := range commands {
			w.mustPropose(2, fmt.Sprintf("#%d.%d", round, i))
		}
		w.same(2, uint64((round+1)*commands))
		for _, id := range w.order {
			w.nodes[id].states.FlushSome(round)
			w.crash(id)
		}
		for _, id := range w.order {
			w.up(id)
		}
	}
	w.mustPropose(2, "after")
	w.same(2, rounds*commands+1)
	for _, id := range w.order {
		for round := range rounds {
			for i := range commands {
				command := fmt.Sprintf("#%d.%d", round, i)
				v, _, err := w.nodes[id].tally[2].state.Get([]byte(command))
				if err != nil || string(v) != "x" {
					t.Errorf("node %d: command %s was applied %d times (%v)", id, command, len(v), err)
				}
			}
		}
	}
}

// A proposal whose leader is cut off: its fate is decided by what is
// committed at its index, or stays unknown.
func TestReplacedIsNoEffectAndUndecidedIsUnknown(t *testing.T) {
	w := newWorld(t, 3, nil)
	w.group(2, 1, 1, 2, 3)
	w.mustPropose(2, "a")
	var lost *Result
	w.nodes[1].host.Propose(2, []byte("lost"), func(r Result) { lost = &r })
	w.until("it is in the log", func() bool { s, _ := w.nodes[1].host.Status(2); return s.Last > s.Commit })
	w.isolate(1)
	w.run(100 * time.Millisecond)
	if lost != nil {
		t.Fatalf("answered while nothing is decided: %+v", lost)
	}
	w.until("another leads", func() bool { return w.leader(2) != 1 })
	w.mustPropose(2, "b")
	w.heal(1)
	w.until("it is decided", func() bool { return lost != nil })
	if !errors.Is(lost.Err, ErrNotLeader) {
		t.Fatalf("replaced: %+v", lost)
	}
	w.mustPropose(2, "c")
	w.same(2, 3)

	leader := w.leader(2)
	var open *Result
	w.nodes[leader].host.Propose(2, []byte("open"), func(r Result) { open = &r })
	w.until("it is in the log", func() bool { s, _ := w.nodes[leader].host.Status(2); return s.Last > s.Commit })
	w.isolate(leader)
	from := w.now
	w.until("it is given up", func() bool { return open != nil })
	if !errors.Is(open.Err, ErrUnknown) || w.now.Sub(from) < 9*time.Second {
		t.Fatalf("after %v: %+v", w.now.Sub(from), open)
	}
}

func TestAFollowerCatchesUpFromTheLog(t *testing.T) {
	w := newWorld(t, 3, nil)
	w.group(2, 1, 1, 2, 3)
	w.mustPropose(2, "first")
	w.crash(3)
	for i := range 50 {
		w.mustPropose(2, fmt.Sprint(i))
	}
	for _, id := range []raft.NodeID{1, 2} {
		w.nodes[id].states.Flush()
	}
	w.run(3 * time.Second) // the trimmer looks
	w.up(3)
	w.same(2, 51)
	if n := w.nodes[3].host.Stats().SnapshotsInstalled; n != 0 {
		t.Errorf("%d snapshots although the log was kept", n)
	}
}

// What the leader keeps for a member that is away the others keep too: whoever
// leads when it is back has the log that it needs, whether it was handed the
// leadership or found its leader dead and has heard nothing of the member yet.
func TestTheNextLeaderHasTheLogToo(t *testing.T) {
	for name, change := range map[string]func(w *world){
		"transfer": func(w *world) {
			if err := w.nodes[w.leader(2)].host.Transfer(2, 2); err != nil {
				t.Fatal(err)
			}
			w.until("2 leads", func() bool { return w.leader(2) == 2 })
		},
		"election": func(w *world) {
			w.crash(w.leader(2))
			w.leader(2)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 5, func(o *Options) { o.Limits.FollowerKeepBytes = 1 })
			w.group(2, 1, 1, 2, 3, 4, 5)
			w.mustPropose(2, "first")
			w.crash(5)
			for i := range 50 {
				w.mustPropose(2, fmt.Sprintf("k%d=%d", i, i))
			}
			look := func() {
				for _, id := range w.order {
					if n := w.nodes[id]; n.host != nil {
						n.states.Flush()
					}
				}
				w.run(3 * time.Second) // the trimmer looks
			}
			look()
			change(w)
			w.mustPropose(2, "by another leader")
			look()
			w.up(5)
			w.until("it has caught up", func() bool {
				s, _ := w.nodes[5].host.Status(2)
				return s.Applied >= 52 && w.nodes[5].tally[2].count == 52
			})
			if n := w.nodes[5].host.Stats().SnapshotsInstalled; n != 0 {
				t.Errorf("%d snapshots although the log was kept", n)
			}
			// Once nobody is away nothing is kept.
			for id := raft.NodeID(1); id <= 5; id++ {
				if w.nodes[id].host == nil {
					w.up(id)
				}
			}
			w.until("the logs are cut", func() bool {
				w.mustPropose(2, "more")
				look()
				for id := raft.NodeID(1); id <= 5; id++ {
					if w.nodes[id].store.Reader(raft.ReplicaKey{Group: 2, Replica: raft.ReplicaID(id)}).FirstIndex() < 50 {
						return false
					}
				}
				return true
			})
		})
	}
}

func TestAFollowerCatchesUpBySnapshot(t *testing.T) {
	w := newWorld(t, 3, func(o *Options) { o.Limits.LogKeepBytes = 1 })
	w.group(2, 1, 1, 2, 3)
	w.mustPropose(2, "first")
	w.crash(3)
	for i := range 50 {
		w.mustPropose(2, fmt.Sprintf("k%d=%d", i, i))
	}
	w.run(3 * time.Second) // over its budget the trimmer flushes, then cuts
	if n := w.nodes[1].host.Stats().LogCuts; n == 0 {
		t.Fatal("nothing was cut")
	}
	w.up(3)
	w.same(2, 51)
	if n := w.nodes[3].host.Stats().SnapshotsInstalled; n != 1 {
		t.Errorf("%d snapshots installed", n)
	}
	for i := range 20 {
		w.mustPropose(2, fmt.Sprint(i))
	}
	w.same(2, 71)
	// What was installed is durable, and the log goes on behind it.
	w.crash(3)
	w.up(3)
	w.mustPropose(2, "last")
	w.same(2, 72)
	if n := w.nodes[3].host.Stats().SnapshotsInstalled; n != 0 {
		t.Errorf("%d snapshots after the restart", n)
	}
}

func TestIdleGroupsSleepAndWake(t *testing.T) {
	w := newWorld(t, 3, nil)
	const groups = 30
	for g := raft.GroupID(2); g < 2+groups; g++ {
		w.group(g, raft.NodeID(g%3+1), 1, 2, 3)
	}
	for g := raft.GroupID(2); g < 2+groups; g++ {
		if leader := w.leader(g); leader != raft.NodeID(g%3+1) {
			t.Errorf("group %d is led by %d", g, leader)
		}
	}
	asleep := func() bool {
		for _, id := range w.order {
			if w.nodes[id].host.Stats().Awake > 0 {
				return false
			}
		}
		return true
	}
	w.until("all sleep", asleep)
	w.run(10 * time.Second)
	if !asleep() {
		t.Error("somebody woke without a reason")
	}
	if len(w.wires) != 0 {
		t.Error("messages although all sleep")
	}
	if res := w.mustPropose(5, "work"); res.Value != uint64(1) {
		t.Errorf("%+v", res)
	}
	w.until("all sleep again", asleep)
	w.crash(2)
	for g := raft.GroupID(2); g < 2+groups; g++ {
		if leader := w.leader(g); leader == 2 {
			t.Errorf("group %d is led by the dead", g)
		}
	}
	w.until("all sleep though one is dead", func() bool {
		return w.nodes[1].host.Stats().Awake+w.nodes[3].host.Stats().Awake == 0
	})
	w.up(2)
	w.until("all sleep with it back", asleep)
	w.same(5, 1)
}

// A node that comes back while a leader is falling asleep finds it awake.
func TestANodeIsBackWhileItsLeaderFallsAsleep(t *testing.T) {
	w := newWorld(t, 3, nil)
	w.isolate(3)
	first := raft.Membership{Epoch: 1}
	for id := raft.NodeID(1); id <= 3; id++ {
		first.Voters = append(first.Voters, raft.Member{Replica: raft.ReplicaID(id), Node: id})
	}
	for id := raft.NodeID(1); id <= 2; id++ {
		w.startOn(id, ReplicaSpec{Group: 2, Replica: raft.ReplicaID(id), First: first, Preferred: 1})
	}
	w.mustPropose(2, "x")
	w.until("the leader is falling asleep", func() bool {
		return slices.ContainsFunc(w.wires, func(p parcel) bool {
			return slices.ContainsFunc(p.ms, func(m raft.Message) bool {
				a, ok := m.Body.(*raft.AppendEntries)
				return ok && a.Sleep
			})
		})
	})
	w.heal(3)
	w.run(100 * time.Millisecond)
	w.startOn(3, ReplicaSpec{Group: 2, Replica: 3})
	w.until("the third replica has caught up", func() bool {
		m := w.nodes[3].tally[2]
		return m != nil && m.count == 1
	})
}

func TestLowerMedian(t *testing.T) {
	for want, clocks := range map[int64][]int64{5: {5}, 1: {9, 1}, 4: {9, 1, 4}, 3: {3, 9, 9, 1}} {
		if got := lowerMedian(clocks); got != want {
			t.Errorf("lower median of %v is %d, want %d", clocks, got, want)
		}
	}
}

// One clock far ahead, or far behind, moves no stamp; and when the median
// itself goes back, a leader's stamps do not.
func TestStampsFollowTheLowerMedian(t *testing.T) {
	w := newWorld(t, 3, nil)
	w.group(2, 1, 1, 2, 3)
	stamp := func() int64 {
		w.mustPropose(2, "x")
		return w.nodes[w.leader(2)].tally[2].last
	}
	w.leader(2)
	for _, skew := range []time.Duration{time.Hour, -time.Hour} {
		w.nodes[2].skew = skew
		before := w.now.UnixMilli()
		if got := stamp(); got < before || got > w.now.UnixMilli() {
			t.Errorf("with a clock %v off the stamp is %d, the others say %d", skew, got, w.now.UnixMilli())
		}
	}
	last := stamp()
	w.nodes[3].skew = -time.Hour
	if got := stamp(); got != last {
		t.Errorf("when most clocks went back, the stamp went from %d to %d", last, got)
	}
}

// A leader that hears too few of the clocks, as one that was just cut off or
// started does, stamps nothing until it hears them.
func TestNothingIsStampedByTooFewClocks(t *testing.T) {
	w := newWorld(t, 3, nil)
	w.group(2, 1, 1, 2, 3)
	w.mustPropose(2, "x")
	leader := w.nodes[w.leader(2)]
	w.isolate(leader.id)
	leader.skew = time.Hour
	if got := leader.host.GroupClock(2); got != 0 {
		t.Errorf("by its clock alone the leader takes the time for %d", got)
	}
	var result *Result
	leader.host.Propose(2, []byte("y"), func(r Result) { result = &r })
	w.run(10 * time.Millisecond)
	if s, _ := leader.host.Status(2); result != nil || s.Role != raft.Leader || s.Last != s.Commit {
		t.Fatalf("without the clocks: %+v, %+v", result, s)
	}
	w.heal(leader.id)
	w.until("the command is carried out", func() bool { return result != nil })
	if last := leader.tally[2].last; result.Err != nil || last > w.now.UnixMilli() {
		t.Errorf("%v; stamped %d at %d", result.Err, last, w.now.UnixMilli())
	}
}
