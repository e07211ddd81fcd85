//go:build process

package process

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// packageIndex is the machine's Debian package index: real records of real
// sizes, by package name.
func packageIndex(t testing.TB) map[string]string {
	t.Helper()
	out, err := exec.Command("apt-cache", "dumpavail").Output()
	if err != nil || len(out) < 1_000_000 {
		t.Skip("SKIPPED the Debian package index: apt-cache dumpavail has none (apt-get update brings it)")
	}
	records := make(map[string]string)
	for record := range strings.SplitSeq(string(out), "\n\n") {
		name, found := strings.CutPrefix(strings.SplitN(record, "\n", 2)[0], "Package: ")
		if found {
			records[name] = record
		}
	}
	if len(records) < 10_000 {
		t.Fatalf("only %d records in the package index", len(records))
	}
	return records
}

// pipe loads records through redis-cli --pipe and requires that every reply
// was good.
func pipe(t testing.TB, addr string, records map[string]string) {
	t.Helper()
	host, port, _ := strings.Cut(addr, ":")
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "redis-cli", "-h", host, "-p", port, "--pipe")
	var commands bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(records)) {
		fmt.Fprintf(&commands, "*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n", len(name), name, len(records[name]), records[name])
	}
	cmd.Stdin = &commands
	out, err := cmd.CombinedOutput()
	if want := fmt.Sprintf("errors: 0, replies: %d", len(records)); err != nil || !bytes.Contains(out, []byte(want)) {
		t.Fatalf("redis-cli --pipe: %v, want %q:\n%s", err, want, out)
	}
}

// digest reads all the keys back, in order, and hashes what it finds.
func digest(t testing.TB, client *redis.Client, keys []string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	hash := sha256.New()
	for batch := range slices.Chunk(keys, 1_000) {
		values, err := client.MGet(ctx, batch...).Result()
		if err != nil {
			t.Fatalf("MGET: %v", err)
		}
		for i, value := range values {
			text, ok := value.(string)
			if !ok {
				t.Fatalf("%q is gone: %v", batch[i], value)
			}
			fmt.Fprintf(hash, "%s=%s\n", batch[i], text)
		}
	}
	return fmt.Sprintf("%x", hash.Sum(nil))
}

func wantDigest(records map[string]string) string {
	hash := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(records)) {
		fmt.Fprintf(hash, "%s=%s\n", name, records[name])
	}
	return fmt.Sprintf("%x", hash.Sum(nil))
}

// scanAll counts the keys that SCAN finds, each once.
func scanAll(t testing.TB, client *redis.Client) map[string]bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	found := make(map[string]bool)
	for cursor := uint64(0); ; {
		keys, next, err := client.Scan(ctx, cursor, "*", 1_000).Result()
		if err != nil {
			t.Fatalf("SCAN: %v", err)
		}
		for _, key := range keys {
			found[key] = true
		}
		if cursor = next; cursor == 0 {
			return found
		}
	}
}

// TestPackageIndexInDev loads the index at one node of flotilla dev, kills the
// whole process, restarts it and reads everything at another node.
func TestPackageIndexInDev(t *testing.T) {
	needs(t, "redis-cli")
	records := packageIndex(t)
	keys := slices.Sorted(maps.Keys(records))
	d := startDev(t, t.TempDir())
	pipe(t, d.resp(0), records)
	d.process.kill()
	d.start()
	if got := digest(t, redisAt(t, d.resp(2)), keys); got != wantDigest(records) {
		t.Fatalf("after kill -9 and restart the digest is %s, want %s", got, wantDigest(records))
	}
	if found := scanAll(t, redisAt(t, d.resp(1))); len(found) != len(records) {
		t.Fatalf("SCAN finds %d keys, want %d", len(found), len(records))
	}
}

// TestPackageIndexWithKills loads the index into three processes of which one,
// then another, is killed and restarted during the load.
func TestPackageIndexWithKills(t *testing.T) {
	needs(t, "redis-cli")
	records := packageIndex(t)
	keys := slices.Sorted(maps.Keys(records))
	c := startCluster(t, 3)
	loaded := make(chan struct{})
	go func() {
		defer close(loaded)
		pipe(t, c.resp(0), records)
	}()
	for _, victim := range []int{1, 2} {
		waitKeys(t, c, len(records)*victim/4)
		c.nodes[victim].kill()
		c.start(victim)
		c.waitReady(victim)
	}
	<-loaded
	if t.Failed() {
		return
	}
	for i := range c.nodes {
		if got := digest(t, c.redis(i), keys); got != wantDigest(records) {
			t.Fatalf("at node %d the digest is %s, want %s", i, got, wantDigest(records))
		}
	}
}

// waitKeys waits until about n keys are in (or the load is over).
func waitKeys(t testing.TB, c *cluster, n int) {
	t.Helper()
	client := c.redis(0)
	eventually(t, time.Minute, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		size, err := client.DBSize(ctx).Result()
		if err != nil {
			return err
		}
		if size < int64(n) {
			return fmt.Errorf("%d keys, waiting for %d", size, n)
		}
		return nil
	})
}

// needs skips, by name, where a program is not installed.
func needs(t testing.TB, program string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		t.Skipf("SKIPPED: %s is not installed", program)
	}
}

// dev is a running flotilla dev.
type dev struct {
	t       testing.TB
	dir     string
	port    int
	args    []string
	process *process
}

// startDev starts flotilla dev on free ports and waits until it is ready.
func startDev(t testing.TB, dir string, args ...string) *dev {
	t.Helper()
	d := &dev{t: t, dir: dir, port: freeDevPort(t), args: args}
	d.start()
	return d
}

func (d *dev) start() {
	d.t.Helper()
	args := append([]string{"dev", "--data-dir", d.dir, "--base-port", fmt.Sprint(d.port)}, d.args...)
	d.process = launch(d.t, "dev", args...)
	d.process.waitLine("flotilla: ready", 40*time.Second)
}

func (d *dev) grpc(i int) string { return fmt.Sprintf("127.0.0.1:%d", d.port+10*i) }
func (d *dev) resp(i int) string { return fmt.Sprintf("127.0.0.1:%d", d.port+10*i+2) }
func (d *dev) http(i int) string { return fmt.Sprintf("127.0.0.1:%d", d.port+10*i+3) }

func freeDevPort(t testing.TB) int {
	t.Helper()
	for base := 40_000; base < 60_000; base += 40 {
		if portsFree(base) && portsFree(base+10) && portsFree(base+20) {
			return base
		}
	}
	t.Fatal("no free ports")
	return 0
}

// lines is a scanner over text, for the tests that look at tables.
func lines(text string) []string {
	var all []string
	scanner := bufio.NewScanner(strings.NewReader(text))
	for scanner.Scan() {
		all = append(all, scanner.Text())
	}
	return all
}
