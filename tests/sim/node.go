package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/raft/logstore"
	"github.com/flotilla-kv/flotilla/raft/multiraft"
	"github.com/flotilla-kv/flotilla/raft/statestore"
	"github.com/flotilla-kv/flotilla/raft/transport"
	"github.com/flotilla-kv/flotilla/shardctrler"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
	"github.com/flotilla-kv/flotilla/shardkv"
)

// Paces of a node's loops.
const (
	tickEvery    = 50 * time.Millisecond // as multiraft's
	pingEvery    = 100 * time.Millisecond
	suspectAfter = 500 * time.Millisecond
)

// node is a machine: its disks outlive the process that runs on it.
type node struct {
	w      *world
	place  int // from 1
	name   string
	random string // the random id in its data dir
	addr   string

	log    *logstore.Model
	states *statestore.Model
	wiped  bool // the disks are gone, and the node with them

	// Of the disks and the clock.
	broken  error         // what every sync ends with; nil: it works
	slow    time.Duration // added to each sync
	rate    int64         // thousandths by which the clock is fast
	skew    time.Duration // by which its wall clock is ahead
	wrongAt time.Duration // when it was last found wrong; 0: never

	*process // nil: down
	boots    uint64
	id       raft.NodeID // as recorded on the disk; 0: not registered
}

// process is one life of a node.
type process struct {
	boot    uint64
	since   time.Duration // when it began
	until   time.Duration // it stands still until then
	store   *logstore.ModelStore
	data    *statestore.Store
	host    *multiraft.Host // nil before the node has an identity
	kv      *shardkv.Server
	lives   map[raft.NodeID]*transport.Liveness
	syncing bool
	flush   bool
	failed  error // why it must stop
	removed []raft.ReplicaKey
	control control
	watches []*shardkv.DirectWatch
	sources map[raft.GroupID]raft.NodeID // who said last that it does not lead, and who does
}

func (n *node) up() bool { return n.process != nil }

// clock is what drives the node's ticks: it never jumps, and runs at its rate.
func (n *node) clock() time.Time {
	return epoch.Add(n.w.now + n.w.now*time.Duration(n.rate)/1000)
}

// wall is the node's wall clock, unix ms.
func (n *node) wall() int64 {
	return n.clock().Add(n.w.leap + n.skew).UnixMilli()
}

// newNode makes a machine with empty disks.
func (w *world) newNode() *node {
	place := len(w.nodes) + 1
	n := &node{
		w: w, place: place, name: fmt.Sprintf("n%d", place), random: fmt.Sprintf("random-%d", place),
		addr: fmt.Sprintf("10.0.0.%d:7000", place), log: logstore.NewModel(), states: statestore.NewModel(),
	}
	if d := int64(w.profile.drift); d > 0 {
		n.rate = w.rng.Int64N(2*d+1) - d
	}
	w.nodes = append(w.nodes, n)
	return n
}

// start begins a life.
func (n *node) start() {
	w := n.w
	store, err := n.log.Open()
	if err != nil {
		w.fail("Assertion", "node %d: the log does not open: %v", n.place, err)
		return
	}
	n.boots++
	n.process = &process{boot: n.boots, since: w.now, store: store, lives: make(map[raft.NodeID]*transport.Liveness), sources: make(map[raft.GroupID]raft.NodeID)}
	n.kv = shardkv.NewServer(shardkv.Options{
		ClusterID: func() string { return clusterID },
		Self:      func() raft.NodeID { return n.id },
		Shards:    n.shards,
		Address:   n.addressOf,
		HasQuorum: n.hasQuorum,
		Pull:      n.pull,
		Logger:    n.logger(),
		Manual:    true,
	})
	w.note("start", n.place, n.boot, uint64(n.id), nil)
	w.raft.restarted(n)
	if identity, ok := store.Identity(); ok {
		n.id = identity.Node
		n.openHost()
	}
	n.loop(func() time.Duration { return n.slower(tickEvery) }, n.settle)
	n.loop(func() time.Duration { return pingEvery }, n.ping)
	n.loop(func() time.Duration { return controlEvery }, n.controlTurn)
	n.settle()
}

// slower is a duration of the node's clock in the world's time.
func (n *node) slower(d time.Duration) time.Duration { return d * 1000 / time.Duration(1000+n.rate) }

// openHost runs the replicas that the log knows.
func (n *node) openHost() {
	w, life := n.w, n.process
	life.data = statestore.OpenModel(n.states, func() {
		if n.process == life && life.host != nil {
			life.host.Flushed()
		}
	})
	host, err := multiraft.Open(multiraft.Options{
		Self: n.id, Log: watchedLog{n.store, n}, States: life.data, Transport: n, Manual: true, Workers: 2,
		Clock: n.clock, Wall: n.wall,
		Go:        func(f func()) { w.begin(f, n.settleLife(life)) },
		Rand:      rand.New(rand.NewPCG(uint64(n.place), n.boot)),
		Logger:    n.logger(),
		OnLeader:  n.leaderChanged,
		OnRemoved: func(key raft.ReplicaKey) { life.removed = append(life.removed, key) },
		OnFatal:   func(err error) { life.failed = err },
		Limits:    w.profile.limits(),
		Timing:    w.profile.timing(),
	})
	if err != nil {
		w.fail("Assertion", "node %d: the host does not open: %v", n.place, err)
		return
	}
	n.host = host
	n.kv.Attach(host)
	for _, record := range host.Recorded() {
		if !record.Lost {
			n.startReplica(record.ID, record.First, 0)
		}
	}
	w.raft.reopened(n)
}

func (n *node) startReplica(key raft.ReplicaKey, first raft.Membership, preferred raft.NodeID) {
	spec := multiraft.ReplicaSpec{Group: key.Group, Replica: key.Replica, First: first, Preferred: preferred}
	if key.Group == raft.ConfigGroup {
		spec.NewStateMachine = func(r *statestore.Replica) multiraft.StateMachine {
			n.control.machine = shardctrler.NewMachine()
			return watchedMachine{n.control.machine, n, r}
		}
	} else {
		spec.LeaseReads = n.w.profile.leases
		made := n.kv.NewStateMachine(key.Group)
		spec.NewStateMachine = func(r *statestore.Replica) multiraft.StateMachine {
			return watchedMachine{made(r), n, r}
		}
	}
	if err := n.host.Start(spec); err != nil {
		n.w.note("refused", n.place, uint64(key.Group), uint64(key.Replica), err.Error)
	}
}

func (n *node) shards() int {
	if n.control.current == nil {
		return 0
	}
	return len(n.control.current.Shards)
}

func (n *node) addressOf(id raft.NodeID) string {
	if n.control.current != nil {
		if node, ok := n.control.current.Node(id); ok {
			return node.Addr
		}
	}
	return ""
}

// hasQuorum tells whether a majority of a group's voters is on nodes that are
// heard of, as package node does.
func (n *node) hasQuorum(id raft.GroupID) bool {
	if n.control.current == nil {
		return true
	}
	group, ok := n.control.current.Group(id)
	if !ok {
		return true
	}
	voters, alive := 0, 0
	for _, m := range group.Members {
		if m.Learner {
			continue
		}
		voters++
		if n.Alive(m.Node) {
			alive++
		}
	}
	return alive > voters/2
}

// forLife runs do after d, unless this life is over by then; a process that
// stands still does it when it goes on.
func (n *node) forLife(d time.Duration, do func()) {
	life := n.process
	var run func()
	run = func() {
		switch {
		case n.process != life:
		case life.until > n.w.now:
			n.w.after(life.until-n.w.now, run)
		default:
			do()
		}
	}
	n.w.after(d, run)
}

// loop is forLife again and again.
func (n *node) loop(interval func() time.Duration, do func()) {
	n.forLife(n.w.upTo(interval()), func() {
		do()
		if n.up() {
			n.again(interval, do)
		}
	})
}

func (n *node) again(interval func() time.Duration, do func()) {
	n.forLife(interval(), func() {
		life := n.process
		do()
		if n.process == life {
			n.again(interval, do)
		}
	})
}

// turnsMax bounds what one event may lead to: past it something spins.
const turnsMax = 10_000

// settle lets the process do all that is left to do now.
func (n *node) settle() {
	if !n.up() || n.until > n.w.now {
		return
	}
	for turns := 0; ; turns++ {
		if turns == turnsMax {
			n.w.fail("Bounded", "node %d does not come to rest", n.place)
			return
		}
		n.kv.RunOnce(n.clock())
		if n.host == nil || !n.host.RunOnce() && !n.host.Pending() {
			break
		}
	}
	n.kv.RunOnce(n.clock())
	n.turnWatches()
	n.w.raft.counted()
	if n.failed != nil {
		n.w.note("fatal", n.place, 0, 0, n.failed.Error)
		n.crash()
		n.planRestart()
		return
	}
	n.useDisk()
}

// settleLife is settle, if that life still lasts.
func (n *node) settleLife(life *process) func() {
	return func() {
		if n.process == life {
			n.settle()
		}
	}
}

// useDisk begins a sync of what is queued, and a flush that is wanted.
func (n *node) useDisk() {
	w := n.w
	if queued := n.log.Queued(); queued > 0 && !n.syncing {
		n.syncing = true
		n.forLife(w.upTo(w.profile.sync)+n.slow, func() {
			n.syncing = false
			if n.broken != nil {
				n.log.Fail(n.broken)
			} else {
				n.log.Sync(queued)
			}
			n.settle()
		})
	}
	if n.states.FlushWanted() && !n.flush {
		n.flush = true
		n.forLife(w.upTo(w.profile.flush)+n.slow, func() {
			n.flush = false
			if n.broken != nil {
				n.failed = n.broken // as the state store's owner, which it tells
				n.settle()
				return
			}
			many := n.states.Unflushed()
			if many > 0 && !w.profile.flushAll {
				many = 1 + w.rng.IntN(many)
			}
			n.states.FlushSome(many)
			w.states.compare(n)
			n.settle()
		})
	}
}

// crash ends the process as a power cut does: what was not synced is lost, but
// for a part that had got as far.
func (n *node) crash() {
	w := n.w
	keep := w.rng.IntN(n.log.Queued() + 1)
	w.note("crash", n.place, uint64(keep), uint64(n.log.Queued()), nil)
	w.counts.Crashes++
	life := n.process
	n.process = nil
	if many := n.states.Unflushed(); many > 0 && w.chance(30) {
		n.states.FlushSome(w.rng.IntN(many + 1)) // a flush was under way
	}
	n.log.CrashKeep(keep)
	n.states.Crash()
	n.end(life)
}

// Paces of a graceful stop, as package node's.
const (
	handOverEvery = 20 * time.Millisecond
	handOverMost  = 5 * time.Second
)

// handOver gives away what the node leads, then closes it: what SIGTERM does.
func (n *node) handOver(until time.Duration) {
	if n.host != nil {
		left, err := n.host.DrainOnce()
		if err != nil {
			n.w.fail("Assertion", "node %d cannot hand over: %v", n.place, err)
			return
		}
		life := n.process
		n.settle()
		switch {
		case n.process != life:
			return
		case left > 0 && n.w.now < until:
			n.forLife(handOverEvery, func() { n.handOver(until) })
			return
		}
	}
	n.close()
	n.planRestart()
}

// close ends the process with all it holds on its disks.
func (n *node) close() {
	if n.broken == nil {
		n.log.SyncAll()
		n.states.Flush()
	}
	n.w.note("close", n.place, uint64(n.log.Queued()), 0, nil)
	life := n.process
	n.process = nil
	n.log.Crash()
	n.states.Crash()
	n.end(life)
}

// end stops what the process ran; nobody hears its last words.
func (n *node) end(life *process) {
	if life.host != nil {
		life.host.Close()
	}
	life.kv.Close()
	n.w.raft.crashed(n)
	reset := n.w.chance(70) // the machine still answers: connections are refused
	for _, o := range n.w.nodes {
		if reset && o.up() {
			o.forLife(n.w.upTo(5*time.Millisecond), func() { o.reset(n) })
		}
	}
	for _, c := range n.w.clients {
		c.nodeDied(n, reset)
	}
}

// planRestart lets a machine come back in a while.
func (n *node) planRestart() {
	boots := n.boots
	n.w.after(n.w.between(10*time.Millisecond, 1500*time.Millisecond), func() {
		if n.boots == boots {
			n.revive()
		}
	})
}

// revive starts a machine that is down, unless it is gone.
func (n *node) revive() {
	if !n.up() && !n.wiped {
		n.broken = nil // room was made
		n.w.counts.Restarts++
		n.start()
	}
}

// Liveness.

func (n *node) life(of raft.NodeID) *transport.Liveness {
	l := n.lives[of]
	if l == nil {
		l = transport.NewLiveness(n.boot)
		n.lives[of] = l
	}
	return l
}

// ping tells all others that the node is there, and looks who is silent.
func (n *node) ping() {
	if n.host == nil {
		return
	}
	for _, o := range n.w.nodes {
		if o == n || o.id == 0 || o.wiped && n.lives[o.id] == nil {
			continue
		}
		l := n.life(o.id)
		l.Expire(n.clock(), suspectAfter)
		n.news(o.id, l)
		p := l.Next(n.clock(), n.wall())
		for _, d := range n.w.network.fates(party(n.place), party(o.place)) {
			n.w.after(d, func() { o.pinged(n.id, p) })
		}
	}
	n.settle()
}

func (n *node) pinged(from raft.NodeID, p transport.Ping) {
	if !n.up() || n.host == nil || n.until > n.w.now {
		return
	}
	l := n.life(from)
	l.Heard(n.clock(), p, suspectAfter)
	n.news(from, l)
	n.settle()
}

// reset hears that the connection to a node is gone.
func (n *node) reset(o *node) {
	if l := n.lives[o.id]; l != nil && n.host != nil {
		l.Broken()
		n.news(o.id, l)
		n.settle()
	}
}

// news tells the host what has changed of a node.
func (n *node) news(id raft.NodeID, l *transport.Liveness) {
	down, up, boot := l.News()
	if down {
		n.host.PeerDown(id)
	}
	if up {
		n.host.PeerUp(id, boot)
	}
	if down || up {
		n.w.note("peer", n.place, uint64(id), boot, func() string { return fmt.Sprintf("down %t up %t", down, up) })
	}
}

// The transport of the host.

// Send implements multiraft.Transport.
func (n *node) Send(to raft.NodeID, ms []raft.Message) {
	w := n.w
	o := w.find(to)
	if o == nil || !n.up() {
		return
	}
	ms = append([]raft.Message(nil), ms...)
	for i := range ms {
		w.raft.sent(n, &ms[i])
	}
	for _, d := range w.network.fates(party(n.place), party(o.place)) {
		w.after(d, func() { o.deliver(n.id, ms) })
	}
}

func (n *node) deliver(from raft.NodeID, ms []raft.Message) {
	switch {
	case !n.up() || n.host == nil:
		return
	case n.until > n.w.now:
		life := n.process
		n.w.after(n.until-n.w.now, func() {
			if n.process == life {
				n.deliver(from, ms)
			}
		})
		return
	}
	for i := range ms {
		m := &ms[i]
		n.w.raft.heard(m)
		n.w.note("deliver", n.place, uint64(from), weigh(m), func() string { return describe(m) })
	}
	n.host.HandleMessages(from, ms)
	n.settle()
}

var errCutOff = errors.New("cut off")

// SendSnapshot implements multiraft.Transport: it runs as a task, and each
// chunk takes its time.
func (n *node) SendSnapshot(ctx context.Context, to raft.NodeID, h transport.SnapshotHeader, next func() ([]byte, error)) error {
	w := n.w
	o := w.find(to)
	life := n.process
	if o == nil || !o.up() || o.host == nil || life == nil {
		return errCutOff
	}
	there := o.process
	w.note("snapshot", n.place, uint64(h.Group), uint64(h.Mark.Index), func() string { return fmt.Sprintf("to n%d", o.place) })
	passes := func() bool {
		if !w.wait(w.upTo(2 * w.profile.delay)) {
			return false
		}
		for o.process == there && there.until > w.now { // it stands still
			if !w.wait(there.until - w.now) {
				return false
			}
		}
		return ctx.Err() == nil && n.process == life && o.process == there &&
			!w.network.blocked[direction{party(n.place), party(o.place)}]
	}
	damaged := false
	err := there.host.HandleSnapshot(ctx, n.id, h, func() ([]byte, error) {
		if !passes() {
			return nil, io.ErrUnexpectedEOF
		}
		chunk, err := next()
		if err == nil && len(chunk) > 0 && !w.network.calm && w.rng.IntN(1000) < w.profile.flip {
			damaged = true
			chunk = flipped(w.rng, chunk)
		}
		return chunk, err
	})
	if damaged {
		w.counts.Damaged++
		w.note("damaged", o.place, uint64(h.Group), uint64(h.Mark.Index), nil)
		if err == nil && n.process == life {
			w.fail("Equal Replicas", "node %d takes a snapshot of group %d with a bit flipped on its way", o.place, h.Group)
		}
	}
	if o.process == there {
		o.settle()
	}
	if errors.Is(err, multiraft.ErrSnapshotRefused) {
		return fmt.Errorf("%w: %w", transport.ErrSnapshotRefused, err)
	}
	if err == nil {
		w.counts.Snapshots++
		w.note("installed", o.place, uint64(h.Group), uint64(h.Mark.Index), nil)
	}
	return err
}

// flipped is a copy of a chunk with one bit changed.
func flipped(rng *rand.Rand, chunk []byte) []byte {
	chunk = bytes.Clone(chunk)
	chunk[rng.IntN(len(chunk))] ^= 1 << rng.IntN(8)
	return chunk
}

// Alive implements multiraft.Transport.
func (n *node) Alive(id raft.NodeID) bool {
	return id == n.id || n.up() && n.lives[id] != nil && n.lives[id].Up()
}

// Clock implements multiraft.Transport.
func (n *node) Clock(id raft.NodeID) (int64, bool) {
	if l := n.lives[id]; l != nil {
		return l.Clock(n.clock())
	}
	return 0, false
}

// Clocks implements multiraft.Transport.
func (n *node) Clocks() []int64 {
	clocks := []int64{n.wall()}
	for _, o := range n.w.nodes {
		if o != n && o.id != 0 {
			if ms, ok := n.Clock(o.id); ok {
				clocks = append(clocks, ms)
			}
		}
	}
	return clocks
}

// Moves of shards.

// pull asks the leader of a group for its part of a move.
func (n *node) pull(q *flotillav1.PullRequest, done func(*flotillav1.PullResponse)) {
	w, life, answered := n.w, n.process, false
	group := raft.GroupID(q.GetGroup())
	end := func(r *flotillav1.PullResponse) {
		if answered || n.process != life {
			return
		}
		answered = true
		delete(n.sources, group)
		if r.GetCode() == flotillav1.Code_NOT_LEADER {
			n.sources[group] = raft.NodeID(r.GetLeaderNode())
		}
		done(r)
		n.settle()
	}
	w.after(askTimeout, func() { end(nil) })
	o := w.find(n.sources[group])
	if o == nil {
		o = n.anyMember(group)
	}
	if o == nil {
		return
	}
	w.note("pull", n.place, q.GetShard(), q.GetMigration(), func() string { return fmt.Sprintf("g%d at n%d: %v", group, o.place, q.GetWant()) })
	n.send(o, func() {
		if o.host == nil {
			return
		}
		o.kv.PullDirectly(q, func(r *flotillav1.PullResponse) {
			if o.up() {
				o.send(n, func() { end(w.damaged(r)) })
			}
		})
	})
}

// anyMember is some node that has a replica of the group, by this node's map.
func (n *node) anyMember(id raft.GroupID) *node {
	if n.control.current == nil {
		return nil
	}
	g, ok := n.control.current.Group(id)
	if !ok || len(g.Members) == 0 {
		return nil
	}
	return n.w.find(g.Members[n.w.rng.IntN(len(g.Members))].Node)
}

// damaged is an answer that may have lost a bit on its way.
func (w *world) damaged(r *flotillav1.PullResponse) *flotillav1.PullResponse {
	if len(r.GetItems()) == 0 || len(r.Items[0].Stored) == 0 || w.network.calm || w.rng.IntN(1000) >= w.profile.flip {
		return r
	}
	r = proto.Clone(r).(*flotillav1.PullResponse)
	r.Items[0].Stored = flipped(w.rng, r.Items[0].Stored)
	return r
}

// operate orders something, as an operator does. What is refused is part of the
// game.
func (w *world) operate() {
	var leader *node
	for _, n := range w.upNodes() {
		if n.host != nil && n.governs() {
			leader = n
		}
	}
	if leader == nil || len(leader.control.machine.State().Configs) == 0 {
		return
	}
	command := w.order(leader)
	if command == nil {
		return
	}
	w.note("order", leader.place, 0, 0, func() string { return fmt.Sprintf("%T%+v", command, command) })
	leader.host.ProposeUrgent(raft.ConfigGroup, shardctrler.EncodeCommand(command), func(r multiraft.Result) {
		if _, refused := r.Value.(error); r.Err != nil || refused {
			return
		}
		switch command.(type) {
		case shardctrler.OrderMove:
			w.counts.Moves++
		case shardctrler.CancelMove:
			w.counts.Cancels++
		case shardctrler.AddGroups:
			w.counts.Joins++
		case shardctrler.RemoveGroup:
			w.counts.Leaves++
		default:
			w.counts.Drains++
		}
		w.note("ordered", leader.place, 0, 0, nil)
	})
	leader.settle()
}

// groupsMost bounds the groups of a run.
const groupsMost = 6

// order draws what is ordered; nil: nothing.
func (w *world) order(leader *node) shardctrler.Command {
	state := leader.control.machine.State()
	group := state.Groups[w.rng.IntN(len(state.Groups))].ID
	switch draw := w.rng.IntN(100); {
	case draw < 60 || w.profile.replicas > 3:
		key := fmt.Sprint(string("rcl"[w.rng.IntN(3)]), w.rng.IntN(w.profile.keys))
		return shardctrler.OrderMove{Shard: shardmap.Shard([]byte(key), w.profile.shards), To: group}
	case draw < 75:
		if n := len(state.Moves); n > 0 {
			return shardctrler.CancelMove{Move: state.Moves[n-1-w.rng.IntN(min(n, 3))].ID}
		}
	case draw < 82:
		var seen shardctrler.Observed
		for _, n := range state.Nodes {
			seen.Nodes = append(seen.Nodes, shardctrler.ObservedNode{ID: n.ID, Alive: leader.Alive(n.ID)})
		}
		if command, err := shardctrler.Join(state, seen, 1, 0); err == nil && len(state.Groups) < groupsMost {
			return command
		}
	case draw < 88:
		return shardctrler.RemoveGroup{Group: group}
	default:
		return shardctrler.DrainNode{Node: state.Nodes[w.rng.IntN(len(state.Nodes))].ID, Back: w.chance(60)}
	}
	return nil
}

// Requests of clients.

// serve carries out a request; answer is called unless the process ends.
func (n *node) serve(q *flotillav1.Request, answer func(*flotillav1.Response)) {
	life := n.process
	n.kv.Submit(context.Background(), []*flotillav1.Request{q}, func(r *flotillav1.Response) {
		if n.process == life {
			answer(r)
		}
	})
	n.settle()
}

// logger puts what the node logs into the timeline, if that is wanted.
func (n *node) logger() *slog.Logger {
	if !n.w.options.Logs || n.w.options.Timeline == nil {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(logWriter{n}, &slog.HandlerOptions{
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey || a.Key == slog.LevelKey {
				return slog.Attr{}
			}
			return a
		},
	}))
}

type logWriter struct{ n *node }

func (o logWriter) Write(line []byte) (int, error) {
	w := o.n.w
	w.trace.line(fmt.Sprintf("%10.3f  %-5s  %-12s %6s %6s  %s", float64(w.now)/float64(time.Millisecond), who(o.n.place), "log", "", "", strings.TrimSpace(string(line))))
	return len(line), nil
}
