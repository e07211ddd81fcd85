package logstore

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/flotilla-kv/flotilla/raft"
)

// smallSegments are options for a log that often begins a new file.
func smallSegments(t testing.TB, fs vfs.FS) Options {
	o := testOptions(t, fs)
	o.SegmentBytes, o.TailBytes, o.EvidenceEvery = 16<<10, 1, time.Millisecond
	return o
}

// fill appends n entries of 1 KiB to id, one write each.
func fill(t testing.TB, s *Store, id raft.ReplicaKey, n int) {
	t.Helper()
	first := s.Reader(id).LastIndex() + 1
	for i := range raft.Index(n) {
		e := raft.Entry{Index: first + i, Term: 1, Data: fmt.Appendf(make([]byte, 1000), "%d of %v", first+i, id)}
		appendTest(t, s, id, raft.Write{Entries: []raft.Entry{e}})
	}
}

// wantFilled checks that the whole log of id reads as fill wrote it.
func wantFilled(t testing.TB, s *Store, id raft.ReplicaKey) {
	t.Helper()
	r := s.Reader(id)
	for next := r.FirstIndex(); next <= r.LastIndex(); {
		entries, err := r.Entries(next, r.LastIndex()+1, 10_000)
		if err != nil {
			t.Fatalf("%v from %d: %v", id, next, err)
		}
		for _, e := range entries {
			if want := fmt.Sprintf("%d of %v", next, id); e.Index != next || !strings.HasSuffix(string(e.Data), want) {
				t.Fatalf("%v: entry %d is %d, %q", id, next, e.Index, e.Data[1000:])
			}
			next++
		}
	}
}

func compactWait(t testing.TB, s *Store, id raft.ReplicaKey, through raft.Index) {
	t.Helper()
	s.Compact(id, through)
	waitFor(t, func() bool { return s.Reader(id).FirstIndex() == through+1 })
}

// files are the names of the log's files.
func files(t testing.TB, fs vfs.FS) []string {
	t.Helper()
	names, err := fs.List("log/segments")
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	return names
}

func TestFilesAreUsedAgain(t *testing.T) {
	fs := vfs.NewCrashableMem()
	o := smallSegments(t, fs)
	s := openTest(t, o)
	id := key(2, 1)
	createTest(t, s, id)
	for range 30 { // far more than all files together hold
		fill(t, s, id, 100)
		compactWait(t, s, id, s.Reader(id).LastIndex()-10)
	}
	fill(t, s, id, 1) // a sync, behind which files may be freed
	if n := len(files(t, fs)); n > freeMax+8 {
		t.Errorf("%d files for a log of 10 entries: %v", n, files(t, fs))
	}
	wantFilled(t, s, id)
	clone := power(fs)
	closeTest(t, s)
	s = openTest(t, smallSegments(t, clone))
	defer closeTest(t, s)
	if r := s.Reader(id); s.Cut() || r.LastIndex() != 3001 {
		t.Errorf("after a power cut the log is %d..%d, cut %v", r.FirstIndex(), r.LastIndex(), s.Cut())
	}
	wantFilled(t, s, id)
}

func TestQuietGroupDoesNotKeepFiles(t *testing.T) {
	fs := vfs.NewCrashableMem()
	o := smallSegments(t, fs)
	s := openTest(t, o)
	quiet, busy := key(2, 1), key(3, 1)
	createTest(t, s, quiet, busy)
	member := raft.Entry{Index: 1, Term: 1, Kind: raft.EntryMembership, Data: encoded(5)}
	appendTest(t, s, quiet, raft.Write{Entries: []raft.Entry{member}})
	first := s.Reader(quiet).LastIndex() + 1
	fill(t, s, quiet, 20)
	for range 20 {
		fill(t, s, busy, 100)
		compactWait(t, s, busy, s.Reader(busy).LastIndex())
	}
	fill(t, s, busy, 1)
	if size := int64(len(files(t, fs))) * o.SegmentBytes; size > (freeMax+slackSegments+6)*o.SegmentBytes {
		t.Errorf("21 entries keep %d bytes of files: %v", size, files(t, fs))
	}
	check := func(s *Store) {
		t.Helper()
		state, err := s.Load(quiet)
		if err != nil || state.First != 1 || state.Last != first+19 || len(state.Memberships) != 1 || state.Memberships[0].Membership.Epoch != 5 {
			t.Fatalf("the quiet group's log is %+v, %v", state, err)
		}
		entries, err := s.Reader(quiet).Entries(first, first+20, 1<<20)
		if err != nil || len(entries) != 20 || !strings.HasSuffix(string(entries[19].Data), fmt.Sprintf("%d of %v", first+19, quiet)) {
			t.Fatalf("the quiet group's entries: %d, %v", len(entries), err)
		}
	}
	check(s)
	clone := power(fs)
	// What was moved can be truncated and compacted like anything else.
	appendTest(t, s, quiet, raft.Write{Entries: entriesOf(first+5, first+6, 2)})
	compactWait(t, s, quiet, first+2)
	closeTest(t, s)
	s = openTest(t, o)
	if r := s.Reader(quiet); r.FirstIndex() != first+3 || r.LastIndex() != first+6 {
		t.Errorf("the log is %d..%d", r.FirstIndex(), r.LastIndex())
	}
	closeTest(t, s)
	s = openTest(t, smallSegments(t, clone))
	defer closeTest(t, s)
	check(s)
}

// damageIn flips a byte in the middle of what a file's frames take.
func damageIn(t *testing.T, fs vfs.FS, name string) {
	edit(t, fs, name, func(text []byte) []byte { text[len(text)/2] ^= 1; return text })
}

func TestDamageWithinTheLogIsNoticed(t *testing.T) {
	fs := vfs.NewCrashableMem()
	s := openTest(t, smallSegments(t, fs))
	if err := s.SetIdentity(Identity{Node: 7}); err != nil {
		t.Fatal(err)
	}
	id := key(2, 1)
	createTest(t, s, id)
	fill(t, s, id, 60)
	appendTest(t, s, id, raft.Write{HardState: &raft.HardState{Term: 9, Vote: 1}})
	used := len(s.files.used)
	if used < 4 {
		t.Fatalf("%d files: the test tests nothing", used)
	}
	name := s.files.used[used-2].name
	closeTest(t, s)
	damageIn(t, fs, name)
	s = openTest(t, smallSegments(t, fs))
	state, err := s.Load(id)
	if err != nil || !s.Cut() || !state.Suspect || state.Last >= 60 || state.Last < 10 {
		t.Errorf("cut %v, %+v, %v: whole up to the damage, and suspect", s.Cut(), state, err)
	}
	if state.HardState != (raft.HardState{Term: 9, Vote: 1}) {
		t.Errorf("term and vote are %+v: the second copy was not used", state.HardState)
	}
	wantFilled(t, s, id)
	// It goes on from there, and what lay behind the damage never comes back.
	last := state.Last
	fill(t, s, id, 5)
	closeTest(t, s)
	s = openTest(t, smallSegments(t, fs))
	defer closeTest(t, s)
	if r := s.Reader(id); s.Cut() || r.LastIndex() != last+5 {
		t.Errorf("the log is %d..%d, cut %v; want its end at %d", r.FirstIndex(), r.LastIndex(), s.Cut(), last+5)
	}
	wantFilled(t, s, id)
}

func TestLostFileIsRefused(t *testing.T) {
	fs := vfs.NewCrashableMem()
	s := openTest(t, smallSegments(t, fs))
	if err := s.SetIdentity(Identity{Node: 7}); err != nil {
		t.Fatal(err)
	}
	id := key(2, 1)
	createTest(t, s, id)
	fill(t, s, id, 60)
	name := s.files.used[1].name
	closeTest(t, s)
	if err := fs.Remove(name); err != nil {
		t.Fatal(err)
	}
	var damaged *DamagedError
	if _, err := Open(smallSegments(t, fs)); !errors.As(err, &damaged) {
		t.Errorf("open: %v", err)
	}
}

func TestDamagedEntryStopsTheStore(t *testing.T) {
	fs := vfs.NewMem()
	o := smallSegments(t, fs)
	fatal := newFatalCounter()
	o.OnFatal = fatal.onFatal
	s := openTest(t, o)
	id := key(2, 1)
	createTest(t, s, id)
	fill(t, s, id, 3)
	g, _ := s.group(id)
	r := g.runs[1]
	if _, err := r.segment.file.WriteAt([]byte{0xff}, r.at+500); err != nil {
		t.Fatal(err)
	}
	if entries, err := s.Reader(id).Entries(2, 3, 0); err == nil {
		t.Errorf("a damaged entry is read as %v", entries)
	}
	select {
	case <-fatal.called:
	case <-time.After(testDeadline):
		t.Error("the node was not told")
	}
	if err := s.Close(); err == nil {
		t.Error("a store with damage closes without an error")
	}
}

// What an earlier use of a file has left must never be taken for the log, even
// if it fits by its number.
func TestOldFramesOfAFileDoNotCount(t *testing.T) {
	var f frame
	f.reset()
	f.add(recordIdentity, []byte("{}"))
	for _, nonce := range []uint64{1, 2} {
		sealFrame(f.bytes, 1, 7)
		r := frameReader{in: strings.NewReader(string(f.bytes)), header: segmentHeader{nonce: nonce}, next: 7}
		if _, _, _, ok, err := r.read(); ok != (nonce == 1) || err != nil {
			t.Errorf("nonce %d: read is %v, %v", nonce, ok, err)
		}
	}
}

// FuzzRecords feeds the replay of a frame with nonsense: it must give an error
// or a state, and never panic.
func FuzzRecords(f *testing.F) {
	var seed frame
	seed.reset()
	id := key(2, 1)
	seed.add(recordReplica, encodeID(id), encodeReplica(Record{ID: id, First: membership(1)}))
	seed.entries(recordEntries, id, entriesOf(1, 3, 1))
	seed.entries(recordMoved, id, entriesOf(1, 2, 1))
	seed.add(recordHardState, encodeID(id), encodeHardState(raft.HardState{Term: 1}))
	seed.add(recordCompacted, encodeID(id), encodeBeginning(beginning{index: 1, term: 1}))
	seed.add(recordReset, encodeID(id), encodeBeginning(beginning{index: 9, term: 1, mark: &raft.SnapshotMark{Membership: membership(2)}}))
	seed.add(recordExtent, encodeID(id), encodeExtent(4, 1, beginning{index: 1, term: 1}))
	seed.add(recordHighest, encodeID(id))
	seed.add(recordIdentity, []byte(`{"Node":1}`))
	seed.add(recordRemoved, encodeID(id))
	f.Add(seed.bytes[frameHeaderBytes:])
	f.Fuzz(func(_ *testing.T, payload []byte) {
		s := &Store{groups: map[raft.ReplicaKey]*group{}, highest: map[raft.GroupID]raft.ReplicaID{}, files: &segments{}}
		if s.replayFrame(&segment{}, payload, 0) == nil {
			_ = s.checkWhole()
		}
	})
}

// A node that is killed while it starts for the first time, or the tenth, starts
// again.
func TestACrashDuringOpenDoesNotMatter(t *testing.T) {
	for n := int64(1); ; n++ {
		mem := vfs.NewCrashableMem()
		first := &brokenDisk{sticky: true, err: syscall.EIO, match: func(op errorfs.Op) bool { return op.Kind.ReadOrWrite() == errorfs.OpIsWrite }}
		first.left.Store(n)
		first.armed.Store(true)
		o := testOptions(t, errorfs.Wrap(mem, first))
		o.OnFatal = func(error) {}
		s, err := Open(o)
		crashed := power(mem)
		again := openTest(t, testOptions(t, crashed))
		if again.Cut() {
			t.Fatalf("at %d: a crash during Open (%v) is taken for a cut log", n, err)
		}
		closeTest(t, again)
		if err == nil {
			_ = s.Close()
			if n < 10 {
				t.Fatalf("Open takes %d writes: the test tests nothing", n)
			}
			return
		}
	}
}
