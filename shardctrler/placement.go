package shardctrler

import (
	"cmp"
	"slices"

	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// Site is a node as placement sees it.
type Site struct {
	ID   raft.NodeID
	Zone string
	Load int // replicas it has
}

// pickSites chooses n distinct nodes for a group that already has replicas in
// the sites taken: the zone with the fewest of the group first, then the node
// with the least load, then the lowest id. It chooses fewer if there are no
// more.
func pickSites(sites, taken []Site, n int) []Site {
	inZone := make(map[string]int)
	has := make(map[raft.NodeID]bool)
	for _, s := range taken {
		inZone[s.Zone]++
		has[s.ID] = true
	}
	var picked []Site
	for len(picked) < n {
		best := -1
		for i, s := range sites {
			if has[s.ID] {
				continue
			}
			if best < 0 || cheaper(s, sites[best], inZone) {
				best = i
			}
		}
		if best < 0 {
			break
		}
		s := sites[best]
		picked = append(picked, s)
		inZone[s.Zone]++
		has[s.ID] = true
	}
	return picked
}

// cheaper tells whether a is the better place for a group than b.
func cheaper(a, b Site, inZone map[string]int) bool {
	return cmp.Or(cmp.Compare(inZone[a.Zone], inZone[b.Zone]), cmp.Compare(a.Load, b.Load), compare(a.ID, b.ID)) < 0
}

// placeGroups chooses the nodes of n new groups of so many replicas each; the
// loads of sites grow as it goes, so that nodes of a zone end within one of
// each other. There must be as many sites as replicas.
func placeGroups(sites []Site, n, replicas int) []NewGroup {
	sites = slices.Clone(sites)
	groups := make([]NewGroup, 0, n)
	for range n {
		var g NewGroup
		for _, s := range pickSites(sites, nil, replicas) {
			g.Nodes = append(g.Nodes, s.ID)
			i := slices.IndexFunc(sites, func(o Site) bool { return o.ID == s.ID })
			sites[i].Load++
		}
		groups = append(groups, g)
	}
	members := make([][]raft.NodeID, len(groups))
	for i, g := range groups {
		members[i] = g.Nodes
	}
	for i, leader := range preferLeaders(members, make([]raft.NodeID, n)) {
		groups[i].Preferred = leader
	}
	return groups
}

// preferLeaders chooses a leader for each group among its nodes, as evenly as
// the memberships allow and starting from the leaders that are: a leader that
// is not one of its group's nodes is chosen anew. The busiest node passes
// leadership on, over other groups if need be, for as long as it can reach a
// node that leads two fewer; where no such path is left, no choice is evener.
func preferLeaders(groups [][]raft.NodeID, leaders []raft.NodeID) []raft.NodeID {
	e := &election{groups: groups, leaders: slices.Clone(leaders), led: make(map[raft.NodeID]int)}
	for g, nodes := range groups {
		for _, n := range nodes {
			e.led[n] += 0
		}
		if slices.Contains(nodes, e.leaders[g]) {
			e.led[e.leaders[g]]++
		} else {
			e.leaders[g] = 0
		}
	}
	for g := range groups {
		if e.leaders[g] == 0 && len(groups[g]) > 0 {
			e.leaders[g] = e.idlest(groups[g])
			e.led[e.leaders[g]]++
		}
	}
	for e.improve() {
	}
	return e.leaders
}

// election is the state of one choice of leaders.
type election struct {
	groups  [][]raft.NodeID
	leaders []raft.NodeID
	led     map[raft.NodeID]int
}

// idlest is the node that leads the fewest groups, the lowest of them.
func (e *election) idlest(nodes []raft.NodeID) raft.NodeID {
	return slices.MinFunc(nodes, func(a, b raft.NodeID) int {
		return cmp.Or(cmp.Compare(e.led[a], e.led[b]), compare(a, b))
	})
}

// improve moves one leadership from a node to one that leads two fewer, along
// the shortest chain of groups, and tells whether there was such a chain.
func (e *election) improve() bool {
	nodes := make([]raft.NodeID, 0, len(e.led))
	for n := range e.led {
		nodes = append(nodes, n)
	}
	slices.SortFunc(nodes, func(a, b raft.NodeID) int {
		return cmp.Or(cmp.Compare(e.led[b], e.led[a]), compare(a, b))
	})
	for _, from := range nodes {
		if e.shift(from) {
			return true
		}
	}
	return false
}

// shift searches breadth-first from one node. A step goes from a node, through
// a group that it leads, to another node of that group.
func (e *election) shift(from raft.NodeID) bool {
	through := map[raft.NodeID]int{from: -1} // the group by which a node was reached
	for queue := []raft.NodeID{from}; len(queue) > 0; queue = queue[1:] {
		at := queue[0]
		if e.led[at]+2 <= e.led[from] {
			e.pass(from, at, through)
			return true
		}
		for g, leader := range e.leaders {
			if leader != at {
				continue
			}
			for _, next := range e.groups[g] {
				if _, seen := through[next]; !seen {
					through[next] = g
					queue = append(queue, next)
				}
			}
		}
	}
	return false
}

// pass makes each node on the chain from one to another hand a group on.
func (e *election) pass(from, to raft.NodeID, through map[raft.NodeID]int) {
	e.led[from]--
	e.led[to]++
	for at := to; at != from; {
		g := through[at]
		before := e.leaders[g]
		e.leaders[g] = at
		at = before
	}
}

// balanceShards gives each shard to one of groups (ascending, at least one) so
// that they have numbers within one of each other, with the fewest moves from
// owners. The groups that have the most now get the odd ones. Pinned shards
// (ascending) stay; a group that has more than its share of them has no others.
func balanceShards(owners []raft.GroupID, pinned []shardmap.ShardID, groups []raft.GroupID) []raft.GroupID {
	quota := shardQuotas(owners, pinned, groups)
	balanced := make([]raft.GroupID, len(owners))
	for _, shard := range pinned {
		g := owners[shard]
		quota[g]--
		balanced[shard] = g
	}
	for shard, g := range owners {
		if balanced[shard] == 0 && quota[g] > 0 {
			quota[g]--
			balanced[shard] = g
		}
	}
	next := 0
	for shard := range balanced {
		if balanced[shard] != 0 {
			continue
		}
		for quota[groups[next%len(groups)]] == 0 {
			next++
		}
		g := groups[next%len(groups)]
		quota[g]--
		balanced[shard] = g
		next++
	}
	return balanced
}

// shardQuotas is how many shards each group is to have.
func shardQuotas(owners []raft.GroupID, pinned []shardmap.ShardID, groups []raft.GroupID) map[raft.GroupID]int {
	has, fixed := make(map[raft.GroupID]int), make(map[raft.GroupID]int)
	for _, g := range owners {
		has[g]++
	}
	for _, shard := range pinned {
		fixed[owners[shard]]++
	}
	quota := make(map[raft.GroupID]int, len(groups))
	open, left := slices.Clone(groups), len(owners)
	for over := true; over; { // those whose pins alone are more than a share stand aside
		over = false
		share := left / max(1, len(open))
		for _, g := range open {
			if fixed[g] > share {
				quota[g], over = fixed[g], true
				left -= fixed[g]
			}
		}
		open = slices.DeleteFunc(open, func(g raft.GroupID) bool { return quota[g] > 0 })
	}
	slices.SortFunc(open, func(a, b raft.GroupID) int {
		return cmp.Or(cmp.Compare(has[b], has[a]), compare(a, b))
	})
	for i, g := range open {
		quota[g] = left / len(open)
		if i < left%len(open) {
			quota[g]++
		}
	}
	return quota
}
