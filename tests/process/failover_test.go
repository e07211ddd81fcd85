//go:build process

package process

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// writer is one client that increments its own counter at one node, one
// operation at a time, and remembers what was acknowledged and how long the
// longest silence was.
type writer struct {
	key     string
	acked   int64
	failed  int
	lastErr error
	gap     time.Duration // longest time between two acknowledgements
}

// load runs one writer per key until stop, all at the given node.
func load(ctx context.Context, client *redis.Client, keys []string) func() []*writer {
	var running sync.WaitGroup
	writers := make([]*writer, len(keys))
	for i, key := range keys {
		w := &writer{key: key}
		writers[i] = w
		running.Go(func() { w.run(ctx, client) })
	}
	return func() []*writer {
		running.Wait()
		return writers
	}
}

func (w *writer) run(ctx context.Context, client *redis.Client) {
	last := time.Now()
	for ctx.Err() == nil {
		// The operation outlives the end of the load: an acknowledgement that is
		// under way is waited for.
		opCtx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		value, err := client.Incr(opCtx, w.key).Result()
		cancel()
		if err != nil {
			w.failed++
			w.lastErr = err
			continue
		}
		if value != w.acked+1 {
			w.lastErr = fmt.Errorf("INCR %s answered %d after %d was acknowledged", w.key, value, w.acked)
			w.failed++
		}
		w.acked = value
		now := time.Now()
		w.gap = max(w.gap, now.Sub(last))
		last = now
	}
}

// judge requires that nothing failed and every counter is what was
// acknowledged; it returns the longest silence of any writer.
func judge(t *testing.T, client *redis.Client, writers []*writer) (longest time.Duration, total int64) {
	t.Helper()
	for _, w := range writers {
		if w.failed > 0 {
			t.Errorf("%s: %d operations failed or answered wrongly, the last with: %v", w.key, w.failed, w.lastErr)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		value, err := client.Get(ctx, w.key).Result()
		cancel()
		if err != nil || value != strconv.FormatInt(w.acked, 10) {
			t.Errorf("%s is %q (%v), %d was acknowledged last", w.key, value, err, w.acked)
		}
		longest = max(longest, w.gap)
		total += w.acked
	}
	return longest, total
}

func counters(n int) []string {
	var keys []string
	for i := range n {
		keys = append(keys, fmt.Sprintf("counter-%d", i))
	}
	return keys
}

// busiest is the node that leads most groups, and another one.
func busiest(t *testing.T, c *cluster, server string) (victim, other int) {
	t.Helper()
	s := statusAt(t, server)
	leaders := make([]int, len(c.nodes))
	for _, group := range s.Groups {
		for i, n := range s.Nodes {
			if n.ID == group.LeaderNode {
				leaders[indexOf(t, c, s.Nodes[i].Addr)]++
			}
		}
	}
	victim = slices.Index(leaders, slices.Max(leaders))
	return victim, (victim + 1) % len(c.nodes)
}

func indexOf(t *testing.T, c *cluster, addr string) int {
	t.Helper()
	for i := range c.nodes {
		if c.grpc(i) == addr {
			return i
		}
	}
	t.Fatalf("no node at %s", addr)
	return 0
}

// TestKillLeaderUnderLoad kills -9 the node that leads most groups: clients of
// another node go on in under 1.5 s, and no increment is lost or doubled.
func TestKillLeaderUnderLoad(t *testing.T) {
	c := startCluster(t, 3)
	victim, other := busiest(t, c, c.grpc(0))
	client := c.redis(other)
	ctx, stop := context.WithCancel(context.Background())
	wait := load(ctx, client, counters(16))
	waitCounter(t, client, "counter-0", 200)
	c.nodes[victim].kill()
	waitCounter(t, client, "counter-0", 1_000)
	stop()
	longest, total := judge(t, client, wait())
	t.Logf("kill -9: %d increments, longest gap %s", total, longest)
	if longest > 1500*time.Millisecond {
		t.Errorf("clients waited %s, want less than 1.5 s", longest)
	}
}

// TestTerminateLeaderUnderLoad sends SIGTERM instead: leadership is handed over
// and no request fails.
func TestTerminateLeaderUnderLoad(t *testing.T) {
	c := startCluster(t, 3)
	victim, other := busiest(t, c, c.grpc(0))
	client := c.redis(other)
	ctx, stop := context.WithCancel(context.Background())
	wait := load(ctx, client, counters(16))
	waitCounter(t, client, "counter-0", 200)
	c.nodes[victim].terminate(20 * time.Second)
	waitCounter(t, client, "counter-0", 1_000)
	stop()
	longest, total := judge(t, client, wait())
	t.Logf("SIGTERM: %d increments, longest gap %s", total, longest)
	if longest > time.Second {
		t.Errorf("clients waited %s, want less than 1 s", longest)
	}
}

func waitCounter(t *testing.T, client *redis.Client, key string, atLeast int) {
	t.Helper()
	eventually(t, time.Minute, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		value, err := client.Get(ctx, key).Int()
		if err != nil {
			return err
		}
		if value < atLeast {
			return fmt.Errorf("%s is %d, waiting for %d", key, value, atLeast)
		}
		return nil
	})
}

// TestNoQuorum kills two of three: writes and linearizable reads fail by their
// deadline with an error that says so, and work again after a restart.
func TestNoQuorum(t *testing.T) {
	c := startCluster(t, 3)
	if out, stderr, code := flotilla(t, "put", "k", "v", "--server", c.grpc(0)); code != 0 {
		t.Fatalf("put: exit %d: %s%s", code, out, stderr)
	}
	c.nodes[1].kill()
	c.nodes[2].kill()
	for _, command := range [][]string{{"put", "k", "w"}, {"get", "k"}} {
		begin := time.Now()
		args := append(command, "--server", c.grpc(0), "--timeout", "3s")
		_, stderr, code := flotilla(t, args...)
		if code != 1 || !strings.Contains(stderr, "quorum") {
			t.Errorf("%v without a majority: exit %d, %q; want 1 and a word about the quorum", command, code, stderr)
		}
		if took := time.Since(begin); took > 6*time.Second {
			t.Errorf("%v without a majority took %s, its deadline was 3 s", command, took)
		}
	}
	c.start(1)
	c.start(2)
	c.waitReady(1)
	c.waitReady(2)
	if _, stderr, code := flotilla(t, "put", "k", "x", "--server", c.grpc(0)); code != 0 {
		t.Fatalf("put after the restart: exit %d: %s", code, stderr)
	}
	if stdout, stderr, code := flotilla(t, "get", "k", "--server", c.grpc(0)); code != 0 || stdout != "x" {
		t.Fatalf("get after the restart: exit %d: %q %s", code, stdout, stderr)
	}
}
