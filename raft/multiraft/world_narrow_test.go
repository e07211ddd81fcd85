package multiraft

import (
	"fmt"
	"iter"
	"strings"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/raft"
)

// narrowLine is the way to one node, over which little passes a second: of
// messages, and beside them of snapshots, which have a connection of their own.
// A nil one is as wide as any.
type narrowLine struct {
	w         *world
	to        raft.NodeID
	messages  int64     // bytes a second
	snapshots int64     // bytes a second
	free      time.Time // when the messages under way have passed

	// The snapshot on its way is a coroutine: it runs when the world lets it.
	next   func() (time.Duration, bool)
	yield  func(time.Duration) bool
	resume time.Time
}

// send sends messages, each when those before it have passed.
func (l *narrowLine) send(from raft.NodeID, ms []raft.Message) {
	if l.free.Before(l.w.now) {
		l.free = l.w.now
	}
	for _, m := range ms {
		bytes := int64(64)
		if a, ok := m.Body.(*raft.AppendEntries); ok {
			for i := range a.Entries {
				bytes += int64(len(a.Entries[i].Data))
			}
		}
		l.free = l.free.Add(time.Duration(bytes * int64(time.Second) / l.messages))
		l.w.wires = append(l.w.wires, parcel{l.free, from, l.to, l.w.nodes[l.to].boot, []raft.Message{m}})
	}
}

// carry lets time pass until the node has a chunk of a snapshot.
func (l *narrowLine) carry(to raft.NodeID, chunk []byte) {
	if l != nil && to == l.to && len(chunk) > 0 {
		l.yield(time.Duration(int64(len(chunk)) * int64(time.Second) / l.snapshots))
	}
}

// begin takes a host's stream of snapshots on; see Options.Go.
func (l *narrowLine) begin(stream func()) {
	next, _ := iter.Pull(func(yield func(time.Duration) bool) {
		l.yield = yield
		stream()
	})
	l.next, l.resume = next, l.w.now
}

// run lets a snapshot go on whose chunk has passed.
func (l *narrowLine) run() {
	if l == nil || l.next == nil || l.w.now.Before(l.resume) {
		return
	}
	wait, more := l.next()
	l.resume = l.w.now.Add(wait)
	if !more {
		l.next = nil
	}
}

const narrowBudget = 256 << 10 // of the log that is kept

// behindANarrowLine is a world whose node 3 has been away, and now needs a
// snapshot over a line that takes four seconds for it.
func behindANarrowLine(t *testing.T) *world {
	line := &narrowLine{to: 3, messages: 1 << 20, snapshots: 1 << 20}
	w := newWorld(t, 3, func(o *Options) {
		o.Limits.LogKeepBytes = narrowBudget
		o.Timing.FlushAfter = time.Second
		o.Go = line.begin
	})
	line.w, w.line = w, line
	w.group(2, 1, 1, 2, 3)
	w.mustPropose(2, "first")
	w.crash(3)
	for i := range 64 {
		w.mustPropose(2, fmt.Sprintf("%d=%s", i, strings.Repeat("v", 64<<10)))
	}
	w.run(3 * time.Second)
	w.up(3)
	return w
}

// loaded runs the world, with 400 KB of writes a second, until the condition
// holds; for so long at the most.
func (w *world) loaded(d time.Duration, what string, ok func() bool) {
	w.t.Helper()
	command := []byte("load=" + strings.Repeat("v", 4000))
	for end := w.now.Add(d); !ok(); w.run(10 * time.Millisecond) {
		if !w.now.Before(end) {
			w.dump()
			w.t.Fatalf("not within %v: %s", d, what)
		}
		w.nodes[1].host.Propose(2, command, func(r Result) {
			if r.Err != nil {
				w.t.Errorf("a write: %v", r.Err)
			}
		})
	}
}

func (w *world) kept(id raft.NodeID) int64 { return total(w.nodes[id].store.Sizes()) }

// A node that needs a snapshot is behind a narrow line while its group is
// written to and keeps little of its log. What is written until the snapshot is
// there takes longer to follow it than the log is kept; were it cut away, the
// next snapshot would be needed, and so on for ever.
func TestASnapshotLandsThoughLittleOfTheLogIsKept(t *testing.T) {
	w := behindANarrowLine(t)
	installed := func() uint64 { return w.nodes[3].host.Stats().SnapshotsInstalled }
	w.loaded(10*time.Second, "the snapshot is there", func() bool { return installed() == 1 })
	if behind := w.applied(1, 2) - w.applied(3, 2); behind*4000 < 4*narrowBudget {
		t.Fatalf("only %d commands were written meanwhile: the test tests nothing", behind)
	}
	w.loaded(10*time.Second, "it has caught up", func() bool { return w.applied(1, 2) <= w.applied(3, 2)+1 })
	end := w.now.Add(5 * time.Second)
	w.loaded(6*time.Second, "five seconds are over", func() bool { return w.now.After(end) })
	if n := installed(); n != 1 {
		t.Errorf("it took %d snapshots", n)
	}
	if kept := w.kept(1); kept > 4*narrowBudget {
		t.Errorf("the log keeps %d bytes for a node that has caught up", kept)
	}
	w.same(2, w.nodes[1].tally[2].count)
}

// A node that has got its snapshot and comes no nearer to the end of the log
// does not keep it from being cut.
func TestTheLogIsNotKeptForOneThatFallsBack(t *testing.T) {
	w := behindANarrowLine(t)
	w.line.messages = 100 << 10 // a quarter of what is written
	w.loaded(10*time.Second, "the snapshot is there", func() bool { return w.nodes[3].host.Stats().SnapshotsInstalled == 1 })
	w.loaded(catchUpPatience+5*time.Second, "the log is cut", func() bool { return w.kept(1) < 4*narrowBudget })
}
