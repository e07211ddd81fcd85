package shardctrler

import (
	"fmt"
	"slices"
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// Bounds and times of the reconciler.
const (
	sendsMax       = 64 // operations being sent at once; the others wait their turn
	sendBackoffMin = 20 * time.Millisecond
	sendBackoffMax = time.Second
	// sendsQuick is how many attempts on one operation stay within
	// sendBackoffQuick: a group that is being made elects its leader soon.
	sendsQuick       = 50
	sendBackoffQuick = 100 * time.Millisecond
	// resend repeats a membership change that was taken but is not observed.
	resend = 500 * time.Millisecond
	// transferPatience: a transfer that was not taken for so long is given up.
	transferPatience = 5 * time.Second
	// changePatience: likewise a membership that was refused for so long.
	changePatience = 10 * time.Second
	// transferSettle: a leader that is newer than this is left alone: elections
	// may still be going on, or a node that stops is handing over. It is longer
	// than observeEvery, so that the preferred node has since said whether it is
	// ready.
	transferSettle = 3 * time.Second
	// transferHold: after a transfer that failed, or did not last, the group's
	// leader is left alone for so long.
	transferHold = 30 * time.Second
)

// reconciler drives the pending operations and plans new ones. It is a step
// machine: turn takes what was observed and says what to propose and to send.
// All it remembers can be lost: the operations are in the state, and each may
// be sent again.
type reconciler struct {
	attempts map[OperationID]*attempt
	holds    map[raft.GroupID]time.Time // no transfer before
	leaders  map[raft.GroupID]leadership
	learners map[raft.ReplicaKey]learning
	config   shardmap.ConfigNum // that was the latest at the last turn
	stirred  time.Time          // when shards were last on their way, or to be
	over     map[raft.GroupID]time.Time
}

// learning is how near a learner has come, and when.
type learning struct {
	lag int64
	at  time.Time
}

// leadership is who leads a group, and since when it is known here.
type leadership struct {
	leader raft.NodeID
	term   raft.Term
	since  time.Time
}

// attempt is what is remembered of sending an operation.
type attempt struct {
	began     time.Time // by this node's clock: the group's may be ahead of it
	running   bool
	failures  int
	notBefore time.Time
	target    raft.NodeID // where to send next; 0: to whom seems best
	tried     int         // how many members were tried without a hint
	last      string      // what it failed with
}

// turnInput is what a turn decides from.
type turnInput struct {
	now      time.Time
	state    *State
	observed Observed
	results  []SendResult
	hints    []LeaderHint
}

// SendResult is how an attempt ended.
type SendResult struct {
	Operation OperationID
	Accepted  bool
	Leader    raft.NodeID // where the leader is, 0 if that is not known
	Detail    string
	Move      *flotillav1.MoveReport // of a move that was accepted; else nil
}

// LeaderHint says that a node has begun to lead a group.
type LeaderHint struct {
	Group raft.GroupID
	Node  raft.NodeID
}

// turnOutput is what a turn wants done.
type turnOutput struct {
	commands []Command
	sends    []send
	next     time.Time // look again then, if nothing happens; zero: no need
}

// send is one attempt to have an operation carried out.
type send struct {
	operation Operation
	move      Move // if it is one, which its ID tells; else operation
	to        raft.NodeID
	shards    []shardmap.ShardID // of a Birth
}

func newReconciler() *reconciler {
	return &reconciler{
		attempts: make(map[OperationID]*attempt),
		holds:    make(map[raft.GroupID]time.Time),
		leaders:  make(map[raft.GroupID]leadership),
		learners: make(map[raft.ReplicaKey]learning),
	}
}

// turn is one step.
func (r *reconciler) turn(in turnInput) turnOutput {
	var out turnOutput
	r.forget(in)
	for _, result := range in.results {
		if c := r.result(in, result); c != nil {
			out.commands = append(out.commands, c)
		}
	}
	for _, h := range in.hints {
		r.hint(in, h)
	}
	out.commands = append(out.commands, observations(in.state, in.observed)...)
	observed := r.withHolds(in)
	if planned := Plan(in.state, observed); len(planned) > 0 && len(out.commands) == 0 {
		out.commands = append(out.commands, CommitPlan(in.state, observed, planned))
	}
	r.send(in, &out)
	return out
}

// forget drops what is remembered of operations that have ended.
func (r *reconciler) forget(in turnInput) {
	for id := range r.attempts {
		m, isMove := in.state.move(id)
		if _, pending := in.state.operation(id); !pending && !(isMove && m.active()) {
			delete(r.attempts, id)
		}
	}
	for g, until := range r.holds {
		if !in.now.Before(until) {
			delete(r.holds, g)
		}
	}
}

// result notes how an attempt ended, and says what is to be committed of it.
func (r *reconciler) result(in turnInput, result SendResult) Command {
	a := r.attempts[result.Operation]
	if m, isMove := in.state.move(result.Operation); isMove && m.active() && a != nil {
		return r.moveResult(in, m, a, result)
	}
	o, pending := in.state.operation(result.Operation)
	if !pending || a == nil {
		return nil
	}
	a.running = false
	if result.Accepted {
		a.last = result.Detail
		return r.accepted(in, o, a, result)
	}
	r.failed(in, a, result)
	if _, isTransfer := o.Body.(TransferLeader); isTransfer && in.now.Sub(a.began) > transferPatience {
		r.hold(in, o)
		return Finish{Operation: o.ID, Detail: "given up: " + result.Detail}
	}
	// What the group refuses for long, a plan of what is by now may do better. If
	// it goes through after all, its epoch says so.
	if _, isChange := o.Body.(ChangeMembership); isChange && result.Leader == 0 && in.now.Sub(a.began) > changePatience {
		return Finish{Operation: o.ID, Detail: "given up: " + result.Detail}
	}
	return nil
}

// failed notes that an attempt came to nothing.
func (r *reconciler) failed(in turnInput, a *attempt, result SendResult) {
	a.last = result.Detail
	a.failures++
	a.target = result.Leader
	a.notBefore = in.now.Add(a.backoff())
	if result.Leader != 0 && a.failures == 1 {
		a.notBefore = in.now
	}
}

func (r *reconciler) accepted(in turnInput, o Operation, a *attempt, result SendResult) Command {
	a.failures = 0
	a.notBefore = in.now.Add(resend)
	switch o.Body.(type) {
	case ChangeMembership, Recover:
		return nil // it ends when the membership is observed
	case TransferLeader:
		r.hold(in, o)
	}
	return Finish{Operation: o.ID, Done: true, Detail: result.Detail}
}

func (r *reconciler) hold(in turnInput, o Operation) {
	if g, ok := o.group(); ok {
		r.holds[g] = in.now.Add(transferHold)
	}
}

// backoff is how long to wait after the failures so far.
func (a *attempt) backoff() time.Duration {
	limit := sendBackoffQuick
	if a.failures > sendsQuick {
		limit = sendBackoffMax
	}
	return min(sendBackoffMin<<min(a.failures-1, 6), limit)
}

// hint sends at once what was waiting for a leader.
func (r *reconciler) hint(in turnInput, h LeaderHint) {
	waits := func(id OperationID) {
		if a := r.attempts[id]; a != nil && !a.running && a.failures > 0 {
			a.target, a.notBefore = h.Node, in.now
		}
	}
	if o, pending := in.state.pendingFor(h.Group); pending {
		waits(o.ID)
	}
	for _, m := range in.state.Moves {
		if m.active() && m.To == h.Group {
			waits(m.ID)
		}
	}
}

// observations reports the memberships that are news.
func observations(s *State, o Observed) []Command {
	var commands []Command
	for _, seen := range o.Groups {
		g, ok := s.group(seen.ID)
		if !ok || seen.Joint || seen.Epoch <= g.Epoch {
			continue
		}
		c := Observe{Group: seen.ID, Epoch: seen.Epoch}
		for _, m := range seen.Members {
			c.Members = append(c.Members, shardmap.Member{Replica: m.Replica, Node: m.Node, Learner: m.Learner})
		}
		commands = append(commands, c)
	}
	return commands
}

// withHolds marks the groups whose leader is to be left alone.
func (r *reconciler) withHolds(in turnInput) Observed {
	o := in.observed
	o.Groups = slices.Clone(o.Groups)
	for i := range o.Groups {
		g := &o.Groups[i]
		_, held := r.holds[g.ID]
		g.Hold = g.Hold || held || !r.settled(in.now, *g)
	}
	r.watchLearners(in.now, &o)
	o.Quiet = r.quiet(in)
	r.watchLoads(in, &o)
	return o
}

// watchLoads notes since when groups have too much.
func (r *reconciler) watchLoads(in turnInput, o *Observed) {
	over := make(map[raft.GroupID]time.Time)
	for id := range tooMuch(in.state, *o) {
		if over[id] = in.now; !r.over[id].IsZero() {
			over[id] = r.over[id]
		}
	}
	r.over = over
	for i := range o.Groups {
		if since, is := over[o.Groups[i].ID]; is {
			o.Groups[i].Over = in.now.Sub(since)
		}
	}
}

// quiet is for how long shards have stayed where they are.
func (r *reconciler) quiet(in turnInput) time.Duration {
	if now := in.state.config().Num; now != r.config || r.stirred.IsZero() || len(in.state.movingShards()) > 0 {
		r.config, r.stirred = now, in.now
	}
	return in.now.Sub(r.stirred)
}

// learnerPatience: a learner that came no nearer for so long is given up.
const learnerPatience = time.Minute

// watchLearners marks those that have stalled.
func (r *reconciler) watchLearners(now time.Time, o *Observed) {
	seen := make(map[raft.ReplicaKey]learning)
	for i := range o.Groups {
		g := &o.Groups[i]
		for j, m := range g.Members {
			if !m.Learner {
				continue
			}
			key := raft.ReplicaKey{Group: g.ID, Replica: m.Replica}
			l, known := r.learners[key]
			if !known || m.Lag >= 0 && (m.Lag < l.lag || l.lag < 0 || m.Lag <= learnerLagMax) {
				l = learning{m.Lag, now}
			}
			seen[key] = l
			if now.Sub(l.at) >= learnerPatience {
				g.Members = slices.Clone(g.Members)
				g.Members[j].Stalled = true
			}
		}
	}
	r.learners = seen
}

// settled tells whether a group has had its leader for long enough.
func (r *reconciler) settled(now time.Time, g ObservedGroup) bool {
	l := r.leaders[g.ID]
	if l.leader != g.Leader || l.term != g.Term {
		l = leadership{g.Leader, g.Term, now}
		r.leaders[g.ID] = l
	}
	return now.Sub(l.since) >= transferSettle
}

// send starts the attempts that are due.
func (r *reconciler) send(in turnInput, out *turnOutput) {
	running := 0
	for _, a := range r.attempts {
		if a.running {
			running++
		}
	}
	for _, o := range in.state.Operations {
		if a := r.attempt(in.now, o.ID); a.begins(in.now, &running, out) {
			id, _ := o.group()
			to := raft.NodeID(0)
			if b, recovers := o.Body.(Recover); recovers {
				to = b.Node // nobody leads
			} else {
				to = a.choose(in, id)
			}
			out.sends = append(out.sends, send{operation: o, to: to, shards: birthShards(in.state, o)})
		}
	}
	r.sendMoves(in, running, out)
}

// begins tells whether an attempt is to be made now, and counts it; otherwise it
// notes when to look again.
func (a *attempt) begins(now time.Time, running *int, out *turnOutput) bool {
	switch {
	case a.running || *running >= sendsMax:
	case a.notBefore.After(now):
		out.next = earliest(out.next, a.notBefore)
	default:
		*running++
		a.running = true
		return true
	}
	return false
}

// attempt is what is remembered of an operation or a move.
func (r *reconciler) attempt(now time.Time, id OperationID) *attempt {
	a := r.attempts[id]
	if a == nil {
		a = &attempt{began: now}
		r.attempts[id] = a
	}
	return a
}

// birthShards are the shards that a Birth has to name.
func birthShards(s *State, o Operation) []shardmap.ShardID {
	if b, ok := o.Body.(Birth); ok {
		return s.shardsOf(b.Group)
	}
	return nil
}

// choose is the node to send to for a group: where the leader is said to be,
// else where it should be, else each member in turn.
func (a *attempt) choose(in turnInput, id raft.GroupID) raft.NodeID {
	if to := a.target; to != 0 {
		a.target = 0
		return to
	}
	g, _ := in.state.group(id)
	var order []raft.NodeID
	if i, ok := slices.BinarySearchFunc(in.observed.Groups, id, func(g ObservedGroup, id raft.GroupID) int { return compare(g.ID, id) }); ok && in.observed.Groups[i].Leader != 0 {
		order = append(order, in.observed.Groups[i].Leader)
	}
	if g.Preferred != 0 && !slices.Contains(order, g.Preferred) {
		order = append(order, g.Preferred)
	}
	for _, m := range g.Members {
		if !m.Learner && !slices.Contains(order, m.Node) {
			order = append(order, m.Node)
		}
	}
	if len(order) == 0 {
		return 0
	}
	to := order[a.tried%len(order)]
	a.tried++
	return to
}

// waits says what the pending operations wait for, with their age.
func (r *reconciler) waits(s *State, now time.Time) []string {
	var waits []string
	for _, o := range s.Operations {
		last := "sent"
		if a := r.attempts[o.ID]; a != nil && a.last != "" {
			last = a.last
		}
		id, _ := o.group()
		waits = append(waits, fmt.Sprintf("operation %d (%s of group %d, %v old): %s", o.ID, o.Body.kind(), id,
			now.Sub(time.UnixMilli(o.At)).Round(time.Second), last))
	}
	return append(waits, r.moveWaits(s, now)...)
}

func earliest(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}
