package transport

import (
	"time"

	"github.com/flotilla-kv/flotilla/raft"
)

// ping is one liveness message.
type ping struct {
	boot      uint64        // the sender's
	seq       uint64        // counts the sender's pings to the receiver, from 1
	clock     int64         // the sender's, unix ms
	echoBoot  uint64        // the receiver's boot number as last heard; 0: nothing heard
	echoSeq   uint64        // the receiver's last ping heard
	echoDelay time.Duration // since then
	rtt       time.Duration // as the sender measured it; -1: unknown
}

// sentMax is how many of our last pings are remembered with the time they were
// sent; an echo of an older one proves nothing that would still count.
const sentMax = 64

// clockHold is how long a clock reading is preferred over later ones that were
// longer on the way. After it, a clock that was set back is believed; at once,
// if it went back by more than clockLagMax, which no ping of a peer that is up
// takes. Otherwise a clock that was wrong for a moment would count for seconds,
// and a second one, wrong a moment later, would make it two at once.
const (
	clockHold   = 5 * time.Second
	clockLagMax = time.Second
)

// link is what this node knows of a peer's liveness. It is a value that is
// stepped: pings and times in, state out. A peer is up if it was heard, and is
// known to have heard us, within the time allowed, both since the last break.
type link struct {
	self uint64 // our boot number

	seq   uint64             // of our last ping
	sent  [sentMax]time.Time // when ping i was sent, at i mod sentMax
	floor uint64             // echoes of pings up to here prove nothing

	boot     uint64 // as last heard; 0: never heard
	heardSeq uint64
	heardAt  time.Time
	provenAt time.Time // when the latest ping that the peer is known to have heard was sent
	rtt      time.Duration
	clock    int64     // the peer's at clockAt, unix ms
	clockAt  time.Time // zero: unknown

	up    bool
	downs uint64 // how often it went down: tells two ups apart
	told  told
}

// told is what the handler was last told of a peer.
type told struct {
	up    bool
	downs uint64
}

func newLink(self uint64) link { return link{self: self, rtt: -1} }

// next is the ping to send now; clock is the node's own, unix ms.
func (l *link) next(now time.Time, clock int64) ping {
	l.seq++
	l.sent[l.seq%sentMax] = now
	p := ping{boot: l.self, seq: l.seq, clock: clock, rtt: l.rtt}
	if l.boot != 0 {
		p.echoBoot, p.echoSeq, p.echoDelay = l.boot, l.heardSeq, now.Sub(l.heardAt)
	}
	return p
}

// heard takes in a ping of the peer. A boot number that is new is the death of
// the process that was there; it returns true for that and for the first.
func (l *link) heard(now time.Time, p ping, suspectAfter time.Duration) (newBoot bool) {
	if p.boot != l.boot {
		newBoot = true
		l.down() // its echoes are its own: no process knows what the one before it heard
		l.boot, l.heardSeq = p.boot, 0
		l.rtt, l.clockAt = -1, time.Time{}
	}
	if p.seq <= l.heardSeq {
		return newBoot // a late one: an echo of it would run backwards
	}
	l.heardSeq, l.heardAt = p.seq, now
	l.echoed(now, p)
	l.readClock(now, p.clock)
	if !l.up && l.fresh(now, suspectAfter) {
		l.up = true
	}
	return newBoot
}

// echoed learns from the echo which of our pings was heard.
func (l *link) echoed(now time.Time, p ping) {
	if p.echoBoot != l.self || p.echoSeq <= l.floor || p.echoSeq > l.seq || l.seq-p.echoSeq >= sentMax {
		return
	}
	sent := l.sent[p.echoSeq%sentMax]
	if sent.After(l.provenAt) {
		l.provenAt = sent
	}
	if rtt := now.Sub(sent) - p.echoDelay; rtt >= 0 && p.echoDelay >= 0 {
		l.rtt = rtt
	}
}

// readClock keeps the reading that was least delayed: a delay can only make the
// peer's clock look slow.
func (l *link) readClock(now time.Time, clock int64) {
	ahead := clock - l.clockNow(now)
	if l.clockAt.IsZero() || now.Sub(l.clockAt) > clockHold || ahead >= 0 || ahead < -clockLagMax.Milliseconds() {
		l.clock, l.clockAt = clock, now
	}
}

// clockNow is the peer's clock now, as far as one can tell.
func (l *link) clockNow(now time.Time) int64 { return l.clock + now.Sub(l.clockAt).Milliseconds() }

func (l *link) fresh(now time.Time, within time.Duration) bool {
	return now.Sub(l.heardAt) < within && now.Sub(l.provenAt) < within
}

// expire takes the peer down if it was silent, or deaf, for too long.
func (l *link) expire(now time.Time, suspectAfter time.Duration) (down bool) {
	if !l.up || l.fresh(now, suspectAfter) {
		return false
	}
	l.broken()
	return true
}

// broken takes the peer down: it was silent for too long, or its connection was
// refused or reset. Nothing that it heard before counts any more.
func (l *link) broken() (down bool) {
	l.floor = l.seq
	return l.down()
}

func (l *link) down() (wasUp bool) {
	l.provenAt = time.Time{}
	if !l.up {
		return false
	}
	l.up = false
	l.downs++
	return true
}

// news is what the handler has to be told: a down, an up, or a down and then
// an up, if the peer was down in between. A removed peer is down.
func (l *link) news(removed bool) (down, up bool) {
	isUp := l.up && !removed
	down = l.told.up && (!isUp || l.told.downs != l.downs)
	up = isUp && (down || !l.told.up)
	l.told = told{up: isUp, downs: l.downs}
	return down, up
}

// Liveness is what a node knows of one other node's liveness, as a value that
// is stepped with pings and times: what the transport runs over its streams,
// for whoever carries the pings in another way. Not safe for concurrent use.
type Liveness struct{ link link }

// Ping is one liveness message.
type Ping struct{ ping ping }

// NewLiveness has heard nothing yet. boot is the number of this node's life.
func NewLiveness(boot uint64) *Liveness { return &Liveness{link: newLink(boot)} }

// Next is the ping to send now. clock is this node's, unix ms.
func (l *Liveness) Next(now time.Time, clock int64) Ping { return Ping{l.link.next(now, clock)} }

// Heard takes in a ping of the other node; News tells what it changed.
func (l *Liveness) Heard(now time.Time, p Ping, suspectAfter time.Duration) {
	l.link.heard(now, p.ping, suspectAfter)
}

// Expire takes the node down if it was silent, or deaf, for too long.
func (l *Liveness) Expire(now time.Time, suspectAfter time.Duration) {
	l.link.expire(now, suspectAfter)
}

// Broken takes the node down: its connection was refused or reset.
func (l *Liveness) Broken() { l.link.broken() }

// News is what changed since it was last asked: a death, a (new) life with its
// boot number, or a death and then a life.
func (l *Liveness) News() (down, up bool, boot uint64) {
	down, up = l.link.news(false)
	return down, up, l.link.boot
}

// Up tells whether the node is alive: it is heard, and known to hear us.
func (l *Liveness) Up() bool { return l.link.up }

// Clock is the node's clock now, unix ms, while it is up.
func (l *Liveness) Clock(now time.Time) (ms int64, ok bool) {
	return l.link.clockNow(now), l.link.up && !l.link.clockAt.IsZero()
}

// PeerLiveness is what is known of a peer's liveness.
type PeerLiveness struct {
	Node raft.NodeID
	Up   bool   // heard, and known to hear us, within SuspectAfter
	Boot uint64 // as last heard; 0: never heard
	// HeardAt is when the last ping came; zero: never.
	HeardAt time.Time
	// ProvenAt is when the latest of our pings that the peer is known to have
	// heard was sent; zero: none since the last break. What the peer promises on
	// hearing us, it promised no earlier than that.
	ProvenAt time.Time
	RTT      time.Duration // -1: unknown
}
