package transport

import (
	"sync"
	"time"
)

// bucket limits bytes per second. Whoever takes pays at once and waits as long
// as the debt takes to be worked off, so large pieces are no exception.
type bucket struct {
	rate  float64 // bytes per second; not positive: no limit
	burst float64 // what may have been saved up

	mu     sync.Mutex // guards all below
	tokens float64
	last   time.Time
}

// burstTime is how much of its rate a bucket saves up.
const burstTime = 100 * time.Millisecond

func newBucket(bytesPerSecond int) *bucket {
	rate := float64(bytesPerSecond)
	burst := rate * burstTime.Seconds()
	return &bucket{rate: rate, burst: burst, tokens: burst}
}

// take takes n bytes and returns how long to wait before they are sent.
func (b *bucket) take(now time.Time, n int) time.Duration {
	if b.rate <= 0 {
		return 0
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.last.IsZero() {
		b.tokens = min(b.burst, b.tokens+max(0, now.Sub(b.last).Seconds())*b.rate)
	}
	b.last = now
	b.tokens -= float64(n)
	if b.tokens >= 0 {
		return 0
	}
	return time.Duration(-b.tokens / b.rate * float64(time.Second))
}
