//go:build process

package process

import (
	"fmt"
	"syscall"
	"testing"
	"time"
)

// TestKilledAtAnyMoment kills all nodes at once and starts them in another
// order, kills one again and again while it starts, and stops one by two
// SIGTERMs: every acknowledged write is there, and the second signal changes
// nothing.
func TestKilledAtAnyMoment(t *testing.T) {
	c := startCluster(t, 3)
	r := rows{count: 5_000, seed: 1}
	r.load(t, c.resp(0))
	for _, node := range c.nodes {
		node.kill()
	}
	for _, i := range []int{2, 0, 1} {
		c.start(i)
	}
	for i := range c.nodes {
		c.waitReady(i)
		r.check(t, c.resp(i))
	}

	r.seed++
	r.load(t, c.resp(1))
	const victim = 2
	c.nodes[victim].kill()
	for moment := time.Millisecond; moment < time.Second; moment *= 2 {
		c.start(victim)
		select { // it dies at this moment of its start, wherever that finds it
		case <-c.nodes[victim].exited:
			t.Fatalf("it exited by itself:\n%s", c.nodes[victim].tail(20))
		case <-time.After(moment):
		}
		c.nodes[victim].kill()
	}
	c.start(victim)
	c.waitReady(victim)
	r.check(t, c.resp(victim))
	caughtUp(t, c, victim)
	sameReplicas(t, c)

	c.nodes[victim].signal(syscall.SIGTERM)
	c.nodes[victim].signal(syscall.SIGTERM)
	if code := c.nodes[victim].waitExit(30 * time.Second); code != 0 {
		t.Errorf("after two SIGTERMs it exits with %d:\n%s", code, c.nodes[victim].tail(20))
	}
	c.start(victim)
	c.waitReady(victim)
}

// TestDevGoesOnWithoutARemovedNode: the others serve, and so they do after a
// restart on the same data dir.
func TestDevGoesOnWithoutARemovedNode(t *testing.T) {
	d := startDev(t, t.TempDir(), "--nodes", "4", "--shards", "16")
	server := d.grpc(1)
	for _, args := range [][]string{{"put", "key", "value"}, {"node", "drain", "node1"}, {"node", "drain", "node1"}} {
		if _, stderr, code := flotilla(t, append([]string{"--server", server}, args...)...); code != 0 {
			t.Fatalf("%v: exit %d, %s", args, code, stderr)
		}
	}
	eventually(t, 60*time.Second, func() error {
		_, stderr, code := flotilla(t, "--server", server, "node", "remove", "node1")
		if code != 0 {
			return fmt.Errorf("exit %d: %s", code, stderr)
		}
		return nil
	})
	const left = "node1 was removed from the cluster: it is stopped, and the others go on"
	serves := func() {
		t.Helper()
		if value, stderr, code := flotilla(t, "--server", server, "get", "key"); code != 0 || value != "value" {
			t.Errorf("get: %q, exit %d, %s", value, code, stderr)
		}
		if s := statusAt(t, server); len(s.Nodes) != 3 {
			t.Errorf("%d nodes", len(s.Nodes))
		}
	}
	d.process.waitLine(left, 20*time.Second)
	serves()
	d.process.terminate(30 * time.Second)
	d.start()
	d.process.waitLine(left, 20*time.Second)
	serves()
}
