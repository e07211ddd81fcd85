//go:build process

package process

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/flotilla-kv/flotilla/client"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// cutter makes connections that are cut after a while, whatever is on its way:
// requests that arrived, and answers that do not.
type cutter struct{ cuts atomic.Int64 }

func (c *cutter) dialer() *client.GRPCDialer {
	return &client.GRPCDialer{Options: []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err != nil {
			return nil, err
		}
		time.AfterFunc(300*time.Millisecond+rand.N(2*time.Second), func() {
			c.cuts.Add(1)
			conn.Close()
		})
		return conn, nil
	})}}
}

// TestIncrementsThroughEverything: 64 clients increment 16 counters, a million
// times in all with make load. Meanwhile their connections are cut again and
// again with answers under way, the node that leads most groups is killed -9 and
// restarted, and the counters' shards move from group to group. No increment
// fails, and each counts once.
func TestIncrementsThroughEverything(t *testing.T) {
	const shards, clients, callers, counters = 16, 8, 64, 16
	total := sized[int64](1_000_000, 40_000)
	c := startCluster(t, 3, "--shards", strconv.Itoa(shards))
	var cut cutter
	var all []*client.Client
	for i := range clients {
		one, err := client.New(client.Options{Servers: []string{c.grpc(i % 3), c.grpc((i + 1) % 3)}, Dialer: cut.dialer()})
		if err != nil {
			t.Fatal(err)
		}
		defer one.Close()
		all = append(all, one)
	}
	name := func(i int) string { return fmt.Sprint("counter-", i%counters) }
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var disturbing sync.WaitGroup
	defer disturbing.Wait()
	disturbing.Go(func() { moveAbout(ctx, t, c, shards, name) })
	kills := 0
	var killed atomic.Bool // at least once, so that it may end
	disturbing.Go(func() {
		defer killed.Store(true)
		for wait(ctx, 3*time.Second) {
			victim, _ := busiest(t, c, c.servers())
			c.nodes[victim].kill()
			wait(ctx, time.Second)
			c.start(victim)
			c.waitReady(victim)
			kills++
			killed.Store(true)
		}
	})

	var begun, acked, failed atomic.Int64
	var counting sync.WaitGroup
	began := time.Now()
	for i := range callers {
		counting.Go(func() {
			for begun.Add(1) <= total || !killed.Load() {
				call, cancel := context.WithTimeout(t.Context(), 60*time.Second)
				_, err := all[i%clients].Incr(call, name(rand.IntN(counters)), 1)
				cancel()
				if err == nil {
					acked.Add(1)
				} else if failed.Add(1) <= 5 {
					t.Errorf("an increment failed: %v", err)
				}
			}
		})
	}
	counting.Wait()
	took := time.Since(began)
	stop()
	disturbing.Wait()

	sum := int64(0)
	for i := range counters {
		item, err := all[0].Get(t.Context(), name(i))
		if err != nil {
			t.Fatal(err)
		}
		n, err := strconv.ParseInt(string(item.Value), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		sum += n
	}
	if sum != acked.Load() || sum < total {
		t.Errorf("%d increments were made, the counters hold %d", acked.Load(), sum)
	}
	moved, verified := listMoves(t, c)
	t.Logf("%d increments in %v: %d connections cut, %d kills, %d of %d moves verified", sum, took.Round(time.Second), cut.cuts.Load(), kills, verified, moved)
	if verified < 3 || kills == 0 || cut.cuts.Load() < 10 {
		t.Error("hardly anything was disturbed")
	}
}

// wait waits; false: ctx has ended.
func wait(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// moveAbout orders moves of the shards that the keys are in until ctx ends. What
// is refused, as a move is under way or nobody leads just then, comes again.
func moveAbout(ctx context.Context, t *testing.T, c *cluster, shards int, key func(int) string) {
	for wait(ctx, 100*time.Millisecond) {
		shard := shardmap.Shard([]byte(key(rand.IntN(shards))), shards)
		flotilla(t, "shard", "move", fmt.Sprint(shard), fmt.Sprint(2+rand.IntN(4)), "--server", c.servers())
	}
}

func listMoves(t *testing.T, c *cluster) (all, verified int) {
	t.Helper()
	if _, stderr, code := flotilla(t, "move", "wait", "--timeout", "30s", "--server", c.servers()); code != 0 {
		t.Errorf("move wait: exit %d: %s", code, stderr)
	}
	stdout, stderr, code := flotilla(t, "move", "list", "-o", "json", "--server", c.servers())
	var moves []struct{ Verified bool }
	if err := json.Unmarshal([]byte(stdout), &moves); err != nil || code != 0 {
		t.Fatalf("move list: exit %d, %v: %s", code, err, stderr)
	}
	for _, m := range moves {
		if m.Verified {
			verified++
		}
	}
	return len(moves), verified
}
