package transport

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
)

// Handler is who the transport delivers to.
type Handler interface {
	// HandleMessages takes messages of one peer, in the order in which it sent
	// them. The slice is valid during the call only; the bodies are the
	// handler's. It is called from one goroutine a peer and must be quick: while
	// it runs, the peer's messages wait.
	HandleMessages(from raft.NodeID, ms []raft.Message)
	// HandleSnapshot takes a snapshot in and returns when it is installed. next
	// gives one chunk after the other, the handler's to keep, then io.EOF; any
	// other error means that the rest will not come and nothing may be
	// installed. ctx ends when the transfer does. An error is told to the sender.
	HandleSnapshot(ctx context.Context, from raft.NodeID, header SnapshotHeader, next func() ([]byte, error)) error
	// PeerUp and PeerDown are called from one goroutine, in order, and must be
	// quick. A new process at the peer comes as PeerDown and PeerUp.
	PeerUp(node raft.NodeID, boot uint64)
	PeerDown(node raft.NodeID)
}

// Transport is a node's side of all its pairs.
type Transport struct {
	opts  Options
	log   *slog.Logger
	count counters

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // every goroutine but those of the lines
	// changed has an element if the handler may have to be told something.
	changed chan struct{}

	// peers is replaced, never changed, so that reading it takes no lock.
	peers atomic.Pointer[map[raft.NodeID]*peer]

	snapshotsOut *snapshotSender
	snapshotsIn  *snapshotReceiver

	mu       sync.Mutex // guards all below, and replacing peers
	state    state
	identity Identity // set once by Start, before anything reads it
	handler  Handler  // as identity
	removed  []*peer  // whose PeerDown is still to be told
	inbounds map[inboundKey]*inbound
}

type state uint8

const (
	stateNew state = iota
	stateStarted
	stateClosed
)

// New makes a transport that does nothing before Start.
func New(opts Options) (*Transport, error) {
	opts = opts.withDefaults()
	if err := errors.Join(opts.Limits.check(), opts.Timing.check()); err != nil {
		return nil, err
	}
	t := &Transport{
		opts:     opts,
		log:      opts.Logger,
		changed:  make(chan struct{}, 1),
		inbounds: make(map[inboundKey]*inbound),
	}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.peers.Store(new(map[raft.NodeID]*peer))
	t.snapshotsOut = newSnapshotSender(t)
	t.snapshotsIn = newSnapshotReceiver(t)
	return t, nil
}

// Register adds the services to the node's gRPC server, which was made with
// ServerOptions. They answer Unavailable before Start and after Close.
func (t *Transport) Register(r grpc.ServiceRegistrar) {
	flotillav1.RegisterRaftTransportServer(r, &raftService{t: t})
	flotillav1.RegisterBulkServer(r, &bulkService{t: t})
}

// Start says who this node is and whom to deliver to; from then on both ways
// are open. It is called once.
func (t *Transport) Start(id Identity, h Handler) error {
	if err := id.check(); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch t.state {
	case stateClosed:
		return ErrClosed
	case stateStarted:
		return errors.New("transport: started twice")
	}
	t.state, t.identity, t.handler = stateStarted, id, h
	t.wg.Add(2)
	go t.tell()
	go t.watchPeers()
	return nil
}

// Close ends every stream and connection and returns when no goroutine is left
// and the handler will not be called again. Calls of the handler that are under
// way are waited for.
func (t *Transport) Close() {
	t.mu.Lock()
	t.state = stateClosed
	peers := *t.peers.Load()
	t.peers.Store(new(map[raft.NodeID]*peer))
	t.mu.Unlock()
	t.cancel()
	for _, p := range peers {
		if l := p.currentLine(); l != nil {
			l.close()
		}
	}
	t.wg.Wait()
}

// enter admits one more goroutine of the transport, if it is started.
func (t *Transport) enter() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.state != stateStarted {
		return false
	}
	t.wg.Add(1)
	return true
}

// SetAddr says where a node is; from now on it is a peer. A new address
// replaces the connections. Our own id is ignored, so a node table can be
// handed over as it is.
func (t *Transport) SetAddr(node raft.NodeID, addr string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch t.state {
	case stateNew:
		return ErrNotStarted
	case stateClosed:
		return ErrClosed
	}
	if node == t.identity.Self || node == 0 {
		return nil
	}
	p := (*t.peers.Load())[node]
	if p == nil {
		p = newPeer(node, t.identity, t.opts.Limits)
	} else if old := p.currentLine(); old.addr == addr {
		return nil
	}
	l, err := t.newLine(p, addr)
	if err != nil {
		return err
	}
	t.replaceLine(p, l)
	t.storePeer(node, p)
	l.start()
	t.log.Info("peer", "peer", node, "addr", addr)
	return nil
}

// replaceLine makes l the line of p and ends the one before it in a goroutine
// of its own: that one may be sending.
func (t *Transport) replaceLine(p *peer, l *line) {
	p.mu.Lock()
	old := p.line
	p.line = l
	p.mu.Unlock()
	if old != nil {
		t.retire(old)
	}
}

func (t *Transport) retire(l *line) {
	l.cancel()
	t.wg.Add(1)
	go func() {
		defer t.wg.Done()
		l.close()
	}()
}

// storePeer replaces the table by one with p under node, or without if p is
// nil. The caller holds mu.
func (t *Transport) storePeer(node raft.NodeID, p *peer) {
	next := maps.Clone(*t.peers.Load())
	if p != nil {
		if next == nil {
			next = make(map[raft.NodeID]*peer)
		}
		next[node] = p
	} else {
		delete(next, node)
	}
	t.peers.Store(&next)
}

// RemovePeer forgets a node: its connections end, what was queued for it is
// dropped, and the handler is told that it is down if it was up.
func (t *Transport) RemovePeer(node raft.NodeID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := (*t.peers.Load())[node]
	if p == nil || t.state != stateStarted {
		return
	}
	t.storePeer(node, nil)
	p.mu.Lock()
	p.removed = true
	l := p.line
	p.line = nil
	p.mu.Unlock()
	t.removed = append(t.removed, p)
	t.retire(l)
	t.announce()
	t.log.Info("peer removed", "peer", node)
}

// Send queues messages for a node, in order, and returns at once. What exceeds
// the queue's limits displaces the oldest; what is for an unknown node is
// dropped. The caller must not change ms's bodies afterwards.
func (t *Transport) Send(to raft.NodeID, ms []raft.Message) {
	p := t.peer(to)
	if p == nil {
		t.count.droppedUnknownPeer.Add(uint64(len(ms)))
		return
	}
	for i := range ms {
		if messageBytes(&ms[i]) > messageBytesMax {
			ms = t.withoutTooLarge(to, ms)
			break
		}
	}
	if dropped := p.push(ms); dropped > 0 {
		t.count.droppedQueueFull.Add(uint64(dropped))
	}
}

func (t *Transport) withoutTooLarge(to raft.NodeID, ms []raft.Message) []raft.Message {
	kept := make([]raft.Message, 0, len(ms))
	for i := range ms {
		size := messageBytes(&ms[i])
		if size <= messageBytesMax {
			kept = append(kept, ms[i])
			continue
		}
		t.count.droppedTooLarge.Add(1)
		t.log.Error("message too large for any peer", "peer", to, "group", ms[i].Group, "bytes", size, "max", messageBytesMax)
	}
	return kept
}

func (t *Transport) peer(node raft.NodeID) *peer { return (*t.peers.Load())[node] }

func (t *Transport) envelopeTo(node raft.NodeID) *flotillav1.Envelope {
	return envelope{clusterID: t.identity.ClusterID, from: t.identity.Self, to: node, boot: t.identity.Boot}.encode()
}

// announce lets the handler be told what has changed.
func (t *Transport) announce() { signal(t.changed) }

// tell calls PeerUp and PeerDown.
func (t *Transport) tell() {
	defer t.wg.Done()
	for {
		select {
		case <-t.changed:
			t.tellNews()
		case <-t.ctx.Done():
			return
		}
	}
}

func (t *Transport) tellNews() {
	t.mu.Lock()
	removed := t.removed
	t.removed = nil
	t.mu.Unlock()
	for _, p := range removed {
		t.tellOf(p)
	}
	for _, p := range t.sortedPeers() {
		t.tellOf(p)
	}
}

func (t *Transport) tellOf(p *peer) {
	down, up, boot := p.news()
	if down {
		t.count.peerDowns.Add(1)
		t.log.Info("peer down", "peer", p.id)
		t.handler.PeerDown(p.id)
	}
	if up {
		t.count.peerUps.Add(1)
		t.log.Info("peer up", "peer", p.id, "boot", boot)
		if l := p.currentLine(); l != nil {
			l.connected()
		}
		t.handler.PeerUp(p.id, boot)
	}
}

func (t *Transport) sortedPeers() []*peer {
	peers := *t.peers.Load()
	sorted := make([]*peer, 0, len(peers))
	for _, node := range slices.Sorted(maps.Keys(peers)) {
		sorted = append(sorted, peers[node])
	}
	return sorted
}

// watchPeers suspects peers that are silent.
func (t *Transport) watchPeers() {
	defer t.wg.Done()
	timing := t.opts.Timing
	ticker := time.NewTicker(timing.PingInterval / 2)
	defer ticker.Stop()
	watch := pauseWatch{suspectAfter: timing.SuspectAfter, last: t.opts.Clock()}
	for {
		select {
		case <-ticker.C:
		case <-t.ctx.Done():
			return
		}
		if now := t.opts.Clock(); watch.mayJudge(now) {
			t.suspectSilent(now)
		}
	}
}

// pauseWatch notices that this process itself has stood still: whatever the
// peers said meanwhile has not been read yet, so they get their time again.
type pauseWatch struct {
	suspectAfter time.Duration
	last         time.Time
	notBefore    time.Time
}

func (w *pauseWatch) mayJudge(now time.Time) bool {
	if now.Sub(w.last) > w.suspectAfter/2 {
		w.notBefore = now.Add(w.suspectAfter)
	}
	w.last = now
	return !now.Before(w.notBefore)
}

func (t *Transport) suspectSilent(now time.Time) {
	suspectAfter := t.opts.Timing.SuspectAfter
	for _, p := range *t.peers.Load() {
		down := p.expire(now, suspectAfter)
		if down {
			t.announce()
		}
		if l := p.currentLine(); l != nil && !p.up() {
			l.suspect(now, down, suspectAfter)
		}
	}
}

// Alive tells whether a node is up: heard, and known to hear us, within
// SuspectAfter. This node is.
func (t *Transport) Alive(node raft.NodeID) bool {
	if p := t.peer(node); p != nil {
		return p.up()
	}
	return t.isSelf(node)
}

// Boot is the boot number last heard of a node; false: never heard.
func (t *Transport) Boot(node raft.NodeID) (uint64, bool) {
	if p := t.peer(node); p != nil {
		boot := p.liveness().Boot
		return boot, boot != 0
	}
	if t.isSelf(node) {
		return t.identity.Boot, true
	}
	return 0, false
}

// Liveness is all that is known of a peer's; false: no peer.
func (t *Transport) Liveness(node raft.NodeID) (PeerLiveness, bool) {
	if p := t.peer(node); p != nil {
		return p.liveness(), true
	}
	return PeerLiveness{}, false
}

// Clock is a node's clock now, in unix milliseconds, as far as its pings tell;
// false: the node is not up. For this node it is its own.
func (t *Transport) Clock(node raft.NodeID) (unixMs int64, ok bool) {
	now := t.opts.Clock()
	if p := t.peer(node); p != nil {
		return p.clock(now)
	}
	return now.UnixMilli(), t.isSelf(node)
}

// Clocks are the clocks now of this node and of the peers that are up, unix
// milliseconds, in no order.
func (t *Transport) Clocks() []int64 {
	now := t.opts.Clock()
	clocks := []int64{now.UnixMilli()}
	for _, p := range *t.peers.Load() {
		if ms, ok := p.clock(now); ok {
			clocks = append(clocks, ms)
		}
	}
	return clocks
}

func (t *Transport) isSelf(node raft.NodeID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.state == stateStarted && node == t.identity.Self
}

// PeerStatus is one peer as status shows it.
type PeerStatus struct {
	PeerLiveness
	Addr          string
	QueueMessages int // waiting
	QueueBytes    int
}

// Peers are the peers, ascending.
func (t *Transport) Peers() []PeerStatus {
	var all []PeerStatus
	for _, p := range t.sortedPeers() {
		s := PeerStatus{PeerLiveness: p.liveness()}
		p.mu.Lock()
		s.QueueMessages, s.QueueBytes = p.queue.count, p.queue.bytes
		if p.line != nil {
			s.Addr = p.line.addr
		}
		p.mu.Unlock()
		all = append(all, s)
	}
	return all
}

// Stats are the counters now.
func (t *Transport) Stats() Stats { return t.count.read() }
