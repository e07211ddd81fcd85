package node

import (
	"testing"
	"time"
)

// TestClusterTime: it is read now and then, and runs on in between whatever the
// node's own wall clock does.
func TestClusterTime(t *testing.T) {
	read, cluster := 0, int64(1_000_000)
	c := clusterTime{clock: func(time.Time) int64 { read++; return cluster }}
	start := time.Now()
	for _, step := range []struct {
		after  time.Duration
		want   int64
		readBy int
	}{
		{0, 1_000_000, 1},
		{clusterTimeKept - time.Millisecond, 1_000_199, 1},
		{clusterTimeKept, 1_000_000, 2},
	} {
		if got := c.at(start.Add(step.after)); got != step.want || read != step.readBy {
			t.Errorf("after %v: %d, read %d times; want %d, %d", step.after, got, read, step.want, step.readBy)
		}
	}
}
