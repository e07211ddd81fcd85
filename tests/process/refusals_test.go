//go:build process

package process

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestUsageErrors: nonsense on the command line exits with 2 and one line.
func TestUsageErrors(t *testing.T) {
	for _, args := range [][]string{
		{"nonsense"},
		{"status", "--nonsense"},
		{"status", "-o", "yaml"},
		{"status", "extra"},
		{"start"},
		{"start", "--name", "n", "--data-dir", "d", "--listen", "nonsense"},
		{"start", "--name", "n", "--data-dir", "d", "--listen", "127.0.0.1:99999"},
		{"start", "--name", "n", "--data-dir", "d", "--listen", "127.0.0.1:0", "--log-level", "loud"},
		{"dev", "--nodes", "0"},
		{"dev", "--shards", "100"},
		{"dev", "--groups", "-1"},
		{"dev", "--base-port", "65535"},
		{"init", "--shards", "3"},
		{"init", "--replicas", "0"},
		{"config", "show", "zero"},
		{"shard", "locate"},
		{"shard", "locate", ""},
		{"node"},
		{"get"},
		{"get", "k", "--server", ""},
		{"put", "k"},
		{"bench", "--reads", "101"},
		{"bench", "--clients", "0"},
		{"bench", "--duration", "-1s"},
		{"check", "--duration", "-1s"},
		{"get", "k", "--timeout", "-1s"},
		{"init", "--replace-after", "-1s"},
		{"move", "wait", "1", "--timeout", "-1s"},
		{"watch", "k", "--timeout", "-1s"},
		{"check", "--timeout", "-1s"},
		{"get", "k", "--stale", "-1s"},
		{"put", "k", "v", "--ttl", "-1s"},
	} {
		stdout, stderr, code := flotilla(t, args...)
		if code != 2 || len(lines(stderr)) != 1 || stdout != "" {
			t.Errorf("flotilla %s: exit %d, stdout %q, stderr %q; want 2 and one line on stderr", strings.Join(args, " "), code, stdout, stderr)
		}
	}
}

// wantFailure runs a command that must fail with exit code 1 and one line that
// contains each of the words.
func wantFailure(t *testing.T, args []string, words ...string) {
	t.Helper()
	_, stderr, code := flotilla(t, args...)
	if code != 1 {
		t.Errorf("flotilla %s: exit %d (%s), want 1", strings.Join(args, " "), code, stderr)
	}
	last := ""
	for _, line := range lines(stderr) {
		if strings.HasPrefix(line, "flotilla: ") {
			last = line
		}
	}
	for _, word := range words {
		if !strings.Contains(last, word) {
			t.Errorf("flotilla %s: %q, want a word about %q", strings.Join(args, " "), stderr, word)
		}
	}
}

// TestNoNodeAnswers: a command without a cluster says what to do.
func TestNoNodeAnswers(t *testing.T) {
	port := freePorts(t, 1)[0]
	server := fmt.Sprintf("127.0.0.1:%d", port)
	for _, args := range [][]string{{"status"}, {"get", "k", "--timeout", "2s"}, {"put", "k", "v", "--timeout", "2s"}, {"init"}, {"shard", "list"}} {
		wantFailure(t, append(args, "--server", server), "--server")
	}
}

// TestStartRefusals: what a node must not start with.
func TestStartRefusals(t *testing.T) {
	c := startCluster(t, 3)
	start := func(name, dir string, port int, more ...string) []string {
		return append([]string{"start", "--name", name, "--data-dir", dir, "--listen", fmt.Sprintf("127.0.0.1:%d", port)}, more...)
	}
	free := freePorts(t, 1)[0]

	t.Run("port in use", func(t *testing.T) {
		wantFailure(t, start("x", filepath.Join(t.TempDir(), "x"), c.ports[0]), "in use")
	})
	t.Run("data dir of a running node", func(t *testing.T) {
		wantFailure(t, start("n1", c.dataDir(0), free), "in use")
	})
	t.Run("data dir is a file", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		wantFailure(t, start("x", file, free), file)
	})
	t.Run("data dir that cannot be made", func(t *testing.T) {
		wantFailure(t, start("x", "/proc/flotilla", free), "/proc/flotilla")
	})
	t.Run("data dir of a running node, renamed", func(t *testing.T) {
		moved := c.dataDir(1) + ".moved"
		if err := os.Rename(c.dataDir(1), moved); err != nil {
			t.Fatal(err)
		}
		wantFailure(t, start("n2", moved, free), "in use")
		if err := os.Rename(moved, c.dataDir(1)); err != nil {
			t.Fatal(err)
		}
		if _, stderr, code := flotilla(t, "put", "k", "v", "--server", c.grpc(1)); code != 0 {
			t.Errorf("the running node does not go on: %s", stderr)
		}
	})
	t.Run("newer format", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "x")
		makeNewer(t, c, dir)
		wantFailure(t, start("x", dir, free), "format")
	})
	t.Run("beyond loopback without --insecure", func(t *testing.T) {
		wantFailure(t, []string{"start", "--name", "x", "--data-dir", t.TempDir(), "--listen", fmt.Sprintf("0.0.0.0:%d", free)}, "--insecure")
	})
	t.Run("data dir of another node", func(t *testing.T) {
		c.nodes[2].terminate(30 * time.Second)
		wantFailure(t, start("other", c.dataDir(2), free), "n3")
		c.start(2)
		c.waitReady(2)
	})
	t.Run("second init", func(t *testing.T) {
		before := statusAt(t, c.grpc(0))
		for i := range c.nodes {
			wantFailure(t, []string{"init", "--server", c.grpc(i)}, "already")
		}
		if after := statusAt(t, c.grpc(0)); after.ClusterID != before.ClusterID || after.ShardsTotal != before.ShardsTotal {
			t.Errorf("a second init changed %+v to %+v", before, after)
		}
	})
	t.Run("wiped data dir", func(t *testing.T) {
		c.nodes[2].kill()
		if err := os.RemoveAll(c.dataDir(2)); err != nil {
			t.Fatal(err)
		}
		c.start(2)
		c.nodes[2].waitLine("flotilla node remove n3", 20*time.Second)
	})
}

// makeNewer makes a data dir whose format is from the future.
func makeNewer(t *testing.T, c *cluster, dir string) {
	t.Helper()
	p := launch(t, "x", "start", "--name", "x", "--data-dir", dir, "--listen", "127.0.0.1:0")
	p.waitLine("flotilla: waiting for init", 20*time.Second)
	p.terminate(20 * time.Second)
	found := false
	err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.EqualFold(entry.Name(), "format") {
			return err
		}
		found = true
		return os.WriteFile(path, []byte("flotilla 999\n"), 0o644)
	})
	if err != nil || !found {
		t.Fatalf("no format file under %s: %v", dir, err)
	}
}

// TestDevRefusals: a flag that contradicts the data dir.
func TestDevRefusals(t *testing.T) {
	dir := t.TempDir()
	d := startDev(t, dir, "--shards", "64")
	d.process.terminate(30 * time.Second)
	base := fmt.Sprint(d.port)
	wantFailure(t, []string{"dev", "--data-dir", dir, "--base-port", base, "--shards", "128"}, "--shards", "64")
	wantFailure(t, []string{"dev", "--data-dir", dir, "--base-port", base, "--nodes", "5"}, "--nodes", "3")
	d.start()
	if s := statusAt(t, d.grpc(0)); s.ShardsTotal != 64 {
		t.Errorf("%d shards after the refusals, want 64", s.ShardsTotal)
	}
}

// TestLimits: keys and values beyond the limits get a clear error at every
// door, and change nothing.
func TestLimits(t *testing.T) {
	d := startDev(t, t.TempDir())
	client := redisAt(t, d.resp(0))
	big := strings.Repeat("v", 4<<20+1)
	if err := client.Set(t.Context(), "big", big, 0).Err(); err == nil {
		t.Error("a value over 4 MiB went in through RESP")
	}
	client = redisAt(t, d.resp(0))
	if err := client.Set(t.Context(), strings.Repeat("k", 65_536), "v", 0).Err(); err == nil || !strings.HasPrefix(err.Error(), "ERR") {
		t.Errorf("a key of 65,536 bytes: %v, want an ERR", err)
	}
	if err := client.Set(t.Context(), strings.Repeat("k", 65_535), "v", 0).Err(); err != nil {
		t.Errorf("a key of 65,535 bytes is within the limit: %v", err)
	}
	if err := client.Set(t.Context(), "full", big[:4<<20], 0).Err(); err != nil {
		t.Errorf("a value of 4 MiB is within the limit: %v", err)
	}
	if n, err := client.DBSize(t.Context()).Result(); err != nil || n != 2 {
		t.Errorf("%d keys (%v), want the 2 within the limits", n, err)
	}
}

// TestForeignProtocols: HTTP at the Redis door, RESP at the gRPC door, noise
// at the gossip door; the node goes on serving.
func TestForeignProtocols(t *testing.T) {
	d := startDev(t, t.TempDir())
	noise := bytes.Repeat([]byte{0xff, 0x00, 0x0d, 0x0a}, 4096)
	for _, c := range []struct{ addr, say string }{
		{d.resp(0), "POST / HTTP/1.1\r\nHost: x\r\n\r\n"},
		{d.resp(0), "*99999999\r\n"},
		{d.resp(0), "*1\r\n$4294967295\r\n"},
		{d.resp(0), string(noise)},
		{d.grpc(0), "*1\r\n$4\r\nPING\r\n"},
		{d.grpc(0), string(noise)},
		{fmt.Sprintf("127.0.0.1:%d", d.port+1), string(noise)},
		{d.http(0), string(noise)},
	} {
		conn, err := net.DialTimeout("tcp", c.addr, 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(2 * time.Second))
		io.WriteString(conn, c.say)
		io.Copy(io.Discard, io.LimitReader(conn, 1<<16))
		conn.Close()
	}
	client := redisAt(t, d.resp(0))
	if err := client.Set(t.Context(), "k", "v", 0).Err(); err != nil {
		t.Errorf("after the noise: %v", err)
	}
	for _, path := range []string{"/healthz", "/readyz", "/metrics"} {
		response, err := http.Get("http://" + d.http(0) + path)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", path, response.Status)
		}
	}
}
