package peer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"

	"github.com/flotilla-kv/flotilla/raft"
)

// The sizes and places of the persisted state are drawn in doc.go.
const (
	stateMagic   = "fpr1" // the last byte is the version
	headerBytes  = 60
	checksumFrom = 8 // what the checksum covers begins here
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum is a CRC-32C.
func checksum(data []byte) uint32 { return crc32.Checksum(data, castagnoli) }

// errState: the persisted state is not one of ours, or is damaged.
var errState = errors.New("the persisted state cannot be read")

// persisted is what a peer's persister holds beside the snapshot.
type persisted struct {
	peers, me   int
	hard        raft.HardState
	base        raft.Index
	baseTerm    raft.Term
	commands    int    // through base
	snapshotSum uint32 // checksum of the snapshot that belongs to it
}

// encode makes a state of the header and the log's entries, in memory of its
// own: the persister may keep it.
func (p *persisted) encode(entries []byte) []byte {
	b := make([]byte, 0, headerBytes+len(entries))
	b = append(b, stateMagic...)
	b = binary.BigEndian.AppendUint32(b, 0) // the checksum's place
	b = binary.BigEndian.AppendUint32(b, uint32(p.peers))
	b = binary.BigEndian.AppendUint32(b, uint32(p.me))
	b = binary.BigEndian.AppendUint64(b, uint64(p.hard.Term))
	b = binary.BigEndian.AppendUint64(b, uint64(p.hard.Vote))
	b = binary.BigEndian.AppendUint64(b, uint64(p.base))
	b = binary.BigEndian.AppendUint64(b, uint64(p.baseTerm))
	b = binary.BigEndian.AppendUint64(b, uint64(p.commands))
	b = binary.BigEndian.AppendUint32(b, p.snapshotSum)
	b = append(b, entries...)
	binary.BigEndian.PutUint32(b[len(stateMagic):], checksum(b[checksumFrom:]))
	return b
}

// decodeState reads what encode wrote. Anything else is an error, never a
// panic, whatever the bytes.
func decodeState(b []byte) (persisted, []raft.Entry, error) {
	switch {
	case len(b) < headerBytes:
		return persisted{}, nil, fmt.Errorf("%w: %d bytes, the header alone has %d", errState, len(b), headerBytes)
	case string(b[:len(stateMagic)]) != stateMagic:
		return persisted{}, nil, fmt.Errorf("%w: it begins with %q, not with %q", errState, b[:len(stateMagic)], stateMagic)
	case binary.BigEndian.Uint32(b[len(stateMagic):]) != checksum(b[checksumFrom:]):
		return persisted{}, nil, fmt.Errorf("%w: wrong checksum", errState)
	}
	p := persisted{
		peers:       int(binary.BigEndian.Uint32(b[8:])),
		me:          int(binary.BigEndian.Uint32(b[12:])),
		hard:        raft.HardState{Term: raft.Term(binary.BigEndian.Uint64(b[16:])), Vote: raft.ReplicaID(binary.BigEndian.Uint64(b[24:]))},
		base:        raft.Index(binary.BigEndian.Uint64(b[32:])),
		baseTerm:    raft.Term(binary.BigEndian.Uint64(b[40:])),
		commands:    int(binary.BigEndian.Uint64(b[48:])),
		snapshotSum: binary.BigEndian.Uint32(b[56:]),
	}
	if p.base > indexMax || (p.base == 0) != (p.baseTerm == 0) || p.commands < 0 || p.commands > int(p.base) {
		return persisted{}, nil, fmt.Errorf("%w: %d commands through entry %d of term %d", errState, p.commands, p.base, p.baseTerm)
	}
	entries, err := decodeEntries(b[headerBytes:], p.base)
	return p, entries, err
}

// encodedEntries are the log's entries as they are persisted, kept so that
// saving a longer log encodes only what is new.
type encodedEntries struct {
	bytes []byte
	ends  []int // where each entry ends
}

func (e *encodedEntries) append(entry *raft.Entry) {
	e.bytes = appendEntry(e.bytes, entry)
	e.ends = append(e.ends, len(e.bytes))
}

// truncate keeps the first n entries.
func (e *encodedEntries) truncate(n int) {
	e.bytes, e.ends = e.bytes[:e.end(n)], e.ends[:n]
}

// drop lets go of the first n entries and their memory.
func (e *encodedEntries) drop(n int) {
	cut := e.end(n)
	e.bytes, e.ends = slices.Clone(e.bytes[cut:]), slices.Clone(e.ends[n:])
	for i := range e.ends {
		e.ends[i] -= cut
	}
}

// end is where the first n entries end.
func (e *encodedEntries) end(n int) int {
	if n == 0 {
		return 0
	}
	return e.ends[n-1]
}

// appendEntry encodes an entry: its term and whether it is a no-op, and the
// command of one that is not.
func appendEntry(b []byte, e *raft.Entry) []byte {
	if e.Kind != raft.EntryCommand {
		return binary.AppendUvarint(b, uint64(e.Term)<<1|1)
	}
	b = binary.AppendUvarint(b, uint64(e.Term)<<1)
	b = binary.AppendUvarint(b, uint64(len(e.Data)))
	return append(b, e.Data...)
}

// decodeEntries reads what appendEntry wrote for the entries behind base. It
// keeps nothing of b.
func decodeEntries(b []byte, base raft.Index) ([]raft.Entry, error) {
	b = slices.Clone(b)
	var entries []raft.Entry
	for len(b) > 0 {
		e := raft.Entry{Index: base + 1 + raft.Index(len(entries))}
		head, n := binary.Uvarint(b)
		if n <= 0 || head>>1 == 0 {
			return nil, fmt.Errorf("%w: term of entry %d", errState, e.Index)
		}
		e.Term, b = raft.Term(head>>1), b[n:]
		if head&1 == 0 {
			size, n := binary.Uvarint(b)
			if n <= 0 || size > uint64(len(b)-n) {
				return nil, fmt.Errorf("%w: length of entry %d", errState, e.Index)
			}
			end := n + int(size)
			e.Kind, e.Data, b = raft.EntryCommand, b[n:end:end], b[end:]
		}
		entries = append(entries, e)
	}
	return entries, nil
}
