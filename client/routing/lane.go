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
// A write of a lane whose caller gives up is never held open for Outcome: the
// writes behind it say that it is no longer waited for, so the shard refuses it
// if it comes late, and the order stands.
type Lane struct {
	queues map[shardmap.ShardID]*laneQueue
}

// laneQueue is the lane's calls of one shard.
type laneQueue struct {
	running *Call
	waiting []*Call
}

// Limits of merging. A merged request stays a small part of what one request
// may be, and so does its answer.
const (
	mergedWritesMax = 128
	mergedReadsMax  = 16 // of values up to 4 MiB
	mergedBytesMax  = 256 << 10
)

// enter puts a call into its lane; it reports whether it may start now.
func (l *Lane) enter(c *Call) bool {
	if l.queues == nil {
		l.queues = make(map[shardmap.ShardID]*laneQueue)
	}
	q := l.queues[c.shard]
	if q == nil {
		q = &laneQueue{}
		l.queues[c.shard] = q
	}
	if q.running == nil {
		q.running = c
		return true
	}
	q.waiting = append(q.waiting, c)
	return false
}

// leave takes out a call that was delivered and starts what waits behind it.
func (r *Router) leave(now time.Time, c *Call) {
	q := c.Lane.queues[c.shard]
	if q == nil || q.running != c || r.closing {
		return // it waited, and is skipped when its turn comes
	}
	q.running = nil
	turn := q.turn()
	switch len(turn) {
	case 0:
		delete(c.Lane.queues, c.shard)
		return
	case 1:
		q.running = turn[0]
	default:
		q.running = merge(turn)
		r.timers.set(q.running, q.running.Deadline)
	}
	r.start(now, q.running)
}

// turn takes the calls that go next: the first that still waits, and those
// behind it that can be merged with it.
func (q *laneQueue) turn() []*Call {
	var turn []*Call
	var load mergeLoad
	taken := 0
	for _, c := range q.waiting {
		if c.state == stateDone {
			taken++
			continue
		}
		if len(turn) > 0 && !load.fits(turn[0], c) {
			break
		}
		turn = append(turn, c)
		taken++
		load.add(c)
		if !mergeable(c) {
			break
		}
	}
	q.waiting = slices.Delete(q.waiting, 0, taken)
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
		Request: &flotillav1.Request{
			Shard:       uint64(first.shard),
			Consistency: first.Request.GetConsistency(),
			StalenessMs: first.Request.GetStalenessMs(),
			Follower:    first.Request.GetFollower(),
		},
		Deadline: first.Deadline,
		Lane:     first.Lane,
		kind:     first.kind,
		shard:    first.shard,
		last:     causeNone,
		parts:    parts,
		joined:   true,
	}
	for _, c := range parts {
		whole.Request.Ops = append(whole.Request.Ops, c.Request.GetOps()...)
		if c.Deadline.After(whole.Deadline) {
			whole.Deadline = c.Deadline
		}
		c.state = stateMerged
		c.whole = whole
	}
	return whole
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
