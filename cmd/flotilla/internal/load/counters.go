package load

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
)

// Counters increments keys without a pause, and knows afterwards what each must
// hold, and for how long nothing was answered at worst.
type Counters struct {
	store Store
	keys  []string

	acked  []atomic.Int64
	failed atomic.Int64
	ops    atomic.Int64

	mu   sync.Mutex // guards what follows
	err  error      // the last
	last time.Time  // an increment was acknowledged
	gap  time.Duration
}

// NewCounters has counted nothing.
func NewCounters(s Store, keys []string) *Counters {
	return &Counters{store: s, keys: keys, acked: make([]atomic.Int64, len(keys))}
}

// Run keeps so many increments under way until ctx ends, and waits for the last.
func (c *Counters) Run(ctx context.Context, under int) {
	var wait sync.WaitGroup
	for i := range under {
		wait.Go(func() {
			answered := make(chan struct{}, 1)
			for n := i; ctx.Err() == nil; n += under {
				c.increment(n%len(c.keys), func() { answered <- struct{}{} })
				<-answered
			}
		})
	}
	wait.Wait()
}

func (c *Counters) increment(key int, done func()) {
	request := &flotillav1.Request{Ops: []*flotillav1.Op{{Op: &flotillav1.Op_Incr{Incr: &flotillav1.Incr{Key: []byte(c.keys[key]), By: 1}}}}}
	c.store.Submit(request, func(p *flotillav1.Response, err error) {
		defer done()
		if err = outcome(p, err); err != nil {
			c.failed.Add(1)
			c.mu.Lock()
			c.err = err
			c.mu.Unlock()
			return
		}
		c.acked[key].Add(1)
		c.ops.Add(1)
		now := time.Now()
		c.mu.Lock()
		defer c.mu.Unlock()
		if !c.last.IsZero() {
			c.gap = max(c.gap, now.Sub(c.last))
		}
		c.last = now
	})
}

// Ops is how many were acknowledged, Failed how many were not; the error is the
// last of those.
func (c *Counters) Ops() int64 { return c.ops.Load() }

// Failed is how many increments failed, with the error of the last.
func (c *Counters) Failed() (int64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.failed.Load(), c.err
}

// Gap is the longest time without an acknowledgement since it was last asked.
func (c *Counters) Gap() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	gap := c.gap
	if !c.last.IsZero() {
		gap = max(gap, time.Since(c.last))
	}
	c.gap = 0
	return gap
}

// Check reads the counters: by how much they hold more, and less, than was
// acknowledged, both in sum. Without failures both must be 0.
func (c *Counters) Check(ctx context.Context, read func(ctx context.Context, key string) ([]byte, error), before []int64) (more, less int64, err error) {
	for i, key := range c.keys {
		value, err := read(ctx, key)
		if err != nil {
			return 0, 0, err
		}
		held := int64(0)
		if len(value) > 0 {
			if held, err = strconv.ParseInt(string(value), 10, 64); err != nil {
				return 0, 0, fmt.Errorf("counter %s holds %q", key, value)
			}
		}
		switch d := held - before[i] - c.acked[i].Load(); {
		case d > 0:
			more += d
		case d < 0:
			less -= d
		}
	}
	return more, less, nil
}
