package shardctrler

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// planWorld is a cluster in which groups do what they are told, as far as they
// have a quorum, and nodes die and come back.
type planWorld struct {
	*rapid.T
	run
	dead    map[raft.NodeID]bool
	leaders map[raft.GroupID]raft.NodeID
	members map[raft.GroupID][]shardmap.Member // by the groups' own logs
	given   map[raft.GroupID]raft.ReplicaID    // the highest ever
	loads   map[shardmap.ShardID]ShardLoad
	zones   int

	explained DecisionID // through here
}

func newPlanWorld(t *rapid.T) *planWorld {
	w := &planWorld{T: t, run: *newRun(), dead: make(map[raft.NodeID]bool), leaders: make(map[raft.GroupID]raft.NodeID),
		members: make(map[raft.GroupID][]shardmap.Member), given: make(map[raft.GroupID]raft.ReplicaID), loads: make(map[shardmap.ShardID]ShardLoad), zones: rapid.IntRange(1, 3).Draw(t, "zones")}
	first := initCommand(32, rapid.Uint64Range(1, 4).Draw(t, "replicas"), rapid.Uint64Range(1, 6).Draw(t, "groups"))
	first.First.Zone = "z1"
	w.apply(first)
	return w
}

func (w *planWorld) alive(id raft.NodeID) bool {
	n, ok := w.state.node(id)
	return ok && !w.dead[id] && n.State != shardmap.NodeRemoved
}

// leader is who leads a group; 0: it has no quorum.
func (w *planWorld) leader(g raft.GroupID) raft.NodeID {
	up, first := 0, raft.NodeID(0)
	voters := 0
	for _, m := range w.members[g] {
		if m.Learner {
			continue
		}
		voters++
		if w.alive(m.Node) {
			if up++; first == 0 || m.Node == w.leaders[g] {
				first = m.Node
			}
		}
	}
	if up <= voters/2 {
		return 0
	}
	w.leaders[g] = first
	return first
}

func (w *planWorld) observe() Observed {
	o := Observed{Quiet: loadSettle}
	for _, n := range w.state.Nodes {
		if w.alive(n.ID) {
			o.Nodes = append(o.Nodes, ObservedNode{ID: n.ID, Alive: true, Ready: true})
		} else {
			o.Nodes = append(o.Nodes, ObservedNode{ID: n.ID, Silent: 2 * replaceAfter})
		}
	}
	for _, g := range w.state.Groups {
		if w.members[g.ID] == nil {
			w.members[g.ID] = slices.Clone(g.Members)
		}
		leader := w.leader(g.ID)
		if leader == 0 {
			continue
		}
		seen := ObservedGroup{ID: g.ID, Epoch: g.Epoch, Term: 1, Leader: leader}
		for _, m := range w.members[g.ID] {
			lag := int64(0)
			if !w.alive(m.Node) {
				lag = 1_000_000
			}
			seen.Members = append(seen.Members, ObservedMember{Member: m, Lag: lag})
		}
		seen.Measured, seen.Over, seen.Loads = loadSettle, loadSettle, loadsAt(w.state, g.ID, w.loads)
		o.Groups = append(o.Groups, seen)
	}
	return o
}

// settle plans and carries out until nothing is left to do.
func (w *planWorld) settle() {
	for round := 0; ; round++ {
		o := w.observe()
		planned := Plan(w.state, o)
		if !reflect.DeepEqual(planned, Plan(w.state, o)) {
			w.Fatal("the same question has two answers")
		}
		if len(planned) == 0 && len(w.state.Operations) == 0 && len(w.state.underWay()) == 0 {
			return
		}
		if round > 400 {
			w.Fatalf("round %d still plans %+v; pending %+v", round, planned, w.state.Operations)
		}
		if len(planned) > 0 {
			for i, err := range w.run.apply(CommitPlan(w.state, o, planned)).(Committed).Refused {
				if err != nil {
					w.Fatalf("the plan's own operation %+v was refused: %v", planned[i], err)
				}
			}
			for _, again := range Plan(w.state, o) {
				if id, waits := again.group(); waits && slices.ContainsFunc(planned, func(p Operation) bool { g, _ := p.group(); return g == id }) {
					w.Fatalf("planned again though it is pending: %+v", again)
				}
			}
		}
		w.carryOut()
	}
}

// carryOut has the groups do what is pending.
func (w *planWorld) carryOut() {
	for _, o := range slices.Clone(w.state.Operations) {
		id, _ := o.group()
		if g, ok := w.state.group(id); ok && w.members[id] == nil {
			w.members[id] = slices.Clone(g.Members)
		}
		if w.leader(id) == 0 {
			w.run.apply(Finish{Operation: o.ID, Detail: "no quorum"})
			continue
		}
		switch b := o.Body.(type) {
		case ChangeMembership:
			w.change(b)
		case TransferLeader:
			w.leaders[id] = b.To
			w.run.apply(Finish{Operation: o.ID, Done: true})
		default:
			w.run.apply(Finish{Operation: o.ID, Done: true})
		}
	}
	for _, m := range w.state.underWay() {
		if w.leader(m.From) != 0 && w.leader(m.To) != 0 {
			state := MoveDone
			if m.Cancel {
				state = MoveCancelled
			}
			w.run.apply(ReportMove{Move: m.ID, State: state, Bytes: -1})
		}
	}
}

// change is a change of a group's membership, which it must survive.
func (w *planWorld) change(b ChangeMembership) {
	before := w.members[b.Group]
	for _, m := range b.Members {
		known := slices.ContainsFunc(before, func(o shardmap.Member) bool { return o.Replica == m.Replica && o.Node == m.Node })
		if !known && (m.Replica <= w.given[b.Group] || !m.Learner) {
			w.Fatalf("group %d: replica %d of node %d is new and %+v; %d were given", b.Group, m.Replica, m.Node, m, w.given[b.Group])
		}
	}
	for _, m := range append(slices.Clone(before), b.Members...) {
		w.given[b.Group] = max(w.given[b.Group], m.Replica)
	}
	w.members[b.Group] = slices.Clone(b.Members)
	if w.leader(b.Group) == 0 {
		w.Fatalf("group %d went from %+v to %+v and has no quorum", b.Group, before, b.Members)
	}
	w.run.apply(Observe{Group: b.Group, Epoch: b.Epoch + 1, Members: b.Members})
}

// event is something that happens to the cluster.
func (w *planWorld) event(n int) {
	node := func() raft.NodeID {
		return raft.NodeID(rapid.IntRange(1, max(1, len(w.state.Nodes))).Draw(w.T, "node"))
	}
	group := func() raft.GroupID {
		return raft.GroupID(rapid.Uint64Range(1, uint64(w.state.LastGroup)+1).Draw(w.T, "group"))
	}
	var c Command
	switch rapid.IntRange(0, 12).Draw(w.T, "event") {
	case 0, 1, 2:
		reg := registrationOf(fmt.Sprint("n", n))
		reg.Zone = fmt.Sprint("z", rapid.IntRange(1, w.zones).Draw(w.T, "zone"))
		c = Register{Registration: reg}
	case 3:
		id := node()
		w.dead[id] = true
		w.checkFatal(id)
	case 4:
		clear(w.dead)
	case 5:
		c = DrainNode{Node: node(), Back: rapid.Bool().Draw(w.T, "back")}
	case 6:
		c = RemoveNode{Node: node()}
	case 7:
		sites := (&planner{state: w.state, observed: w.observe()}).liveSites()
		if want := int(w.state.Policy.Replicas); len(sites) >= want {
			c = AddGroups{Groups: placeGroups(sites, rapid.IntRange(1, 3).Draw(w.T, "groups"), want)}
		}
	case 8:
		c = RemoveGroup{Group: group()}
	case 9:
		c = OrderMove{Shard: shardmap.ShardID(rapid.IntRange(0, 31).Draw(w.T, "shard")), To: group()}
	case 10:
		if len(w.state.Moves) > 0 {
			c = CancelMove{Move: w.state.Moves[len(w.state.Moves)-1].ID}
		}
	case 11:
		w.loads = drawLoads(w.T, len(w.state.Shards))
	}
	if c == nil {
		return
	}
	before := w.state.config()
	answer := w.run.apply(c)
	if _, refused := answer.(error); !refused {
		w.checkFewest(c, before, w.state.config())
	}
}

// checkFatal brings a node back whose death some group does not survive: the
// world is one in which no group is lost.
func (w *planWorld) checkFatal(id raft.NodeID) {
	for g := range w.members {
		if _, exists := w.state.group(g); exists && w.leader(g) == 0 {
			delete(w.dead, id)
		}
	}
}

// checkFewest: joining and leaving moves as few shards as can be, and leaves the
// groups within one of each other.
func (w *planWorld) checkFewest(c Command, before, after Config) {
	switch c.(type) {
	case AddGroups, RemoveGroup:
	default:
		return
	}
	if after.Num != before.Num+1 {
		w.Fatalf("%T makes config %d of %d", c, after.Num, before.Num)
	}
	groups := w.state.servingGroups()
	had, has, moved := make(map[raft.GroupID]int), make(map[raft.GroupID]int), 0
	for shard, g := range after.Owners {
		had[before.Owners[shard]]++
		has[g]++
		if g != before.Owners[shard] {
			moved++
		}
	}
	if len(after.Pinned) > 0 {
		return
	}
	for _, g := range groups {
		if n := has[g]; n != len(after.Owners)/len(groups) && n != len(after.Owners)/len(groups)+1 {
			w.Fatalf("group %d has %d of %d shards among %d groups", g, n, len(after.Owners), len(groups))
		}
	}
	if fewest := len(after.Owners) - mostKept(groups, had, len(after.Owners)); moved != fewest {
		w.Fatalf("%T moves %d shards, %d would do", c, moved, fewest)
	}
}

// check is what must be so once nothing is left to plan.
func (w *planWorld) check() {
	s := w.state
	p := &planner{state: s, observed: w.observe()}
	p.live = p.liveSites()
	for i, at := range s.Shards {
		if len(s.Configs) > 0 && s.config().Owners[i] != at.Group {
			w.Fatalf("shard %d is at group %d, wished at %d", i, at.Group, s.config().Owners[i])
		}
	}
	var err error
	if w.explained, err = CheckExplained(w.state, w.observe(), w.explained); err != nil {
		w.Fatal(err)
	}
	load := make(map[raft.NodeID]int)
	complete := true
	for _, g := range s.Groups {
		if g.Leaving || !g.Born && g.ID != raft.ConfigGroup {
			w.Fatalf("group %+v has not ended, or not begun", g)
		}
		voters, kept := 0, 0
		for _, m := range g.Members {
			if m.Learner {
				w.Fatalf("group %d still has a learner: %s", g.ID, membersText(g.Members))
			}
			voters++
			if p.keeps(m.Node) {
				kept++
			}
			if g.ID != raft.ConfigGroup {
				load[m.Node]++
			}
		}
		want := int(s.Policy.Replicas)
		if g.ID == raft.ConfigGroup {
			want = voters
		}
		if free := len(p.live); kept < want && kept < free && !(g.ID == raft.ConfigGroup) {
			others := slices.ContainsFunc(p.live, func(site Site) bool {
				return !slices.ContainsFunc(g.Members, func(m shardmap.Member) bool { return m.Node == site.ID })
			})
			if others {
				w.Fatalf("group %d has %d of %d good replicas: %s; live %v", g.ID, kept, want, membersText(g.Members), p.live)
			}
		}
		if kept < want {
			complete = false
		}
		ordered := 0
		for _, m := range g.Members {
			if n, _ := s.node(m.Node); n.State == shardmap.NodeRemoved || n.Drain {
				ordered++
			}
		}
		dead := slices.ContainsFunc(g.Members, func(m shardmap.Member) bool { return !w.alive(m.Node) })
		if g.ID == raft.ConfigGroup && ordered > 0 && ordered < voters && !dead {
			w.Fatalf("the config group has %d voters on nodes that are drained or removed: %s", ordered, membersText(g.Members))
		}
		if g.ID != raft.ConfigGroup && voters > want {
			w.Fatalf("group %d has %d voters", g.ID, voters)
		}
	}
	if !complete || p.tooManyDown() {
		return
	}
	for _, g := range s.replicaGroups() {
		w.checkZones(p, g)
	}
	if w.zones > 1 {
		return
	}
	least, most := 1<<30, 0
	for _, site := range p.live {
		least, most = min(least, load[site.ID]), max(most, load[site.ID])
	}
	if most-least > 1 && len(s.replicaGroups()) > 0 {
		w.Fatalf("the nodes have %v replicas", slices.Collect(maps.Values(load)))
	}
}

// checkZones: no replica of a group could go to a zone that has two fewer.
func (w *planWorld) checkZones(p *planner, g Group) {
	inZone, has := make(map[string]int), make(map[raft.NodeID]bool)
	for _, m := range g.Members {
		n, _ := w.state.node(m.Node)
		inZone[n.Zone]++
		has[m.Node] = true
	}
	for _, site := range p.live {
		for zone, n := range inZone {
			if !has[site.ID] && n >= inZone[site.Zone]+2 {
				w.Fatalf("group %d has %d replicas in zone %q and %d in zone %q, where node %d has none: %s", g.ID, n, zone, inZone[site.Zone], site.Zone, site.ID, membersText(g.Members))
			}
		}
	}
}

// TestPlansInAnyHistory: whatever happens to nodes and whatever is ordered, the
// plans come to an end, the replicas and the shards are then where they should
// be, no group ever loses its quorum to a plan, and no replica id comes twice.
func TestPlansInAnyHistory(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newPlanWorld(t)
		for i := range rapid.IntRange(1, 40).Draw(t, "events") {
			w.event(i)
			w.settle()
			w.check()
		}
	})
}

// TestNothingIsReplacedInALargeFailure: when more than a third of the nodes are
// down something else is wrong.
func TestNothingIsReplacedInALargeFailure(t *testing.T) {
	r := newRun()
	r.apply(initCommand(64, 3, 4))
	for i := range 8 {
		r.apply(Register{Registration: registrationOf(fmt.Sprint("n", i))})
	}
	for range 6 {
		r.apply(Commit{Operations: Plan(r.state, allUp(r.state))})
		for _, o := range r.state.Operations {
			if b, ok := o.Body.(ChangeMembership); ok {
				r.apply(Observe{Group: b.Group, Epoch: b.Epoch + 1, Members: b.Members})
			} else {
				r.apply(Finish{Operation: o.ID, Done: true})
			}
		}
	}
	replaces := func(down int, silent time.Duration) bool {
		o := allUp(r.state)
		for i := range down {
			o.Nodes[len(o.Nodes)-1-i] = ObservedNode{ID: o.Nodes[len(o.Nodes)-1-i].ID, Silent: silent}
		}
		s, _, _ := apply(r.state, r.index+1, 0, []Command{Commit{Operations: Plan(r.state, o)}})
		return slices.ContainsFunc(Plan(s, o), func(o Operation) bool { _, ok := o.Body.(ChangeMembership); return ok })
	}
	for _, x := range []struct {
		down   int
		silent time.Duration
		want   bool
	}{{1, replaceAfter, true}, {1, replaceAfter - time.Second, false}, {3, replaceAfter, true}, {4, replaceAfter, false}} {
		if got := replaces(x.down, x.silent); got != x.want {
			t.Errorf("%d of 9 nodes down for %v: replaced %v", x.down, x.silent, got)
		}
	}
}

// TestForesee: what is foreseen is what comes.
func TestForesee(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newPlanWorld(t)
		for i := range rapid.IntRange(3, 7).Draw(t, "nodes") {
			reg := registrationOf(fmt.Sprint("n", i))
			reg.Zone = fmt.Sprint("z", rapid.IntRange(1, w.zones).Draw(t, "zone"))
			w.apply(Register{Registration: reg})
		}
		w.settle()
		if len(w.state.Configs) == 0 {
			return
		}
		node := raft.NodeID(rapid.IntRange(1, len(w.state.Nodes)).Draw(t, "node"))
		what := WhatIf{}
		switch rapid.IntRange(0, 3).Draw(t, "what") {
		case 0:
			what.Command = DrainNode{Node: node}
		case 1:
			what.Lose = []raft.NodeID{node}
		case 2:
			what.Add = []string{"z1"}
		default:
			what.Command = RemoveGroup{Group: raft.GroupID(rapid.IntRange(2, 7).Draw(t, "group"))}
		}
		before := w.state
		ahead, err := Foresee(before, w.observe(), what)
		if w.state != before {
			t.Fatal("to foresee changes the state")
		}
		if err != nil {
			if answer := w.apply(what.Command); answer == nil {
				t.Fatalf("%+v is refused when foreseen (%v), and then not", what, err)
			}
			return
		}
		for _, id := range what.Lose {
			w.dead[id] = true
			if w.leader(raft.ConfigGroup) == 0 {
				return
			}
		}
		for _, zone := range what.Add {
			w.apply(Register{Registration: Registration{RandomID: "what-if-new-1", Name: "new-1", Zone: zone, Addr: "new-1:0"}})
		}
		if what.Command != nil {
			w.apply(what.Command)
		}
		w.settle()
		var shards []ShardChange
		for i, at := range before.Shards {
			if to := w.state.Shards[i]; to.Group != at.Group {
				shards = append(shards, ShardChange{shardmap.ShardID(i), at.Group, to.Group})
			}
		}
		if !reflect.DeepEqual(shards, ahead.Shards) {
			t.Fatalf("%+v: foreseen %v, come %v", what, ahead.Shards, shards)
		}
		for _, r := range ahead.Replicas {
			g, _ := w.state.group(r.Group)
			if after := nodesOf(g.Members); !slices.Equal(after, r.After) && len(after)+len(r.After) > 0 {
				t.Fatalf("%+v: group %d foreseen at %v, come to %v", what, r.Group, r.After, after)
			}
		}
	})
}

func TestTopologyRefusals(t *testing.T) {
	r := afterBringUp(t)
	r.refuses(t, RemoveGroup{Group: 1}, "config group")
	r.refuses(t, RemoveGroup{Group: 9}, "the groups are 2 to 5")
	r.refuses(t, DrainNode{Node: 9}, "no node 9")
	r.refuses(t, DrainNode{Node: 1, Back: true}, "not being drained")
	r.refuses(t, RemoveNode{Node: 1}, "drain it first")
	r.refuses(t, RemoveNode{Node: 9}, "no node 9")
	r.refuses(t, AddGroups{}, "1 to 256")
	r.refuses(t, AddGroups{Groups: []NewGroup{{Nodes: []raft.NodeID{1, 2}}}}, "the policy is 3")
	r.refuses(t, AddGroups{Groups: []NewGroup{{Nodes: []raft.NodeID{1, 2, 2}}}}, "twice")
	again := AddGroups{Groups: []NewGroup{{Nodes: []raft.NodeID{1, 2, 3}}}, Config: 1}
	r.must(t, again)
	r.refuses(t, again, "may have been carried out already")
	r.must(t, RemoveGroup{Group: r.state.LastGroup})
	r.must(t, Commit{Operations: []Operation{{Body: DestroyGroup{Group: r.state.LastGroup}}}})
	r.must(t, DrainNode{Node: 1})
	events := len(r.state.Events)
	r.must(t, DrainNode{Node: 1}) // again
	if len(r.state.Events) != events {
		t.Errorf("the same order again is noted: %+v", r.state.Events[events:])
	}
	r.refuses(t, DrainNode{Node: 2}, "add a node first")
	r.must(t, DrainNode{Node: 1, Back: true})
	for _, g := range []raft.GroupID{2, 3, 4} {
		num := r.state.config().Num + 1
		if left := r.must(t, RemoveGroup{Group: g}).(Left); left.Config != num {
			t.Errorf("%+v", left)
		}
		if again := r.must(t, RemoveGroup{Group: g}).(Left); again.Config != r.state.config().Num || r.state.config().Num != num {
			t.Errorf("the same order again: %+v", again)
		}
		r.refuses(t, OrderMove{Shard: 1, To: g}, "being removed")
	}
	r.refuses(t, RemoveGroup{Group: 5}, "the last")
	for _, g := range []raft.GroupID{2, 5} { // one has shards, the other does not leave
		if refused := r.apply(Commit{Operations: []Operation{{Body: DestroyGroup{Group: g}}}}).(Committed).Refused[0]; refused == nil {
			t.Errorf("group %d is destroyed", g)
		}
	}
	down := func(id raft.NodeID) {
		r.must(t, Commit{Operations: []Operation{{Body: SetNodeState{id, shardmap.NodeDown}}}})
	}
	down(1)
	down(2)
	r.refuses(t, RemoveNode{Node: 1}, "no majority")
	r.refuses(t, DrainNode{Node: 2}, "flotilla node remove")
	r.refuses(t, OrderMove{Shard: 1 << 63, To: 5}, "the shards are")
}

// TestAMissingReportChangesNoPreference: a group that is not heard of for a
// moment does not make its node lead less.
func TestAMissingReportChangesNoPreference(t *testing.T) {
	r := afterBringUp(t)
	o := allUp(r.state)
	if planned := Plan(r.state, o); len(planned) > 0 {
		t.Fatalf("planned %+v", planned)
	}
	for i := 1; i < len(o.Groups); i++ {
		without := o
		without.Groups = slices.Delete(slices.Clone(o.Groups), i, i+1)
		if planned := Plan(r.state, without); len(planned) > 0 {
			t.Errorf("without group %d: %+v", o.Groups[i].ID, planned)
		}
	}
}

// TestAGroupThatWasNeverBornGoes: its nodes died before it had a leader.
func TestAGroupThatWasNeverBornGoes(t *testing.T) {
	r := afterBringUp(t)
	added := r.must(t, AddGroups{Groups: []NewGroup{{Nodes: []raft.NodeID{1, 2, 3}, Preferred: 1}}}).(Added)
	r.must(t, Commit{Operations: []Operation{{Body: Birth{Group: added.Groups[0], Generation: 1}}}})
	r.must(t, RemoveGroup{Group: added.Groups[0]})
	for range 3 {
		r.must(t, Commit{Operations: Plan(r.state, allUp(r.state))})
	}
	if _, exists := r.state.group(added.Groups[0]); exists {
		t.Error("it stays")
	}
}

// TestReplicasStayInTheirZones: who takes the place of a replica that is to go is
// looked for in that one's zone, too.
func TestReplicasStayInTheirZones(t *testing.T) {
	r := newRun()
	first := initCommand(16, 3, 1)
	first.First.Zone = "z1"
	r.apply(first)
	for i, zone := range []string{"z2", "z3", "z1", "z3"} {
		reg := registrationOf(fmt.Sprint("n", i))
		reg.Zone = zone
		r.apply(Register{Registration: reg})
		for range 2 * i * (2 - i) { // when there are three: the group is made on z1, z2 and z3
			r.apply(Commit{Operations: Plan(r.state, allUp(r.state))})
			for _, o := range r.state.Operations {
				r.apply(Finish{Operation: o.ID, Done: true})
			}
		}
	}
	r.must(t, DrainNode{Node: 3})
	for _, o := range Plan(r.state, allUp(r.state)) {
		if c, ok := o.Body.(ChangeMembership); ok && c.Group == 2 {
			if to := c.Members[len(c.Members)-1]; to.Node != 5 {
				t.Errorf("a replica of zone z3 is to go to node %d: %+v", to.Node, c.Members)
			}
			return
		}
	}
	t.Error("nothing is planned")
}

// TestForeseeManyShards: a change of the largest cluster is thought through to
// its end.
func TestForeseeManyShards(t *testing.T) {
	r := newRun()
	r.must(t, initCommand(shardmap.ShardsMax, 1, 4))
	for range 4 {
		r.must(t, Commit{Operations: Plan(r.state, allUp(r.state))})
		for _, o := range r.state.Operations {
			r.must(t, Finish{Operation: o.ID, Done: true})
		}
	}
	ahead, err := Foresee(r.state, allUp(r.state), WhatIf{Command: AddGroups{Groups: []NewGroup{{Nodes: []raft.NodeID{1}}}}})
	if want := shardmap.ShardsMax / 5; err != nil || len(ahead.Waits) > 0 || len(ahead.Shards) != want {
		t.Errorf("%d shards would move, of %d: %v, %v", len(ahead.Shards), want, ahead.Waits, err)
	}
}
