package shardkv

import (
	"encoding/binary"
	"fmt"

	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// record is a key as it is stored. A key is absent when it is not stored, or
// when its expiry is not after the group's time.
type record struct {
	version uint64
	expires int64 // unix ms, 0: never
	value   []byte
}

// recordHead is what stands before the value: version and expiry.
const recordHead = 8 + 8

func (r record) appendHead(to []byte) []byte {
	to = binary.BigEndian.AppendUint64(to, r.version)
	return binary.BigEndian.AppendUint64(to, uint64(r.expires))
}

// decodeRecord shares the value with b.
func decodeRecord(b []byte) (record, error) {
	if len(b) < recordHead {
		return record{}, errMalformed
	}
	return record{
		version: binary.BigEndian.Uint64(b),
		expires: int64(binary.BigEndian.Uint64(b[8:])),
		value:   b[recordHead:],
	}, nil
}

// liveAt tells whether the key is there at a group time.
func (r record) liveAt(time int64) bool { return r.expires == 0 || r.expires > time }

// shardState is where a shard is in its life in this group.
type shardState uint8

// The states of a shard.
const (
	shardAbsent shardState = iota
	shardImporting
	shardOwned
	shardExporting
	shardHandedOff
)

var shardStateNames = [...]string{"absent", "importing", "owned", "exporting", "handed-off"}

func (s shardState) String() string {
	if int(s) < len(shardStateNames) {
		return shardStateNames[s]
	}
	return "unknown"
}

// serves tells whether requests for the shard are answered here.
func (s shardState) serves() bool { return s == shardOwned || s == shardExporting }

// shardRecord is what a group knows of one shard.
type shardRecord struct {
	state       shardState
	generation  uint64
	incarnation incarnation
	move        migrationID  // the last one that the group has seen of the shard
	peer        raft.GroupID // at its other end
	begun       raft.Index   // exporting, handed off: of BeginExport
	handed      raft.Index   // handed off: of HandOff
	handedTime  int64        // the group's time then
	unverified  bool         // owned: the source still has its copy
	pause       int64        // of the move that brought it here: microseconds from HandOff to Activate, 0: not known
	copied      uint64       // likewise: bytes that were handed off
	writes      uint64       // how many writes the shard has had: the last version given. Stored, it may lag behind, see heldShard
}

// heldShard is a shard as the machine holds it. Its write count rides with the
// answers that are recorded, so the shard's stored record need not follow each
// write: the count is the largest in it and in all that lies in the slots of
// the shard's answers. The record catches up when the count moves and no answer
// carries it, and when slots that may carry it are deleted.
type heldShard struct {
	shardRecord
	id       shardmap.ShardID
	saved    uint64    // the count in the stored record, or in the one the batch will hold
	dirty    bool      // the record goes into the batch
	sessions *sessions // of the present copy
	due      int64     // no key of it expires before this; MaxInt64: none does
	told     bool      // the batch's history has changes of it
	begin    uint64    // the write count with which the present copy's history begins here
	in       *imported // importing, or not verified yet; else nil
	export   *export   // exporting or handed off; else nil
}

func (r shardRecord) encode() []byte {
	e := encoder{b: make([]byte, 0, 32)}
	e.byte(byte(r.state))
	e.uint(r.generation)
	e.uint(uint64(r.incarnation))
	e.uint(r.writes)
	e.uint(uint64(r.move))
	e.uint(uint64(r.peer))
	e.uint(uint64(r.begun))
	e.uint(uint64(r.handed))
	e.int(r.handedTime)
	e.bool(r.unverified)
	e.int(r.pause)
	e.uint(r.copied)
	return e.b
}

// imported is what a group stores of an import until it is verified.
type imported struct {
	generation uint64 // of the source; the shard is served at the next
	attempt    uint64
	scan       []byte // how far the scan has come
	scanned    bool
	position   []byte // how far the rounds have come
	digest     copyDigest
	unequal    bool   // the copy is not what was handed off
	refused    bool   // it is never served
	cancelled  bool   // somebody wishes so
	verified   bool   // served, and the source may delete its copy
	writes     uint64 // the shard's count at HandOff
	cleared    bool   // since Activate all keys were cleared
	compared   []byte // through here what is stored was compared with what was handed off
	dirty      bool   // the record goes into the batch
}

func (i *imported) encode() []byte {
	e := encoder{b: make([]byte, 0, 96)}
	e.uint(i.generation)
	e.uint(i.attempt)
	e.bytes(i.scan)
	e.bytes(i.position)
	e.byte(flag(i.scanned, 1) | flag(i.unequal, 2) | flag(i.cleared, 4) | flag(i.refused, 8) | flag(i.cancelled, 16) | flag(i.verified, 32))
	e.uint(i.writes)
	e.bytes(i.compared)
	for _, s := range [...]sum{i.digest.keys, i.digest.answers} {
		s.encode(&e)
	}
	return e.b
}

func decodeImported(b []byte) (*imported, error) {
	d := decoder{b: b}
	i := &imported{generation: d.uint(), attempt: d.uint(), scan: d.bytes(), position: d.bytes()}
	flags := d.byte()
	i.scanned, i.unequal, i.cleared, i.refused, i.cancelled, i.verified = flags&1 != 0, flags&2 != 0, flags&4 != 0, flags&8 != 0, flags&16 != 0, flags&32 != 0
	i.writes, i.compared = d.uint(), d.bytes()
	i.digest.keys, i.digest.answers = decodeSum(&d), decodeSum(&d)
	return i, d.end()
}

func decodeShardRecord(b []byte) (shardRecord, error) {
	d := decoder{b: b}
	r := shardRecord{state: shardState(d.byte()), generation: d.uint(), incarnation: incarnation(d.uint()), writes: d.uint(),
		move: migrationID(d.uint()), peer: raft.GroupID(d.uint()), begun: raft.Index(d.uint()), handed: raft.Index(d.uint()), handedTime: d.int(), unverified: d.bool(),
		pause: d.int(), copied: d.uint()}
	return r, d.end()
}

// groupRecord is what a group knows of itself.
type groupRecord struct {
	born            bool
	time            int64       // unix ms: the largest stamp applied
	lastIncarnation incarnation // the last one given
}

// storedVersion is that of all the records a group stores. It was 1, unsaid,
// while the expiry index lay in the order of time over all shards, and 2 while
// the removal of an expired key was not counted as a write.
const storedVersion = 3

func (r groupRecord) encode() []byte {
	e := encoder{b: make([]byte, 0, 24)}
	e.byte(storedVersion)
	e.bool(r.born)
	e.int(r.time)
	e.uint(uint64(r.lastIncarnation))
	return e.b
}

func decodeGroupRecord(b []byte) (groupRecord, error) {
	d := decoder{b: b}
	if version := d.byte(); version != storedVersion {
		return groupRecord{}, fmt.Errorf("%w: stored by another version of flotilla (%d, this one reads %d)", errMalformed, version, storedVersion)
	}
	r := groupRecord{born: d.bool(), time: d.int(), lastIncarnation: incarnation(d.uint())}
	return r, d.end()
}
