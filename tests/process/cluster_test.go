//go:build process

package process

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
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

// product is the binary under test.
func product(t testing.TB) string {
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
}

// launch starts flotilla with args; it is killed when the test ends.
func launch(t testing.TB, name string, args ...string) *process {
	t.Helper()
	return launchBinary(t, product(t), name, args...)
}

func launchBinary(t testing.TB, path, name string, args ...string) *process {
	t.Helper()
	p := &process{t: t, name: name, exited: make(chan struct{}), grown: make(chan struct{})}
	p.cmd = exec.Command(path, args...)
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
		p.cmd.Wait() // its outcome is in ProcessState
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

// signal sends a signal to the process.
func (p *process) signal(s syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatalf("%s to %s: %v", s, p.name, err)
	}
}

// terminate asks the process to stop and checks that it exits with 0.
func (p *process) terminate(within time.Duration) {
	p.t.Helper()
	p.signal(syscall.SIGTERM)
	if code := p.waitExit(within); code != 0 {
		p.t.Fatalf("%s exited with %d after SIGTERM:\n%s", p.name, code, p.tail(20))
	}
}

// waitExit waits until the process has ended and returns its exit code.
func (p *process) waitExit(within time.Duration) (code int) {
	p.t.Helper()
	select {
	case <-p.exited:
	case <-time.After(within):
		p.t.Fatalf("%s still runs after %s:\n%s", p.name, within, p.tail(20))
	}
	return p.cmd.ProcessState.ExitCode()
}

// command is one flotilla command that runs beside the test.
type command struct {
	t      testing.TB
	cmd    *exec.Cmd
	out    strings.Builder
	errs   strings.Builder
	exited chan struct{}
}

// begin starts a command; it is killed when the test ends.
func begin(t testing.TB, path string, args ...string) *command {
	t.Helper()
	c := &command{t: t, cmd: exec.Command(path, args...), exited: make(chan struct{})}
	c.cmd.Stdout, c.cmd.Stderr = &c.out, &c.errs
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		c.cmd.Wait() // its outcome is in ProcessState
		close(c.exited)
	}()
	t.Cleanup(func() {
		c.cmd.Process.Kill()
		<-c.exited
	})
	return c
}

// wait waits for the command's end.
func (c *command) wait(within time.Duration) (stdout, stderr string, code int) {
	c.t.Helper()
	select {
	case <-c.exited:
	case <-time.After(within):
		c.t.Fatalf("%s still runs after %s", c.cmd, within)
	}
	return c.out.String(), c.errs.String(), c.cmd.ProcessState.ExitCode()
}

// interrupt is Ctrl-C.
func (c *command) interrupt() {
	c.t.Helper()
	if err := c.cmd.Process.Signal(os.Interrupt); err != nil {
		c.t.Fatalf("SIGINT to %s: %v", c.cmd, err)
	}
}

// flotilla runs one command to its end.
func flotilla(t testing.TB, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	return begin(t, product(t), args...).wait(2 * time.Minute)
}

// cluster is three flotilla start processes with fixed ports and data dirs.
type cluster struct {
	t     testing.TB
	bin   string
	dirs  []string // data dir of each node
	ports []int    // base port of each node
	nodes []*process
}

// startCluster starts n nodes and makes a cluster of them.
func startCluster(t testing.TB, n int, initArgs ...string) *cluster {
	t.Helper()
	c := newCluster(t, n)
	c.bringUp(initArgs...)
	return c
}

// newCluster is a cluster of n nodes that are still to be started.
func newCluster(t testing.TB, n int) *cluster {
	t.Helper()
	c := &cluster{t: t, bin: product(t), ports: freePorts(t, n), nodes: make([]*process, n)}
	for i := range n {
		c.dirs = append(c.dirs, filepath.Join(t.TempDir(), fmt.Sprintf("n%d", i+1)))
	}
	return c
}

// bringUp starts all nodes and makes a cluster of them.
func (c *cluster) bringUp(initArgs ...string) {
	c.t.Helper()
	for i := range c.nodes {
		c.start(i)
	}
	for i := range c.nodes {
		c.nodes[i].waitLine("flotilla: waiting for init", 20*time.Second)
	}
	args := append([]string{"init", "--server", c.grpc(0)}, initArgs...)
	if _, stderr, code := flotilla(c.t, args...); code != 0 {
		c.t.Fatalf("init: exit %d: %s", code, stderr)
	}
	for i := range c.nodes {
		c.waitReady(i)
	}
}

func (c *cluster) start(i int) {
	c.t.Helper()
	args := []string{"start", "--name", fmt.Sprintf("n%d", i+1), "--data-dir", c.dataDir(i), "--listen", c.grpc(i)}
	for j := range c.ports {
		if j != i {
			args = append(args, "--join", c.at(j, 1))
		}
	}
	c.nodes[i] = launchBinary(c.t, c.bin, fmt.Sprintf("n%d", i+1), args...)
}

func (c *cluster) waitReady(i int) {
	c.t.Helper()
	c.nodes[i].waitLine("flotilla: ready", 40*time.Second)
}

func (c *cluster) dataDir(i int) string { return c.dirs[i] }

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

// metric is one series of a node's /metrics.
func metric(t testing.TB, httpAddr, name string) float64 {
	t.Helper()
	response, err := http.Get("http://" + httpAddr + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	page, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(page)) {
		if value, found := strings.CutPrefix(line, name+" "); found {
			number, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			return number
		}
	}
	t.Fatalf("http://%s/metrics has no %s", httpAddr, name)
	return 0
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
