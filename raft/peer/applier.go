package peer

import (
	"bytes"
	"sync"

	"github.com/flotilla-kv/flotilla/raft"
)

// delivery is what goes through applyCh: a snapshot, or the commands among
// entries, the first of which is number command+1.
type delivery struct {
	snapshot *snapshot
	entries  []raft.Entry
	command  int
	through  raft.Index
}

// applier writes to applyCh, in a goroutine of its own: the reader may take its
// time, or call the peer before it takes the next message. What waits for it is
// bounded by the core, which hands out only so much beyond what is applied.
type applier struct {
	applyCh chan ApplyMsg
	stop    chan struct{}
	applied func(through raft.Index) // called without a lock
	wake    chan struct{}

	mu    sync.Mutex // guards queue
	queue []delivery
}

func newApplier(applyCh chan ApplyMsg, stop chan struct{}, applied func(raft.Index)) *applier {
	return &applier{applyCh: applyCh, stop: stop, applied: applied, wake: make(chan struct{}, 1)}
}

// push queues d. A snapshot takes the place of all that still waits: it
// contains it, and so a reader that stands still does not make the queue grow.
func (a *applier) push(d delivery) {
	a.mu.Lock()
	if d.snapshot != nil {
		a.queue = nil
	}
	a.queue = append(a.queue, d)
	a.mu.Unlock()
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

func (a *applier) pop() (delivery, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.queue) == 0 {
		return delivery{}, false
	}
	d := a.queue[0]
	a.queue = a.queue[1:]
	return d, true
}

func (a *applier) run() {
	for {
		d, ok := a.pop()
		if !ok {
			select {
			case <-a.wake:
				continue
			case <-a.stop:
				return
			}
		}
		if !a.deliver(&d) {
			return
		}
		a.applied(d.through)
	}
}

// deliver writes d to applyCh; false: the peer was killed.
func (a *applier) deliver(d *delivery) bool {
	if s := d.snapshot; s != nil {
		return a.write(ApplyMsg{SnapshotValid: true, Snapshot: bytes.Clone(s.data), SnapshotTerm: int(s.term), SnapshotIndex: s.command})
	}
	command := d.command
	for i := range d.entries {
		if d.entries[i].Kind != raft.EntryCommand {
			continue
		}
		command++
		// The log goes on sharing the entry's bytes.
		if !a.write(ApplyMsg{CommandValid: true, Command: bytes.Clone(d.entries[i].Data), CommandIndex: command}) {
			return false
		}
	}
	return true
}

func (a *applier) write(m ApplyMsg) bool {
	select {
	case <-a.stop:
		return false
	default:
	}
	select {
	case a.applyCh <- m:
		return true
	case <-a.stop:
		return false
	}
}
