package shardkv

import (
	"fmt"
	"sync"
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

// parking holds requests for shards that a group imports: their source may have
// handed them off, and then they are served in a moment.
type parking struct {
	mu     sync.Mutex // guards what follows
	parked []parkedCall
	bytes  int
	closed bool
}

type parkedCall struct {
	call  *call
	shard shardmap.ShardID
	since time.Time
	bytes int
	goOn  func()
}

// park has a request wait if its shard is being imported here. goOn sends it on
// its way when that has ended.
func (s *Server) park(g *group, c *call, shard shardmap.ShardID, bytes int, goOn func()) bool {
	waits := s.parkIn(g, c, shard, bytes, goOn)
	if waits {
		s.movers.look(g)
	}
	return waits
}

func (s *Server) parkIn(g *group, c *call, shard shardmap.ShardID, bytes int, goOn func()) bool {
	p := &g.parking
	p.mu.Lock()
	defer p.mu.Unlock()
	x, importing := g.machine.movesNow().importing(shard) // after this lock was taken nobody releases what he does not see
	if !importing || x.record.state != shardImporting {
		return false
	}
	if p.closed {
		s.answer(c, stopping())
		return true
	}
	if len(p.parked) >= parkedMax || p.bytes+bytes > parkedBytesMax {
		s.answer(c, &flotillav1.Response{Code: flotillav1.Code_BUSY, Message: fmt.Sprintf("shard %d is moving here, and many wait for it", shard)})
		return true
	}
	p.bytes += bytes
	p.parked = append(p.parked, parkedCall{call: c, shard: shard, since: s.now(), bytes: bytes, goOn: goOn})
	return true
}

// release sends on their way the requests whose shard is imported no more, in
// the order in which they came, and answers "busy" to those that have waited too
// long.
func (s *Server) release(g *group, now time.Time) {
	var free []parkedCall
	p := &g.parking
	p.mu.Lock()
	moves := g.machine.movesNow()
	kept := p.parked[:0]
	for _, c := range p.parked {
		x, importing := moves.importing(c.shard)
		switch {
		case c.call.answered.Load(): // its time was up
			p.bytes -= c.bytes
		case !importing || x.record.state != shardImporting || now.Sub(c.since) >= parkFor:
			p.bytes -= c.bytes
			free = append(free, c)
		default:
			kept = append(kept, c)
		}
	}
	clear(p.parked[len(kept):])
	p.parked = kept
	p.mu.Unlock()
	for _, c := range free {
		if x, importing := moves.importing(c.shard); importing && x.record.state == shardImporting {
			s.answer(c.call, &flotillav1.Response{Code: flotillav1.Code_BUSY, Message: fmt.Sprintf("shard %d is moving here and is not served yet", c.shard)})
			continue
		}
		c.goOn()
	}
}

// close takes no more, and returns what is left.
func (p *parking) close() []parkedCall {
	p.mu.Lock()
	defer p.mu.Unlock()
	left := p.parked
	p.parked, p.closed = nil, true
	return left
}

// parks tells whether anything waits.
func (p *parking) parks() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.parked) > 0
}
