package shardkv

import (
	"crypto/sha256"
	"encoding/binary"
	"math/bits"

	"github.com/flotilla-kv/flotilla/raft/statestore"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// ShardDigest tells copies of a shard apart: the sum modulo 2^128 of a strong
// hash of each key with its value, version and expiry, and of each recorded
// answer. It does not depend on the order in which they are added, so it can
// follow a copy write by write. Where the copy lies (group, replica,
// incarnation) does not count.
type ShardDigest struct {
	High, Low     uint64 // the sum
	Keys, Answers uint64 // how many were added
	Writes        uint64 // the shard's write count
}

// Digest reads a shard's copy and adds it up. Replicas that have applied the
// same entries have the same digest; a shard that the group does not know has
// the zero one.
func Digest(r *statestore.Replica, shard shardmap.ShardID) (ShardDigest, error) {
	view, err := r.View()
	if err != nil {
		return ShardDigest{}, err
	}
	defer view.Close()
	b, ok, err := view.Get(shardKey(shard))
	if err != nil || !ok {
		return ShardDigest{}, err
	}
	record, err := decodeShardRecord(b)
	if err != nil {
		return ShardDigest{}, err
	}
	d := ShardDigest{Writes: record.writes}
	space := appendSpace(nil, kindValue, shard, record.incarnation)
	it := view.NewIter(space, successor(space))
	for ok := it.First(); ok; ok = it.Next() {
		d.add(kindValue, it.Key()[spaceBytes:], it.Value())
	}
	if err := it.Close(); err != nil {
		return ShardDigest{}, err
	}
	writes, err := eachWaited(view, shard, record.incarnation, func(id sessionID, head answerHead, content []byte) {
		d.add(kindAnswer, answerName(id, head.seq), content) // where it lies does not count
	})
	d.Writes = max(d.Writes, writes)
	return d, err
}

// eachWaited visits the answers of a copy that are still waited for, and finds
// the write count that rides with what lies in the slots.
func eachWaited(view *statestore.View, shard shardmap.ShardID, inc incarnation, visit func(id sessionID, head answerHead, content []byte)) (writes uint64, err error) {
	lo := appendSpace(nil, kindAnswer, shard, inc)
	hi := successor(lo)
	lowest := make(map[sessionID]uint64)
	err = eachAnswer(view, lo, hi, func(p answerPlace, head answerHead, _ []byte, _ int) {
		writes = max(writes, head.writes)
		lowest[p.id] = max(lowest[p.id], head.lowest)
	})
	if err != nil {
		return 0, err
	}
	return writes, eachAnswer(view, lo, hi, func(p answerPlace, head answerHead, content []byte, _ int) {
		if head.seq >= lowest[p.id] {
			visit(p.id, head, content)
		}
	})
}

// add adds a key, named without its space, with its record, or an answer,
// named by session and number, with its content.
func (d *ShardDigest) add(kind byte, name, stored []byte) {
	high, low := digestOf(kind, name, stored)
	var carry uint64
	d.Low, carry = bits.Add64(d.Low, low, 0)
	d.High, _ = bits.Add64(d.High, high, carry)
	if kind == kindValue {
		d.Keys++
	} else {
		d.Answers++
	}
}

// digestOf is the first half of SHA-256 over kind, length of the name, name
// and what is stored there, given in parts.
func digestOf(kind byte, name []byte, stored ...[]byte) (high, low uint64) {
	hash := sha256.New()
	var head [9]byte
	head[0] = kind
	binary.BigEndian.PutUint64(head[1:], uint64(len(name)))
	hash.Write(head[:])
	hash.Write(name)
	for _, part := range stored {
		hash.Write(part)
	}
	var sum [sha256.Size]byte
	hash.Sum(sum[:0])
	return binary.BigEndian.Uint64(sum[:]), binary.BigEndian.Uint64(sum[8:])
}
