package multiraft

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"google.golang.org/grpc"

	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/raft/logstore"
	"github.com/flotilla-kv/flotilla/raft/statestore"
	"github.com/flotilla-kv/flotilla/raft/transport"
)

// cluster is a few hosts in this process over the real stores and the real
// transport, on loopback.
type cluster struct {
	t     testing.TB
	tune  func(*Options)
	nodes []*clusterNode // node i+1
}

type clusterNode struct {
	c      *cluster
	id     raft.NodeID
	fs     vfs.FS
	dir    string
	addr   string
	boot   uint64
	log    *logstore.Store
	states *statestore.Store
	tr     *transport.Transport
	server *grpc.Server
	host   *Host

	mu      sync.Mutex // guards all below
	machine map[raft.GroupID]*lockedTally
	before  func() // given to the machines
}

// lockedTally can be looked at while it is applied to.
type lockedTally struct {
	mu sync.Mutex
	tally
}

func (m *lockedTally) Apply(b *statestore.Batch, e Applied, results []any) error {
	if m.before != nil {
		m.before()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.tally.Apply(b, e, results)
}

func (m *lockedTally) Finish(b *statestore.Batch) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tally.Finish(b)
}

func (m *lockedTally) Restored(r *statestore.Replica) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.tally.Restored(r)
}

func (m *lockedTally) look() (count, hash uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.count, m.hash
}

func newCluster(t testing.TB, n int, tune func(*Options)) *cluster {
	return newClusterOn(t, n, tune, func(int) (vfs.FS, string) { return vfs.NewMem(), "" })
}

// newClusterOn puts each node's stores where disk says.
func newClusterOn(t testing.TB, n int, tune func(*Options), disk func(i int) (vfs.FS, string)) *cluster {
	c := &cluster{t: t, tune: tune}
	for i := range n {
		fs, dir := disk(i)
		c.nodes = append(c.nodes, &clusterNode{c: c, id: raft.NodeID(i + 1), fs: fs, dir: dir})
	}
	for i := range n {
		c.start(i + 1)
	}
	t.Cleanup(func() {
		for i := range c.nodes {
			c.stop(i + 1)
		}
	})
	return c
}

func (c *cluster) node(id int) *clusterNode { return c.nodes[id-1] }

func (c *cluster) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// start brings a node up, at a new port, with the replicas it has recorded.
func (c *cluster) start(id int) {
	c.t.Helper()
	n := c.node(id)
	logger := slog.New(slog.NewTextHandler(io.Discard, nil))
	fatal := func(err error) { c.t.Errorf("node %d: %v", id, err) }
	var (
		err  error
		host atomic.Pointer[Host]
	)
	n.log, err = logstore.Open(logstore.Options{Dir: n.fs.PathJoin(n.dir, "log"), FS: n.fs, OnFatal: fatal, Logger: logger})
	c.must(err)
	n.states, err = statestore.Open(statestore.Options{Dir: n.fs.PathJoin(n.dir, "state"), FS: n.fs, OnFatal: fatal, Logger: logger, OnFlushed: func() {
		if host := host.Load(); host != nil { // n.host is of the test's goroutine
			host.Flushed()
		}
	}})
	c.must(err)
	n.tr, err = transport.New(transport.Options{Logger: logger})
	c.must(err)
	n.mu.Lock()
	n.machine = map[raft.GroupID]*lockedTally{}
	n.mu.Unlock()
	opts := Options{Self: n.id, Log: n.log, States: n.states, Transport: n.tr, Logger: logger, OnFatal: fatal}
	if c.tune != nil {
		c.tune(&opts)
	}
	n.host, err = Open(opts)
	c.must(err)
	host.Store(n.host)

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	c.must(err)
	n.addr = listener.Addr().String()
	n.server = grpc.NewServer(transport.ServerOptions()...)
	n.tr.Register(n.server)
	go n.server.Serve(listener)
	n.boot++
	c.must(n.tr.Start(transport.Identity{ClusterID: "test", Self: n.id, Boot: n.boot}, n.host))
	for _, record := range n.host.Recorded() {
		c.startOn(id, ReplicaSpec{Group: record.ID.Group, Replica: record.ID.Replica, Preferred: preferredOf(record.First, record.ID.Group)})
	}
	for _, other := range c.nodes {
		if other.host != nil && other != n {
			c.must(n.tr.SetAddr(other.id, other.addr))
			c.must(other.tr.SetAddr(n.id, n.addr))
		}
	}
}

// preferredOf spreads the leaders of groups.
func preferredOf(m raft.Membership, g raft.GroupID) raft.NodeID {
	if len(m.Voters) == 0 {
		return 0
	}
	return m.Voters[int(g)%len(m.Voters)].Node
}

func (c *cluster) startOn(id int, spec ReplicaSpec) {
	c.t.Helper()
	n := c.node(id)
	spec.NewStateMachine = func(*statestore.Replica) StateMachine {
		m := &lockedTally{}
		n.mu.Lock()
		defer n.mu.Unlock()
		m.before = n.before
		n.machine[spec.Group] = m
		return m
	}
	c.must(n.host.Start(spec))
}

// group starts a group with replica i on node i.
func (c *cluster) group(g raft.GroupID, nodes ...int) {
	c.t.Helper()
	m := raft.Membership{Epoch: 1}
	for _, id := range nodes {
		m.Voters = append(m.Voters, raft.Member{Replica: raft.ReplicaID(id), Node: raft.NodeID(id)})
	}
	for _, id := range nodes {
		c.startOn(id, ReplicaSpec{Group: g, Replica: raft.ReplicaID(id), First: m, Preferred: preferredOf(m, g)})
	}
}

// stop ends a node without handing anything over.
func (c *cluster) stop(id int) {
	n := c.node(id)
	if n.host == nil {
		return
	}
	n.server.Stop()
	n.tr.Close()
	n.host.Close()
	n.host = nil
	if err := errors.Join(n.states.Close(), n.log.Close()); err != nil {
		c.t.Errorf("node %d: %v", id, err)
	}
}

func (c *cluster) until(what string, ok func() bool) {
	c.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			for _, n := range c.nodes {
				if n.host != nil {
					for _, s := range n.host.Statuses() {
						c.t.Logf("node %d: %+v", n.id, s)
					}
				}
			}
			c.t.Fatalf("not within 20 s: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// leader waits until a live node says of itself that it leads.
func (c *cluster) leader(g raft.GroupID) *clusterNode {
	c.t.Helper()
	var leader *clusterNode
	c.until(fmt.Sprintf("group %d has a leader", g), func() bool {
		for _, n := range c.nodes {
			if n.host != nil {
				if m, _, ok := n.host.Leader(g); ok && m.Node == n.id {
					leader = n
					return true
				}
			}
		}
		return false
	})
	return leader
}

func (n *clusterNode) propose(g raft.GroupID, command string) Result {
	answer := make(chan Result, 1)
	n.host.Propose(g, []byte(command), func(r Result) { answer <- r })
	return <-answer
}

func (c *cluster) mustPropose(g raft.GroupID, command string) Result {
	c.t.Helper()
	var res Result
	c.until("a proposal succeeds", func() bool {
		res = c.leader(g).propose(g, command)
		return res.Err == nil
	})
	return res
}

func (c *cluster) same(g raft.GroupID, count uint64) {
	c.t.Helper()
	c.until(fmt.Sprintf("the replicas of group %d agree on %d commands", g, count), func() bool {
		var hashes []uint64
		for _, n := range c.nodes {
			n.mu.Lock()
			m := n.machine[g]
			n.mu.Unlock()
			if n.host == nil || m == nil {
				continue
			}
			got, hash := m.look()
			if got != count {
				return false
			}
			hashes = append(hashes, hash)
		}
		for _, h := range hashes {
			if h != hashes[0] {
				c.t.Fatalf("group %d: hashes %x", g, hashes)
			}
		}
		return true
	})
}

func TestOverTheRealStoresAndTransport(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.group(2, 1, 2, 3)
	c.group(3, 1, 2, 3)
	for i := range 20 {
		if res := c.mustPropose(2, fmt.Sprintf("k=%d", i)); res.Value != uint64(i+1) {
			t.Fatalf("command %d: %+v", i, res)
		}
	}
	for _, n := range c.nodes {
		got := make(chan error, 1)
		n.host.ReadIndex(2, ReadOptions{Follower: true}, func(_ raft.Index, err error) { got <- err })
		if err := <-got; err != nil {
			t.Fatalf("read at node %d: %v", n.id, err)
		}
		if v, _, _ := n.states.Replica(raft.ReplicaKey{Group: 2, Replica: raft.ReplicaID(n.id)}).Get([]byte("kk")); string(v) != "19" {
			t.Fatalf("node %d reads %q", n.id, v)
		}
	}

	leader := int(c.leader(2).id)
	c.stop(leader)
	if res := c.mustPropose(2, "x"); res.Value != uint64(21) {
		t.Fatalf("%+v", res)
	}
	c.start(leader)
	c.mustPropose(3, "y")
	c.same(2, 21)

}

// A follower that is away until the log is cut comes back by snapshot.
func TestASnapshotOverTheRealStoresAndTransport(t *testing.T) {
	c := newCluster(t, 3, func(o *Options) {
		o.Limits.LogKeepBytes = 1
		o.Timing.TrimEvery = 50 * time.Millisecond
	})
	c.group(2, 1, 2, 3)
	c.mustPropose(2, "first")
	away := int(c.leader(2).id)%3 + 1
	c.stop(away)
	// More than a leader sends ahead: what the transport still has queued for
	// the node when it is back does not bring it up.
	for range 100 {
		c.mustPropose(2, "z")
	}
	c.until("the log is cut behind what it lacks", func() bool {
		n := c.leader(2)
		state, err := n.log.Load(raft.ReplicaKey{Group: 2, Replica: raft.ReplicaID(n.id)})
		return err == nil && state.First > 100
	})
	c.start(away)
	c.same(2, 101)
	c.until("it came by snapshot", func() bool { return c.node(away).host.Stats().SnapshotsInstalled > 0 })
}

func TestDrainMovesAllLeaders(t *testing.T) {
	c := newCluster(t, 3, nil)
	const groups = 20
	for g := raft.GroupID(2); g < 2+groups; g++ {
		c.group(g, 1, 2, 3)
	}
	for g := raft.GroupID(2); g < 2+groups; g++ {
		c.leader(g)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := c.node(1).host.Drain(ctx); err != nil {
		t.Fatal(err)
	}
	if n := c.node(1).host.Stats().Leaders; n != 0 {
		t.Errorf("%d groups are still led here", n)
	}
	c.stop(1)
	for g := raft.GroupID(2); g < 2+groups; g++ {
		c.mustPropose(g, "on")
	}
}

// A group that sends as much as it is let shares connections, workers and disks
// with one that sends little: that waits for a part of what the other has under
// way, and not for all that it has to say.
func TestAFatGroupHoldsNobodyUp(t *testing.T) {
	if testing.Short() {
		t.Skip("it is about time, of which the race detector takes most")
	}
	const fat, thin, patience = 2, 5, 2 * time.Second
	const size, underWay, much = 100_000, 100, 10_000_000
	c := newCluster(t, 3, nil)
	c.group(fat, 1, 2, 3)
	c.group(thin, 1, 2, 3)
	c.mustPropose(fat, "x")
	c.mustPropose(thin, "x")
	leader := c.leader(fat)
	if c.leader(thin) != leader {
		t.Fatal("both are to be led by one node")
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	command := make([]byte, size)
	room := make(chan struct{}, underWay)
	var written atomic.Int64
	var writing sync.WaitGroup
	writing.Go(func() {
		for ctx.Err() == nil {
			room <- struct{}{}
			writing.Add(1)
			leader.host.Propose(fat, command, func(r Result) {
				if r.Err == nil {
					written.Add(int64(len(command)))
				}
				<-room
				writing.Done()
			})
		}
	})
	c.until("much is under way", func() bool { return written.Load() > much })
	began, before := time.Now(), written.Load()
	var longest time.Duration
	for range 50 {
		at := time.Now()
		if r := leader.propose(thin, "y"); r.Err != nil {
			t.Fatal(r.Err)
		}
		longest = max(longest, time.Since(at))
	}
	rate := float64(written.Load()-before) / time.Since(began).Seconds()
	stop()
	writing.Wait()
	if longest > patience || rate < much/10 {
		t.Errorf("beside %.0f bytes a second the small ones took up to %v", rate, longest)
	}
	t.Logf("beside %.1f MB/s the small ones took up to %v", rate/1e6, longest)
}

// stallable makes the machines of groups to come ready to stand still: those
// of the node that stall is called with, until the gate opens.
func (c *cluster) stallable(gate <-chan struct{}) (stall func(*clusterNode)) {
	var stalled atomic.Pointer[clusterNode]
	for _, n := range c.nodes {
		n.before = func() {
			if stalled.Load() == n {
				<-gate
			}
		}
	}
	return stalled.Store
}

// A state machine that does not come forward at the leader: heartbeats go on,
// what is taken in is bounded and the rest refused at once.
func TestAStalledApplyAtTheLeader(t *testing.T) {
	c := newCluster(t, 3, func(o *Options) { o.Limits.GroupBytes = 200_000 })
	gate := make(chan struct{})
	open := sync.OnceFunc(func() { close(gate) })
	t.Cleanup(open)
	stall := c.stallable(gate)
	c.group(2, 1, 2, 3)
	leader := c.leader(2)
	stall(leader)
	_, term, _ := leader.host.Leader(2)
	var answered, busy atomic.Int64
	command := make([]byte, 1000)
	for range 1000 {
		leader.host.Propose(2, command, func(r Result) {
			switch {
			case r.Err == nil:
				answered.Add(1)
			case errors.Is(r.Err, ErrBusy):
				busy.Add(1)
			default:
				t.Errorf("%+v", r)
			}
		})
	}
	if b := busy.Load(); b < 800 {
		t.Errorf("%d of 1000 refused, with room for less than 200", b)
	}
	turns := leader.host.Stats().Turns
	c.until("some heartbeats pass", func() bool { return leader.host.Stats().Turns > turns+40 })
	if _, now, _ := leader.host.Leader(2); now != term {
		t.Errorf("the term went from %d to %d while the leader's apply stood", term, now)
	}
	if n := answered.Load(); n != 0 {
		t.Errorf("%d answers without an apply", n)
	}
	open()
	c.until("all are answered", func() bool { return answered.Load()+busy.Load() == 1000 })
	c.same(2, uint64(answered.Load()))
}

// A follower whose apply stands still keeps its backlog in the log, not in
// memory, and holds nobody up.
func TestAStalledApplyAtAFollower(t *testing.T) {
	c := newCluster(t, 3, func(o *Options) { o.Limits.UnappliedBytes = 50_000 })
	gate := make(chan struct{})
	open := sync.OnceFunc(func() { close(gate) })
	t.Cleanup(open)
	stall := c.stallable(gate)
	c.group(2, 1, 2, 3)
	follower := c.node(int(c.leader(2).id)%3 + 1)
	stall(follower)
	command := string(make([]byte, 10_000))
	for range 100 {
		c.mustPropose(2, command)
	}
	c.until("the follower has it all in its log", func() bool {
		s, _ := follower.host.Status(2)
		return s.Commit > 100
	})
	r, _ := follower.host.find(2)
	r.apply.mu.Lock()
	held := entriesBytes(r.apply.entries)
	r.apply.mu.Unlock()
	if held > 200_000 {
		t.Errorf("%d bytes are held for an apply that stands still", held)
	}
	open()
	c.same(2, 100)
}

// Many groups start, elect and sleep: none of that costs a goroutine a group,
// and asleep they cost no turns.
func TestManyGroupsStartElectAndSleep(t *testing.T) {
	groups := raft.GroupID(200)
	c := newCluster(t, 3, func(o *Options) { o.Timing.SleepAfter = 200 * time.Millisecond })
	before := runtime.NumGoroutine()
	for g := raft.GroupID(2); g < 2+groups; g++ {
		c.group(g, 1, 2, 3)
	}
	ready := func() bool {
		leaders := 0
		for _, n := range c.nodes {
			leaders += n.host.Stats().Leaders
		}
		return leaders == int(groups)
	}
	asleep := func() bool {
		for _, n := range c.nodes {
			if n.host.Stats().Awake > 0 {
				return false
			}
		}
		return true
	}
	c.until("all have a leader", ready)
	c.until("all sleep", asleep)
	if n := runtime.NumGoroutine(); n > before+100 { // of 600 replicas
		t.Errorf("%d goroutines before %d groups, %d after", before, groups, n)
	}
	turns := c.node(1).host.stats.turns.Load()
	time.Sleep(300 * time.Millisecond)
	if n := c.node(1).host.stats.turns.Load() - turns; n > 10 {
		t.Errorf("%d turns in 300 ms while all sleep", n)
	}
	for id := 1; id <= 3; id++ {
		c.stop(id)
	}
	from := time.Now()
	for id := 1; id <= 3; id++ {
		c.start(id)
	}
	c.until("all have a leader after the restart of all", ready)
	if took := time.Since(from); took > 5*time.Second {
		t.Errorf("that took %v", took)
	}
	c.until("all sleep again", asleep)
}
