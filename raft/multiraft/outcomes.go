package multiraft

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/flotilla-kv/flotilla/raft"
)

// Result is what became of a proposal.
type Result struct {
	Value any // what the state machine left for the command; nil with an error
	Index raft.Index
	Term  raft.Term
	Err   error // nil, or one of errors.go
}

// proposal is one command on its way.
type proposal struct {
	r       *replica
	command []byte
	done    func(Result)
	size    int64 // what admission has counted for it; 0: never refused for load
}

// waiter stands at (index, term) for the proposals that travel in that entry.
// A second one at the same index, of another term, is linked behind it.
type waiter struct {
	index raft.Index
	term  raft.Term
	since time.Time
	props []proposal
	next  *waiter
}

// readWaiter stands until index is applied.
type readWaiter struct {
	index raft.Index
	reads []read
}

// outcomes is what waits for a replica's applied index. The worker adds, the
// applier resolves; nobody is called back under the lock.
type outcomes struct {
	mu      sync.Mutex // guards all below
	applied raft.Index
	waiters map[raft.Index]*waiter
	count   int // proposals in waiters
	reads   []readWaiter
}

// add lets props wait for the entry at (index, term).
func (o *outcomes) add(index raft.Index, term raft.Term, props []proposal, now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.waiters == nil {
		o.waiters = make(map[raft.Index]*waiter)
	}
	o.waiters[index] = &waiter{index: index, term: term, since: now, props: props, next: o.waiters[index]}
	o.count += len(props)
}

// take removes what waits at index.
func (o *outcomes) take(index raft.Index) *waiter {
	o.mu.Lock()
	defer o.mu.Unlock()
	w := o.waiters[index]
	if w == nil {
		return nil
	}
	delete(o.waiters, index)
	for x := w; x != nil; x = x.next {
		o.count -= len(x.props)
	}
	return w
}

// advance notes that everything through index is applied and returns the reads
// that waited for that.
func (o *outcomes) advance(index raft.Index) (ready []read) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.applied = max(o.applied, index)
	kept := o.reads[:0]
	for _, w := range o.reads {
		if w.index <= o.applied {
			ready = append(ready, w.reads...)
		} else {
			kept = append(kept, w)
		}
	}
	clear(o.reads[len(kept):])
	o.reads = kept
	return ready
}

// read lets reads wait for index; false: it is applied already.
func (o *outcomes) read(index raft.Index, reads []read) (waits bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if index <= o.applied {
		return false
	}
	o.reads = append(o.reads, readWaiter{index: index, reads: reads})
	return true
}

// jump advances to index by a snapshot: what waits at or below it can no
// longer be told. It returns those waiters and the reads that are ready.
func (o *outcomes) jump(index raft.Index) (lost []*waiter, ready []read) {
	return o.remove(func(i raft.Index, _ *waiter) bool { return i <= index }), o.advance(index)
}

// expire returns the waiters that stand since before limit, and the reads
// asked before it.
func (o *outcomes) expire(limit time.Time) (lost []*waiter, late []read) {
	lost = o.remove(func(_ raft.Index, w *waiter) bool { return w.since.Before(limit) })
	o.mu.Lock()
	defer o.mu.Unlock()
	keptWaiters := o.reads[:0]
	for _, w := range o.reads {
		var kept []read
		for _, rd := range w.reads {
			if rd.since.Before(limit) {
				late = append(late, rd)
			} else {
				kept = append(kept, rd)
			}
		}
		if len(kept) > 0 {
			keptWaiters = append(keptWaiters, readWaiter{index: w.index, reads: kept})
		}
	}
	clear(o.reads[len(keptWaiters):])
	o.reads = keptWaiters
	return lost, late
}

// drain empties it.
func (o *outcomes) drain() (lost []*waiter, reads []read) {
	lost = o.remove(func(raft.Index, *waiter) bool { return true })
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, w := range o.reads {
		reads = append(reads, w.reads...)
	}
	o.reads = nil
	return lost, reads
}

// remove takes out the chains whose head matches, in the order of the log.
func (o *outcomes) remove(match func(raft.Index, *waiter) bool) (removed []*waiter) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for index, w := range o.waiters {
		if !match(index, w) {
			continue
		}
		delete(o.waiters, index)
		for x := w; x != nil; x = x.next {
			o.count -= len(x.props)
		}
		removed = append(removed, w)
	}
	slices.SortFunc(removed, func(a, b *waiter) int { return cmp.Compare(a.index, b.index) })
	return removed
}

// waiting tells how many proposals and reads wait.
func (o *outcomes) waiting() (proposals, reads int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, w := range o.reads {
		reads += len(w.reads)
	}
	return o.count, reads
}
