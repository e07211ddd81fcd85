package client

import (
	"context"
	"fmt"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// Count counts keys, all shards in parallel. Of the options Limit and KeysOnly
// do not apply.
func (c *Client) Count(ctx context.Context, options ...ScanOption) (uint64, error) {
	n, err := c.sweep(ctx, options, func(s *scanSpec, shard shardmap.ShardID, start []byte) *flotillav1.Request {
		q := s.request(shard, start, 0)
		q.Ops[0].GetScan().CountOnly = true
		return q
	})
	if err != nil {
		return 0, fmt.Errorf("count: %w", err)
	}
	return n, nil
}

// Clear deletes the keys that a Scan with these options would cover, all shards
// in parallel, and returns about how many there were. Each shard is cleared at
// once, the whole is not. Of the options Limit, KeysOnly and those of reads do
// not apply.
func (c *Client) Clear(ctx context.Context, options ...ScanOption) (uint64, error) {
	n, err := c.sweep(ctx, options, func(s *scanSpec, shard shardmap.ShardID, start []byte) *flotillav1.Request {
		q := writeRequest(&flotillav1.Op{Op: &flotillav1.Op_Clear{Clear: &flotillav1.Clear{Start: start, End: s.end, Prefix: s.prefix}}})
		q.Shard = uint64(shard)
		return q
	})
	if err != nil {
		return n, fmt.Errorf("clear: %w", err)
	}
	return n, nil
}

// sweep asks every shard of a scan, again from where it says it stopped, and
// adds up the counts.
func (c *Client) sweep(ctx context.Context, options []ScanOption, ask func(s *scanSpec, shard shardmap.ShardID, start []byte) *flotillav1.Request) (uint64, error) {
	spec := newScanSpec(options)
	ctx, cancel := c.bounded(ctx)
	defer cancel()
	m, err := c.WaitMap(ctx)
	if err != nil {
		return 0, err
	}
	shards, err := spec.shards(m)
	if err != nil {
		return 0, err
	}
	requests := make([]*flotillav1.Request, len(shards))
	for i, shard := range shards {
		requests[i] = ask(&spec, shard, spec.start)
	}
	total := uint64(0)
	for len(requests) > 0 {
		var more []*flotillav1.Request
		for i, a := range c.doAll(ctx, requests) {
			result, err := single(a)
			if err != nil {
				return total, err
			}
			total += result.GetCount()
			if next := result.GetNext(); len(next) > 0 {
				more = append(more, ask(&spec, shardmap.ShardID(requests[i].GetShard()), next))
			}
		}
		requests = more
	}
	return total, nil
}
