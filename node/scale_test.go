package node

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
)

var scaleBytes = flag.Int64("scale-bytes", 0, "run TestTenNodes with values of so many bytes in all")

// scaleCluster is ten nodes of one process, under load.
type scaleCluster struct {
	*testing.T
	dir   string
	cache *pebble.Cache
	nodes []*Node
	join  []string
	made  int // replicas, when it was last balanced
}

func (s *scaleCluster) add() *Node {
	name := fmt.Sprintf("n%d", len(s.nodes)+1)
	n := startWith(s.T, Options{Name: name, DataDir: filepath.Join(s.dir, name), Join: s.join, Cache: s.cache})
	s.nodes, s.join = append(s.nodes, n), append(s.join, n.Addresses().Gossip)
	return n
}

func (s *scaleCluster) id(n *Node) uint64 {
	identity, _ := n.ctrl.Identity()
	return uint64(identity.Node)
}

// fill writes values of 4 KiB until there are so many bytes.
func (s *scaleCluster) fill(size int64) {
	const valueBytes, writers = 4 << 10, 64
	var next atomic.Int64
	var writing sync.WaitGroup
	for i := range writers {
		c := s.nodes[i%len(s.nodes)].client
		writing.Go(func() {
			value := bytes.Repeat([]byte{byte(i)}, valueBytes)
			for n := next.Add(1); n <= size/valueBytes; n = next.Add(1) {
				if _, err := c.Put(s.Context(), fmt.Sprint("value", n), value); err != nil {
					s.Errorf("a put failed: %v", err)
					return
				}
			}
		})
	}
	writing.Wait()
}

// replicas counts those of each of the nodes, and all that were ever made.
func (s *scaleCluster) replicas(on []*Node) (least, most, made int) {
	m := s.nodes[1].ctrl.Maps().Current()
	has := make(map[uint64]int)
	for _, g := range m.Groups {
		if g.ID == 1 {
			continue
		}
		highest := 0
		for _, member := range g.Members {
			has[uint64(member.Node)]++
			highest = max(highest, int(member.Replica))
		}
		made += highest
	}
	least = 1 << 30
	for _, n := range on {
		least, most = min(least, has[s.id(n)]), max(most, has[s.id(n)])
	}
	return least, most, made
}

// balanced waits until every group is whole on these nodes and they have equally
// many replicas; meanwhile the cluster says how far it is, each second.
func (s *scaleCluster) balanced(what string, on []*Node) {
	s.Helper()
	began, shown := time.Now(), time.Now()
	for {
		why := notWhole(s.nodes[1], on)
		least, most, made := s.replicas(on)
		if why == "" && most-least <= 1 {
			s.Logf("%s: balanced after %v, %d replicas were made; each node has %d to %d", what, time.Since(began).Round(100*time.Millisecond), made-s.made, least, most)
			s.made = made
			return
		}
		if time.Since(began) > 10*time.Minute {
			s.Fatalf("%s: %d to %d replicas a node; %s", what, least, most, why)
		}
		if time.Since(shown) > time.Second {
			shown = time.Now()
			ctx, cancel := context.WithTimeout(s.Context(), 2*time.Second)
			if _, err := s.nodes[1].ctrl.GetStatus(ctx, &flotillav1.GetStatusRequest{}); err != nil {
				s.Errorf("%s: no status: %v", what, err)
			}
			cancel()
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// TestTenNodes: ten nodes of one process with 32 groups and 1,024 shards, full of
// values. A node is added, another drained, a third dies for good: each time the
// cluster is whole and balanced again without help, and no request fails.
func TestTenNodes(t *testing.T) {
	if *scaleBytes == 0 {
		t.Skip("SKIPPED: make load runs it")
	}
	cache := NewCache(256<<20, 11)
	defer cache.Unref()
	s := &scaleCluster{T: t, dir: t.TempDir(), cache: cache}
	for range 10 {
		s.add()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if _, err := s.nodes[0].ctrl.Init(ctx, &flotillav1.InitRequest{Shards: 1024, Replicas: 3, Groups: 32, ReplaceAfterMs: 6_000}); err != nil {
		t.Fatal(err)
	}
	waitReady(t, s.nodes)
	began := time.Now()
	s.fill(*scaleBytes)
	t.Logf("%d bytes of values written in %v", *scaleBytes, time.Since(began).Round(100*time.Millisecond))
	s.balanced("at first", s.nodes)

	const callers = 8
	var calling sync.WaitGroup
	done, acked := make(chan struct{}), make([]int64, callers)
	c := clientOf(t, s.nodes[1])
	for i := range acked {
		calling.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if _, err := c.Incr(context.Background(), fmt.Sprint("counter", i), 1); err != nil {
					t.Errorf("an increment failed: %v", err)
					return
				}
				acked[i]++
			}
		})
	}
	s.add()
	waitReady(t, s.nodes)
	s.balanced("a node is added", s.nodes)
	drained, dead := s.nodes[4], s.nodes[7]
	if _, err := s.nodes[1].ctrl.ChangeCluster(ctx, &flotillav1.ChangeClusterRequest{Change: &flotillav1.ChangeClusterRequest_DrainNode{DrainNode: s.id(drained)}}); err != nil {
		t.Fatal(err)
	}
	rest := without(s.nodes, drained)
	s.balanced("a node is drained", rest)
	stop(t, dead)
	s.balanced("a node is dead", without(rest, dead))
	close(done)
	calling.Wait()
	sum := int64(0)
	for i, n := range acked {
		sum += n
		got, err := c.Get(t.Context(), fmt.Sprint("counter", i))
		if err != nil || string(got.Value) != fmt.Sprint(n) {
			t.Errorf("counter %d: %d increments were acknowledged, it holds %q: %v", i, n, got.Value, err)
		}
	}
	t.Logf("%d increments meanwhile", sum)
}

func without(nodes []*Node, n *Node) (rest []*Node) {
	for _, o := range nodes {
		if o != n {
			rest = append(rest, o)
		}
	}
	return rest
}
