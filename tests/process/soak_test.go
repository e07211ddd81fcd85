//go:build process

package process

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// What TestSoak holds the nodes to.
const (
	soakGrowthMax   = 0.20    // of the resident memory, from warm to the end
	soakLogBytesMax = 2 << 30 // the log that a node keeps at the most
	soakExpiryMax   = time.Minute
)

// TestSoak (make load) puts full load on three processes for as long as -soak
// says, from the Go client and from Redis clients: no request fails, memory
// stays flat once warm, and the log on disk is bounded.
func TestSoak(t *testing.T) {
	if *soak == 0 {
		t.Skip("SKIPPED: make load runs it")
	}
	c := startCluster(t, 3)
	duration, warm := *soak, *soak/5 // 2 of 10 minutes
	bench := begin(t, c.bin, "bench", "--server", c.servers(), "--duration", duration.String(), "-o", "json",
		"--clients", "64", "--reads", "50", "--keys", "100000", "--value-size", "256")
	ctx, stop := context.WithTimeout(t.Context(), duration)
	defer stop()
	wait := redisLoad(ctx, t, c)

	watch := newWatch(t, c)
	watch.run(ctx, max(duration/60, time.Second), duration/10)

	ops := wait()
	result := bench.result(2 * time.Minute)
	t.Logf("Go client: %d operations, %.0f/s, p99 %d us, max %d us, %d failed; Redis clients: %d operations",
		result.Ops, result.OpsPerS, result.P99us, result.MaxUs, result.Failed, ops)
	if result.Failed > 0 {
		t.Errorf("%d requests of the Go client failed", result.Failed)
	}
	for i := range c.nodes {
		watch.judge(i, warm, duration/10)
	}
	for i := range c.nodes {
		caughtUp(t, c, i)
	}
	time.Sleep(soakExpiryMax + time.Second) // the nodes are read one after the other, and keys would go meanwhile
	sameReplicas(t, c)
}

// redisLoad lets Redis clients write, read, count, expire and delete at every
// node until ctx ends; the returned function waits for them and tells how many
// commands were answered. A command that fails fails the test.
func redisLoad(ctx context.Context, t *testing.T, c *cluster) (wait func() int64) {
	const clients, batch, keys = 6, 64, 50_000
	var running sync.WaitGroup
	var ops atomic.Int64
	for i := range clients {
		conn := dialDoor(t, c.resp(i%len(c.nodes)))
		random := rand.New(rand.NewPCG(1, uint64(i)))
		running.Go(func() {
			for ctx.Err() == nil {
				err := conn.pipelined(batch, func(int) []string { return anyCommand(random, keys) }, func(_ int, reply string) error {
					if strings.HasPrefix(reply, "-") {
						return errors.New(reply)
					}
					ops.Add(1)
					return nil
				})
				if err != nil {
					t.Errorf("a Redis client at node %d: %v", i%len(c.nodes)+1, err)
					return
				}
			}
		})
	}
	return func() int64 {
		running.Wait()
		return ops.Load()
	}
}

// anyCommand is one of those that caches and counters are made of.
func anyCommand(random *rand.Rand, keys int) []string {
	n := random.IntN(keys)
	key, value := fmt.Sprint("soak:", n), "v"+strings.Repeat(fmt.Sprintf("%08x", random.Uint32()), 32)
	switch random.IntN(10) {
	case 0, 1, 2:
		return []string{"SET", key, value}
	case 3:
		return []string{"SET", key, value, "PX", fmt.Sprint(1000 + random.IntN(20_000))}
	case 4:
		return []string{"INCR", fmt.Sprint("count:", n)}
	case 5:
		return []string{"DEL", key}
	case 6:
		return []string{"EXPIRE", fmt.Sprint("count:", n), fmt.Sprint(int(soakExpiryMax.Seconds()))}
	default:
		return []string{"GET", key}
	}
}

// watch follows memory and disk of a cluster's nodes.
type watch struct {
	t       *testing.T
	c       *cluster
	start   time.Time
	samples []sample
}

// sample is what was seen at one moment, by node.
type sample struct {
	at              time.Duration
	rss, log, state []int64 // bytes
}

func newWatch(t *testing.T, c *cluster) *watch { return &watch{t: t, c: c, start: time.Now()} }

// run looks at each interval until ctx ends, and prints a row now and then.
func (w *watch) run(ctx context.Context, every, print time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	w.t.Log("          MB resident: nodes 1 to 3    MB of log on disk      MB of data on disk")
	printed := time.Duration(0)
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		s := w.look()
		w.samples = append(w.samples, s)
		if s.at-printed >= print-every/2 {
			printed = s.at
			w.t.Logf("%8s  %s  %s  %s", s.at.Round(time.Second), megabytes(s.rss), megabytes(s.log), megabytes(s.state))
		}
	}
}

func megabytes(bytes []int64) string {
	var text strings.Builder
	for _, b := range bytes {
		fmt.Fprintf(&text, "%7d", b>>20)
	}
	return text.String()
}

func (w *watch) look() sample {
	s := sample{at: time.Since(w.start)}
	for i, node := range w.c.nodes {
		s.rss = append(s.rss, rssOf(w.t, node))
		s.log = append(s.log, diskUse(w.t, filepath.Join(w.c.dataDir(i), "log")))
		s.state = append(s.state, diskUse(w.t, filepath.Join(w.c.dataDir(i), "state")))
	}
	return s
}

// judge compares a node's memory in the interval behind the warm point with
// that at the end, and looks at the largest log.
func (w *watch) judge(node int, warm, interval time.Duration) {
	w.t.Helper()
	end := w.samples[len(w.samples)-1].at
	before := w.mean(node, warm, warm+interval)
	after := w.mean(node, end-interval, end)
	growth := float64(after)/float64(before) - 1
	logMax := int64(0)
	for _, s := range w.samples {
		logMax = max(logMax, s.log[node])
	}
	w.t.Logf("node %d: %d MB resident when warm, %d MB at the end (%+.1f %%); log at most %d MB", node+1, before>>20, after>>20, 100*growth, logMax>>20)
	if growth > soakGrowthMax {
		w.t.Errorf("the memory of node %d grew by %.0f %%, at most %.0f %% are allowed", node+1, 100*growth, 100*soakGrowthMax)
	}
	if logMax > soakLogBytesMax {
		w.t.Errorf("the log of node %d had %d MB, at most %d are allowed", node+1, logMax>>20, soakLogBytesMax>>20)
	}
}

// mean is a node's mean resident memory from one moment to another.
func (w *watch) mean(node int, from, to time.Duration) int64 {
	w.t.Helper()
	sum, n := int64(0), int64(0)
	for _, s := range w.samples {
		if s.at >= from && s.at <= to {
			sum += s.rss[node]
			n++
		}
	}
	if n == 0 {
		w.t.Fatalf("nobody looked between %s and %s", from, to)
	}
	return sum / n
}

// diskUse is what the files under a directory take. Files that go meanwhile
// take nothing.
func diskUse(t *testing.T, dir string) (bytes int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := entry.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		bytes += info.Size()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return bytes
}
