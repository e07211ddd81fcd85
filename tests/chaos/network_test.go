//go:build chaos

package chaos

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// network joins the nodes, which are numbered from 0, and can be disturbed. What
// it does to nodes it does not do to the clients.
type network interface {
	String() string
	// place is where a node lives: the host that it listens at, what has to
	// stand before its command line, and where it has to dial to instead of an
	// address of another node's gRPC.
	place(node int) place
	// cut loses all that one node sends to another, without a word: no reset, no
	// end of a connection. join ends it.
	cut(from, to int) error
	join(from, to int) error
	// limit bounds what a node sends and receives, in bytes a second; 0 not.
	limit(node, bytesPerSecond int) error
}

// place is where a node lives in a network.
type place struct {
	host  string
	under []string
	dials map[string]string
}

// A network that sees each connection can do more.
type (
	// delayer lets all that one node sends to another arrive later.
	delayer interface {
		delay(from, to int, by time.Duration) error
	}
	// forgetter loses the connections that two nodes have for good, though new
	// ones work: both ends keep a socket that nobody is behind.
	forgetter interface{ forget(a, b int) error }
)

// newNetwork makes the network that the flag asks for, or the best that the
// machine allows.
func newNetwork(t testing.TB, kind string, ports []int) network {
	t.Helper()
	if kind == "auto" || kind == "namespaces" {
		n, err := newNamespaces(t, len(ports))
		if err == nil {
			return n
		}
		if kind == "namespaces" {
			t.Fatalf("network namespaces: %v", err)
		}
		t.Logf("SKIPPED network namespaces, TCP proxies instead, gossip stays uncut: %v", err)
	}
	return newProxies(t, ports)
}

// command runs a command line at a node.
func (p place) command(path string, args ...string) *exec.Cmd {
	line := append(append(append([]string(nil), p.under...), path), args...)
	return exec.Command(line[0], line[1:]...)
}

// run runs a command of the system to its end.
func run(line string) error {
	words := strings.Fields(line)
	out, err := exec.Command(words[0], words[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", line, err, strings.TrimSpace(string(out)))
	}
	return nil
}
