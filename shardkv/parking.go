package shardkv

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// Bounds of what waits for shards that are about to be served here.
const (
	parkedMax      = 16_384   // of a group
	parkedBytesMax = 64 << 20 // of their keys and values
	parkFor        = 500 * time.Millisecond
)

// parking holds requests for shards in a move: those that a group imports, whose
// source may have handed them off so that they are served in a moment, and those
// that it exports and that are written faster than the target follows.
type parking struct {
	slows atomic.Bool // some shard's requests wait by its pace

	mu     sync.Mutex // guards what follows
	parked []parkedCall
	bytes  int
	paces  map[shardmap.ShardID]*pace
	// opening are the shards whose Activate is being proposed, and whether it has
	// been. Writes need not wait for it then: they go into the log behind it.
	opening map[shardmap.ShardID]bool
	closed  bool
}

type parkedCall struct {
	call  *call
	shard shardmap.ShardID
	since time.Time
	until time.Time // by the shard's pace; zero: until it is served here
	bytes int
	goOn  func()
}

// park has a request wait if its shard is being imported here, or is slowed.
// What keep returns sends it on its way when that has ended.
func (s *Server) park(g *group, c *call, shard shardmap.ShardID, bytes int, keep func() func()) bool {
	waits := s.parkIn(g, parkedCall{call: c, shard: shard, since: s.now(), bytes: bytes}, keep)
	if waits {
		s.movers.look(g)
	}
	return waits
}

func (s *Server) parkIn(g *group, c parkedCall, keep func() func()) bool {
	p := &g.parking
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.slows.Load() {
		if waits, full := p.slow(c.since, c, keep); full {
			s.answer(c.call, tooMany(c.shard))
			return true
		} else if waits {
			return true
		}
	}
	x, importing := g.machine.movesNow().importing(c.shard) // after this lock was taken nobody releases what he does not see
	if !importing || x.record.state != shardImporting || p.goesBehind(&c) {
		return false
	}
	if p.closed {
		s.answer(c.call, stopping())
		return true
	}
	if len(p.parked) >= parkedMax || p.bytes+c.bytes > parkedBytesMax {
		s.answer(c.call, tooMany(c.shard))
		return true
	}
	c.goOn = keep()
	p.bytes += c.bytes
	p.parked = append(p.parked, c)
	return true
}

// release sends on their way the requests whose shard is imported no more, or
// whose time has come, in the order in which they came, and answers "busy" to
// those that have waited too long. It tells when to look again; 0: no need.
func (s *Server) release(g *group, now time.Time) (wait time.Duration) {
	var free, late []parkedCall
	p := &g.parking
	p.mu.Lock()
	moves := g.machine.movesNow()
	kept := p.parked[:0]
	for _, c := range p.parked {
		if c.stays(now, moves) && !p.paceEnded(&c) && !p.goesBehind(&c) {
			kept = append(kept, c)
			continue
		}
		p.bytes -= c.bytes
		if x := p.paces[c.shard]; x != nil && !c.until.IsZero() {
			x.queued--
		}
		switch x, importing := moves.importing(c.shard); {
		case c.call.answered.Load(): // its time was up
		case c.until.IsZero() && importing && x.record.state == shardImporting && !p.goesBehind(&c):
			late = append(late, c)
		default:
			free = append(free, c)
		}
	}
	clear(p.parked[len(kept):])
	p.parked = kept
	p.forgetPaces(now)
	switch {
	case p.slows.Load() && len(kept) > 0:
		wait = paceRelease
	case len(kept) > 0 || p.slows.Load():
		wait = moveLook
	}
	p.mu.Unlock()
	for _, c := range late {
		s.answer(c.call, busy("shard %d is moving here and is not served yet", c.shard))
	}
	for _, c := range free {
		c.goOn()
	}
	return wait
}

// goesBehind tells whether a request is a write that goes into the log behind
// its shard's Activate. If that is not applied, it is refused where it is.
func (p *parking) goesBehind(c *parkedCall) bool {
	return p.opening[c.shard] && c.call.changes && c.until.IsZero()
}

// expect says that a shard's Activate is going to be proposed.
func (p *parking) expect(shard shardmap.ShardID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.opening == nil {
		p.opening = make(map[shardmap.ShardID]bool)
	}
	p.opening[shard] = false
}

// open lets writes of a shard go behind its Activate, unless that is decided
// already.
func (p *parking) open(shard shardmap.ShardID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, undecided := p.opening[shard]; undecided {
		p.opening[shard] = true
	}
}

// shut ends what expect began: Activate is decided.
func (p *parking) shut(shard shardmap.ShardID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.opening, shard)
}

// paceEnded tells whether a request waits for a pace that is none any more.
func (p *parking) paceEnded(c *parkedCall) bool {
	x := p.paces[c.shard]
	return !c.until.IsZero() && (x == nil || x.interval == 0)
}

// stays tells whether a request goes on waiting.
func (c *parkedCall) stays(now time.Time, moves *moving) bool {
	if c.call.answered.Load() {
		return false
	}
	if !c.until.IsZero() {
		return now.Before(c.until)
	}
	x, importing := moves.importing(c.shard)
	return importing && x.record.state == shardImporting && now.Sub(c.since) < parkFor
}

func busy(format string, args ...any) *flotillav1.Response {
	return &flotillav1.Response{Code: flotillav1.Code_BUSY, Message: fmt.Sprintf(format, args...)}
}

// close takes no more, and returns what is left.
func (p *parking) close() []parkedCall {
	p.mu.Lock()
	defer p.mu.Unlock()
	left := p.parked
	p.parked, p.paces, p.closed = nil, nil, true
	p.slows.Store(false)
	return left
}

// parks tells whether anything waits, or may have to.
func (p *parking) parks() bool {
	if p.slows.Load() {
		return true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.parked) > 0
}
