//go:build process

package process

import (
	"encoding/json"
	"flag"
	"fmt"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// soak, if it is set, makes the long tests as long and as large as the product
// promises; make load sets it. Without it they are small enough for CI.
var soak = flag.Duration("soak", 0, "run TestSoak for so long, and the other long tests at full size")

// sized is a length or a size: full with -soak, small without.
func sized[T any](full, small T) T {
	if *soak > 0 {
		return full
	}
	return small
}

// benchResult is the JSON of flotilla bench.
type benchResult struct {
	Ops     int64   `json:"ops"`
	Failed  int64   `json:"failed"`
	Seconds float64 `json:"seconds"`
	OpsPerS float64 `json:"ops_per_s"`
	P99us   int64   `json:"p99_us"`
	MaxUs   int64   `json:"max_us"`
}

// result waits for a flotilla bench -o json.
func (c *command) result(within time.Duration) (r benchResult) {
	c.t.Helper()
	stdout, stderr, code := c.wait(within)
	if err := json.Unmarshal([]byte(stdout), &r); err != nil || code != 0 {
		c.t.Fatalf("flotilla bench: exit %d, %v\n%s%s", code, err, stdout, stderr)
	}
	return r
}

// TestAwayUnderLoad: a node that was killed with -9 comes back after a time of
// full load (60 s with -soak) and catches up from the log, while the load goes
// on; then all nodes hold the same.
func TestAwayUnderLoad(t *testing.T) {
	absence, after := sized(60*time.Second, 8*time.Second), sized(20*time.Second, 5*time.Second)
	c := startCluster(t, 3)
	victim, other := busiest(t, c, c.grpc(0))
	id := nodeID(t, c, statusAt(t, c.grpc(other)), victim)
	bench := begin(t, c.bin, "bench", "--server", c.servers(), "--duration", (absence + after).String(), "-o", "json",
		"--clients", "64", "--reads", "0", "--keys", "50000", "--value-size", "256")
	waitApplied(t, c, 500)
	c.nodes[victim].kill()
	<-time.After(absence)
	missed := metric(t, c.http(other), "flotilla_entries_applied_total")

	back := time.Now()
	c.start(victim)
	c.waitReady(victim)
	ready := time.Since(back)
	// While the load goes on nobody is without lag for long: an entry is under
	// way all the time, and status looks at one moment.
	eventually(t, absence+30*time.Second, func() error {
		if lag := lagOf(statusAt(t, c.grpc(other)), id); lag < 0 || lag > 64 {
			return fmt.Errorf("the node that was away lags %d entries", lag)
		}
		return nil
	})
	caughtUp := time.Since(back)
	result := bench.result(absence + after + time.Minute)
	if result.Failed > 0 {
		t.Errorf("%d of %d requests failed", result.Failed, result.Ops)
	}
	eventually(t, 30*time.Second, func() error {
		if lag := lagOf(statusAt(t, c.grpc(other)), id); lag != 0 {
			return fmt.Errorf("without load the node that was away lags %d entries", lag)
		}
		return nil
	})
	keys := sameReplicas(t, c)
	if snapshots := metric(t, c.http(victim), "flotilla_snapshots_installed_total"); snapshots != 0 {
		t.Errorf("it caught up by %.0f snapshots, and the log was there", snapshots)
	}
	t.Logf("away for %s of load (%.0f entries applied elsewhere, %.0f writes/s): ready %s and caught up %s after its start; %d keys, equal on all nodes",
		absence, missed, result.OpsPerS, ready.Round(time.Millisecond), caughtUp.Round(time.Millisecond), keys)
}

// TestAStoppedNodeCostsNoMemory: while a node stands still with its connections
// open, much is written (1 GB with -soak): the others keep none of it for it in
// memory. When it goes on it catches up.
func TestAStoppedNodeCostsNoMemory(t *testing.T) {
	const (
		valueBytes = 8 << 10
		memoryMost = 650 << 20 // tables, caches and what the collector leaves take some 430 MiB of it
	)
	written := sized(float64(1<<30), float64(400<<20))
	c := startCluster(t, 3)
	victim, other := busiest(t, c, c.grpc(0))
	victim, other = other, victim // the one that leads less: leaders are what is watched
	id := nodeID(t, c, statusAt(t, c.grpc(other)), victim)
	c.nodes[victim].signal(syscall.SIGSTOP)
	var ops int64
	for float64(ops*valueBytes) < written {
		bench := begin(t, c.bin, "bench", "--server", c.grpc(other), "--duration", "4s", "-o", "json",
			"--clients", "32", "--reads", "0", "--keys", "2000", "--value-size", strconv.Itoa(valueBytes))
		r := bench.result(time.Minute)
		if r.Failed > 0 {
			t.Errorf("%d of %d requests failed", r.Failed, r.Ops)
		}
		ops += r.Ops
		for i := range c.nodes {
			if i == victim {
				continue
			}
			if memory := metric(t, c.http(i), "process_resident_memory_bytes"); memory > memoryMost {
				t.Fatalf("after %d MB a node takes %.0f MB", ops*valueBytes>>20, memory/(1<<20))
			}
		}
	}
	c.nodes[victim].signal(syscall.SIGCONT)
	eventually(t, 2*time.Minute, func() error {
		if lag := lagOf(statusAt(t, c.grpc(other)), id); lag != 0 {
			return fmt.Errorf("the node that stood still lags %d entries", lag)
		}
		return nil
	})
	t.Logf("%d MB were written; the others take %.0f MB", ops*valueBytes>>20, metric(t, c.http(other), "process_resident_memory_bytes")/(1<<20))
}
