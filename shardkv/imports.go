package shardkv

import (
	"errors"
	"fmt"
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/raft/multiraft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// The phases of a move as reports name them.
const (
	phaseImporting  = "importing"
	phaseCatchingUp = "catching-up"
	phaseHandingOff = "handing-off"
	phaseVerifying  = "verifying"
	phaseDone       = "done"
	phaseCancelled  = "cancelled"
	phaseFailed     = "failed"
)

// Import has a group that this node leads take a shard over, or end that if the
// order says so and it is not too late, and tells how the move stands. From then
// on whoever leads the group sees to it; a move that has begun goes on, one that
// has ended stays as it is. The number of a move grows with every order, over
// all groups. done is called once, as Submit's is.
func (s *Server) Import(id raft.GroupID, number uint64, order *flotillav1.ImportShard, done func(*flotillav1.MoveReport, error)) {
	host, g := s.host.Load(), s.group(id)
	if host == nil || g == nil {
		done(nil, multiraft.ErrNoGroup)
		return
	}
	c := &move{kind: moveBeginImport, shard: shardmap.ShardID(order.GetShard()), id: migrationID(number), generation: order.GetGeneration(), attempt: 1, peer: raft.GroupID(order.GetFromGroup())}
	report, err := s.moveReport(g, c)
	switch {
	case err != nil, report != nil && !(order.GetCancel() && report.cancellable()):
		done(report.wire(), err)
		return
	case order.GetCancel():
		c.kind = moveCancelImport
		if report != nil {
			c.attempt = report.attempt
		}
	}
	(*host).ProposeUrgent(id, encodeCommand(c), func(res multiraft.Result) {
		if res.Err != nil {
			done(nil, res.Err)
			return
		}
		report, err := s.moveReport(g, c)
		if a, ok := res.Value.(*answer); report == nil && err == nil && ok && a.refused != flotillav1.Code_OK {
			err = errors.New(a.message)
		}
		done(report.wire(), err)
	})
}

// MoveReports tells how the moves into a group stand that are under way.
func (s *Server) MoveReports(id raft.GroupID) []*flotillav1.MoveReport {
	g := s.group(id)
	if g == nil {
		return nil
	}
	var reports []*flotillav1.MoveReport
	for _, x := range g.machine.movesNow().imports {
		reports = append(reports, s.importReport(g, &x).wire())
	}
	return reports
}

// importReport is how a move into a group stands.
type importReport struct {
	*flotillav1.MoveReport
	attempt   uint64
	cancelled bool
}

func (r *importReport) wire() *flotillav1.MoveReport {
	if r == nil {
		return nil
	}
	return r.MoveReport
}

// cancellable tells whether it is of use to have the move cancelled.
func (r *importReport) cancellable() bool {
	return !r.cancelled && (r.Phase == phaseImporting || r.Phase == phaseCatchingUp || r.Phase == phaseHandingOff)
}

// moveReport tells how a move stands, as applied here; nil: it has not begun.
func (s *Server) moveReport(g *group, c *move) (*importReport, error) {
	view, err := g.replica.View()
	if err != nil {
		return nil, err
	}
	defer view.Close()
	record, err := shardIn(view, c.shard)
	if err != nil || record.move < c.id {
		return nil, err
	}
	if record.move > c.id {
		return nil, fmt.Errorf("shard %d has seen migration %d", c.shard, record.move)
	}
	if x, under := g.machine.movesNow().importing(c.shard); under && x.record.move == c.id {
		return s.importReport(g, &x), nil
	}
	r := &importReport{MoveReport: &flotillav1.MoveReport{Id: uint64(c.id), Shard: uint64(c.shard), BytesTotal: -1}}
	switch {
	case record.state.serves():
		r.Phase, r.PauseUs, r.BytesDone, r.BytesTotal = phaseDone, record.pause, int64(record.copied), int64(record.copied)
	case record.state == shardImporting:
		return nil, errMoving // it has begun or ended since
	case record.generation > c.generation:
		r.Phase = phaseFailed
	default:
		r.Phase = phaseCancelled
	}
	return r, nil
}

// importReport tells how an import stands that is under way.
func (s *Server) importReport(g *group, x *importStatus) *importReport {
	r := &importReport{attempt: x.in.attempt, cancelled: x.in.cancelled, MoveReport: &flotillav1.MoveReport{
		Id: uint64(x.record.move), Shard: uint64(x.shard), BytesDone: int64(x.in.digest.bytes()), BytesTotal: -1, Attempt: x.in.attempt}}
	switch {
	case x.record.state != shardImporting:
		r.Phase, r.PauseUs, r.BytesDone, r.BytesTotal = phaseVerifying, x.record.pause, int64(x.record.copied), int64(x.record.copied)
	case x.in.scanned:
		r.Phase = phaseCatchingUp
	default:
		r.Phase = phaseImporting
	}
	s.movers.mu.Lock()
	defer s.movers.mu.Unlock()
	v := s.movers.byKey[moverKey{g.id, x.shard, x.record.move}]
	if v == nil {
		return r
	}
	if v.total > 0 && r.BytesTotal < 0 {
		r.BytesTotal = int64(v.total)
	}
	if v.idle && r.Phase == phaseCatchingUp {
		r.Phase = phaseHandingOff
	}
	if v.pause > 0 {
		r.PauseUs = v.pause.Microseconds()
	}
	r.CancelRefused = v.cancelRefused
	if v.why != "" {
		r.WaitingFor = fmt.Sprintf("%s, for %v", v.why, s.now().Sub(v.whySince).Round(100*time.Millisecond))
	}
	return r
}
