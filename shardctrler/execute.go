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
	type outcome struct {
		answer *flotillav1.ExecuteResponse
		err    error
	}
	done := make(chan outcome, 1)
	CarryOut(host, c.options.Shards, r, func(answer *flotillav1.ExecuteResponse, err error) { done <- outcome{answer, err} })
	select {
	case o := <-done:
		return o.answer, toStatus(o.err)
	case <-ctx.Done():
		return nil, toStatus(ctx.Err())
	}
}

// CarryOut carries out an operation of the reconciler if the node of groups
// and shards leads the group. done is called once, perhaps from another
// goroutine and perhaps never, if the node stops; an error says that the
// request is wrong, all else is in the answer.
func CarryOut(groups Groups, shards Shards, r *flotillav1.ExecuteRequest, done func(*flotillav1.ExecuteResponse, error)) {
	st, ok := groups.Status(raft.GroupID(r.Group))
	order, recovers := r.Operation.(*flotillav1.ExecuteRequest_Recover)
	switch {
	case !ok:
		done(&flotillav1.ExecuteResponse{Message: fmt.Sprintf("there is no replica of group %d here", r.Group)}, nil)
		return
	case recovers:
		done(carryOutRecover(groups, st, order.Recover), nil)
		return
	case !st.IsLeader:
		err := &NotLeaderError{Group: st.Group, Leader: st.Leader.Node}
		done(&flotillav1.ExecuteResponse{Message: err.Error(), LeaderNode: uint64(st.Leader.Node)}, nil)
		return
	}
	finish := func(what string, err error) {
		if err != nil {
			done(&flotillav1.ExecuteResponse{Message: err.Error()}, nil)
			return
		}
		done(&flotillav1.ExecuteResponse{Accepted: true, Message: what, LeaderNode: uint64(st.Leader.Node)}, nil)
	}
	switch op := r.Operation.(type) {
	case *flotillav1.ExecuteRequest_TransferLeader:
		finish(transfer(groups, st, raft.NodeID(op.TransferLeader.GetToNode())))
	case *flotillav1.ExecuteRequest_ChangeMembership:
		change(groups, st, r.Epoch, membersFromWire(op.ChangeMembership.GetMembers()), finish)
	case *flotillav1.ExecuteRequest_Birth:
		bear(shards, st.Group, op.Birth, finish)
	case *flotillav1.ExecuteRequest_ImportShard:
		if op.ImportShard.GetShard() >= shardmap.ShardsMax {
			finish("", invalid("shard %d is none", op.ImportShard.GetShard()))
			return
		}
		shards.Import(st.Group, r.OperationId, op.ImportShard, func(report *flotillav1.MoveReport, err error) {
			if err != nil {
				finish("", err)
				return
			}
			done(&flotillav1.ExecuteResponse{Accepted: true, Message: report.GetPhase(), LeaderNode: uint64(st.Leader.Node), Move: report}, nil)
		})
	default:
		done(nil, invalid("operation %d has nothing in it that this version knows", r.OperationId))
	}
}

// transfer hands leadership to the replica at a node.
func transfer(groups Groups, st GroupStatus, to raft.NodeID) (string, error) {
	if st.Leader.Node == to {
		return fmt.Sprintf("node %d leads already", to), nil
	}
	i := slices.IndexFunc(st.Membership.Voters, func(m raft.Member) bool { return m.Node == to })
	if i < 0 {
		return "", stale("node %d has no voting replica of group %d", to, st.Group)
	}
	if err := groups.Transfer(st.Group, st.Membership.Voters[i].Replica); err != nil {
		return "", err
	}
	return fmt.Sprintf("node %d hands over to node %d", st.Leader.Node, to), nil
}

// change proposes a membership. Repeated, it finds that the group has it.
func change(groups Groups, st GroupStatus, epoch uint64, members []shardmap.Member, finish func(string, error)) {
	have := observedMembers(st)
	switch {
	case st.changing():
		finish("a membership change is half done", nil)
		return
	case st.Membership.Epoch > epoch && sameMembers(plainMembers(have), sortedMembers(members)):
		finish("the group has this membership", nil)
		return
	case st.Membership.Epoch > epoch:
		finish("", stale("planned for epoch %d, the group is at %d", epoch, st.Membership.Epoch))
		return
	}
	var voters, learners []raft.Member
	for _, m := range sortedMembers(members) {
		if m.Learner {
			learners = append(learners, raft.Member{Replica: m.Replica, Node: m.Node})
		} else {
			voters = append(voters, raft.Member{Replica: m.Replica, Node: m.Node})
		}
	}
	groups.ChangeMembership(st.Group, epoch, voters, learners, func(err error) { finish("proposed", err) })
}

// bear gives the group led here its first shards.
func bear(shards Shards, group raft.GroupID, b *flotillav1.Birth, finish func(string, error)) {
	ids := make([]shardmap.ShardID, len(b.GetShards()))
	for i, s := range b.GetShards() {
		if s >= shardmap.ShardsMax {
			finish("", invalid("shard %d is none", s))
			return
		}
		ids[i] = shardmap.ShardID(s)
	}
	shards.Birth(group, ids, shardmap.Generation(b.GetGeneration()), func(err error) {
		finish(fmt.Sprintf("born with %d shards of generation %d", len(ids), b.GetGeneration()), err)
	})
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
	if s.move.ID != 0 {
		return importRequest(cluster, s.move)
	}
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
	case Recover:
		r.Group = uint64(b.Group)
		r.Operation = &flotillav1.ExecuteRequest_Recover{Recover: &flotillav1.Recover{Replica: uint64(b.Replica), Epoch: b.Epoch, Floor: uint64(b.Floor)}}
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
