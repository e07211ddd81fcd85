//go:build chaos

package chaos

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
)

// namespaces give each node a network namespace of its own with an address of
// its own, joined by a bridge on which the clients are too. All that a node
// sends can be cut, gossip included: a blackhole route drops what goes to one
// address.
type namespaces struct {
	id     int // of the network: part of all its names and of its addresses
	nodes  int
	subnet string
}

// namespacesMade tells the networks of one process apart.
var namespacesMade atomic.Int32

const namespacePrefix = "chaos-"

func newNamespaces(t testing.TB, nodes int) (*namespaces, error) {
	t.Helper()
	if os.Getuid() != 0 {
		return nil, errors.New("only root may make them")
	}
	sweepNamespaces()
	id := os.Getpid()%4000*16 + int(namespacesMade.Add(1)-1)%16 // in 16 bits
	n := &namespaces{id: id, nodes: nodes, subnet: fmt.Sprintf("10.%d.%d", 128+id>>8&127, id&255)}
	t.Cleanup(n.remove)
	lines := []string{
		fmt.Sprintf("ip link add %s type bridge", n.bridge()),
		fmt.Sprintf("ip addr add %s.254/24 dev %s", n.subnet, n.bridge()),
		fmt.Sprintf("ip link set %s up", n.bridge()),
	}
	for i := range nodes {
		lines = append(lines,
			"ip netns add "+n.namespace(i),
			fmt.Sprintf("ip link add %s type veth peer name eth0 netns %s", n.port(i), n.namespace(i)),
			fmt.Sprintf("ip link set %s master %s up", n.port(i), n.bridge()),
			fmt.Sprintf("ip -n %s addr add %s/24 dev eth0", n.namespace(i), n.host(i)),
			fmt.Sprintf("ip -n %s link set eth0 up", n.namespace(i)),
			fmt.Sprintf("ip -n %s link set lo up", n.namespace(i)))
	}
	for _, line := range lines {
		if err := run(line); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// sweepNamespaces removes what test processes left that were killed.
func sweepNamespaces() {
	left, _ := filepath.Glob("/run/netns/" + namespacePrefix + "*")
	for _, path := range left {
		parts := strings.Split(filepath.Base(path), "-")
		pid, err := strconv.Atoi(parts[1])
		if err == nil && len(parts) == 4 && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			run("ip netns del " + filepath.Base(path)) // its veth goes with it
			run("ip link del chb" + parts[2])
		}
	}
}

func (n *namespaces) remove() {
	for i := range n.nodes {
		run("ip netns del " + n.namespace(i))
	}
	run("ip link del " + n.bridge())
}

func (n *namespaces) String() string { return "network namespaces" }
func (n *namespaces) bridge() string { return fmt.Sprintf("chb%d", n.id) }
func (n *namespaces) namespace(i int) string {
	return fmt.Sprintf("%s%d-%d-%d", namespacePrefix, os.Getpid(), n.id, i)
}
func (n *namespaces) port(i int) string { return fmt.Sprintf("chv%dn%d", n.id, i) }
func (n *namespaces) host(i int) string { return fmt.Sprintf("%s.%d", n.subnet, i+1) }

func (n *namespaces) place(i int) place {
	return place{host: n.host(i), under: []string{"ip", "netns", "exec", n.namespace(i)}}
}

func (n *namespaces) cut(from, to int) error {
	return run(fmt.Sprintf("ip -n %s route replace blackhole %s/32", n.namespace(from), n.host(to)))
}

func (n *namespaces) join(from, to int) error {
	err := run(fmt.Sprintf("ip -n %s route del blackhole %s/32", n.namespace(from), n.host(to)))
	if err != nil && strings.Contains(err.Error(), "No such process") {
		return nil // it was not cut
	}
	return err
}

// limit bounds what the node sends at its own end of the cable, and what it
// receives at the other.
func (n *namespaces) limit(i, bytesPerSecond int) error {
	for _, end := range []string{"tc -n " + n.namespace(i) + " qdisc %s dev eth0 root", "tc qdisc %s dev " + n.port(i) + " root"} {
		line := fmt.Sprintf(end, "del")
		if bytesPerSecond > 0 {
			line = fmt.Sprintf(end, "replace") + fmt.Sprintf(" tbf rate %dbps burst 32kb latency 200ms", bytesPerSecond)
		}
		if err := run(line); err != nil && bytesPerSecond > 0 {
			return err
		}
	}
	return nil
}
