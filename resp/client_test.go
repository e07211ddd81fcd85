package resp

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/client"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// flakyCluster is the model behind the product's own client: two nodes that
// refuse some requests, so that the client retries, and answer in any order.
type flakyCluster struct {
	*model
	shardMap *shardmap.Map
	refuse   func() bool
}

func newFlakyCluster(m *model, refuse func() bool) *flakyCluster {
	members := []shardmap.Member{{Replica: 1, Node: 1}, {Replica: 2, Node: 2}}
	c := &flakyCluster{model: m, refuse: refuse, shardMap: &shardmap.Map{
		ClusterID: "test", Revision: 1,
		Shards: make([]shardmap.Assignment, len(m.shards)),
		Groups: []shardmap.Group{{ID: 2, Members: members}},
		Nodes:  []shardmap.Node{{ID: 1, Addr: "one:1"}, {ID: 2, Addr: "two:2"}},
	}}
	for i := range c.shardMap.Shards {
		c.shardMap.Shards[i] = shardmap.Assignment{Group: raft.GroupID(2), Generation: 1}
	}
	return c
}

func (c *flakyCluster) Current() *shardmap.Map   { return c.shardMap }
func (c *flakyCluster) Changed() <-chan struct{} { return nil }
func (c *flakyCluster) Refresh(uint64)           {}

// Dial is a connection to one of the nodes.
func (c *flakyCluster) Dial(_ context.Context, _ client.Target, deliver func([]*flotillav1.Response, error)) (client.Conn, error) {
	return &flakyConn{cluster: c, deliver: deliver}, nil
}

type flakyConn struct {
	cluster *flakyCluster
	mu      sync.Mutex // held while deliver runs
	closed  bool
	deliver func([]*flotillav1.Response, error)
}

func (k *flakyConn) Send(requests []*flotillav1.Request) error {
	for _, req := range requests {
		k.cluster.work <- func() {
			resp := &flotillav1.Response{Code: flotillav1.Code_BUSY}
			if !k.cluster.refuse() {
				resp = k.cluster.do(req)
			}
			resp.Id = req.Id
			k.mu.Lock()
			defer k.mu.Unlock()
			if !k.closed {
				k.deliver([]*flotillav1.Response{resp}, nil)
			}
		}
	}
	return nil
}

func (k *flakyConn) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.closed = true
	return nil
}

// clientBackend is the client as the door's backend.
type clientBackend struct {
	*client.Client
	info func() Info
}

func (b clientBackend) Info() Info { return b.info() }

// startClient serves the product's client over a model.
func startClient(t testing.TB, m *model, refuse func() bool) *Server {
	t.Helper()
	cluster := newFlakyCluster(m, refuse)
	c, err := client.New(client.Options{Maps: cluster, Dialer: cluster})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return start(t, clientBackend{c, m.Info}, nil)
}

// TestOrderThroughRetries pipelines through the real client while a tenth of
// all requests is refused and retried later: no command may overtake one of
// its shard, and none may take effect twice.
func TestOrderThroughRetries(t *testing.T) {
	m := newModel(8, 4)
	t.Cleanup(m.close)
	s := startClient(t, m, func() bool { return rand.IntN(10) == 0 })
	c := dial(t, s.Addr().String())
	const rounds, keys = 600, 20
	var in, want bytes.Buffer
	for i := range rounds {
		for _, key := range []string{"n", "m", "o" + strconv.Itoa(i%keys)} {
			n := strconv.Itoa(i + 1)
			if key[0] == 'o' {
				n = strconv.Itoa(i/keys + 1)
			}
			in.WriteString(array("INCR", key) + array("GET", key))
			fmt.Fprintf(&want, ":%s\r\n$%d\r\n%s\r\n", n, len(n), n)
		}
	}
	go c.nc.Write(in.Bytes())
	got := make([]byte, want.Len())
	if _, err := io.ReadFull(c.r, got); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want.Bytes()) {
		t.Fatal("a command overtook another of its shard, or took effect twice")
	}
}

// TestClientErrors asks through the client in a cluster that is always busy,
// and in one that never answers. A command without effect must get an error on
// which Redis clients try again; a write of which that is not known must not.
func TestClientErrors(t *testing.T) {
	m := newModel(8, 4)
	t.Cleanup(m.close)
	silent := make(chan struct{})
	t.Cleanup(func() { close(silent) })
	var mute atomic.Bool
	cluster := newFlakyCluster(m, func() bool {
		if mute.Load() {
			<-silent
		}
		return true
	})
	c, err := client.New(client.Options{Maps: cluster, Dialer: cluster})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	s := start(t, clientBackend{c, m.Info}, func(o *Options) { o.RequestTimeout = 100 * time.Millisecond })
	d := dial(t, s.Addr().String())
	again := func(reply string) bool {
		return strings.HasPrefix(reply, "-TRYAGAIN ") || strings.HasPrefix(reply, "-CLUSTERDOWN ")
	}
	unknown := func(reply string) bool { return strings.HasPrefix(reply, "-"+errUnknownOutcome) }
	for _, args := range [][]string{{"GET", "k"}, {"DBSIZE"}} {
		if got := d.do(args...); !again(got) {
			t.Errorf("%q of a busy cluster: %q", args, got)
		}
	}
	// A write may just be on its way when its time is up.
	if got := d.do("INCR", "n"); !again(got) && !unknown(got) {
		t.Errorf("INCR of a busy cluster: %q", got)
	}
	mute.Store(true)
	if got := d.do("GET", "k"); !again(got) {
		t.Errorf("GET of a silent cluster: %q", got)
	}
	if got := d.do("INCR", "n"); !unknown(got) {
		t.Errorf("INCR of a silent cluster: %q", got)
	}
}
