package shardctrler

import (
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// drawSites draws nodes in zones, ascending by id.
func drawSites(t *rapid.T, least int) []Site {
	zones := rapid.IntRange(1, 4).Draw(t, "zones")
	var sites []Site
	for i := range rapid.IntRange(least, 12).Draw(t, "nodes") {
		sites = append(sites, Site{ID: raft.NodeID(i + 1), Zone: fmt.Sprint("z", rapid.IntRange(1, zones).Draw(t, "zone"))})
	}
	return sites
}

func TestGroupsArePlacedWell(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		replicas := rapid.IntRange(1, 5).Draw(t, "replicas")
		sites := drawSites(t, replicas)
		n := rapid.IntRange(1, 40).Draw(t, "groups")
		groups := placeGroups(sites, n, replicas)
		if again := placeGroups(sites, n, replicas); !reflect.DeepEqual(groups, again) {
			t.Fatal("the same question has two answers")
		}
		zone := make(map[raft.NodeID]string)
		perZone := make(map[string]int)
		for _, s := range sites {
			zone[s.ID] = s.Zone
			perZone[s.Zone]++
		}
		load := make(map[raft.NodeID]int)
		members := make([][]raft.NodeID, len(groups))
		leaders := make([]raft.NodeID, len(groups))
		for i, g := range groups {
			checkGroup(t, g, replicas, zone, perZone)
			for _, node := range g.Nodes {
				load[node]++
			}
			members[i], leaders[i] = g.Nodes, g.Preferred
		}
		for z := range perZone {
			least, most := 1<<30, 0
			for _, s := range sites {
				if s.Zone == z {
					least, most = min(least, load[s.ID]), max(most, load[s.ID])
				}
			}
			if most-least > 1 {
				t.Fatalf("in zone %s nodes have from %d to %d replicas", z, least, most)
			}
		}
		checkLeaders(t, members, leaders)
		if replicas == len(sites) {
			led := make(map[raft.NodeID]int)
			for _, l := range leaders {
				led[l]++
			}
			for _, s := range sites {
				if c := led[s.ID]; c != n/len(sites) && c != n/len(sites)+1 {
					t.Fatalf("node %d leads %d of %d groups on %d nodes", s.ID, c, n, len(sites))
				}
			}
		}
	})
}

// checkGroup: distinct nodes, and no zone has more of a group than must be.
func checkGroup(t *rapid.T, g NewGroup, replicas int, zone map[raft.NodeID]string, perZone map[string]int) {
	seen := make(map[raft.NodeID]bool)
	inZone := make(map[string]int)
	for _, n := range g.Nodes {
		if seen[n] || zone[n] == "" {
			t.Fatalf("group on nodes %v", g.Nodes)
		}
		seen[n] = true
		inZone[zone[n]]++
	}
	if len(seen) != replicas || !seen[g.Preferred] {
		t.Fatalf("group %+v with %d replicas", g, replicas)
	}
	for a := range perZone {
		for b := range perZone {
			if inZone[a] > inZone[b]+1 && inZone[b] < perZone[b] {
				t.Fatalf("%d replicas in zone %s, %d in %s, which has %d nodes", inZone[a], a, inZone[b], b, perZone[b])
			}
		}
	}
}

// checkLeaders: no leadership can be passed on, over any chain, to a node that
// leads two fewer. (Reachability by repeated widening, not by the search that
// is tested.)
func checkLeaders(t *rapid.T, groups [][]raft.NodeID, leaders []raft.NodeID) {
	led := make(map[raft.NodeID]int)
	for i, nodes := range groups {
		if !slices.Contains(nodes, leaders[i]) {
			t.Fatalf("group %d on %v is led by %d", i, nodes, leaders[i])
		}
		led[leaders[i]]++
	}
	for from := range led {
		reach := map[raft.NodeID]bool{from: true}
		for grown := true; grown; {
			grown = false
			for i, nodes := range groups {
				for _, n := range nodes {
					if reach[leaders[i]] && !reach[n] {
						reach[n], grown = true, true
					}
				}
			}
		}
		for to := range reach {
			if led[to]+2 <= led[from] {
				t.Fatalf("node %d leads %d, and %d could lead more than %d: %v of %v", from, led[from], to, led[to], leaders, groups)
			}
		}
	}
}

func TestLeadersStayIfTheyCan(t *testing.T) {
	groups := [][]raft.NodeID{{1, 2, 3}, {1, 2, 3}, {1, 2, 3}}
	even := []raft.NodeID{3, 1, 2}
	if got := preferLeaders(groups, even); !slices.Equal(got, even) {
		t.Errorf("even leaders %v became %v", even, got)
	}
	if got := preferLeaders(groups, []raft.NodeID{3, 1, 9}); got[0] != 3 || got[1] != 1 || got[2] != 2 {
		t.Errorf("a leader that left: %v", got)
	}
}

func TestShardsAreBalanced(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		shards := 1 << rapid.IntRange(0, 9).Draw(t, "bits")
		var groups []raft.GroupID
		for id := raft.GroupID(2); len(groups) < 12 && id < 20; id++ {
			if rapid.Bool().Draw(t, "exists") || id == 19 && len(groups) == 0 {
				groups = append(groups, id)
			}
		}
		owners := make([]raft.GroupID, shards)
		for i := range owners {
			owners[i] = raft.GroupID(rapid.IntRange(0, 20).Draw(t, "owner"))
		}
		balanced := balanceShards(owners, nil, groups)
		if !slices.Equal(balanced, balanceShards(owners, nil, groups)) {
			t.Fatal("the same question has two answers")
		}
		has, had := make(map[raft.GroupID]int), make(map[raft.GroupID]int)
		moved := 0
		for i, g := range balanced {
			if !slices.Contains(groups, g) {
				t.Fatalf("shard %d is given to %d", i, g)
			}
			has[g]++
			had[owners[i]]++
			if g != owners[i] {
				moved++
			}
		}
		for _, g := range groups {
			if n := has[g]; n != shards/len(groups) && n != shards/len(groups)+1 {
				t.Fatalf("group %d has %d of %d shards among %d groups", g, n, shards, len(groups))
			}
		}
		if fewest := shards - mostKept(groups, had, shards); moved != fewest {
			t.Fatalf("%d moves, %d would do", moved, fewest)
		}
		if again := balanceShards(balanced, nil, groups); !slices.Equal(again, balanced) {
			t.Fatal("balancing what is balanced moves shards")
		}
	})
}

// mostKept is how many shards can stay at best: each group keeps up to the
// smaller share, and the odd ones go to groups that have more than that.
func mostKept(groups []raft.GroupID, had map[raft.GroupID]int, shards int) int {
	share, odd := shards/len(groups), shards%len(groups)
	kept := 0
	for _, g := range groups {
		kept += min(had[g], share)
		if had[g] > share && odd > 0 {
			kept++
			odd--
		}
	}
	return kept
}

// TestAGroupGoesToThoseThatAreThere: a node that has just died, or that a new
// leader of the config group has not listened for yet, is not counted on.
func TestAGroupGoesToThoseThatAreThere(t *testing.T) {
	state := &State{Nodes: []Node{{ID: 1}, {ID: 2}, {ID: 3}}}
	goes := func(g raft.GroupID, lags ...int64) bool {
		p := &planner{state: state, pending: make(map[raft.GroupID]bool)}
		var voters []ObservedMember
		for i, lag := range lags {
			node := raft.NodeID(i + 1)
			p.observed.Nodes = append(p.observed.Nodes, ObservedNode{ID: node, Alive: true})
			voters = append(voters, ObservedMember{Lag: lag, Member: shardmap.Member{Replica: raft.ReplicaID(i + 1), Node: node}})
		}
		p.settle(Group{ID: g}, ObservedGroup{ID: g, Hold: true}, voters, nil, "why")
		return p.changes == 1
	}
	for _, x := range []struct {
		group raft.GroupID
		lags  []int64
		goes  bool
	}{
		{raft.ConfigGroup, []int64{0, 0}, true},
		{raft.ConfigGroup, []int64{0, 1}, false}, // since the order that leads to this
		{raft.ConfigGroup, []int64{0, -1}, false},
		{raft.ConfigGroup, []int64{0, 0, 7}, true},
		{raft.ConfigGroup, []int64{0, 5, 7}, false},
		{2, []int64{0, 1}, true}, // it is written to
		{2, []int64{0, learnerLagMax + 1}, false},
		{2, []int64{0, 1, -1}, true},
	} {
		if got := goes(x.group, x.lags...); got != x.goes {
			t.Errorf("group %d goes to those that lag by %v: %t", x.group, x.lags, got)
		}
	}
}

func TestConfigGroupGrowsLearnersFirst(t *testing.T) {
	r := newRun()
	r.apply(initCommand(16, 3, 2))
	for _, name := range []string{"b", "c"} {
		r.apply(Register{Registration: registrationOf(name)})
	}
	change := func(o Observed) (ChangeMembership, bool) {
		for _, op := range Plan(r.state, o) {
			if c, ok := op.Body.(ChangeMembership); ok {
				return c, true
			}
		}
		return ChangeMembership{}, false
	}
	first, ok := change(allUp(r.state))
	if !ok || len(first.Members) != 3 || first.Members[0].Learner || !first.Members[1].Learner || !first.Members[2].Learner {
		t.Fatalf("first %+v", first)
	}
	r.apply(Commit{Operations: []Operation{{Body: first}}})
	pending := r.state.Operations[0].Body.(ChangeMembership)
	r.apply(Observe{Group: 1, Epoch: 2, Members: pending.Members})

	config := func(change func(*ObservedGroup)) Observed {
		o := allUp(r.state)
		change(&o.Groups[0])
		return o
	}
	for name, o := range map[string]Observed{
		"a learner lags":           config(func(g *ObservedGroup) { g.Members[2].Lag = learnerLagMax + 1 }),
		"a learner is not heard":   config(func(g *ObservedGroup) { g.Members[1].Lag = -1 }),
		"a change is half done":    config(func(g *ObservedGroup) { g.Joint = true }),
		"the epoch is not the one": config(func(g *ObservedGroup) { g.Epoch++ }),
	} {
		if c, ok := change(o); ok {
			t.Errorf("though %s: %+v", name, c)
		}
	}
	second, ok := change(allUp(r.state))
	if !ok || second.Epoch != 2 || len(second.Members) != 3 || slices.ContainsFunc(second.Members, func(m shardmap.Member) bool { return m.Learner }) {
		t.Fatalf("second %+v", second)
	}
	// A learner whose node goes away is given up for another.
	r.apply(Register{Registration: registrationOf("d")})
	o := allUp(r.state)
	o.Nodes[2] = ObservedNode{ID: 3, Silent: 2 * downAfter}
	third, ok := change(o)
	if !ok || slices.ContainsFunc(third.Members, func(m shardmap.Member) bool { return m.Node == 3 }) ||
		!slices.ContainsFunc(third.Members, func(m shardmap.Member) bool { return m.Node == 4 && m.Learner && m.Replica == 0 }) {
		t.Fatalf("third %+v", third)
	}
}

func TestLeadersAreTransferredWhenSafe(t *testing.T) {
	r := newRun()
	for _, c := range storyOfAGroup(t) {
		r.apply(c)
	}
	g := r.state.Groups[1]
	other := g.Members[0].Node
	if other == g.Preferred {
		other = g.Members[1].Node
	}
	observe := func(change func(*Observed, *ObservedGroup)) Observed {
		o := allUp(r.state)
		o.Groups[1].Leader = other
		change(&o, &o.Groups[1])
		return o
	}
	planned := Plan(r.state, observe(func(*Observed, *ObservedGroup) {}))
	if len(planned) != 1 || planned[0].Body != (TransferLeader{Group: g.ID, Epoch: g.Epoch, To: g.Preferred}) {
		t.Fatalf("planned %+v", planned)
	}
	for name, o := range map[string]Observed{
		"it leads already": observe(func(_ *Observed, s *ObservedGroup) { s.Leader = g.Preferred }),
		"no leader":        observe(func(_ *Observed, s *ObservedGroup) { s.Leader = 0 }),
		"held":             observe(func(_ *Observed, s *ObservedGroup) { s.Hold = true }),
		"joint":            observe(func(_ *Observed, s *ObservedGroup) { s.Joint = true }),
		"lagging": observe(func(_ *Observed, s *ObservedGroup) {
			for i := range s.Members {
				s.Members[i].Lag = transferLagMax + 1
			}
		}),
		"not ready": observe(func(o *Observed, _ *ObservedGroup) {
			for i := range o.Nodes {
				o.Nodes[i].Ready = false
			}
		}),
		"not heard of": observe(func(o *Observed, _ *ObservedGroup) {
			for i := range o.Nodes {
				if o.Nodes[i].ID == g.Preferred {
					o.Nodes[i] = ObservedNode{ID: g.Preferred, Silent: time.Second}
				}
			}
		}),
	} {
		if planned := Plan(r.state, o); len(planned) != 0 {
			t.Errorf("though %s: %+v", name, planned)
		}
	}
}

func TestPlanIsBounded(t *testing.T) {
	r := newRun()
	r.apply(initCommand(1024, 1, 1000))
	r.apply(Commit{Operations: Plan(r.state, allUp(r.state))})
	planned := Plan(r.state, allUp(r.state))
	if len(planned) != birthsMax {
		t.Fatalf("%d births at once", len(planned))
	}
	r.apply(Commit{Operations: planned})
	if again := Plan(r.state, allUp(r.state)); len(again) != 0 {
		t.Fatalf("%d more", len(again))
	}
	r.apply(Finish{Operation: r.state.Operations[0].ID, Done: true})
	if again := Plan(r.state, allUp(r.state)); len(again) != 1 {
		t.Fatalf("%d after one was done", len(again))
	}
}

// TestAChangeThatGoesThroughAfterAll: it was given up, so the node of its learner
// may have deleted that for good. Another takes its place at once.
func TestAChangeThatGoesThroughAfterAll(t *testing.T) {
	r := afterBringUp(t)
	r.must(t, Register{Registration: registrationOf("another")})
	g, _ := r.state.group(2)
	node := r.state.LastNode
	members := append(slices.Clone(g.Members), shardmap.Member{Node: node, Learner: true})
	if refused := r.must(t, Commit{Operations: []Operation{{Body: ChangeMembership{Group: 2, Epoch: g.Epoch, Members: members}}}}).(Committed).Refused[0]; refused != nil {
		t.Fatal(refused)
	}
	o, _ := r.state.pendingFor(2)
	through := Observe{Group: 2, Epoch: g.Epoch + 1, Members: o.Body.(ChangeMembership).Members}
	r.must(t, Finish{Operation: o.ID, Detail: "given up"})
	r.must(t, through)
	learner := through.Members[len(through.Members)-1].Replica
	if g, _ = r.state.group(2); !g.gone(learner) || g.gone(g.Members[0].Replica) {
		t.Fatalf("the group is %+v", g)
	}
	gives := func(o Operation) bool {
		c, is := o.Body.(ChangeMembership)
		return is && c.Group == 2 && !slices.ContainsFunc(c.Members, func(m shardmap.Member) bool { return m.Replica == learner })
	}
	if planned := Plan(r.state, allUp(r.state)); !slices.ContainsFunc(planned, gives) {
		t.Errorf("planned is %+v", planned)
	}
}
