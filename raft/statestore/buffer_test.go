package statestore

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
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

// TestTableSortsAsBytesDo sorts keys that share much, end early and hold zeros.
func TestTableSortsAsBytesDo(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		var table table
		var want [][]byte
		for range random.IntN(200) {
			key := bytes.Repeat([]byte("x"), random.IntN(3)*7)
			for range random.IntN(20) {
				key = append(key, "ab\x00"[random.IntN(3)])
			}
			if table.find(hashKey(key), key) == 0 {
				want = append(want, key)
			}
			table.set(hashKey(key), key, nil, []byte("v"), batchCommit, batchSeen)
		}
		slices.SortFunc(want, bytes.Compare)
		var got [][]byte
		for _, item := range table.collect(nil, nil, batchCommit) {
			got = append(got, item.key)
		}
		if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", want) {
			t.Fatalf("sorted\n%q\nwant\n%q", got, want)
		}
	}
}

// TestValuesThatGrowTakeWhatTheyNeed appends to one value again and again.
func TestValuesThatGrowTakeWhatTheyNeed(t *testing.T) {
	var table table
	key, value := []byte("k"), []byte{}
	for n := range 100_000 {
		value = append(value, byte(n))
		table.set(hashKey(key), key, value[:n/2], value[n/2:], batchCommit, batchSeen)
	}
	if got, _, _ := table.get(hashKey(key), key, batchCommit); !bytes.Equal(got, value) {
		t.Fatal("the value is another")
	}
	if most := 8 * len(value); len(table.arena) > most {
		t.Fatalf("a value of %d bytes takes %d", len(value), len(table.arena))
	}
}

// TestViewsUnderCommitsAndDrains looks at views while batches are committed that
// write one number under all keys, and buffers are drained: no view sees two
// numbers, by whatever way it looks.
func TestViewsUnderCommitsAndDrains(t *testing.T) {
	s := openTest(t, testOptions(t, vfs.NewMem()))
	defer closeTest(t, s)
	r := s.Replica(key(2, 1))
	keys := []string{"a", "b", "c", "d"}
	write := func(n int) {
		b := r.NewBatch()
		for _, k := range keys {
			b.Set([]byte(k), fmt.Appendf(nil, "%d%s", n, bytes.Repeat([]byte(" "), n%9)))
		}
		b.SetApplied(1, 1, membership())
		if err := b.Commit(); err != nil {
			t.Error(err)
		}
	}
	write(0)
	stop := make(chan struct{})
	var wait sync.WaitGroup
	for range 2 {
		wait.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				lookForOneNumber(t, r, keys)
			}
		})
	}
	wait.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
				if err := s.engine.(*pebbleEngine).drain(); err != nil {
					t.Error(err)
				}
			}
		}
	})
	for n := range 3000 {
		write(n)
	}
	close(stop)
	wait.Wait()
}

func lookForOneNumber(t *testing.T, r *Replica, keys []string) {
	v, err := r.View()
	if err != nil {
		t.Error(err)
		return
	}
	defer func() {
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	}()
	seen := make(map[string]bool)
	for _, k := range keys {
		value, ok, err := v.Get([]byte(k))
		if err != nil || !ok {
			t.Errorf("%s: %v %v", k, ok, err)
		}
		seen[string(value)] = true
	}
	iter := v.NewIter(nil, nil)
	for ok := iter.First(); ok; ok = iter.Next() {
		seen[string(iter.Value())] = true
	}
	if err := iter.Close(); err != nil {
		t.Error(err)
	}
	if len(seen) != 1 {
		t.Errorf("a view saw %v", seen)
	}
}

// TestWritingOverFlushes writes over one key until MemTableBytes have been
// committed: the log has it all, so it must be flushed, though next to nothing
// is left of it.
func TestWritingOverFlushes(t *testing.T) {
	o := testOptions(t, vfs.NewMem())
	flushed := make(chan struct{}, 1)
	o.OnFlushed = func() {
		select {
		case flushed <- struct{}{}:
		default:
		}
	}
	s := openTest(t, o)
	defer closeTest(t, s)
	r := s.Replica(key(2, 1))
	value := string(make([]byte, 10<<10))
	for range o.MemTableBytes/(10<<10) + 2 {
		put(t, r, 1, "k="+value)
	}
	select {
	case <-flushed:
	case <-time.After(testDeadline):
		t.Fatal("nothing was flushed")
	}
	if index, err := r.DurableApplied(); err != nil || index != 1 {
		t.Fatalf("durable is %d, %v", index, err)
	}
}

// TestBuffersStayWithinTheirBudget fills the buffers of many replicas.
func TestBuffersStayWithinTheirBudget(t *testing.T) {
	o := testOptions(t, vfs.NewMem())
	o.MemTableBytes = 8 << 20
	s := openTest(t, o)
	defer closeTest(t, s)
	buffers := s.engine.(*pebbleEngine).buffers
	value := string(make([]byte, 1000))
	for n := range 20_000 {
		put(t, s.Replica(key(uint64(2+n%20), 1)), 1, fmt.Sprintf("k%d=%s", n, value))
		if n%1000 != 0 {
			continue
		}
		held := 0
		for _, b := range buffers.all {
			b.mu.RLock()
			for _, t := range []*table{b.table, b.older} {
				if t != nil {
					held += t.bytes()
				}
			}
			b.mu.RUnlock()
		}
		// Who comes late finds the share of the others smaller, not theirs emptied.
		if most := 2*buffers.budget*13/10 + 20*bufferBytesMin; held > most {
			t.Fatalf("%d bytes wait, at most %d should", held, most)
		}
	}
}

// TestCloseReturnsWhenTheDiskFailsUnderADrain has more wait in buffers than
// memtables take, and a disk that takes nothing more.
func TestCloseReturnsWhenTheDiskFailsUnderADrain(t *testing.T) {
	for range 5 {
		var fails atomic.Bool
		o := testOptions(t, errorfs.Wrap(vfs.NewCrashableMem(), observer(func(errorfs.Op) error {
			if fails.Load() {
				return syscall.EIO
			}
			return nil
		})))
		o.OnFatal, o.MemTableBytes = func(error) {}, 256<<10
		s := openTest(t, o)
		for g := range uint64(64) {
			put(t, s.Replica(key(10+g, 1)), 1, "k="+strings.Repeat("v", 40_000))
		}
		fails.Store(true)
		closed := make(chan error, 1)
		go func() { closed <- s.Close() }()
		select {
		case err := <-closed:
			if err == nil {
				t.Fatal("closed without an error")
			}
		case <-time.After(testDeadline):
			t.Fatal("Close hangs")
		}
	}
}

// TestABatchWithARangeLandsOnTop of what was committed while it was open.
func TestABatchWithARangeLandsOnTop(t *testing.T) {
	engines(t, func(t *testing.T, s *Store) {
		r := s.Replica(key(2, 1))
		put(t, r, 1, "a=1", "b=1")
		b := r.NewBatch()
		b.DeleteRange([]byte("a"), []byte("b"))
		b.Set([]byte("b"), []byte("2"))
		b.SetApplied(3, 1, membership())
		put(t, r, 2, "a=x", "b=x")
		if err := b.Commit(); err != nil {
			t.Fatal(err)
		}
		want(t, r, "b=2")
		if index, _, _, err := r.Applied(); err != nil || index != 3 {
			t.Fatalf("applied is %d, %v", index, err)
		}
	})
}

func TestAnEmptyUpperBoundIsABound(t *testing.T) {
	engines(t, func(t *testing.T, s *Store) {
		r := s.Replica(key(2, 1))
		put(t, r, 1, "a=1")
		if got := content(t, r.NewIter(nil, []byte{})); got != "" {
			t.Fatalf("holds %q", got)
		}
	})
}

func TestACommitAfterCloseIsRefused(t *testing.T) {
	s := openTest(t, testOptions(t, vfs.NewMem()))
	r := s.Replica(key(2, 1))
	put(t, r, 1, "a=1")
	closeTest(t, s)
	b := r.NewBatch()
	b.Set([]byte("b"), []byte("2"))
	b.SetApplied(2, 1, membership())
	if err := b.Commit(); !errors.Is(err, ErrClosed) {
		t.Fatalf("committed: %v", err)
	}
}

// TestOnlyAFlushPaysWhatIsOwed: a drain that no flush follows frees no log.
func TestOnlyAFlushPaysWhatIsOwed(t *testing.T) {
	s := openTest(t, testOptions(t, vfs.NewMem()))
	defer closeTest(t, s)
	put(t, s.Replica(key(2, 1)), 1, "a=1")
	if err := s.EachApplied(func(raft.ReplicaKey, raft.Index) {}); err != nil {
		t.Fatal(err)
	}
	owed := &s.engine.(*pebbleEngine).buffers.owed
	if owed.Load() == 0 {
		t.Fatal("a drain has paid")
	}
	if err := s.Flush(); err != nil || owed.Load() != 0 {
		t.Fatalf("%d bytes are owed after a flush, %v", owed.Load(), err)
	}
}

// TestATableThatWasLargeIsEmptiedForWhatItHolds: the memory of batches is used
// again.
func TestATableThatWasLargeIsEmptiedForWhatItHolds(t *testing.T) {
	var table table
	for _, n := range []int{20_000, 10} {
		for i := range n {
			key := fmt.Append(nil, i)
			table.set(hashKey(key), key, nil, key, batchCommit, batchSeen)
		}
		if n == 20_000 {
			table.reset()
		}
	}
	table.reset()
	if len(table.buckets) > 4*10 {
		t.Fatalf("%d buckets are left for 10 keys", len(table.buckets))
	}
}

// TestCommitsGoOnDuringAFlush holds the drain of a flush up at its end: commits
// land, reads see them, and they are not of what becomes durable.
func TestCommitsGoOnDuringAFlush(t *testing.T) {
	s := openTest(t, testOptions(t, vfs.NewMem()))
	defer closeTest(t, s)
	r := s.Replica(key(2, 1))
	put(t, r, 1, "a=1")
	turns := make(chan struct{}) // without room: a drain waits for the test at its beginning and its end
	buffers := s.engine.(*pebbleEngine).buffers
	buffers.slots = turns
	flushed := make(chan error, 1)
	go func() { flushed <- s.Flush() }()
	select {
	case <-turns:
	case err := <-flushed:
		t.Fatalf("flushed without a drain that takes its turn: %v", err)
	}
	put(t, r, 2, "a=2")
	want(t, r, "a=2")
	select {
	case err := <-flushed:
		turns <- struct{}{} // lest Close wait for the drain
		t.Fatalf("flushed before the drain has ended: %v", err)
	case turns <- struct{}{}:
	}
	if err := <-flushed; err != nil {
		t.Fatal(err)
	}
	buffers.slots = make(chan struct{}, drainsAtOnce)
	if index, err := r.DurableApplied(); err != nil || index != 1 {
		t.Fatalf("durable is %d, %v: what was committed during the flush is not of it", index, err)
	}
	want(t, r, "a=2")
}
