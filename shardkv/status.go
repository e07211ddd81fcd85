package shardkv

import (
	"crypto/sha256"
	"encoding/binary"
	"sync"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/raft/statestore"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// countedKeysMax bounds the keys that are counted for one listing of a group;
// the shards beyond are reported as unknown (-1), or as they were counted
// last.
const countedKeysMax = 200_000

// counts remembers how much was in each shard when it had had so many writes:
// a listing counts only what has changed.
type counts struct {
	mu      sync.Mutex // guards byShard; held across a count, which only listings want
	byShard map[shardmap.ShardID]count
}

type count struct {
	writes      uint64
	keys, bytes int64
}

// ShardStatuses lists the shards of a group, with what is in them: counted, but
// not at one moment, and expired keys that are not removed yet among them.
func (s *Server) ShardStatuses(id raft.GroupID) []*flotillav1.ShardStatus {
	g := s.group(id)
	if g == nil {
		return nil
	}
	g.counts.mu.Lock()
	defer g.counts.mu.Unlock()
	if g.counts.byShard == nil {
		g.counts.byShard = make(map[shardmap.ShardID]count)
	}
	var all []*flotillav1.ShardStatus
	budget := countedKeysMax
	for _, shard := range g.machine.Shards() {
		known, counted := g.counts.byShard[shard.ID]
		if (!counted || known.writes != shard.Writes) && budget > 0 {
			if now, err := g.count(shard, &budget); err == nil {
				known, counted = now, true
				g.counts.byShard[shard.ID] = now
			}
		}
		line := &flotillav1.ShardStatus{Shard: uint64(shard.ID), Group: uint64(id), Generation: uint64(shard.Generation), State: shard.State, Keys: -1, Bytes: -1}
		if counted {
			line.Keys, line.Bytes = known.keys, known.bytes
		}
		all = append(all, line)
	}
	return all
}

// count counts a shard's keys, and takes them from the budget.
func (g *group) count(shard Shard, budget *int) (count, error) {
	c := count{writes: shard.Writes}
	space := appendSpace(nil, kindValue, shard.ID, shard.inc)
	it := g.replica.NewIter(space, successor(space))
	for ok := it.First(); ok; ok = it.Next() {
		c.keys++
		c.bytes += int64(len(it.Key()) - spaceBytes + len(it.Value()) - recordHead)
	}
	*budget -= int(c.keys)
	return c, it.Close()
}

// Digest is the hash of all that a replica holds of a shard: its record, keys
// and recorded answers. Replicas that have applied the same entries have the
// same.
func Digest(r *statestore.Replica, shard shardmap.ShardID) ([sha256.Size]byte, error) {
	var digest [sha256.Size]byte
	view, err := r.View()
	if err != nil {
		return digest, err
	}
	defer view.Close()
	b, ok, err := view.Get(shardKey(shard))
	if err != nil || !ok {
		return digest, err
	}
	record, err := decodeShardRecord(b)
	if err != nil {
		return digest, err
	}
	hash := sha256.New()
	write := func(b []byte) {
		hash.Write(binary.BigEndian.AppendUint64(nil, uint64(len(b))))
		hash.Write(b)
	}
	write(b)
	for _, kind := range []byte{kindValue, kindAnswer} {
		space := appendSpace(nil, kind, shard, record.incarnation)
		it := view.NewIter(space, successor(space))
		for ok := it.First(); ok; ok = it.Next() {
			write(it.Key()[spaceBytes:])
			write(it.Value())
		}
		if err := it.Close(); err != nil {
			return digest, err
		}
	}
	hash.Sum(digest[:0])
	return digest, nil
}
