package statestore

import (
	"fmt"
	"io"
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

func power(fs *vfs.MemFS) *vfs.MemFS {
	return fs.CrashClone(vfs.CrashCloneCfg{RNG: rand.New(rand.NewPCG(1, 1))})
}

// observer sees every write operation of a disk and may fail it.
type observer func(op errorfs.Op) error

func (o observer) String() string { return "observer" }

func (o observer) MaybeError(op errorfs.Op) error {
	if op.Kind.ReadOrWrite() != errorfs.OpIsWrite {
		return nil
	}
	return o(op)
}

// source is a stream of a replica with some keys, made once.
func source(t *testing.T) (mark raft.SnapshotMark, chunks [][]byte, content string) {
	t.Helper()
	s := OpenModel(NewModel(), nil)
	r := s.Replica(key(2, 1))
	var pairs []string
	for i := range 30 {
		pairs = append(pairs, fmt.Sprintf("new%02d=%s", i, strings.Repeat("v", 20<<10)))
	}
	put(t, r, 500, pairs...)
	snapshot, err := r.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	for {
		chunk, err := snapshot.Next()
		if err == io.EOF {
			return snapshot.Mark, chunks, strings.Join(pairs, " ")
		}
		if err != nil {
			t.Fatal(err)
		}
		chunks = append(chunks, chunk)
	}
}

func install(r *Replica, mark raft.SnapshotMark, chunks [][]byte) error {
	in := r.NewInstall(mark)
	for _, chunk := range chunks {
		if err := in.Add(chunk); err != nil {
			return err
		}
	}
	return in.Finish()
}

// TestPowerCutDuringInstall cuts the power before each write operation of an
// install: what is found afterwards is the old state as it was flushed, or the
// new one whole, and the new one once Finish has returned.
func TestPowerCutDuringInstall(t *testing.T) {
	mark, chunks, content := source(t)
	mem := vfs.NewCrashableMem()
	var recording atomic.Bool
	var clones []*vfs.MemFS
	var mu sync.Mutex
	o := testOptions(t, errorfs.Wrap(mem, observer(func(errorfs.Op) error {
		if recording.Load() {
			mu.Lock()
			defer mu.Unlock()
			clones = append(clones, power(mem))
		}
		return nil
	})))
	s := openTest(t, o)
	r, other := s.Replica(key(2, 7)), s.Replica(key(3, 1))
	put(t, other, 8, "other=1")
	put(t, r, 9, "old=flushed")
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	put(t, r, 10, "old=unflushed")
	recording.Store(true)
	if err := install(r, mark, chunks); err != nil {
		t.Fatal(err)
	}
	recording.Store(false)
	after := power(mem)
	closeTest(t, s)
	old, installed := 0, 0
	check := func(n int, clone *vfs.MemFS, finished bool) {
		s := openTest(t, testOptions(t, clone))
		defer closeTest(t, s)
		r := s.Replica(key(2, 7))
		index, _, _, err := r.Applied()
		if err != nil {
			t.Fatal(err)
		}
		got := fmtContent(t, r)
		switch {
		case index == 9 && got == "old=flushed" && !finished, index == 10 && got == "old=unflushed" && !finished:
			old++
		case index == 500 && got == content:
			installed++
			if _, ok, err := r.SnapshotMark(); err != nil || !ok {
				t.Errorf("cut %d: no mark: %v", n, err)
			}
		default:
			t.Errorf("cut %d: index %d with %.60q", n, index, got)
		}
		want(t, s.Replica(key(3, 1)), "other=1")
		if left, err := clone.List("state/install"); err != nil || len(left) != 0 {
			t.Errorf("cut %d: left behind: %v, %v", n, left, err)
		}
	}
	for n, clone := range clones {
		check(n, clone, false)
	}
	check(len(clones), after, true)
	if old == 0 || installed == 0 {
		t.Errorf("%d cuts left the old state and %d the new one: the test tests nothing", old, installed)
	}
}

func fmtContent(t *testing.T, r *Replica) string { return content(t, r.NewIter(nil, nil)) }

// TestDestroyIsDurable cuts the power right after a Destroy over data that was
// flushed, and over data that was not.
func TestDestroyIsDurable(t *testing.T) {
	for _, flushed := range []bool{true, false} {
		mem := vfs.NewCrashableMem()
		s := openTest(t, testOptions(t, mem))
		r := s.Replica(key(2, 1))
		put(t, r, 1, "a=1")
		if err := s.Flush(); err != nil {
			t.Fatal(err)
		}
		put(t, r, 2, "b=1")
		if flushed {
			if err := s.Flush(); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.Destroy(); err != nil {
			t.Fatal(err)
		}
		after := power(mem)
		closeTest(t, s)
		s = openTest(t, testOptions(t, after))
		want(t, s.Replica(key(2, 1)), "")
		if index, _, _, err := s.Replica(key(2, 1)).Applied(); err != nil || index != 0 {
			t.Errorf("flushed %v: applied %d, %v", flushed, index, err)
		}
		closeTest(t, s)
	}
}

// TestFailedDiskStopsTheStoreOnce fills the disk at the n-th write operation of
// a run with flushes and installs. The store must stop, say so once, and a
// power cut then leaves a consistent prefix that holds what was reported
// durable.
func TestFailedDiskStopsTheStoreOnce(t *testing.T) {
	mark, chunks, content := source(t)
	for _, broken := range []struct {
		name  string
		err   error
		match func(errorfs.Op) bool
	}{
		{"disk is full", syscall.ENOSPC, func(errorfs.Op) bool { return true }},
		{"fsync fails", syscall.EIO, func(op errorfs.Op) bool {
			return op.Kind == errorfs.OpFileSync || op.Kind == errorfs.OpFileSyncData
		}},
	} {
		for _, n := range []int64{1, 2, 3, 5, 8, 12, 20, 30} {
			var left atomic.Int64
			left.Store(1 << 40)
			mem := vfs.NewCrashableMem()
			var calls atomic.Int64
			fatal := make(chan struct{})
			o := testOptions(t, errorfs.Wrap(mem, observer(func(op errorfs.Op) error {
				if broken.match(op) && left.Add(-1) <= 0 {
					return broken.err
				}
				return nil
			})))
			o.OnFatal = func(error) {
				if calls.Add(1) == 1 {
					close(fatal)
				}
			}
			s := openTest(t, o)
			left.Store(n)
			var durable atomic.Int64
			go churn(s, mark, chunks, &durable, fatal)
			select {
			case <-fatal:
			case <-time.After(testDeadline):
				t.Fatalf("%s at %d: the node was not told", broken.name, n)
			}
			promised := durable.Load()
			clone := power(mem)
			if err := s.Close(); err == nil {
				t.Errorf("%s at %d: closes without an error", broken.name, n)
			}
			s = openTest(t, testOptions(t, clone))
			r := s.Replica(key(2, 7))
			index, _, _, err := r.Applied()
			if err != nil || int64(index) < promised {
				t.Errorf("%s at %d: applied %d (%v), %d was durable", broken.name, n, index, err, promised)
			}
			if _, installed, _ := r.SnapshotMark(); installed {
				want(t, r, content)
			}
			closeTest(t, s)
			if calls.Load() != 1 {
				t.Errorf("%s at %d: the node was told %d times", broken.name, n, calls.Load())
			}
		}
	}
}

// churn works on a store until its disk fails, perhaps blocked for good in it.
func churn(s *Store, mark raft.SnapshotMark, chunks [][]byte, durable *atomic.Int64, stop <-chan struct{}) {
	r := s.Replica(key(2, 7))
	for index := mark.Index; ; index += 10 {
		select {
		case <-stop:
			return
		default:
		}
		mark.Index = index
		b := r.NewBatch()
		b.Set([]byte("k"), make([]byte, 1000))
		b.SetApplied(index-1, 1, membership())
		if b.Commit() != nil || s.Flush() != nil {
			return
		}
		durable.Store(int64(index - 1))
		if install(r, mark, chunks) != nil {
			return
		}
		durable.Store(int64(index))
	}
}

func TestInstallTablesAreRemovedByAbort(t *testing.T) {
	fs := vfs.NewMem()
	s := openTest(t, testOptions(t, fs))
	defer closeTest(t, s)
	mark, chunks, _ := source(t)
	in := s.Replica(key(2, 1)).NewInstall(mark)
	if err := in.Add(chunks[0]); err != nil {
		t.Fatal(err)
	}
	if left, _ := fs.List("state/install"); len(left) == 0 {
		t.Fatal("nothing is written yet: the test tests nothing")
	}
	if err := in.Abort(); err != nil {
		t.Fatal(err)
	}
	if left, _ := fs.List("state/install"); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	want(t, s.Replica(key(2, 1)), "")
}
