package multiraft

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/flotilla-kv/flotilla/raft"
)

// trimmer looks after what the log keeps and when the state store is flushed.
// One goroutine runs its turns.
type trimmer struct {
	h        *Host
	unsynced atomic.Int64 // when the oldest apply since the last flush began, unix ns; 0: none
	flushed  atomic.Bool  // the state store has made something durable since the last turn

	wake    chan struct{}
	stop    chan struct{}
	stopped chan struct{}

	// Of the goroutine.
	looked  time.Time
	held    bool // the last look left log behind that a member needs
	durable map[raft.ReplicaKey]raft.Index

	mu      sync.Mutex // guards all below
	trusted []raft.ReplicaKey
}

func newTrimmer(h *Host) *trimmer {
	return &trimmer{
		h:       h,
		wake:    make(chan struct{}, 1),
		stop:    make(chan struct{}),
		stopped: make(chan struct{}),
		durable: make(map[raft.ReplicaKey]raft.Index),
	}
}

// Flushed is told by the state store that something has become durable. It
// does not block.
func (h *Host) Flushed() {
	h.trimmer.flushed.Store(true)
	h.trimmer.signal()
}

func (t *trimmer) signal() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// noteApply says that something was applied which is not flushed yet.
func (t *trimmer) noteApply(at time.Time) {
	if t.unsynced.Load() == 0 {
		t.unsynced.CompareAndSwap(0, at.UnixNano())
	}
}

// noteTrusted says that a suspect replica was caught up.
func (t *trimmer) noteTrusted(key raft.ReplicaKey) {
	t.mu.Lock()
	t.trusted = append(t.trusted, key)
	t.mu.Unlock()
	t.signal()
}

func (t *trimmer) start() { go t.loop() }

func (t *trimmer) loop() {
	defer close(t.stopped)
	ticker := time.NewTicker(t.h.opts.Timing.TrimEvery)
	defer ticker.Stop()
	for {
		select {
		case <-t.wake:
		case <-ticker.C:
		case <-t.stop:
			return
		}
		t.turn()
		t.h.sends.kick()
	}
}

func (t *trimmer) close() {
	close(t.stop)
	if !t.h.opts.Manual {
		<-t.stopped
	}
}

// turn is one look at everything.
func (t *trimmer) turn() {
	now := t.h.now()
	t.clearSuspects()
	t.flushIfOld(now)
	news := t.flushed.Swap(false)
	if news {
		t.learnDurable()
	}
	if !news && now.Sub(t.looked) < t.h.opts.Timing.TrimEvery {
		return
	}
	t.looked = now
	sizes := t.h.opts.Log.Sizes()
	over := total(sizes) > t.h.opts.Limits.LogKeepBytes
	if !news && !over && !t.held {
		return
	}
	uses := t.collect(sizes)
	cuts, over := planCuts(uses, t.h.opts.Limits.LogKeepBytes)
	t.held = holdsBack(uses)
	t.cut(cuts)
	if over {
		t.flush()
	}
}

func total(sizes map[raft.ReplicaKey]int64) (sum int64) {
	for _, size := range sizes {
		sum += size
	}
	return sum
}

// holdsBack says whether a member's need keeps log that could go otherwise.
func holdsBack(uses []logUse) bool {
	for _, u := range uses {
		if min(u.needed, u.pinned) <= u.durable {
			return true
		}
	}
	return false
}

func (t *trimmer) clearSuspects() {
	t.mu.Lock()
	trusted := t.trusted
	t.trusted = nil
	t.mu.Unlock()
	for _, key := range trusted {
		if err := t.h.opts.Log.ClearSuspect(key); err != nil {
			t.h.log.Warn("suspicion not cleared", "group", key.Group, "replica", key.Replica, "err", err)
			continue
		}
		t.h.log.Info("replica is trusted again", "group", key.Group, "replica", key.Replica)
	}
}

func (t *trimmer) flushIfOld(now time.Time) {
	since := t.unsynced.Load()
	if since != 0 && now.Sub(time.Unix(0, since)) >= t.h.opts.Timing.FlushAfter {
		t.flush()
	}
}

// flush begins a flush, unless nothing was applied since the last.
func (t *trimmer) flush() {
	if t.unsynced.Swap(0) == 0 {
		return
	}
	t.h.stats.flushes.Add(1)
	if err := t.h.opts.States.AsyncFlush(); err != nil {
		t.h.log.Warn("flush not begun", "err", err) // the store tells its OnFatal
	}
}

func (t *trimmer) learnDurable() {
	err := t.h.opts.States.EachDurable(func(key raft.ReplicaKey, index raft.Index) { t.durable[key] = index })
	if err != nil {
		t.h.log.Warn("what is durable could not be read", "err", err)
	}
}

// collect asks the workers how far their logs are needed.
func (t *trimmer) collect(sizes map[raft.ReplicaKey]int64) (uses []logUse) {
	for _, w := range t.h.workers {
		w.do(func() {
			for _, r := range w.sorted() {
				if size := sizes[r.key]; size > 0 {
					uses = append(uses, r.logUse(size, t.durable[r.key]))
				}
			}
		})
	}
	return uses
}

func (r *replica) logUse(size int64, durable raft.Index) logUse {
	core := r.core.Status()
	u := logUse{key: r.key, bytes: size, durable: durable, first: core.First, last: core.Last}
	u.needed, u.pinned = u.last+1, r.pinned(&core)
	if core.Role != raft.Leader && u.last >= u.first {
		entries := float64(u.last-u.first+1) * min(1, float64(r.worker.h.opts.Limits.FollowerKeepBytes)/float64(size))
		u.needed -= raft.Index(entries)
	}
	if core.NeededFrom != 0 {
		u.needed = min(u.needed, core.NeededFrom)
	}
	return u
}

// cut gives the orders, each between two steps of its core.
func (t *trimmer) cut(cuts []cut) {
	for _, w := range t.h.workers {
		w.do(func() {
			for _, c := range cuts {
				if r := w.groups[c.key.Group]; r != nil && r.key == c.key {
					t.h.opts.Log.Compact(c.key, c.through)
					t.h.stats.logCuts.Add(1)
				}
			}
		})
	}
}
