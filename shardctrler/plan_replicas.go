package shardctrler

import (
	"cmp"
	"slices"

	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// Where replicas are to be. A group changes its membership in two steps: first
// learners, then, when they have the log, one joint step in which they vote and
// others do not any more. All of it is planned anew each time from what is
// observed, so any part may be lost.

// Bounds of what changes at once.
const (
	changesMax     = 16 // memberships, pending at once
	incomingMax    = 2  // replicas that one node takes in at once
	preferencesMax = 64 // set by one plan
)

// placing is what one plan knows of where replicas are.
type placing struct {
	load     map[raft.NodeID]int   // replicas a node will have once what is under way is done, but for the config group's
	incoming map[raft.NodeID]int   // replicas that it is taking in
	changes  int                   // memberships that are being changed
	lacking  bool                  // some group has fewer good replicas than it should
	quiet    []quietGroup          // that are as they should be
	prefers  map[raft.GroupID]bool // whose leader is to be another from now on
}

// quietGroup is a group that needs nothing, and may give a replica to an idler
// node.
type quietGroup struct {
	group  Group
	voters []ObservedMember
	leader raft.NodeID
}

// replicas keeps the replicas of each group where they should be, and then
// evens out how many each node has.
func (p *planner) replicas() {
	p.placing = placing{load: make(map[raft.NodeID]int), incoming: make(map[raft.NodeID]int), prefers: make(map[raft.GroupID]bool)}
	for _, g := range p.state.Groups {
		for _, m := range g.Members {
			if g.ID != raft.ConfigGroup {
				p.load[m.Node]++
			}
			if m.Learner {
				p.incoming[m.Node]++
			}
		}
	}
	for _, o := range p.state.Operations {
		if _, ok := o.Body.(ChangeMembership); ok {
			p.changes++
		}
	}
	for _, g := range p.state.Groups {
		p.groupReplicas(g)
	}
	if !p.lacking {
		p.rezone()
		p.spread()
	}
}

// keeps tells whether a node may keep the replicas that it has.
func (p *planner) keeps(id raft.NodeID) bool {
	n, ok := p.state.node(id)
	switch {
	case !ok || n.State == shardmap.NodeRemoved || n.Drain:
		return false
	case n.State == shardmap.NodeDown:
		return p.tooManyDown() || p.heard(id).Silent < p.state.Policy.replaceAfter()
	}
	return true
}

// tooManyDown: when more than a third of the nodes are down at once, something
// else is wrong than single machines, and nothing is replaced. An operator can
// remove nodes that are gone for good.
func (p *planner) tooManyDown() bool {
	down, all := 0, 0
	for _, n := range p.state.Nodes {
		switch n.State {
		case shardmap.NodeRemoved:
			continue
		case shardmap.NodeDown:
			down++
		}
		all++
	}
	return down > max(1, all/3)
}

// groupReplicas plans the next step of a group, if it needs one.
func (p *planner) groupReplicas(g Group) {
	seen, known := p.group(g.ID)
	if !known || seen.Joint || seen.Epoch != g.Epoch || p.pending[g.ID] || !g.Born {
		return
	}
	voters, learners := splitMembers(seen.Members)
	kept := slices.DeleteFunc(slices.Clone(voters), func(m ObservedMember) bool { return !p.keeps(m.Node) })
	usable := slices.DeleteFunc(slices.Clone(learners), func(m ObservedMember) bool { return m.Stalled || !isSite(p.live, m.Node) || g.gone(m.Replica) })
	size := p.wantedSize(g, voters)
	if len(voters) == 0 || size == 0 {
		return // nothing good is left: that is for an operator
	}
	switch need := size - len(kept); {
	case need > 0:
		p.lacking = p.lacking || g.ID != raft.ConfigGroup
		p.fill(g, seen, voters, kept, usable[:min(len(usable), need)], size)
	case len(usable) > 0 && g.ID != raft.ConfigGroup:
		p.swap(g, seen, kept, usable, size)
	case len(kept) < len(voters) || len(learners) > 0:
		p.lacking = true
		p.settle(g, seen, kept, nil, "what is drained, gone or was to learn is not needed")
	case g.ID != raft.ConfigGroup && !g.Leaving:
		p.quiet = append(p.quiet, quietGroup{g, voters, seen.Leader})
	}
}

// wantedSize is how many voters a group should have.
func (p *planner) wantedSize(g Group, voters []ObservedMember) int {
	if g.ID != raft.ConfigGroup {
		return int(p.state.Policy.Replicas)
	}
	if size := nextConfigSize(len(voters), len(p.live)); size > 0 {
		return size
	}
	// It shrinks only if an operator wants nodes away and there are none for
	// others: a replica of a node that is down may come back with its log.
	kept, free := 0, 0
	for _, m := range voters {
		if n, ok := p.state.node(m.Node); ok && n.State != shardmap.NodeRemoved && !n.Drain {
			kept++
		}
	}
	for _, s := range p.live {
		if !slices.ContainsFunc(voters, func(m ObservedMember) bool { return m.Node == s.ID }) {
			free++
		}
	}
	if kept+free >= len(voters) {
		return len(voters)
	}
	size := kept
	for _, s := range configSizes {
		if s <= kept+free {
			size = max(size, s)
		}
	}
	return size
}

// fill brings a group that has too few good voters a step nearer to its size:
// usable are its learners on live nodes, as many as it needs at most.
func (p *planner) fill(g Group, seen ObservedGroup, voters, kept, usable []ObservedMember, size int) {
	missing := size - len(kept) - len(usable)
	if missing > 0 {
		takers := slices.DeleteFunc(p.takers(), func(s Site) bool {
			return slices.ContainsFunc(seen.Members, func(m ObservedMember) bool { return m.Node == s.ID })
		})
		picked := pickSites(takers, p.sitesOf(append(slices.Clone(kept), usable...)), missing)
		if g.ID == raft.ConfigGroup && len(kept) == len(voters) && len(picked) < missing {
			return // it grows by two at once or not at all
		}
		if len(picked) > 0 {
			p.learn(g, voters, usable, picked, "group %d has %d of %d good replicas: learners first", g.ID, len(kept), size)
			return
		}
	}
	if len(usable) == 0 && len(seen.Members) > len(voters) {
		p.learn(g, voters, nil, nil, "the learners of group %d do not come nearer, or are gone", g.ID)
		return
	}
	if len(usable) == 0 || !caughtUp(usable) {
		return
	}
	// As long as there are not enough good ones the others still count.
	bad := slices.DeleteFunc(slices.Clone(voters), func(m ObservedMember) bool { return p.keeps(m.Node) })
	slices.SortStableFunc(bad, func(a, b ObservedMember) int { return cmp.Compare(p.badness(a.Node), p.badness(b.Node)) })
	still := append(slices.Clone(kept), bad[:min(len(bad), max(0, missing))]...)
	p.settle(g, seen, still, usable, "the learners have the log")
}

// badness orders nodes whose replicas are to go: the most useful first.
func (p *planner) badness(id raft.NodeID) int {
	n, _ := p.state.node(id)
	switch n.State {
	case shardmap.NodeDraining:
		return 0
	case shardmap.NodeDown:
		return 1
	}
	return 2
}

// swap ends what rezone or spread began: a learner takes the place of a voter of
// a zone that has too many, or else of the voter whose node has the most to carry;
// or it is given up, if that would gain nothing by now.
func (p *planner) swap(g Group, seen ObservedGroup, kept, usable []ObservedMember, size int) {
	in := usable[:1]
	to := p.sitesOf(in)[0]
	may := slices.DeleteFunc(slices.Clone(kept), func(m ObservedMember) bool {
		return !p.maySwap(quietGroup{voters: kept}, p.sitesOf([]ObservedMember{m})[0], to)
	})
	inZone := zonesOf(p.sitesOf(kept))
	better := func(m ObservedMember) bool {
		return inZone[p.sitesOf([]ObservedMember{m})[0].Zone] >= inZone[to.Zone]+2
	}
	if crowded := slices.DeleteFunc(slices.Clone(may), func(m ObservedMember) bool { return !better(m) }); len(crowded) > 0 {
		may = crowded
	}
	out := slices.MaxFunc(append(may, ObservedMember{}), func(a, b ObservedMember) int {
		return cmp.Or(cmp.Compare(p.load[a.Node], p.load[b.Node]), compare(a.Node, b.Node))
	})
	if out.Node == 0 || p.load[out.Node] < p.load[in[0].Node] && !better(out) || len(kept) > size {
		p.load[in[0].Node]--
		p.settle(g, seen, kept, nil, "the loads have changed: the learner is not needed")
		return
	}
	p.load[out.Node]--
	if !caughtUp(in) {
		return
	}
	still := slices.DeleteFunc(slices.Clone(kept), func(m ObservedMember) bool { return m.Replica == out.Replica })
	p.settle(g, seen, still, in, "the learner has the log")
}

// learn adds learners.
func (p *planner) learn(g Group, voters, learners []ObservedMember, picked []Site, format string, args ...any) {
	if p.changes >= changesMax {
		return
	}
	members := append(membersOf(voters), membersOf(learners)...)
	for _, s := range picked {
		members = append(members, shardmap.Member{Node: s.ID, Learner: true})
		p.incoming[s.ID]++
		p.load[s.ID]++
	}
	p.changes++
	p.add(ChangeMembership{Group: g.ID, Epoch: g.Epoch, Members: members}, format, args...)
}

// settle gives a group the voters that stay and those learners that now vote.
// Whoever leads it and does not stay hands over first, if he can.
func (p *planner) settle(g Group, seen ObservedGroup, still, promoted []ObservedMember, why string) {
	if p.changes >= changesMax || len(still)+len(promoted) == 0 {
		return
	}
	stays := func(node raft.NodeID) bool {
		is := func(m ObservedMember) bool { return m.Node == node }
		return slices.ContainsFunc(still, is) || slices.ContainsFunc(promoted, is)
	}
	if seen.Leader != 0 && !stays(seen.Leader) && !seen.Hold {
		if to, ok := p.successor(still); ok {
			p.add(TransferLeader{Group: g.ID, Epoch: g.Epoch, To: to}, "node %d leads and its replica is to go", seen.Leader)
			return
		}
	}
	members := membersOf(still)
	for _, m := range membersOf(promoted) {
		m.Learner = false
		members = append(members, m)
	}
	if there := p.thereOf(g, append(slices.Clone(still), promoted...)); there <= len(members)/2 {
		return // it would have no quorum
	}
	p.changes++
	p.add(ChangeMembership{Group: g.ID, Epoch: g.Epoch, Members: sortedMembers(members)}, "%s: group %d goes to %s", why, g.ID, membersText(sortedMembers(members)))
}

// thereOf counts those who can decide at once: who have the log. That a node was
// heard of is not enough. One that has just died counts as alive for a while, and
// so does one that a new leader of the config group has not listened for yet; but
// it lacks what was committed since, in the config group at least the order that
// leads to this. A change that its new majority cannot decide cannot be undone.
func (p *planner) thereOf(g Group, voters []ObservedMember) (there int) {
	most := int64(learnerLagMax)
	if g.ID == raft.ConfigGroup {
		most = 0
	}
	for _, m := range voters {
		if p.heard(m.Node).Alive && m.Lag >= 0 && m.Lag <= most {
			there++
		}
	}
	return there
}

// successor is a voter that could lead at once.
func (p *planner) successor(voters []ObservedMember) (raft.NodeID, bool) {
	for _, m := range voters {
		if !m.Learner && m.Lag >= 0 && m.Lag <= transferLagMax && isSite(p.live, m.Node) && p.heard(m.Node).Ready {
			return m.Node, true
		}
	}
	return 0, false
}

// takers are the nodes that may take in another replica now, with what they will
// have to carry.
func (p *planner) takers() []Site {
	var sites []Site
	for _, s := range p.live {
		if p.incoming[s.ID] < incomingMax {
			s.Load = p.load[s.ID]
			sites = append(sites, s)
		}
	}
	return sites
}

func caughtUp(learners []ObservedMember) bool {
	return !slices.ContainsFunc(learners, func(m ObservedMember) bool { return m.Lag < 0 || m.Lag > learnerLagMax })
}

// rezone moves replicas of groups that could be spread over zones more evenly:
// from a zone to one that has at least two fewer of the group.
func (p *planner) rezone() {
	for i := 0; i < len(p.quiet) && p.changes < changesMax; {
		q := p.quiet[i]
		from, to, ok := p.betterZone(q)
		if !ok {
			i++
			continue
		}
		p.quiet = slices.Delete(p.quiet, i, i+1)
		p.load[from.ID]--
		p.learn(q.group, q.voters, nil, []Site{to}, "zone %q has two more replicas of group %d than zone %q: one goes over", from.Zone, q.group.ID, to.Zone)
	}
}

// betterZone finds the replica of a group that should go to another zone, and
// the node there that has least to carry.
func (p *planner) betterZone(q quietGroup) (from, to Site, ok bool) {
	sites := p.sitesOf(q.voters)
	inZone := zonesOf(sites)
	takers := slices.DeleteFunc(p.takers(), func(s Site) bool { return isSite(sites, s.ID) })
	if len(takers) == 0 || len(sites) == 0 {
		return Site{}, Site{}, false
	}
	from = slices.MaxFunc(sites, func(a, b Site) int {
		return cmp.Or(cmp.Compare(inZone[a.Zone], inZone[b.Zone]), cmp.Compare(p.load[a.ID], p.load[b.ID]), compare(a.ID, b.ID))
	})
	to = pickSites(takers, sites, 1)[0]
	return from, to, inZone[from.Zone] >= inZone[to.Zone]+2
}

// zonesOf counts the sites of each zone.
func zonesOf(sites []Site) map[string]int {
	inZone := make(map[string]int)
	for _, s := range sites {
		inZone[s.Zone]++
	}
	return inZone
}

// spread moves replicas from the nodes that have the most to those that have the
// least, until they are within one of each other.
func (p *planner) spread() {
	for p.changes < changesMax {
		sites := slices.Clone(p.live)
		for i := range sites {
			sites[i].Load = p.load[sites[i].ID]
		}
		slices.SortFunc(sites, func(a, b Site) int { return cmp.Or(cmp.Compare(b.Load, a.Load), compare(a.ID, b.ID)) })
		if !p.spreadOnce(sites) {
			return
		}
	}
}

// spreadOnce plans one replica to go from a busier to an idler node; sites are
// ordered, the busiest first.
func (p *planner) spreadOnce(sites []Site) bool {
	for _, from := range sites {
		for i := len(sites) - 1; i >= 0; i-- {
			to := sites[i]
			if from.Load-to.Load < 2 {
				break
			}
			if p.incoming[to.ID] >= incomingMax {
				continue
			}
			for j, q := range p.quiet {
				if p.maySwap(q, from, to) {
					p.quiet = slices.Delete(p.quiet, j, j+1)
					p.load[from.ID]--
					p.learn(q.group, q.voters, nil, []Site{to}, "node %d has %d replicas and node %d has %d: one of group %d goes over", from.ID, from.Load, to.ID, to.Load, q.group.ID)
					return true
				}
			}
		}
	}
	return false
}

// maySwap tells whether a group's replica could go from one node to another
// without being less spread over zones.
func (p *planner) maySwap(q quietGroup, from, to Site) bool {
	inZone, has := 0, false
	for _, m := range q.voters {
		n, _ := p.state.node(m.Node)
		switch {
		case m.Node == to.ID:
			return false
		case m.Node == from.ID:
			has = true
		case n.Zone == to.Zone:
			inZone++
		}
	}
	if !has {
		return false
	}
	fromZone := 0
	for _, m := range q.voters {
		if n, _ := p.state.node(m.Node); m.Node != from.ID && n.Zone == from.Zone {
			fromZone++
		}
	}
	return inZone <= fromZone
}

// preferences say anew who should lead, where that node cannot or where it makes
// leaders more even.
func (p *planner) preferences() {
	var groups []Group
	var nodes [][]raft.NodeID
	var leaders []raft.NodeID
	for _, g := range p.state.replicaGroups() {
		if !g.Born {
			continue
		}
		var able []raft.NodeID
		for _, m := range g.Members {
			if n, ok := p.state.node(m.Node); !m.Learner && ok && n.State == shardmap.NodeUp {
				able = append(able, m.Node)
			}
		}
		if len(able) == 0 {
			continue
		}
		leader := g.Preferred
		if seen, known := p.group(g.ID); known && !slices.Contains(able, leader) {
			leader = seen.Leader
		}
		groups, nodes, leaders = append(groups, g), append(nodes, able), append(leaders, leader)
	}
	set := 0
	for i, to := range preferLeaders(nodes, leaders) {
		if g := groups[i]; to != g.Preferred && set < preferencesMax {
			set++
			p.prefers[g.ID] = true
			p.add(SetPreferred{Group: g.ID, Node: to}, "leaders are to be spread evenly over the nodes that are up; before it was node %d", g.Preferred)
		}
	}
}

// destroy ends the groups that are removed and empty.
func (p *planner) destroy() {
	for _, g := range p.state.replicaGroups() {
		if !g.Leaving || len(p.state.shardsOf(g.ID)) > 0 {
			continue
		}
		if !slices.ContainsFunc(p.state.Moves, func(m Move) bool { return m.active() && (m.From == g.ID || m.To == g.ID) }) {
			p.add(DestroyGroup{Group: g.ID}, "it is being removed and has no shards any more")
		}
	}
}
