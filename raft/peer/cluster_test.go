package peer

// The scenarios, by the names under which the teaching literature knows them:
//
//	initial, re-election, many elections      election_test.go
//	basic agree, follower and leader failure,
//	fail agree, fail no agree, concurrent
//	starts, rejoin, backup, unreliable agree  agreement_test.go
//	RPC bytes, RPC counts                     costs_test.go
//	persist 1 to 3, figure 8, churn           persistence_test.go (TestRestarts...)
//	snapshots: basic, install with a
//	disconnect or crash, unreliable or not,
//	all crash, init                           snapshot_test.go
//
// network_test.go is what they run on, checker_test.go what they are held
// against. state_test.go, log_test.go, world_test.go and deliver_test.go need
// no time, driver_test.go looks at the goroutines.

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

var (
	realTime = flag.Bool("realtime", false, "let the scenarios take the time they take, instead of virtual time")
	seedFlag = flag.Uint64("seed", 0, "seed of the scenarios' network; 0 draws one")
)

// What a group is granted: half of it is a failure of what doc.go says.
const (
	electionLimit  = 5 * time.Second
	agreementLimit = 10 * time.Second
)

// electionTimeout is the longest that a healthy group waits before it elects.
const electionTimeout = 2 * electionTicks * tickInterval

// cluster is a few peers on a network, held against one copy of the log.
type cluster struct {
	t          *testing.T
	net        *network
	check      *checker
	peers      []*Raft
	persisters []*disk
	ended      []chan struct{} // closed when the reader of a peer's applyCh has ended
	stops      []chan struct{} // closed to end it
	linked     []bool
	snapshots  int // the state machine takes one every so many commands; 0: never
	serial     int // numbers commands
}

// scenario runs one story with n peers: in virtual time, where seconds of
// waiting take none, or as it comes, with -realtime.
func scenario(t *testing.T, n int, story func(c *cluster)) { scenarioWith(t, n, 0, story) }

// scenarioWith is scenario with a state machine that takes a snapshot every so
// many commands.
func scenarioWith(t *testing.T, n, snapshots int, story func(c *cluster)) {
	t.Helper()
	t.Parallel()
	run := func(t *testing.T) {
		c := newCluster(t, n, snapshots)
		defer c.close()
		story(c)
	}
	if *realTime {
		run(t)
		return
	}
	synctest.Test(t, run)
}

// short gives the smaller number with -short.
func short(small, full int) int {
	if testing.Short() {
		return small
	}
	return full
}

func newCluster(t *testing.T, n, snapshots int) *cluster {
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	replay := fmt.Sprintf("go test -race -count=20 ./raft/peer -run '^%s$' -seed %d", t.Name(), seed)
	c := &cluster{
		t: t, net: newNetwork(n, seed), check: newChecker(t, n, replay),
		peers: make([]*Raft, n), persisters: make([]*disk, n), ended: make([]chan struct{}, n), stops: make([]chan struct{}, n),
		linked: make([]bool, n), snapshots: snapshots,
	}
	for i := range n {
		c.persisters[i] = &disk{}
		c.linked[i] = true
		c.start(i)
	}
	return c
}

func (c *cluster) close() {
	for i := range c.peers {
		c.crash(i)
	}
	if *realTime {
		return
	}
	// Virtual time ends with the story, so calls that hang end before it does.
	synctest.Wait()
	for !c.net.quiet() {
		time.Sleep(100 * time.Millisecond)
	}
}

// start begins a new life of peer i with what its last has saved.
func (c *cluster) start(i int) {
	c.check.born(i)
	c.persisters[i] = c.persisters[i].copy()
	applyCh := make(chan ApplyMsg)
	rf := Make(c.net.ends(i), i, c.persisters[i], applyCh)
	c.peers[i], c.ended[i], c.stops[i] = rf, make(chan struct{}), make(chan struct{})
	go c.read(i, rf, applyCh, c.persisters[i], c.stops[i], c.ended[i])
	c.net.place(i, rf)
}

// crash ends peer i; what it has saved stays.
func (c *cluster) crash(i int) {
	rf := c.peers[i]
	if rf == nil {
		return
	}
	c.net.place(i, nil)
	c.peers[i] = nil
	rf.Kill()
	c.persisters[i].close(func() { c.check.fail("peer %d saves after Kill has returned", i) })
	close(c.stops[i])
	<-c.ended[i]
	c.check.note("%d has crashed", i)
}

// read is peer i's state machine. A snapshot is taken while the peer wants to
// go on writing to applyCh.
func (c *cluster) read(i int, rf *Raft, applyCh chan ApplyMsg, p *disk, stop, ended chan struct{}) {
	defer close(ended)
	saved := p.ReadSnapshot()
	for first := true; ; first = false {
		var m ApplyMsg
		select {
		case m = <-applyCh:
		case <-stop:
			return
		}
		if first && len(saved) > 0 && !m.SnapshotValid {
			c.check.fail("peer %d starts with command %d instead of its snapshot", i, m.CommandIndex)
		}
		command := c.check.took(i, &m)
		clear(m.Command) // it is ours
		clear(m.Snapshot)
		if !command || c.snapshots == 0 || m.CommandIndex%c.snapshots != 0 || c.check.hasFailed() {
			continue
		}
		before := p.RaftStateSize()
		rf.Snapshot(m.CommandIndex, c.check.state(m.CommandIndex))
		if after := p.ReadSnapshot(); !isOf(after, m.CommandIndex) && !p.closed() {
			c.check.fail("peer %d: Snapshot(%d) returned before it was saved (%d bytes of state before, %d after)", i, m.CommandIndex, before, p.RaftStateSize())
		}
	}
}

// isOf tells whether a snapshot is of command n, or later.
func isOf(snapshot []byte, n int) bool {
	index, _, ok := readState(snapshot)
	return ok && index >= n
}

// alive are the peers that are up and linked.
func (c *cluster) alive() []int {
	var list []int
	for i := range c.peers {
		if c.peers[i] != nil && c.linked[i] {
			list = append(list, i)
		}
	}
	return list
}

// unlink cuts peers off from everybody; link brings them back.
func (c *cluster) unlink(peers ...int) { c.setLinks(false, peers) }

func (c *cluster) link(peers ...int) { c.setLinks(true, peers) }

func (c *cluster) setLinks(on bool, peers []int) {
	for _, i := range peers {
		c.linked[i] = on
	}
	var side []int
	for i, on := range c.linked {
		if on {
			side = append(side, i)
		}
	}
	c.net.partition(side)
	c.check.note("linked are %v", side)
}

// until waits for a condition, for as long as the limit says.
func (c *cluster) until(limit time.Duration, condition func() bool) bool {
	for deadline := time.Now().Add(limit); ; time.Sleep(10 * time.Millisecond) {
		if condition() {
			return true
		}
		if time.Now().After(deadline) || c.check.hasFailed() {
			return false
		}
	}
}

// fatal ends the scenario.
func (c *cluster) fatal(format string, args ...any) {
	c.t.Helper()
	for i, rf := range c.peers {
		if rf == nil {
			c.check.note("%d is down", i)
			continue
		}
		rf.mu.Lock()
		c.check.note("%d is %+v, out %v", i, rf.replica.core.Status(), rf.callsOut())
		rf.mu.Unlock()
	}
	c.check.fail(format, args...)
	c.t.FailNow()
}

// callsOut counts the calls that are out, by peer.
func (rf *Raft) callsOut() (out []int) {
	for _, l := range rf.lanes {
		if l == nil {
			out = append(out, 0)
		} else {
			out = append(out, len(l.out))
		}
	}
	return out
}

// ok ends the scenario if a checker has found something.
func (c *cluster) ok() {
	c.t.Helper()
	if c.check.hasFailed() {
		c.t.FailNow()
	}
}

// leader waits until one of those who are alive leads the highest term that any
// of them knows.
func (c *cluster) leader() int {
	c.t.Helper()
	leader := -1
	found := c.until(electionLimit, func() bool {
		leader = c.leaderNow()
		return leader >= 0
	})
	if !found {
		c.fatal("no leader within %v among %v", electionLimit, c.alive())
	}
	return leader
}

func (c *cluster) leaderNow() int {
	leader, highest := -1, 0
	for _, i := range c.alive() {
		term, leads := c.peers[i].GetState()
		if leads {
			c.check.leads(i, term)
		}
		if term > highest {
			leader, highest = -1, term
		}
		if leads && term == highest {
			leader = i
		}
	}
	return leader
}

// noLeader checks that of those who are alive, and are no majority, nobody leads
// for a while, once an old leader has noticed that it is alone.
func (c *cluster) noLeader() {
	c.t.Helper()
	leads := func() bool { return c.leaderNow() >= 0 }
	if !c.until(2*electionTimeout, func() bool { return !leads() }) || c.until(2*electionTimeout, leads) {
		c.fatal("a leader among %v, who are no majority", c.alive())
	}
}

// command makes one that nobody has made before.
func (c *cluster) command() []byte {
	c.serial++
	return fmt.Appendf(nil, "command %d", c.serial)
}

// agree gets a new command agreed on by that many peers, asking whoever leads,
// again if need be, and returns its index.
func (c *cluster) agree(peers int) int {
	c.t.Helper()
	return c.agreeOn(c.command(), peers)
}

func (c *cluster) agreeOn(command []byte, peers int) int {
	c.t.Helper()
	for deadline := time.Now().Add(agreementLimit); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		index := c.startAnywhere(command)
		if index < 0 {
			continue
		}
		if c.until(min(2*time.Second, time.Until(deadline)), func() bool { return c.isCommitted(index, command, peers) }) {
			return index
		}
		c.ok()
	}
	c.fatal("no agreement of %d peers on %.20q within %v", peers, command, agreementLimit)
	return 0
}

// startAnywhere starts a command at whoever takes itself for the leader, or
// gives -1.
func (c *cluster) startAnywhere(command []byte) int {
	for _, i := range c.alive() {
		ours := bytes.Clone(command)
		index, term, leads := c.peers[i].Start(ours)
		clear(ours) // the peer has its own
		if leads {
			c.check.leads(i, term)
			return index
		}
	}
	return -1
}

// must starts a command at one peer, which leads.
func (c *cluster) must(peer int) (index, term int) {
	c.t.Helper()
	index, term, leads := c.peers[peer].Start(c.command())
	if !leads {
		c.fatal("peer %d refuses to be the leader", peer)
	}
	return index, term
}

func (c *cluster) isCommitted(index int, command []byte, peers int) bool {
	n, have := c.check.committed(index)
	return n >= peers && have == string(command)
}

// caughtUp waits until all who are alive have applied everything.
func (c *cluster) caughtUp() {
	c.t.Helper()
	if !c.until(agreementLimit, func() bool {
		n, _ := c.check.committed(c.check.length())
		return n >= len(c.alive())
	}) {
		c.fatal("those alive have not caught up within %v", agreementLimit)
	}
}

// others are all peers but one, in a random order.
func (c *cluster) others(than int) []int {
	var list []int
	for i := range c.peers {
		if i != than {
			list = append(list, i)
		}
	}
	for i := range list {
		j := c.net.intn(i + 1)
		list[i], list[j] = list[j], list[i]
	}
	return list
}

// stateMax is the size of the largest state that a peer has saved.
func (c *cluster) stateMax() int {
	size := 0
	for _, p := range c.persisters {
		size = max(size, p.RaftStateSize())
	}
	return size
}

// disk is a persister. One that was closed takes nothing any more.
type disk struct {
	mu       sync.Mutex // guards all below
	state    []byte
	snapshot []byte
	saves    int
	refuse   func()
}

func (d *disk) Save(state, snapshot []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.refuse != nil {
		d.refuse()
		return
	}
	d.state, d.snapshot = slices.Clone(state), slices.Clone(snapshot)
	d.saves++
}

func (d *disk) ReadRaftState() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return bytes.Clone(d.state)
}

func (d *disk) ReadSnapshot() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return bytes.Clone(d.snapshot)
}

func (d *disk) RaftStateSize() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.state)
}

// count is how often something was saved.
func (d *disk) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.saves
}

func (d *disk) close(refuse func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.refuse = refuse
}

func (d *disk) closed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.refuse != nil
}

func (d *disk) copy() *disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	return &disk{state: d.state, snapshot: d.snapshot}
}
