package shardkv

import (
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
	mu      sync.Mutex // guards all below; held across a count, which only listings want
	byShard map[shardmap.ShardID]count

	applied raft.Index // what writes was read at
	writes  map[shardmap.ShardID]uint64
}

type count struct {
	writes      uint64
	keys, bytes int64
}

// ShardStatuses lists the shards of a group, with what is in them: expired keys
// that are not removed yet are counted too. It reads the store: it may take
// long.
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
	view, err := g.replica.View()
	if err != nil {
		return nil
	}
	defer view.Close()
	if err := g.counts.readWrites(view); err != nil {
		s.logger.Error("the write counts of a group cannot be read", "group", id, "error", err)
		return nil
	}
	var all []*flotillav1.ShardStatus
	budget := countedKeysMax
	err = eachShard(view, func(shard shardmap.ShardID, record shardRecord) {
		record.writes = g.counts.writes[shard]
		known, counted := g.counts.byShard[shard]
		if (!counted || known.writes != record.writes) && budget > 0 {
			if now, err := countShard(view, shard, record, &budget); err == nil {
				known, counted = now, true
				g.counts.byShard[shard] = now
			}
		}
		line := &flotillav1.ShardStatus{Shard: uint64(shard), Group: uint64(id), Generation: record.generation, State: record.state.String(), Keys: -1, Bytes: -1}
		if counted {
			line.Keys, line.Bytes = known.keys, known.bytes
		}
		all = append(all, line)
	})
	if err != nil {
		s.logger.Error("the shards of a group cannot be listed", "group", id, "error", err)
	}
	return all
}

// readWrites reads how many writes each shard has had, unless nothing has been
// applied since it was read.
func (c *counts) readWrites(view *statestore.View) error {
	applied, _, _, err := view.Applied()
	if err != nil || c.writes != nil && applied == c.applied {
		return err
	}
	writes := make(map[shardmap.ShardID]uint64)
	incs := make(map[shardmap.ShardID]incarnation)
	err = eachShard(view, func(shard shardmap.ShardID, record shardRecord) {
		writes[shard], incs[shard] = record.writes, record.incarnation
	})
	if err != nil {
		return err
	}
	err = eachAnswer(view, []byte{kindAnswer}, []byte{kindAnswer + 1}, func(p answerPlace, head answerHead, _ []byte, _ int) {
		if p.inc == incs[p.shard] {
			writes[p.shard] = max(writes[p.shard], head.writes)
		}
	})
	if err == nil {
		c.applied, c.writes = applied, writes
	}
	return err
}

// countShard counts a shard's keys, and takes them from the budget.
func countShard(view *statestore.View, shard shardmap.ShardID, record shardRecord, budget *int) (count, error) {
	c := count{writes: record.writes}
	space := appendSpace(nil, kindValue, shard, record.incarnation)
	it := view.NewIter(space, successor(space))
	for ok := it.First(); ok; ok = it.Next() {
		c.keys++
		c.bytes += int64(len(it.Key()) - spaceBytes + len(it.Value()) - recordHead)
	}
	*budget -= int(c.keys)
	return c, it.Close()
}
