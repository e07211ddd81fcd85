package shardctrler

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// run applies commands one entry each and returns the last answer.
type run struct {
	state *State
	index raft.Index
}

func newRun() *run { return &run{state: new(State)} }

func (r *run) apply(c Command) any {
	r.index++
	next, answers, _ := apply(r.state, r.index, int64(r.index)*1000, []Command{c})
	r.state = next
	return answers[0]
}

func registrationOf(name string) Registration {
	return Registration{RandomID: "random-" + name, Name: name, Zone: "z", Addr: name + ":7000", RespAddr: name + ":7002"}
}

func initCommand(shards, replicas, groups uint64) Init {
	return Init{ClusterID: "cluster", Shards: shards, Replicas: replicas, Groups: groups, First: registrationOf("a")}
}

// allUp observes the nodes of s as alive and the config group at its members.
func allUp(s *State) Observed {
	var o Observed
	for _, n := range s.Nodes {
		o.Nodes = append(o.Nodes, ObservedNode{ID: n.ID, Alive: true, Ready: true})
	}
	for _, g := range s.Groups {
		seen := ObservedGroup{ID: g.ID, Epoch: g.Epoch, Term: 1, Leader: g.Preferred}
		if g.ID == raft.ConfigGroup {
			seen.Leader = 1
		}
		for _, m := range g.Members {
			seen.Members = append(seen.Members, ObservedMember{Member: m})
		}
		o.Groups = append(o.Groups, seen)
	}
	return o
}

// storyOfAGroup is a bring-up, to the end.
func storyOfAGroup(t testing.TB) []Command {
	t.Helper()
	r := newRun()
	var story []Command
	do := func(c Command) {
		story = append(story, c)
		if err, refused := r.apply(c).(error); refused {
			t.Fatalf("%T was refused: %v", c, err)
		}
	}
	do(initCommand(512, 3, 4))
	for _, name := range []string{"b", "c", "d"} {
		do(Register{Registration: registrationOf(name)})
	}
	for range 10 {
		planned := Plan(r.state, allUp(r.state))
		if len(planned) == 0 {
			return story
		}
		do(Commit{Operations: planned})
		for _, o := range r.state.Operations {
			switch b := o.Body.(type) {
			case Birth:
				do(Finish{Operation: o.ID, Done: true, Detail: "born"})
			case ChangeMembership:
				do(Observe{Group: b.Group, Epoch: b.Epoch + 1, Members: b.Members})
			}
		}
	}
	t.Fatal("the plan does not come to an end")
	return nil
}

func TestStoryEndsAsWished(t *testing.T) {
	r := newRun()
	for _, c := range storyOfAGroup(t) {
		r.apply(c)
	}
	s := r.state
	if got := s.config(); got.Num != 1 || len(got.Groups) != 4 || len(got.Owners) != 512 || got.Reason == "" {
		t.Errorf("config %d with %d groups: %q", got.Num, len(got.Groups), got.Reason)
	}
	for _, g := range s.replicaGroups() {
		if n := len(s.shardsOf(g.ID)); !g.Born || len(g.Members) != 3 || n != 128 {
			t.Errorf("group %+v with %d shards", g, n)
		}
	}
	config, _ := s.group(raft.ConfigGroup)
	if len(config.Members) != 3 || config.Members[0].First {
		t.Errorf("config group %+v", config)
	}
	if len(s.Operations) != 0 || s.LastOperation == 0 {
		t.Errorf("%d operations pending, last %d", len(s.Operations), s.LastOperation)
	}
	kinds := make(map[string]int)
	for i, e := range s.Events {
		kinds[e.Kind]++
		if e.Reason == "" || (i > 0 && e.ID != s.Events[i-1].ID+1) {
			t.Errorf("event %+v", e)
		}
	}
	for _, kind := range []string{"init", "register", "create-groups", "birth", "birth-done", "change-membership", "change-membership-done"} {
		if kinds[kind] == 0 {
			t.Errorf("no %s event in %v", kind, kinds)
		}
	}
}

func TestInitOnlyOnce(t *testing.T) {
	r := newRun()
	if got := r.apply(Register{Registration: registrationOf("b")}); got != ErrNotInitialised {
		t.Errorf("register before init: %v", got)
	}
	if got := r.apply(initCommand(16, 3, 2)); got != (Registered{ClusterID: "cluster", Node: 1}) {
		t.Fatalf("init: %v", got)
	}
	before := r.state
	if got := r.apply(initCommand(32, 1, 1)); got != ErrInitialised {
		t.Errorf("second init: %v", got)
	}
	if r.state.Policy != before.Policy || len(r.state.Shards) != 16 || r.state.Revision != before.Revision {
		t.Error("a refused init changed the state")
	}
}

func TestRegister(t *testing.T) {
	r := newRun()
	r.apply(initCommand(16, 3, 2))
	first := r.apply(Register{Registration: registrationOf("b")})
	if first != (Registered{ClusterID: "cluster", Node: 2}) {
		t.Fatalf("first: %v", first)
	}
	revision := r.state.Revision
	if again := r.apply(Register{Registration: registrationOf("b")}); again != first || r.state.Revision != revision {
		t.Errorf("again: %v, revision %d was %d", again, r.state.Revision, revision)
	}
	moved := registrationOf("b")
	moved.Addr = "elsewhere:7000"
	if again := r.apply(Register{Node: 2, ClusterID: "cluster", Registration: moved}); again != first {
		t.Errorf("moved: %v", again)
	}
	if n, _ := r.state.Map().Node(2); n.Addr != "elsewhere:7000" || r.state.Revision == revision {
		t.Errorf("the map has %q at revision %d", n.Addr, r.state.Revision)
	}
	var taken *NameTakenError
	thief := Registration{RandomID: "thief", Name: "b", Addr: "x:1"}
	if err, _ := r.apply(Register{Registration: thief}).(error); !errors.As(err, &taken) || !strings.Contains(err.Error(), "flotilla node remove b") {
		t.Errorf("thief: %v", err)
	}
	for name, wrong := range map[string]Register{
		"no random id":    {Registration: Registration{Name: "n", Addr: "x"}},
		"no name":         {Registration: Registration{RandomID: "r", Addr: "x"}},
		"no address":      {Registration: Registration{RandomID: "r", Name: "n"}},
		"long":            {Registration: Registration{RandomID: "r", Name: strings.Repeat("n", 300), Addr: "x"}},
		"other cluster":   {ClusterID: "other", Registration: registrationOf("e")},
		"unknown node":    {Node: 7, Registration: registrationOf("e")},
		"not this node":   {Node: 1, Registration: registrationOf("b")},
		"rename to taken": {Registration: Registration{RandomID: "random-b", Name: "a", Addr: "b:7000"}},
	} {
		if err, refused := r.apply(wrong).(error); !refused {
			t.Errorf("%s was taken", name)
		} else if err.Error() == "" {
			t.Errorf("%s: no text", name)
		}
	}
	if len(r.state.Nodes) != 2 || r.state.LastNode != 2 {
		t.Errorf("nodes %v", r.state.Nodes)
	}
}

func TestRemovedNodeDoesNotReturn(t *testing.T) {
	r := newRun()
	r.apply(initCommand(16, 3, 2))
	r.apply(Register{Registration: registrationOf("b")})
	d := begin(r.state, r.index+1, 0)
	n, _ := d.node(2)
	n.State = shardmap.NodeRemoved
	d.putNode(n)
	r.state, _ = d.finish()
	if got, _ := r.apply(Register{Node: 2, Registration: registrationOf("b")}).(error); !errors.Is(got, ErrNodeRemoved) {
		t.Errorf("a removed node: %v", got)
	}
	fresh := registrationOf("b")
	fresh.RandomID = "fresh"
	if got := r.apply(Register{Registration: fresh}); got != (Registered{ClusterID: "cluster", Node: 3}) {
		t.Errorf("its name with a new data dir: %v", got)
	}
	if _, ok := r.state.Map().Node(2); ok {
		t.Error("the map shows a removed node")
	}
}

// TestPlanCommittedTwice: a second leader's same plan does nothing.
func TestPlanCommittedTwice(t *testing.T) {
	r := newRun()
	story := storyOfAGroup(t)
	for i, c := range story {
		commit, isCommit := c.(Commit)
		r.apply(c)
		if !isCommit {
			continue
		}
		before := r.state
		answer := r.apply(commit).(Committed)
		for j, err := range answer.Refused {
			if err == nil {
				t.Errorf("command %d: operation %d was taken twice: %+v", i, j, commit.Operations[j])
			}
		}
		if len(before.Operations) != len(r.state.Operations) || before.Revision != r.state.Revision || before.LastOperation != r.state.LastOperation {
			t.Errorf("command %d: a repeated commit changed the state", i)
		}
	}
}

func TestChangeMembershipIsChecked(t *testing.T) {
	r := newRun()
	r.apply(initCommand(16, 1, 1))
	for _, name := range []string{"b", "c"} {
		r.apply(Register{Registration: registrationOf(name)})
	}
	voter := shardmap.Member{Replica: 1, Node: 1}
	for name, c := range map[string]ChangeMembership{
		"another epoch":       {Group: 1, Epoch: 2, Members: []shardmap.Member{voter}},
		"no such group":       {Group: 9, Epoch: 1, Members: []shardmap.Member{voter}},
		"no voters":           {Group: 1, Epoch: 1, Members: []shardmap.Member{{Replica: 1, Node: 1, Learner: true}}},
		"new voter":           {Group: 1, Epoch: 1, Members: []shardmap.Member{voter, {Node: 2}}},
		"node twice":          {Group: 1, Epoch: 1, Members: []shardmap.Member{voter, {Node: 2, Learner: true}, {Node: 2, Learner: true}}},
		"node that has one":   {Group: 1, Epoch: 1, Members: []shardmap.Member{{Node: 1, Learner: true}, {Replica: 1, Node: 2}}},
		"unknown node":        {Group: 1, Epoch: 1, Members: []shardmap.Member{voter, {Node: 9, Learner: true}}},
		"unknown replica":     {Group: 1, Epoch: 1, Members: []shardmap.Member{voter, {Replica: 5, Node: 2, Learner: true}}},
		"replica at no place": {Group: 1, Epoch: 1, Members: []shardmap.Member{{Replica: 1, Node: 2}}},
		"nobody":              {Group: 1, Epoch: 1},
	} {
		if got := r.apply(Commit{Operations: []Operation{{Body: c}}}).(Committed); got.Refused[0] == nil {
			t.Errorf("%s was taken", name)
		}
	}
	good := ChangeMembership{Group: 1, Epoch: 1, Members: []shardmap.Member{voter, {Node: 2, Learner: true}, {Node: 3, Learner: true}}}
	if got := r.apply(Commit{Operations: []Operation{{Body: good}}}).(Committed); got.Refused[0] != nil {
		t.Fatalf("refused: %v", got.Refused[0])
	}
	g, _ := r.state.group(1)
	want := []shardmap.Member{{Replica: 1, Node: 1, First: true}, {Replica: 2, Node: 2, Learner: true}, {Replica: 3, Node: 3, Learner: true}}
	if !slices.Equal(g.Members, want) {
		t.Errorf("assigned %v, want %v", g.Members, want)
	}
	// A change that went another way ends the operation, refused.
	r.apply(Observe{Group: 1, Epoch: 4, Members: []shardmap.Member{voter, {Replica: 3, Node: 3}}})
	g, _ = r.state.group(1)
	last := r.state.Events[len(r.state.Events)-1]
	if len(r.state.Operations) != 0 || g.Epoch != 4 || len(g.Members) != 2 || g.LastReplica != 3 || last.Kind != "change-membership-refused" {
		t.Errorf("group %+v, last event %+v", g, last)
	}
	if removed, known := r.state.Removed(raft.ReplicaKey{Group: 1, Replica: 2}); !removed || !known {
		t.Error("replica 2 was never removed")
	}
	// What is not newer changes nothing.
	revision := r.state.Revision
	for _, epoch := range []uint64{3, 4} {
		r.apply(Observe{Group: 1, Epoch: epoch, Members: []shardmap.Member{voter}})
	}
	if r.state.Revision != revision {
		t.Error("a known epoch changed the state")
	}
	// Nobody starts with a first membership that has passed.
	first := voter
	first.First = true
	r.apply(Observe{Group: 1, Epoch: 5, Members: []shardmap.Member{first}})
	if a := r.state.Map().Assigned(1); len(a) != 1 || a[0].First.Epoch != 0 {
		t.Errorf("after a change: %+v", a)
	}
}

func TestBirthOnlyOnce(t *testing.T) {
	r := newRun()
	for _, c := range storyOfAGroup(t) {
		r.apply(c)
	}
	for _, id := range []raft.GroupID{1, 2, 77} {
		got := r.apply(Commit{Operations: []Operation{{Body: Birth{Group: id, Generation: 1}}}}).(Committed)
		if got.Refused[0] == nil {
			t.Errorf("a birth of group %d was taken", id)
		}
	}
}

func TestBoundsOfTheState(t *testing.T) {
	d := begin(new(State), 1, 1)
	for range eventsMax + 10 {
		d.addEvent("kind", "subject", strings.Repeat("x", reasonMax+1))
	}
	for range configsMax + 10 {
		d.addConfig("reason", nil, nil)
	}
	s, _ := d.finish()
	if len(s.Events) != eventsMax || s.Events[0].ID != 11 || len(s.Events[0].Reason) != reasonMax {
		t.Errorf("%d events from %d", len(s.Events), s.Events[0].ID)
	}
	if len(s.Configs) != configsMax || s.Configs[0].Num != 11 {
		t.Errorf("%d configs from %d", len(s.Configs), s.Configs[0].Num)
	}
	var forgotten *ForgottenConfigError
	if _, err := s.Query(10); !errors.As(err, &forgotten) || forgotten.Oldest != 11 {
		t.Errorf("config 10: %v", err)
	}
	if c, err := s.Query(11); err != nil || c.Num != 11 {
		t.Errorf("config 11: %v %v", c, err)
	}
	if c, err := s.Query(0); err != nil || c.Num != configsMax+10 {
		t.Errorf("the latest: %v %v", c, err)
	}
	if _, err := s.Query(configsMax + 11); !errors.Is(err, ErrNoConfig) {
		t.Errorf("a future config: %v", err)
	}
}

// drawCommand draws commands, sensible and senseless, for a state.
func drawCommand(t *rapid.T, s *State) Command {
	name := rapid.SampledFrom([]string{"a", "b", "c", "d", "e", "f"})
	node := rapid.Custom(func(t *rapid.T) raft.NodeID { return raft.NodeID(rapid.Uint64Range(0, 7).Draw(t, "node")) })
	group := rapid.Custom(func(t *rapid.T) raft.GroupID { return raft.GroupID(rapid.Uint64Range(0, 6).Draw(t, "group")) })
	members := func() []shardmap.Member {
		return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) shardmap.Member {
			return shardmap.Member{Replica: raft.ReplicaID(rapid.Uint64Range(0, 5).Draw(t, "replica")), Node: node.Draw(t, "at"), Learner: rapid.Bool().Draw(t, "learner")}
		}), 0, 4).Draw(t, "members")
	}
	shard := rapid.Custom(func(t *rapid.T) shardmap.ShardID { return shardmap.ShardID(rapid.Uint64Range(0, 20).Draw(t, "shard")) })
	move := rapid.Custom(func(t *rapid.T) OperationID {
		return OperationID(rapid.Uint64Range(0, uint64(s.LastOperation)+1).Draw(t, "move"))
	})
	switch rapid.IntRange(0, 12).Draw(t, "command") {
	case 0:
		return initCommand(rapid.SampledFrom([]uint64{1, 16, 300, 1024}).Draw(t, "shards"), rapid.Uint64Range(0, 4).Draw(t, "replicas"), rapid.Uint64Range(1, 5).Draw(t, "groups"))
	case 1, 2:
		r := registrationOf(name.Draw(t, "name"))
		r.Addr = fmt.Sprint(r.Addr, rapid.IntRange(0, 2).Draw(t, "port"))
		r.Zone = rapid.SampledFrom([]string{"", "z1", "z2"}).Draw(t, "zone")
		return Register{Registration: r}
	case 3:
		return Finish{Operation: OperationID(rapid.Uint64Range(0, uint64(s.LastOperation)+1).Draw(t, "op")), Done: rapid.Bool().Draw(t, "done"), Detail: "detail"}
	case 4:
		return Observe{Group: group.Draw(t, "group"), Epoch: rapid.Uint64Range(0, 6).Draw(t, "epoch"), Members: members()}
	case 5:
		return Prefer{Group: group.Draw(t, "group"), Node: node.Draw(t, "node")}
	case 6:
		body := rapid.SampledFrom([]Body{
			SetNodeState{node.Draw(t, "node"), shardmap.NodeState(rapid.IntRange(0, 3).Draw(t, "state"))},
			Birth{group.Draw(t, "group"), 1},
			TransferLeader{group.Draw(t, "group"), rapid.Uint64Range(0, 3).Draw(t, "epoch"), node.Draw(t, "node")},
			ChangeMembership{Group: group.Draw(t, "group"), Epoch: rapid.Uint64Range(0, 3).Draw(t, "epoch"), Members: members()},
			StartMove{shard.Draw(t, "shard"), group.Draw(t, "from"), group.Draw(t, "to"), shardmap.Generation(rapid.Uint64Range(0, 3).Draw(t, "generation"))},
		}).Draw(t, "body")
		return Commit{Operations: []Operation{{Body: body, Reason: "drawn"}}}
	case 7:
		return OrderMove{Shard: shard.Draw(t, "shard"), To: group.Draw(t, "to")}
	case 8:
		return CancelMove{Move: move.Draw(t, "move")}
	case 9:
		return ReportMove{Move: move.Draw(t, "move"), State: MoveState(rapid.IntRange(0, 4).Draw(t, "state")), Pause: 5, Bytes: 7}
	}
	return Commit{Operations: Plan(s, allUp(s))}
}

// TestRestoredEqualsApplied: whatever is applied, the records hold all of it,
// the same commands give the same state elsewhere, and what must hold holds.
func TestRestoredEqualsApplied(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		records := newMemoryRecords()
		m, twin := NewMachine(), NewMachine()
		for i := range rapid.IntRange(1, 40).Draw(t, "entries") {
			var encoded [][]byte
			for range rapid.IntRange(1, 3).Draw(t, "commands") {
				encoded = append(encoded, EncodeCommand(drawCommand(t, m.applied)))
			}
			before := m.applied
			index, stamp := raft.Index(i+1), int64(rapid.IntRange(0, 1000).Draw(t, "stamp"))
			results, twins := make([]any, len(encoded)), make([]any, len(encoded))
			if err := m.applyEntry(records, index, stamp, encoded, results); err != nil {
				t.Fatal(err)
			}
			if err := twin.applyEntry(newMemoryRecords(), index, stamp, encoded, twins); err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(results, twins) {
				t.Fatalf("answers differ: %v and %v", results, twins)
			}
			checkState(t, before, m.applied)
		}
		m.publish()
		restored := NewMachine()
		if err := restored.restore(records); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(encodedState(m.State()), encodedState(restored.State())) {
			t.Fatalf("restored\n%+v\napplied\n%+v", restored.State(), m.State())
		}
		if !slices.Equal(encodedState(m.State()), encodedState(twin.applied)) {
			t.Fatal("two machines with the same log differ")
		}
		if m.Map() != nil && !mapsEqual(m.Map(), restored.Map()) {
			t.Fatal("the maps differ")
		}
	})
}

func mapsEqual(a, b *shardmap.Map) bool {
	x, err1 := EncodeMap(a)
	y, err2 := EncodeMap(b)
	return err1 == nil && err2 == nil && slices.Equal(x, y)
}

// checkState is what holds after every entry.
func checkState(t *rapid.T, before, s *State) {
	if s.LastNode < before.LastNode || s.LastGroup < before.LastGroup || s.LastOperation < before.LastOperation ||
		s.LastEvent < before.LastEvent || s.Revision < before.Revision || s.Time < before.Time {
		t.Fatal("an id or the time went back")
	}
	if before.Initialised() && before.ClusterID != s.ClusterID {
		t.Fatal("another cluster")
	}
	for _, n := range before.Nodes {
		if now, ok := s.node(n.ID); !ok || now.RandomID != n.RandomID {
			t.Fatalf("node %d became another one", n.ID)
		}
	}
	names := make(map[string]bool)
	for _, n := range s.Nodes {
		if n.State != shardmap.NodeRemoved && names[n.Name] {
			t.Fatalf("two nodes are %q", n.Name)
		}
		names[n.Name] = true
	}
	on := make(map[raft.GroupID]bool)
	for _, o := range s.Operations {
		id, _ := o.group()
		if on[id] {
			t.Fatalf("two operations on group %d", id)
		}
		on[id] = true
	}
	for _, g := range s.Groups {
		if old, ok := before.group(g.ID); ok && (g.Epoch < old.Epoch || g.LastReplica < old.LastReplica || old.Born && !g.Born) {
			t.Fatalf("group %d went back from %+v to %+v", g.ID, old, g)
		}
	}
	if s.Revision == before.Revision && s.Initialised() && before.Initialised() && !mapsEqual(before.Map(), s.Map()) {
		t.Fatal("the map changed without its revision")
	}
}
