package routing

import (
	"slices"

	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// Target is a node to talk to.
type Target struct {
	Node raft.NodeID // 0: not known
	Addr string
}

// routes is what is known of who serves what: the map, and what answers have
// taught since.
type routes struct {
	current *shardmap.Map // nil: none yet
	owners  []shardmap.Assignment
	hints   map[shardmap.ShardID]moveHint
	groups  map[raft.GroupID]*groupRoute
}

// moveHint is what a "moved" answer said. It holds until a map knows an owner
// later than the one that said it, so it needs no generation of its own.
type moveHint struct {
	base shardmap.Generation
	to   raft.GroupID
}

// groupRoute is where a group's replicas are and which one leads.
type groupRoute struct {
	members []Target // voters, the preferred leader first, then by replica id
	leader  Target   // Addr is empty if not known
	cursor  int      // the member to try while no leader is known
	turn    int      // the member that reads the next follower read
}

// update takes a newer map. It reports false, and does nothing, if the map is
// no newer or another cluster's: its name and its number of shards never change.
func (r *routes) update(m *shardmap.Map) bool {
	if m == nil || len(m.Shards) == 0 {
		return false
	}
	if r.current != nil && (m.Revision <= r.current.Revision || m.ClusterID != r.current.ClusterID || len(m.Shards) != len(r.owners)) {
		return false
	}
	r.owners = mergeOwners(r.owners, m.Shards)
	r.current = m
	for id, hint := range r.hints {
		if r.owners[id].Generation > hint.base {
			delete(r.hints, id)
		}
	}
	r.updateGroups(m)
	return true
}

// mergeOwners keeps, for each shard, the assignment of the higher generation:
// it wins over a newer map too.
func mergeOwners(have, come []shardmap.Assignment) []shardmap.Assignment {
	merged := slices.Clone(come)
	for i, a := range have {
		if a.Generation > merged[i].Generation {
			merged[i] = a
		}
	}
	return merged
}

func (r *routes) updateGroups(m *shardmap.Map) {
	groups := make(map[raft.GroupID]*groupRoute, len(m.Groups))
	for _, g := range m.Groups {
		route := &groupRoute{members: membersOf(m, g)}
		if before := r.groups[g.ID]; before != nil {
			route.leader = before.leader
			route.cursor = before.cursor
		}
		groups[g.ID] = route
	}
	r.groups = groups
}

func membersOf(m *shardmap.Map, g shardmap.Group) []Target {
	var members []Target
	for _, member := range g.Members {
		node, ok := m.Node(member.Node)
		if !ok || member.Learner || node.Addr == "" {
			continue
		}
		t := Target{Node: node.ID, Addr: node.Addr}
		if node.ID == g.Preferred {
			members = slices.Insert(members, 0, t)
		} else {
			members = append(members, t)
		}
	}
	return members
}

// owner is the group that serves a shard as far as known, 0 if none does.
func (r *routes) owner(shard shardmap.ShardID) raft.GroupID {
	if hint, ok := r.hints[shard]; ok {
		return hint.to
	}
	return r.owners[shard].Group
}

// moved takes in that a group answered "moved to". Only the word of the group
// that is held for the owner counts; any other was asked by an older route.
// It reports whether the shard is now routed elsewhere than to from.
func (r *routes) moved(shard shardmap.ShardID, from, to raft.GroupID) bool {
	if r.owner(shard) == from && to != 0 && to != from {
		r.hints[shard] = moveHint{base: r.owners[shard].Generation, to: to}
	}
	return r.owner(shard) != from
}

// node completes a hint from the map.
func (r *routes) node(id raft.NodeID, addr string) Target {
	if n, ok := r.current.Node(id); ok && id != 0 && n.Addr != "" {
		return Target{Node: id, Addr: n.Addr}
	}
	return Target{Node: id, Addr: addr}
}

// leaderOr is the leader, or the member whose turn it is to be tried.
func (g *groupRoute) leaderOr(usable func(addr string) bool) Target {
	if g.leader.Addr != "" {
		return g.leader
	}
	return g.pick(&g.cursor, usable)
}

// reader is the member for a read that any replica may answer: each in turn,
// or the one on the node that is preferred.
func (g *groupRoute) reader(prefer raft.NodeID, usable func(addr string) bool) Target {
	for _, m := range g.members {
		if m.Node == prefer && prefer != 0 && usable(m.Addr) {
			return m
		}
	}
	g.turn++
	return g.pick(&g.turn, usable)
}

// pick moves the cursor to the next usable member, or leaves it if none is.
func (g *groupRoute) pick(cursor *int, usable func(addr string) bool) Target {
	if len(g.members) == 0 {
		return Target{}
	}
	for i := range g.members {
		at := (*cursor + i) % len(g.members)
		if usable(g.members[at].Addr) {
			*cursor = at
			return g.members[at]
		}
	}
	return g.members[*cursor%len(g.members)]
}

// notLeader takes in that from does not lead and whom it named. If another is
// already held for the leader, the answer is old news.
func (g *groupRoute) notLeader(from, named Target) {
	if g.leader.Addr != "" && g.leader.Addr != from.Addr {
		return
	}
	g.leader = Target{}
	if named.Addr != "" && named.Addr != from.Addr {
		g.leader = named
		return
	}
	g.skip(from)
}

// skip moves on from a member that did not help.
func (g *groupRoute) skip(from Target) {
	if g.leader.Addr == from.Addr {
		g.leader = Target{}
	}
	if n := len(g.members); n > 0 && g.members[g.cursor%n].Addr == from.Addr {
		g.cursor = (g.cursor + 1) % n
	}
}

// answered takes in that a member answered what only a leader can.
func (g *groupRoute) answered(from Target) {
	if g.leader.Addr == "" {
		g.leader = from
	}
}
