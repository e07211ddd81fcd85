package logstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"reflect"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/flotilla-kv/flotilla/internal/disk"
	"github.com/flotilla-kv/flotilla/raft"
)

// fuzzDir makes a log's directory whose files pass every checksum and say what
// the fuzzer wants: one segment whose frames are cut out of log, and side files
// from votes and evidence. Each piece begins with its length in two bytes.
func fuzzDir(t testing.TB, log, votes, evidenceText []byte) *vfs.MemFS {
	t.Helper()
	fs := vfs.NewMem()
	dir := fs.PathJoin("log", segmentsDir)
	if err := disk.MakeDir(fs, dir); err != nil {
		t.Fatal(err)
	}
	header := segmentHeader{number: 1, first: 1, nonce: 7}
	segment := header.encode()
	for seq, payload := range pieces(log) {
		frame := append(make([]byte, frameHeaderBytes), payload...)
		sealFrame(frame, header.nonce, uint64(seq+1))
		segment = append(segment, frame...)
	}
	side := append([]byte(votesMagic), make([]byte, 8)...)
	side = binary.BigEndian.AppendUint32(side, crc32.Checksum(side, castagnoli))
	for i, piece := range pieces(votes) {
		var fixed [voteRecordBytes]byte
		rest := piece[copy(fixed[:], piece):]
		side = appendVote(side, uint64(i+1), voteRecord{
			seq: uint64(fixed[0]), kind: fixed[1] % 7, payload: rest,
			id: raft.ReplicaKey{Group: raft.GroupID(binary.BigEndian.Uint16(fixed[2:])), Replica: raft.ReplicaID(binary.BigEndian.Uint16(fixed[4:]))},
		})
	}
	known := make([]byte, 2*evidenceSlotBytes)
	if len(evidenceText) >= 2 {
		copy(known, encodeEvidence(1, evidence{seq: uint64(evidenceText[0]), votes: uint64(evidenceText[1])}))
		copy(known[evidenceSlotBytes:], evidenceText[2:])
	}
	for name, text := range map[string][]byte{
		"FORMAT": []byte("flotilla logstore 1\n"), fs.PathJoin(segmentsDir, "000001.log"): segment, "votes": side, "evidence": known,
	} {
		if err := disk.WriteFile(fs, fs.PathJoin("log", name), text); err != nil {
			t.Fatal(err)
		}
	}
	return fs
}

func pieces(b []byte) (list [][]byte) {
	for len(b) > 2 {
		n := min(int(binary.BigEndian.Uint16(b)), len(b)-2)
		list = append(list, b[2:2+n])
		b = b[2+n:]
	}
	return list
}

func joined(list ...[]byte) (b []byte) {
	for _, piece := range list {
		b = append(binary.BigEndian.AppendUint16(b, uint16(len(piece))), piece...)
	}
	return b
}

// framesOf are the payloads of frames such as the store writes.
func framesOf() (log, votes []byte) {
	id := key(2, 1)
	payload := func(fill func(f *frame)) []byte {
		var f frame
		f.reset()
		fill(&f)
		return append([]byte(nil), f.bytes[frameHeaderBytes:]...)
	}
	log = joined(
		payload(func(f *frame) {
			f.add(recordCheckpoint)
			f.add(recordIdentity, encodeIdentity(Identity{ClusterID: "c", Node: 1, RandomID: "r", Name: "n"}))
			f.add(recordHighest, encodeID(key(3, 4)))
			f.add(recordReplica, encodeID(id), encodeReplica(Record{ID: id, First: membership(1)}))
			f.add(recordHardState, encodeID(id), encodeHardState(raft.HardState{Term: 1, Vote: 1}))
		}),
		payload(func(f *frame) { f.entries(recordEntries, id, entriesOf(1, 4, 1)) }),
		payload(func(f *frame) {
			f.entries(recordEntries, id, append(entriesOf(3, 3, 2), raft.Entry{Index: 4, Term: 2, Kind: raft.EntryMembership, Data: encoded(2)}))
			f.add(recordCompacted, encodeID(id), encodeBeginning(beginning{index: 1, term: 1}))
			f.entries(recordMoved, id, entriesOf(2, 2, 1))
		}),
		payload(func(f *frame) {
			f.add(recordReset, encodeID(id), encodeBeginning(beginning{index: 9, term: 2, mark: &raft.SnapshotMark{Index: 9, Term: 2, Membership: membership(2)}}))
		}),
	)
	votes = joined(
		append([]byte{1, voteCreated, 0, 2, 0, 1}, append(make([]byte, voteRecordBytes-6), encoded(1)...)...),
		append([]byte{2, voteHardState, 0, 2, 0, 1}, append(make([]byte, voteRecordBytes-6), encodeHardState(raft.HardState{Term: 3})...)...),
	)
	return log, votes
}

// FuzzOpen opens a log whose files pass every checksum and say anything. That is
// an error, or a store that can be read, written, closed, and opened again as it
// was.
func FuzzOpen(f *testing.F) {
	log, votes := framesOf()
	f.Add(log, votes, []byte{4, 2})
	f.Add(log, votes, []byte{200, 2})    // cut
	f.Add(log, []byte{}, []byte{4, 200}) // the votes are cut
	f.Add(log[:len(log)/2], votes, []byte{})
	f.Add([]byte{}, votes, []byte{4, 2})
	f.Fuzz(func(t *testing.T, log, votes, evidence []byte) {
		o := testOptions(t, fuzzDir(t, log, votes, evidence))
		o.SegmentBytes = 64 << 10
		s, err := Open(o)
		if err != nil {
			return
		}
		for _, record := range s.Replicas() {
			readAll(t, s, record.ID)
			state, err := s.Load(record.ID)
			if err != nil {
				continue
			}
			// It takes what may come next.
			err = appendWait(s, Write{ID: record.ID, Write: raft.Write{Entries: entriesOf(state.Last+1, state.Last+2, 1<<40)}})
			if err != nil && !errors.As(err, new(*WriteError)) {
				t.Fatalf("%v takes no entry: %v", record.ID, err)
			}
		}
		before := all(t, s)
		closeTest(t, s)
		s, err = Open(o)
		if err != nil {
			t.Fatalf("what was open does not open again: %v", err)
		}
		if after := all(t, s); s.Cut() || !reflect.DeepEqual(before, after) {
			t.Errorf("cut %v, and what was\n%+v\nis\n%+v", s.Cut(), before, after)
		}
		closeTest(t, s)
	})
}

// readAll reads a log as its replica would. That it cannot be is an error.
func readAll(t *testing.T, s *Store, id raft.ReplicaKey) {
	t.Helper()
	dropTails(s)
	r := s.Reader(id)
	first, last := r.FirstIndex(), r.LastIndex()
	for from := first; from <= last && from-first < 100; {
		es, err := r.Entries(from, last+1, 1<<20)
		if err != nil || len(es) == 0 {
			return
		}
		if es[0].Index != from {
			t.Fatalf("%v: asked for entry %d, got %d", id, from, es[0].Index)
		}
		from += raft.Index(len(es))
	}
	_, _ = r.Term(first - 1)
	_, _ = r.Term(last)
}

// all is what the store says of every replica.
func all(t *testing.T, s *Store) map[raft.ReplicaKey]string {
	t.Helper()
	said := make(map[raft.ReplicaKey]string)
	for _, record := range s.Replicas() {
		state, err := s.Load(record.ID)
		said[record.ID] = describe(record, state, err)
	}
	return said
}

func describe(record Record, state State, err error) string {
	mark := state.SnapshotMark
	state.SnapshotMark = nil
	return fmt.Sprintf("%+v %+v %+v %v", record, state, mark, err)
}
