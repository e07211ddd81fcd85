package transport

import (
	"sync"
	"time"

	"github.com/flotilla-kv/flotilla/raft"
)

// peer is another node: what waits for it, what is known of its liveness, and
// the line to it.
type peer struct {
	id   raft.NodeID
	wake chan struct{} // has an element if something was queued
	kick chan struct{} // has an element if a ping is due at once

	mu      sync.Mutex // guards all below; nothing is called under it
	queue   queue
	link    link
	line    *line
	revived chan struct{} // closed and replaced when a peer that is not up is heard
	removed bool
}

func newPeer(id raft.NodeID, self Identity, limits Limits) *peer {
	return &peer{
		id:      id,
		wake:    make(chan struct{}, 1),
		kick:    make(chan struct{}, 1),
		queue:   queue{messagesMax: limits.QueueMessages, bytesMax: limits.QueueBytes},
		link:    newLink(self.Boot),
		revived: make(chan struct{}),
	}
}

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// push queues messages; it returns how many old ones they displaced.
func (p *peer) push(ms []raft.Message) (dropped int) {
	p.mu.Lock()
	for i := range ms {
		dropped += p.queue.push(ms[i])
	}
	p.mu.Unlock()
	signal(p.wake)
	return dropped
}

func (p *peer) take(into []raft.Message, bytesMax int) []raft.Message {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.queue.take(into, bytesMax, batchMessagesMax)
}

func (p *peer) clearQueue() (dropped int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.queue.clear()
}

func (p *peer) nextPing(now time.Time) ping {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.link.next(now, now.UnixMilli())
}

// heard takes in a ping; changed tells whether the peer went up or down by it.
func (p *peer) heard(now time.Time, in ping, suspectAfter time.Duration) (changed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	up, downs := p.link.up, p.link.downs
	if p.link.heard(now, in, suspectAfter) {
		signal(p.kick) // it waits for an echo as we do: do not let it wait for a tick
	}
	if !up {
		close(p.revived)
		p.revived = make(chan struct{})
	}
	return p.link.up != up || p.link.downs != downs
}

func (p *peer) broken() (down bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.link.broken()
}

func (p *peer) expire(now time.Time, suspectAfter time.Duration) (down bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.link.expire(now, suspectAfter)
}

func (p *peer) up() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.link.up
}

func (p *peer) currentLine() *line {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.line
}

func (p *peer) revival() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.revived
}

func (p *peer) liveness() PeerLiveness {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := &p.link
	return PeerLiveness{Node: p.id, Up: l.up, Boot: l.boot, HeardAt: l.heardAt, ProvenAt: l.provenAt, RTT: l.rtt}
}

// clock is the peer's clock now, unix ms.
func (p *peer) clock(now time.Time) (ms int64, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.link.clockNow(now), p.link.up && !p.link.clockAt.IsZero()
}

// news is what the handler has to be told; see link.news.
func (p *peer) news() (down, up bool, boot uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	down, up = p.link.news(p.removed)
	return down, up, p.link.boot
}
