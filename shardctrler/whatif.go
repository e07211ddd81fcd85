package shardctrler

import (
	"fmt"
	"slices"

	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// WhatIf is a change that is only thought of.
type WhatIf struct {
	Command Command       // nil: none
	Groups  int           // that are added then, on the nodes that are there by then
	Lose    []raft.NodeID // nodes that die for good
	Add     []string      // the zones of nodes that join
}

// Foresight is what the planner would make of a change, if nothing else happened
// and all groups obeyed.
type Foresight struct {
	Shards   []ShardChange   // ascending by shard
	Replicas []ReplicaChange // ascending by group
	Leaders  []LeaderChange  // likewise
	Steps    []Operation     // in order, with their reasons
	// Waits says what would still be missing in the end.
	Waits []string
}

// ShardChange is a shard that would go to another group.
type ShardChange struct {
	Shard    shardmap.ShardID
	From, To raft.GroupID
}

// ReplicaChange is a group whose replicas would be on other nodes.
type ReplicaChange struct {
	Group   raft.GroupID
	Before  []raft.NodeID
	After   []raft.NodeID // none: the group would be gone
	Created bool          // the group would be new
}

// LeaderChange is a group that another node should lead.
type LeaderChange struct {
	Group    raft.GroupID
	From, To raft.NodeID
}

// foreseeRounds bounds how far ahead is looked.
const foreseeRounds = 2_000

// Foresee thinks a change through. It is pure.
func Foresee(s *State, o Observed, w WhatIf) (Foresight, error) {
	f := &foresee{state: s, index: s.Revision, now: o, members: make(map[raft.GroupID][]shardmap.Member), leaders: make(map[raft.GroupID]raft.NodeID)}
	for _, g := range o.Groups {
		f.leaders[g.ID] = g.Leader
	}
	for i, zone := range w.Add {
		name := fmt.Sprintf("new-%d", i+1)
		reg := Registration{RandomID: "what-if-" + name, Name: name, Zone: zone, Addr: name + ":0"}
		if err := f.apply(Register{Registration: reg}); err != nil {
			return Foresight{}, err
		}
		id := f.state.LastNode
		f.now.Nodes = append(slices.Clone(f.now.Nodes), ObservedNode{ID: id, Alive: true, Ready: true})
	}
	f.now.Nodes = slices.Clone(f.now.Nodes)
	for _, id := range w.Lose {
		i := slices.IndexFunc(f.now.Nodes, func(n ObservedNode) bool { return n.ID == id })
		if n, ok := s.node(id); !ok || n.State == shardmap.NodeRemoved || i < 0 {
			return Foresight{}, invalid("there is no node %d", id)
		}
		f.now.Nodes[i] = ObservedNode{ID: id, Silent: s.Policy.replaceAfter() + downAfter}
	}
	if w.Command != nil {
		if err := f.apply(w.Command); err != nil {
			return Foresight{}, err
		}
	}
	if w.Groups != 0 {
		join, err := Join(f.state, f.now, w.Groups, 0)
		if err == nil {
			err = f.apply(join)
		}
		if err != nil {
			return Foresight{}, err
		}
	}
	var ahead Foresight
	for round := 0; ; round++ {
		planned := Plan(f.state, f.observe())
		if len(planned) == 0 && len(f.state.Operations) == 0 && len(f.state.movingShards()) == 0 {
			break
		}
		if round == foreseeRounds {
			ahead.Waits = append(ahead.Waits, fmt.Sprintf("more than %d rounds of planning: what comes behind is not shown", foreseeRounds))
			break
		}
		ahead.Steps = append(ahead.Steps, planned...)
		if err := f.apply(Commit{Operations: planned}); err != nil {
			return Foresight{}, err
		}
		if err := f.carryOut(); err != nil {
			return Foresight{}, err
		}
	}
	f.compare(s, &ahead)
	return ahead, nil
}

// foresee is the world as it is thought of.
type foresee struct {
	state   *State
	index   raft.Index
	now     Observed
	members map[raft.GroupID][]shardmap.Member // by the groups' own logs
	leaders map[raft.GroupID]raft.NodeID
}

func (f *foresee) apply(commands ...Command) error {
	f.index++
	next, answers, _ := apply(f.state, f.index, f.state.Time, commands)
	f.state = next
	for _, answer := range answers {
		if err, refused := answer.(error); refused {
			return err
		}
	}
	return nil
}

func (f *foresee) alive(id raft.NodeID) bool {
	i := slices.IndexFunc(f.now.Nodes, func(n ObservedNode) bool { return n.ID == id })
	return i >= 0 && f.now.Nodes[i].Alive
}

// leader is who would lead a group; 0: most of its voters are dead.
func (f *foresee) leader(id raft.GroupID) raft.NodeID {
	voters, up, first := 0, 0, raft.NodeID(0)
	for _, m := range f.members[id] {
		if m.Learner {
			continue
		}
		voters++
		if f.alive(m.Node) {
			if up++; first == 0 || m.Node == f.leaders[id] {
				first = m.Node
			}
		}
	}
	if up <= voters/2 {
		return 0
	}
	f.leaders[id] = first
	return first
}

func (f *foresee) observe() Observed {
	o := Observed{Nodes: f.now.Nodes}
	for _, g := range f.state.Groups {
		if f.members[g.ID] == nil {
			f.members[g.ID] = slices.Clone(g.Members)
		}
		leader := f.leader(g.ID)
		if leader == 0 {
			continue
		}
		seen := ObservedGroup{ID: g.ID, Epoch: g.Epoch, Term: 1, Leader: leader}
		for _, m := range f.members[g.ID] {
			lag := int64(0)
			if !f.alive(m.Node) {
				lag = -1
			}
			seen.Members = append(seen.Members, ObservedMember{Member: m, Lag: lag})
		}
		o.Groups = append(o.Groups, seen)
	}
	return o
}

// carryOut has all groups do at once what is pending: moves too, which do not
// wait for their turn.
func (f *foresee) carryOut() error {
	var done []Command
	for _, o := range slices.Clone(f.state.Operations) {
		id, _ := o.group()
		if g, ok := f.state.group(id); ok && f.members[id] == nil {
			f.members[id] = slices.Clone(g.Members)
		}
		leads := f.leader(id) != 0
		switch b := o.Body.(type) {
		case ChangeMembership:
			if leads {
				f.members[id] = slices.Clone(b.Members)
				done = append(done, Observe{Group: id, Epoch: b.Epoch + 1, Members: b.Members})
				continue
			}
		case Recover:
			f.members[id] = []shardmap.Member{{Replica: b.Replica, Node: b.Node}}
			done = append(done, Observe{Group: id, Epoch: b.Epoch, Members: f.members[id]})
			continue
		case TransferLeader:
			if leads {
				f.leaders[id] = b.To
			}
		}
		done = append(done, Finish{Operation: o.ID, Done: leads})
	}
	for _, m := range f.state.Moves {
		if !m.active() {
			continue
		}
		state := MoveDone
		if m.Cancel {
			state = MoveCancelled
		}
		done = append(done, ReportMove{Move: m.ID, State: state, Bytes: -1})
	}
	if len(done) == 0 {
		return nil
	}
	return f.apply(done...)
}

// compare says what has become of a state.
func (f *foresee) compare(before *State, ahead *Foresight) {
	after := f.state
	for i, at := range before.Shards {
		if to := after.Shards[i]; to.Group != at.Group {
			ahead.Shards = append(ahead.Shards, ShardChange{Shard: shardmap.ShardID(i), From: at.Group, To: to.Group})
		}
	}
	for _, g := range after.Groups {
		was, existed := before.group(g.ID)
		from, to := nodesOf(was.Members), nodesOf(g.Members)
		if !slices.Equal(from, to) {
			ahead.Replicas = append(ahead.Replicas, ReplicaChange{Group: g.ID, Before: from, After: to, Created: !existed})
		}
		if existed && was.Preferred != g.Preferred {
			ahead.Leaders = append(ahead.Leaders, LeaderChange{Group: g.ID, From: was.Preferred, To: g.Preferred})
		}
		voters := 0
		for _, m := range g.Members {
			if !m.Learner && f.alive(m.Node) {
				voters++
			}
		}
		want := int(after.Policy.Replicas)
		switch {
		case f.leader(g.ID) == 0:
			ahead.Waits = append(ahead.Waits, fmt.Sprintf("group %d would have no majority", g.ID))
		case g.ID != raft.ConfigGroup && voters < want:
			ahead.Waits = append(ahead.Waits, fmt.Sprintf("group %d would have %d of %d replicas", g.ID, voters, want))
		}
	}
	for _, g := range before.Groups {
		if _, exists := after.group(g.ID); !exists {
			ahead.Replicas = append(ahead.Replicas, ReplicaChange{Group: g.ID, Before: nodesOf(g.Members)})
		}
	}
	slices.SortFunc(ahead.Replicas, func(a, b ReplicaChange) int { return compare(a.Group, b.Group) })
}

// nodesOf are the nodes of members, ascending.
func nodesOf(members []shardmap.Member) []raft.NodeID {
	nodes := make([]raft.NodeID, 0, len(members))
	for _, m := range members {
		nodes = append(nodes, m.Node)
	}
	slices.Sort(nodes)
	return nodes
}
