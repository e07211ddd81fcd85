//go:build process

package process

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// binary is the product under test.
func binary(t testing.TB) string {
	t.Helper()
	path := os.Getenv("FLOTILLA_BIN")
	if path == "" {
		path = "../../bin/flotilla"
	}
	path, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%s: run make build first, or set FLOTILLA_BIN", err)
	}
	return path
}

// process is one running flotilla with what it printed.
type process struct {
	t      testing.TB
	name   string
	cmd    *exec.Cmd
	exited chan struct{}

	mu    sync.Mutex // guards what stands below
	lines []string
	grown chan struct{} // closed and replaced at each line
	err   error         // of Wait
}

// launch starts flotilla with args; it is killed when the test ends.
func launch(t testing.TB, name string, args ...string) *process {
	t.Helper()
	p := &process{t: t, name: name, exited: make(chan struct{}), grown: make(chan struct{})}
	p.cmd = exec.Command(binary(t), args...)
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	stderr, err := p.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var readers sync.WaitGroup
	readers.Go(func() { p.read(stdout) })
	readers.Go(func() { p.read(stderr) })
	go func() {
		readers.Wait()
		err := p.cmd.Wait()
		p.mu.Lock()
		p.err = err
		p.mu.Unlock()
		close(p.exited)
	}()
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("last lines of %s:\n%s", name, p.tail(40))
		}
	})
	return p
}

func (p *process) read(from io.Reader) {
	scanner := bufio.NewScanner(from)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		p.mu.Lock()
		p.lines = append(p.lines, scanner.Text())
		close(p.grown)
		p.grown = make(chan struct{})
		p.mu.Unlock()
	}
}

func (p *process) tail(n int) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.lines[max(0, len(p.lines)-n):], "\n")
}

// waitLine waits until the process has printed a line that contains text.
func (p *process) waitLine(text string, within time.Duration) {
	p.t.Helper()
	deadline := time.After(within)
	for seen := 0; ; {
		p.mu.Lock()
		lines, grown := p.lines, p.grown
		p.mu.Unlock()
		for ; seen < len(lines); seen++ {
			if strings.Contains(lines[seen], text) {
				return
			}
		}
		select {
		case <-grown:
		case <-p.exited:
			p.t.Fatalf("%s exited before it printed %q:\n%s", p.name, text, p.tail(20))
		case <-deadline:
			p.t.Fatalf("%s did not print %q within %s:\n%s", p.name, text, within, p.tail(20))
		}
	}
}

// kill ends the process with SIGKILL and waits for it.
func (p *process) kill() {
	select {
	case <-p.exited:
		return
	default:
	}
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Errorf("kill %s: %v", p.name, err)
	}
	<-p.exited
}

// terminate asks the process to stop and checks that it exits with 0.
func (p *process) terminate(within time.Duration) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		p.t.Fatalf("SIGTERM to %s: %v", p.name, err)
	}
	select {
	case <-p.exited:
	case <-time.After(within):
		p.t.Fatalf("%s did not stop within %s of SIGTERM:\n%s", p.name, within, p.tail(20))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		p.t.Fatalf("%s stopped with %v", p.name, p.err)
	}
}

// flotilla runs one command to its end.
func flotilla(t testing.TB, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary(t), args...)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("flotilla %s: %v", strings.Join(args, " "), err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// cluster is three flotilla start processes with fixed ports and data dirs.
type cluster struct {
	t     testing.TB
	dir   string
	ports []int // base port of each node
	nodes []*process
}

// startCluster starts n nodes and makes a cluster of them.
func startCluster(t testing.TB, n int, initArgs ...string) *cluster {
	t.Helper()
	c := &cluster{t: t, dir: t.TempDir(), ports: freePorts(t, n), nodes: make([]*process, n)}
	for i := range n {
		c.start(i)
	}
	for i := range n {
		c.nodes[i].waitLine("flotilla: waiting for init", 20*time.Second)
	}
	args := append([]string{"init", "--server", c.grpc(0)}, initArgs...)
	if _, stderr, code := flotilla(t, args...); code != 0 {
		t.Fatalf("init: exit %d: %s", code, stderr)
	}
	for i := range n {
		c.waitReady(i)
	}
	return c
}

func (c *cluster) start(i int) {
	c.t.Helper()
	args := []string{"start", "--name", fmt.Sprintf("n%d", i+1), "--data-dir", c.dataDir(i), "--listen", c.grpc(i)}
	for j := range c.ports {
		if j != i {
			args = append(args, "--join", c.at(j, 1))
		}
	}
	c.nodes[i] = launch(c.t, fmt.Sprintf("n%d", i+1), args...)
}

func (c *cluster) waitReady(i int) {
	c.t.Helper()
	c.nodes[i].waitLine("flotilla: ready", 40*time.Second)
}

func (c *cluster) dataDir(i int) string { return filepath.Join(c.dir, fmt.Sprintf("n%d", i+1)) }

func (c *cluster) at(i, offset int) string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(c.ports[i]+offset))
}
func (c *cluster) grpc(i int) string { return c.at(i, 0) }
func (c *cluster) resp(i int) string { return c.at(i, 2) }
func (c *cluster) http(i int) string { return c.at(i, 3) }

func (c *cluster) servers() string {
	var all []string
	for i := range c.ports {
		all = append(all, c.grpc(i))
	}
	return strings.Join(all, ",")
}

// redis connects to node i's Redis door.
func (c *cluster) redis(i int) *redis.Client { return redisAt(c.t, c.resp(i)) }

func redisAt(t testing.TB, addr string) *redis.Client {
	client := redis.NewClient(&redis.Options{Addr: addr, MaxRetries: -1, ReadTimeout: 15 * time.Second})
	t.Cleanup(func() { client.Close() })
	return client
}

// status is the JSON of flotilla status, as far as the tests look at it.
type status struct {
	ClusterID string `json:"cluster_id"`
	Nodes     []struct {
		ID      uint64 `json:"id"`
		Name    string `json:"name"`
		State   string `json:"state"`
		Addr    string `json:"addr"`
		Leaders int64  `json:"leaders"`
	} `json:"nodes"`
	Groups []struct {
		ID         uint64 `json:"id"`
		LeaderNode uint64 `json:"leader_node"`
		Shards     uint64 `json:"shards"`
		Replicas   []struct {
			NodeID   uint64 `json:"node_id"`
			Role     string `json:"role"`
			MatchLag int64  `json:"match_lag"`
		} `json:"replicas"`
	} `json:"groups"`
	ShardsTotal uint64 `json:"shards_total"`
}

func statusAt(t testing.TB, server string) status {
	t.Helper()
	stdout, stderr, code := flotilla(t, "status", "-o", "json", "--server", server)
	if code != 0 {
		t.Fatalf("status: exit %d: %s", code, stderr)
	}
	var s status
	if err := json.Unmarshal([]byte(stdout), &s); err != nil {
		t.Fatalf("status is not JSON: %v\n%s", err, stdout)
	}
	return s
}

// freePorts finds n base ports with their three followers free. They are let
// go before the node takes them; nothing else on the machine asks for
// particular ports in this range.
func freePorts(t testing.TB, n int) []int {
	t.Helper()
	var bases []int
	for base := 21_000 + os.Getpid()%2_000*4; len(bases) < n && base < 60_000; base += 4 {
		if portsFree(base) {
			bases = append(bases, base)
		}
	}
	if len(bases) < n {
		t.Fatal("no free ports")
	}
	return bases
}

func portsFree(base int) bool {
	for port := base; port < base+4; port++ {
		listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			return false
		}
		listener.Close()
	}
	return true
}

// eventually waits until check has no complaint, and fails with the last one.
func eventually(t testing.TB, within time.Duration, check func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %s: %v", within, err)
		}
		<-tick.C
	}
}
