package node

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
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
