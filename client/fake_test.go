package client

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// fakeCluster is a cluster of gRPC servers on loopback over one table: what a
// client can see of the real one, and a test can steer.
type fakeCluster struct {
	t     *testing.T
	nodes []*fakeNode

	mu       sync.Mutex // guards what follows
	shards   []*fakeShard
	leaders  map[uint64]uint64 // by group: the leader's node, 0: none
	revision uint64
	changed  chan struct{}
	noMap    bool
	// intercept may answer in the cluster's place (non-nil), or swallow the
	// request (drop). It is called under mu.
	intercept func(node uint64, q *flotillav1.Request) (p *flotillav1.Response, drop bool)
	// watch serves watches; nil: not at all.
	watch    func(node uint64, q *flotillav1.WatchRequest, stream grpc.ServerStreamingServer[flotillav1.WatchResponse]) error
	messages int // received on Batch streams
	requests int
}

type fakeShard struct {
	group, generation uint64
	count             uint64
	items             map[string]*fakeItem
	answers           map[[2]uint64]*flotillav1.Response // by client and number; nil: closed
}

type fakeItem struct {
	value   []byte
	version uint64
	expire  int64
}

// fakeNode is one of its servers.
type fakeNode struct {
	flotillav1.UnimplementedKVServer
	flotillav1.UnimplementedClusterServer
	cluster *fakeCluster
	id      uint64
	addr    string
	server  *grpc.Server
}

const (
	fakeShards = 16
	fakeGroups = 2 // ids 2 and 3
)

// newFakeCluster starts a cluster of n nodes; it ends with the test.
func newFakeCluster(t *testing.T, n int) *fakeCluster {
	f := &fakeCluster{t: t, leaders: map[uint64]uint64{2: 1, 3: uint64(min(2, n))}, revision: 1, changed: make(chan struct{})}
	for i := range fakeShards {
		f.shards = append(f.shards, &fakeShard{
			group:      uint64(2 + i%fakeGroups),
			generation: 1,
			items:      make(map[string]*fakeItem),
			answers:    make(map[[2]uint64]*flotillav1.Response),
		})
	}
	for i := range n {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		node := &fakeNode{cluster: f, id: uint64(i + 1), addr: listener.Addr().String(), server: newFakeServer()}
		flotillav1.RegisterKVServer(node.server, node)
		flotillav1.RegisterClusterServer(node.server, node)
		f.nodes = append(f.nodes, node)
		served := make(chan struct{})
		go func() {
			defer close(served)
			node.server.Serve(listener)
		}()
		t.Cleanup(func() {
			node.server.Stop()
			<-served
		})
	}
	return f
}

// newFakeServer has the settings of a node's.
func newFakeServer() *grpc.Server {
	return grpc.NewServer(
		grpc.MaxRecvMsgSize(16<<20),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	)
}

func (f *fakeCluster) addrs() []string {
	var addrs []string
	for _, n := range f.nodes {
		addrs = append(addrs, n.addr)
	}
	return addrs
}

// client makes a client of the cluster; it ends with the test.
func (f *fakeCluster) client(options Options) *Client {
	f.t.Helper()
	options.Servers = f.addrs()
	c, err := New(options)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { c.Close() })
	return c
}

// change changes the cluster under its lock.
func (f *fakeCluster) change(do func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do()
}

// publish makes a new map of what holds now. Call it within change.
func (f *fakeCluster) publish() {
	f.revision++
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *fakeCluster) wireMap() *flotillav1.ShardMap {
	m := &flotillav1.ShardMap{ClusterId: "fake", Revision: f.revision}
	for _, s := range f.shards {
		m.Shards = append(m.Shards, &flotillav1.Assignment{Group: s.group, Generation: s.generation})
	}
	for id := uint64(2); id < 2+fakeGroups; id++ {
		g := &flotillav1.Group{Id: id}
		for _, n := range f.nodes {
			g.Members = append(g.Members, &flotillav1.GroupMember{ReplicaId: n.id, NodeId: n.id})
		}
		m.Groups = append(m.Groups, g)
	}
	for _, n := range f.nodes {
		m.Nodes = append(m.Nodes, &flotillav1.Node{Id: n.id, State: "up", Addr: n.addr})
	}
	return m
}

// GetMap is of Cluster.
func (n *fakeNode) GetMap(context.Context, *flotillav1.GetMapRequest) (*flotillav1.ShardMap, error) {
	f := n.cluster
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.noMap {
		return nil, status.Error(codes.FailedPrecondition, "the cluster is not initialised")
	}
	return f.wireMap(), nil
}

// WatchMap is of Cluster.
func (n *fakeNode) WatchMap(q *flotillav1.WatchMapRequest, stream grpc.ServerStreamingServer[flotillav1.ShardMap]) error {
	f := n.cluster
	after := q.GetAfterRevision()
	for {
		f.mu.Lock()
		m, changed, none := f.wireMap(), f.changed, f.noMap
		f.mu.Unlock()
		if none {
			return status.Error(codes.FailedPrecondition, "the cluster is not initialised")
		}
		if m.GetRevision() > after {
			after = m.GetRevision()
			if err := stream.Send(m); err != nil {
				return err
			}
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return nil
		}
	}
}

// Watch is of KV.
func (n *fakeNode) Watch(q *flotillav1.WatchRequest, stream grpc.ServerStreamingServer[flotillav1.WatchResponse]) error {
	n.cluster.mu.Lock()
	serve := n.cluster.watch
	n.cluster.mu.Unlock()
	return serve(n.id, q, stream)
}

// Batch is of KV.
func (n *fakeNode) Batch(stream grpc.BidiStreamingServer[flotillav1.BatchRequest, flotillav1.BatchResponse]) error {
	for {
		m, err := stream.Recv()
		if err != nil {
			return nil
		}
		if m.GetClusterId() != "fake" {
			return status.Error(codes.FailedPrecondition, "another cluster")
		}
		var answers []*flotillav1.Response
		n.cluster.change(func() {
			n.cluster.messages++
			for _, q := range m.GetRequests() {
				n.cluster.requests++
				if p := n.serve(q); p != nil {
					p.Id = q.GetId()
					answers = append(answers, p)
				}
			}
		})
		if len(answers) == 0 {
			continue
		}
		if err := stream.Send(&flotillav1.BatchResponse{Responses: answers}); err != nil {
			return err
		}
	}
}

func (n *fakeNode) serve(q *flotillav1.Request) *flotillav1.Response {
	f := n.cluster
	if f.intercept != nil {
		if p, drop := f.intercept(n.id, q); drop || p != nil {
			return p
		}
	}
	shard := f.shards[q.GetShard()]
	if leader := f.leaders[q.GetGroup()]; leader != n.id && !q.GetFollower() {
		p := &flotillav1.Response{Code: flotillav1.Code_NOT_LEADER, LeaderNode: leader}
		if leader != 0 {
			p.LeaderAddr = f.nodes[leader-1].addr
		}
		return p
	}
	if shard.group != q.GetGroup() {
		return &flotillav1.Response{Code: flotillav1.Code_MOVED, Group: shard.group}
	}
	return f.apply(shard, q)
}

// apply carries a request out, once for each number.
func (f *fakeCluster) apply(h *fakeShard, q *flotillav1.Request) *flotillav1.Response {
	if o := q.GetOutcome(); o != nil {
		return h.outcome([2]uint64{o.GetClientId(), o.GetSeq()})
	}
	key := [2]uint64{q.GetSession().GetClientId(), q.GetSession().GetSeq()}
	if q.GetSession() != nil {
		if p, ok := h.answers[key]; ok {
			if p == nil {
				return &flotillav1.Response{Code: flotillav1.Code_INVALID, Message: "the number is closed"}
			}
			again := *respCopy(p)
			again.Replayed = true
			return &again
		}
	}
	p := &flotillav1.Response{Compared: true}
	ops := q.GetOps()
	for _, cmp := range q.GetCompares() {
		if !h.holds(cmp) {
			p.Compared = false
			ops = q.GetOtherwise()
			break
		}
	}
	for _, op := range ops {
		p.Results = append(p.Results, h.op(op))
	}
	if q.GetSession() != nil {
		h.answers[key] = respCopy(p)
	}
	return p
}

func respCopy(p *flotillav1.Response) *flotillav1.Response {
	return &flotillav1.Response{Code: p.Code, Compared: p.Compared, Results: p.Results}
}

func (h *fakeShard) outcome(key [2]uint64) *flotillav1.Response {
	p := &flotillav1.Response{Outcome: flotillav1.OutcomeState_APPLIED}
	if answer, ok := h.answers[key]; !ok || answer == nil {
		h.answers[key] = nil
		p.Outcome = flotillav1.OutcomeState_NOT_APPLIED
	}
	return p
}

func (h *fakeShard) holds(cmp *flotillav1.Compare) bool {
	item := h.items[string(cmp.GetKey())]
	switch cmp.GetTarget() {
	case flotillav1.Compare_EXISTS:
		return item != nil
	case flotillav1.Compare_ABSENT:
		return item == nil
	case flotillav1.Compare_VERSION:
		return item == nil && cmp.GetVersion() == 0 || item != nil && item.version == cmp.GetVersion()
	}
	return item != nil && bytes.Equal(item.value, cmp.GetValue())
}

func (h *fakeShard) op(op *flotillav1.Op) *flotillav1.Result {
	switch o := op.GetOp().(type) {
	case *flotillav1.Op_Get:
		return h.found(o.Get.GetKey())
	case *flotillav1.Op_Put:
		return h.put(o.Put)
	case *flotillav1.Op_Delete:
		r := h.found(o.Delete.GetKey())
		if r.Status == flotillav1.Result_DONE {
			h.count++
			delete(h.items, string(o.Delete.GetKey()))
		}
		return r
	case *flotillav1.Op_Append:
		r := h.found(o.Append.GetKey())
		value := append(slices.Clone(r.GetValue()), o.Append.GetValue()...)
		return h.write(o.Append.GetKey(), value, 0, r.GetExisted(), int64(len(value)))
	case *flotillav1.Op_Incr:
		return h.incr(o.Incr)
	case *flotillav1.Op_Expire:
		r := h.found(o.Expire.GetKey())
		if r.Status == flotillav1.Result_DONE {
			h.items[string(o.Expire.GetKey())].expire = o.Expire.GetTtlMs() + o.Expire.GetExpireAtMs()
		}
		return r
	case *flotillav1.Op_Scan:
		return h.scan(o.Scan)
	}
	return h.clear(op.GetClear())
}

func (h *fakeShard) clear(c *flotillav1.Clear) *flotillav1.Result {
	r := h.scan(&flotillav1.Scan{Start: c.GetStart(), End: c.GetEnd(), Prefix: c.GetPrefix(), Limit: 1 << 30})
	for _, kv := range r.GetPairs() {
		delete(h.items, string(kv.GetKey()))
	}
	return &flotillav1.Result{Count: r.GetCount()}
}

func (h *fakeShard) found(key []byte) *flotillav1.Result {
	item := h.items[string(key)]
	if item == nil {
		return &flotillav1.Result{Status: flotillav1.Result_ABSENT}
	}
	return &flotillav1.Result{Value: item.value, Version: item.version, ExpireAtMs: item.expire, Existed: true}
}

func (h *fakeShard) put(p *flotillav1.Put) *flotillav1.Result {
	r := h.found(p.GetKey())
	ok := true
	switch p.GetCondition() {
	case flotillav1.Put_IF_ABSENT:
		ok = !r.GetExisted()
	case flotillav1.Put_IF_PRESENT:
		ok = r.GetExisted()
	case flotillav1.Put_IF_VERSION:
		ok = r.GetVersion() == p.GetVersion()
	case flotillav1.Put_IF_VALUE:
		ok = r.GetExisted() && bytes.Equal(r.GetValue(), p.GetExpected())
	}
	if !ok {
		r.Status = flotillav1.Result_CONDITION_FAILED
		return r
	}
	w := h.write(p.GetKey(), p.GetValue(), p.GetTtlMs()+p.GetExpireAtMs(), r.GetExisted(), 0)
	if p.GetPrevious() {
		w.Value = r.GetValue()
	}
	return w
}

func (h *fakeShard) write(key, value []byte, expire int64, existed bool, number int64) *flotillav1.Result {
	h.count++
	h.items[string(key)] = &fakeItem{value: value, version: h.count, expire: expire}
	return &flotillav1.Result{Version: h.count, Existed: existed, Number: number, ExpireAtMs: expire}
}

func (h *fakeShard) incr(i *flotillav1.Incr) *flotillav1.Result {
	r := h.found(i.GetKey())
	n := int64(0)
	if r.GetExisted() {
		var err error
		if n, err = strconv.ParseInt(string(r.GetValue()), 10, 64); err != nil {
			return &flotillav1.Result{Status: flotillav1.Result_NOT_AN_INTEGER}
		}
	}
	n += i.GetBy()
	return h.write(i.GetKey(), strconv.AppendInt(nil, n, 10), 0, r.GetExisted(), n)
}

func (h *fakeShard) scan(s *flotillav1.Scan) *flotillav1.Result {
	var all []string
	for key := range h.items {
		inRange := key >= string(s.GetStart()) && (len(s.GetEnd()) == 0 || key < string(s.GetEnd()))
		if inRange && bytes.HasPrefix([]byte(key), s.GetPrefix()) {
			all = append(all, key)
		}
	}
	slices.Sort(all)
	limit := int(s.GetLimit())
	if limit == 0 {
		limit = 10
	}
	r := &flotillav1.Result{}
	if len(all) > limit {
		r.Next = []byte(all[limit])
		all = all[:limit]
	}
	r.Count = uint64(len(all))
	for _, key := range all {
		if s.GetCountOnly() {
			break
		}
		kv := &flotillav1.KeyValue{Key: []byte(key), Version: h.items[key].version}
		if !s.GetKeysOnly() {
			kv.Value = h.items[key].value
		}
		r.Pairs = append(r.Pairs, kv)
	}
	return r
}

// keyOf finds a key of a shard.
func keyOf(shard int, prefix string) string {
	for i := 0; ; i++ {
		if key := fmt.Sprintf("%s%d", prefix, i); shardmap.Shard([]byte(key), fakeShards) == shardmap.ShardID(shard) {
			return key
		}
	}
}

// within is a context that ends soon enough for a test.
func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); {
		if holds() {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatalf("never: %s", what)
}
