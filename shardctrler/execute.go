package shardctrler

import (
	"context"
	"fmt"
	"slices"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// Execute carries out an operation at the group's leader, if that is here. A
// transfer without an operation id is an operator's wish: the config group
// records it, and the reconciler sees to it.
func (c *Controller) Execute(ctx context.Context, r *flotillav1.ExecuteRequest) (*flotillav1.ExecuteResponse, error) {
	id, host, _ := c.parts()
	if host == nil {
		return nil, toStatus(ErrNotInitialised)
	}
	if r.ClusterId != "" && r.ClusterId != id.ClusterID {
		return nil, toStatus(fmt.Errorf("%w: the operation is for %s, this is %s", ErrOtherCluster, r.ClusterId, id.ClusterID))
	}
	if r.OperationId == 0 {
		return c.executeWish(ctx, r)
	}
	if r.ClusterId == "" {
		return nil, toStatus(invalid("an operation must name its cluster"))
	}
	st, ok := host.Status(raft.GroupID(r.Group))
	if !ok {
		return &flotillav1.ExecuteResponse{Message: fmt.Sprintf("node %d has no replica of group %d", id.Node, r.Group)}, nil
	}
	if !st.IsLeader {
		return notHere(st), nil
	}
	return c.executeHere(ctx, host, st, r)
}

func notHere(st GroupStatus) *flotillav1.ExecuteResponse {
	err := &NotLeaderError{Group: st.Group, Leader: st.Leader.Node}
	return &flotillav1.ExecuteResponse{Message: err.Error(), LeaderNode: uint64(st.Leader.Node)}
}

func (c *Controller) executeHere(ctx context.Context, host Host, st GroupStatus, r *flotillav1.ExecuteRequest) (*flotillav1.ExecuteResponse, error) {
	var done string
	var err error
	switch op := r.Operation.(type) {
	case *flotillav1.ExecuteRequest_TransferLeader:
		done, err = transfer(ctx, host, st, raft.NodeID(op.TransferLeader.GetToNode()))
	case *flotillav1.ExecuteRequest_ChangeMembership:
		done, err = change(ctx, host, st, r.Epoch, membersFromWire(op.ChangeMembership.GetMembers()))
	case *flotillav1.ExecuteRequest_Birth:
		done, err = c.birth(ctx, st.Group, op.Birth)
	default:
		return nil, toStatus(invalid("operation %d has nothing in it that this version knows", r.OperationId))
	}
	if err != nil {
		return &flotillav1.ExecuteResponse{Message: err.Error()}, nil
	}
	return &flotillav1.ExecuteResponse{Accepted: true, Message: done, LeaderNode: uint64(st.Leader.Node)}, nil
}

// transfer hands leadership to the replica at a node.
func transfer(ctx context.Context, host Host, st GroupStatus, to raft.NodeID) (string, error) {
	if st.Leader.Node == to {
		return fmt.Sprintf("node %d leads already", to), nil
	}
	i := slices.IndexFunc(st.Membership.Voters, func(m raft.Member) bool { return m.Node == to })
	if i < 0 {
		return "", stale("node %d has no voting replica of group %d", to, st.Group)
	}
	if err := host.Transfer(ctx, st.Group, st.Membership.Voters[i].Replica); err != nil {
		return "", err
	}
	return fmt.Sprintf("node %d hands over to node %d", st.Leader.Node, to), nil
}

// change proposes a membership. Repeated, it finds that the group has it.
func change(ctx context.Context, host Host, st GroupStatus, epoch uint64, members []shardmap.Member) (string, error) {
	have := observedMembers(st)
	joint := len(st.Membership.Outgoing) > 0
	if !joint && st.Membership.Epoch > epoch {
		if sameMembers(plainMembers(have), sortedMembers(members)) {
			return "the group has this membership", nil
		}
		return "", stale("planned for epoch %d, the group is at %d", epoch, st.Membership.Epoch)
	}
	if joint {
		return "a membership change is half done", nil
	}
	var voters, learners []raft.Member
	for _, m := range sortedMembers(members) {
		if m.Learner {
			learners = append(learners, raft.Member{Replica: m.Replica, Node: m.Node})
		} else {
			voters = append(voters, raft.Member{Replica: m.Replica, Node: m.Node})
		}
	}
	if err := host.ChangeMembership(ctx, st.Group, epoch, voters, learners); err != nil {
		return "", err
	}
	return "proposed", nil
}

// birth gives the group led here its first shards.
func (c *Controller) birth(ctx context.Context, group raft.GroupID, b *flotillav1.Birth) (string, error) {
	shards := make([]shardmap.ShardID, len(b.GetShards()))
	for i, s := range b.GetShards() {
		if s >= shardmap.ShardsMax {
			return "", invalid("shard %d is none", s)
		}
		shards[i] = shardmap.ShardID(s)
	}
	if err := c.options.Shards.Birth(ctx, group, shards, shardmap.Generation(b.GetGeneration())); err != nil {
		return "", err
	}
	return fmt.Sprintf("born with %d shards of generation %d", len(shards), b.GetGeneration()), nil
}

// executeWish records what an operator asks for. Of the operations only a
// transfer can be wished for; the others are the controller's to plan.
func (c *Controller) executeWish(ctx context.Context, r *flotillav1.ExecuteRequest) (*flotillav1.ExecuteResponse, error) {
	op, ok := r.Operation.(*flotillav1.ExecuteRequest_TransferLeader)
	if !ok {
		return nil, toStatus(invalid("without an operation id only a leader transfer can be asked for"))
	}
	return forward(ctx, c, func(ctx context.Context) (*flotillav1.ExecuteResponse, error) {
		_, err := c.propose(ctx, Prefer{Group: raft.GroupID(r.Group), Node: raft.NodeID(op.TransferLeader.GetToNode())})
		if err != nil {
			return nil, err
		}
		return &flotillav1.ExecuteResponse{Accepted: true, Message: "recorded"}, nil
	}, func(ctx context.Context, client flotillav1.ClusterClient) (*flotillav1.ExecuteResponse, error) {
		return client.Execute(ctx, r)
	})
}

// request is how an operation is sent.
func (s send) request(cluster string) *flotillav1.ExecuteRequest {
	r := &flotillav1.ExecuteRequest{ClusterId: cluster, OperationId: uint64(s.operation.ID)}
	switch b := s.operation.Body.(type) {
	case Birth:
		shards := make([]uint64, len(s.shards))
		for i, id := range s.shards {
			shards[i] = uint64(id)
		}
		r.Group = uint64(b.Group)
		r.Operation = &flotillav1.ExecuteRequest_Birth{Birth: &flotillav1.Birth{Shards: shards, Generation: uint64(b.Generation)}}
	case TransferLeader:
		r.Group, r.Epoch = uint64(b.Group), b.Epoch
		r.Operation = &flotillav1.ExecuteRequest_TransferLeader{TransferLeader: &flotillav1.TransferLeader{ToNode: uint64(b.To)}}
	case ChangeMembership:
		r.Group, r.Epoch = uint64(b.Group), b.Epoch
		r.Operation = &flotillav1.ExecuteRequest_ChangeMembership{ChangeMembership: &flotillav1.ChangeMembership{Members: membersToWire(b.Members)}}
	}
	return r
}

// observedMembers are a group's members as its leader sees them, ascending by
// replica.
func observedMembers(st GroupStatus) []ObservedMember {
	lag := func(r raft.ReplicaID) int64 {
		if l, ok := st.Lag[r]; ok {
			return l
		}
		return -1
	}
	var members []ObservedMember
	for _, m := range st.Membership.Voters {
		members = append(members, ObservedMember{Member: shardmap.Member{Replica: m.Replica, Node: m.Node}, Lag: lag(m.Replica)})
	}
	for _, m := range st.Membership.Learners {
		members = append(members, ObservedMember{Member: shardmap.Member{Replica: m.Replica, Node: m.Node, Learner: true}, Lag: lag(m.Replica)})
	}
	slices.SortFunc(members, func(a, b ObservedMember) int { return compare(a.Replica, b.Replica) })
	return members
}

// plainMembers is members without what the leader sees.
func plainMembers(members []ObservedMember) []shardmap.Member {
	plain := make([]shardmap.Member, len(members))
	for i, m := range members {
		plain[i] = m.Member
	}
	return plain
}
