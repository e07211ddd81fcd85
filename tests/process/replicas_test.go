//go:build process

package process

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/tests/internal/replicas"
)

func shardsAt(t testing.TB, server string) (shards []replicas.Shard) {
	t.Helper()
	stdout, stderr, code := flotilla(t, "shard", "list", "-o", "json", "--server", server)
	if err := json.Unmarshal([]byte(stdout), &shards); err != nil || code != 0 || len(shards) == 0 {
		t.Fatalf("shard list: exit %d, %v: %s%s", code, err, stdout, stderr)
	}
	return shards
}

// replicaDigest hashes all keys, values and versions as the replicas of one
// node hold them.
func replicaDigest(t testing.TB, addr string, shards []replicas.Shard) (digest string, keys int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	digest, keys, err := replicas.Digest(ctx, kvAt(t, addr), shards)
	if err != nil {
		t.Fatal(err)
	}
	return digest, keys
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
func readReplica(ctx context.Context, kv flotillav1.KVClient, shards []replicas.Shard) {
	for ctx.Err() == nil {
		for _, s := range shards {
			kv.Do(ctx, replicas.FollowerScan(s, nil), grpc.WaitForReady(true))
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
