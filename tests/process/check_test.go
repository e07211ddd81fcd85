//go:build process

package process

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// verdict is the JSON of flotilla check.
type verdict struct {
	Verdict string `json:"verdict"`
	Ops     int    `json:"ops"`
	Unknown int    `json:"unknown"`
	Failed  int    `json:"failed"`
	Key     string `json:"key"`
}

// TestCheckWithKills lets flotilla check record while the node that leads most
// groups, and then another one, is killed with -9 and restarted: the history is
// linearizable.
func TestCheckWithKills(t *testing.T) {
	c := startCluster(t, 3)
	victim, other := busiest(t, c, c.grpc(0))
	check := begin(t, c.bin, "check", "--server", c.servers(), "--follower", "--duration", "5m", "-o", "json")
	for _, victim := range []int{victim, other} {
		waitApplied(t, c, 500)
		c.nodes[victim].kill()
		waitApplied(t, c, 500)
		c.start(victim)
		c.waitReady(victim)
	}
	waitApplied(t, c, 500)
	check.interrupt()
	stdout, stderr, code := check.wait(2 * time.Minute)
	var v verdict
	if err := json.Unmarshal([]byte(stdout), &v); err != nil {
		t.Fatalf("flotilla check: exit %d, %v\n%s%s", code, err, stdout, stderr)
	}
	t.Logf("%s: %d operations, %d unknown, %d failed", v.Verdict, v.Ops, v.Unknown, v.Failed)
	if code != 0 || v.Verdict != "linearizable" {
		t.Errorf("flotilla check: exit %d, %s\n%s", code, stdout, stderr)
	}
	// Deletes, conditions and reads are in it too: 2,500 entries are more
	// operations than that.
	if v.Ops < 1_000 {
		t.Errorf("only %d operations: the test tests nothing", v.Ops)
	}
}

// waitApplied waits until a node that lives has applied n more entries.
func waitApplied(t *testing.T, c *cluster, n float64) {
	t.Helper()
	for i, node := range c.nodes {
		select {
		case <-node.exited:
			continue
		default:
		}
		begin := metric(t, c.http(i), "flotilla_entries_applied_total")
		eventually(t, time.Minute, func() error {
			if now := metric(t, c.http(i), "flotilla_entries_applied_total"); now < begin+n {
				return fmt.Errorf("node %d has applied %.0f entries of %.0f", i+1, now-begin, n)
			}
			return nil
		})
		return
	}
	t.Fatal("no node lives")
}

// buildWrongReads builds the product with reads that are wrong on purpose.
func buildWrongReads(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "flotilla-wrongreads")
	out, err := exec.Command("go", "build", "-tags", "wrongreads", "-o", path, "../../cmd/flotilla").CombinedOutput()
	if err != nil {
		t.Fatalf("go build -tags wrongreads: %v\n%s", err, out)
	}
	return path
}

// TestWrongReadsAreFound proves that the tests would notice: with a binary whose
// replicas answer reads without the ReadIndex round, flotilla check exits with
// 1 and shows a key, and a paused leader answers with what was overwritten.
func TestWrongReadsAreFound(t *testing.T) {
	c := newCluster(t, 3)
	c.bin = buildWrongReads(t)
	c.bringUp()
	t.Run("check", func(t *testing.T) {
		stdout, stderr, code := begin(t, c.bin, "check", "--server", c.servers(), "--follower", "--duration", "3s").wait(time.Minute)
		if code != 1 || !strings.Contains(stdout, "no order of its operations explains the last answer") || !strings.Contains(stderr, "not linearizable") {
			t.Errorf("flotilla check of wrong reads: exit %d; want 1 and the operations of a key\n%s%s", code, stdout, stderr)
		}
	})
	t.Run("paused leader", func(t *testing.T) {
		const triesMax = 20 // one is enough nearly always
		for try := range triesMax {
			if got := readAtPausedLeader(t, c, fmt.Sprintf("paused-%d", try)); got == "old" {
				t.Logf("a stale read at try %d", try+1)
				return
			}
		}
		t.Errorf("no paused leader of %d answered with what was overwritten meanwhile: TestPausedLeader tests nothing", triesMax)
	})
}

// TestPausedLeader: a leader that was stopped while another was elected and
// overwrote a key does not answer with the old value when it goes on.
func TestPausedLeader(t *testing.T) {
	c := startCluster(t, 3)
	for try := range 2 {
		if got := readAtPausedLeader(t, c, fmt.Sprintf("paused-%d", try)); got != "new" {
			t.Errorf("the leader that was paused answered %q, want %q", got, "new")
		}
	}
}

// readAtPausedLeader stops the leader of a key's group, overwrites the key
// through another node, and returns what the old leader answers to a read that
// reached it while it stood still.
func readAtPausedLeader(t *testing.T, c *cluster, key string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	leader := leaderOf(t, c, key)
	other := c.redis((leader + 1) % len(c.nodes))
	if err := other.Set(ctx, key, "old", 0).Err(); err != nil {
		t.Fatal(err)
	}
	paused := dialDoor(t, c.resp(leader))
	paused.send("GET", key)
	if got := paused.reply(); got != "old" { // it is connected now, too
		t.Fatalf("GET %s at its leader: %q", key, got)
	}
	c.nodes[leader].signal(syscall.SIGSTOP)
	err := other.Set(ctx, key, "new", 0).Err()
	paused.send("GET", key) // its kernel takes it
	c.nodes[leader].signal(syscall.SIGCONT)
	if err != nil {
		t.Fatalf("SET %s while its leader stands still: %v", key, err)
	}
	return paused.reply()
}

// leaderOf is the node that leads the group of a key.
func leaderOf(t *testing.T, c *cluster, key string) int {
	t.Helper()
	leader := 0
	eventually(t, 20*time.Second, func() error {
		stdout, stderr, code := flotilla(t, "shard", "locate", key, "-o", "json", "--server", c.servers())
		var at struct {
			LeaderNode uint64 `json:"leader_node"`
		}
		if err := json.Unmarshal([]byte(stdout), &at); err != nil {
			return fmt.Errorf("shard locate: exit %d, %w: %s%s", code, err, stdout, stderr)
		}
		for _, n := range statusAt(t, c.grpc(0)).Nodes {
			if n.ID == at.LeaderNode {
				leader = indexOf(t, c, n.Addr)
				return nil
			}
		}
		return fmt.Errorf("%s has no leader", key)
	})
	return leader
}
