//go:build process

package process

import (
	"fmt"
	"slices"
	"strings"
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

// TestGroupRecover: two nodes of five are lost for good, and with them the
// majority of some groups. Each goes on from what is left when an operator says
// so, not before, and is whole again; a lost node that comes back ends.
func TestGroupRecover(t *testing.T) {
	c := startCluster(t, 5, "--groups", "4", "--shards", "16")
	const keys = 200
	for i := range keys {
		if err := c.redis(0).Set(t.Context(), fmt.Sprint("key", i), i, 0).Err(); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, 60*time.Second, func() error {
		for _, g := range statusAt(t, c.grpc(0)).Groups {
			for _, r := range g.Replicas {
				if r.MatchLag != 0 || g.ID == 1 && len(g.Replicas) < 5 {
					return fmt.Errorf("group %d is not whole: %+v", g.ID, g.Replicas)
				}
			}
		}
		return nil
	})
	s := statusAt(t, c.grpc(0))
	dead, lost := loseAMajority(t, c, s)
	recoverGroup := func(id uint64, args ...string) (stdout, stderr string, code int) {
		return flotilla(t, append([]string{"--server", c.grpc(0), "group", "recover", fmt.Sprint(id)}, args...)...)
	}
	if _, stderr, code := recoverGroup(1, "--accept-loss"); code != 1 || !strings.Contains(stderr, "config group") {
		t.Errorf("the config group: exit %d, %s", code, stderr)
	}
	for _, id := range lost {
		eventually(t, 30*time.Second, func() error { // until they count as down
			stdout, stderr, code := recoverGroup(id)
			if code != 1 || !strings.Contains(stderr, "nothing is changed") || !strings.Contains(stdout, "nobody can tell how much") {
				return fmt.Errorf("exit %d: %s%s", code, stdout, stderr)
			}
			return nil
		})
		stdout, stderr, code := recoverGroup(id, "--accept-loss")
		if code != 0 {
			t.Fatalf("exit %d: %s%s", code, stdout, stderr)
		}
		t.Log(stdout)
	}
	eventually(t, 60*time.Second, func() error {
		for _, g := range statusAt(t, c.grpc(0)).Groups {
			if len(g.Replicas) < 3 || g.LeaderNode == 0 {
				return fmt.Errorf("group %d has %+v", g.ID, g.Replicas)
			}
			for _, r := range g.Replicas {
				if dead[r.NodeID] && slices.Contains(lost, g.ID) || r.Role == "learner" {
					return fmt.Errorf("group %d has %+v", g.ID, g.Replicas)
				}
			}
		}
		return nil
	})
	for i := range keys {
		if got, err := c.redis(0).Get(t.Context(), fmt.Sprint("key", i)).Int(); err != nil || got != i {
			t.Fatalf("key%d is %d, %v", i, got, err)
		}
		if err := c.redis(0).Incr(t.Context(), fmt.Sprint("key", i)).Err(); err != nil {
			t.Fatal(err)
		}
	}
	if stdout, stderr, code := recoverGroup(lost[0], "--accept-loss"); code != 1 || !strings.Contains(stderr, "needs no recovery") {
		t.Errorf("once more: exit %d, %s%s", code, stdout, stderr)
	}
	for i := range c.nodes { // they come back after all, and are good for new replicas
		if dead[nodeID(t, c, s, i)] {
			c.start(i)
			c.waitReady(i)
		}
	}
	for i := range keys {
		if got, err := c.redis(0).Get(t.Context(), fmt.Sprint("key", i)).Int(); err != nil || got != i+1 {
			t.Fatalf("key%d is %d, %v", i, got, err)
		}
	}
}

// loseAMajority kills two nodes, not the first, that are two of some
// group's three, and returns their ids and the groups that are lost.
func loseAMajority(t *testing.T, c *cluster, s status) (dead map[uint64]bool, lost []uint64) {
	t.Helper()
	for i := range c.nodes {
		for j := range i {
			if j == 0 {
				continue // it is asked all the time
			}
			dead, lost = map[uint64]bool{nodeID(t, c, s, i): true, nodeID(t, c, s, j): true}, nil
			for _, g := range s.Groups {
				left := 0
				for _, r := range g.Replicas {
					if !dead[r.NodeID] {
						left++
					}
				}
				if left == 1 {
					lost = append(lost, g.ID)
				}
			}
			if len(lost) > 0 {
				c.nodes[i].kill()
				c.nodes[j].kill()
				return dead, lost
			}
		}
	}
	t.Fatalf("no two nodes have two replicas of a group: %+v", s.Groups)
	return nil, nil
}
