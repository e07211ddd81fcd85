package statestore

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/flotilla-kv/flotilla/raft"
)

// streamSeed is a whole stream of a few records.
func streamSeed() []byte {
	w := newStreamWriter()
	w.record([]byte("a"), []byte("1"))
	w.record([]byte("b"), nil)
	w.record([]byte("c"), make([]byte, 300))
	w.end()
	return w.pending
}

// FuzzInstall takes in a snapshot stream of any bytes, in chunks of any size. It
// is refused and changes nothing, or it is in place as a whole; and what is in
// place can be sent on, and is then the same.
func FuzzInstall(f *testing.F) {
	whole := streamSeed()
	f.Add(whole, uint16(7))
	f.Add(whole, uint16(1000))
	f.Add(whole[:len(whole)-1], uint16(3))
	f.Add(append(whole[:len(whole):len(whole)], 1), uint16(50))
	f.Add([]byte{streamVersion, 0xff, 0xff, 0xff, 0xff, 0x0f}, uint16(2))
	f.Add([]byte{streamVersion, 0xff, 0xff, 0xff, 0x1f, 'k'}, uint16(100))
	f.Fuzz(func(t *testing.T, stream []byte, size uint16) {
		at := OpenModel(NewModel(), nil).Replica(raft.ReplicaKey{Group: 2, Replica: 3})
		b := at.NewBatch()
		b.Set([]byte("old"), []byte("state"))
		b.SetApplied(4, 1, fuzzMembership())
		if err := b.Commit(); err != nil {
			t.Fatal(err)
		}
		mark := raft.SnapshotMark{Index: 9, Term: 2, Membership: fuzzMembership()}
		if err := installAll(at, mark, stream, int(size)+1); err != nil {
			if !errors.Is(err, ErrBadStream) {
				t.Fatalf("refused by %v", err)
			}
			if _, ok, err := at.Get([]byte("old")); !ok || err != nil {
				t.Fatalf("a refused stream changed the state: %v", err)
			}
			return
		}
		if index, _, _, err := at.Applied(); index != 9 || err != nil {
			t.Fatalf("applied is %d, %v", index, err)
		}
		to := OpenModel(NewModel(), nil).Replica(raft.ReplicaKey{Group: 2, Replica: 4})
		again := drainSnapshot(t, at)
		if err := installAll(to, mark, again, len(again)); err != nil {
			t.Fatalf("what was installed cannot be sent on: %v", err)
		}
		if twice := drainSnapshot(t, to); string(twice) != string(again) {
			t.Fatalf("%d bytes became %d", len(again), len(twice))
		}
	})
}

func fuzzMembership() raft.Membership {
	return raft.Membership{Epoch: 1, Voters: []raft.Member{{Replica: 3, Node: 1}}}
}

func installAll(to *Replica, mark raft.SnapshotMark, stream []byte, size int) error {
	install := to.NewInstall(mark)
	defer install.Abort()
	for len(stream) > 0 {
		n := min(size, len(stream))
		if err := install.Add(stream[:n]); err != nil {
			return err
		}
		stream = stream[n:]
	}
	return install.Finish()
}

func drainSnapshot(t *testing.T, r *Replica) (stream []byte) {
	t.Helper()
	s, err := r.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for {
		chunk, err := s.Next()
		if err != nil {
			return stream
		}
		stream = append(stream, chunk...)
	}
}

// FuzzApplied decodes the applied record, which says who the members are.
func FuzzApplied(f *testing.F) {
	f.Add(encodeApplied(appliedRecord{SnapshotMark: raft.SnapshotMark{Index: 3, Term: 2, Membership: fuzzMembership()}, installed: true}))
	f.Add(encodeApplied(appliedRecord{}))
	f.Add(binary.BigEndian.AppendUint64(nil, 1))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := decodeApplied(b)
		if err != nil {
			return
		}
		if again, err := decodeApplied(encodeApplied(a)); err != nil || again.Index != a.Index || again.Term != a.Term || again.installed != a.installed {
			t.Fatalf("%+v became %+v, %v", a, again, err)
		}
	})
}
