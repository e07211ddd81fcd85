package node

import (
	"sync"
	"time"
)

// clusterTimeKept is for how long a reading of the cluster's clocks serves: it
// takes a lock of each peer, and writes ask for it one by one.
const clusterTimeKept = 200 * time.Millisecond

// clusterTime is what the clocks of the nodes that are up show together. The
// node's own client goes by it: groups refuse sessions that were born by a clock
// of one node that is far from the others.
type clusterTime struct {
	clock func(now time.Time) int64 // reads the clocks, unix ms

	mu   sync.Mutex // guards what follows
	read time.Time  // zero: never
	ms   int64      // then
}

// at is the time when this node's clock shows now. Between two readings it runs
// by the monotonic part of now.
func (c *clusterTime) at(now time.Time) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.read.IsZero() || now.Sub(c.read) >= clusterTimeKept {
		c.read, c.ms = now, c.clock(now)
	}
	return c.ms + now.Sub(c.read).Milliseconds()
}

// clusterClock is the median of the nodes' clocks, and this node's own before it
// has a host.
func (n *Node) clusterClock(now time.Time) int64 {
	if host := n.host.Load(); host != nil {
		return host.Clock()
	}
	return now.UnixMilli()
}
