package transport

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
)

// Memory is a network without sockets, goroutines or a clock of its own, for
// simulations: its nodes have the surface of a Transport, and what happens
// between them follows from the calls, the clock and the random source alone.
// Messages cross it as the bytes that would cross the wire, and liveness is
// the product's. One goroutine at a time may use a Memory and its nodes.
type Memory struct {
	now    func() time.Time
	rand   *rand.Rand
	timing Timing

	nodes   []*MemoryNode // ascending by id; those that run
	faults  map[[2]raft.NodeID]Faults
	parcels []parcel // ascending by due and number
	numbers uint64
	dropped uint64
}

// Faults are what one node's traffic to another suffers.
type Faults struct {
	Cut                bool    // nothing passes, and nobody is told
	Drop, Duplicate    float64 // chance of each batch
	DelayMin, DelayMax time.Duration
	// Reorder lets batches overtake each other, which a stream never does, but
	// a stream that breaks and another one may.
	Reorder bool
}

// parcel is something on its way.
type parcel struct {
	due      time.Time
	number   uint64
	from, to raft.NodeID
	boots    [2]uint64 // of sender and receiver: it does not outlive either
	batch    []byte    // a RaftBatch
	ping     []byte    // a LivenessPing
}

// parcelsMax bounds what is on its way from one node to another; beyond it the
// oldest go.
const parcelsMax = 4096

// MemoryNode is one node's side of a Memory.
type MemoryNode struct {
	net      *Memory
	id       Identity
	handler  Handler
	peers    []*peer // ascending
	lastPing time.Time
	skew     time.Duration
	encoder  batchEncoder
}

// NewMemory makes a network. Zero fields of timing take their defaults.
func NewMemory(now func() time.Time, random *rand.Rand, timing Timing) *Memory {
	return &Memory{now: now, rand: random, timing: timing.withDefaults(), faults: make(map[[2]raft.NodeID]Faults)}
}

// Join starts a node, in place of an earlier process of the same id, and makes
// all nodes each other's peers. It says and hears nothing before Start.
func (m *Memory) Join(id Identity) *MemoryNode {
	m.Crash(id.Self)
	n := &MemoryNode{net: m, id: id}
	for _, other := range m.nodes {
		other.addPeer(id.Self)
		n.addPeer(other.id.Self)
	}
	m.nodes = append(m.nodes, n)
	slices.SortFunc(m.nodes, func(a, b *MemoryNode) int { return cmp.Compare(a.id.Self, b.id.Self) })
	return n
}

// Crash ends a node's process. Nodes that it can reach see a reset connection.
func (m *Memory) Crash(node raft.NodeID) {
	at := slices.IndexFunc(m.nodes, func(n *MemoryNode) bool { return n.id.Self == node })
	if at < 0 {
		return
	}
	m.nodes = slices.Delete(m.nodes, at, at+1)
	m.parcels = slices.DeleteFunc(m.parcels, func(p parcel) bool { return p.from == node || p.to == node })
	for _, n := range m.nodes {
		if p := n.peer(node); p != nil && !m.faults[[2]raft.NodeID{node, n.id.Self}].Cut {
			p.broken()
			n.tell(p)
		}
	}
}

// SetFaults says what the traffic from one node to another suffers from now on.
func (m *Memory) SetFaults(from, to raft.NodeID, f Faults) {
	m.faults[[2]raft.NodeID{from, to}] = f
}

// Partition cuts all pairs of nodes that are not on one side, both ways, and
// joins those that are. A node on no side is alone.
func (m *Memory) Partition(sides ...[]raft.NodeID) {
	for _, a := range m.nodes {
		for _, b := range m.nodes {
			together := slices.ContainsFunc(sides, func(side []raft.NodeID) bool {
				return slices.Contains(side, a.id.Self) && slices.Contains(side, b.id.Self)
			})
			pair := [2]raft.NodeID{a.id.Self, b.id.Self}
			f := m.faults[pair]
			f.Cut = !together
			m.faults[pair] = f
		}
	}
}

// Heal takes all faults away.
func (m *Memory) Heal() { clear(m.faults) }

// Dropped is how many parcels were lost so far.
func (m *Memory) Dropped() uint64 { return m.dropped }

// Next is when Turn has something to do again, at the latest.
func (m *Memory) Next() time.Time {
	next := m.now().Add(m.timing.PingInterval)
	for _, n := range m.nodes {
		if due := n.lastPing.Add(m.timing.PingInterval); n.handler != nil && due.Before(next) {
			next = due
		}
	}
	if len(m.parcels) > 0 && m.parcels[0].due.Before(next) {
		next = m.parcels[0].due
	}
	return next
}

// Turn does what is due now: pings, deliveries, suspicion. It returns how many
// Raft messages it delivered.
func (m *Memory) Turn() (delivered int) {
	now := m.now()
	for _, n := range slices.Clone(m.nodes) {
		if n.handler != nil && now.Sub(n.lastPing) >= m.timing.PingInterval {
			n.ping(now)
		}
	}
	for len(m.parcels) > 0 && !m.parcels[0].due.After(now) {
		p := m.parcels[0]
		m.parcels = slices.Delete(m.parcels, 0, 1)
		delivered += m.deliver(now, p)
	}
	for _, n := range slices.Clone(m.nodes) {
		for _, p := range n.peers {
			if p.expire(now, m.timing.SuspectAfter) {
				n.tell(p)
			}
		}
	}
	return delivered
}

func (m *Memory) node(id raft.NodeID) *MemoryNode {
	at, ok := slices.BinarySearchFunc(m.nodes, id, func(n *MemoryNode, id raft.NodeID) int { return cmp.Compare(n.id.Self, id) })
	if !ok {
		return nil
	}
	return m.nodes[at]
}

// post puts a parcel on its way, or loses it.
func (m *Memory) post(p parcel) {
	receiver := m.node(p.to)
	f := m.faults[[2]raft.NodeID{p.from, p.to}]
	if receiver == nil || f.Cut || f.Drop > 0 && m.rand.Float64() < f.Drop {
		m.dropped++
		return
	}
	p.boots = [2]uint64{m.node(p.from).id.Boot, receiver.id.Boot}
	copies := 1
	if f.Duplicate > 0 && m.rand.Float64() < f.Duplicate {
		copies = 2
	}
	for range copies {
		p.due = m.now().Add(f.DelayMin)
		if f.DelayMax > f.DelayMin {
			p.due = p.due.Add(time.Duration(m.rand.Int64N(int64(f.DelayMax - f.DelayMin))))
		}
		m.enqueue(p, f.Reorder)
	}
}

// enqueue inserts p behind what is due before it, and, unless it may overtake,
// behind what its sender sent the receiver earlier.
func (m *Memory) enqueue(p parcel, reorder bool) {
	m.numbers++
	p.number = m.numbers
	waiting, oldest := 0, -1
	for i := range m.parcels {
		if q := &m.parcels[i]; q.from == p.from && q.to == p.to {
			if waiting++; oldest < 0 {
				oldest = i
			}
			if !reorder && q.due.After(p.due) {
				p.due = q.due
			}
		}
	}
	if waiting >= parcelsMax {
		m.parcels = slices.Delete(m.parcels, oldest, oldest+1)
		m.dropped++
	}
	at, _ := slices.BinarySearchFunc(m.parcels, p, func(a, b parcel) int {
		return cmp.Or(a.due.Compare(b.due), cmp.Compare(a.number, b.number))
	})
	m.parcels = slices.Insert(m.parcels, at, p)
}

// deliver hands over what has arrived, unless the pair was cut meanwhile.
func (m *Memory) deliver(now time.Time, p parcel) int {
	from, to := m.node(p.from), m.node(p.to)
	if from == nil || to == nil || to.handler == nil || p.boots != [2]uint64{from.id.Boot, to.id.Boot} ||
		m.faults[[2]raft.NodeID{p.from, p.to}].Cut {
		m.dropped++
		return 0
	}
	if p.ping != nil {
		to.pinged(now, from, p.ping)
		return 0
	}
	batch := new(flotillav1.RaftBatch)
	if err := proto.Unmarshal(p.batch, batch); err != nil {
		panic(fmt.Sprintf("a batch of node %d does not decode: %v", p.from, err)) // we encoded it
	}
	ms, _ := decodeBatch(batch, nil)
	if len(ms) > 0 {
		to.handler.HandleMessages(p.from, ms)
	}
	return len(ms)
}

// Start says whom to deliver to.
func (n *MemoryNode) Start(h Handler) { n.handler = h }

// SetSkew sets the node's clock off against the network's.
func (n *MemoryNode) SetSkew(d time.Duration) { n.skew = d }

func (n *MemoryNode) addPeer(id raft.NodeID) {
	if n.peer(id) != nil {
		return
	}
	n.peers = append(n.peers, newPeer(id, n.id, Limits{}))
	slices.SortFunc(n.peers, func(a, b *peer) int { return cmp.Compare(a.id, b.id) })
}

func (n *MemoryNode) peer(id raft.NodeID) *peer {
	at, ok := slices.BinarySearchFunc(n.peers, id, func(p *peer, id raft.NodeID) int { return cmp.Compare(p.id, id) })
	if !ok {
		return nil
	}
	return n.peers[at]
}

func (n *MemoryNode) ping(now time.Time) {
	n.lastPing = now
	for _, p := range n.peers {
		out := p.nextPing(now)
		out.clock = now.Add(n.skew).UnixMilli()
		n.net.post(parcel{from: n.id.Self, to: p.id, ping: marshal(encodePing(nil, out))})
	}
}

func (n *MemoryNode) pinged(now time.Time, from *MemoryNode, wire []byte) {
	in := new(flotillav1.LivenessPing)
	if err := proto.Unmarshal(wire, in); err != nil {
		panic(fmt.Sprintf("a ping of node %d does not decode: %v", from.id.Self, err)) // we encoded it
	}
	if p := n.peer(from.id.Self); p != nil && p.heard(now, decodePing(from.id.Boot, in), n.net.timing.SuspectAfter) {
		n.tell(p)
	}
}

func marshal(m proto.Message) []byte {
	wire, err := proto.Marshal(m)
	if err != nil {
		panic(fmt.Sprintf("%T does not encode: %v", m, err)) // only invalid UTF-8 could do that
	}
	return wire
}

func (n *MemoryNode) tell(p *peer) {
	down, up, boot := p.news()
	if n.handler == nil {
		return
	}
	if down {
		n.handler.PeerDown(p.id)
	}
	if up {
		n.handler.PeerUp(p.id, boot)
	}
}

// Send puts messages on their way, as one batch.
func (n *MemoryNode) Send(to raft.NodeID, ms []raft.Message) {
	if n.net.node(n.id.Self) != n || n.peer(to) == nil || len(ms) == 0 {
		return
	}
	n.net.post(parcel{from: n.id.Self, to: to, batch: marshal(n.encoder.encode(nil, ms))})
	n.encoder.release()
}

// SendSnapshot calls the receiver's handler, which reads straight from next,
// until a cut or a drop breaks it. The errors are those of a Transport.
func (n *MemoryNode) SendSnapshot(ctx context.Context, to raft.NodeID, h SnapshotHeader, next func() ([]byte, error)) error {
	target := n.net.node(to)
	if n.peer(to) == nil {
		return ErrUnknownPeer
	}
	header, err := decodeHeader(h.encode())
	if err != nil {
		return fmt.Errorf("%w: %w", ErrSnapshotDamaged, err)
	}
	broken, ended := func() bool {
		f := n.net.faults[[2]raft.NodeID{n.id.Self, to}]
		return target == nil || target.handler == nil || n.net.node(to) != target || n.net.node(n.id.Self) != n ||
			f.Cut || f.Drop > 0 && n.net.rand.Float64() < f.Drop
	}, false
	if broken() {
		return ErrSnapshotBroken
	}
	var cause error // why the receiver could not read on
	err = target.handler.HandleSnapshot(ctx, n.id.Self, header, func() ([]byte, error) {
		if cause = ctx.Err(); cause == nil && broken() {
			cause = ErrSnapshotBroken
		}
		if cause != nil {
			return nil, cause
		}
		data, err := next()
		ended = errors.Is(err, io.EOF)
		if err != nil && !ended {
			cause = err
		}
		return slices.Clone(data), err
	})
	switch {
	case cause != nil:
		return cause
	case err != nil:
		return fmt.Errorf("%w: %s", ErrSnapshotRefused, err)
	case !ended:
		return fmt.Errorf("%w: the handler did not read it to the end", ErrSnapshotRefused)
	}
	return nil
}

// Alive, Boot, Liveness, Clock and Clocks are those of a Transport.

// Alive tells whether a node is up; this one is.
func (n *MemoryNode) Alive(node raft.NodeID) bool {
	if p := n.peer(node); p != nil {
		return p.up()
	}
	return node == n.id.Self
}

// Boot is the boot number last heard of a node; false: never heard.
func (n *MemoryNode) Boot(node raft.NodeID) (uint64, bool) {
	if node == n.id.Self {
		return n.id.Boot, true
	}
	l, _ := n.Liveness(node)
	return l.Boot, l.Boot != 0
}

// Liveness is all that is known of a peer's; false: no peer.
func (n *MemoryNode) Liveness(node raft.NodeID) (PeerLiveness, bool) {
	if p := n.peer(node); p != nil {
		return p.liveness(), true
	}
	return PeerLiveness{}, false
}

// Clock is a node's clock now, unix milliseconds; false: the node is not up.
func (n *MemoryNode) Clock(node raft.NodeID) (unixMs int64, ok bool) {
	now := n.net.now()
	if p := n.peer(node); p != nil {
		return p.clock(now)
	}
	return now.Add(n.skew).UnixMilli(), node == n.id.Self
}

// Clocks are the clocks now of this node and of the peers that are up.
func (n *MemoryNode) Clocks() []int64 {
	now := n.net.now()
	clocks := []int64{now.Add(n.skew).UnixMilli()}
	for _, p := range n.peers {
		if ms, ok := p.clock(now); ok {
			clocks = append(clocks, ms)
		}
	}
	return clocks
}
