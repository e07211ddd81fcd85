package client

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/client/routing"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// Limits of one request of a batch; what is over goes in another. A request
// stays small beside what a message may hold, and so does its answer.
const (
	batchOpsMax    = 128
	batchValuesMax = 16 // values up to 4 MiB that come back
	batchBytesMax  = 256 << 10
)

// MultiGet reads many keys, all shards in parallel. The results stand in the
// order of the keys, with ErrNotFound as Err of those that are not there. Each
// key is read linearizably (or as the options say), the whole is no snapshot.
// If the request to a shard fails its keys have that error, and so has
// MultiGet.
func (c *Client) MultiGet(ctx context.Context, keys []string, options ...ReadOption) ([]OpResult, error) {
	ops := make([]Op, len(keys))
	for i, key := range keys {
		ops[i] = GetOp(key)
	}
	return c.batch(ctx, "multiget", ops, options)
}

// Batch carries out many operations, all shards in parallel, those of one shard
// in their order. The results stand in the order of the operations. It is not
// atomic: if the request to a shard fails, its operations have that error, and
// so has Batch, while others may have been carried out.
func (c *Client) Batch(ctx context.Context, ops ...Op) ([]OpResult, error) {
	return c.batch(ctx, "batch", ops, nil)
}

func (c *Client) batch(ctx context.Context, what string, ops []Op, options []ReadOption) ([]OpResult, error) {
	ctx, cancel := c.bounded(ctx)
	defer cancel()
	m, err := c.WaitMap(ctx)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	parts := splitBatch(ops, len(m.Shards))
	requests := make([]*flotillav1.Request, len(parts))
	for i, part := range parts {
		requests[i] = readRequest(options, part.wire...)
	}
	results := make([]OpResult, len(ops))
	var failures []error
	for i, a := range c.doAll(ctx, requests) {
		if err := parts[i].fill(results, ops, a); err != nil {
			failures = append(failures, err)
		}
	}
	if len(failures) > 0 {
		return results, fmt.Errorf("%s: %d of %d requests failed, the first: %w", what, len(failures), len(requests), failures[0])
	}
	return results, nil
}

// batchPart is one request of a batch: ops of one shard.
type batchPart struct {
	at     []int // where its ops stand in the batch
	wire   []*flotillav1.Op
	values int
	bytes  int
}

// splitBatch makes requests of ops, in their order shard by shard.
func splitBatch(ops []Op, shards int) []*batchPart {
	var parts []*batchPart
	open := make(map[shardmap.ShardID]*batchPart)
	for i, op := range ops {
		shard := shardmap.Shard([]byte(op.key), shards)
		part := open[shard]
		values, bytes := returnsValue(op.wire), opBytes(op.wire)
		if part == nil || len(part.at) >= batchOpsMax || part.values+values > batchValuesMax || part.bytes+bytes > batchBytesMax {
			part = &batchPart{}
			open[shard] = part
			parts = append(parts, part)
		}
		part.at = append(part.at, i)
		part.wire = append(part.wire, op.wire)
		part.values += values
		part.bytes += bytes
	}
	return parts
}

func returnsValue(op *flotillav1.Op) int {
	switch o := op.GetOp().(type) {
	case *flotillav1.Op_Get:
		return 1
	case *flotillav1.Op_Put:
		if o.Put.GetPrevious() || o.Put.GetCondition() != flotillav1.Put_ALWAYS {
			return 1
		}
	case *flotillav1.Op_Delete:
		if o.Delete.GetPrevious() {
			return 1
		}
	}
	return 0
}

// fill puts a part's answer where its ops stand.
func (p *batchPart) fill(results []OpResult, ops []Op, a answer) error {
	if a.err == nil && len(a.response.GetResults()) != len(p.at) {
		a.err = fmt.Errorf("%w: %d results of %d operations", ErrInternal, len(a.response.GetResults()), len(p.at))
	}
	for i, at := range p.at {
		if a.err != nil {
			results[at] = OpResult{Item: Item{Key: ops[at].key}, Err: a.err}
			continue
		}
		results[at] = opResult(ops[at], a.response.GetResults()[i])
	}
	return a.err
}

// doAll sends requests, in order where they meet in a shard, and waits for all
// answers, at most until the context ends. ctx has a deadline.
func (c *Client) doAll(ctx context.Context, requests []*flotillav1.Request) []answer {
	answers := make([]answer, len(requests))
	calls := make([]*pending, 0, len(requests))
	deadline, _ := ctx.Deadline()
	var lane routing.Lane
	var left sync.WaitGroup
	for i, q := range requests {
		bytes, err := checkRequest(q)
		if err == nil {
			err = c.gate.wait(ctx, bytes)
		}
		if err != nil {
			answers[i].err = err
			continue
		}
		left.Add(1)
		p := &pending{bytes: bytes, done: func(r *flotillav1.Response, err error) {
			answers[i] = answer{r, err}
			left.Done()
		}}
		p.call = routing.Call{Request: q, Deadline: deadline, Lane: &lane, Owner: p}
		calls = append(calls, p)
		c.begin(p)
	}
	stop := context.AfterFunc(ctx, func() { c.cancelAll(ctx, calls) })
	left.Wait()
	stop()
	return answers
}

// cancelAll ends calls whose context has.
func (c *Client) cancelAll(ctx context.Context, calls []*pending) {
	reason := cancelReason(ctx)
	c.step(func(r *routing.Router, now time.Time) {
		for _, p := range calls {
			r.Cancel(now, &p.call, reason)
		}
	})
}

func cancelReason(ctx context.Context) routing.Reason {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return routing.ReasonDeadline
	}
	return routing.ReasonCancelled
}
