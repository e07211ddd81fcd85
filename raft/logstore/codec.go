package logstore

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/flotilla-kv/flotilla/raft"
)

var errShort = errors.New("stored record is too short")

// entryHeaderBytes precede an entry's data: term(8) kind(1).
const entryHeaderBytes = 9

func putEntry(value []byte, e raft.Entry) {
	binary.BigEndian.PutUint64(value, uint64(e.Term))
	value[8] = byte(e.Kind)
	copy(value[entryHeaderBytes:], e.Data)
}

// decodeEntry copies the data: value lives only until the iterator moves.
func decodeEntry(index raft.Index, value []byte) (raft.Entry, error) {
	if len(value) < entryHeaderBytes {
		return raft.Entry{}, fmt.Errorf("entry %d: %w", index, errShort)
	}
	e := raft.Entry{
		Index: index,
		Term:  raft.Term(binary.BigEndian.Uint64(value)),
		Kind:  raft.EntryKind(value[8]),
	}
	if len(value) > entryHeaderBytes {
		e.Data = append([]byte(nil), value[entryHeaderBytes:]...)
	}
	return e, nil
}

func encodeHardState(h raft.HardState) []byte {
	value := binary.BigEndian.AppendUint64(make([]byte, 0, 16), uint64(h.Term))
	return binary.BigEndian.AppendUint64(value, uint64(h.Vote))
}

func decodeHardState(value []byte) (raft.HardState, error) {
	if len(value) != 16 {
		return raft.HardState{}, fmt.Errorf("term and vote: %w", errShort)
	}
	return raft.HardState{
		Term: raft.Term(binary.BigEndian.Uint64(value)),
		Vote: raft.ReplicaID(binary.BigEndian.Uint64(value[8:])),
	}, nil
}

// beginning says where a log begins: behind index, whose entry had term. mark
// is set if that is because a snapshot was installed.
type beginning struct {
	index raft.Index
	term  raft.Term
	mark  *raft.SnapshotMark
}

func encodeBeginning(b beginning) []byte {
	value := binary.BigEndian.AppendUint64(nil, uint64(b.index))
	value = binary.BigEndian.AppendUint64(value, uint64(b.term))
	if b.mark == nil {
		return append(value, 0)
	}
	return append(append(value, 1), b.mark.Membership.Encode()...)
}

func decodeBeginning(value []byte) (beginning, error) {
	if len(value) < 17 {
		return beginning{}, fmt.Errorf("beginning of a log: %w", errShort)
	}
	b := beginning{
		index: raft.Index(binary.BigEndian.Uint64(value)),
		term:  raft.Term(binary.BigEndian.Uint64(value[8:])),
	}
	if value[16] == 0 {
		return b, nil
	}
	m, err := raft.DecodeMembership(value[17:])
	if err != nil {
		return beginning{}, fmt.Errorf("beginning of a log: %w", err)
	}
	b.mark = &raft.SnapshotMark{Index: b.index, Term: b.term, Membership: m}
	return b, nil
}

const suspectFlag = 1

func encodeReplica(r Record) []byte {
	var flags byte
	if r.Suspect {
		flags |= suspectFlag
	}
	return append([]byte{flags}, r.First.Encode()...)
}

func decodeReplica(id raft.ReplicaKey, value []byte) (Record, error) {
	if len(value) < 1 {
		return Record{}, fmt.Errorf("replica record: %w", errShort)
	}
	first, err := raft.DecodeMembership(value[1:])
	if err != nil {
		return Record{}, fmt.Errorf("replica record: %w", err)
	}
	return Record{ID: id, First: first, Suspect: value[0]&suspectFlag != 0}, nil
}

func encodeIndexedMembership(term raft.Term, membership []byte) []byte {
	return append(binary.BigEndian.AppendUint64(make([]byte, 0, 8+len(membership)), uint64(term)), membership...)
}

func decodeIndexedMembership(index raft.Index, value []byte) (raft.IndexedMembership, error) {
	if len(value) < 8 {
		return raft.IndexedMembership{}, fmt.Errorf("membership entry %d: %w", index, errShort)
	}
	m, err := raft.DecodeMembership(value[8:])
	if err != nil {
		return raft.IndexedMembership{}, fmt.Errorf("membership entry %d: %w", index, err)
	}
	return raft.IndexedMembership{Index: index, Term: raft.Term(binary.BigEndian.Uint64(value)), Membership: m}, nil
}
