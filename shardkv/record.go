package shardkv

import (
	"encoding/binary"
	"fmt"

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

// The states of a shard. Only owned is reached so far: a group is born with
// shards. The others are for moves.
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
	writes      uint64 // how many writes the shard has had: the last version given. Stored, it may lag behind, see heldShard
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
}

func (r shardRecord) encode() []byte {
	e := encoder{b: make([]byte, 0, 32)}
	e.byte(byte(r.state))
	e.uint(r.generation)
	e.uint(uint64(r.incarnation))
	e.uint(r.writes)
	return e.b
}

func decodeShardRecord(b []byte) (shardRecord, error) {
	d := decoder{b: b}
	r := shardRecord{state: shardState(d.byte()), generation: d.uint(), incarnation: incarnation(d.uint()), writes: d.uint()}
	return r, d.end()
}

// groupRecord is what a group knows of itself.
type groupRecord struct {
	born            bool
	time            int64       // unix ms: the largest stamp applied
	lastIncarnation incarnation // the last one given
}

// storedVersion is that of all the records a group stores. It was 1, unsaid,
// while the expiry index lay in the order of time over all shards.
const storedVersion = 2

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
