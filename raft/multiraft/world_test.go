package multiraft

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"log/slog"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/raft/logstore"
	"github.com/flotilla-kv/flotilla/raft/statestore"
	"github.com/flotilla-kv/flotilla/raft/transport"
)

// tally is a state machine that counts and hashes the commands it has applied;
// the result of a command is its number. A command "k=v" also sets key k.
type tally struct {
	state  *statestore.Replica
	count  uint64
	hash   uint64
	term   raft.Term
	stamp  int64
	last   int64  // stamp of the last command
	before func() // called before an entry is applied, if set
	built  func() // called when the state was restored, if set
}

func (m *tally) Apply(b *statestore.Batch, e Applied, results []any) error {
	if m.before != nil {
		m.before()
	}
	if e.Term == m.term && e.Stamp < m.stamp {
		return fmt.Errorf("stamp %d behind %d of the same leader", e.Stamp, m.stamp)
	}
	m.term, m.stamp = e.Term, e.Stamp
	for i, c := range e.Commands {
		if bytes.Equal(c, []byte("poison")) {
			return errors.New("poison")
		}
		m.count++
		m.last = e.Stamp
		h := fnv.New64a()
		_ = binary.Write(h, binary.BigEndian, m.hash)
		h.Write(c)
		m.hash = h.Sum64()
		if k, v, ok := bytes.Cut(c, []byte("=")); ok {
			b.Set(append([]byte("k"), k...), v)
		}
		if len(c) > 0 && c[0] == '#' { // counts how often it is applied
			v, _, err := b.Get(c)
			if err != nil {
				return err
			}
			b.Set(bytes.Clone(c), append(bytes.Clone(v), 'x'))
		}
		results[i] = m.count
	}
	return nil
}

// Finish keeps the tally: it is there after a restart only if this is called.
func (m *tally) Finish(b *statestore.Batch) {
	v := binary.BigEndian.AppendUint64(nil, m.count)
	v = binary.BigEndian.AppendUint64(v, m.hash)
	b.Set([]byte("tally"), binary.BigEndian.AppendUint64(v, uint64(m.stamp)))
}

func (m *tally) Restored(r *statestore.Replica) error {
	m.state, m.count, m.hash, m.term, m.stamp = r, 0, 0, 0, 0
	v, ok, err := r.Get([]byte("tally"))
	if ok {
		m.count, m.hash = binary.BigEndian.Uint64(v), binary.BigEndian.Uint64(v[8:])
		m.stamp = int64(binary.BigEndian.Uint64(v[16:]))
	}
	if m.built != nil {
		m.built()
	}
	return err
}

func (m *tally) Committed(raft.Index) {}

// world is a few hosts without goroutines over model stores, with a network
// and a clock of their own: everything that happens follows from the seed.
type world struct {
	t     *testing.T
	now   time.Time
	rand  *rand.Rand
	nodes map[raft.NodeID]*worldNode
	order []raft.NodeID
	wires []parcel
	cut   map[[2]raft.NodeID]bool
	tune  func(*Options)
	slow  time.Duration // how long a parcel travels at most
	trace []string
	line  *narrowLine // if a link is narrow
}

type worldNode struct {
	w      *world
	id     raft.NodeID
	log    *logstore.Model
	states *statestore.Model
	store  *logstore.ModelStore
	host   *Host // nil: down
	boot   uint64
	noSync bool          // the disk stands still
	slow   time.Duration // a sync takes so long
	synced time.Time     // when the last one was made
	skew   time.Duration // how far its clock is ahead, on every wall
	tally  map[raft.GroupID]*tally
	gone   []raft.ReplicaKey
}

type parcel struct {
	at       time.Time
	from, to raft.NodeID
	boot     uint64 // of the receiver; a parcel does not outlive it
	ms       []raft.Message
}

func newWorld(t *testing.T, n int, tune func(*Options)) *world {
	w := &world{
		t: t, now: time.UnixMilli(1_700_000_000_000), rand: rand.New(rand.NewPCG(1, 2)),
		nodes: map[raft.NodeID]*worldNode{}, cut: map[[2]raft.NodeID]bool{}, tune: tune, slow: 2 * time.Millisecond,
	}
	for i := range n {
		id := raft.NodeID(i + 1)
		w.order = append(w.order, id)
		w.nodes[id] = &worldNode{w: w, id: id, log: logstore.NewModel(), states: statestore.NewModel()}
	}
	for _, id := range w.order {
		w.up(id)
	}
	return w
}

// up starts a node, with the replicas that it has recorded.
func (w *world) up(id raft.NodeID) {
	w.t.Helper()
	n := w.nodes[id]
	store, err := n.log.Open()
	if err != nil {
		w.t.Fatal(err)
	}
	n.store, n.boot, n.tally = store, n.boot+1, map[raft.GroupID]*tally{}
	opts := Options{
		Self: id, Log: store, Transport: n, Manual: true, Workers: 2,
		States: statestore.OpenModel(n.states, func() {
			if n.host != nil {
				n.host.Flushed()
			}
		}),
		Clock:     func() time.Time { return w.now },
		Wall:      func() int64 { return w.now.Add(w.nodes[id].skew).UnixMilli() },
		Rand:      rand.New(rand.NewPCG(uint64(id), n.boot)),
		Logger:    slog.New(slog.NewTextHandler(testWriter{w, id}, &slog.HandlerOptions{Level: slog.LevelInfo})),
		OnRemoved: func(key raft.ReplicaKey) { n.gone = append(n.gone, key) },
		OnFatal:   func(error) {},
	}
	if w.tune != nil {
		w.tune(&opts)
	}
	h, err := Open(opts)
	if err != nil {
		w.t.Fatal(err)
	}
	n.host = h
	for _, record := range h.Recorded() {
		if record.Lost {
			continue
		}
		w.startOn(id, ReplicaSpec{Group: record.ID.Group, Replica: record.ID.Replica})
	}
	for _, other := range w.order {
		if other != id && w.linked(id, other) {
			w.meet(id, other)
		}
	}
}

// meet tells two nodes that they hear each other.
func (w *world) meet(a, b raft.NodeID) {
	for _, p := range [][2]raft.NodeID{{a, b}, {b, a}} {
		n := w.nodes[p[0]]
		n.host.PeerUp(p[1], w.nodes[p[1]].boot)
	}
}

func (w *world) startOn(id raft.NodeID, spec ReplicaSpec) {
	w.t.Helper()
	n := w.nodes[id]
	spec.NewStateMachine = func(*statestore.Replica) StateMachine {
		m := &tally{}
		n.tally[spec.Group] = m
		return m
	}
	if err := n.host.Start(spec); err != nil {
		w.t.Fatal(err)
	}
}

// group starts a group with replica i on node i.
func (w *world) group(g raft.GroupID, preferred raft.NodeID, nodes ...raft.NodeID) {
	w.t.Helper()
	m := raft.Membership{Epoch: 1}
	for _, id := range nodes {
		m.Voters = append(m.Voters, raft.Member{Replica: raft.ReplicaID(id), Node: id})
	}
	for _, id := range nodes {
		w.startOn(id, ReplicaSpec{Group: g, Replica: raft.ReplicaID(id), First: m, Preferred: preferred})
	}
}

// crash ends a node as a power cut does: what is not durable is lost.
func (w *world) crash(id raft.NodeID) {
	n := w.nodes[id]
	n.log.Crash()
	n.states.Crash()
	n.host.Close()
	n.host = nil
	for _, other := range w.order {
		if h := w.nodes[other].host; h != nil {
			h.PeerDown(id)
		}
	}
}

// linked says whether two nodes hear each other.
func (w *world) linked(a, b raft.NodeID) bool {
	return w.nodes[a].host != nil && w.nodes[b].host != nil && !w.cut[[2]raft.NodeID{a, b}] && !w.cut[[2]raft.NodeID{b, a}]
}

// isolate cuts a node off in both directions; the liveness of the pairs tells.
func (w *world) isolate(id raft.NodeID) {
	for _, other := range w.order {
		if other != id {
			w.cut[[2]raft.NodeID{id, other}] = true
			w.nodes[id].host.PeerDown(other)
			w.nodes[other].host.PeerDown(id)
		}
	}
}

func (w *world) heal(id raft.NodeID) {
	for _, other := range w.order {
		if other != id {
			delete(w.cut, [2]raft.NodeID{id, other})
			w.meet(id, other)
		}
	}
}

// step lets everything happen that happens in a millisecond.
func (w *world) step() {
	w.now = w.now.Add(time.Millisecond)
	due := w.wires
	w.wires = nil
	for _, p := range due {
		n := w.nodes[p.to]
		switch {
		case p.at.After(w.now):
			w.wires = append(w.wires, p)
		case w.linked(p.from, p.to) && n.boot == p.boot:
			n.host.HandleMessages(p.from, p.ms)
		}
	}
	w.line.run()
	for _, id := range w.order {
		n := w.nodes[id]
		if n.host == nil {
			continue
		}
		for range 100 {
			if !n.host.RunOnce() {
				break
			}
		}
		if !n.noSync && w.now.Sub(n.synced) >= n.slow {
			n.log.SyncAll()
			n.synced = w.now
		}
		if n.states.FlushWanted() {
			n.states.Flush()
		}
	}
}

func (w *world) run(d time.Duration) {
	for end := w.now.Add(d); w.now.Before(end); {
		w.step()
	}
}

// until runs until the condition holds, and fails after a minute of the
// world's time.
func (w *world) until(what string, ok func() bool) {
	w.t.Helper()
	for end := w.now.Add(time.Minute); w.now.Before(end); {
		if ok() {
			return
		}
		w.step()
	}
	w.dump()
	w.t.Fatalf("not within a minute: %s", what)
}

func (w *world) dump() {
	for _, line := range w.trace[max(0, len(w.trace)-60):] {
		w.t.Log(line)
	}
	for _, id := range w.order {
		if h := w.nodes[id].host; h != nil {
			for _, s := range h.Statuses() {
				w.t.Logf("node %d: %+v", id, s)
			}
		}
	}
}

// leader runs until exactly one live node leads the group and a majority
// knows, and returns it.
func (w *world) leader(g raft.GroupID) raft.NodeID {
	w.t.Helper()
	var leader raft.NodeID
	w.until(fmt.Sprintf("group %d has a leader", g), func() bool {
		votes := map[raft.NodeID]int{}
		for _, id := range w.order {
			if h := w.nodes[id].host; h != nil {
				if m, _, ok := h.Leader(g); ok && w.nodes[m.Node].host != nil {
					votes[m.Node]++
					if votes[m.Node] >= 2 {
						leader = m.Node
						s, _ := w.nodes[leader].host.Status(g)
						return s.Role == raft.Leader
					}
				}
			}
		}
		return false
	})
	return leader
}

// propose proposes at a node and runs until the answer is there.
func (w *world) propose(id raft.NodeID, g raft.GroupID, command string) Result {
	w.t.Helper()
	var got *Result
	w.nodes[id].host.Propose(g, []byte(command), func(r Result) { got = &r })
	w.until("the proposal is answered", func() bool { return got != nil })
	return *got
}

// mustPropose proposes at whoever leads until it succeeds.
func (w *world) mustPropose(g raft.GroupID, command string) Result {
	w.t.Helper()
	for range 20 {
		if res := w.propose(w.leader(g), g, command); res.Err == nil {
			return res
		}
		w.run(100 * time.Millisecond)
	}
	w.dump()
	w.t.Fatalf("group %d takes no proposal", g)
	return Result{}
}

func (w *world) read(id raft.NodeID, g raft.GroupID, opt ReadOptions) (index raft.Index, err error) {
	w.t.Helper()
	answered := false
	w.nodes[id].host.ReadIndex(g, opt, func(i raft.Index, e error) { index, err, answered = i, e, true })
	w.until("the read is answered", func() bool { return answered })
	return index, err
}

// same runs until all replicas of the group on live nodes have applied the
// same, and at least count commands.
func (w *world) same(g raft.GroupID, count uint64) {
	w.t.Helper()
	w.until(fmt.Sprintf("the replicas of group %d agree on %d commands", g, count), func() bool {
		var first *tally
		for _, id := range w.order {
			n := w.nodes[id]
			m := n.tally[g]
			if n.host == nil || m == nil {
				continue
			}
			if first == nil {
				first = m
			}
			if m.count < count || m.count != first.count {
				return false
			}
			if m.hash != first.hash {
				w.t.Fatalf("group %d: after %d commands the hashes are %x and %x", g, m.count, first.hash, m.hash)
			}
		}
		return first != nil
	})
}

// The transport of a node.

func (n *worldNode) Send(to raft.NodeID, ms []raft.Message) {
	if n.w.linked(n.id, to) {
		if n.w.line != nil && to == n.w.line.to {
			n.w.line.send(n.id, ms)
			return
		}
		delay := time.Duration(n.w.rand.Int64N(int64(n.w.slow)))
		n.w.wires = append(n.w.wires, parcel{n.w.now.Add(delay), n.id, to, n.w.nodes[to].boot, append([]raft.Message(nil), ms...)})
	}
}

func (n *worldNode) SendSnapshot(ctx context.Context, to raft.NodeID, h transport.SnapshotHeader, next func() ([]byte, error)) error {
	if !n.w.linked(n.id, to) {
		return errors.New("cut off")
	}
	err := n.w.nodes[to].host.HandleSnapshot(ctx, n.id, h, func() ([]byte, error) {
		chunk, err := next()
		n.w.line.carry(to, chunk)
		if !n.w.linked(n.id, to) {
			return nil, io.ErrUnexpectedEOF
		}
		return chunk, err
	})
	if errors.Is(err, ErrSnapshotRefused) {
		return fmt.Errorf("%w: %w", transport.ErrSnapshotRefused, err)
	}
	return err
}

func (n *worldNode) Alive(id raft.NodeID) bool { return id == n.id || n.w.linked(n.id, id) }

func (n *worldNode) Clock(id raft.NodeID) (int64, bool) {
	return n.w.now.Add(n.w.nodes[id].skew).UnixMilli(), n.Alive(id)
}

func (n *worldNode) Clocks() (clocks []int64) {
	for _, id := range n.w.order {
		if ms, ok := n.Clock(id); ok {
			clocks = append(clocks, ms)
		}
	}
	return clocks
}

type testWriter struct {
	w  *world
	id raft.NodeID
}

func (o testWriter) Write(line []byte) (int, error) {
	at := o.w.now.Sub(time.UnixMilli(1_700_000_000_000)).Milliseconds()
	text := strings.TrimSpace(string(line))
	if i := strings.Index(text, "level="); i > 0 {
		text = text[i:]
	}
	o.w.trace = append(o.w.trace, fmt.Sprintf("%7d ms  node %d  %s", at, o.id, text))
	return len(line), nil
}
