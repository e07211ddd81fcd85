package routing

import (
	"slices"
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// Lane keeps the calls of one caller that meet in one shard in their order:
// one request is under way in a shard, the others wait behind it and go on
// together when it is answered. Its zero value is ready. It belongs to the
// Router that its calls are submitted to.
//
// A write of a lane that ended without a conclusive answer may yet take effect.
// Before anything behind it goes on, the lane has its number closed (Outcome).
type Lane struct {
	queues map[shardmap.ShardID]*laneQueue
}

// laneQueue is the lane's calls of one shard.
type laneQueue struct {
	running *Call
	waiting []*Call
	// open is the number of a write that was given up and may yet take effect;
	// nil: there is none. What waits goes on when it is closed.
	open *number
}

// Limits of merging. A merged request stays a small part of what one request
// may be, and so does its answer.
const (
	mergedWritesMax = 128
	mergedReadsMax  = 16 // of values up to 4 MiB
	mergedBytesMax  = 256 << 10
)

// closingTimeout bounds one attempt to close a number; while something waits
// behind it another follows.
const closingTimeout = 10 * time.Second

// enter puts a call into its lane and starts it if nothing is before it.
func (r *Router) enter(now time.Time, c *Call) {
	l := c.Lane
	if l.queues == nil {
		l.queues = make(map[shardmap.ShardID]*laneQueue)
	}
	q := l.queues[c.shard]
	if q == nil {
		q = &laneQueue{}
		l.queues[c.shard] = q
	}
	c.state = stateHeld
	q.waiting = append(q.waiting, c)
	if q.running == nil {
		r.next(now, l, c.shard, q)
	}
}

// leave takes out a call that has ended and starts what waits behind it.
func (r *Router) leave(now time.Time, c *Call, f *Failure) {
	q := c.Lane.queues[c.shard]
	if q == nil || q.running != c || r.closing {
		return // it waited, and is skipped when its turn comes
	}
	q.running = nil
	switch {
	case f != nil && f.Possible && c.numbered:
		q.open = &c.number
	case c.kind == kindOutcome && c.internal && closed(f):
		q.open.finish()
		q.open = nil
	}
	r.next(now, c.Lane, c.shard, q)
}

// closed reports whether an attempt to close a number that ended like this has
// done so: a session that has expired closes all its numbers.
func closed(f *Failure) bool {
	return f == nil || f.Reason == ReasonSessionExpired || f.Reason == ReasonInvalid
}

// next starts the lane's next request in a shard.
func (r *Router) next(now time.Time, l *Lane, shard shardmap.ShardID, q *laneQueue) {
	q.dropEnded()
	switch {
	case len(q.waiting) == 0 && q.open == nil:
		delete(l.queues, shard)
		return
	case len(q.waiting) == 0:
		return // it is closed when something comes
	case q.open != nil:
		q.running = closing(now, l, *q.open)
	default:
		turn := q.turn()
		q.running = turn[0]
		if len(turn) > 1 {
			q.running = merge(turn)
		}
	}
	if q.running.internal {
		r.timers.set(q.running, q.running.Deadline)
	}
	r.start(now, q.running)
}

// closing is the call that closes a number.
func closing(now time.Time, l *Lane, n number) *Call {
	w := n.id()
	return &Call{
		Request: &flotillav1.Request{
			Shard:   uint64(w.Shard),
			Outcome: &flotillav1.Outcome{ClientId: w.Client, BirthMs: w.BirthMS, Seq: w.Seq},
		},
		Deadline: now.Add(closingTimeout),
		Lane:     l,
		kind:     kindOutcome,
		shard:    n.shard,
		last:     causeNone,
		internal: true,
	}
}

func (q *laneQueue) dropEnded() {
	q.waiting = slices.DeleteFunc(q.waiting, func(c *Call) bool { return c.state == stateDone })
}

// turn takes the calls that go next: the first that waits, and those behind it that can be merged with it.
func (q *laneQueue) turn() []*Call {
	var load mergeLoad
	n := 0
	for n < len(q.waiting) && (n == 0 || load.fits(q.waiting[0], q.waiting[n])) {
		load.add(q.waiting[n])
		n++
	}
	turn := slices.Clone(q.waiting[:n])
	q.waiting = slices.Delete(q.waiting, 0, n)
	return turn
}

// mergeLoad is what a turn holds so far.
type mergeLoad struct{ ops, bytes int }

func (m *mergeLoad) add(c *Call) {
	m.ops += len(c.Request.GetOps())
	m.bytes += opsBytes(c.Request.GetOps())
}

func (m *mergeLoad) fits(first, c *Call) bool {
	limit := mergedWritesMax
	if c.kind == kindRead {
		limit = mergedReadsMax
	}
	return mergeable(first) && mergeable(c) && first.kind == c.kind && sameReading(first.Request, c.Request) &&
		m.ops+len(c.Request.GetOps()) <= limit && m.bytes+opsBytes(c.Request.GetOps()) <= mergedBytesMax
}

// mergeable reports whether a request is nothing but ops whose results do not
// depend on standing alone.
func mergeable(c *Call) bool {
	q := c.Request
	if c.alone || c.kind == kindOutcome || len(q.GetCompares()) > 0 || len(q.GetOtherwise()) > 0 {
		return false
	}
	return !slices.ContainsFunc(q.GetOps(), func(op *flotillav1.Op) bool {
		_, named := opKey(op)
		return !named
	})
}

func sameReading(a, b *flotillav1.Request) bool {
	return a.GetConsistency() == b.GetConsistency() && a.GetStalenessMs() == b.GetStalenessMs() && a.GetFollower() == b.GetFollower()
}

func opsBytes(ops []*flotillav1.Op) int {
	sum := 0
	for _, op := range ops {
		key, _ := opKey(op)
		sum += len(key) + len(op.GetPut().GetValue()) + len(op.GetPut().GetExpected()) + len(op.GetAppend().GetValue())
	}
	return sum
}

// merge makes one call of several. It lives until the last of their deadlines;
// a part whose own deadline passes before is delivered then.
func merge(parts []*Call) *Call {
	first := parts[0]
	whole := &Call{
		Request:  mergedRequest(parts),
		Deadline: first.Deadline,
		Lane:     first.Lane,
		kind:     first.kind,
		shard:    first.shard,
		last:     causeNone,
		parts:    parts,
		internal: true,
	}
	for _, c := range parts {
		if c.Deadline.After(whole.Deadline) {
			whole.Deadline = c.Deadline
		}
		c.state = stateMerged
		c.whole = whole
	}
	return whole
}

func mergedRequest(parts []*Call) *flotillav1.Request {
	first := parts[0]
	q := &flotillav1.Request{
		Shard:       uint64(first.shard),
		Consistency: first.Request.GetConsistency(),
		StalenessMs: first.Request.GetStalenessMs(),
		Follower:    first.Request.GetFollower(),
	}
	for _, c := range parts {
		q.Ops = append(q.Ops, c.Request.GetOps()...)
	}
	return q
}

// dropPart takes a part that has ended out of a merged call, which may yet be
// sent: what its caller was told had no effect must have none. One that is
// under way, or may have had an effect, is left as it is: answers match what was
// sent, every attempt of a number says the same, and the caller was told.
func (r *Router) dropPart(now time.Time, part *Call) {
	whole := part.whole
	if whole.state == stateDone || whole.state == stateInFlight || whole.uncertain() {
		return
	}
	whole.parts = slices.DeleteFunc(whole.parts, func(c *Call) bool { return c == part })
	if len(whole.parts) == 0 {
		r.finish(now, whole, nil, r.failure(whole, ReasonCancelled))
		return
	}
	whole.Request = mergedRequest(whole.parts)
}

// split delivers a merged call's answer to its parts.
func (r *Router) split(now time.Time, whole *Call, p *flotillav1.Response) {
	results := p.GetResults()
	for _, c := range whole.parts {
		n := min(len(c.Request.GetOps()), len(results))
		if c.state != stateDone && n < len(c.Request.GetOps()) {
			r.finish(now, c, nil, &Failure{Reason: ReasonInternal, Message: "the answer has fewer results than the request ops", Possible: c.kind == kindWrite})
			continue
		}
		if c.state != stateDone {
			r.finish(now, c, &flotillav1.Response{
				Code:     p.GetCode(),
				Message:  p.GetMessage(),
				Compared: true,
				Results:  results[:n:n],
				Group:    p.GetGroup(),
				Replayed: p.GetReplayed(),
			}, nil)
		}
		results = results[n:]
	}
}

// unmerge puts the parts of a refused call back at the head of their queue,
// each to be asked by itself: one bad request must not fail its neighbours.
func (r *Router) unmerge(now time.Time, whole *Call) {
	q := whole.Lane.queues[whole.shard]
	var parts []*Call
	for _, c := range whole.parts {
		if c.state == stateDone {
			continue
		}
		c.alone = true
		c.whole = nil
		c.state = stateHeld
		parts = append(parts, c)
	}
	q.waiting = append(parts, q.waiting...)
	whole.parts = nil
	r.finish(now, whole, nil, &Failure{Reason: ReasonInvalid})
}
