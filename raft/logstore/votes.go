package logstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/flotilla-kv/flotilla/internal/disk"
	"github.com/flotilla-kv/flotilla/raft"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// The kinds of records in the votes file.
const (
	voteHardState byte = 1 + iota
	voteCreated
	voteRemoved
	voteHighest
	voteLost
)

const (
	votesMagic         = "FLVO"
	votesHeaderBytes   = 16
	voteFrameBytes     = 8       // length and checksum
	voteRecordBytes    = 33      // a record's fixed part behind the frame
	voteRecordBytesMax = 1 << 20 // a membership is far smaller
	votesGrowthBytes   = 1 << 20 // the file may grow by this and its live size before it is written anew
)

// voteRecord is one change of what must not be forgotten.
type voteRecord struct {
	seq     uint64
	kind    byte
	id      raft.ReplicaKey
	payload []byte
}

// votesState is what the records add up to.
type votesState struct {
	number   uint64 // records ever written
	seq      uint64 // highest frame copied
	replicas map[raft.ReplicaKey]votesReplica
	highest  map[raft.GroupID]raft.ReplicaID
	lost     bool // see Store.Lost
}

type votesReplica struct {
	first []byte // encoded first membership
	hard  []byte // encoded term and vote; nil: none yet
}

func newVotesState() votesState {
	return votesState{replicas: map[raft.ReplicaKey]votesReplica{}, highest: map[raft.GroupID]raft.ReplicaID{}}
}

func (s *votesState) add(number uint64, r voteRecord) {
	s.number = number
	s.seq = max(s.seq, r.seq)
	if r.kind == voteLost {
		s.lost = true
		return
	}
	s.highest[r.id.Group] = max(s.highest[r.id.Group], r.id.Replica)
	switch r.kind {
	case voteHardState:
		replica := s.replicas[r.id]
		replica.hard = r.payload
		s.replicas[r.id] = replica
	case voteCreated:
		replica := s.replicas[r.id]
		replica.first = r.payload
		s.replicas[r.id] = replica
	case voteRemoved:
		delete(s.replicas, r.id)
	}
}

// records lists what the state consists of.
func (s *votesState) records() []voteRecord {
	var records []voteRecord
	if s.lost {
		records = append(records, voteRecord{seq: s.seq, kind: voteLost})
	}
	for group, replica := range s.highest {
		records = append(records, voteRecord{seq: s.seq, kind: voteHighest, id: raft.ReplicaKey{Group: group, Replica: replica}})
	}
	for id, replica := range s.replicas {
		records = append(records, voteRecord{seq: s.seq, kind: voteCreated, id: id, payload: replica.first})
		if replica.hard != nil {
			records = append(records, voteRecord{seq: s.seq, kind: voteHardState, id: id, payload: replica.hard})
		}
	}
	return records
}

// votesFile is the second copy of terms, votes and replica records. It belongs
// to one goroutine at a time.
type votesFile struct {
	fs    vfs.FS
	name  string
	file  vfs.File
	size  int64 // where the next record goes
	live  int64 // size when it was last written anew
	state votesState
}

// readVotes reads the file. damage says what is wrong with it, nil if nothing
// is; the state is then what could be read. A missing file is damage.
func readVotes(fs vfs.FS, name string) (state votesState, damage error, err error) {
	state = newVotesState()
	file, err := fs.Open(name)
	if errors.Is(err, os.ErrNotExist) {
		return state, errors.New("the votes file is missing"), nil
	}
	if err != nil {
		return state, nil, fmt.Errorf("open %s: %w", name, err)
	}
	text, err := io.ReadAll(file)
	if err = errors.Join(err, file.Close()); err != nil {
		return state, nil, fmt.Errorf("read %s: %w", name, err)
	}
	return state, state.parse(text), nil
}

func (s *votesState) parse(text []byte) error {
	if len(text) < votesHeaderBytes || string(text[:4]) != votesMagic ||
		crc32.Checksum(text[:12], castagnoli) != binary.BigEndian.Uint32(text[12:]) {
		return errors.New("the votes file has a damaged header")
	}
	s.number = binary.BigEndian.Uint64(text[4:])
	for rest := text[votesHeaderBytes:]; len(rest) > 0; {
		number, r, n, ok := decodeVote(rest)
		if !ok || number != s.number+1 {
			return fmt.Errorf("the votes file is damaged behind record %d", s.number)
		}
		s.add(number, r)
		rest = rest[n:]
	}
	return nil
}

func appendVote(to []byte, number uint64, r voteRecord) []byte {
	start := len(to)
	to = binary.BigEndian.AppendUint32(to, uint32(voteRecordBytes+len(r.payload)))
	to = append(to, 0, 0, 0, 0)
	to = binary.BigEndian.AppendUint64(to, number)
	to = binary.BigEndian.AppendUint64(to, r.seq)
	to = append(to, r.kind)
	to = binary.BigEndian.AppendUint64(to, uint64(r.id.Group))
	to = binary.BigEndian.AppendUint64(to, uint64(r.id.Replica))
	to = append(to, r.payload...)
	binary.BigEndian.PutUint32(to[start+4:], crc32.Checksum(to[start+voteFrameBytes:], castagnoli))
	return to
}

func decodeVote(text []byte) (number uint64, r voteRecord, n int, ok bool) {
	if len(text) < voteFrameBytes {
		return 0, r, 0, false
	}
	length := int(binary.BigEndian.Uint32(text))
	if length < voteRecordBytes || length > voteRecordBytesMax || length > len(text)-voteFrameBytes {
		return 0, r, 0, false
	}
	body := text[voteFrameBytes : voteFrameBytes+length]
	if crc32.Checksum(body, castagnoli) != binary.BigEndian.Uint32(text[4:]) {
		return 0, r, 0, false
	}
	r = voteRecord{
		seq:  binary.BigEndian.Uint64(body[8:]),
		kind: body[16],
		id: raft.ReplicaKey{
			Group:   raft.GroupID(binary.BigEndian.Uint64(body[17:])),
			Replica: raft.ReplicaID(binary.BigEndian.Uint64(body[25:])),
		},
		payload: append([]byte(nil), body[voteRecordBytes:]...),
	}
	return binary.BigEndian.Uint64(body), r, voteFrameBytes + length, true
}

// writeVotes makes a file that holds state, durably in place of what is there.
func writeVotes(fs vfs.FS, name string, state votesState) (*votesFile, error) {
	v := &votesFile{fs: fs, name: name, state: state}
	if err := v.rewrite(); err != nil {
		return nil, err
	}
	return v, nil
}

// rewrite replaces the file by one with only what still counts.
func (v *votesFile) rewrite() error {
	text := append(make([]byte, 0, votesHeaderBytes), votesMagic...)
	text = binary.BigEndian.AppendUint64(text, v.state.number)
	text = binary.BigEndian.AppendUint32(text, crc32.Checksum(text, castagnoli))
	for _, r := range v.state.records() {
		v.state.number++
		text = appendVote(text, v.state.number, r)
	}
	if err := disk.WriteFile(v.fs, v.name, text); err != nil {
		return err
	}
	file, err := v.fs.OpenReadWrite(v.name, vfs.WriteCategoryUnspecified)
	if err != nil {
		return fmt.Errorf("open %s: %w", v.name, err)
	}
	old := v.file
	v.file, v.size, v.live = file, int64(len(text)), int64(len(text))
	if old != nil {
		return old.Close()
	}
	return nil
}

// append makes records durable.
func (v *votesFile) append(records []voteRecord) error {
	var text []byte
	for _, r := range records {
		v.state.add(v.state.number+1, r)
		text = appendVote(text, v.state.number, r)
	}
	if v.size+int64(len(text)) > 2*v.live+votesGrowthBytes {
		return v.rewrite()
	}
	if _, err := v.file.WriteAt(text, v.size); err != nil {
		return fmt.Errorf("write %s: %w", v.name, err)
	}
	if err := v.file.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", v.name, err)
	}
	v.size += int64(len(text))
	return nil
}

func (v *votesFile) close() error { return v.file.Close() }
