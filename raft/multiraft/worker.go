package multiraft

import (
	"cmp"
	"maps"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/raft/logstore"
)

// worker owns the cores of its groups. All its methods belong to one
// goroutine; its inbox is for everybody.
type worker struct {
	h     *Host
	inbox *inbox
	spare turnInput // memory for the inbox

	groups map[raft.GroupID]*replica
	awake  []*replica // those that are ticked
	ticked time.Time  // up to here ticks have been given

	// Of the turn under way.
	now     time.Time
	touched []*replica
	again   []*replica // to be touched by the next turn
	writes  []logstore.Write
	acks    []ack
	out     map[raft.NodeID][]raft.Message
	outTo   []raft.NodeID // keys of out, in the order of first use

	unsynced int64 // bytes of writes under way
	ending   sync.Once
	stop     chan struct{}
	stopped  chan struct{} // closed when all that waited here is answered
}

func newWorker(h *Host) *worker {
	return &worker{
		h:       h,
		inbox:   newInbox(h.opts.Limits.InboxBytes),
		groups:  make(map[raft.GroupID]*replica),
		out:     make(map[raft.NodeID][]raft.Message),
		stop:    make(chan struct{}),
		stopped: make(chan struct{}),
	}
}

// loop runs turns until stop; between them it waits for word, or for the next
// tick if a group is awake.
func (w *worker) loop() {
	defer w.finish()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		w.turn()
		var tick <-chan time.Time
		if len(w.awake) > 0 {
			timer.Reset(w.ticked.Add(w.h.opts.Timing.Tick).Sub(w.h.now()))
			tick = timer.C
		}
		select {
		case <-w.inbox.wake:
			runtime.Gosched() // who is about to leave word shares the turn
		case <-tick:
		case <-w.stop:
			return
		}
	}
}

// end stops the worker; it does not wait.
func (w *worker) end() {
	w.ending.Do(func() {
		close(w.stop)
		if w.h.opts.Manual {
			w.finish()
		}
	})
}

// finish answers all that waits. Orders are not run any more: who waits for
// one sees that the worker has stopped.
func (w *worker) finish() {
	defer close(w.stopped)
	in := w.inbox.close()
	for i := range in.proposals {
		w.h.answer(in.proposals[i], Result{Err: ErrStopped})
	}
	for i := range in.reads {
		w.h.answerRead(in.reads[i], 0, ErrStopped)
	}
	for _, r := range w.sorted() {
		r.end()
	}
}

// sorted are the worker's replicas in the order of their groups.
func (w *worker) sorted() []*replica {
	return slices.SortedFunc(maps.Values(w.groups), func(a, b *replica) int { return cmp.Compare(a.key.Group, b.key.Group) })
}

// turn is one turn as drawn in doc.go.
func (w *worker) turn() {
	in := w.inbox.take(w.spare)
	w.now = w.h.now() // behind take: see doc.go
	w.takeAcks(in.acks)
	w.takeApplied(in.applied)
	w.takeMessages(in.messages)
	for _, order := range in.orders {
		order()
	}
	w.takeProposals(in.proposals)
	w.takeReads(in.reads)
	w.tick()
	for _, r := range w.touched {
		w.advance(r)
	}
	w.nextTouched()
	w.send()
	w.persist()
	in.reset()
	w.spare = in
	w.h.stats.turns.Add(1)
	if observe := w.h.opts.Observe.Turn; observe != nil {
		observe(w.h.now().Sub(w.now))
	}
}

// touch puts r among those that this turn advances.
func (w *worker) touch(r *replica) {
	if !r.touched && !r.gone && !r.frozen {
		r.touched = true
		w.touched = append(w.touched, r)
	}
}

// nextTouched begins the next turn's list with those that are not done.
func (w *worker) nextTouched() {
	clear(w.touched)
	w.touched = w.touched[:0]
	for _, r := range w.again {
		w.touch(r)
	}
	clear(w.again)
	w.again = w.again[:0]
	if len(w.touched) > 0 {
		w.inbox.signal()
	}
}

func (w *worker) takeAcks(acks []ack) {
	for _, a := range acks {
		w.unsynced -= a.bytes
		switch {
		case a.r.gone:
		case a.r.frozen:
			a.r.heldAcks = append(a.r.heldAcks, a.ack)
		default:
			a.r.core.Persisted(a.ack)
			w.touch(a.r)
		}
	}
}

func (w *worker) takeApplied(replicas []*replica) {
	for _, r := range replicas {
		if r.gone || r.frozen { // frozen: its state is being replaced by a later one
			continue
		}
		r.core.Applied(r.apply.appliedIndex())
		w.touch(r)
	}
}

func (w *worker) takeMessages(messages []arrived) {
	for i := range messages {
		m := &messages[i].m
		r := w.groups[m.Group]
		if r == nil || r.key.Replica != m.To {
			w.h.stats.unknownGroup.Add(1)
			continue
		}
		if r.frozen || w.full() && carriesEntries(m) {
			w.h.stats.messagesDropped.Add(1)
			continue
		}
		r.heard(m.From, messages[i].from)
		if err := r.core.Step(*m); err != nil {
			w.h.stats.messagesRefused.Add(1)
			w.h.log.Debug("message refused", "group", m.Group, "from", m.From, "err", err)
			continue
		}
		w.touch(r)
	}
}

// full says that the disk is behind: the log takes no new entries for now.
func (w *worker) full() bool {
	return w.unsynced > w.h.opts.Limits.LogQueueBytes/int64(len(w.h.workers))
}

func carriesEntries(m *raft.Message) bool {
	a, ok := m.Body.(*raft.AppendEntries)
	return ok && len(a.Entries) > 0
}

func (w *worker) takeProposals(props []proposal) {
	for i := range props {
		r := props[i].r
		if r.gone {
			w.h.answer(props[i], Result{Err: ErrStopped})
			continue
		}
		r.queued = append(r.queued, props[i])
		w.touch(r)
	}
}

func (w *worker) takeReads(reads []read) {
	for i := range reads {
		r := reads[i].r
		if r.gone {
			w.h.answerRead(reads[i], 0, ErrStopped)
			continue
		}
		r.asked = append(r.asked, reads[i])
		w.touch(r)
	}
}

// advance carries r through this turn: proposals and reads go in, its Ready
// comes out.
func (w *worker) advance(r *replica) {
	r.touched = false
	if r.gone || r.frozen {
		return
	}
	if len(r.queued) > 0 || len(r.asked) > 0 {
		r.idle = 0
	}
	r.propose()
	r.askReads()
	if r.core.HasReady() {
		w.take(r, r.core.Ready())
	}
	r.settle()
	if r.core.HasReady() { // a Ready is bounded: the next turn goes on
		w.again = append(w.again, r)
	}
}

// take distributes what the core wants done.
func (w *worker) take(r *replica, rd raft.Ready) {
	for i := range rd.Messages {
		w.post(r, &rd.Messages[i])
	}
	if rd.Write.Seq != 0 {
		w.write(r, rd.Write)
	}
	if len(rd.Committed) > 0 {
		r.idle = 0
		w.h.appliers.push(r, rd.Committed)
	}
	for _, rs := range rd.ReadStates {
		r.answerRound(rs)
	}
	for _, m := range rd.Snapshots {
		w.h.sends.enqueue(r, m)
	}
}

// post puts a message among those that go out at the end of the turn.
func (w *worker) post(r *replica, m *raft.Message) {
	node, ok := r.nodeOf(m.To)
	if !ok {
		w.h.stats.messagesDropped.Add(1)
		return
	}
	ms := w.out[node]
	if len(ms) == 0 {
		w.outTo = append(w.outTo, node)
	}
	w.out[node] = append(ms, *m)
}

// write adds one group's write to the turn's Append.
func (w *worker) write(r *replica, write raft.Write) {
	if len(write.Entries) > 0 {
		r.idle = 0
	}
	a := ack{r: r, ack: raft.WriteAck{Seq: write.Seq}, bytes: messageOverheadBytes + entriesBytes(write.Entries)}
	if n := len(write.Entries); n > 0 {
		a.ack.Last, a.ack.LastTerm = write.Entries[n-1].Index, write.Entries[n-1].Term
	}
	w.unsynced += a.bytes
	w.writes = append(w.writes, logstore.Write{ID: r.key, Write: write})
	w.acks = append(w.acks, a)
}

// send hands the turn's messages to the transport.
func (w *worker) send() {
	for _, node := range w.outTo {
		w.h.opts.Transport.Send(node, w.out[node])
		w.out[node] = emptied(w.out[node]) // the transport has copied it
	}
	w.outTo = w.outTo[:0]
}

// persist hands the turn's writes to the log store as one Append.
func (w *worker) persist() {
	if len(w.writes) == 0 {
		return
	}
	acks := slices.Clone(w.acks)
	w.h.opts.Log.Append(w.writes, func(err error) {
		if err != nil {
			w.h.fail(err)
			return
		}
		w.inbox.acked(acks)
	})
	w.h.stats.appends.Add(1)
	w.writes = nil // the store keeps the slice
	clear(w.acks)
	w.acks = w.acks[:0]
}

// do runs fn in the worker, between steps, and waits for it. False: the worker
// has ended and fn did not and will not run. Never call it from a worker.
func (w *worker) do(fn func()) bool {
	if w.h.opts.Manual {
		w.now = w.h.now()
		fn()
		return true
	}
	done := make(chan struct{})
	if !w.inbox.order(func() { fn(); close(done) }) {
		return false
	}
	select {
	case <-done:
		return true
	case <-w.stopped:
	}
	// The worker's last act runs no orders; one of its last turn is done.
	select {
	case <-done:
		return true
	default:
		return false
	}
}
