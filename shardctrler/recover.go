package shardctrler

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// A group whose majority is lost for good is recovered from one replica, by an
// operator only. The config group decides it once, so there are no two sides that
// go on. It removes the nodes of the lost replicas in the same entry: if they
// come back after all they are told so, and end.

// RecoverGroup has a group go on from the replica at a node alone. The other
// nodes that have replicas of it and are down are removed. Answer: nil.
type RecoverGroup struct {
	Group raft.GroupID
	Node  raft.NodeID
}

func (RecoverGroup) isCommand() {}

// Recover makes a replica the only one of its group. It is sent to its node until
// the group's leader, which it will be, shows the membership.
type Recover struct {
	Group   raft.GroupID
	Node    raft.NodeID
	Replica raft.ReplicaID
	Epoch   uint64         // of the membership that it makes
	Floor   raft.ReplicaID // above all that the group has given
}

func (Recover) kind() string                    { return "recover" }
func (b Recover) onGroup() (raft.GroupID, bool) { return b.Group, true }

// recoverEpochs is how far a recovery is ahead of the last epoch that was
// observed: more than the lost replicas can have made of it since.
const recoverEpochs = 1 << 20

func (d *draft) recoverGroup(c RecoverGroup) error {
	g, ok := d.group(c.Group)
	switch {
	case c.Group == raft.ConfigGroup:
		return invalid("group %d is the config group, which is here and decides: it has its majority", c.Group)
	case !ok:
		return invalid("there is no group %d; the groups are %s", c.Group, groupsText(d.replicaGroups()))
	}
	after := g.Epoch
	if o, pending := d.pendingFor(g.ID); pending {
		b, recovers := o.Body.(Recover)
		switch {
		case recovers && b.Node == c.Node: // the same order again
			return nil
		case recovers && d.isUp(b.Node):
			return stale("group %d is being recovered from node %d already", g.ID, b.Node)
		case recovers:
			after = b.Epoch // it may have been, and then its node died too
		}
	}
	i := slices.IndexFunc(g.Members, func(m shardmap.Member) bool { return m.Node == c.Node && !m.Learner })
	if i < 0 {
		return invalid("node %d has no voting replica of group %d; it has %s", c.Node, g.ID, membersText(g.Members))
	}
	if !d.isUp(c.Node) {
		return stale("node %d is not up", c.Node)
	}
	voters, up := 0, 0
	var lost []Node
	for _, m := range g.Members {
		if !m.Learner {
			voters++
		}
		if d.isUp(m.Node) {
			if !m.Learner {
				up++
			}
		} else if n, ok := d.node(m.Node); ok && n.State == shardmap.NodeDown {
			lost = append(lost, n)
		}
	}
	if up > voters/2 {
		return stale("group %d has %d of its %d voters up, a majority: it needs no recovery", g.ID, up, voters)
	}
	for _, n := range lost {
		if err := d.leftWithout(n, lost); err != nil {
			return err
		}
	}
	for _, n := range lost {
		n.State, n.Since = shardmap.NodeRemoved, d.Time
		d.putNode(n)
		d.addEvent("remove-node", subjectNode(n.ID), fmt.Sprintf("%q is lost for good: an operator recovers group %d without it", n.Name, g.ID))
	}
	if o, pending := d.pendingFor(g.ID); pending {
		if change, isChange := o.Body.(ChangeMembership); isChange {
			d.unassign(change)
		}
		d.end(o, false, "the group is recovered")
	}
	d.pend(Operation{At: d.Time, Reason: fmt.Sprintf("an operator has group %d go on from replica %d at node %d alone: of its %d voters %d are up", g.ID, g.Members[i].Replica, c.Node, voters, up),
		Decision: d.decision,
		Body:     Recover{Group: g.ID, Node: c.Node, Replica: g.Members[i].Replica, Epoch: after + recoverEpochs, Floor: g.LastReplica + 1}})
	return nil
}

// isUp tells whether a node takes part.
func (s *State) isUp(id raft.NodeID) bool {
	n, ok := s.node(id)
	return ok && (n.State == shardmap.NodeUp || n.State == shardmap.NodeDraining)
}

// leftWithout refuses to remove a node, with others, that has the last replica of
// some group: what it has would be given up though it may come back.
func (d *draft) leftWithout(n Node, lost []Node) error {
	gone := func(m shardmap.Member) bool {
		at, ok := d.node(m.Node)
		return !ok || at.State == shardmap.NodeRemoved || slices.ContainsFunc(lost, func(l Node) bool { return l.ID == m.Node })
	}
	for _, g := range d.Groups {
		if slices.ContainsFunc(g.Members, func(m shardmap.Member) bool { return m.Node == n.ID }) && !slices.ContainsFunc(g.Members, func(m shardmap.Member) bool { return !gone(m) }) {
			return stale("node %d would be removed, and all that there is of group %d is on nodes like it: bring one back", n.ID, g.ID)
		}
	}
	return nil
}

// carryOutRecover carries out Recover at the node that has the replica.
func carryOutRecover(groups Groups, st GroupStatus, r *flotillav1.Recover) *flotillav1.ExecuteResponse {
	key := raft.ReplicaKey{Group: st.Group, Replica: raft.ReplicaID(r.GetReplica())}
	if key.Replica != st.Self {
		return &flotillav1.ExecuteResponse{Message: fmt.Sprintf("the replica of group %d here is %d", st.Group, st.Self)}
	}
	if err := groups.Recover(key, r.GetEpoch(), raft.ReplicaID(r.GetFloor())); err != nil {
		return &flotillav1.ExecuteResponse{Message: err.Error()}
	}
	return &flotillav1.ExecuteResponse{Accepted: true, Message: "begun"}
}

// localReplica is the replica of a group as its node has it.
func localReplica(node raft.NodeID, st GroupStatus) *flotillav1.LocalReplica {
	return &flotillav1.LocalReplica{Group: uint64(st.Group), ReplicaId: uint64(st.Self), NodeId: uint64(node),
		LastIndex: uint64(st.Last), LastTerm: uint64(st.LastTerm), Commit: uint64(st.Commit), Applied: uint64(st.Applied), Suspect: st.Suspect}
}

// recoverGroup recovers a group, or tells what it would be recovered from.
func (c *Controller) recoverGroup(ctx context.Context, s *State, r *flotillav1.RecoverGroup, dry bool) (*flotillav1.ChangeClusterResponse, error) {
	collecting, cancel := context.WithTimeout(ctx, statusTimeout)
	reports := answered(c.collect(collecting, s.Map(), &flotillav1.GetNodeReportRequest{ReplicaOf: r.GetGroup()}))
	cancel()
	found, err := recovery(s, reports, r)
	if err != nil {
		return nil, err
	}
	command := RecoverGroup{Group: raft.GroupID(r.GetGroup()), Node: raft.NodeID(found.GetNode())}
	if dry {
		err = begin(s, s.Applied+1, s.Time).recoverGroup(command) // what it would be refused for
	} else {
		_, err = c.propose(ctx, command)
	}
	if err != nil {
		return nil, err
	}
	return &flotillav1.ChangeClusterResponse{Recovery: found}, nil
}

// recovery is what a group would be recovered from: its replicas as their nodes
// have reported them. The best has the longest log, by the rule of elections, of
// those whose log was not cut.
func recovery(s *State, reports []*flotillav1.NodeReport, r *flotillav1.RecoverGroup) (*flotillav1.Recovery, error) {
	g, ok := s.group(raft.GroupID(r.GetGroup()))
	if !ok {
		return nil, invalid("there is no group %d; the groups are %s", r.GetGroup(), groupsText(s.replicaGroups()))
	}
	found := &flotillav1.Recovery{Group: r.GetGroup(), Node: r.GetNode()}
	for _, m := range g.Members {
		i := slices.IndexFunc(reports, func(n *flotillav1.NodeReport) bool { return raft.NodeID(n.GetNodeId()) == m.Node })
		if i >= 0 && reports[i].GetReplica().GetReplicaId() == uint64(m.Replica) {
			found.Replicas = append(found.Replicas, reports[i].GetReplica())
		} else if n, ok := s.node(m.Node); ok && n.State == shardmap.NodeDown {
			found.LostNodes = append(found.LostNodes, uint64(m.Node))
		}
	}
	if len(found.Replicas) == 0 {
		return nil, stale("no node that answers has a replica of group %d: bring one back", g.ID)
	}
	slices.Sort(found.LostNodes)
	slices.SortFunc(found.Replicas, func(a, b *flotillav1.LocalReplica) int { return cmp.Compare(a.GetNodeId(), b.GetNodeId()) })
	if found.Node == 0 {
		best := slices.MaxFunc(found.Replicas, func(a, b *flotillav1.LocalReplica) int {
			whole := func(l *flotillav1.LocalReplica) int {
				if l.GetSuspect() {
					return 0
				}
				return 1
			}
			return cmp.Or(cmp.Compare(whole(a), whole(b)), cmp.Compare(a.GetLastTerm(), b.GetLastTerm()), cmp.Compare(a.GetLastIndex(), b.GetLastIndex()))
		})
		found.Node = best.GetNodeId()
	}
	for _, m := range s.Moves {
		if m.active() && (m.From == g.ID || m.To == g.ID) {
			found.Moving = append(found.Moving, uint64(m.Shard))
		}
	}
	return found, nil
}
