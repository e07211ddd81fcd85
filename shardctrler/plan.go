package shardctrler

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// Bounds of what one plan does and has under way.
const (
	birthsMax    = 256 // pending at once
	transfersMax = 16  // likewise
	// downAfter: a node unheard of for so long is recorded as down.
	downAfter = 5 * time.Second
	// learnerLagMax: a learner within so many entries of its leader may vote.
	// What is left is sent while the joint step commits.
	learnerLagMax = 64
	// transferLagMax: leadership goes only to a replica this near, so that the
	// group's pause is an election and not a catch-up.
	transferLagMax = 64
)

// Observed is what the planner is told of the cluster as it is. It is
// incomplete by nature; what is not in it is not known.
type Observed struct {
	Nodes  []ObservedNode  // ascending by ID
	Groups []ObservedGroup // ascending by ID; those whose leader has reported
	// Quiet is for how long no config was made and no shard moved, as far as is
	// known here: what was measured before says little of what is.
	Quiet time.Duration
}

// ObservedNode says whether a node is heard of.
type ObservedNode struct {
	ID    raft.NodeID
	Alive bool
	// Silent is for how long it has not been heard of; 0 if Alive.
	Silent time.Duration
	// Ready: its last report said that it serves all it should. A node that
	// starts or stops is not.
	Ready bool
}

// ObservedGroup is what a group's leader reports.
type ObservedGroup struct {
	ID     raft.GroupID
	Leader raft.NodeID
	Term   raft.Term
	Epoch  uint64
	Joint  bool
	// Members ascending by replica, with how far each lags.
	Members []ObservedMember
	// Hold: the leader is new, or a transfer failed lately; leave it where it is
	// for now.
	Hold bool
	// Loads of its shards, ascending; the leader has Measured for so long. A shard
	// that is not there has none to speak of. Over is for how long the group has had
	// far more than the others.
	Measured time.Duration
	Over     time.Duration
	Loads    []ShardLoad
}

// ObservedMember is a member as its leader sees it.
type ObservedMember struct {
	shardmap.Member
	Lag int64 // entries behind the leader; -1: unknown
	// Stalled: a learner that has come no nearer for long.
	Stalled bool
}

// Plan is what should be done, with reasons: the operations that bring the
// state nearer to what the policy wants, given what is observed. It is pure
// and deterministic. Planning again after the operations were committed and
// carried out gives none.
func Plan(s *State, o Observed) []Operation {
	if !s.Initialised() {
		return nil
	}
	p := &planner{state: s, observed: o, pending: s.groupsWithPending()}
	p.live = p.liveSites()
	p.nodeStates()
	p.createGroups()
	p.births()
	p.replicas()
	p.preferences()
	p.leaders()
	p.moves()
	p.destroy()
	p.balanceLoad()
	return p.operations
}

// planner collects the operations of one plan.
type planner struct {
	state      *State
	observed   Observed
	live       []Site                // nodes that are recorded as up and heard of
	pending    map[raft.GroupID]bool // groups that have an operation, pending or planned
	operations []Operation
	placing
}

func (p *planner) add(b Body, format string, args ...any) {
	if id, waits := b.onGroup(); waits {
		p.pending[id] = true
	}
	p.operations = append(p.operations, Operation{Body: b, Reason: fmt.Sprintf(format, args...)})
}

// heard is what is observed of a node; a node not observed counts as silent
// since just now.
func (p *planner) heard(id raft.NodeID) ObservedNode {
	i, ok := slices.BinarySearchFunc(p.observed.Nodes, id, func(n ObservedNode, id raft.NodeID) int { return compare(n.ID, id) })
	if !ok {
		return ObservedNode{ID: id}
	}
	return p.observed.Nodes[i]
}

func (p *planner) group(id raft.GroupID) (ObservedGroup, bool) {
	i, ok := slices.BinarySearchFunc(p.observed.Groups, id, func(g ObservedGroup, id raft.GroupID) int { return compare(g.ID, id) })
	if !ok {
		return ObservedGroup{}, false
	}
	return p.observed.Groups[i], true
}

// liveSites are the nodes that new replicas may be given to.
func (p *planner) liveSites() []Site {
	load := make(map[raft.NodeID]int)
	for _, g := range p.state.replicaGroups() {
		for _, m := range g.Members {
			load[m.Node]++
		}
	}
	var sites []Site
	for _, n := range p.state.Nodes {
		if n.State == shardmap.NodeUp && p.heard(n.ID).Alive {
			sites = append(sites, Site{ID: n.ID, Zone: n.Zone, Load: load[n.ID]})
		}
	}
	return sites
}

// nodeStates records which nodes are down and which are back.
func (p *planner) nodeStates() {
	for _, n := range p.state.Nodes {
		switch heard := p.heard(n.ID); {
		case (n.State == shardmap.NodeUp || n.State == shardmap.NodeDraining) && heard.Silent >= downAfter:
			p.add(SetNodeState{n.ID, shardmap.NodeDown}, "nothing heard of it for %v", heard.Silent.Round(time.Second))
		case n.State == shardmap.NodeDown && heard.Alive:
			p.add(SetNodeState{n.ID, shardmap.NodeUp}, "it is heard of again")
		}
	}
}

// createGroups makes the groups of init once enough nodes are there.
func (p *planner) createGroups() {
	s := p.state
	if len(s.replicaGroups()) > 0 || len(s.Configs) > 0 {
		return
	}
	sites := slices.Clone(p.live)
	if uint64(len(sites)) < s.Policy.Replicas {
		return
	}
	for i := range sites {
		sites[i].Load = 0 // the config group's replicas are no load
	}
	groups := placeGroups(sites, int(s.Policy.Groups), int(s.Policy.Replicas))
	p.add(CreateGroups{Groups: groups, Owners: firstOwners(len(s.Shards), len(groups))},
		"%d nodes are up, %d are needed: %d shards in %d groups of %d replicas, replicas and leaders spread evenly",
		len(sites), s.Policy.Replicas, len(s.Shards), len(groups), s.Policy.Replicas)
}

// firstOwners balances shards nobody has over n groups named by their place.
func firstOwners(shards, n int) []uint64 {
	groups := make([]raft.GroupID, n)
	for i := range groups {
		groups[i] = raft.GroupID(i + 1)
	}
	owners := make([]uint64, shards)
	for i, g := range balanceShards(make([]raft.GroupID, shards), nil, groups) {
		owners[i] = uint64(g - 1)
	}
	return owners
}

// births tells new groups which shards they have: those of init theirs of config
// 1, all others none.
func (p *planner) births() {
	under := 0
	for _, o := range p.state.Operations {
		if _, ok := o.Body.(Birth); ok {
			under++
		}
	}
	for _, g := range p.state.Groups {
		if under >= birthsMax {
			return
		}
		switch {
		case g.Born || g.Leaving || p.pending[g.ID]:
			continue
		case g.Initial:
			p.add(Birth{Group: g.ID, Generation: 1}, "a group of init gets its shards of config 1")
		default:
			p.add(Birth{Group: g.ID, Generation: 1}, "a new group begins without shards: they come by moves")
		}
		under++
	}
}

// configSizes are the sizes that the config group grows to as nodes allow. It
// shrinks only for nodes that an operator drains or removes.
var configSizes = [...]int{3, 5}

// nextConfigSize is the next size to grow to from so many voters with so many
// live nodes; 0: none.
func nextConfigSize(voters, live int) int {
	for _, size := range configSizes {
		if voters < size {
			if live < size {
				return 0
			}
			return size
		}
	}
	return 0
}

// leaders hands leadership to the preferred nodes.
func (p *planner) leaders() {
	under := 0
	for _, o := range p.state.Operations {
		if _, ok := o.Body.(TransferLeader); ok {
			under++
		}
	}
	for _, g := range p.state.Groups {
		if under >= transfersMax {
			return
		}
		seen, known := p.group(g.ID)
		if known && g.Born && !p.pending[g.ID] && !p.prefers[g.ID] && p.shouldTransfer(g, seen) {
			p.add(TransferLeader{Group: g.ID, Epoch: g.Epoch, To: g.Preferred},
				"node %d leads and node %d should: leaders are spread evenly", seen.Leader, g.Preferred)
			under++
		}
	}
}

// shouldTransfer tells whether the preferred node could take over now.
func (p *planner) shouldTransfer(g Group, seen ObservedGroup) bool {
	if g.Preferred == 0 || seen.Leader == 0 || seen.Leader == g.Preferred || seen.Joint || seen.Hold || seen.Epoch != g.Epoch {
		return false
	}
	if !isSite(p.live, g.Preferred) || !p.heard(g.Preferred).Ready {
		return false
	}
	return slices.ContainsFunc(seen.Members, func(m ObservedMember) bool {
		return m.Node == g.Preferred && !m.Learner && m.Lag >= 0 && m.Lag <= transferLagMax
	})
}

// sitesOf are the sites that have the members.
func (p *planner) sitesOf(members []ObservedMember) []Site {
	var sites []Site
	for _, m := range members {
		n, _ := p.state.node(m.Node)
		sites = append(sites, Site{ID: m.Node, Zone: n.Zone})
	}
	return sites
}

func isSite(sites []Site, id raft.NodeID) bool {
	return slices.ContainsFunc(sites, func(s Site) bool { return s.ID == id })
}

func splitMembers(members []ObservedMember) (voters, learners []ObservedMember) {
	for _, m := range members {
		if m.Learner {
			learners = append(learners, m)
		} else {
			voters = append(voters, m)
		}
	}
	slices.SortFunc(learners, func(a, b ObservedMember) int { return cmp.Compare(a.Replica, b.Replica) })
	return voters, learners
}

func membersOf(members []ObservedMember) []shardmap.Member {
	plain := make([]shardmap.Member, 0, len(members))
	for _, m := range members {
		m.First = false
		plain = append(plain, m.Member)
	}
	return plain
}
