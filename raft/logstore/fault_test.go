package logstore

import (
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/flotilla-kv/flotilla/raft"
)

// isSync says whether the operation asks the disk for durability.
func isSync(op errorfs.Op) bool {
	return op.Kind == errorfs.OpFileSync || op.Kind == errorfs.OpFileSyncData || op.Kind == errorfs.OpFileSyncTo
}

func isWAL(op errorfs.Op) bool { return strings.HasSuffix(op.Path, ".log") }

// brokenDisk fails the n-th operation that matches once it is armed, and, if
// sticky, all that follow.
type brokenDisk struct {
	armed  atomic.Bool
	left   atomic.Int64
	sticky bool
	match  func(errorfs.Op) bool
	err    error
}

func (d *brokenDisk) String() string { return "broken disk" }

func (d *brokenDisk) MaybeError(op errorfs.Op) error {
	if !d.armed.Load() || !d.match(op) {
		return nil
	}
	if left := d.left.Add(-1); left == 0 || left < 0 && d.sticky {
		return d.err
	}
	return nil
}

// fatalCounter stands for the node.
type fatalCounter struct {
	mu     sync.Mutex
	errs   []error
	called chan struct{} // closed by the first
}

func newFatalCounter() *fatalCounter { return &fatalCounter{called: make(chan struct{})} }

func (f *fatalCounter) onFatal(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.errs = append(f.errs, err); len(f.errs) == 1 {
		close(f.called)
	}
}

func (f *fatalCounter) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.errs)
}

// faultRun appends to a store on a disk that fails at the n-th operation, and
// checks that the store stops once, acknowledges nothing after that, and that a
// power cut leaves all that was acknowledged. It returns whether the disk
// failed at all.
func faultRun(t *testing.T, disk *brokenDisk, n int64) (failed bool) {
	t.Helper()
	const last = 120
	mem := vfs.NewCrashableMem()
	fatal := newFatalCounter()
	o := testOptions(t, errorfs.Wrap(mem, disk))
	o.OnFatal, o.SegmentBytes, o.EvidenceEvery = fatal.onFatal, 256<<10, time.Millisecond
	s := openTest(t, o)
	id := key(2, 1)
	if err := s.SetIdentity(Identity{Node: 1}); err != nil {
		t.Fatal(err)
	}
	createTest(t, s, id)
	disk.left.Store(n)
	disk.armed.Store(true)
	var acked raft.Index
	var term raft.Term
	for i := raft.Index(1); i <= last; i++ {
		e := raft.Entry{Index: i, Term: 1, Data: make([]byte, 8<<10)}
		w := raft.Write{Entries: []raft.Entry{e}}
		if i%10 == 0 {
			w.HardState = &raft.HardState{Term: raft.Term(i), Vote: 1}
		}
		err := appendWait(s, Write{ID: id, Write: w})
		if err == nil {
			if failed {
				t.Fatalf("at %d: entry %d was acknowledged after a failure", n, i)
			}
			acked = i
			if w.HardState != nil {
				term = w.HardState.Term
			}
			if i%20 == 0 {
				s.Compact(id, i-10)
			}
			continue
		}
		failed = true
	}
	if failed {
		select {
		case <-fatal.called:
		case <-time.After(testDeadline):
			t.Fatalf("at %d: appends failed and the node was not told", n)
		}
		if err := s.Close(); err == nil {
			t.Errorf("at %d: a failed store closes without an error", n)
		}
	}
	clone := mem.CrashClone(vfs.CrashCloneCfg{RNG: rand.New(rand.NewPCG(1, 1))})
	if !failed {
		failed = s.Close() != nil // it may meet the failure now
	}
	disk.armed.Store(false)
	o = testOptions(t, clone)
	s = openTest(t, o)
	defer closeTest(t, s)
	state, err := s.Load(id)
	if err != nil {
		t.Fatalf("at %d: %v", n, err)
	}
	if s.Cut() || state.Last < acked || state.HardState.Term < term {
		t.Fatalf("at %d: after a power cut the log ends at %d in term %d (cut %v); entry %d and term %d were acknowledged", n, state.Last, state.HardState.Term, s.Cut(), acked, term)
	}
	if fatal.count() > 1 {
		t.Fatalf("at %d: the node was told %d times", n, fatal.count())
	}
	return failed
}

func TestFailedDiskStopsTheStoreOnce(t *testing.T) {
	for name, disk := range map[string]struct {
		sticky bool
		err    error
		match  func(errorfs.Op) bool
	}{
		"fsync of the log fails once": {false, syscall.EIO, func(op errorfs.Op) bool { return isSync(op) && isWAL(op) }},
		"fsync of the votes fails":    {false, syscall.EIO, func(op errorfs.Op) bool { return isSync(op) && strings.HasSuffix(op.Path, "votes") }},
		"fsync of the evidence fails": {false, syscall.EIO, func(op errorfs.Op) bool { return isSync(op) && strings.HasSuffix(op.Path, "evidence") }},
		"disk is full":                {true, syscall.ENOSPC, func(op errorfs.Op) bool { return op.Kind.ReadOrWrite() == errorfs.OpIsWrite }},
	} {
		t.Run(name, func(t *testing.T) {
			failures := 0
			for _, n := range []int64{1, 2, 3, 4, 5, 7, 10, 11, 23, 50, 75, 100, 150, 200, 300} {
				if faultRun(t, &brokenDisk{sticky: disk.sticky, err: disk.err, match: disk.match}, n) {
					failures++
				}
			}
			if failures == 0 {
				t.Error("the disk never failed: the test tests nothing")
			}
		})
	}
}

// gate holds the first sync of the log until it is opened, and counts.
type gate struct {
	armed atomic.Bool
	syncs atomic.Int64
	open  chan struct{}
}

func (g *gate) String() string { return "gate" }

func (g *gate) MaybeError(op errorfs.Op) error {
	if g.armed.Load() && isSync(op) && isWAL(op) {
		g.syncs.Add(1)
		<-g.open
	}
	return nil
}

func TestWhatIsQueuedDuringASyncSharesTheNext(t *testing.T) {
	g := &gate{open: make(chan struct{})}
	s := openTest(t, testOptions(t, errorfs.Wrap(vfs.NewMem(), g)))
	defer closeTest(t, s)
	const n = 200
	var ids []raft.ReplicaKey
	for i := range uint64(n) {
		ids = append(ids, key(2+i, 1))
	}
	createTest(t, s, ids...)
	g.armed.Store(true)
	var wg sync.WaitGroup
	for _, id := range ids {
		wg.Add(1)
		s.Append([]Write{{ID: id, Write: raft.Write{Entries: entriesOf(1, 1, 1)}}}, func(err error) {
			if err != nil {
				t.Error(err)
			}
			wg.Done()
		})
	}
	close(g.open)
	wg.Wait()
	// One that was held, one behind it, one for all the rest, and one to spare.
	if syncs := g.syncs.Load(); syncs > 4 {
		t.Errorf("%d appends took %d syncs", n, syncs)
	}
}

func TestAppendBlocksWhenTooMuchIsQueued(t *testing.T) {
	g := &gate{open: make(chan struct{})}
	o := testOptions(t, errorfs.Wrap(vfs.NewMem(), g))
	o.QueueBytes = 10 << 10
	s := openTest(t, o)
	defer closeTest(t, s)
	id := key(2, 1)
	createTest(t, s, id)
	g.armed.Store(true)
	const n = 20
	var queued, acked atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := raft.Index(1); i <= n; i++ {
			e := raft.Entry{Index: i, Term: 1, Data: make([]byte, 8<<10)}
			s.Append([]Write{{ID: id, Write: raft.Write{Entries: []raft.Entry{e}}}}, func(error) { acked.Add(1) })
			queued.Add(1)
		}
	}()
	// The writer takes at most two turns while the disk is held.
	waitFor(t, func() bool { s.queue.mu.Lock(); defer s.queue.mu.Unlock(); return s.queue.bytes > o.QueueBytes })
	if q := queued.Load(); q == n {
		t.Errorf("all %d appends were taken in", q)
	}
	close(g.open)
	<-done
	waitFor(t, func() bool { return acked.Load() == n })
}

func TestCloseAnswersWhatIsQueued(t *testing.T) {
	g := &gate{open: make(chan struct{})}
	s := openTest(t, testOptions(t, errorfs.Wrap(vfs.NewMem(), g)))
	id := key(2, 1)
	createTest(t, s, id)
	g.armed.Store(true)
	answers := make(chan error, 100)
	for i := raft.Index(1); i <= 100; i++ {
		s.Append([]Write{{ID: id, Write: raft.Write{Entries: entriesOf(i, i, 1)}}}, func(err error) { answers <- err })
	}
	time.AfterFunc(10*time.Millisecond, func() { close(g.open) })
	closeTest(t, s)
	for range 100 {
		if err := <-answers; err != nil && !errors.Is(err, ErrClosed) {
			t.Errorf("answer: %v", err)
		}
	}
}
