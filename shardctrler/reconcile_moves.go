package shardctrler

import (
	"fmt"
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
)

// How often the leader of a move's target is asked how the move stands: often
// while the move is young, as most are short.
const (
	movePollMin  = 10 * time.Millisecond
	movePollMax  = time.Second
	movePollPart = 8 // of the move's age
)

// movePoll is how long to wait before the next question about a move that is
// worked at for so long.
func movePoll(age time.Duration) time.Duration {
	return min(max(age/movePollPart, movePollMin), movePollMax)
}

// sendMoves asks for the moves that are under way; running is how many attempts
// are.
func (r *reconciler) sendMoves(in turnInput, running int, out *turnOutput) {
	for _, m := range in.state.underWay() {
		if a := r.attempt(in.now, m.ID); a.begins(in.now, &running, out) {
			out.sends = append(out.sends, send{move: m, to: a.choose(in, m.To)})
		}
	}
}

// moveResult notes what the target's leader says, and what is to be recorded.
func (r *reconciler) moveResult(in turnInput, m Move, a *attempt, result SendResult) Command {
	a.running = false
	if !result.Accepted || result.Move == nil {
		r.failed(in, a, result)
		return nil
	}
	a.failures = 0
	a.last = result.Move.GetPhase()
	if why := result.Move.GetWaitingFor(); why != "" {
		a.last += ", waiting for " + why
	}
	a.target = result.Leader
	a.notBefore = in.now.Add(movePoll(in.now.Sub(a.began)))
	state := moveStateOf(result.Move.GetPhase())
	if m.Cancel && result.Move.GetCancelRefused() && state == MoveOrdered {
		a.last += "; the wish to cancel came after the hand-off"
	}
	if state == m.State || state == MoveOrdered {
		return nil
	}
	a.notBefore = in.now // there is news
	return ReportMove{Move: m.ID, State: state, Pause: result.Move.GetPauseUs(), Bytes: result.Move.GetBytesTotal()}
}

// moveStateOf is what is recorded of a phase.
func moveStateOf(phase string) MoveState {
	switch phase {
	case phaseVerifying:
		return MoveServed
	case phaseDone:
		return MoveDone
	case phaseCancelled:
		return MoveCancelled
	case phaseFailed:
		return MoveFailed
	}
	return MoveOrdered
}

// The phases of a move, as reports name them.
const (
	phaseImporting = "importing"
	phaseVerifying = "verifying"
	phaseDone      = "done"
	phaseCancelled = "cancelled"
	phaseFailed    = "failed"
)

// importRequest is how a move is sent.
func importRequest(cluster string, m Move) *flotillav1.ExecuteRequest {
	return &flotillav1.ExecuteRequest{ClusterId: cluster, OperationId: uint64(m.ID), Group: uint64(m.To),
		Operation: &flotillav1.ExecuteRequest_ImportShard{ImportShard: &flotillav1.ImportShard{
			Shard: uint64(m.Shard), Generation: uint64(m.Generation), FromGroup: uint64(m.From), Cancel: m.Cancel}}}
}

// moveWaits says what the moves wait for that could go on and do not.
func (r *reconciler) moveWaits(s *State, now time.Time) []string {
	var waits []string
	for _, m := range s.underWay() {
		a := r.attempts[m.ID]
		if a == nil || a.last == "" || a.failures == 0 && now.Sub(a.began) < moveShown {
			continue
		}
		waits = append(waits, fmt.Sprintf("move %d (shard %d from group %d to group %d, %v old): %s", m.ID, m.Shard, m.From, m.To,
			now.Sub(a.began).Round(time.Second), a.last))
	}
	return waits
}

// moveShown: a move that is younger and meets no obstacle is nothing that the
// cluster waits for.
const moveShown = 10 * time.Second
