//go:build process

package process

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
)

// shard is a row of flotilla shard list.
type shard struct {
	Shard uint64 `json:"shard"`
	Group uint64 `json:"group"`
}

func shardsAt(t testing.TB, server string) (shards []shard) {
	t.Helper()
	stdout, stderr, code := flotilla(t, "shard", "list", "-o", "json", "--server", server)
	if err := json.Unmarshal([]byte(stdout), &shards); err != nil || code != 0 || len(shards) == 0 {
		t.Fatalf("shard list: exit %d, %v: %s%s", code, err, stdout, stderr)
	}
	return shards
}

// replicaDigest hashes all keys, values and versions as the replicas of one
// node hold them: follower reads, which that node answers from its own state
// once it has applied what its leader had committed.
func replicaDigest(t testing.TB, addr string, shards []shard) (digest string, keys int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	kv := kvAt(t, addr)
	hash := sha256.New()
	for _, s := range shards {
		var start []byte
		for more := true; more; {
			page := replicaPage(ctx, t, kv, s, start)
			for _, pair := range page.GetPairs() {
				fmt.Fprintf(hash, "%q %q %d\n", pair.GetKey(), pair.GetValue(), pair.GetVersion())
			}
			keys += len(page.GetPairs())
			start, more = page.GetNext(), len(page.GetNext()) > 0
		}
	}
	return fmt.Sprintf("%x", hash.Sum(nil)), keys
}

// replicaPage reads one page of a shard. Only a replica that has lost its
// leader for a moment is asked again.
func replicaPage(ctx context.Context, t testing.TB, kv flotillav1.KVClient, s shard, start []byte) *flotillav1.Result {
	t.Helper()
	for {
		response, err := kv.Do(ctx, followerScan(s, start))
		switch {
		case err != nil:
			t.Fatalf("read shard %d of group %d: %v", s.Shard, s.Group, err)
		case response.Code == flotillav1.Code_OK:
			return response.Results[0]
		case response.Code != flotillav1.Code_NOT_LEADER && response.Code != flotillav1.Code_UNAVAILABLE:
			t.Fatalf("read shard %d of group %d: %v %s", s.Shard, s.Group, response.Code, response.Message)
		}
	}
}

func followerScan(s shard, start []byte) *flotillav1.Request {
	return &flotillav1.Request{
		Shard: s.Shard, Group: s.Group, Follower: true,
		Ops: []*flotillav1.Op{{Op: &flotillav1.Op_Scan{Scan: &flotillav1.Scan{Start: start}}}},
	}
}

func kvAt(t testing.TB, addr string) flotillav1.KVClient {
	t.Helper()
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return flotillav1.NewKVClient(conn)
}

// readReplica reads the first page of every shard at a node, whatever comes of
// it, until ctx ends.
func readReplica(ctx context.Context, kv flotillav1.KVClient, shards []shard) {
	for ctx.Err() == nil {
		for _, s := range shards {
			kv.Do(ctx, followerScan(s, nil), grpc.WaitForReady(true))
		}
	}
}

// sameReplicas requires that all nodes hold the same keys, values and versions,
// each in its own state.
func sameReplicas(t testing.TB, c *cluster) (keys int) {
	t.Helper()
	shards := shardsAt(t, c.grpc(0))
	first, keys := replicaDigest(t, c.grpc(0), shards)
	for i := 1; i < len(c.nodes); i++ {
		if got, n := replicaDigest(t, c.grpc(i), shards); got != first {
			t.Errorf("node %d holds %d keys with digest %s, node 1 %d with %s", i+1, n, got, keys, first)
		}
	}
	return keys
}

// lagOf is the largest match_lag of the node's replicas; -1 if it is not known
// of one.
func lagOf(s status, node uint64) int64 {
	lag := int64(0)
	for _, g := range s.Groups {
		for _, r := range g.Replicas {
			switch {
			case r.NodeID != node:
			case r.MatchLag < 0:
				return -1
			default:
				lag = max(lag, r.MatchLag)
			}
		}
	}
	return lag
}

// nodeID is the id of the cluster's node i.
func nodeID(t testing.TB, c *cluster, s status, i int) uint64 {
	t.Helper()
	for _, n := range s.Nodes {
		if n.Addr == c.grpc(i) {
			return n.ID
		}
	}
	t.Fatalf("no node at %s", c.grpc(i))
	return 0
}
