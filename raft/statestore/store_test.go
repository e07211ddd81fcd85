package statestore

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
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
		Dir: "state", FS: fs, Logger: quiet(), MemTableBytes: 1 << 20,
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

func closeTest(t testing.TB, s io.Closer) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
}

func key(group, replica uint64) raft.ReplicaKey {
	return raft.ReplicaKey{Group: raft.GroupID(group), Replica: raft.ReplicaID(replica)}
}

// put commits "key=value" pairs ("key" alone deletes) as entry index.
func put(t testing.TB, r *Replica, index raft.Index, pairs ...string) {
	t.Helper()
	b := r.NewBatch()
	for _, pair := range pairs {
		if k, v, ok := strings.Cut(pair, "="); ok {
			b.Set([]byte(k), []byte(v))
		} else {
			b.Delete([]byte(k))
		}
	}
	b.SetApplied(index, 1, membership())
	if err := b.Commit(); err != nil {
		t.Fatalf("commit: %v", err)
	}
}

func membership() raft.Membership {
	return raft.Membership{Epoch: 1, Voters: []raft.Member{{Replica: 1, Node: 4}}}
}

// content walks an iterator and closes it.
func content(t testing.TB, iter *Iter) string {
	t.Helper()
	var text []string
	for ok := iter.First(); ok; ok = iter.Next() {
		text = append(text, fmt.Sprintf("%s=%s", iter.Key(), iter.Value()))
	}
	if err := iter.Close(); err != nil {
		t.Fatalf("iterate: %v", err)
	}
	return strings.Join(text, " ")
}

func want(t testing.TB, r *Replica, text string) {
	t.Helper()
	if got := content(t, r.NewIter(nil, nil)); got != text {
		t.Fatalf("replica holds %q, want %q", got, text)
	}
}

// engines runs a test on both engines.
func engines(t *testing.T, test func(t *testing.T, s *Store)) {
	t.Run("pebble", func(t *testing.T) {
		s := openTest(t, testOptions(t, vfs.NewMem()))
		test(t, s)
		closeTest(t, s)
	})
	t.Run("model", func(t *testing.T) {
		s := OpenModel(NewModel(), nil)
		test(t, s)
		closeTest(t, s)
	})
}

func TestReplicasDoNotSeeEachOther(t *testing.T) {
	engines(t, func(t *testing.T, s *Store) {
		a, b, c := s.Replica(key(2, 1)), s.Replica(key(2, 2)), s.Replica(key(3, 1))
		put(t, a, 1, "k=a", "\xff=x", "\x00=z")
		put(t, b, 2, "k=b")
		want(t, a, "\x00=z k=a \xff=x")
		want(t, b, "k=b")
		want(t, c, "")
		bb := b.NewBatch()
		bb.DeleteRange(nil, nil)
		bb.SetApplied(3, 1, membership())
		if err := bb.Commit(); err != nil {
			t.Fatal(err)
		}
		want(t, a, "\x00=z k=a \xff=x")
		want(t, b, "")
		if index, term, m, err := b.Applied(); err != nil || index != 3 || term != 1 || m.Voters[0].Node != 4 {
			t.Fatalf("a range delete of everything took the applied record: %d %d %+v %v", index, term, m, err)
		}
		var seen []raft.ReplicaKey
		if err := s.EachApplied(func(id raft.ReplicaKey, _ raft.Index) { seen = append(seen, id) }); err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(seen) != "[{2 1} {2 2}]" {
			t.Fatalf("replicas are %v", seen)
		}
	})
}

func TestBatchReadsItsOwnWrites(t *testing.T) {
	engines(t, func(t *testing.T, s *Store) {
		r := s.Replica(key(2, 1))
		put(t, r, 1, "a=1", "b=1", "c=1", "d=1")
		b := r.NewBatch()
		b.Set([]byte("a"), []byte("2"))
		b.Delete([]byte("b"))
		wantGet(t, b.Get, "a", "2")
		wantGet(t, b.Get, "b", "")
		wantGet(t, b.Get, "c", "1")
		b.DeleteRange([]byte("c"), []byte("d"))
		wantGet(t, b.Get, "c", "")
		b.Set([]byte("c"), []byte("3"))
		wantGet(t, b.Get, "c", "3")
		b.SetJoined([]byte("d"), []byte("he"), []byte("ad"))
		wantGet(t, b.Get, "d", "head")
		if got := content(t, b.Iter([]byte("b"), nil)); got != "c=3 d=head" {
			t.Fatalf("batch iterates %q", got)
		}
		want(t, r, "a=1 b=1 c=1 d=1")         // not committed
		if n := b.Changes(); n < 4 || n > 5 { // a key twice may count once
			t.Fatalf("the batch has %d changes", n)
		}
		b.SetApplied(2, 1, membership())
		if err := b.Commit(); err != nil {
			t.Fatal(err)
		}
		want(t, r, "a=2 c=3 d=head")
	})
}

func wantGet(t testing.TB, get func([]byte) ([]byte, bool, error), key, value string) {
	t.Helper()
	got, ok, err := get([]byte(key))
	if err != nil || ok != (value != "") || string(got) != value {
		t.Fatalf("get %q is %q, %v, %v; want %q", key, got, ok, err, value)
	}
}

func TestBatchIsRefused(t *testing.T) {
	engines(t, func(t *testing.T, s *Store) {
		r := s.Replica(key(2, 1))
		b := r.NewBatch()
		b.Set([]byte("a"), nil)
		if err := b.Commit(); !errors.Is(err, ErrNoApplied) {
			t.Errorf("without an applied record: %v", err)
		}
		b = r.NewBatch()
		b.SetApplied(1, 1, membership())
		b.Set(nil, []byte("overwrites the applied record"))
		if err := b.Commit(); !errors.Is(err, ErrEmptyKey) {
			t.Errorf("empty key: %v", err)
		}
		b = r.NewBatch()
		b.SetApplied(1, 1, membership())
		b.SetJoined(nil, []byte("overwrites"), []byte("it too"))
		if err := b.Commit(); !errors.Is(err, ErrEmptyKey) {
			t.Errorf("empty key: %v", err)
		}
		want(t, r, "")
		if index, _, _, err := r.Applied(); index != 0 || err != nil {
			t.Errorf("applied is %d, %v", index, err)
		}
		if _, _, err := r.Get(nil); !errors.Is(err, ErrEmptyKey) {
			t.Errorf("get: %v", err)
		}
	})
}

func TestIterMovesBothWays(t *testing.T) {
	engines(t, func(t *testing.T, s *Store) {
		put(t, s.Replica(key(2, 0)), 1, "z=below")
		put(t, s.Replica(key(2, 2)), 1, "a=above")
		r := s.Replica(key(2, 1))
		put(t, r, 1, "a=1", "b=2", "c=3", "d=4")
		iter := r.NewIter([]byte("b"), []byte("d"))
		defer closeTest(t, iter)
		for _, move := range []struct {
			name string
			do   func() bool
			want string
		}{
			{"first", iter.First, "b"},
			{"prev", iter.Prev, ""},
			{"last", iter.Last, "c"},
			{"prev", iter.Prev, "b"},
			{"next", iter.Next, "c"},
			{"next", iter.Next, ""},
			{"seek", func() bool { return iter.SeekGE([]byte("bb")) }, "c"},
			{"seek below", func() bool { return iter.SeekGE([]byte("a")) }, "b"},
			{"seek behind", func() bool { return iter.SeekGE([]byte("x")) }, ""},
			{"seek lt", func() bool { return iter.SeekLT([]byte("c")) }, "b"},
			{"seek lt all", func() bool { return iter.SeekLT([]byte("z")) }, "c"},
		} {
			ok := move.do()
			got := ""
			if ok {
				got = string(iter.Key())
			}
			if got != move.want || iter.Valid() != ok {
				t.Fatalf("%s leads to %q (valid %v), want %q", move.name, got, iter.Valid(), move.want)
			}
		}
	})
}

func TestViewStaysWhatItWas(t *testing.T) {
	engines(t, func(t *testing.T, s *Store) {
		r := s.Replica(key(2, 1))
		put(t, r, 7, "a=1", "b=1")
		v, err := r.View()
		if err != nil {
			t.Fatal(err)
		}
		put(t, r, 8, "a=2", "b", "c=2")
		check := func() {
			t.Helper()
			wantGet(t, v.Get, "a", "1")
			wantGet(t, v.Get, "b", "1")
			wantGet(t, v.Get, "c", "")
			if got := content(t, v.NewIter(nil, nil)); got != "a=1 b=1" {
				t.Fatalf("view holds %q", got)
			}
			if index, _, _, err := v.Applied(); err != nil || index != 7 {
				t.Fatalf("view is of %d, %v", index, err)
			}
		}
		check()
		if err := r.Destroy(); err != nil {
			t.Fatal(err)
		}
		check()
		closeTest(t, v)
		want(t, r, "")
	})
}

// copyTo streams one replica's state into another's.
func copyTo(t testing.TB, from, to *Replica) raft.SnapshotMark {
	t.Helper()
	snapshot, err := from.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	defer closeTest(t, snapshot)
	install := to.NewInstall(snapshot.Mark)
	for {
		chunk, err := snapshot.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(chunk) > ChunkBytes {
			t.Fatalf("a chunk has %d bytes", len(chunk))
		}
		if err := install.Add(chunk); err != nil {
			t.Fatal(err)
		}
	}
	if err := install.Finish(); err != nil {
		t.Fatal(err)
	}
	return snapshot.Mark
}

func TestInstallReplacesTheState(t *testing.T) {
	engines(t, func(t *testing.T, s *Store) {
		a, b := s.Replica(key(2, 1)), s.Replica(key(2, 2))
		big := strings.Repeat("v", 3*ChunkBytes+17)
		put(t, a, 40, "a=1", "big="+big, "c=3")
		put(t, b, 9, "a=old", "old=1")
		mark := copyTo(t, a, b)
		if mark.Index != 40 || mark.Term != 1 || mark.Membership.Epoch != 1 {
			t.Fatalf("mark is %+v", mark)
		}
		want(t, b, "a=1 big="+big+" c=3")
		if index, err := b.DurableApplied(); err != nil || index != 40 {
			t.Fatalf("durable index is %d, %v", index, err)
		}
		if got, ok, err := b.SnapshotMark(); err != nil || !ok || got.Index != 40 {
			t.Fatalf("mark after install: %+v %v %v", got, ok, err)
		}
		put(t, b, 41, "d=4")
		if _, ok, err := b.SnapshotMark(); err != nil || ok {
			t.Fatalf("the mark outlives an apply: %v %v", ok, err)
		}
		if _, err := s.Replica(key(5, 5)).Snapshot(); !errors.Is(err, ErrNoState) {
			t.Fatalf("snapshot of nothing: %v", err)
		}
	})
}

func TestBadStreamsAreRefusedAndChangeNothing(t *testing.T) {
	engines(t, func(t *testing.T, s *Store) {
		a, b := s.Replica(key(2, 1)), s.Replica(key(2, 2))
		put(t, a, 40, "a=1", "b=2", "c=3")
		put(t, b, 9, "mine=1")
		snapshot, err := a.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		defer closeTest(t, snapshot)
		whole, err := snapshot.Next()
		if err != nil {
			t.Fatal(err)
		}
		try := func(name string, stream []byte) {
			t.Helper()
			install := b.NewInstall(snapshot.Mark)
			err := install.Add(stream)
			if finished := install.Finish(); err == nil {
				err = finished
			}
			if !errors.Is(err, ErrBadStream) {
				t.Errorf("%s: %v", name, err)
			}
			if err := install.Abort(); err != nil {
				t.Errorf("%s: abort: %v", name, err)
			}
		}
		for n := range whole {
			try(fmt.Sprintf("cut at %d", n), whole[:n])
		}
		for n := range whole {
			flipped := bytes.Clone(whole)
			flipped[n] ^= 0x10
			try(fmt.Sprintf("flipped at %d", n), flipped)
		}
		try("twice", append(bytes.Clone(whole), whole...))
		want(t, b, "mine=1")
	})
}

func TestSnapshotOutlivesChanges(t *testing.T) {
	engines(t, func(t *testing.T, s *Store) {
		a, b := s.Replica(key(2, 1)), s.Replica(key(2, 2))
		var pairs, shown []string
		for i := range 200 {
			pairs = append(pairs, fmt.Sprintf("k%03d=%s", i, strings.Repeat("x", 10<<10)))
		}
		shown = append(shown, pairs...)
		put(t, a, 5, pairs...)
		snapshot, err := a.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		install := b.NewInstall(snapshot.Mark)
		for n := 0; ; n++ {
			chunk, err := snapshot.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := install.Add(chunk); err != nil {
				t.Fatal(err)
			}
			switch n {
			case 0:
				put(t, a, 6, "k150", "k199=changed", "zzz=new")
			case 1:
				if err := s.Flush(); err != nil {
					t.Fatal(err)
				}
			case 2:
				if err := a.Destroy(); err != nil {
					t.Fatal(err)
				}
			}
		}
		closeTest(t, snapshot)
		if err := install.Finish(); err != nil {
			t.Fatal(err)
		}
		want(t, b, strings.Join(shown, " "))
	})
}

func TestCloseFlushesAndReopenFindsIt(t *testing.T) {
	o := testOptions(t, vfs.NewMem())
	flushed := make(chan struct{}, 100)
	o.OnFlushed = func() { flushed <- struct{}{} }
	s := openTest(t, o)
	r := s.Replica(key(2, 1))
	put(t, r, 3, "a=1")
	if index, err := r.DurableApplied(); err != nil || index != 0 {
		t.Fatalf("durable before a flush: %d, %v", index, err)
	}
	if err := s.AsyncFlush(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-flushed:
	case <-time.After(testDeadline):
		t.Fatal("OnFlushed was not called")
	}
	if index, err := r.DurableApplied(); err != nil || index != 3 {
		t.Fatalf("durable after OnFlushed: %d, %v", index, err)
	}
	put(t, r, 4, "b=2")
	closeTest(t, s)
	closeTest(t, s)
	s = openTest(t, o)
	defer closeTest(t, s)
	r = s.Replica(key(2, 1))
	want(t, r, "a=1 b=2")
	var seen []string
	if err := s.EachDurable(func(id raft.ReplicaKey, index raft.Index) { seen = append(seen, fmt.Sprint(id, index)) }); err != nil {
		t.Fatal(err)
	}
	if strings.Join(seen, " ") != "{2 1} 4" {
		t.Fatalf("durable: %v", seen)
	}
}

func TestDirectoryIsRefusedWhileOpenAndWhenNewer(t *testing.T) {
	fs := vfs.NewMem()
	o := testOptions(t, fs)
	s := openTest(t, o)
	if _, err := Open(o); !errors.Is(err, disk.ErrInUse) {
		t.Errorf("second open: %v", err)
	}
	closeTest(t, s)
	if err := disk.WriteFile(fs, "state/FORMAT", []byte("flotilla statestore 7\n")); err != nil {
		t.Fatal(err)
	}
	var newer *disk.FormatError
	if _, err := Open(o); !errors.As(err, &newer) || newer.Found != 7 {
		t.Errorf("newer format: %v", err)
	}
}
