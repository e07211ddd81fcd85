//go:build chaos

package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/internal/chaos"
)

// Shape of the clusters: few shards, so that each can be asked after each fault,
// and more groups than nodes, so that every node leads some.
const (
	shards = 32
	groups = 6
)

// readyWithin bounds a start of a node, a replay of its log included.
const readyWithin = 60 * time.Second

// cluster is a number of nodes that can be disturbed.
type cluster struct {
	network network
	binary  string
	problem func(error) // is told of a process that ended by itself
	nodes   []*node
}

// node is one node over all its lives.
type node struct {
	index   int
	name    string
	place   place
	port    int
	dir     string // its data
	log     string
	control string // its settings

	mu       sync.Mutex // guards what follows
	settings chaos.Settings
	process  *process
}

// clusterOptions say what a cluster is like; zero fields take a default.
type clusterOptions struct {
	nodes  int
	binary string // default: the product with the tag chaos
	dir    string
	disks  map[int]string // data directories that lie elsewhere
	leases bool           // groups serve reads from leases
}

// newCluster starts nodes and makes a cluster of them. They are killed when the
// test ends.
func newCluster(t testing.TB, o clusterOptions, problem func(error)) *cluster {
	t.Helper()
	ports := freePorts(t, o.nodes)
	c := &cluster{network: newNetwork(t, *networkKind, ports), binary: o.binary, problem: problem}
	if c.binary == "" {
		c.binary = binary
	}
	for i := range o.nodes {
		name := fmt.Sprintf("n%d", i+1)
		n := &node{index: i, name: name, place: c.network.place(i), port: ports[i],
			dir: filepath.Join(o.dir, name), log: filepath.Join(o.dir, name+".log"), control: filepath.Join(o.dir, name+".settings")}
		if disk, ok := o.disks[i]; ok {
			n.dir = filepath.Join(disk, name)
		}
		n.settings = chaos.Settings{Dial: n.place.dials, LeaseReads: o.leases}
		c.nodes = append(c.nodes, n)
	}
	t.Cleanup(c.close)
	if err := c.bringUp(); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *cluster) bringUp() error {
	for i, n := range c.nodes {
		if err := c.set(i, func(*chaos.Settings) {}); err != nil {
			return err
		}
		if err := c.start(i); err != nil {
			return err
		}
		if err := n.process.waitLine("flotilla: waiting for init", readyWithin); err != nil {
			return err
		}
	}
	_, err := c.flotilla(time.Minute, "init", "--server", c.nodes[0].grpc(), "--shards", strconv.Itoa(shards), "--groups", strconv.Itoa(groups))
	for i := 0; err == nil && i < len(c.nodes); i++ {
		err = c.ready(i)
	}
	return err
}

func (n *node) at(offset int) string {
	return net.JoinHostPort(n.place.host, strconv.Itoa(n.port+offset))
}
func (n *node) grpc() string { return n.at(0) }
func (n *node) resp() string { return n.at(2) }

func (n *node) life() *process {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.process
}

// start starts a node that does not run.
func (c *cluster) start(i int) error {
	n := c.nodes[i]
	args := []string{"start", "--insecure", "--name", n.name, "--data-dir", n.dir, "--listen", n.grpc()}
	for _, other := range c.nodes {
		if other != n {
			args = append(args, "--join", other.at(1))
		}
	}
	cmd := n.place.command(c.binary, args...)
	cmd.Env = append(os.Environ(), chaos.Environment+"="+n.control)
	p, err := launch(cmd, n.name, n.log, c.problem)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.process = p
	return nil
}

func (c *cluster) ready(i int) error {
	return c.nodes[i].life().waitLine("flotilla: ready", readyWithin)
}

// set changes a node's settings, and waits until it has taken them if it runs.
// One that stands still takes them when it goes on.
func (c *cluster) set(i int, change func(*chaos.Settings)) error {
	n := c.nodes[i]
	n.mu.Lock()
	change(&n.settings)
	n.settings.Number++
	settings, p := n.settings, n.process
	n.mu.Unlock()
	if err := settings.Write(n.control); err != nil || p == nil {
		return err
	}
	return eventually(10*time.Second, func() error {
		if !p.lives() || stopped(p) || chaos.Taken(n.control) == settings.Number {
			return nil
		}
		return fmt.Errorf("%s has not taken settings %d", n.name, settings.Number)
	})
}

// stopped tells whether a process stands still after SIGSTOP.
func stopped(p *process) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	_, behind, _ := strings.Cut(string(stat), ") ")
	return err == nil && strings.HasPrefix(behind, "T")
}

func (c *cluster) close() {
	for _, n := range c.nodes {
		if p := n.life(); p != nil {
			p.kill()
		}
	}
}

// flotilla runs a command of the binary to its end.
func (c *cluster) flotilla(within time.Duration, args ...string) (stdout []byte, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.binary, args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if stdout, err = cmd.Output(); err != nil {
		err = fmt.Errorf("flotilla %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return stdout, err
}

// status is the JSON of flotilla status, as far as it is looked at.
type status struct {
	Nodes []struct {
		ID   uint64 `json:"id"`
		Addr string `json:"addr"`
	} `json:"nodes"`
	Groups []groupStatus `json:"groups"`
}

type groupStatus struct {
	ID         uint64 `json:"id"`
	LeaderNode uint64 `json:"leader_node"`
	Term       int64  `json:"term"` // -1: not known
	Replicas   []struct {
		NodeID   uint64 `json:"node_id"`
		MatchLag int64  `json:"match_lag"`
	} `json:"replicas"`
}

// status is what the node tells that knows most: one that is cut off knows no
// leaders.
func (c *cluster) status() (best status, err error) {
	known := -1
	for _, n := range c.nodes {
		if !n.life().lives() || stopped(n.life()) {
			continue
		}
		out, askErr := c.flotilla(10*time.Second, "status", "-o", "json", "--server", n.grpc())
		var s status
		if askErr == nil {
			askErr = json.Unmarshal(out, &s)
		}
		if err = errors.Join(err, askErr); askErr == nil && s.leaders() > known {
			best, known = s, s.leaders()
		}
		if known >= 0 && known == len(best.Groups) {
			break
		}
	}
	if known < 0 {
		return best, errors.Join(errors.New("no node tells the status"), err)
	}
	return best, nil
}

// leaders counts the groups whose leader is known.
func (s status) leaders() (known int) {
	for _, g := range s.Groups {
		if g.LeaderNode != 0 {
			known++
		}
	}
	return known
}

// node is the place among the cluster's nodes of an id, -1 if it is none.
func (c *cluster) node(s status, id uint64) int {
	for _, n := range s.Nodes {
		for i := range c.nodes {
			if n.ID == id && n.Addr == c.nodes[i].grpc() {
				return i
			}
		}
	}
	return -1
}

// busiest is the node that leads most groups.
func (c *cluster) busiest() (int, error) {
	s, err := c.status()
	if err != nil {
		return 0, err
	}
	led := make([]int, len(c.nodes))
	for _, g := range s.Groups {
		if i := c.node(s, g.LeaderNode); i >= 0 {
			led[i]++
		}
	}
	most := 0
	for i := range led {
		if led[i] > led[most] {
			most = i
		}
	}
	return most, nil
}

// servers are the gRPC addresses of all nodes.
func (c *cluster) servers() (all []string) {
	for _, n := range c.nodes {
		all = append(all, n.grpc())
	}
	return all
}

// freePorts finds n ports with their three followers free. They lie below those
// that the system gives away by itself, so that a node finds its own again when
// it is restarted.
func freePorts(t testing.TB, n int) (bases []int) {
	t.Helper()
	for base := 10_000 + os.Getpid()%4_000*4; len(bases) < n && base < 32_000; base += 4 {
		free := true
		for port := base; port < base+4; port++ {
			listener, err := net.Listen("tcp", loopback(port))
			if err != nil {
				free = false
				break
			}
			listener.Close()
		}
		if free {
			bases = append(bases, base)
		}
	}
	if len(bases) < n {
		t.Fatal("no free ports")
	}
	return bases
}
