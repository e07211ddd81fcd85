package logstore

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/flotilla-kv/flotilla/internal/disk"
	"github.com/flotilla-kv/flotilla/raft"
)

const testDeadline = 10 * time.Second

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// testOptions are for a small store on fs whose disk must not fail.
func testOptions(t testing.TB, fs vfs.FS) Options {
	return Options{
		Dir: "log", FS: fs, Logger: quiet(), SegmentBytes: 1 << 20,
		OnFatal: func(err error) { t.Errorf("the store stopped: %v", err) },
	}
}

func openTest(t testing.TB, o Options) *Store {
	t.Helper()
	s, err := Open(o)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return s
}

func closeTest(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
}

func key(group, replica uint64) raft.ReplicaKey {
	return raft.ReplicaKey{Group: raft.GroupID(group), Replica: raft.ReplicaID(replica)}
}

func createTest(t testing.TB, s *Store, ids ...raft.ReplicaKey) {
	t.Helper()
	for _, id := range ids {
		if err := s.Create(id, raft.Membership{}); err != nil {
			t.Fatalf("create %v: %v", id, err)
		}
	}
}

// appendTest appends one write and waits until it is durable.
func appendTest(t testing.TB, s *Store, id raft.ReplicaKey, w raft.Write) {
	t.Helper()
	if err := appendWait(s, Write{ID: id, Write: w}); err != nil {
		t.Fatalf("append to %v: %v", id, err)
	}
}

func appendWait(s *Store, writes ...Write) error {
	done := make(chan error, 1)
	s.Append(writes, func(err error) { done <- err })
	select {
	case err := <-done:
		return err
	case <-time.After(testDeadline):
		return errors.New("no answer")
	}
}

// membership has one voter, whose node is the epoch.
func membership(epoch uint64) raft.Membership {
	return raft.Membership{Epoch: epoch, Voters: []raft.Member{{Replica: 1, Node: raft.NodeID(epoch)}}}
}

func encoded(epoch uint64) []byte {
	m := membership(epoch)
	return m.Encode()
}

// entriesOf makes the entries first..last of a term.
func entriesOf(first, last raft.Index, term raft.Term) []raft.Entry {
	var entries []raft.Entry
	for i := first; i <= last; i++ {
		entries = append(entries, raft.Entry{Index: i, Term: term, Kind: raft.EntryCommand, Data: fmt.Appendf(nil, "entry %d of term %d", i, term)})
	}
	return entries
}

func sameEntries(a, b []raft.Entry) bool {
	return slices.EqualFunc(a, b, func(x, y raft.Entry) bool {
		return x.Index == y.Index && x.Term == y.Term && x.Kind == y.Kind && string(x.Data) == string(y.Data)
	})
}

func wantEntries(t testing.TB, r raft.LogReader, want []raft.Entry) {
	t.Helper()
	if len(want) == 0 {
		if r.LastIndex() != r.FirstIndex()-1 {
			t.Fatalf("log is %d..%d, want it empty", r.FirstIndex(), r.LastIndex())
		}
		return
	}
	first, last := want[0].Index, want[len(want)-1].Index
	if r.FirstIndex() != first || r.LastIndex() != last {
		t.Fatalf("log is %d..%d, want %d..%d", r.FirstIndex(), r.LastIndex(), first, last)
	}
	got, err := r.Entries(first, last+1, 1<<30)
	if err != nil {
		t.Fatalf("entries %d..%d: %v", first, last, err)
	}
	if !sameEntries(got, want) {
		t.Fatalf("entries are\n%v\nwant\n%v", got, want)
	}
	for _, e := range want {
		if term, err := r.Term(e.Index); err != nil || term != e.Term {
			t.Fatalf("term of %d is %d, %v; want %d", e.Index, term, err, e.Term)
		}
	}
}

// dropTails empties the memory, so that reads go to the files.
func dropTails(s *Store) {
	for _, g := range s.all() {
		g.mu.Lock()
		g.evict(g.last)
		g.mu.Unlock()
	}
}

func TestWhatWasAppendedIsReadBackAfterReopen(t *testing.T) {
	fs := vfs.NewMem()
	o := testOptions(t, fs)
	s := openTest(t, o)
	if err := s.Create(key(2, 1), membership(1)); err != nil {
		t.Fatal(err)
	}
	entries := entriesOf(1, 5, 3)
	entries[2] = raft.Entry{Index: 3, Term: 3, Kind: raft.EntryMembership, Data: encoded(2)}
	hard := raft.HardState{Term: 3, Vote: 1}
	appendTest(t, s, key(2, 1), raft.Write{HardState: &hard, Entries: entries})
	check := func() {
		t.Helper()
		state, err := s.Load(key(2, 1))
		if err != nil {
			t.Fatal(err)
		}
		if state.HardState != hard || state.First != 1 || state.Last != 5 || state.Suspect {
			t.Fatalf("state is %+v", state)
		}
		if len(state.Memberships) != 1 || state.Memberships[0].Index != 3 || state.Memberships[0].Term != 3 || state.Memberships[0].Membership.Epoch != 2 {
			t.Fatalf("memberships are %+v", state.Memberships)
		}
		wantEntries(t, s.Reader(key(2, 1)), entries)
	}
	check()
	closeTest(t, s)
	s = openTest(t, o)
	defer closeTest(t, s)
	check()
	if s.Cut() {
		t.Fatal("a log that was closed cleanly counts as cut")
	}
	records := s.Replicas()
	if len(records) != 1 || records[0].ID != key(2, 1) || records[0].First.Epoch != 1 {
		t.Fatalf("replicas are %+v", records)
	}
}

func TestOverwritingTruncates(t *testing.T) {
	s := openTest(t, testOptions(t, vfs.NewMem()))
	defer closeTest(t, s)
	id := key(2, 1)
	createTest(t, s, id)
	for _, long := range []raft.Index{20, 500} { // point deletes, a range
		appendTest(t, s, id, raft.Write{Reset: &raft.SnapshotMark{}})
		m := raft.Entry{Index: 12, Term: 1, Kind: raft.EntryMembership, Data: encoded(9)}
		appendTest(t, s, id, raft.Write{Entries: append(append(entriesOf(1, 11, 1), m), entriesOf(13, long, 1)...)})
		appendTest(t, s, id, raft.Write{Entries: entriesOf(8, 10, 2)})
		want := append(entriesOf(1, 7, 1), entriesOf(8, 10, 2)...)
		wantEntries(t, s.Reader(id), want)
		dropTails(s)
		wantEntries(t, s.Reader(id), want)
		if state, err := s.Load(id); err != nil || len(state.Memberships) != 0 {
			t.Fatalf("truncated membership is still there: %+v, %v", state, err)
		}
		if _, err := s.Reader(id).Entries(11, 12, 0); !errors.Is(err, raft.ErrUnavailable) {
			t.Fatalf("reading a truncated entry: %v", err)
		}
	}
}

func TestTailHoldsRecentEntriesWithinItsBudget(t *testing.T) {
	o := testOptions(t, vfs.NewMem())
	o.TailBytes = 20 * (len("entry 10 of term 1") + entryOverheadBytes)
	s := openTest(t, o)
	defer closeTest(t, s)
	a, b := key(2, 1), key(3, 1)
	createTest(t, s, a, b)
	appendTest(t, s, a, raft.Write{Entries: entriesOf(1, 10, 1)})
	appendTest(t, s, b, raft.Write{Entries: entriesOf(1, 9, 1)})
	appendTest(t, s, b, raft.Write{Entries: entriesOf(10, 19, 1)})
	if n := tailLen(s, a); n != 0 {
		t.Fatalf("the oldest entries are still in memory: %d", n)
	}
	if n := tailLen(s, b); n == 0 {
		t.Fatal("recent entries are not in memory")
	}
	wantEntries(t, s.Reader(a), entriesOf(1, 10, 1))
	wantEntries(t, s.Reader(b), entriesOf(1, 19, 1))
	if got, want := tailBytes(s), s.tails.bytes; got != want {
		t.Fatalf("tails hold %d bytes, the budget counts %d", got, want)
	}
}

func tailLen(s *Store, id raft.ReplicaKey) int {
	g, _ := s.group(id)
	g.mu.RLock()
	defer g.mu.RUnlock()
	return len(g.tail)
}

func tailBytes(s *Store) int {
	bytes := 0
	for _, g := range s.all() {
		g.mu.RLock()
		for _, e := range g.tail {
			bytes += entryBytes(e)
		}
		g.mu.RUnlock()
	}
	return bytes
}

func TestEntriesStopsAtMaxBytesButReturnsOne(t *testing.T) {
	s := openTest(t, testOptions(t, vfs.NewMem()))
	defer closeTest(t, s)
	id := key(2, 1)
	createTest(t, s, id)
	entries := entriesOf(1, 9, 1)
	appendTest(t, s, id, raft.Write{Entries: entries})
	each := len(entries[0].Data)
	for _, from := range []string{"memory", "the files"} {
		for maxBytes, want := range map[int]int{0: 1, each - 1: 1, each: 2, 3 * each: 4, 1 << 20: 9} {
			got, err := s.Reader(id).Entries(1, 10, maxBytes)
			if err != nil || len(got) != want {
				t.Errorf("from %s with %d bytes beyond the first: %d entries, %v; want %d", from, maxBytes, len(got), err, want)
			}
		}
		dropTails(s)
	}
}

func TestCompactForgetsTheBeginning(t *testing.T) {
	fs := vfs.NewMem()
	o := testOptions(t, fs)
	s := openTest(t, o)
	id := key(2, 1)
	createTest(t, s, id)
	appendTest(t, s, id, raft.Write{Entries: entriesOf(1, 100, 7)})
	before := s.Size(id)
	s.Compact(id, 60)
	waitFor(t, func() bool { return s.Reader(id).FirstIndex() == 61 })
	check := func() {
		t.Helper()
		wantEntries(t, s.Reader(id), entriesOf(61, 100, 7))
		if term, err := s.Reader(id).Term(60); err != nil || term != 7 {
			t.Fatalf("term before the first entry: %d, %v", term, err)
		}
		for _, ask := range []raft.Index{1, 60} {
			if _, err := s.Reader(id).Entries(ask, ask+1, 0); !errors.Is(err, raft.ErrCompacted) {
				t.Fatalf("reading compacted entry %d: %v", ask, err)
			}
		}
		if _, err := s.Reader(id).Term(59); !errors.Is(err, raft.ErrCompacted) {
			t.Fatalf("term of a compacted entry: %v", err)
		}
	}
	check()
	if after := s.Size(id); after >= before/2 || after <= before/4 {
		t.Errorf("size went from %d to %d", before, after)
	}
	closeTest(t, s)
	s = openTest(t, o)
	defer closeTest(t, s)
	check()
	s.Compact(id, 1000)
	waitFor(t, func() bool { return s.Reader(id).FirstIndex() == 101 })
	if size := s.Size(id); size != 0 {
		t.Errorf("an empty log has %d bytes", size)
	}
	appendTest(t, s, id, raft.Write{Entries: entriesOf(101, 102, 8)})
	wantEntries(t, s.Reader(id), entriesOf(101, 102, 8))
}

// fataler is what testing.TB and *rapid.T share here.
type fataler interface {
	Helper()
	Fatal(...any)
}

func waitFor(t fataler, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(testDeadline); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("waited in vain")
		}
	}
}

func TestResetBeginsTheLogBehindTheSnapshot(t *testing.T) {
	fs := vfs.NewMem()
	o := testOptions(t, fs)
	s := openTest(t, o)
	id := key(2, 1)
	createTest(t, s, id)
	appendTest(t, s, id, raft.Write{Entries: entriesOf(1, 50, 1)})
	mark := raft.SnapshotMark{Index: 200, Term: 4, Membership: membership(3)}
	appendTest(t, s, id, raft.Write{Reset: &mark, Entries: entriesOf(201, 203, 5)})
	for range 2 {
		state, err := s.Load(id)
		if err != nil {
			t.Fatal(err)
		}
		if state.SnapshotMark == nil || state.SnapshotMark.Index != 200 || state.SnapshotMark.Membership.Voters[0].Node != 3 {
			t.Fatalf("mark is %+v", state.SnapshotMark)
		}
		if state.First != 201 || state.FirstTerm != 4 || state.Last != 203 {
			t.Fatalf("state is %+v", state)
		}
		wantEntries(t, s.Reader(id), entriesOf(201, 203, 5))
		closeTest(t, s)
		s = openTest(t, o)
	}
	s.Compact(id, 202)
	waitFor(t, func() bool { return s.Reader(id).FirstIndex() == 203 })
	if state, _ := s.Load(id); state.SnapshotMark != nil {
		t.Fatalf("the mark outlives the compaction: %+v", state.SnapshotMark)
	}
	closeTest(t, s)
}

func TestWritesThatDoNotFitAreRefusedWhole(t *testing.T) {
	s := openTest(t, testOptions(t, vfs.NewMem()))
	defer closeTest(t, s)
	a, b := key(2, 1), key(3, 1)
	createTest(t, s, a, b)
	appendTest(t, s, a, raft.Write{Reset: &raft.SnapshotMark{Index: 10, Term: 1}})
	for name, bad := range map[string]raft.Write{
		"gap":          {Entries: entriesOf(12, 13, 1)},
		"behind begin": {Entries: entriesOf(10, 11, 1)},
		"hole":         {Entries: append(entriesOf(11, 12, 1), entriesOf(14, 14, 1)...)},
	} {
		err := appendWait(s, Write{ID: b, Write: raft.Write{Entries: entriesOf(1, 1, 1)}}, Write{ID: a, Write: bad})
		var refused *WriteError
		if !errors.As(err, &refused) || refused.ID != a {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := appendWait(s, Write{ID: key(9, 9), Write: raft.Write{Entries: entriesOf(1, 1, 1)}}); !errors.Is(err, ErrNoReplica) {
		t.Errorf("write to a replica that was never created: %v", err)
	}
	wantEntries(t, s.Reader(a), nil)
	wantEntries(t, s.Reader(b), nil)
}

func TestReplicaIDIsNeverReused(t *testing.T) {
	fs := vfs.NewMem()
	o := testOptions(t, fs)
	s := openTest(t, o)
	createTest(t, s, key(2, 5))
	createTest(t, s, key(2, 5)) // its own current one
	refused := func(id raft.ReplicaKey) {
		t.Helper()
		if err := s.Create(id, raft.Membership{}); !errors.Is(err, ErrOldReplica) {
			t.Errorf("create %v: %v", id, err)
		}
	}
	refused(key(2, 4))
	createTest(t, s, key(3, 4)) // another group
	if err := s.Remove(key(2, 5)); err != nil {
		t.Fatal(err)
	}
	refused(key(2, 5))
	closeTest(t, s)
	s = openTest(t, o)
	refused(key(2, 5))
	refused(key(2, 3))
	createTest(t, s, key(2, 6))
	closeTest(t, s)
}

func TestRemoveDeletesTheLog(t *testing.T) {
	o := testOptions(t, vfs.NewMem())
	s := openTest(t, o)
	id := key(2, 1)
	createTest(t, s, id, key(3, 1))
	appendTest(t, s, id, raft.Write{HardState: &raft.HardState{Term: 4}, Entries: entriesOf(1, 100, 1)})
	r := s.Reader(id)
	if err := s.Remove(id); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(id); err != nil {
		t.Fatalf("a second time: %v", err)
	}
	for range 2 {
		if _, err := s.Load(id); !errors.Is(err, ErrNoReplica) {
			t.Errorf("load: %v", err)
		}
		if records := s.Replicas(); len(records) != 1 || records[0].ID != key(3, 1) {
			t.Errorf("replicas: %+v", records)
		}
		for _, g := range s.files.used {
			if s.Reader(key(3, 1)).LastIndex() == 0 && g.live != 0 {
				t.Errorf("%s still holds %d bytes that count", g.name, g.live)
			}
		}
		if _, err := r.Entries(50, 51, 0); err == nil {
			t.Error("a reader of the removed replica still reads")
		}
		closeTest(t, s)
		s = openTest(t, o)
		r = s.Reader(id)
	}
	closeTest(t, s)
}

func TestIdentityIsKept(t *testing.T) {
	o := testOptions(t, vfs.NewMem())
	s := openTest(t, o)
	if _, known := s.Identity(); known {
		t.Error("a new store has an identity")
	}
	want := Identity{ClusterID: "c", Node: 3, RandomID: "r", Name: "n", LastNodes: []byte{0, 255}}
	if err := s.SetIdentity(want); err != nil {
		t.Fatal(err)
	}
	closeTest(t, s)
	s = openTest(t, o)
	defer closeTest(t, s)
	got, known := s.Identity()
	if !known || got.Node != 3 || got.ClusterID != "c" || got.RandomID != "r" || got.Name != "n" || string(got.LastNodes) != string(want.LastNodes) {
		t.Errorf("identity is %+v", got)
	}
}

func TestDirectoryIsRefusedWhileOpenAndWhenNewer(t *testing.T) {
	for name, fs := range map[string]vfs.FS{"memory": vfs.NewMem(), "disk": vfs.Default} {
		t.Run(name, func(t *testing.T) {
			o := testOptions(t, fs)
			o.Dir = t.TempDir() + "/log"
			s := openTest(t, o)
			if _, err := Open(o); !errors.Is(err, disk.ErrInUse) {
				t.Errorf("second open: %v", err)
			}
			closeTest(t, s)
			if err := disk.WriteFile(fs, o.Dir+"/FORMAT", []byte("flotilla logstore 2\n")); err != nil {
				t.Fatal(err)
			}
			var newer *disk.FormatError
			if _, err := Open(o); !errors.As(err, &newer) || newer.Found != 2 || newer.Known != 1 {
				t.Errorf("newer format: %v", err)
			}
			if err := disk.WriteFile(fs, o.Dir+"/FORMAT", []byte("flotilla statestore 1\n")); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(o); !errors.Is(err, disk.ErrForeign) {
				t.Errorf("other store: %v", err)
			}
		})
	}
}

func TestClosedStoreAnswersErrClosed(t *testing.T) {
	s := openTest(t, testOptions(t, vfs.NewMem()))
	createTest(t, s, key(2, 1))
	closeTest(t, s)
	closeTest(t, s)
	if err := appendWait(s, Write{ID: key(2, 1), Write: raft.Write{Entries: entriesOf(1, 1, 1)}}); !errors.Is(err, ErrClosed) {
		t.Errorf("append: %v", err)
	}
	if err := s.Create(key(3, 1), raft.Membership{}); !errors.Is(err, ErrClosed) {
		t.Errorf("create: %v", err)
	}
}

func TestAnswersComeInTheOrderOfTheQueue(t *testing.T) {
	s := openTest(t, testOptions(t, vfs.NewMem()))
	defer closeTest(t, s)
	id := key(2, 1)
	createTest(t, s, id)
	var mu sync.Mutex
	var order []raft.Index
	const n = 300
	for i := raft.Index(1); i <= n; i++ {
		s.Append([]Write{{ID: id, Write: raft.Write{Entries: entriesOf(i, i, 1)}}}, func(err error) {
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Errorf("append %d: %v", i, err)
			}
			order = append(order, i)
		})
	}
	waitFor(t, func() bool { mu.Lock(); defer mu.Unlock(); return len(order) == n })
	if !slices.IsSorted(order) {
		t.Errorf("answers came as %v", order)
	}
}
