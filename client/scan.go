package client

import (
	"bytes"
	"container/heap"
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// Sizes of a scan. The first pages are small because there is one from each
// shard; those after them grow.
const (
	scanFirstPage = 16
	scanPageMax   = 512
	scanParallel  = 64 // pages asked for at a time
)

// ScanOption says what a Scan or Count covers and how it reads. The ReadOptions
// are among them.
type ScanOption interface{ applyScan(*scanSpec) }

type scanOption func(*scanSpec)

func (o scanOption) applyScan(s *scanSpec) { o(s) }

func (o readOption) applyScan(s *scanSpec) { s.read = append(s.read, o) }

// scanSpec is what the options made of a scan.
type scanSpec struct {
	start, end, prefix []byte
	limit              int
	keysOnly           bool
	shard              int // -1: all
	read               []ReadOption
}

// Prefix covers the keys that begin with prefix. If it names a routing key, as
// "user:{7}" does, only that one shard is asked.
func Prefix(prefix string) ScanOption {
	return scanOption(func(s *scanSpec) { s.prefix = []byte(prefix) })
}

// Range covers the keys from start on and before end; an empty end stands for
// the end of all keys.
func Range(start, end string) ScanOption {
	return scanOption(func(s *scanSpec) { s.start, s.end = []byte(start), []byte(end) })
}

// Limit ends the scan after that many keys.
func Limit(keys int) ScanOption {
	return scanOption(func(s *scanSpec) { s.limit = keys })
}

// KeysOnly leaves the values out.
func KeysOnly() ScanOption {
	return scanOption(func(s *scanSpec) { s.keysOnly = true })
}

// InShard covers one shard only.
func InShard(shard int) ScanOption {
	return scanOption(func(s *scanSpec) { s.shard = shard })
}

func newScanSpec(options []ScanOption) scanSpec {
	spec := scanSpec{shard: -1}
	for _, o := range options {
		o.applyScan(&spec)
	}
	return spec
}

// shards are those that can hold a key of the scan.
func (s *scanSpec) shards(m *shardmap.Map) ([]shardmap.ShardID, error) {
	switch {
	case s.shard >= len(m.Shards):
		return nil, fmt.Errorf("%w: shard %d, there are %d", ErrInvalid, s.shard, len(m.Shards))
	case s.shard >= 0:
		return []shardmap.ShardID{shardmap.ShardID(s.shard)}, nil
	case namesRoutingKey(s.prefix):
		return []shardmap.ShardID{shardmap.Shard(s.prefix, len(m.Shards))}, nil
	}
	all := make([]shardmap.ShardID, len(m.Shards))
	for i := range all {
		all[i] = shardmap.ShardID(i)
	}
	return all, nil
}

// namesRoutingKey reports whether all keys with the prefix have one routing
// key: its first brace is closed, around something, within the prefix.
func namesRoutingKey(prefix []byte) bool {
	open := bytes.IndexByte(prefix, '{')
	return open >= 0 && bytes.IndexByte(prefix[open+1:], '}') > 0
}

// Scan reads keys in their order, all shards merged:
//
//	for item, err := range c.Scan(ctx, client.Prefix("user:")) { ... }
//
// An error is the last thing it yields. Each page is read linearizably (or as
// the options say), the whole is no snapshot: a key that is there throughout
// is yielded once, one that comes or goes meanwhile at most once. The context
// bounds the whole; without a deadline each page has Options.Timeout. To go on
// later, start a Range after the last key.
func (c *Client) Scan(ctx context.Context, options ...ScanOption) iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		err := c.scan(ctx, newScanSpec(options), func(item Item) bool { return yield(item, nil) })
		if err != nil && !errors.Is(err, errScanStopped) {
			yield(Item{}, fmt.Errorf("scan: %w", err))
		}
	}
}

// errScanStopped: the caller has seen enough.
var errScanStopped = errors.New("stopped")

func (c *Client) scan(ctx context.Context, spec scanSpec, yield func(Item) bool) error {
	m, err := c.WaitMap(ctx)
	if err != nil {
		return err
	}
	shards, err := spec.shards(m)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	s := &merge{client: c, spec: &spec, slots: make(chan struct{}, scanParallel)}
	defer s.wait.Wait()
	defer cancel()
	if err := s.begin(ctx, shards); err != nil {
		return err
	}
	for n := 0; s.heap.Len() > 0; n++ {
		if spec.limit > 0 && n == spec.limit {
			return nil
		}
		if !yield(s.heap[0].items[0]) {
			return errScanStopped
		}
		if err := s.advance(ctx); err != nil {
			return err
		}
	}
	return nil
}

// merge is a scan under way: a page of each shard, in a heap by its first key.
type merge struct {
	client *Client
	spec   *scanSpec
	heap   cursorHeap
	slots  chan struct{}
	wait   sync.WaitGroup
}

// cursor is where the scan stands in one shard.
type cursor struct {
	shard shardmap.ShardID
	items []Item
	next  []byte // where the next page begins; nil: there is none
	size  int    // of the next page
	pages int    // taken so far
	ahead chan page
}

type page struct {
	items []Item
	next  []byte
	err   error
}

// begin reads the first page of every shard.
func (s *merge) begin(ctx context.Context, shards []shardmap.ShardID) error {
	first := scanFirstPage
	if len(shards) == 1 {
		first = scanPageMax
	}
	cursors := make([]*cursor, len(shards))
	for i, shard := range shards {
		cursors[i] = &cursor{shard: shard, next: s.spec.start, size: s.clamp(first)}
		s.fetch(ctx, cursors[i])
	}
	for _, cur := range cursors {
		if err := s.fill(ctx, cur); err != nil {
			return err
		}
		if len(cur.items) > 0 {
			s.heap = append(s.heap, cur)
		}
	}
	heap.Init(&s.heap)
	return nil
}

// clamp keeps a page within the scan's limit.
func (s *merge) clamp(size int) int {
	if s.spec.limit > 0 {
		return min(size, s.spec.limit)
	}
	return size
}

// advance moves past the first item of the heap.
func (s *merge) advance(ctx context.Context) error {
	cur := s.heap[0]
	cur.items = cur.items[1:]
	if err := s.fill(ctx, cur); err != nil {
		return err
	}
	if len(cur.items) == 0 {
		heap.Pop(&s.heap)
	} else {
		heap.Fix(&s.heap, 0)
	}
	return nil
}

// fetch asks for a shard's next page.
func (s *merge) fetch(ctx context.Context, cur *cursor) {
	q := s.spec.request(cur.shard, cur.next, cur.size)
	ahead := make(chan page, 1)
	cur.ahead = ahead
	cur.size = s.clamp(min(cur.size*4, scanPageMax))
	s.wait.Go(func() {
		select {
		case s.slots <- struct{}{}:
			defer func() { <-s.slots }()
			ahead <- s.client.page(ctx, q)
		case <-ctx.Done():
			ahead <- page{err: ctx.Err()}
		}
	})
}

// fill takes a shard's pages until one holds something or was the last, and
// asks for the one after it, to come while this one is being used.
func (s *merge) fill(ctx context.Context, cur *cursor) error {
	for len(cur.items) == 0 && (cur.ahead != nil || cur.next != nil) {
		first := cur.ahead != nil && cur.pages == 0
		if cur.ahead == nil {
			s.fetch(ctx, cur)
		}
		p := <-cur.ahead
		cur.ahead = nil
		cur.pages++
		if p.err != nil {
			return p.err
		}
		cur.items, cur.next = p.items, p.next
		if cur.next != nil && !first && s.spec.limit == 0 {
			s.fetch(ctx, cur)
		}
	}
	return nil
}

func (s *scanSpec) request(shard shardmap.ShardID, start []byte, limit int) *flotillav1.Request {
	q := readRequest(s.read, &flotillav1.Op{Op: &flotillav1.Op_Scan{Scan: &flotillav1.Scan{
		Start:    start,
		End:      s.end,
		Prefix:   s.prefix,
		Limit:    uint32(limit),
		KeysOnly: s.keysOnly,
	}}})
	q.Shard = uint64(shard)
	return q
}

// page reads one page.
func (c *Client) page(ctx context.Context, q *flotillav1.Request) page {
	result, err := c.one(ctx, q)
	if err == nil {
		err = statusError("", result)
	}
	if err != nil {
		return page{err: err}
	}
	return pageOf(result, q.GetOps()[0].GetScan().GetStart())
}

// pageOf reads a page that was asked for from start on. One that says to go on
// where it began is refused: the scan would never end.
func pageOf(result *flotillav1.Result, start []byte) page {
	p := page{items: make([]Item, len(result.GetPairs()))}
	for i, kv := range result.GetPairs() {
		p.items[i] = Item{Key: string(kv.GetKey()), Value: kv.GetValue(), Version: kv.GetVersion(), Expires: expiry(kv.GetExpireAtMs())}
	}
	if next := result.GetNext(); len(next) > 0 {
		if bytes.Compare(next, start) <= 0 {
			return page{err: fmt.Errorf("%w: a page from %q goes on at %q", ErrInternal, clip(string(start)), clip(string(next)))}
		}
		p.next = next
	}
	return p
}

// cursorHeap orders cursors by the key they stand at.
type cursorHeap []*cursor

func (h cursorHeap) Len() int           { return len(h) }
func (h cursorHeap) Less(i, j int) bool { return h[i].items[0].Key < h[j].items[0].Key }
func (h cursorHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }

// Push is of heap.Interface.
func (h *cursorHeap) Push(x any) { *h = append(*h, x.(*cursor)) }

// Pop is of heap.Interface.
func (h *cursorHeap) Pop() any {
	old := *h
	last := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return last
}
