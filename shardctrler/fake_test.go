package shardctrler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// fakeCluster is a world of nodes whose consensus is perfect and whose
// machines crash: one log of the config group that all its replicas apply, and
// for each group a membership, a leader among the live, and births. It runs in
// a synctest bubble; gRPC runs over bufconn.
type fakeCluster struct {
	t       *testing.T
	latency time.Duration // of streams; set before there are any
	// crash, if set, is asked before and after each proposal to the config
	// group; true kills the proposing node there.
	crash func(proposal int, applied bool) bool

	mu        sync.Mutex // guards all below
	log       [][]byte
	proposals int
	groups    map[raft.GroupID]*fakeGroup
	nodes     map[string]*fakeNode // by address
	stuck     bool                 // moves do not go on
	refuse    bool                 // the targets of moves refuse their copies
	closed    bool
	work      sync.WaitGroup
}

type fakeGroup struct {
	id         raft.GroupID
	membership raft.Membership
	preferred  raft.NodeID
	leader     raft.NodeID
	term       raft.Term
	electing   bool
	born       []shardmap.ShardID // nil: not yet
	generation shardmap.Generation
	births     int // how often it was really born
	imports    map[shardmap.ShardID]*fakeImport
}

// fakeImport is a move into a group: each question takes it a phase further.
type fakeImport struct {
	number uint64
	order  *flotillav1.ImportShard
	phase  int // of fakePhases
	ended  string
}

// fakeNode is one process with its data dir: what is below disk survives.
type fakeNode struct {
	cluster *fakeCluster
	addr    string
	reg     Registration

	// guarded by cluster.mu
	alive    bool
	killed   bool // about to crash
	ctrl     *Controller
	server   *grpc.Server
	listener *bufconn.Listener
	conns    map[string]*grpc.ClientConn
	machine  *Machine
	applied  int
	stopped  chan struct{}

	founded int  // how often Found was called
	lags    bool // its replica of the config group applies only what a Barrier asks for

	// disk
	identity Identity
	hosted   map[raft.GroupID]raft.ReplicaID
	lastMap  []byte
}

const fakeElection = 100 * time.Millisecond

func newFakeCluster(t *testing.T) *fakeCluster {
	return &fakeCluster{t: t, groups: make(map[raft.GroupID]*fakeGroup), nodes: make(map[string]*fakeNode)}
}

func (f *fakeCluster) lookup(addr string) *fakeNode {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.nodes[addr]
}

// add makes a node with an empty data dir and starts it.
func (f *fakeCluster) add(name, zone string) *fakeNode {
	n := &fakeNode{cluster: f, addr: name + ":7000", hosted: make(map[raft.GroupID]raft.ReplicaID),
		reg: Registration{RandomID: "random-" + name, Name: name, Zone: zone, Addr: name + ":7000"}}
	f.mu.Lock()
	f.nodes[n.addr] = n
	f.mu.Unlock()
	n.start()
	return n
}

func (n *fakeNode) start() {
	f := n.cluster
	logger := slog.New(slog.DiscardHandler)
	if os.Getenv("FLOTILLA_TEST_LOG") != "" {
		logger = slog.New(slog.NewTextHandler(os.Stderr, nil)).With("at", n.reg.Name)
	}
	ctrl := New(Options{Registration: n.reg, Home: n, Shards: n, Peers: n, Dial: n.dial, Alive: f.isAlive,
		Ready: func() (bool, []string) { return true, nil }, LastMap: n.lastMap, Logger: logger,
		SaveMap: func(b []byte) error { f.mu.Lock(); defer f.mu.Unlock(); n.lastMap = b; return nil }})
	listener := bufconn.Listen(1 << 20)
	server := grpc.NewServer()
	flotillav1.RegisterClusterServer(server, ctrl)
	f.mu.Lock()
	n.killed = false
	n.alive, n.ctrl, n.server, n.listener = true, ctrl, server, listener
	n.conns, n.machine, n.applied, n.stopped = make(map[string]*grpc.ClientConn), nil, 0, make(chan struct{})
	if _, ok := n.hosted[raft.ConfigGroup]; ok {
		n.startMachine()
	}
	identity, stopped := n.identity, n.stopped
	f.mu.Unlock()
	if identity.Node != 0 {
		ctrl.Attach(identity, n)
	}
	f.work.Add(2)
	go func() { defer f.work.Done(); server.Serve(listener) }()
	go func() { defer f.work.Done(); n.follow(ctrl, stopped) }()
	ctrl.Start()
	f.changed()
}

// startMachine begins a replica of the config group; cluster.mu is held.
func (n *fakeNode) startMachine() {
	n.machine, n.applied = n.ctrl.newMachine(), 0
	n.catchUp()
}

// crash ends the process.
func (n *fakeNode) crash() {
	f := n.cluster
	f.mu.Lock()
	if !n.alive {
		f.mu.Unlock()
		return
	}
	n.alive = false
	close(n.stopped)
	ctrl, server, conns := n.ctrl, n.server, n.conns
	for _, g := range f.groups {
		if g.leader == n.identity.Node {
			g.leader = 0
		}
	}
	f.mu.Unlock()
	server.Stop()
	ctrl.Close()
	for _, c := range conns {
		c.Close()
	}
	f.changed()
}

func (f *fakeCluster) close() {
	f.mu.Lock()
	f.closed = true
	var nodes []*fakeNode
	for _, n := range f.nodes {
		nodes = append(nodes, n)
	}
	f.mu.Unlock()
	for _, n := range nodes {
		n.crash()
	}
	f.work.Wait()
}

// follow starts the replicas that the map assigns, as a node does.
func (n *fakeNode) follow(ctrl *Controller, stopped chan struct{}) {
	for {
		changed := ctrl.Maps().Changed()
		if m := ctrl.Maps().Current(); m != nil {
			n.obey(m)
		}
		select {
		case <-changed:
		case <-stopped:
			return
		}
	}
}

func (n *fakeNode) obey(m *shardmap.Map) {
	f := n.cluster
	f.mu.Lock()
	if !n.alive {
		f.mu.Unlock()
		return
	}
	for _, a := range m.Assigned(n.identity.Node) {
		if n.hosted[a.Key.Group] == a.Key.Replica {
			continue
		}
		n.hosted[a.Key.Group] = a.Key.Replica
		if f.groups[a.Key.Group] == nil {
			g, _ := m.Group(a.Key.Group)
			f.groups[a.Key.Group] = &fakeGroup{id: a.Key.Group, membership: a.First, preferred: g.Preferred}
		}
		if a.Key.Group == raft.ConfigGroup {
			n.startMachine()
		}
	}
	f.mu.Unlock()
	f.changed()
}

// changed elects where a leader is missing and a majority is there, and tells
// all controllers.
func (f *fakeCluster) changed() {
	f.mu.Lock()
	for _, g := range f.groups {
		if g.leader == 0 && !g.electing && f.candidate(g) != 0 {
			g.electing = true
			f.work.Add(1)
			go func() { defer f.work.Done(); time.Sleep(fakeElection); f.elect(g) }()
		}
	}
	var ctrls []*Controller
	for _, n := range f.nodes {
		if n.alive {
			ctrls = append(ctrls, n.ctrl)
			n.catchUp()
		}
	}
	f.mu.Unlock()
	for _, c := range ctrls {
		c.PeersChanged()
	}
}

func (f *fakeCluster) elect(g *fakeGroup) {
	f.mu.Lock()
	g.electing = false
	if g.leader == 0 {
		if g.leader = f.candidate(g); g.leader != 0 {
			g.term++
		}
	}
	f.mu.Unlock()
	f.changed()
}

// candidate is who would be elected: the preferred node or the first voter
// that is there, if a majority is.
func (f *fakeCluster) candidate(g *fakeGroup) raft.NodeID {
	var there []raft.NodeID
	for _, m := range g.membership.Voters {
		if n := f.byID(m.Node); n != nil && n.alive && n.hosted[g.id] == m.Replica {
			there = append(there, m.Node)
		}
	}
	switch {
	case len(there)*2 <= len(g.membership.Voters):
		return 0
	case slices.Contains(there, g.preferred):
		return g.preferred
	}
	return there[0]
}

func (f *fakeCluster) byID(id raft.NodeID) *fakeNode {
	for _, n := range f.nodes {
		if n.identity.Node == id {
			return n
		}
	}
	return nil
}

func (f *fakeCluster) isAlive(id raft.NodeID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.byID(id)
	return n != nil && n.alive
}

// catchUp applies what this node's replica of the config group has not yet.
func (n *fakeNode) catchUp() {
	g := n.cluster.groups[raft.ConfigGroup]
	if n.machine == nil || g == nil || n.lags || !n.isMember(g) {
		return
	}
	for ; n.applied < len(n.cluster.log); n.applied++ {
		results := make([]any, 1)
		if err := n.machine.applyEntry(discardRecords{}, raft.Index(n.applied+1), fakeNow(), [][]byte{n.cluster.log[n.applied]}, results); err != nil {
			panic(err)
		}
		n.machine.publish()
	}
}

func (n *fakeNode) isMember(g *fakeGroup) bool {
	has := func(m raft.Member) bool { return m.Node == n.identity.Node }
	return slices.ContainsFunc(g.membership.Voters, has) || slices.ContainsFunc(g.membership.Learners, has)
}

// fakeNow is a stamp; a real one is in the entry.
func fakeNow() int64 { return 1_700_000_000_000 }

type discardRecords struct{}

func (discardRecords) Set(_, _ []byte) {}
func (discardRecords) Delete(_ []byte) {}

// Home.

func (n *fakeNode) Found(_ context.Context, id Identity) (Host, error) {
	f := n.cluster
	f.mu.Lock()
	n.identity = id
	n.founded++
	n.hosted[raft.ConfigGroup] = 1
	if f.groups[raft.ConfigGroup] == nil {
		f.groups[raft.ConfigGroup] = &fakeGroup{id: raft.ConfigGroup,
			membership: raft.Membership{Epoch: 1, Voters: []raft.Member{{Replica: 1, Node: id.Node}}}}
	}
	n.startMachine()
	f.mu.Unlock()
	f.changed()
	return n, nil
}

func (n *fakeNode) Adopt(_ context.Context, id Identity) (Host, error) {
	n.cluster.mu.Lock()
	defer n.cluster.mu.Unlock()
	n.identity = id
	return n, nil
}

// Host.

var errCrashed = errors.New("this node has crashed")

func (n *fakeNode) Propose(_ context.Context, command []byte) (any, error) {
	f := n.cluster
	f.mu.Lock()
	g := f.groups[raft.ConfigGroup]
	if !n.alive || n.killed || g.leader != n.identity.Node {
		leader := g.leader
		f.mu.Unlock()
		return nil, &NotLeaderError{Group: raft.ConfigGroup, Leader: leader}
	}
	number := f.proposals
	f.proposals++
	crash := f.crash
	if crash != nil && crash(number, false) {
		f.mu.Unlock()
		f.kill(n)
		return nil, errCrashed
	}
	f.log = append(f.log, command)
	results := make([]any, 1)
	n.applied++
	if err := n.machine.applyEntry(discardRecords{}, raft.Index(n.applied), fakeNow(), [][]byte{command}, results); err != nil {
		panic(err)
	}
	n.machine.publish()
	for _, other := range f.nodes {
		if other.alive && other != n {
			other.catchUp()
		}
	}
	f.mu.Unlock()
	if crash != nil && crash(number, true) {
		f.kill(n)
		return nil, errCrashed
	}
	return results[0], nil
}

// kill crashes a node from within and starts it again a little later.
func (f *fakeCluster) kill(n *fakeNode) {
	f.mu.Lock()
	killed := n.killed
	n.killed = true
	f.mu.Unlock()
	if killed {
		return
	}
	f.work.Add(1)
	go func() {
		defer f.work.Done()
		n.crash()
		time.Sleep(3 * fakeElection)
		if !f.isClosed() {
			n.start()
		}
	}()
}

func (f *fakeCluster) isClosed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.closed
}

func (n *fakeNode) Barrier(context.Context) error {
	n.cluster.mu.Lock()
	defer n.cluster.mu.Unlock()
	g := n.cluster.groups[raft.ConfigGroup]
	if !n.alive || g.leader == 0 || !n.isMember(g) {
		return &NotLeaderError{Group: raft.ConfigGroup}
	}
	lags := n.lags
	n.lags = false
	n.catchUp()
	n.lags = lags
	return nil
}

func (n *fakeNode) Leader(id raft.GroupID) (raft.Member, raft.Term, bool) {
	st, ok := n.Status(id)
	return st.Leader, st.Term, ok && st.Leader.Node != 0
}

func (n *fakeNode) Status(id raft.GroupID) (GroupStatus, bool) {
	n.cluster.mu.Lock()
	defer n.cluster.mu.Unlock()
	return n.status(id)
}

func (n *fakeNode) status(id raft.GroupID) (GroupStatus, bool) {
	g := n.cluster.groups[id]
	replica, hosted := n.hosted[id]
	if !n.alive || g == nil || !hosted {
		return GroupStatus{}, false
	}
	st := GroupStatus{Group: id, Self: replica, Term: g.term, Membership: g.membership, Lag: make(map[raft.ReplicaID]int64)}
	if !n.isMember(g) {
		st.Membership = raft.Membership{}
		return st, true
	}
	st.CaughtUp = id != raft.ConfigGroup || n.applied == len(n.cluster.log)
	st.IsLeader = g.leader != 0 && g.leader == n.identity.Node
	for _, m := range append(slices.Clone(g.membership.Voters), g.membership.Learners...) {
		if m.Node == g.leader {
			st.Leader = m
		}
		if other := n.cluster.byID(m.Node); other != nil && other.alive && other.hosted[id] == m.Replica {
			st.Lag[m.Replica] = 0
		}
	}
	return st, true
}

func (n *fakeNode) Statuses() []GroupStatus {
	n.cluster.mu.Lock()
	defer n.cluster.mu.Unlock()
	var statuses []GroupStatus
	for id := range n.cluster.groups {
		if st, ok := n.status(id); ok {
			statuses = append(statuses, st)
		}
	}
	return statuses
}

func (n *fakeNode) Transfer(id raft.GroupID, to raft.ReplicaID) error {
	f := n.cluster
	f.mu.Lock()
	g := f.groups[id]
	for _, m := range g.membership.Voters {
		if other := f.byID(m.Node); m.Replica == to && other != nil && other.alive {
			g.leader = m.Node
			g.term++
		}
	}
	f.mu.Unlock()
	f.changed()
	return nil
}

func (n *fakeNode) Recover(key raft.ReplicaKey, epoch uint64, floor raft.ReplicaID) error {
	f := n.cluster
	f.mu.Lock()
	g := f.groups[key.Group]
	g.membership = raft.Membership{Epoch: epoch, Voters: []raft.Member{{Replica: key.Replica, Node: n.identity.Node}}, Floor: floor}
	g.leader = n.identity.Node
	g.term++
	f.mu.Unlock()
	f.changed()
	return nil
}

func (n *fakeNode) ChangeMembership(id raft.GroupID, epoch uint64, voters, learners []raft.Member, done func(error)) {
	done(n.changeMembership(id, epoch, voters, learners))
}

func (n *fakeNode) changeMembership(id raft.GroupID, epoch uint64, voters, learners []raft.Member) error {
	f := n.cluster
	f.mu.Lock()
	g := f.groups[id]
	if g.membership.Epoch != epoch || g.leader != n.identity.Node {
		f.mu.Unlock()
		return fmt.Errorf("epoch %d, the group is at %d", epoch, g.membership.Epoch)
	}
	next := raft.Membership{Epoch: epoch + 1, Voters: voters, Learners: learners}
	if !slices.Equal(voters, g.membership.Voters) {
		next.Epoch = epoch + 2 // through a joint phase
	}
	g.membership = next
	f.mu.Unlock()
	f.changed()
	return nil
}

// Shards.

func (n *fakeNode) Birth(id raft.GroupID, shards []shardmap.ShardID, generation shardmap.Generation, done func(error)) {
	n.cluster.mu.Lock()
	if g := n.cluster.groups[id]; g.born == nil {
		g.born, g.generation = append([]shardmap.ShardID{}, shards...), generation
		g.births++
	}
	n.cluster.mu.Unlock()
	done(nil)
}

func (n *fakeNode) Born(id raft.GroupID) bool {
	n.cluster.mu.Lock()
	defer n.cluster.mu.Unlock()
	return n.cluster.groups[id].born != nil
}

var fakePhases = []string{"importing", "catching-up", "handing-off", "verifying", "done"}

func (n *fakeNode) Import(id raft.GroupID, number uint64, order *flotillav1.ImportShard, done func(*flotillav1.MoveReport, error)) {
	n.cluster.mu.Lock()
	g := n.cluster.groups[id]
	if g.imports == nil {
		g.imports = make(map[shardmap.ShardID]*fakeImport)
	}
	shard := shardmap.ShardID(order.GetShard())
	x := g.imports[shard]
	if x == nil || x.number < number {
		x = &fakeImport{number: number, order: order}
		g.imports[shard] = x
	}
	switch {
	case number < x.number: // a late one
		n.cluster.mu.Unlock()
		done(nil, fmt.Errorf("shard %d has seen migration %d", shard, x.number))
		return
	case x.ended != "":
	case order.GetCancel() && fakePhases[x.phase] != phaseVerifying && fakePhases[x.phase] != phaseDone:
		x.ended = phaseCancelled
	case n.cluster.refuse:
		x.ended = phaseFailed
	case n.cluster.stuck:
	case x.phase < len(fakePhases)-1:
		if x.phase++; fakePhases[x.phase] == phaseVerifying {
			from := n.cluster.groups[raft.GroupID(order.GetFromGroup())]
			from.born = slices.DeleteFunc(from.born, func(s shardmap.ShardID) bool { return s == shard })
			g.born = append(g.born, shard)
		}
	}
	report := x.report()
	n.cluster.mu.Unlock()
	done(report, nil)
}

func (x *fakeImport) report() *flotillav1.MoveReport {
	r := &flotillav1.MoveReport{Id: x.number, Shard: x.order.GetShard(), Phase: fakePhases[x.phase], BytesDone: 5, BytesTotal: 10, PauseUs: 900}
	if x.ended != "" {
		r.Phase = x.ended
	}
	return r
}

func (n *fakeNode) Load(raft.GroupID, raft.Term, bool) *flotillav1.GroupLoad { return nil }

func (n *fakeNode) MoveReports(id raft.GroupID) []*flotillav1.MoveReport {
	n.cluster.mu.Lock()
	defer n.cluster.mu.Unlock()
	var reports []*flotillav1.MoveReport
	for _, x := range n.cluster.groups[id].imports {
		if r := x.report(); r.Phase != phaseDone && x.ended == "" {
			reports = append(reports, r)
		}
	}
	return reports
}

func (n *fakeNode) ShardStatuses(id raft.GroupID) []*flotillav1.ShardStatus {
	n.cluster.mu.Lock()
	defer n.cluster.mu.Unlock()
	var statuses []*flotillav1.ShardStatus
	for _, s := range n.cluster.groups[id].born {
		statuses = append(statuses, &flotillav1.ShardStatus{Shard: uint64(s), Group: uint64(id), Generation: 1, State: "owned", Keys: 7, Bytes: 70})
	}
	return statuses
}

// Peers: gossip knows everybody who is alive.

func (n *fakeNode) Peers() []Peer {
	n.cluster.mu.Lock()
	defer n.cluster.mu.Unlock()
	var peers []Peer
	for _, other := range n.cluster.nodes {
		if other.alive {
			peers = append(peers, Peer{Addr: other.addr, ClusterID: other.identity.ClusterID, Node: other.identity.Node})
		}
	}
	slices.SortFunc(peers, func(a, b Peer) int { return compare(a.Node, b.Node) })
	return peers
}

func (n *fakeNode) dial(addr string) (grpc.ClientConnInterface, error) {
	n.cluster.mu.Lock()
	defer n.cluster.mu.Unlock()
	if conn := n.conns[addr]; conn != nil {
		return conn, nil
	}
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			stream, err := streamer(ctx, desc, cc, method, opts...)
			return lateStream{stream, n.cluster}, err
		}),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			to := n.cluster.lookup(addr)
			if to == nil || !n.cluster.isUp(to) {
				return nil, errors.New("connection refused")
			}
			return to.listener.DialContext(ctx)
		}))
	if err == nil {
		n.conns[addr] = conn
	}
	return conn, err
}

// lateStream brings what comes over a stream after the cluster's latency.
type lateStream struct {
	grpc.ClientStream
	f *fakeCluster
}

func (s lateStream) RecvMsg(m any) error {
	if err := s.ClientStream.RecvMsg(m); err != nil {
		return err
	}
	select {
	case <-time.After(s.f.latency):
		return nil
	case <-s.Context().Done():
		return s.Context().Err()
	}
}

func (f *fakeCluster) isUp(n *fakeNode) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return n.alive
}

// controller is the node's present one.
func (n *fakeNode) controller() *Controller {
	n.cluster.mu.Lock()
	defer n.cluster.mu.Unlock()
	return n.ctrl
}

// waitFor polls, in virtual time, until ok or the deadline.
func waitFor(t *testing.T, what string, limit time.Duration, ok func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	for !ok() {
		if time.Since(began) > limit {
			t.Fatalf("after %v still not: %s", limit, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
	return time.Since(began)
}
