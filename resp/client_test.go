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
// answer in any order, and as a test says.
type flakyCluster struct {
	*model
	shardMap *shardmap.Map
	answer   func(*flotillav1.Request) *flotillav1.Response // nil: none, ever
}

func newFlakyCluster(m *model, answer func(*flotillav1.Request) *flotillav1.Response) *flakyCluster {
	members := []shardmap.Member{{Replica: 1, Node: 1}, {Replica: 2, Node: 2}}
	c := &flakyCluster{model: m, answer: answer, shardMap: &shardmap.Map{
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
			resp := k.cluster.answer(req)
			if resp == nil {
				return
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

func (b clientBackend) Info() Info    { return b.info() }
func (b clientBackend) NewLane() Lane { return b.Client.NewLane() }

// startClient serves the product's client over a model.
func startClient(t testing.TB, m *model, answer func(*flotillav1.Request) *flotillav1.Response, change func(*Options)) *Server {
	t.Helper()
	cluster := newFlakyCluster(m, answer)
	c, err := client.New(client.Options{Maps: cluster, Dialer: cluster})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return start(t, clientBackend{c, m.Info}, change)
}

func busy() *flotillav1.Response { return &flotillav1.Response{Code: flotillav1.Code_BUSY} }

// TestOrderThroughRetries pipelines through the real client while a tenth of
// all requests is refused and retried later: no command may overtake one of
// its shard, and none may take effect twice.
func TestOrderThroughRetries(t *testing.T) {
	m := newModel(8, 4)
	t.Cleanup(m.close)
	s := startClient(t, m, func(req *flotillav1.Request) *flotillav1.Response {
		if rand.IntN(10) == 0 {
			return busy()
		}
		return m.do(req)
	}, nil)
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
	var mute atomic.Bool
	s := startClient(t, m, func(*flotillav1.Request) *flotillav1.Response {
		if mute.Load() {
			return nil
		}
		return busy()
	}, func(o *Options) { o.RequestTimeout = 100 * time.Millisecond })
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

// lateWrites is a cluster that may keep writes back, unanswered, and applies
// them long after their callers were told that the outcome is unknown, unless
// their numbers have been closed.
type lateWrites struct {
	model *model

	mu     sync.Mutex
	keep   bool
	kept   []*flotillav1.Request
	closed map[uint64]bool // by number: the tests have one shard and session
}

func (l *lateWrites) answer(req *flotillav1.Request) *flotillav1.Response {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case req.GetOutcome() != nil:
		l.closed[req.GetOutcome().GetSeq()] = true
		return &flotillav1.Response{Outcome: flotillav1.OutcomeState_NOT_APPLIED}
	case l.keep && req.GetSession() != nil:
		l.kept = append(l.kept, req)
		return nil
	}
	return l.model.do(req)
}

func (l *lateWrites) setKeep(keep bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.keep = keep
}

// apply lets happen what was kept back.
func (l *lateWrites) apply(t *testing.T) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.kept) == 0 {
		t.Fatal("no write was kept back")
	}
	for _, req := range l.kept {
		if !l.closed[req.GetSession().GetSeq()] {
			l.model.do(req)
		}
	}
	l.kept = nil
}

// TestALateWriteOvertakesNothing gives writes up as unknown, lets later
// commands of their connection and shard go on, and then applies the writes.
func TestALateWriteOvertakesNothing(t *testing.T) {
	for _, test := range []struct {
		name          string
		behind, after [2]string // commands, as lines, and their replies
	}{
		{"write", [2]string{"SET k new\r\nGET k", "+OK\r\n$3\r\nnew\r\n"}, [2]string{"GET k", "$3\r\nnew\r\n"}},
		{"read", [2]string{"GET k", "$-1\r\n"}, [2]string{"GET k", "$-1\r\n"}},
		{"transaction", [2]string{"MULTI\r\nSTRLEN k\r\nEXEC", "+OK\r\n+QUEUED\r\n*1\r\n:0\r\n"}, [2]string{"STRLEN k", ":0\r\n"}},
		{"in steps", [2]string{"DBSIZE", ":0\r\n"}, [2]string{"DBSIZE", ":0\r\n"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := newModel(1, 4)
			t.Cleanup(m.close)
			late := &lateWrites{model: m, closed: make(map[uint64]bool), keep: true}
			s := startClient(t, m, late.answer, func(o *Options) { o.RequestTimeout = 100 * time.Millisecond })
			c := dial(t, s.Addr().String())
			if got := c.do("SET", "k", "late"); !strings.HasPrefix(got, "-"+errUnknownOutcome) {
				t.Fatalf("the write was answered %q", got)
			}
			late.setKeep(false)
			c.exchange(test.behind)
			late.apply(t)
			c.exchange(test.after)
		})
	}
}

// exchange sends lines of commands at once and compares their replies.
func (c *rawClient) exchange(want [2]string) {
	c.t.Helper()
	c.send(want[0] + "\r\n")
	got := make([]byte, len(want[1]))
	if _, err := io.ReadFull(c.r, got); err != nil || string(got) != want[1] {
		c.t.Errorf("%q was answered %q (%v), want %q", want[0], got, err, want[1])
	}
}
