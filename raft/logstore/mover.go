package logstore

import "github.com/flotilla-kv/flotilla/raft"

const (
	// moveBytesMax bounds what one turn moves: it delays the turn's answers.
	moveBytesMax = 1 << 20
	// slackSegments: so many segments the log may take beyond twice of what
	// counts in it before anything is moved.
	slackSegments = 4
)

// mover empties the oldest segment when little of what the files hold still
// counts: a group that seldom writes keeps its entries for long, and must not
// keep the files in which they lie among others'. It belongs to the writer.
type mover struct {
	from   *segment
	number uint64 // of from: a file may be used again
	left   []moveItem
}

type moveItem struct {
	g     *group
	first raft.Index // of the run
}

// encode adds some of the oldest segment's entries to the turn.
func (m *mover) encode(s *Store, t *turn) {
	if m.from != s.files.used[0] || m.number != m.from.header.number {
		m.left = nil // it has become free by itself
	}
	if len(m.left) == 0 {
		m.choose(s)
	}
	for moved := 0; len(m.left) > 0 && moved < moveBytesMax; m.left = m.left[1:] {
		moved += m.move(s, t, m.left[0])
	}
}

// choose lists what counts in the oldest segment if the files have become too
// large for what they hold.
func (m *mover) choose(s *Store) {
	size, live := s.files.bytes()
	if len(s.files.used) < 2 || size <= 2*live+slackSegments*s.files.maximum {
		return
	}
	m.from, m.left = s.files.used[0], nil
	m.number = m.from.header.number
	for _, g := range s.all() {
		g.mu.RLock()
		for _, r := range g.runs {
			if r.segment == m.from {
				m.left = append(m.left, moveItem{g, r.first})
			}
		}
		g.mu.RUnlock()
	}
}

// move adds one run to the turn, if it is still there, and returns its bytes.
func (m *mover) move(s *Store, t *turn, item moveItem) int {
	g := item.g
	g.mu.RLock()
	i, ok := g.findRun(item.first)
	if !ok || g.runs[i].segment != m.from {
		g.mu.RUnlock()
		return 0
	}
	r := g.runs[i]
	lo := max(r.first, g.begin.index+1)
	g.mu.RUnlock()
	entries, err := r.read(g.id, lo, r.last)
	if err != nil {
		s.stop.Fail(err)
		return 0
	}
	at, length := s.frame.entries(recordMoved, g.id, entries)
	t.moved = append(t.moved, move{g, run{first: lo, last: r.last, segment: s.files.active(), at: t.base + int64(at), bytes: int32(length)}})
	return length
}

// moved takes the new place of a run into account.
func (g *group) moved(r run) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.moveRun(r)
}
