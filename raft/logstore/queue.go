package logstore

import (
	"runtime"
	"sync"

	"github.com/flotilla-kv/flotilla/raft"
)

// request is what one caller wants of the writer: writes, or a change of the
// store's own records (control, which runs in the writer).
type request struct {
	writes  []Write
	control func(*turn) error
	bytes   int
	done    func(error)
}

// queue holds what the writer has not taken yet. It is bounded in bytes: push
// blocks above the limit.
type queue struct {
	limit int

	mu       sync.Mutex // guards all below
	changed  sync.Cond  // something was queued, or the queue ended
	room     sync.Cond  // something was taken, or the queue ended
	requests []request
	compact  map[raft.ReplicaKey]beginning // the highest asked for
	bytes    int
	ended    error // nothing is taken in any more
}

func newQueue(limit int) *queue {
	q := &queue{limit: limit, compact: map[raft.ReplicaKey]beginning{}}
	q.changed.L, q.room.L = &q.mu, &q.mu
	return q
}

// push queues r, waiting for room. An error says why it was not.
func (q *queue) push(r request) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.ended == nil && q.bytes > q.limit {
		q.room.Wait()
	}
	if q.ended != nil {
		return q.ended
	}
	q.requests = append(q.requests, r)
	q.bytes += r.bytes
	q.changed.Signal()
	return nil
}

// pushCompact queues the wish that the log of id begins behind b.
func (q *queue) pushCompact(id raft.ReplicaKey, b beginning) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.ended == nil && q.compact[id].index < b.index {
		q.compact[id] = b
		q.changed.Signal()
	}
}

// take waits for work and takes all of it, up to maxBytes beyond the first
// request. ok is false when the queue has ended and is empty.
func (q *queue) take(maxBytes int) (requests []request, compact map[raft.ReplicaKey]beginning, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.requests) == 0 && len(q.compact) == 0 {
		if q.ended != nil {
			return nil, nil, false
		}
		q.changed.Wait()
	}
	q.mu.Unlock()
	runtime.Gosched() // who runs just now, answered by the frame before or woken with who queued this, shares the frame
	q.mu.Lock()
	n, bytes := 0, 0
	for n < len(q.requests) && (n == 0 || bytes+q.requests[n].bytes <= maxBytes) {
		bytes += q.requests[n].bytes
		n++
	}
	requests = q.requests[:n:n]
	q.requests = q.requests[n:]
	if len(q.requests) == 0 {
		q.requests = nil
	}
	q.bytes -= bytes
	if len(q.compact) > 0 {
		compact, q.compact = q.compact, map[raft.ReplicaKey]beginning{}
	}
	q.room.Broadcast()
	return requests, compact, true
}

// end refuses what comes from now on, with err; the first call counts. What is
// queued stays.
func (q *queue) end(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.ended == nil {
		q.ended = err
	}
	q.changed.Broadcast()
	q.room.Broadcast()
}

// drop takes out all that is queued, for a store that has failed.
func (q *queue) drop() []request {
	q.mu.Lock()
	defer q.mu.Unlock()
	requests := q.requests
	q.requests, q.bytes, q.compact = nil, 0, map[raft.ReplicaKey]beginning{}
	return requests
}
