package shardkv

import (
	"encoding/binary"

	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// Kinds of records; see the package comment.
const (
	kindGroup     = 'g'
	kindShard     = 's'
	kindValue     = 'k'
	kindExpiry    = 'e'
	kindAnswer    = 'a'
	kindImport    = 'i' // of a shard: the import that goes on, or is not verified yet
	kindTouch     = 'u'
	kindTombstone = 'd'
	kindBytes     = 1
	shardBytes    = 4
	incBytes      = 8
	spaceBytes    = kindBytes + shardBytes + incBytes // of a shard's keys or answers
	timeBytes     = 8
	clientBytes   = 16
	slotBytes     = 2
)

// incarnation tells the copies of a shard apart that a group takes one after
// the other, so that whatever is late for one hits only its own.
type incarnation uint64

// groupKey is where the group's own record lies.
func groupKey() []byte { return []byte{kindGroup} }

func shardKey(shard shardmap.ShardID) []byte {
	return binary.BigEndian.AppendUint32([]byte{kindShard}, uint32(shard))
}

func importKey(shard shardmap.ShardID) []byte {
	return binary.BigEndian.AppendUint32([]byte{kindImport}, uint32(shard))
}

// appendSpace begins a key of one shard's copy.
func appendSpace(to []byte, kind byte, shard shardmap.ShardID, inc incarnation) []byte {
	to = append(to, kind)
	to = binary.BigEndian.AppendUint32(to, uint32(shard))
	return binary.BigEndian.AppendUint64(to, uint64(inc))
}

func valueKey(shard shardmap.ShardID, inc incarnation, key []byte) []byte {
	return appendValueKey(make([]byte, 0, spaceBytes+len(key)), shard, inc, key)
}

func appendValueKey(to []byte, shard shardmap.ShardID, inc incarnation, key []byte) []byte {
	return append(appendSpace(to, kindValue, shard, inc), key...)
}

// answerPlace is where an answer lies.
type answerPlace struct {
	shard shardmap.ShardID
	inc   incarnation
	id    sessionID
	slot  slot
}

func (p answerPlace) append(to []byte) []byte {
	to = p.id.append(appendSpace(to, kindAnswer, p.shard, p.inc))
	return binary.BigEndian.AppendUint16(to, uint16(p.slot))
}

// splitAnswerKey is the reverse.
func splitAnswerKey(b []byte) (p answerPlace, ok bool) {
	if len(b) != spaceBytes+clientBytes+slotBytes {
		return answerPlace{}, false
	}
	p.shard = shardmap.ShardID(binary.BigEndian.Uint32(b[kindBytes:]))
	p.inc = incarnation(binary.BigEndian.Uint64(b[kindBytes+shardBytes:]))
	p.id.client = binary.BigEndian.Uint64(b[spaceBytes:])
	p.id.birth = int64(binary.BigEndian.Uint64(b[spaceBytes+8:]))
	p.slot = slot(binary.BigEndian.Uint16(b[spaceBytes+clientBytes:]))
	return p, true
}

// sessionSpan holds all answers of one session.
func sessionSpan(shard shardmap.ShardID, inc incarnation, id sessionID) (lo, hi []byte) {
	lo = id.append(appendSpace(make([]byte, 0, spaceBytes+clientBytes), kindAnswer, shard, inc))
	return lo, successor(lo)
}

// expiryKey lies in the order of time within the shard's copy.
func expiryKey(shard shardmap.ShardID, inc incarnation, at int64, key []byte) []byte {
	b := appendSpace(make([]byte, 0, spaceBytes+timeBytes+len(key)), kindExpiry, shard, inc)
	return append(binary.BigEndian.AppendUint64(b, uint64(at)), key...)
}

// splitExpiryKey is the reverse, within the copy; key lives as long as b.
func splitExpiryKey(b []byte) (at int64, key []byte, ok bool) {
	if len(b) <= spaceBytes+timeBytes {
		return 0, nil, false
	}
	return int64(binary.BigEndian.Uint64(b[spaceBytes:])), b[spaceBytes+timeBytes:], true
}

// successor is the first key behind all keys that begin with prefix; nil if
// there is none.
func successor(prefix []byte) []byte {
	end := append([]byte(nil), prefix...)
	for i := len(end) - 1; i >= 0; i-- {
		end[i]++
		if end[i] != 0 {
			return end[:i+1]
		}
	}
	return nil
}
