package multiraft

import (
	"sync"

	"github.com/flotilla-kv/flotilla/raft"
)

// arrived is a message and the node that sent it.
type arrived struct {
	from raft.NodeID
	m    raft.Message
}

// ack says that a write of r is durable.
type ack struct {
	r     *replica
	ack   raft.WriteAck
	bytes int64
}

// turnInput is what others have left for a worker since its last turn, in the
// order in which it came, kind by kind.
type turnInput struct {
	acks      []ack
	applied   []*replica // their applied index moved
	messages  []arrived
	proposals []proposal
	reads     []read
	orders    []func() // run by the worker, between steps of its cores
}

// reset empties it and keeps its memory, unless a peak has blown it up.
func (in *turnInput) reset() {
	in.acks = emptied(in.acks)
	in.applied = emptied(in.applied)
	in.messages = emptied(in.messages)
	in.proposals = emptied(in.proposals)
	in.reads = emptied(in.reads)
	in.orders = emptied(in.orders)
}

// keptCapMax is how many elements of a queue's memory outlive a peak.
const keptCapMax = 1 << 14

func emptied[T any](s []T) []T {
	if cap(s) > keptCapMax {
		return nil
	}
	clear(s)
	return s[:0]
}

// inbox is where others leave word for a worker. Proposals are bounded by
// admission, reads by their count, acks and applied by what the worker handed
// out, and messages by bytesMax: those beyond it are dropped.
type inbox struct {
	bytesMax int64
	wake     chan struct{} // has one element if there is something to take

	mu     sync.Mutex // guards all below
	in     turnInput
	bytes  int64 // of messages
	closed bool
}

func newInbox(bytesMax int64) *inbox {
	return &inbox{bytesMax: bytesMax, wake: make(chan struct{}, 1)}
}

// put changes the input under the lock and wakes the worker; false: the worker
// has ended.
func (b *inbox) put(change func(in *turnInput)) bool {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return false
	}
	change(&b.in)
	b.mu.Unlock()
	b.signal()
	return true
}

func (b *inbox) signal() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

func (b *inbox) propose(p proposal) bool {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return false
	}
	b.in.proposals = append(b.in.proposals, p)
	b.mu.Unlock()
	b.signal()
	return true
}

func (b *inbox) read(rd read) bool {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return false
	}
	b.in.reads = append(b.in.reads, rd)
	b.mu.Unlock()
	b.signal()
	return true
}

func (b *inbox) acked(acks []ack) {
	b.put(func(in *turnInput) { in.acks = append(in.acks, acks...) })
}

func (b *inbox) wasApplied(r *replica) {
	b.put(func(in *turnInput) { in.applied = append(in.applied, r) })
}

func (b *inbox) order(fn func()) bool {
	return b.put(func(in *turnInput) { in.orders = append(in.orders, fn) })
}

// deliver takes in messages while there is room and returns how many were
// dropped.
func (b *inbox) deliver(from raft.NodeID, ms []raft.Message) (dropped int) {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return len(ms)
	}
	for i := range ms {
		if b.bytes >= b.bytesMax {
			dropped = len(ms) - i
			break
		}
		b.bytes += messageBytes(&ms[i])
		b.in.messages = append(b.in.messages, arrived{from, ms[i]})
	}
	b.mu.Unlock()
	b.signal()
	return dropped
}

// take swaps what has come for empty, which the caller has reset.
func (b *inbox) take(empty turnInput) turnInput {
	b.mu.Lock()
	defer b.mu.Unlock()
	in := b.in
	b.in = empty
	b.bytes = 0
	return in
}

// close takes the rest and lets nothing more in.
func (b *inbox) close() turnInput {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	in := b.in
	b.in = turnInput{}
	return in
}

// pending tells whether there is something to take.
func (b *inbox) pending() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	in := &b.in
	return len(in.acks)+len(in.applied)+len(in.messages)+len(in.proposals)+len(in.reads)+len(in.orders) > 0
}

// messageOverheadBytes stands for what a message or an entry takes beside its
// data.
const messageOverheadBytes = 64

func messageBytes(m *raft.Message) int64 {
	size := int64(messageOverheadBytes)
	if a, ok := m.Body.(*raft.AppendEntries); ok {
		size += entriesBytes(a.Entries)
	}
	return size
}

func entriesBytes(entries []raft.Entry) (size int64) {
	for i := range entries {
		size += int64(len(entries[i].Data)) + messageOverheadBytes
	}
	return size
}
