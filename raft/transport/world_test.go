package transport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/flotilla-kv/flotilla/raft"
)

const testCluster = "6f1c2a5e-test"

// patience is how long a condition may take on a busy machine.
const patience = 15 * time.Second

// eventually waits until ok holds.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, patience)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// recorder is a Handler that keeps what it is given.
type recorder struct {
	mu       sync.Mutex
	messages map[raft.NodeID][]raft.Message
	events   []string
	gate     chan struct{} // if set, HandleMessages waits for it
	install  func(ctx context.Context, from raft.NodeID, h SnapshotHeader, next func() ([]byte, error)) error
}

func newRecorder() *recorder { return &recorder{messages: make(map[raft.NodeID][]raft.Message)} }

func (r *recorder) HandleMessages(from raft.NodeID, ms []raft.Message) {
	r.mu.Lock()
	gate := r.gate
	r.mu.Unlock()
	if gate != nil {
		<-gate
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.messages[from] = append(r.messages[from], ms...)
}

func (r *recorder) HandleSnapshot(ctx context.Context, from raft.NodeID, h SnapshotHeader, next func() ([]byte, error)) error {
	r.mu.Lock()
	install := r.install
	r.mu.Unlock()
	if install == nil {
		return errors.New("no snapshots here")
	}
	return install(ctx, from, h, next)
}

func (r *recorder) PeerUp(node raft.NodeID, boot uint64) {
	r.event(fmt.Sprintf("up %d/%d", node, boot))
}
func (r *recorder) PeerDown(node raft.NodeID) { r.event(fmt.Sprintf("down %d", node)) }

func (r *recorder) event(e string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
}

func (r *recorder) eventLine() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.events, ", ")
}

func (r *recorder) got(from raft.NodeID) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.messages[from])
}

func (r *recorder) from(node raft.NodeID) []raft.Message {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]raft.Message(nil), r.messages[node]...)
}

// testNode is a transport behind a real gRPC server on loopback.
type testNode struct {
	*Transport
	*recorder
	id     raft.NodeID
	addr   string
	server *grpc.Server
	served chan struct{}
	once   sync.Once
}

// nodeSpec says how a test node differs from the usual.
type nodeSpec struct {
	id      raft.NodeID
	boot    uint64
	addr    string // to listen at; "": a free port
	cluster string
	change  func(*Options)
}

func startNode(t testing.TB, spec nodeSpec) *testNode {
	t.Helper()
	if spec.boot == 0 {
		spec.boot = 1
	}
	if spec.cluster == "" {
		spec.cluster = testCluster
	}
	if spec.addr == "" {
		spec.addr = "127.0.0.1:0"
	}
	opts := Options{Logger: slog.New(slog.NewTextHandler(testLog{t}, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	if spec.change != nil {
		spec.change(&opts)
	}
	tr, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", spec.addr)
	if err != nil {
		t.Fatal(err)
	}
	n := &testNode{
		Transport: tr, recorder: newRecorder(), id: spec.id, addr: listener.Addr().String(),
		server: grpc.NewServer(ServerOptions()...), served: make(chan struct{}),
	}
	tr.Register(n.server)
	if err := tr.Start(Identity{ClusterID: spec.cluster, Self: spec.id, Boot: spec.boot}, n.recorder); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(n.served)
		n.server.Serve(listener)
	}()
	t.Cleanup(n.stop)
	return n
}

// stop ends the node as a process ends: its connections are reset.
func (n *testNode) stop() {
	n.once.Do(func() {
		n.server.Stop()
		<-n.served
		n.Close()
	})
}

// meet makes each a peer of the others.
func meet(t testing.TB, nodes ...*testNode) {
	t.Helper()
	for _, a := range nodes {
		for _, b := range nodes {
			if err := a.SetAddr(b.id, b.addr); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func awaitUp(t testing.TB, nodes ...*testNode) {
	t.Helper()
	for _, a := range nodes {
		for _, b := range nodes {
			eventually(t, fmt.Sprintf("node %d sees node %d alive", a.id, b.id), func() bool { return a.Alive(b.id) })
		}
	}
}

// pair is two nodes that see each other.
func pair(t testing.TB) (a, b *testNode) {
	t.Helper()
	a, b = startNode(t, nodeSpec{id: 1}), startNode(t, nodeSpec{id: 2})
	meet(t, a, b)
	awaitUp(t, a, b)
	return a, b
}

// testLog sends log lines to the test, until it is over.
type testLog struct{ t testing.TB }

func (l testLog) Write(line []byte) (int, error) {
	if l.t.Context().Err() == nil {
		l.t.Log(string(bytes.TrimSpace(line)))
	}
	return len(line), nil
}

// numbered is a small message that can be told from others by its term.
func numbered(n int) raft.Message {
	return raft.Message{Group: 2, From: 1, To: 2, Term: raft.Term(n), Body: &raft.AppendEntriesReply{MatchIndex: raft.Index(n)}}
}

// heavy is numbered with an entry of size bytes.
func heavy(n, size int) raft.Message {
	return raft.Message{Group: 2, From: 1, To: 2, Term: raft.Term(n), Body: &raft.AppendEntries{
		Entries: []raft.Entry{{Index: 1, Term: 1, Kind: raft.EntryCommand, Data: make([]byte, size)}}}}
}

// noGoroutineLeft fails if fn leaves goroutines of this package or of gRPC.
func noGoroutineLeft(t *testing.T, fn func()) {
	t.Helper()
	before := ownGoroutines()
	fn()
	deadline := time.Now().Add(patience)
	for {
		left := ownGoroutines()
		if len(left) <= len(before) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines before, %d left:\n%s", len(before), len(left), strings.Join(left, "\n\n"))
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func ownGoroutines() []string {
	buf := make([]byte, 4<<20)
	all := strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n")
	var own []string
	for _, g := range all[1:] {
		if strings.Contains(g, "raft/transport.") || strings.Contains(g, "google.golang.org/grpc") {
			if !strings.Contains(g, "testing.tRunner") {
				own = append(own, g)
			}
		}
	}
	return own
}

// faultyNet is a dialer whose connections can be made to stand still or be
// refused.
type faultyNet struct {
	mu      sync.Mutex
	refused bool
	stalled chan struct{} // set: reads and writes wait for its closing
	conns   []net.Conn
	dead    chan struct{} // of the connections made from now on; closed: they pass nothing any more
}

// strand makes every connection made so far a half-open one: nothing passes,
// and nobody is told.
func (f *faultyNet) strand() {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.deadLocked())
	f.dead = nil
}

func (f *faultyNet) deadLocked() chan struct{} {
	if f.dead == nil {
		f.dead = make(chan struct{})
	}
	return f.dead
}

func (f *faultyNet) dial(ctx context.Context, addr string) (net.Conn, error) {
	f.mu.Lock()
	refused := f.refused
	f.mu.Unlock()
	if refused {
		return nil, errors.New("refused by the test")
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	f.conns = append(f.conns, conn)
	dead := f.deadLocked()
	f.mu.Unlock()
	return &faultyConn{Conn: conn, f: f, closed: make(chan struct{}), dead: dead}, nil
}

func (f *faultyNet) refuse(refused bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refused = refused
}

// cut resets every connection made so far.
func (f *faultyNet) cut() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.conns {
		c.(*net.TCPConn).SetLinger(0)
		c.Close()
	}
	f.conns = nil
}

func (f *faultyNet) stall() (heal func()) {
	ch := make(chan struct{})
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stalled = ch
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.stalled == ch {
			f.stalled = nil
			close(ch)
		}
	}
}

func (f *faultyNet) pass(closed, dead chan struct{}) {
	select {
	case <-dead:
		<-closed
	default:
	}
	f.mu.Lock()
	ch := f.stalled
	f.mu.Unlock()
	if ch != nil {
		select {
		case <-ch:
		case <-closed:
		}
	}
}

type faultyConn struct {
	net.Conn
	f      *faultyNet
	closed chan struct{}
	dead   chan struct{}
	once   sync.Once
}

func (c *faultyConn) Write(b []byte) (int, error) {
	c.f.pass(c.closed, c.dead)
	return c.Conn.Write(b)
}

func (c *faultyConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.f.pass(c.closed, c.dead)
	return n, err
}

func (c *faultyConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

var _ io.Writer = testLog{}
