package shardkv

import (
	"context"
	"errors"
	"sync"
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/raft/multiraft"
	"github.com/flotilla-kv/flotilla/raft/statestore"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// readyRead is a read whose index is applied here.
type readyRead struct {
	call    *call
	group   *group
	shard   shardmap.ShardID
	request readRequest
	// exact: the answer must not depend on expiries that the group's time has
	// not reached but the clock has.
	exact bool
	tries int
}

// read gets a read its index; a reader then answers it.
func (s *Server) read(host Host, g *group, c *call, r readRequest, shard shardmap.ShardID, q *flotillav1.Request) {
	ready := &readyRead{call: c, group: g, shard: shard, request: r, exact: true}
	options := multiraft.ReadOptions{Lease: q.GetConsistency() == flotillav1.Consistency_LEASE, Follower: q.GetFollower()}
	if q.GetConsistency() == flotillav1.Consistency_STALE {
		options.Stale = time.Duration(q.GetStalenessMs()) * time.Millisecond
		options.Follower = true // where that does not do
		ready.exact = false
	}
	if options.Follower && !s.leads(host, g.id) {
		ready.exact = false // only a leader commits time
	}
	host.ReadIndex(g.id, options, func(_ raft.Index, err error) {
		if err != nil {
			s.answer(c, s.failure(host, g.id, err))
			return
		}
		s.queueRead(ready)
	})
}

func (s *Server) queueRead(r *readyRead) {
	if !s.reads.push(r) {
		s.answer(r.call, stopping())
	}
}

// answerReads answers reads of one group from one view of its state.
func (s *Server) answerReads(batch []*readyRead) {
	g := batch[0].group
	view, err := g.replica.View()
	if err != nil {
		for _, r := range batch {
			s.answer(r.call, &flotillav1.Response{Code: flotillav1.Code_INTERNAL, Message: err.Error()})
		}
		return
	}
	defer view.Close()
	state, err := groupState(view)
	for _, r := range batch {
		switch {
		case r.call.answered.Load(): // its time was up
		case err != nil:
			s.answer(r.call, s.readFailed(r, err))
		case r.call.room != nil && !r.call.room():
			s.answer(r.call, &flotillav1.Response{Code: flotillav1.Code_BUSY, Message: "too many answers wait to be sent on this connection"})
		default:
			s.answerRead(view, state, r)
		}
	}
}

func groupState(view *statestore.View) (groupRecord, error) {
	b, ok, err := view.Get(groupKey())
	if err != nil || !ok {
		return groupRecord{}, err
	}
	return decodeGroupRecord(b)
}

// readFailed: the store did not give what it should.
func (s *Server) readFailed(r *readyRead, err error) *flotillav1.Response {
	s.logger.Error("a read failed", "group", r.group.id, "shard", r.shard, "error", err)
	return &flotillav1.Response{Code: flotillav1.Code_INTERNAL, Message: err.Error()}
}

// answerRead answers from the view, whose ownership of the shard it checks, or
// has the group's time committed first.
func (s *Server) answerRead(view *statestore.View, state groupRecord, r *readyRead) {
	a, soonest, err := r.evaluate(view, state)
	switch {
	case err != nil:
		s.answer(r.call, s.readFailed(r, err))
	case soonest != 0 && r.exact && s.timeFirst(r, soonest):
	default:
		w := a.toWire(r.call.id)
		r.group.meter.answered(r.shard, largePart(w))
		s.answer(r.call, w)
	}
}

// timeTriesMax bounds how often a read has the time committed: a key that
// expires just then needs it once, twice if leadership changes.
const timeTriesMax = 3

// timeFirst: a key in the answer has expired by the clock, but not by the
// group's time; the time is committed, and the read comes again.
func (s *Server) timeFirst(r *readyRead, soonest int64) bool {
	host := *s.host.Load()
	if soonest > host.GroupClock(r.group.id) || r.tries >= timeTriesMax {
		return false
	}
	r.tries++
	host.ProposeUrgent(r.group.id, encodeCommand(timeOnly{}), func(res multiraft.Result) {
		switch {
		case res.Err == nil:
			s.queueRead(r)
		case errors.Is(res.Err, multiraft.ErrUnknown):
			// It may have been committed; to the read it does not matter.
			s.answer(r.call, &flotillav1.Response{Code: flotillav1.Code_UNAVAILABLE, Message: res.Err.Error()})
		default:
			s.answer(r.call, s.failure(host, r.group.id, res.Err))
		}
	})
	return true
}

// evaluate carries out the read. soonest is the earliest expiry of a key that
// the answer depends on, 0 for none.
func (r *readyRead) evaluate(view *statestore.View, state groupRecord) (a *answer, soonest int64, err error) {
	record, err := r.ownership(view)
	switch {
	case err != nil:
		return nil, 0, err
	case !state.born:
		return refusal(flotillav1.Code_UNAVAILABLE, "the group does not know its shards yet"), 0, nil
	case !record.state.serves():
		return notServed(r.group.id, r.shard, record), 0, nil
	}
	v := shardView{view: snapshotView{view}, shard: r.shard, inc: record.incarnation, time: state.time}
	note := func(expires int64) {
		if expires != 0 && (soonest == 0 || expires < soonest) {
			soonest = expires
		}
	}
	a = &answer{compared: true}
	for _, c := range r.request.compares {
		holds, found, err := v.holds(c)
		if err != nil {
			return nil, 0, err
		}
		if why := excess(v.looked, 0, answerBytesMax); why != "" {
			return refusal(flotillav1.Code_INVALID, why), 0, nil
		}
		note(found.expires)
		a.compared = a.compared && holds
	}
	ops := r.request.ops
	if !a.compared {
		ops = r.request.otherwise
	}
	a.results = make([]result, len(ops))
	size := 0
	for i := range ops {
		var expires int64
		if a.results[i], expires, err = v.read(&ops[i]); err != nil {
			return nil, 0, err
		}
		note(expires)
		size += a.results[i].size()
		if why := excess(v.looked, size, answerBytesMax); why != "" {
			return refusal(flotillav1.Code_INVALID, why), 0, nil
		}
	}
	return a, soonest, nil
}

// ownership is the shard's record in the view from which the read is answered.
func (r *readyRead) ownership(view *statestore.View) (shardRecord, error) {
	b, ok, err := view.Get(shardKey(r.shard))
	if err != nil || !ok {
		return shardRecord{}, err
	}
	return decodeShardRecord(b)
}

// size is about what a result takes in a message.
func (r *result) size() int {
	size := len(r.value)
	for _, p := range r.pairs {
		size += 32 + len(p.key) + len(p.value)
	}
	return size
}

// readQueue hands reads that may be answered to the readers, those of one
// group together. It is bounded by the reads that the host admits.
type readQueue struct {
	mu      sync.Mutex // guards what follows
	byGroup map[raft.GroupID][]*readyRead
	order   []raft.GroupID // groups with reads, the longest waiting first
	closed  bool
	arrived chan struct{} // has an element when there are reads
}

// readBatchMax bounds what is answered from one view.
const readBatchMax = 512

func newReadQueue() *readQueue {
	return &readQueue{byGroup: make(map[raft.GroupID][]*readyRead), arrived: make(chan struct{}, readers)}
}

// push queues a read; false: nobody will answer it any more.
func (q *readQueue) push(r *readyRead) bool {
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return false
	}
	waiting := q.byGroup[r.group.id]
	q.byGroup[r.group.id] = append(waiting, r)
	first := len(waiting) == 0
	if first {
		q.order = append(q.order, r.group.id)
	}
	q.mu.Unlock()
	if first {
		signal(q.arrived)
	}
	return true
}

// close takes no more reads, and returns those that are left.
func (q *readQueue) close() (left []*readyRead) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	for _, reads := range q.byGroup {
		left = append(left, reads...)
	}
	return left
}

// pop takes reads of the group that waits longest.
func (q *readQueue) pop() []*readyRead {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.order) == 0 {
		return nil
	}
	id := q.order[0]
	q.order = q.order[1:]
	batch := q.byGroup[id]
	if len(batch) > readBatchMax {
		q.byGroup[id] = batch[readBatchMax:]
		q.order = append(q.order, id)
		return batch[:readBatchMax:readBatchMax]
	}
	delete(q.byGroup, id)
	return batch
}

// run answers reads until ctx ends.
func (q *readQueue) run(ctx context.Context, answer func([]*readyRead)) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-q.arrived:
		}
		for batch := q.pop(); batch != nil; batch = q.pop() {
			answer(batch)
		}
	}
}
