package logstore

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/flotilla-kv/flotilla/raft"
)

// The kinds of records in a frame; the layout is drawn in doc.go.
const (
	recordIdentity byte = 1 + iota
	recordHighest
	recordReplica
	recordRemoved
	recordHardState
	recordCompacted
	recordReset
	recordEntries
	recordMoved
	recordCheckpoint
	recordExtent
	recordLost
)

const (
	recordHeaderBytes = 5 // kind and length
	idBytes           = 16
	entriesSumBytes   = 4
)

var errShort = errors.New("stored record is too short")

// frame is a frame under construction.
type frame struct {
	bytes []byte
	start int // of the open record
}

// reset begins a new frame in the same memory, unless a peak has blown it up.
func (f *frame) reset() {
	if cap(f.bytes) > 2*turnBytesMax {
		f.bytes = nil
	}
	f.bytes = append(f.bytes[:0], make([]byte, frameHeaderBytes)...)
}

func (f *frame) empty() bool { return len(f.bytes) == frameHeaderBytes }

// open begins a record; its body is appended to f.bytes until close.
func (f *frame) open(kind byte) {
	f.start = len(f.bytes)
	f.bytes = append(f.bytes, kind, 0, 0, 0, 0)
}

// close ends the record and says where its body lies in the frame.
func (f *frame) close() (at, length int) {
	at = f.start + recordHeaderBytes
	length = len(f.bytes) - at
	binary.BigEndian.PutUint32(f.bytes[f.start+1:], uint32(length))
	return at, length
}

func (f *frame) add(kind byte, parts ...[]byte) {
	f.open(kind)
	for _, p := range parts {
		f.bytes = append(f.bytes, p...)
	}
	f.close()
}

// entries adds a record of consecutive entries and says where its body lies.
func (f *frame) entries(kind byte, id raft.ReplicaKey, entries []raft.Entry) (at, length int) {
	f.open(kind)
	b := append(f.bytes, make([]byte, entriesSumBytes)...)
	b = appendID(b, id)
	b = binary.BigEndian.AppendUint64(b, uint64(entries[0].Index))
	b = binary.AppendUvarint(b, uint64(len(entries)))
	for i := range entries {
		e := &entries[i]
		b = binary.AppendUvarint(b, uint64(e.Term))
		b = append(b, byte(e.Kind))
		b = binary.AppendUvarint(b, uint64(len(e.Data)))
		b = append(b, e.Data...)
	}
	f.bytes = b
	at, length = f.close()
	body := b[at:]
	binary.BigEndian.PutUint32(body, crc32.Checksum(body[entriesSumBytes:], castagnoli))
	return at, length
}

// splitRecord takes the first record off a frame's payload.
func splitRecord(payload []byte) (kind byte, body, rest []byte, err error) {
	if len(payload) < recordHeaderBytes {
		return 0, nil, nil, errShort
	}
	length := binary.BigEndian.Uint32(payload[1:])
	if uint64(length) > uint64(len(payload)-recordHeaderBytes) {
		return 0, nil, nil, errShort
	}
	body = payload[recordHeaderBytes:]
	return payload[0], body[:length:length], body[length:], nil
}

// entriesBody is the body of a record of entries, taken apart one by one.
type entriesBody struct {
	id    raft.ReplicaKey
	next  raft.Index
	count uint64 // of entries that are left
	rest  []byte
}

// decodeEntries checks the record's checksum: of its frame's the reader of a
// single record knows nothing.
func decodeEntries(body []byte) (entriesBody, error) {
	if len(body) < entriesSumBytes+idBytes+8 {
		return entriesBody{}, errShort
	}
	if crc32.Checksum(body[entriesSumBytes:], castagnoli) != binary.BigEndian.Uint32(body) {
		return entriesBody{}, errors.New("the checksum of stored entries is wrong")
	}
	b := entriesBody{id: decodeID(body[entriesSumBytes:])}
	rest := body[entriesSumBytes+idBytes:]
	b.next = raft.Index(binary.BigEndian.Uint64(rest))
	count, n := binary.Uvarint(rest[8:])
	if n <= 0 || count == 0 {
		return entriesBody{}, errShort
	}
	b.count, b.rest = count, rest[8+n:]
	return b, nil
}

// take returns the next entry; its Data shares the body.
func (b *entriesBody) take() (e raft.Entry, err error) {
	term, n := binary.Uvarint(b.rest)
	if n <= 0 || len(b.rest) < n+1 {
		return e, errShort
	}
	e = raft.Entry{Index: b.next, Term: raft.Term(term), Kind: raft.EntryKind(b.rest[n])}
	rest := b.rest[n+1:]
	length, n := binary.Uvarint(rest)
	if n <= 0 || length > uint64(len(rest)-n) {
		return e, errShort
	}
	if length > 0 {
		e.Data = rest[n : n+int(length) : n+int(length)]
	}
	b.rest = rest[n+int(length):]
	b.next++
	b.count--
	if b.count == 0 && len(b.rest) != 0 {
		return e, errors.New("stored entries have bytes behind them")
	}
	return e, nil
}

func appendID(b []byte, id raft.ReplicaKey) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(id.Group))
	return binary.BigEndian.AppendUint64(b, uint64(id.Replica))
}

func encodeID(id raft.ReplicaKey) []byte { return appendID(make([]byte, 0, idBytes), id) }

// decodeID reads an id from at least idBytes.
func decodeID(b []byte) raft.ReplicaKey {
	return raft.ReplicaKey{Group: raft.GroupID(binary.BigEndian.Uint64(b)), Replica: raft.ReplicaID(binary.BigEndian.Uint64(b[8:]))}
}

// splitID takes an id off a body.
func splitID(body []byte) (id raft.ReplicaKey, rest []byte, err error) {
	if len(body) < idBytes {
		return id, nil, errShort
	}
	return decodeID(body), body[idBytes:], nil
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

// encodeExtent says how far a log goes: its last entry, and its beginning.
func encodeExtent(last raft.Index, lastTerm raft.Term, begin beginning) []byte {
	value := binary.BigEndian.AppendUint64(nil, uint64(last))
	value = binary.BigEndian.AppendUint64(value, uint64(lastTerm))
	return append(value, encodeBeginning(begin)...)
}

func decodeExtent(value []byte) (last raft.Index, lastTerm raft.Term, begin beginning, err error) {
	if len(value) < 16 {
		return 0, 0, begin, fmt.Errorf("extent of a log: %w", errShort)
	}
	begin, err = decodeBeginning(value[16:])
	return raft.Index(binary.BigEndian.Uint64(value)), raft.Term(binary.BigEndian.Uint64(value[8:])), begin, err
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

func decodeIdentity(value []byte) (identity Identity, err error) {
	if err := json.Unmarshal(value, &identity); err != nil {
		return identity, fmt.Errorf("identity: %w", err)
	}
	return identity, nil
}
