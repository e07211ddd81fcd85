//go:build chaos

package chaos

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/client"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// Bounds that every run holds.
const (
	recoverWithin = 30 * time.Second // from healing until every shard and every door serves
	residentMax   = 1 << 30          // bytes of memory of one node
	convergeIn    = time.Minute      // from the end of the load until no replica lags
)

// runner disturbs one cluster under load, and keeps what comes of it.
type runner struct {
	dir     string // logs, histories
	cluster *cluster
	clients *clients
	probes  []string // a key of each shard
	replay  string   // the command that runs the same again
	began   time.Time

	epochs  []*epoch
	epoch   *epoch // the one under way
	ops     tally
	injured map[string]int // faults by kind
	skipped map[string]string
	longest time.Duration // recovery
	slowest string        // what it came after
	memory  int64         // the most that one node held

	mu       sync.Mutex // guards what follows
	t        *testing.T // the test, or the part of it under way
	timeline []string
	problems int // of that part
}

// newRunner brings a cluster up.
func newRunner(t *testing.T, o clusterOptions, replay string) *runner {
	t.Helper()
	r := &runner{t: t, dir: runDir(t), replay: replay, began: time.Now(), injured: make(map[string]int), skipped: make(map[string]string)}
	o.dir = r.dir
	r.cluster = newCluster(t, o, func(err error) { r.problem("%v", err) })
	var err error
	if r.clients, err = newClients(r.cluster); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.clients.close)
	t.Cleanup(func() { r.explain(t) })
	for shard := range shards {
		r.probes = append(r.probes, keyOf(shard))
	}
	r.note("ready", "", fmt.Sprintf("%d nodes on %s", len(r.cluster.nodes), r.cluster.network))
	return r
}

// keyOf finds a key that lies in a shard.
func keyOf(shard int) string {
	for i := 0; ; i++ {
		key := fmt.Sprintf("probe-%d-%d", shard, i)
		if shardmap.Shard([]byte(key), shards) == shardmap.ShardID(shard) {
			return key
		}
	}
}

// runDir is a directory that stays if the test fails.
func runDir(t *testing.T) string {
	t.Helper()
	if *keepDir != "" {
		dir := filepath.Join(*keepDir, strings.ReplaceAll(t.Name(), "/", "-"))
		if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755)); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	dir, err := os.MkdirTemp("", "flotilla-chaos-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !t.Failed() {
			os.RemoveAll(dir)
		}
	})
	return dir
}

// note adds a line to the timeline.
func (r *runner) note(what, where, how string) {
	line := strings.TrimRight(fmt.Sprintf("%8.2f s  %-18s %-12s %s", time.Since(r.began).Seconds(), what, where, how), " ")
	r.mu.Lock()
	defer r.mu.Unlock()
	r.timeline = append(r.timeline, line)
	r.t.Log(line)
}

// problem is a promise that was broken. The run ends at the next moment that it
// can.
func (r *runner) problem(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	r.note("PROBLEM", "", strings.SplitN(text, "\n", 2)[0])
	r.mu.Lock()
	defer r.mu.Unlock()
	r.problems++
	r.t.Error(text)
}

func (r *runner) failed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.problems > 0
}

// must takes an error for a problem and tells whether there was none.
func (r *runner) must(err error) bool {
	if err != nil {
		r.problem("%v", err)
	}
	return err == nil
}

// explain says at the end of a failed run where to look.
func (r *runner) explain(t *testing.T) {
	if !t.Failed() {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	const most = 60
	t.Logf("the last of what was done:\n%s", strings.Join(r.timeline[max(0, len(r.timeline)-most):], "\n"))
	for _, n := range r.cluster.nodes {
		t.Logf("last lines of %s:\n%s", n.name, n.life().tail(15))
	}
	t.Logf("logs, data and histories: %s\nreplay: %s", r.dir, r.replay)
}

// part runs a part of the run as a test of its own.
func (r *runner) part(t *testing.T, name string, play func()) {
	t.Run(name, func(t *testing.T) {
		r.become(t)
		play()
	})
	r.become(t)
}

func (r *runner) become(t *testing.T) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.t, r.problems = t, 0
}

// load begins an epoch.
func (r *runner) load() {
	r.epoch = beginEpoch(r.clients, fmt.Sprintf("e%d", len(r.epochs)), uint64(len(r.epochs)))
	r.epochs = append(r.epochs, r.epoch)
}

// judge ends the epoch under way and checks it.
func (r *runner) judge() {
	e := r.epoch
	e.halt()
	r.epoch = nil
	t := e.tally()
	r.ops.plus(t)
	begin := time.Now()
	for i, problem := range append(e.readBack(), e.watched()...) {
		if i < 10 {
			r.problem("%s: %s", e.name, problem)
		}
	}
	r.must(e.linearizable(r.dir))
	if t.ok < 50 {
		r.problem("%s: only %d operations were answered (%v): the test tests nothing", e.name, t.ok, e.history.Error)
	}
	e.history.Ops = nil // its size, and nobody asks any more
	r.note("check", e.name, fmt.Sprintf("took %s; %d ok, %d failed, %d unknown%s; %d events, %d resets", time.Since(begin).Round(10*time.Millisecond), t.ok, t.failed, t.unknown, e.trouble(), e.follower.heard, e.follower.resets))
}

// recovered waits until every shard and every door serves again after what was
// healed at a moment.
func (r *runner) recovered(since time.Time, from string) {
	deadline := since.Add(recoverWithin)
	err := errors.Join(r.shardsServe(deadline), r.doorsServe(deadline))
	took := time.Since(since)
	if err != nil {
		s, statusErr := r.cluster.status()
		r.problem("%v after %s was healed: %v\nstatus: %+v %v", took.Round(time.Millisecond), from, err, s, statusErr)
	}
	if took > r.longest {
		r.longest, r.slowest = took, from
	}
	r.note("recovered", "", "in "+took.Round(time.Millisecond).String())
	for _, n := range r.cluster.nodes {
		if held := n.life().resident(); held > residentMax {
			r.problem("%s holds %d MiB of memory; %d are allowed", n.name, held>>20, residentMax>>20)
		} else {
			r.memory = max(r.memory, held)
		}
	}
}

// serves requires that every shard serves within a time while a fault lasts that
// leaves a majority.
func (r *runner) serves(within time.Duration) {
	begin := time.Now()
	if r.must(r.shardsServe(begin.Add(within))) {
		r.note("serves", "", "all shards after "+time.Since(begin).Round(time.Millisecond).String())
	}
}

// shardsServe waits until each shard has taken a write and answered a read.
func (r *runner) shardsServe(deadline time.Time) error {
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	defer cancel()
	errs := make([]error, len(r.probes))
	var asking sync.WaitGroup
	for i, key := range r.probes {
		asking.Go(func() { errs[i] = probe(ctx, r.clients.store, key) })
	}
	asking.Wait()
	return errors.Join(errs...)
}

// probe writes and reads a key until it succeeds.
func probe(ctx context.Context, c *client.Client, key string) error {
	value := []byte(time.Now().Format(time.RFC3339Nano))
	for {
		// Each attempt is short: one that hangs must not hide that the next
		// would be answered.
		opCtx, cancel := context.WithTimeout(ctx, opTimeout)
		_, err := c.Put(opCtx, key, value)
		if err == nil {
			_, err = c.Get(opCtx, key)
		}
		cancel()
		if err == nil {
			return nil
		}
		if !sleep(ctx, 20*time.Millisecond) {
			return fmt.Errorf("no answer to a write and a read of %s: %w", key, err)
		}
	}
}

// doorsServe waits until each node takes a write and answers a read.
func (r *runner) doorsServe(deadline time.Time) error {
	var errs []error
	for i, n := range r.cluster.nodes {
		key := "door-" + n.name
		err := eventually(time.Until(deadline), func() error {
			ctx, cancel := context.WithTimeout(context.Background(), opTimeout)
			defer cancel()
			if err := r.clients.redis[i].Set(ctx, key, "v", 0).Err(); err != nil {
				return err
			}
			return r.clients.redis[i].Get(ctx, key).Err()
		})
		if err != nil {
			errs = append(errs, fmt.Errorf("the Redis door of %s: %w", n.name, err))
		}
	}
	return errors.Join(errs...)
}

// finish checks what holds when all is over: nothing is lost of any epoch, no
// replica lags, all nodes hold the same.
func (r *runner) finish() {
	for _, e := range r.epochs {
		for i, problem := range e.readBack() {
			if i < 10 {
				r.problem("%s, read back at the end: %s", e.name, problem)
			}
		}
	}
	r.must(eventually(convergeIn, func() error {
		s, err := r.cluster.status()
		if err != nil {
			return err
		}
		for _, g := range s.Groups {
			for _, replica := range g.Replicas {
				if replica.MatchLag != 0 {
					return fmt.Errorf("group %d: the replica on node %d lags %d entries", g.ID, replica.NodeID, replica.MatchLag)
				}
			}
		}
		return nil
	}))
	keys, err := sameReplicas(r.cluster)
	if r.must(err) {
		r.note("replicas", "", fmt.Sprintf("%d keys, equal on all nodes", keys))
	}
}

// summary prints what came of the run.
func (r *runner) summary(t *testing.T, title string) {
	verdict := "linearizable, nothing lost, nothing twice"
	if t.Failed() {
		verdict = "FAILED, see above"
	}
	total := 0
	var kinds []string
	for _, kind := range slices.Sorted(maps.Keys(r.injured)) {
		total += r.injured[kind]
		kinds = append(kinds, fmt.Sprintf("%s %d", kind, r.injured[kind]))
	}
	lines := []string{
		title,
		fmt.Sprintf("  operations  %d ok, %d failed, %d unknown", r.ops.ok, r.ops.failed, r.ops.unknown),
		fmt.Sprintf("  faults      %d: %s", total, strings.Join(kinds, ", ")),
		fmt.Sprintf("  recovery    %s at the longest, after %s", r.longest.Round(time.Millisecond), r.slowest),
		fmt.Sprintf("  memory      %d MiB at the most in one node", r.memory>>20),
		fmt.Sprintf("  verdict     %s", verdict),
	}
	for _, kind := range slices.Sorted(maps.Keys(r.skipped)) {
		lines = append(lines, fmt.Sprintf("  SKIPPED     %s: %s", kind, r.skipped[kind]))
	}
	t.Log("\n" + strings.Join(lines, "\n"))
}
