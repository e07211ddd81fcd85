package node

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/shardctrler"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// keyIn is a key of a shard.
func keyIn(shard shardmap.ShardID, shards int) string {
	for i := 0; ; i++ {
		if key := fmt.Sprint("key", i); shardmap.Shard([]byte(key), shards) == shard {
			return key
		}
	}
}

// Clients increment a key while its shard goes round the groups: no call fails,
// each counts once, and each move says how long its pause was.
func TestAShardMovesUnderLoad(t *testing.T) {
	nodes := cluster(t, t.TempDir())
	const shard, clients, moves = 5, 8, 12
	key := keyIn(shard, 16)
	var callers sync.WaitGroup
	done, acked := make(chan struct{}), make([]int64, clients)
	for i := range clients {
		c := clientOf(t, nodes[i%len(nodes)])
		callers.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if _, err := c.Incr(context.Background(), key, 1); err != nil {
					t.Errorf("an increment failed: %v", err)
					return
				}
				acked[i]++
			}
		})
	}
	ctx := t.Context()
	ctrl := nodes[1].ctrl
	for range moves {
		time.Sleep(50 * time.Millisecond)
		from := uint64(ctrl.Maps().Current().Shards[shard].Group)
		to := from%4 + 2
		order, err := ctrl.MoveShard(ctx, &flotillav1.MoveShardRequest{Shard: shard, ToGroup: to})
		if err != nil {
			t.Fatal(err)
		}
		m := waitMove(t, nodes[1], order.MoveId)
		if m.Phase != "done" || !m.Verified || m.PauseUs <= 0 || m.BytesTotal <= 0 || m.From != from || m.To != to {
			t.Errorf("the move ended as %+v", m)
		}
		t.Logf("move %d from group %d to %d: pause %v", m.Id, m.From, m.To, time.Duration(m.PauseUs)*time.Microsecond)
	}
	close(done)
	callers.Wait()
	var sum int64
	for _, n := range acked {
		sum += n
	}
	c := clientOf(t, nodes[0])
	got, err := c.Get(ctx, key)
	if err != nil || string(got.Value) != fmt.Sprint(sum) {
		t.Errorf("%d increments were acknowledged, the key holds %q: %v", sum, got.Value, err)
	}
	t.Logf("%d increments", sum)
}

func waitMove(t *testing.T, n *Node, id uint64) *flotillav1.Move {
	t.Helper()
	for range 600 {
		answer, err := n.ctrl.ListMoves(t.Context(), &flotillav1.ListMovesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range answer.Moves {
			if m.Id == id && m.Ended != "" {
				return m
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("move %d does not end", id)
	return nil
}

// TestNodesComeAndGo: under load one node joins, one is drained and removed, and
// one dies for good. Without help all groups are whole again, no call fails, and
// the removed one says what it is.
func TestNodesComeAndGo(t *testing.T) {
	dir := t.TempDir()
	var nodes []*Node
	var join []string
	add := func() *Node {
		name := fmt.Sprintf("n%d", len(nodes)+1)
		n := start(t, name, filepath.Join(dir, name), join...)
		nodes, join = append(nodes, n), append(join, n.Addresses().Gossip)
		return n
	}
	for range 4 {
		add()
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := nodes[0].ctrl.Init(ctx, &flotillav1.InitRequest{Shards: 16, Replicas: 3, Groups: 4, ReplaceAfterMs: 6_000}); err != nil {
		t.Fatal(err)
	}
	waitReady(t, nodes)

	var callers sync.WaitGroup
	done, acked := make(chan struct{}), make([]int64, 4)
	c := clientOf(t, nodes[1])
	for i := range acked {
		callers.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if _, err := c.Incr(context.Background(), fmt.Sprint("key", i), 1); err != nil {
					t.Errorf("an increment failed: %v", err)
					return
				}
				acked[i]++
			}
		})
	}
	change := func(r *flotillav1.ChangeClusterRequest) {
		t.Helper()
		if _, err := nodes[1].ctrl.ChangeCluster(ctx, r); err != nil {
			t.Fatal(err)
		}
	}
	// whole waits until every group has three voters, all of them on these nodes.
	whole := func(what string, on ...*Node) {
		t.Helper()
		began, why := time.Now(), ""
		for time.Since(began) < 50*time.Second {
			if why = notWhole(nodes[1], on); why == "" {
				t.Logf("%s: whole after %v", what, time.Since(began).Round(100*time.Millisecond))
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
		t.Fatalf("%s: %s", what, why)
	}
	n5 := add()
	waitReady(t, nodes)
	id := func(n *Node) uint64 { identity, _ := n.ctrl.Identity(); return uint64(identity.Node) }
	change(&flotillav1.ChangeClusterRequest{Change: &flotillav1.ChangeClusterRequest_AddGroups{AddGroups: 1}})
	change(&flotillav1.ChangeClusterRequest{Change: &flotillav1.ChangeClusterRequest_DrainNode{DrainNode: id(nodes[0])}})
	whole("drained", nodes[1], nodes[2], nodes[3], n5)
	change(&flotillav1.ChangeClusterRequest{Change: &flotillav1.ChangeClusterRequest_RemoveNode{RemoveNode: id(nodes[0])}})
	select {
	case err := <-nodes[0].Failed():
		if !errors.Is(err, shardctrler.ErrNodeRemoved) {
			t.Errorf("the removed node says %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the removed node goes on")
	}
	stop(t, nodes[3])
	whole("one is dead", nodes[1], nodes[2], n5)
	close(done)
	callers.Wait()
	for i, n := range acked {
		got, err := c.Get(ctx, fmt.Sprint("key", i))
		if err != nil || string(got.Value) != fmt.Sprint(n) {
			t.Errorf("key %d: %d increments were acknowledged, it holds %q: %v", i, n, got.Value, err)
		}
	}
	t.Logf("%v increments", acked)
}

// notWhole says which group has not three replicas, all on these nodes, or its shards
// not where they should be; "": all is well.
func notWhole(n *Node, on []*Node) string {
	m := n.ctrl.Maps().Current()
	allowed := make(map[uint64]bool)
	for _, o := range on {
		id, _ := o.ctrl.Identity()
		allowed[uint64(id.Node)] = true
	}
	for _, g := range m.Groups {
		if g.ID != 1 && len(g.Members) != 3 {
			return fmt.Sprintf("group %d has members %v", g.ID, g.Members)
		}
		good := 0
		for _, member := range g.Members {
			if member.Learner || g.ID != 1 && !allowed[uint64(member.Node)] {
				return fmt.Sprintf("group %d has members %v", g.ID, g.Members)
			}
			if allowed[uint64(member.Node)] {
				good++
			}
		}
		if good < 3 { // the config group keeps a member whose node is down and has no substitute
			return fmt.Sprintf("group %d has members %v", g.ID, g.Members)
		}
	}
	answer, err := n.ctrl.ListMoves(context.Background(), &flotillav1.ListMovesRequest{Active: true})
	if err != nil || len(answer.Moves) > 0 {
		return fmt.Sprintf("%d moves are under way: %v", len(answer.GetMoves()), err)
	}
	return ""
}
