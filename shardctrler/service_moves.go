package shardctrler

import (
	"context"
	"fmt"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// MoveShard records that an operator wants a shard at a group.
func (c *Controller) MoveShard(ctx context.Context, r *flotillav1.MoveShardRequest) (*flotillav1.MoveShardResponse, error) {
	return forward(ctx, c, func(ctx context.Context) (*flotillav1.MoveShardResponse, error) {
		answer, err := c.propose(ctx, OrderMove{Shard: shardmap.ShardID(r.Shard), To: raft.GroupID(r.ToGroup)})
		if err != nil {
			return nil, err
		}
		ordered, ok := answer.(Ordered)
		if !ok {
			return nil, fmt.Errorf("an order was answered %T", answer)
		}
		return &flotillav1.MoveShardResponse{MoveId: uint64(ordered.Move), ConfigNum: uint64(ordered.Config)}, nil
	}, func(ctx context.Context, client flotillav1.ClusterClient) (*flotillav1.MoveShardResponse, error) {
		return client.MoveShard(ctx, r)
	})
}

// CancelMove has a move ended before its hand-off, and answers when it is
// decided whether that was in time.
func (c *Controller) CancelMove(ctx context.Context, r *flotillav1.CancelMoveRequest) (*flotillav1.CancelMoveResponse, error) {
	return forward(ctx, c, func(ctx context.Context) (*flotillav1.CancelMoveResponse, error) {
		if _, err := c.propose(ctx, CancelMove{Move: OperationID(r.MoveId)}); err != nil {
			return nil, err
		}
		return c.awaitCancel(ctx, OperationID(r.MoveId))
	}, func(ctx context.Context, client flotillav1.ClusterClient) (*flotillav1.CancelMoveResponse, error) {
		return client.CancelMove(ctx, r)
	})
}

// awaitCancel waits for what becomes of a move that is to be cancelled.
func (c *Controller) awaitCancel(ctx context.Context, id OperationID) (*flotillav1.CancelMoveResponse, error) {
	_, _, machine := c.parts()
	for {
		changed := machine.Changed()
		m, known := machine.State().move(id)
		switch {
		case !known || m.State == MoveCancelled:
			return &flotillav1.CancelMoveResponse{}, nil
		case m.State == MoveFailed:
			return nil, stale("move %d has failed by itself: shard %d is at group %d", id, m.Shard, m.From)
		case m.State != MoveOrdered:
			return nil, stale("it was too late: move %d has handed shard %d over to group %d; move it back with `flotilla shard move %d %d`", id, m.Shard, m.To, m.Shard, m.From)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("the wish to cancel move %d is recorded; whether it was in time shows in `flotilla move list`: %w", id, ctx.Err())
		case <-c.ctx.Done():
			return nil, ErrStopped
		}
	}
}

// ListMoves lists the last moves with what the leaders of their targets know.
func (c *Controller) ListMoves(ctx context.Context, r *flotillav1.ListMovesRequest) (*flotillav1.ListMovesResponse, error) {
	return forward(ctx, c, func(ctx context.Context) (*flotillav1.ListMovesResponse, error) {
		s, err := c.current(ctx)
		if err != nil {
			return nil, err
		}
		var reports []report
		if m := s.Map(); !r.Brief && len(s.movingShards()) > 0 {
			collecting, cancel := context.WithTimeout(ctx, statusTimeout)
			reports = c.collect(collecting, m, new(flotillav1.GetNodeReportRequest))
			cancel()
		}
		return &flotillav1.ListMovesResponse{Moves: movesToWire(s, reports, r.Active), Planned: uint64(s.toBeMoved())}, nil
	}, func(ctx context.Context, client flotillav1.ClusterClient) (*flotillav1.ListMovesResponse, error) {
		return client.ListMoves(ctx, r)
	})
}

// movesUnderWay is what a status shows of moves: as this node's replica of the
// config group has them, or else whoever answers in time.
func (c *Controller) movesUnderWay(ctx context.Context, reports []report) []*flotillav1.Move {
	if machine, fresh := c.local(); fresh {
		return movesToWire(machine.State(), reports, true)
	}
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	for _, node := range configNodes(c.maps.Current()) {
		for _, client := range c.clients(node) {
			if answer, err := client.ListMoves(oneMoreHop(ctx), &flotillav1.ListMovesRequest{Active: true}); err == nil {
				return answer.Moves
			}
		}
	}
	return nil
}

// movesToWire is the moves of a state with what was reported of them.
func movesToWire(s *State, reports []report, activeOnly bool) []*flotillav1.Move {
	reported := make(map[OperationID]*flotillav1.MoveReport)
	for _, r := range reports {
		for _, m := range r.report.GetMoves() {
			reported[OperationID(m.GetId())] = m
		}
	}
	under := make(map[OperationID]bool)
	for _, m := range s.underWay() {
		under[m.ID] = true
	}
	var moves []*flotillav1.Move
	for _, m := range s.Moves {
		if !m.active() && activeOnly {
			continue
		}
		moves = append(moves, moveToWire(m, reported[m.ID], under[m.ID]))
	}
	return moves
}

func moveToWire(m Move, r *flotillav1.MoveReport, under bool) *flotillav1.Move {
	w := &flotillav1.Move{Id: uint64(m.ID), Shard: uint64(m.Shard), From: uint64(m.From), To: uint64(m.To), Generation: uint64(m.Generation),
		BytesDone: -1, BytesTotal: m.Bytes, PauseUs: m.Pause, Started: timeText(m.Started), Ended: timeText(m.Ended), Reason: m.Reason}
	switch m.State {
	case MoveOrdered:
		w.Phase = phaseImporting
	case MoveServed:
		w.Phase = phaseVerifying
	case MoveDone:
		w.Phase, w.Verified, w.BytesDone = phaseDone, true, m.Bytes
	case MoveCancelled:
		w.Phase = phaseCancelled
	case MoveFailed:
		w.Phase = phaseFailed
	}
	switch {
	case !m.active():
	case r != nil:
		w.Phase, w.WaitingFor, w.BytesDone, w.BytesTotal = r.GetPhase(), r.GetWaitingFor(), r.GetBytesDone(), r.GetBytesTotal()
		if r.GetPauseUs() > 0 {
			w.PauseUs = r.GetPauseUs()
		}
	case !under:
		w.WaitingFor = fmt.Sprintf("its turn: at most %d moves are under way at once from a group, %d into it, and %d in all", moveAtGroup, moveAtGroup, movesUnder)
	default:
		w.WaitingFor = fmt.Sprintf("the leader of group %d", m.To)
	}
	return w
}
