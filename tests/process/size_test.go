//go:build process

package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// promised is how soon something has to be done. Tests without -soak run on
// machines that do other things too.
func promised(limit time.Duration) time.Duration { return sized(limit, 4*limit) }

// TestManyKeys loads keys (1,000,000 with -soak) of 256 bytes into flotilla dev
// and restarts it after kill -9 and after SIGTERM: it is ready within 5 s, and
// all of them are there.
func TestManyKeys(t *testing.T) {
	r := rows{count: sized(1_000_000, 100_000), seed: 1}
	d := startDev(t, t.TempDir())
	begin := time.Now()
	r.load(t, d.resp(0))
	t.Logf("%d keys of %d bytes loaded at %.0f a second", r.count, rowBytes, float64(r.count)/time.Since(begin).Seconds())
	for _, end := range []struct {
		name string
		stop func()
	}{
		{"kill -9 right behind the load", func() { d.process.kill() }},
		{"SIGTERM", func() { d.process.terminate(30 * time.Second) }},
	} {
		end.stop()
		begin := time.Now()
		d.start()
		ready := time.Since(begin)
		t.Logf("%s: ready again in %s", end.name, ready.Round(time.Millisecond))
		if limit := promised(5 * time.Second); ready > limit {
			t.Errorf("after %s it was ready in %s, want %s", end.name, ready, limit)
		}
		for i := range 3 { // ready means that the log is replayed
			if lag := metric(t, d.http(i), "flotilla_apply_lag_entries"); lag > 10 {
				t.Errorf("after %s node %d is ready with %.0f entries still to apply", end.name, i+1, lag)
			}
		}
		if n, err := redisAt(t, d.resp(1)).DBSize(t.Context()).Result(); err != nil || n != int64(r.count) {
			t.Errorf("after %s DBSIZE is %d, %v; want %d", end.name, n, err, r.count)
		}
		r.check(t, d.resp(2))
	}
}

// TestManyGroups: 500 groups on three nodes in one process are ready in 10 s
// and all led, and when they have gone to sleep they take next to no CPU.
func TestManyGroups(t *testing.T) {
	const groups = 500
	idleMax := sized(0.10, 0.30) // of one core
	begin := time.Now()
	d := startDev(t, t.TempDir(), "--groups", strconv.Itoa(groups), "--shards", "512")
	ready := time.Since(begin)
	t.Logf("ready after %s", ready.Round(time.Millisecond))
	if limit := promised(10 * time.Second); ready > limit {
		t.Errorf("ready after %s, want %s", ready, limit)
	}
	eventually(t, 10*time.Second, func() error {
		led := 0
		for _, g := range statusAt(t, d.grpc(0)).Groups {
			if g.ID != 1 && g.LeaderNode != 0 && len(g.Replicas) == 3 {
				led++
			}
		}
		if led != groups {
			return fmt.Errorf("%d of %d groups have a leader", led, groups)
		}
		return nil
	})
	eventually(t, 30*time.Second, func() error {
		for i := range 3 {
			if awake := metric(t, d.http(i), "flotilla_groups_awake"); awake > 0 {
				return fmt.Errorf("%.0f groups of node %d are awake", awake, i+1)
			}
		}
		return nil
	})
	const period = 10 * time.Second
	used := cpuOf(t, d.process)
	<-time.After(period)
	used = cpuOf(t, d.process) - used
	share := used.Seconds() / period.Seconds()
	t.Logf("idle: %.1f %% of a core, %d MB resident", 100*share, rssOf(t, d.process)>>20)
	if share > idleMax {
		t.Errorf("%d idle groups took %.1f %% of a core, want %.0f %%", groups, 100*share, 100*idleMax)
	}
	// What sleeps wakes up.
	client := redisAt(t, d.resp(1))
	for i := range 1000 {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		err := client.Set(ctx, rowKey(i), "v", 0).Err()
		cancel()
		if err != nil {
			t.Fatalf("SET %s: %v", rowKey(i), err)
		}
	}
}

// cpuOf is the CPU time that a process has used.
func cpuOf(t testing.TB, p *process) time.Duration {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if errors.Is(err, os.ErrNotExist) {
		t.Skip("SKIPPED: no /proc here")
	}
	if err != nil {
		t.Fatal(err)
	}
	// Fields 14 and 15, in ticks of 10 ms; the second is a name in parentheses.
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	var ticks int64
	for _, field := range fields[11:13] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			t.Fatalf("/proc/PID/stat: %v", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// rssOf is the resident memory of a process.
func rssOf(t testing.TB, p *process) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var kb int64
		if _, err := fmt.Sscanf(line, "VmRSS: %d kB", &kb); err == nil {
			return kb << 10
		}
	}
	t.Fatal("/proc/PID/status has no VmRSS")
	return 0
}
