package multiraft

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/raft/logstore"
	"github.com/flotilla-kv/flotilla/raft/statestore"
	"github.com/flotilla-kv/flotilla/raft/transport"
)

// Log is the node's durable log; *logstore.Store is one.
type Log interface {
	LogRecords
	LogEntries
}

// LogRecords are the log store's records of replicas. Its methods return when
// the change is durable.
type LogRecords interface {
	Create(id raft.ReplicaKey, first raft.Membership) error
	Remove(id raft.ReplicaKey) error
	Replicas() []logstore.Record
	MarkSuspect() error
	ClearSuspect(id raft.ReplicaKey) error
}

// LogEntries are the logs themselves.
type LogEntries interface {
	Load(id raft.ReplicaKey) (logstore.State, error)
	Reader(id raft.ReplicaKey) raft.LogReader
	Append(writes []logstore.Write, done func(error))
	Compact(id raft.ReplicaKey, through raft.Index)
	Sizes() map[raft.ReplicaKey]int64
}

// States is the node's state store; *statestore.Store is one, on Pebble or as
// the model.
type States interface {
	Replica(id raft.ReplicaKey) *statestore.Replica
	EachApplied(visit func(raft.ReplicaKey, raft.Index)) error
	EachDurable(visit func(raft.ReplicaKey, raft.Index)) error
	AsyncFlush() error
}

// Transport carries messages and snapshots to other nodes and knows which are
// alive; *transport.Transport is one. Its handler is the Host.
type Transport interface {
	Send(to raft.NodeID, ms []raft.Message)
	SendSnapshot(ctx context.Context, to raft.NodeID, h transport.SnapshotHeader, next func() ([]byte, error)) error
	Alive(raft.NodeID) bool
	Clock(raft.NodeID) (unixMs int64, ok bool) // of a peer that is alive
	Clocks() []int64                           // the node's own and those of live peers, unix ms
}

// Host runs the replicas of this node.
type Host struct {
	opts     Options
	log      *slog.Logger
	workers  []*worker
	appliers *appliers
	sends    *sends
	trimmer  *trimmer
	scratch  applyScratch // RunOnce's

	replicas sync.Map // raft.GroupID -> *replica

	mu       sync.Mutex // guards all below
	rand     *rand.Rand
	recorded map[raft.ReplicaKey]raft.Membership // the log store's records, with the first membership
	claims   map[raft.GroupID]bool               // being started or removed
	cause    error                               // why the host failed
	closed   bool

	inFlight atomic.Int64 // admitted bytes of all groups
	reads    atomic.Int64 // not yet answered
	// slowUntil is until when others should lead, unix ns; see slowDisk.
	slowUntil atomic.Int64
	stats     counters
}

// Open starts the host without replicas; Start adds them. Whatever the stores
// hold of replicas that the log store does not know any more is removed.
func Open(opts Options) (*Host, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	h := &Host{
		opts:     opts,
		log:      opts.Logger,
		rand:     opts.Rand,
		recorded: make(map[raft.ReplicaKey]raft.Membership),
		claims:   make(map[raft.GroupID]bool),
	}
	if err := h.reconcileStores(); err != nil {
		return nil, err
	}
	h.appliers, h.sends, h.trimmer = newAppliers(h), newSends(h), newTrimmer(h)
	for range opts.Workers {
		h.workers = append(h.workers, newWorker(h))
	}
	if !opts.Manual {
		for _, w := range h.workers {
			go w.loop()
		}
		h.appliers.start(opts.Appliers)
		h.trimmer.start()
	}
	return h, nil
}

// reconcileStores compares the two stores after a start: state without a
// record is what a Remove left behind, and state beyond the end of its log
// without a snapshot's mark means that the log was cut.
func (h *Host) reconcileStores() error {
	for _, record := range h.opts.Log.Replicas() {
		h.recorded[record.ID] = record.First
	}
	applied := make(map[raft.ReplicaKey]raft.Index)
	if err := h.opts.States.EachApplied(func(key raft.ReplicaKey, index raft.Index) { applied[key] = index }); err != nil {
		return err
	}
	cut := false
	for key, index := range applied {
		state := h.opts.States.Replica(key)
		if _, known := h.recorded[key]; !known {
			h.log.Info("state of a removed replica is dropped", "group", key.Group, "replica", key.Replica)
			if err := state.Destroy(); err != nil {
				return err
			}
			continue
		}
		if index <= h.opts.Log.Reader(key).LastIndex() {
			continue
		}
		_, installed, err := state.SnapshotMark()
		if err != nil {
			return err
		}
		cut = cut || !installed
	}
	if cut {
		h.log.Warn("the state is ahead of the log: the log was cut, all replicas are suspect")
		return h.opts.Log.MarkSuspect()
	}
	return nil
}

// now is the host's clock.
func (h *Host) now() time.Time { return h.opts.Clock() }

func (h *Host) find(g raft.GroupID) (*replica, bool) {
	r, ok := h.replicas.Load(g)
	if !ok {
		return nil, false
	}
	return r.(*replica), true
}

func (h *Host) workerOf(g raft.GroupID) *worker { return h.workers[uint64(g)%uint64(len(h.workers))] }

// alive says whether a node is, as far as this one knows.
func (h *Host) alive(node raft.NodeID) bool {
	return node == h.opts.Self || h.opts.Transport.Alive(node)
}

func (h *Host) randDuration(below time.Duration) time.Duration {
	return time.Duration(h.randN(int(max(below, 1))))
}

func (h *Host) randN(n int) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.rand.IntN(n)
}

// Propose asks the group's leader, if it is here, to commit command. done is
// called once, from any of the host's goroutines or, if the answer is known at
// once, from the caller's; it must not block. command is kept until then.
// Errors: see errors.go; only ErrUnknown leaves open whether it happens.
func (h *Host) Propose(g raft.GroupID, command []byte, done func(Result)) {
	h.propose(g, command, done, true)
}

// ProposeUrgent is Propose for what time, membership and moves need: it is
// never refused for load.
func (h *Host) ProposeUrgent(g raft.GroupID, command []byte, done func(Result)) {
	h.propose(g, command, done, false)
}

// proposalOverheadBytes is what a proposal costs beside its command.
const proposalOverheadBytes = 128

func (h *Host) propose(g raft.GroupID, command []byte, done func(Result), bounded bool) {
	r, ok := h.find(g)
	if !ok {
		done(Result{Err: ErrNoGroup})
		return
	}
	if len(command) > h.opts.Limits.CommandBytesMax {
		done(Result{Err: fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, len(command), h.opts.Limits.CommandBytesMax)})
		return
	}
	p := proposal{r: r, command: command, done: done}
	if bounded {
		p.size = int64(len(command)) + proposalOverheadBytes
		if !h.admit(r, p.size) {
			h.stats.busy.Add(1)
			done(Result{Err: ErrBusy})
			return
		}
	}
	if !r.worker.inbox.propose(p) {
		h.answer(p, Result{Err: ErrStopped})
	}
}

// admit counts size against what the group and the node may have under way.
// What is alone is always admitted.
func (h *Host) admit(r *replica, size int64) bool {
	if group := r.inFlight.Add(size); group > h.opts.Limits.GroupBytes && group > size {
		r.inFlight.Add(-size)
		return false
	}
	if node := h.inFlight.Add(size); node > h.opts.Limits.NodeBytes && node > size {
		h.inFlight.Add(-size)
		r.inFlight.Add(-size)
		return false
	}
	return true
}

// answer ends a proposal.
func (h *Host) answer(p proposal, res Result) {
	if p.size != 0 {
		p.r.inFlight.Add(-p.size)
		h.inFlight.Add(-p.size)
	}
	p.done(res)
}

func (h *Host) answerAll(w *waiter, res Result) {
	for i := range w.props {
		h.answer(w.props[i], res)
	}
}

// answerLost ends proposals whose outcome cannot be told, in log order.
func (h *Host) answerLost(lost []*waiter, err error) {
	for _, head := range lost {
		for w := head; w != nil; w = w.next {
			h.answerAll(w, Result{Err: err})
		}
	}
}

// ReadIndex calls done with an index that is applied here, and up to which
// everything was committed when ReadIndex was called: what the state shows
// from then on is linearizable, or as old as opt.Stale allows. done is called
// as Propose's is.
func (h *Host) ReadIndex(g raft.GroupID, opt ReadOptions, done func(raft.Index, error)) {
	r, ok := h.find(g)
	if !ok {
		done(0, ErrNoGroup)
		return
	}
	now := h.now()
	if opt.Stale > 0 {
		if index, ok := r.recent(now, opt.Stale); ok {
			done(index, nil)
			return
		}
	}
	rd := read{r: r, opt: opt, done: done, since: now}
	if h.reads.Add(1) > h.opts.Limits.ReadsMax {
		h.stats.busy.Add(1)
		h.answerRead(rd, 0, ErrBusy)
		return
	}
	if !r.worker.inbox.read(rd) {
		h.answerRead(rd, 0, ErrStopped)
	}
}

func (h *Host) answerRead(rd read, index raft.Index, err error) {
	h.reads.Add(-1)
	rd.done(index, err)
}

// readsReady answers reads whose index is applied; those of a lease go back to
// the worker, which looks whether the lease still stands.
func (h *Host) readsReady(r *replica, index raft.Index, ready []read) {
	for _, rd := range ready {
		if rd.leased == 0 {
			h.answerRead(rd, index, nil)
		} else if !r.worker.inbox.read(rd) {
			h.answerRead(rd, 0, ErrStopped)
		}
	}
}

// RunOnce runs one turn of everything, for a host without goroutines. It
// returns false if nothing is left to do before time moves on or something
// comes in.
func (h *Host) RunOnce() (more bool) {
	for _, w := range h.workers {
		w.turn()
	}
	for r := h.appliers.next(false); r != nil; r = h.appliers.next(false) {
		h.appliers.turn(r, &h.scratch)
	}
	h.sends.runManual()
	h.trimmer.turn()
	return h.Pending()
}

// Pending says that something waits for a turn, for a host without goroutines.
func (h *Host) Pending() bool {
	for _, w := range h.workers {
		if w.inbox.pending() || len(w.touched) > 0 {
			return true
		}
	}
	return false
}

// fail stops the host for a reason that leaves no safe way on: a store has
// failed, or a state machine met what it must not skip. It does not wait.
func (h *Host) fail(err error) {
	h.mu.Lock()
	first := h.cause == nil && !h.closed
	if first {
		h.cause = err
	}
	h.mu.Unlock()
	if !first {
		return
	}
	h.log.Error("host stops", "err", err)
	for _, w := range h.workers {
		w.end()
	}
	if h.opts.OnFatal == nil {
		return
	}
	if h.opts.Manual {
		h.opts.OnFatal(err)
	} else {
		go h.opts.OnFatal(err)
	}
}

// Close stops the host: what is under way ends with ErrUnknown or ErrStopped.
// The stores and the transport stay open; they are their opener's, who stops
// the transport first.
func (h *Host) Close() {
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	h.sends.close()
	for _, w := range h.workers {
		w.end()
		<-w.stopped
	}
	h.appliers.close()
	h.trimmer.close()
}
