package multiraft

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/raft/statestore"
	"github.com/flotilla-kv/flotilla/raft/transport"
)

// sendPause is how long a snapshot that failed is not tried again.
const sendPause = time.Second

// send is one snapshot for one follower.
type send struct {
	r         *replica
	to        raft.Member
	notBefore time.Time
}

// sends streams snapshots to followers, at most max at once. Each follower of
// a replica is in here once at most; it stays until the snapshot is installed,
// refused, or the replica no longer leads. Who waits for a dead node does so
// without cost.
type sends struct {
	h      *Host
	max    int
	ctx    context.Context
	cancel context.CancelFunc
	wait   sync.WaitGroup

	mu      sync.Mutex // guards all below
	waiting []send
	running int
	marks   map[sendKey]raft.Index // all that wait or run; the log is kept behind these. 0: not begun
	closed  bool
}

type sendKey struct {
	of raft.ReplicaKey
	to raft.ReplicaID
}

func newSends(h *Host) *sends {
	s := &sends{h: h, max: h.opts.Limits.SnapshotSendsMax, marks: make(map[sendKey]raft.Index)}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// enqueue takes over one order of a core.
func (s *sends) enqueue(r *replica, to raft.Member) {
	key := sendKey{r.key, to.Replica}
	s.mu.Lock()
	_, known := s.marks[key]
	if !known {
		s.marks[key] = 0
		s.waiting = append(s.waiting, send{r: r, to: to})
	}
	s.mu.Unlock()
	s.kick()
}

// kick begins what can begin.
func (s *sends) kick() {
	if s.h.opts.Go == nil {
		return
	}
	now := s.h.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.waiting {
		if s.running == s.max || s.closed {
			return
		}
		if s.canBegin(&s.waiting[i], now) {
			s.running++
			s.wait.Add(1)
			s.h.opts.Go(s.loop)
		}
	}
}

// canBegin says whether a snapshot is due and its receiver alive.
func (s *sends) canBegin(next *send, now time.Time) bool {
	return !now.Before(next.notBefore) && s.h.alive(next.to.Node)
}

// loop streams what can begin and ends when nothing can.
func (s *sends) loop() {
	defer s.wait.Done()
	for s.one() {
	}
	s.mu.Lock()
	s.running--
	s.mu.Unlock()
}

// runManual streams what can begin, for a host that has nobody else to do it.
func (s *sends) runManual() {
	if s.h.opts.Go != nil {
		s.kick()
		return
	}
	for s.one() {
	}
}

// one streams the snapshot that has waited longest of those that can begin;
// false: there is none.
func (s *sends) one() bool {
	next, ok := s.take()
	if !ok {
		return false
	}
	if next.r.published.Load().Role != raft.Leader {
		s.forgetMark(next)
		return true
	}
	index, err := s.stream(next)
	switch {
	case err == nil:
		s.h.stats.snapshotsSent.Add(1)
		s.h.log.Info("snapshot sent", "group", next.r.key.Group, "to", next.to.Replica, "node", next.to.Node, "index", index)
		s.report(next, index, true)
	case errors.Is(err, transport.ErrSnapshotRefused):
		s.h.log.Info("snapshot not wanted", "group", next.r.key.Group, "to", next.to.Replica, "node", next.to.Node, "err", err)
		s.report(next, index, false)
	default:
		s.h.stats.snapshotsFailed.Add(1)
		s.h.log.Warn("snapshot not sent", "group", next.r.key.Group, "to", next.to.Replica, "node", next.to.Node, "err", err)
		s.again(next)
	}
	return true
}

func (s *sends) take() (send, bool) {
	now := s.h.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return send{}, false
	}
	for i, next := range s.waiting {
		if s.canBegin(&next, now) {
			s.waiting = slices.Delete(s.waiting, i, i+1)
			return next, true
		}
	}
	return send{}, false
}

// stream sends the state of the replica as it is now.
func (s *sends) stream(next send) (raft.Index, error) {
	snapshot, err := next.r.state.Snapshot()
	if err != nil {
		return 0, err
	}
	defer snapshot.Close()
	s.mu.Lock()
	s.marks[sendKey{next.r.key, next.to.Replica}] = snapshot.Mark.Index
	s.mu.Unlock()
	header := transport.SnapshotHeader{
		Group: next.r.key.Group, From: next.r.key.Replica, To: next.to.Replica,
		Term: next.r.published.Load().Term, Mark: snapshot.Mark,
	}
	s.h.log.Info("snapshot begins", "group", header.Group, "to", header.To, "node", next.to.Node, "index", snapshot.Mark.Index)
	return snapshot.Mark.Index, s.h.opts.Transport.SendSnapshot(s.ctx, next.to.Node, header, snapshot.Next)
}

// again lets a snapshot that failed wait for another attempt.
func (s *sends) again(next send) {
	next.notBefore = s.h.now().Add(sendPause)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.marks[sendKey{next.r.key, next.to.Replica}] = 0
	s.waiting = append(s.waiting, next)
}

// report tells the core how it went; it asks again if it has to.
func (s *sends) report(done send, index raft.Index, ok bool) {
	r := done.r
	r.worker.inbox.order(func() {
		if !r.gone && !r.frozen {
			r.core.SnapshotDone(done.to.Replica, index, ok)
			if ok {
				r.beginCatchUp(done.to, index)
			}
			r.worker.touch(r)
		}
		s.forgetMark(done) // not before: the log behind the mark is the follower's now
	})
}

func (s *sends) forgetMark(done send) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.marks, sendKey{done.r.key, done.to.Replica})
}

// lowestMark is the lowest index behind which the replica's log is kept for
// snapshots that are under way; 0: there are none.
func (s *sends) lowestMark(key raft.ReplicaKey) (lowest raft.Index) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, index := range s.marks {
		if k.of == key && index != 0 && (lowest == 0 || index < lowest) {
			lowest = index
		}
	}
	return lowest
}

// forget drops what waits for a replica that is removed.
func (s *sends) forget(r *replica) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting = slices.DeleteFunc(s.waiting, func(w send) bool {
		if w.r == r {
			delete(s.marks, sendKey{r.key, w.to.Replica})
		}
		return w.r == r
	})
}

func (s *sends) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	if !s.h.opts.Manual {
		s.wait.Wait()
	}
}

// HandleSnapshot takes a snapshot in: it returns when the state is replaced,
// durable, and the core knows, or with the reason why not. next gives the
// chunks and io.EOF behind the last.
func (h *Host) HandleSnapshot(ctx context.Context, from raft.NodeID, s transport.SnapshotHeader, next func() ([]byte, error)) error {
	r, ok := h.find(s.Group)
	if !ok || r.key.Replica != s.To {
		h.stats.unknownGroup.Add(1)
		return fmt.Errorf("group %d replica %d: %w", s.Group, s.To, ErrNoGroup)
	}
	if err := r.beginInstall(s); err != nil {
		return err
	}
	h.log.Info("snapshot comes in", "group", s.Group, "replica", s.To, "node", from, "index", s.Mark.Index)
	err := r.takeIn(ctx, s, next)
	if err != nil {
		h.log.Warn("snapshot not installed", "group", s.Group, "replica", s.To, "index", s.Mark.Index, "err", err)
		return err
	}
	h.stats.snapshotsInstalled.Add(1)
	h.log.Info("snapshot installed", "group", s.Group, "replica", s.To, "index", s.Mark.Index)
	return nil
}

// beginInstall asks the worker whether the snapshot is wanted.
func (r *replica) beginInstall(s transport.SnapshotHeader) (refused error) {
	ran := r.worker.do(func() {
		if r.installing {
			refused = fmt.Errorf("%w: another one is coming in", ErrSnapshotRefused)
		} else if refused = r.wants(s); refused == nil {
			r.installing = true
		}
	})
	if !ran {
		return ErrStopped
	}
	return refused
}

// wants says why a snapshot is not wanted; nil: it is.
func (r *replica) wants(s transport.SnapshotHeader) error {
	switch {
	case r.gone:
		return ErrStopped
	case s.Term < r.core.Term():
		return fmt.Errorf("%w: it is of term %d, this is %d", ErrSnapshotRefused, s.Term, r.core.Term())
	case !r.core.WantsSnapshot(s.From, s.Term, s.Mark.Index):
		return fmt.Errorf("%w: it ends at %d, which is here already", ErrSnapshotRefused, s.Mark.Index)
	}
	return nil
}

// takeIn writes the stream beside the replica's state. Only for the
// replacement itself apply has to pause.
func (r *replica) takeIn(ctx context.Context, s transport.SnapshotHeader, next func() ([]byte, error)) error {
	install := r.state.NewInstall(s.Mark)
	defer install.Abort() // nothing, once it is finished
	err := addAll(ctx, install, next)
	if err == nil {
		r.apply.pause()
		err = r.replaceState(s, install)
		if r.apply.resume() {
			r.worker.h.appliers.schedule(r)
		}
	}
	r.worker.do(func() { r.installing = false })
	return err
}

func addAll(ctx context.Context, install *statestore.Install, next func() ([]byte, error)) error {
	for {
		chunk, err := next()
		if errors.Is(err, io.EOF) {
			return ctx.Err()
		}
		if err == nil {
			err = ctx.Err()
		}
		if err == nil {
			err = install.Add(chunk)
		}
		if err != nil {
			return err
		}
	}
}

// replaceState replaces the state, durably, and tells the core, whose log
// begins behind the mark in the write that follows; it acknowledges when that
// is durable. Apply is paused: it is not with any applier. The core takes no
// step between its word that it wants the snapshot and the news that it is in
// place.
func (r *replica) replaceState(s transport.SnapshotHeader, install *statestore.Install) (refused error) {
	ran := r.worker.do(func() {
		refused = r.wants(s)
		r.frozen = refused == nil
	})
	if !ran {
		return ErrStopped
	}
	if refused != nil {
		return refused
	}
	err := r.putInPlace(s, install)
	if errors.Is(err, ErrStopped) {
		return err // frozen it stays: nobody knows what its state is
	}
	r.worker.do(func() { r.thaw(s, err == nil) })
	return err
}

// putInPlace replaces the state and rebuilds its machine. Only a bad stream
// leaves all as it was; whatever else fails stops the host (ErrStopped).
func (r *replica) putInPlace(s transport.SnapshotHeader, install *statestore.Install) error {
	err := install.Finish()
	if errors.Is(err, statestore.ErrBadStream) {
		return err
	}
	if err == nil {
		err = r.machine.Restored(r.state)
	}
	h := r.worker.h
	if err != nil {
		h.fail(fmt.Errorf("group %d replica %d: snapshot at %d: %w", r.key.Group, r.key.Replica, s.Mark.Index, err))
		return fmt.Errorf("%w: %w", ErrStopped, err)
	}
	r.appliedMembership = s.Mark.Membership
	r.apply.jump(s.Mark.Index)
	r.machine.Committed(s.Mark.Index)
	lost, ready := r.outcomes.jump(s.Mark.Index)
	h.answerLost(lost, ErrUnknown)
	h.readsReady(r, s.Mark.Index, ready)
	return nil
}

// thaw lets the core go on, and tells it if the state is in place.
func (r *replica) thaw(s transport.SnapshotHeader, inPlace bool) {
	r.frozen = false
	if r.gone {
		return
	}
	r.worker.touch(r)
	if inPlace {
		r.stepInstalled(s)
	}
	acks := r.heldAcks
	r.heldAcks = nil
	for _, a := range acks {
		r.core.Persisted(a)
	}
}

func (r *replica) stepInstalled(s transport.SnapshotHeader) {
	m := raft.Message{Group: s.Group, From: s.From, To: s.To, Term: s.Term, Body: &raft.InstallSnapshot{Snapshot: s.Mark}}
	if err := r.core.Step(m); err != nil {
		r.worker.h.fail(fmt.Errorf("group %d replica %d: the core refuses a snapshot that is in place: %w", s.Group, s.To, err))
		return
	}
	r.membershipApplied(s.Mark.Membership)
}
