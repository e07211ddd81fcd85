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
// go on. The lost replicas are no members from then on: nodes that come back with
// them find them gone, and delete them.

// RecoverGroup has a group go on from one replica alone. Answer: nil.
type RecoverGroup struct {
	Group   raft.GroupID
	Node    raft.NodeID // that has the replica
	Replica raft.ReplicaID
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

// recoverGroup records the order. Whether the group is lost, only those can tell
// who ask its replicas: see recovery.
func (d *draft) recoverGroup(c RecoverGroup) error {
	g, ok := d.group(c.Group)
	switch {
	case c.Group == raft.ConfigGroup:
		return invalid("group %d is the config group, which is here and decides: it has its majority", c.Group)
	case !ok:
		return invalid("there is no group %d; the groups are %s", c.Group, groupsText(d.replicaGroups()))
	case !g.Born:
		return stale("group %d has no shards yet, and nothing to lose: `flotilla group remove` ends it", c.Group)
	case !d.isUp(c.Node):
		return stale("node %d is not up", c.Node)
	case !slices.ContainsFunc(g.Members, func(m shardmap.Member) bool { return m.Node == c.Node && m.Replica == c.Replica }):
		return invalid("node %d has no replica %d of group %d; it has %s", c.Node, c.Replica, g.ID, membersText(g.Members))
	}
	after := g.Epoch
	if o, pending := d.pendingFor(g.ID); pending {
		switch b := o.Body.(type) {
		case Recover:
			if b.Node == c.Node && b.Replica == c.Replica { // the same order again
				return nil
			}
			after = b.Epoch // it cannot be carried out; or it was, and then its node died too
		case ChangeMembership:
			d.unassign(b)
			g, _ = d.group(g.ID)
		}
		d.end(o, false, "the group is recovered")
	}
	d.pend(Operation{At: d.Time, Decision: d.decision,
		Reason: fmt.Sprintf("an operator has group %d go on from replica %d at node %d alone, of %s", g.ID, c.Replica, c.Node, membersText(g.Members)),
		Body:   Recover{Group: g.ID, Node: c.Node, Replica: c.Replica, Epoch: after + recoverEpochs, Floor: g.LastReplica + 1}})
	return nil
}

// isUp tells whether a node takes part.
func (s *State) isUp(id raft.NodeID) bool {
	n, ok := s.node(id)
	return ok && (n.State == shardmap.NodeUp || n.State == shardmap.NodeDraining)
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
	l := &flotillav1.LocalReplica{Group: uint64(st.Group), ReplicaId: uint64(st.Self), NodeId: uint64(node), Leads: st.IsLeader,
		LastIndex: uint64(st.Last), LastTerm: uint64(st.LastTerm), Commit: uint64(st.Commit), Applied: uint64(st.Applied), Suspect: st.Suspect,
		Epoch: st.Membership.Epoch}
	for _, m := range st.Membership.Voters {
		l.Voters = append(l.Voters, uint64(m.Replica))
	}
	for _, m := range st.Membership.Outgoing {
		l.Outgoing = append(l.Outgoing, uint64(m.Replica))
	}
	return l
}

// recoverGroup recovers a group, or tells what it would be recovered from.
func (c *Controller) recoverGroup(ctx context.Context, s *State, r *flotillav1.RecoverGroup, dry bool) (*flotillav1.ChangeClusterResponse, error) {
	collecting, cancel := context.WithTimeout(ctx, statusTimeout)
	reports := answered(c.collect(collecting, s.Map(), &flotillav1.GetNodeReportRequest{ReplicaOf: r.GetGroup()}))
	cancel()
	found, command, err := recovery(s, reports, r)
	if err != nil {
		return nil, err
	}
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
// have reported them. It is refused as long as they could elect a leader.
func recovery(s *State, reports []*flotillav1.NodeReport, r *flotillav1.RecoverGroup) (*flotillav1.Recovery, RecoverGroup, error) {
	command := RecoverGroup{Group: raft.GroupID(r.GetGroup()), Node: raft.NodeID(r.GetNode())}
	g, ok := s.group(command.Group)
	if !ok || g.ID == raft.ConfigGroup {
		return nil, command, begin(s, s.Applied+1, s.Time).recoverGroup(command) // which says why not
	}
	found := &flotillav1.Recovery{Group: r.GetGroup()}
	var silent []raft.NodeID
	for _, m := range g.Members {
		i := slices.IndexFunc(reports, func(n *flotillav1.NodeReport) bool { return raft.NodeID(n.GetNodeId()) == m.Node })
		switch {
		case i >= 0 && reports[i].GetReplica().GetReplicaId() == uint64(m.Replica):
			found.Replicas = append(found.Replicas, reports[i].GetReplica())
		case i >= 0: // its log is lost
		case s.isUp(m.Node):
			silent = append(silent, m.Node)
		default:
			found.LostNodes = append(found.LostNodes, uint64(m.Node))
		}
	}
	slices.Sort(found.LostNodes)
	slices.SortFunc(found.Replicas, func(a, b *flotillav1.LocalReplica) int { return cmp.Compare(a.GetNodeId(), b.GetNodeId()) })
	for _, m := range s.Moves {
		if m.active() && (m.From == g.ID || m.To == g.ID) {
			found.Moving = append(found.Moving, uint64(m.Shard))
		}
	}
	if err := mayRecover(found.Replicas, command, silent); err != nil {
		return nil, command, err
	}
	chosen := longestLog(found.Replicas)
	if command.Node != 0 {
		i := slices.IndexFunc(found.Replicas, func(l *flotillav1.LocalReplica) bool { return l.GetNodeId() == r.GetNode() })
		if i < 0 {
			return nil, command, stale("node %d does not answer that it has a replica of group %d", command.Node, g.ID)
		}
		chosen = found.Replicas[i]
	}
	command.Node, command.Replica = raft.NodeID(chosen.GetNodeId()), raft.ReplicaID(chosen.GetReplicaId())
	found.Node = chosen.GetNodeId()
	return found, command, nil
}

// mayRecover refuses what need not be, or is not to be done unseen. silent are
// nodes that should answer.
func mayRecover(left []*flotillav1.LocalReplica, c RecoverGroup, silent []raft.NodeID) error {
	if len(left) == 0 {
		return stale("no node that answers has a replica of group %d: bring one back", c.Group)
	}
	able := make(map[uint64]bool) // to vote
	for _, l := range left {
		if l.GetLeads() {
			return stale("node %d leads group %d: it needs no recovery", l.GetNodeId(), c.Group)
		}
		able[l.GetReplicaId()] = !l.GetSuspect()
	}
	majority := func(voters []uint64) (up int, is bool) {
		for _, id := range voters {
			if able[id] {
				up++
			}
		}
		return up, up > len(voters)/2
	}
	latest := slices.MaxFunc(left, func(a, b *flotillav1.LocalReplica) int { return cmp.Compare(a.GetEpoch(), b.GetEpoch()) })
	up, is := majority(latest.GetVoters())
	if _, outgoing := majority(latest.GetOutgoing()); is && (outgoing || len(latest.GetOutgoing()) == 0) {
		return stale("group %d has %d of its %d voters up, a majority: it needs no recovery", c.Group, up, len(latest.GetVoters()))
	}
	if len(silent) > 0 && c.Node == 0 {
		return stale("nodes %v are up and do not answer what they have of group %d: ask again, or say from which node it is to go on", silent, c.Group)
	}
	return nil
}

// longestLog is the replica that would be elected of these: of those that vote,
// and whose log was not cut, if there is one.
func longestLog(left []*flotillav1.LocalReplica) *flotillav1.LocalReplica {
	rank := func(l *flotillav1.LocalReplica) (rank int) {
		if slices.Contains(l.GetVoters(), l.GetReplicaId()) {
			rank++
		}
		if !l.GetSuspect() {
			rank += 2
		}
		return rank
	}
	return slices.MaxFunc(left, func(a, b *flotillav1.LocalReplica) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.GetLastTerm(), b.GetLastTerm()), cmp.Compare(a.GetLastIndex(), b.GetLastIndex()))
	})
}
