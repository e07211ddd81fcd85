package shardkv

import (
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// A move converges if its target takes in what is touched faster than clients
// touch more. If it does not, though it makes progress, the requests for that
// shard go on one by one, at half the pace of the target. If the target asks for
// nothing, nobody waits for it.

// Bounds of slowing.
const (
	paceAfter   = 300 * time.Millisecond // of rounds that bring the target no nearer
	paceEvery   = 200 * time.Millisecond // the pace is measured
	paceMax     = 20 * time.Millisecond  // between two requests
	paceMin     = 20 * time.Microsecond  // less is no wait
	paceForgets = time.Second            // after the target's last question
	paceAhead   = 500 * time.Millisecond // that requests wait; more come again later
	paceRelease = 2 * time.Millisecond
	paceAtLeast = 8 // pages: a shorter backlog is none
	// paceTouches is what a request may touch: its key and its answer; and twice
	// as much, for the target has to come nearer.
	paceTouches = 2 * 2
)

// pace is how the requests for a shard in a move are slowed.
type pace struct {
	move     migrationID
	behind   time.Time     // since then no page was the last as of then; zero: the last one was
	pages    int           // since then
	measured time.Time     // since then touches were counted
	touches  int           // that the target has taken in
	asked    time.Time     // when the target asked last
	interval time.Duration // between two requests; 0: they do not wait
	queued   int           // requests that wait
	last     time.Time     // until when the latest of them does
}

// rounds notes that the target of a move takes in so many touches, and whether
// that is all there is.
func (p *parking) rounds(now time.Time, shard shardmap.ShardID, move migrationID, touches int, all bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	x := p.paces[shard]
	if x == nil || x.move != move {
		fresh := &pace{move: move}
		if x != nil { // those that wait still do
			fresh.queued, fresh.last = x.queued, x.last
		}
		x = fresh
		if p.paces == nil {
			p.paces = make(map[shardmap.ShardID]*pace)
		}
		p.paces[shard] = x
	}
	x.asked = now
	if all {
		x.behind = time.Time{}
		if x.interval /= 2; x.interval < paceMin {
			x.interval = 0
		}
		p.slows.Store(p.anySlow())
		return
	}
	if x.behind.IsZero() {
		x.behind, x.pages, x.measured, x.touches = now, 0, now, 0
	}
	x.pages++
	x.touches += touches
	since := now.Sub(x.measured)
	if x.pages >= paceAtLeast && now.Sub(x.behind) >= paceAfter && since >= paceEvery {
		x.interval = min(since*paceTouches/time.Duration(max(1, x.touches)), paceMax)
		x.measured, x.touches = now, 0
	}
	p.slows.Store(p.anySlow())
}

// anySlow tells whether some shard's requests wait.
func (p *parking) anySlow() bool {
	for _, x := range p.paces {
		if x.interval > 0 || x.queued > 0 {
			return true
		}
	}
	return false
}

// slow has a request wait if its shard's do; false: they do not.
func (p *parking) slow(now time.Time, c parkedCall, keep func() func()) (waits, full bool) {
	x := p.paces[c.shard]
	if x == nil {
		return false, false
	}
	if now.Sub(x.asked) > paceForgets {
		x.interval = 0
	}
	if x.queued == 0 && x.interval == 0 {
		return false, false
	}
	if len(p.parked) >= parkedMax || p.bytes+c.bytes > parkedBytesMax || x.last.Sub(now) > paceAhead {
		return true, true
	}
	x.queued++
	if c.until = x.last.Add(x.interval); c.until.Before(now) {
		c.until = now
	}
	x.last = c.until // none overtakes
	c.goOn = keep()
	p.bytes += c.bytes
	p.parked = append(p.parked, c)
	return true, false
}

// forgetPaces drops those whose target asks no more and for whom nobody waits.
func (p *parking) forgetPaces(now time.Time) {
	for shard, x := range p.paces {
		if x.queued == 0 && now.Sub(x.asked) > paceForgets {
			delete(p.paces, shard)
		}
	}
	p.slows.Store(p.anySlow())
}

// tooMany answers a request that cannot even wait.
func tooMany(shard shardmap.ShardID) *flotillav1.Response {
	return busy("shard %d is moving, and many wait for it", shard)
}
