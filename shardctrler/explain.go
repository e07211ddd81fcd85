package shardctrler

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// Explanation says why something is where it is, and why not elsewhere.
type Explanation struct {
	Subject    string
	Facts      []string    // what is, since when and why, and what is under way
	Candidates []Candidate // ascending by id: where it could be
	Events     []Event     // of the subject, the newest last
	// Parts are, of a decision, explanations of what it was about as of then.
	Parts []*Explanation
}

// Candidate is a group that a shard could be at, or a node that a replica could
// be on.
type Candidate struct {
	ID      uint64
	Name    string
	Chosen  bool
	For     []string
	Against []string
}

// explainedEvents is how many events an explanation shows.
const explainedEvents = 20

func (x *Explanation) fact(format string, args ...any) {
	x.Facts = append(x.Facts, fmt.Sprintf(format, args...))
}

func (c *Candidate) pro(format string, args ...any) {
	c.For = append(c.For, fmt.Sprintf(format, args...))
}

func (c *Candidate) con(format string, args ...any) {
	c.Against = append(c.Against, fmt.Sprintf(format, args...))
}

// events are the last of a subject.
func (x *Explanation) events(s *State) {
	for _, e := range s.Events {
		if e.Subject == x.Subject {
			x.Events = append(x.Events, e)
		}
	}
	x.Events = x.Events[max(0, len(x.Events)-explainedEvents):]
}

// ExplainShard says why a shard is at its group.
func ExplainShard(s *State, o Observed, shard shardmap.ShardID) (*Explanation, error) {
	if uint64(shard) >= uint64(len(s.Shards)) {
		return nil, invalid("there is no shard %d: the shards are 0 to %d", shard, len(s.Shards)-1)
	}
	x := &Explanation{Subject: subjectShard(shard)}
	at := s.Shards[shard]
	if len(s.Configs) == 0 {
		x.fact("nobody serves it: the first groups are made when %d nodes are up", s.Policy.Replicas)
		return x, nil
	}
	config := s.config()
	wished := config.Owners[shard]
	since := s.Configs[0]
	for i := len(s.Configs) - 1; i >= 0 && s.Configs[i].Owners[shard] == wished; i-- {
		since = s.Configs[i]
	}
	x.fact("group %d serves it, in generation %d", at.Group, at.Generation)
	x.fact("it is wished at group %d since config %d (%s): %s", wished, since.Num, timeText(since.Created), since.Reason)
	_, pinned := slices.BinarySearch(config.Pinned, shard)
	if pinned {
		x.fact("it is pinned: an operator put it there, and it stays while group %d does", wished)
	}
	if m, moving := s.movingShards()[shard]; moving {
		x.fact("move %d takes it from group %d to group %d (%v): %s", m.ID, m.From, m.To, m.State, m.Reason)
	} else if at.Group != wished {
		x.fact("its move has not been planned yet: at most %d are at once", movesMax)
	}
	p := &planner{state: s, observed: o}
	own, home := x.load(s, p, shard)
	has := make(map[raft.GroupID]int)
	for _, g := range config.Owners {
		has[g]++
	}
	quota := shardQuotas(config.Owners, config.Pinned, s.servingGroups())
	for _, g := range s.replicaGroups() {
		c := Candidate{ID: uint64(g.ID), Chosen: g.ID == wished}
		n := has[g.ID]
		switch {
		case g.Leaving:
			c.con("it is being removed")
		case !g.Born:
			c.con("it is being made, and takes shards when it has a leader")
		case c.Chosen && pinned:
			c.pro("an operator pinned the shard to it")
		case c.Chosen && n <= quota[g.ID]:
			c.pro("it has %d shards, its share is %d: to take one away would make the groups less even, or move one for nothing", n, quota[g.ID])
		case c.Chosen:
			c.pro("nothing has been shared out anew since it got the shard; it has %d shards, its share would be %d", n, quota[g.ID])
		case pinned:
			c.con("the shard is pinned to group %d", wished)
		case n >= quota[g.ID]:
			c.con("it has its share: %d shards of %d", n, quota[g.ID])
		default:
			c.pro("it has %d shards, its share would be %d", n, quota[g.ID])
			c.con("shards are shared out anew only when groups are added or removed")
		}
		if seen, known := p.group(g.ID); known && own > 0 && g.ID != at.Group {
			c.compareLoads(loadAt(s, seen)+own, home, at.Group)
		}
		x.Candidates = append(x.Candidates, c)
	}
	x.events(s)
	return x, nil
}

// load says what the shard's requests cost, and its group's, and gives both; 0:
// that is not known.
func (x *Explanation) load(s *State, p *planner, shard shardmap.ShardID) (own, home uint64) {
	seen, known := p.group(s.Shards[shard].Group)
	if !known || seen.Measured == 0 {
		return 0, 0
	}
	line := ShardLoad{Shard: shard}
	for _, l := range seen.Loads {
		if l.Shard == shard {
			line = l
		}
	}
	home = loadAt(s, seen)
	x.fact("its requests lately: %s; the %d shards of group %d together: %d requests a second", loadText(line), len(s.shardsOf(seen.ID)), seen.ID, home)
	return line.weight(), home
}

// loadAt is what a group's own shards cost.
func loadAt(s *State, g ObservedGroup) uint64 {
	g.Loads = ownLoads(s.Shards, g.ID, g.Loads)
	return g.weight()
}

// compareLoads: with the shard, a group would have so much; its own has that.
func (c *Candidate) compareLoads(with, home uint64, at raft.GroupID) {
	if with < home {
		c.pro("with it, it would have %d requests a second, fewer than group %d", with, at)
	} else {
		c.con("with it, it would have %d requests a second; group %d has %d", with, at, home)
	}
}

// ExplainGroup says why a group's replicas are on their nodes, and who leads it.
func ExplainGroup(s *State, o Observed, id raft.GroupID) (*Explanation, error) {
	g, ok := s.group(id)
	if !ok {
		if id != 0 && id <= s.LastGroup {
			x := &Explanation{Subject: subjectGroup(id)}
			x.fact("it was removed")
			x.events(s)
			return x, nil
		}
		return nil, invalid("there is no group %d; the groups are %s", id, groupsText(s.Groups))
	}
	x := &Explanation{Subject: subjectGroup(id)}
	p := &planner{state: s, observed: o}
	p.live = p.liveSites()
	want := int(s.Policy.Replicas)
	if id == raft.ConfigGroup {
		x.fact("it is the config group: it grows from 1 to 3 and from 3 to 5 replicas as there are nodes")
		want = len(g.Members)
	}
	x.fact("its replicas are %s, at epoch %d; the policy is %d", membersText(g.Members), g.Epoch, want)
	if g.Leaving {
		x.fact("it is being removed; %d shards are still at it", len(s.shardsOf(id)))
	}
	seen, known := p.group(id)
	switch {
	case !known || seen.Leader == 0:
		x.fact("who leads it is not known here")
	case g.Preferred == 0 || seen.Leader == g.Preferred:
		x.fact("node %d leads it", seen.Leader)
	default:
		x.fact("node %d leads it; node %d should, and takes over when it is up and has the log", seen.Leader, g.Preferred)
	}
	if op, pending := s.pendingFor(id); pending {
		x.fact("operation %d (%s) is under way since %s: %s", op.ID, op.Body.kind(), timeText(op.At), op.Reason)
	}
	for _, planned := range Plan(s, o) {
		if on, waits := planned.group(); waits && on == id {
			x.fact("next: %s: %s", planned.Body.kind(), planned.Reason)
		}
	}
	zones := make(map[string]int)
	for _, m := range g.Members {
		n, _ := s.node(m.Node)
		zones[n.Zone]++
	}
	load := make(map[raft.NodeID]int)
	for _, other := range s.replicaGroups() {
		for _, m := range other.Members {
			load[m.Node]++
		}
	}
	for _, n := range s.Nodes {
		if n.State == shardmap.NodeRemoved {
			continue
		}
		x.Candidates = append(x.Candidates, p.explainNode(g, n, zones, load))
	}
	x.events(s)
	return x, nil
}

// explainNode says what speaks for a node as the place of a group's replica.
func (p *planner) explainNode(g Group, n Node, zones map[string]int, load map[raft.NodeID]int) Candidate {
	c := Candidate{ID: uint64(n.ID), Name: n.Name}
	i := slices.IndexFunc(g.Members, func(m shardmap.Member) bool { return m.Node == n.ID })
	c.Chosen = i >= 0
	switch {
	case n.State == shardmap.NodeDraining:
		c.con("it is being drained")
	case n.State == shardmap.NodeDown:
		c.con("it is down; its replicas are made elsewhere when it has been silent for %v", p.state.Policy.replaceAfter())
	case !isSite(p.live, n.ID):
		c.con("it is not heard of")
	}
	if n.State == shardmap.NodeDown && p.tooManyDown() {
		c.pro("more than a third of the nodes are down: nothing is replaced")
	}
	switch others := zones[n.Zone]; {
	case n.Zone == "" && others == len(g.Members): // there are no zones
	case c.Chosen && others == 1:
		c.pro("it is the only one in zone %q with a replica of the group", n.Zone)
	case c.Chosen:
		c.con("zone %q has %d replicas of the group", n.Zone, others)
	case others > 0:
		c.con("zone %q has %d replicas of the group", n.Zone, others)
	default:
		c.pro("zone %q has no replica of the group", n.Zone)
	}
	most := 0
	for _, m := range g.Members {
		most = max(most, load[m.Node])
	}
	switch {
	case c.Chosen:
		c.pro("it has a replica, and %d of all groups: none goes to another node unless that has two fewer", load[n.ID])
		if g.Members[i].Learner {
			c.pro("the replica learns, and votes when it has the log")
		}
	case load[n.ID]+2 <= most:
		c.pro("it has %d replicas, a member's node has %d", load[n.ID], most)
	default:
		c.con("it has %d replicas, no member's node has two more (%d at most)", load[n.ID], most)
	}
	return c
}

// ExplainNode says what a node has, and why not more or less.
func ExplainNode(s *State, o Observed, id raft.NodeID) (*Explanation, error) {
	n, ok := s.node(id)
	if !ok {
		return nil, invalid("there is no node %d", id)
	}
	x := &Explanation{Subject: subjectNode(id)}
	p := &planner{state: s, observed: o}
	p.live = p.liveSites()
	x.fact("%q in zone %q is %v since %s", n.Name, n.Zone, n.State, timeText(n.Since))
	var has, leads, shouldLead []string
	for _, g := range s.Groups {
		if slices.ContainsFunc(g.Members, func(m shardmap.Member) bool { return m.Node == id }) {
			has = append(has, fmt.Sprint(g.ID))
		}
		if seen, known := p.group(g.ID); known && seen.Leader == id {
			leads = append(leads, fmt.Sprint(g.ID))
		}
		if g.Preferred == id {
			shouldLead = append(shouldLead, fmt.Sprint(g.ID))
		}
	}
	x.fact("it has replicas of %d groups: %s", len(has), listText(has))
	x.fact("it leads %d: %s; it should lead %d: %s", len(leads), listText(leads), len(shouldLead), listText(shouldLead))
	switch heard := p.heard(id); {
	case n.State == shardmap.NodeDraining && len(has) > 0:
		x.fact("it is being drained: its replicas go as their groups have others with the log")
	case n.State == shardmap.NodeDraining:
		x.fact("it is drained: it can be stopped, and removed with `flotilla node remove %s`", n.Name)
	case n.State == shardmap.NodeDown && p.tooManyDown():
		x.fact("it is down, and so are more than a third of the nodes: nothing is replaced until they are back or are removed")
	case n.State == shardmap.NodeDown && heard.Silent < s.Policy.replaceAfter():
		x.fact("it is down for %v; its replicas are made anew elsewhere after %v", heard.Silent.Round(time.Second), s.Policy.replaceAfter())
	case n.State == shardmap.NodeDown && len(has) > 0:
		x.fact("its replicas are made anew elsewhere, as there are nodes for them")
	}
	for _, site := range p.live {
		c := Candidate{ID: uint64(site.ID), Chosen: site.ID == id}
		other, _ := s.node(site.ID)
		c.Name = other.Name
		c.pro("%d replicas", site.Load)
		x.Candidates = append(x.Candidates, c)
	}
	x.events(s)
	return x, nil
}

func listText(items []string) string {
	if len(items) == 0 {
		return "none"
	}
	return strings.Join(items, " ")
}
