package multiraft

import (
	"fmt"
	"sync"

	"github.com/flotilla-kv/flotilla/raft"
)

// applyQueue holds what a replica is to apply: committed and durable entries,
// bounded by what the core hands out ahead (Limits.UnappliedBytes). One
// applier at a time works on a replica.
type applyQueue struct {
	mu        sync.Mutex // guards all below
	idle      sync.Cond  // running or paused became false
	entries   []raft.Entry
	applied   raft.Index
	scheduled bool // in the pool's list, or running
	running   bool
	paused    bool
	closed    bool
}

func (q *applyQueue) init(applied raft.Index) {
	q.idle.L = &q.mu
	q.applied = applied
}

// push queues entries; true: the caller has to put the replica into the pool.
func (q *applyQueue) push(entries []raft.Entry) (schedule bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.entries) == 0 {
		q.entries = entries[:len(entries):len(entries)]
	} else {
		q.entries = append(q.entries, entries...)
	}
	return q.claim()
}

// claim says whether the replica has to be put into the pool, and notes that
// it is.
func (q *applyQueue) claim() bool {
	if q.scheduled || q.paused || q.closed || len(q.entries) == 0 {
		return false
	}
	q.scheduled = true
	return true
}

// begin takes entries of up to maxBytes, one at least; none: nothing to do.
func (q *applyQueue) begin(maxBytes int) []raft.Entry {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.paused || q.closed || len(q.entries) == 0 {
		q.scheduled = false
		return nil
	}
	n, bytes := 0, 0
	for n < len(q.entries) && (n == 0 || bytes+len(q.entries[n].Data) <= maxBytes) {
		bytes += len(q.entries[n].Data) + messageOverheadBytes
		n++
	}
	taken := q.entries[:n:n]
	q.entries = q.entries[n:]
	q.running = true
	return taken
}

// noteApplied notes that everything through index is applied and committed.
func (q *applyQueue) noteApplied(index raft.Index) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.applied = index
}

// end closes what begin began; true: the replica goes back into the pool. If
// that failed, nothing may ever follow it.
func (q *applyQueue) end(ok bool) (again bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = q.closed || !ok
	q.running, q.scheduled = false, false
	q.idle.Broadcast()
	return q.claim()
}

// pause lets nothing begin and waits for what runs.
func (q *applyQueue) pause() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.paused = true
	for q.running {
		q.idle.Wait()
	}
}

// resume lets go on; true: the replica has to be put into the pool.
func (q *applyQueue) resume() (schedule bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.paused = false
	q.idle.Broadcast()
	return q.claim()
}

// jump notes that the state was replaced by that at index: what lies at or
// before it is not applied again. Only while paused.
func (q *applyQueue) jump(index raft.Index) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.applied = index
	for len(q.entries) > 0 && q.entries[0].Index <= index {
		q.entries = q.entries[1:]
	}
}

// close lets nothing begin ever again and waits for what runs, and for whoever
// has paused it.
func (q *applyQueue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.entries = nil
	for q.running || q.paused {
		q.idle.Wait()
	}
}

func (q *applyQueue) appliedIndex() raft.Index {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.applied
}

// appliers is the pool: each replica with work is in its list once.
type appliers struct {
	h    *Host
	wait sync.WaitGroup

	mu     sync.Mutex // guards all below
	more   sync.Cond
	ready  []*replica
	closed bool
}

func newAppliers(h *Host) *appliers {
	a := &appliers{h: h}
	a.more.L = &a.mu
	return a
}

func (a *appliers) start(n int) {
	for range n {
		a.wait.Add(1)
		go a.loop()
	}
}

// push queues entries of r and puts it into the pool if it is not there.
func (a *appliers) push(r *replica, entries []raft.Entry) {
	if r.apply.push(entries) {
		a.schedule(r)
	}
}

func (a *appliers) schedule(r *replica) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ready = append(a.ready, r)
	a.more.Signal()
}

// loop runs apply turns until the pool closes.
func (a *appliers) loop() {
	defer a.wait.Done()
	var s applyScratch
	for {
		r := a.next(true)
		if r == nil {
			return
		}
		a.turn(r, &s)
	}
}

// next takes the replica that has waited longest; nil: closed, or none and
// wait is false.
func (a *appliers) next(wait bool) *replica {
	a.mu.Lock()
	defer a.mu.Unlock()
	for len(a.ready) == 0 && wait && !a.closed {
		a.more.Wait()
	}
	if len(a.ready) == 0 || a.closed {
		return nil
	}
	r := a.ready[0]
	a.ready[0] = nil
	a.ready = a.ready[1:]
	if len(a.ready) == 0 {
		a.ready = nil
	}
	return r
}

func (a *appliers) close() {
	a.mu.Lock()
	a.closed = true
	a.more.Broadcast()
	a.mu.Unlock()
	a.wait.Wait()
}

// applyScratch is memory that an applier uses again and again.
type applyScratch struct {
	commands [][]byte
	results  []any
	answers  []answer
	// membership is the last one that the batch applied.
	membership *raft.Membership
}

// reset lets go of what the memory refers to.
func (s *applyScratch) reset() {
	s.commands, s.results, s.answers = emptied(s.commands), emptied(s.results), emptied(s.answers)
	s.membership = nil
}

// answer is a waiter whose entry was applied, with where its results lie.
type answer struct {
	w       *waiter
	term    raft.Term // of the entry applied at w.index
	results []any
}

// turn applies one batch of r's entries and hands out what they bring. Only
// then the next batch of the replica may begin: results leave in log order.
func (a *appliers) turn(r *replica, s *applyScratch) {
	entries := r.apply.begin(a.h.opts.Limits.ApplyBatchBytes)
	if len(entries) == 0 {
		return
	}
	ok := a.batch(r, entries, s)
	s.reset()
	if r.apply.end(ok) {
		a.schedule(r)
	}
}

// batch is false if the host stops over it; nothing follows it then.
func (a *appliers) batch(r *replica, entries []raft.Entry, s *applyScratch) (ok bool) {
	from := a.h.now()
	last := entries[len(entries)-1].Index
	if err := r.applyEntries(entries, s); err != nil {
		a.h.fail(fmt.Errorf("group %d replica %d: applying %d..%d: %w", r.key.Group, r.key.Replica, entries[0].Index, last, err))
		for i := range s.answers {
			a.h.answerLost([]*waiter{s.answers[i].w}, ErrUnknown)
		}
		return false
	}
	r.apply.noteApplied(last)
	a.h.stats.entriesApplied.Add(uint64(len(entries)))
	a.h.trimmer.noteApply(from)
	if observe := a.h.opts.Observe.Apply; observe != nil {
		observe(a.h.now().Sub(from))
	}
	a.deliver(r, last, s)
	return true
}

// deliver answers proposals and reads that the batch through index has
// decided, and tells the worker.
func (a *appliers) deliver(r *replica, index raft.Index, s *applyScratch) {
	now := a.h.now()
	for i := range s.answers {
		an := &s.answers[i]
		for w := an.w; w != nil; w = w.next {
			if w.term != an.term {
				a.h.answerAll(w, Result{Err: r.replaced()})
				continue
			}
			if observe := a.h.opts.Observe.Commit; observe != nil {
				observe(now.Sub(w.since))
			}
			for k := range w.props {
				a.h.answer(w.props[k], Result{Value: an.results[k], Index: w.index, Term: w.term})
			}
		}
	}
	a.h.readsReady(r, index, r.outcomes.advance(index))
	if s.membership != nil {
		m := *s.membership
		r.worker.inbox.order(func() { r.membershipApplied(m) })
	}
	r.worker.inbox.wasApplied(r)
}

// replaced is the answer to a proposal in whose place another entry was
// committed: it has no effect, and never will.
func (r *replica) replaced() error {
	v := r.published.Load()
	return &NotLeaderError{Group: r.key.Group, Leader: v.Leader, Term: v.Term}
}
