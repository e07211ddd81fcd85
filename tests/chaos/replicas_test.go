//go:build chaos

package chaos

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/tests/internal/replicas"
)

// kv connects to the gRPC door of a node.
func (n *node) kv() (kv flotillav1.KVClient, disconnect func() error, err error) {
	conn, err := grpc.NewClient(n.grpc(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)))
	if err != nil {
		return nil, nil, err
	}
	return flotillav1.NewKVClient(conn), conn.Close, nil
}

func (c *cluster) shards() (all []replicas.Shard, err error) {
	out, err := c.flotilla(10*time.Second, "shard", "list", "-o", "json", "--server", c.nodes[0].grpc())
	if err == nil {
		err = json.Unmarshal(out, &all)
	}
	return all, err
}

// sameReplicas compares what the members of each group hold, each in its own
// state. All is compared again where a replica or a shard has been moved in the
// midst of it, or where they differ: a write that nobody waited for to the end
// may have come in between, but what has come apart stays so.
func sameReplicas(c *cluster) (keys int, err error) {
	err = eventually(convergeIn, func() error {
		keys, err = sameGroups(c)
		return err
	})
	return keys, err
}

func sameGroups(c *cluster) (keys int, err error) {
	all, err := c.shards()
	if err != nil {
		return 0, err
	}
	s, err := c.status()
	if err != nil {
		return 0, err
	}
	byGroup := make(map[uint64][]replicas.Shard)
	for _, shard := range all {
		byGroup[shard.Group] = append(byGroup[shard.Group], shard)
	}
	for _, g := range s.Groups {
		if len(byGroup[g.ID]) == 0 {
			continue
		}
		n, err := sameGroup(c, s, g, byGroup[g.ID])
		if err != nil {
			return 0, err
		}
		keys += n
	}
	return keys, nil
}

func sameGroup(c *cluster, s status, g groupStatus, shards []replicas.Shard) (keys int, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	first, firstName := "", ""
	for _, replica := range g.Replicas {
		i := c.node(s, replica.NodeID)
		if i < 0 {
			return 0, fmt.Errorf("group %d has a replica on node %d, which is none", g.ID, replica.NodeID)
		}
		kv, disconnect, err := c.nodes[i].kv()
		if err != nil {
			return 0, err
		}
		digest, n, err := replicas.Digest(ctx, kv, shards)
		disconnect()
		if err != nil {
			return 0, err
		}
		if first == "" {
			first, firstName, keys = digest, c.nodes[i].name, n
		}
		if digest != first {
			return 0, fmt.Errorf("group %d: %s holds %d keys with digest %.12s, %s %d with %.12s", g.ID, c.nodes[i].name, n, digest, firstName, keys, first)
		}
	}
	return keys, nil
}
