package shardkv

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/raft/multiraft"
)

// movers drives the imports of the groups that are led here.
type movers struct {
	mu    sync.Mutex // guards what follows
	byKey map[moverKey]*mover
	// groups are those with imports, or with requests that wait for one.
	groups map[raft.GroupID]*group
	rests  map[raft.GroupID]time.Time // until when a group that took a shard in, or gave one away, begins with no other
	wake   chan struct{}              // has an element when something may have to be done
}

func newMovers() *movers {
	return &movers{byKey: make(map[moverKey]*mover), groups: make(map[raft.GroupID]*group), rests: make(map[raft.GroupID]time.Time), wake: make(chan struct{}, 1)}
}

// A group rests between moves, at either end, for several times as long as the last
// one took beyond what one takes when there is nothing else to do: what is served
// keeps most of a busy machine, and an idle one is soon done with many.
const (
	restTimes = 20
	restAfter = 10 * time.Millisecond
	restMax   = time.Second
)

// begin is a mover of a group whose turn comes when the group has rested.
func (m *movers) begin(id raft.GroupID) *mover { return &mover{retry: m.rests[id]} }

// end drops a mover that is not needed here any more.
func (m *movers) end(key moverKey, now time.Time) {
	m.noteRest(key.group, m.byKey[key].began, now)
	delete(m.byKey, key)
}

// noteRest has a group rest after a move that began at a moment; zero: it did
// not, or not here.
func (m *movers) noteRest(id raft.GroupID, began, now time.Time) {
	if over := now.Sub(began) - restAfter; over > 0 && !began.IsZero() {
		if until := now.Add(min(restTimes*over, restMax)); until.After(m.rests[id]) {
			m.rests[id] = until
		}
	}
}

// gaveAway has a group rest that began to give a shard away at a moment.
func (m *movers) gaveAway(id raft.GroupID, began, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.noteRest(id, began, now)
}

// resting is how long a group still rests.
func (m *movers) resting(id raft.GroupID, now time.Time) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.rests[id].Sub(now)
}

// look has a group looked at soon, and from then on as long as it has imports.
func (m *movers) look(g *group) {
	m.mu.Lock()
	m.groups[g.id] = g
	m.mu.Unlock()
	signal(m.wake)
}

// forget drops a group that was removed.
func (m *movers) forget(g *group) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.groups[g.id] == g {
		delete(m.groups, g.id)
	}
}

// moved hears that a move of a group has gone on.
func (m *movers) moved(g *group) {
	m.mu.Lock()
	known := m.groups[g.id] == g
	m.mu.Unlock()
	if known {
		signal(m.wake)
	} else if len(g.machine.movesNow().imports) > 0 {
		m.look(g)
	}
}

// busy are the groups to be looked at, ascending.
func (m *movers) busy() []*group {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.SortedFunc(maps.Values(m.groups), func(a, b *group) int { return cmp.Compare(a.id, b.id) })
}

// rest takes groups out that have nothing to be looked at. What comes up in the
// meantime puts them in again, behind this lock.
func (m *movers) rest(groups []*group) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, g := range groups {
		if len(g.machine.movesNow().imports) == 0 && !g.parking.parks() && m.groups[g.id] == g {
			delete(m.groups, g.id)
		}
	}
}

// moveLook is how often imports are looked at though nothing was heard.
const moveLook = 100 * time.Millisecond

// run drives them until ctx ends.
func (s *Server) driveMoves(ctx context.Context) {
	timer := time.NewTimer(moveLook)
	defer timer.Stop()
	for {
		wait := s.driveOnce(time.Now())
		if wait == 0 {
			wait = time.Hour // somebody wakes us
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return
		case <-s.movers.wake:
		case <-timer.C:
		}
	}
}

// driveOnce has each import do what it can do now, and tells when to look
// again; 0: not before something happens.
func (s *Server) driveOnce(now time.Time) (wait time.Duration) {
	host := s.host.Load()
	if host == nil || s.options.Pull == nil || s.ctx.Err() != nil {
		return 0
	}
	present := make(map[moverKey]bool)
	busy := s.movers.busy()
	defer s.movers.rest(busy)
	for _, g := range busy {
		if g.parking.parks() {
			wait = sooner(wait, s.release(g, now))
		}
		imports := g.machine.movesNow().imports
		if len(imports) == 0 || !s.leads(*host, g.id) {
			continue
		}
		wait = sooner(wait, moveLook)
		for i := range imports {
			key := moverKey{g.id, imports[i].shard, imports[i].record.move}
			present[key] = true
			s.driveImport(*host, g, key, &imports[i], now)
		}
	}
	s.movers.mu.Lock()
	defer s.movers.mu.Unlock()
	for key := range s.movers.byKey {
		if !present[key] {
			s.movers.end(key, now)
		}
	}
	maps.DeleteFunc(s.movers.rests, func(_ raft.GroupID, until time.Time) bool { return !until.After(now) })
	return wait
}

// sooner is the shorter of two waits of which 0 is for ever.
func sooner(a, b time.Duration) time.Duration {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

// driveImport takes one turn of an import.
func (s *Server) driveImport(host Host, g *group, key moverKey, x *importStatus, now time.Time) {
	s.movers.mu.Lock()
	v := s.movers.byKey[key]
	if v == nil {
		v = s.movers.begin(g.id)
		s.movers.byKey[key] = v
	}
	act := v.turn(now, x)
	s.movers.mu.Unlock()
	switch {
	case act.ask != nil:
		act.ask.ClusterId, act.ask.ToGroup = s.options.ClusterID(), uint64(g.id)
		s.options.Pull(act.ask, func(r *flotillav1.PullResponse) {
			s.moverHears(func(now time.Time) { v.answered(now, act.ask, r) })
		})
	case act.entries != nil:
		s.proposeEntries(host, g, v, act.entries, now)
	case act.compare != nil || act.addUp:
		s.aside(func() {
			differs, err := s.readBack(g, key, act.compare)
			if differs != "" {
				s.logger.Error("a shard is stored otherwise than it was handed off; both copies are kept", "group", g.id, "shard", key.shard, "migration", key.move, "differs", differs)
			}
			s.moverHears(func(now time.Time) { v.compares(now, act.compare, differs, err) })
		})
	}
}

// Moving counts the shards of a group that are in a move, as committed here.
func (s *Server) Moving(id raft.GroupID) int {
	g := s.group(id)
	if g == nil {
		return 0
	}
	moves := g.machine.movesNow()
	return len(moves.exports) + len(moves.imports)
}

// errMoving: the state went on while it was looked at.
var errMoving = errors.New("the state has changed meanwhile")

// readBack compares a page of the source's copy with what is stored here, or,
// without a page, the digest of what is stored with the one that was kept.
func (s *Server) readBack(g *group, key moverKey, page *heardPage) (differing string, err error) {
	view, err := g.replica.View()
	if err != nil {
		return "", err
	}
	defer view.Close()
	moves := g.machine.movesNow() // after the view, which shows no clear that this does not
	x, importing := moves.importing(key.shard)
	if !importing || x.record.move != key.move {
		return "", errMoving
	}
	if page != nil {
		return differs(view, &x, itemsFromWire(page.GetItems()))
	}
	if applied, _, _, err := view.Applied(); err != nil || applied != moves.applied {
		return "", errors.Join(err, errMoving)
	}
	d, err := addUp(view, key.shard, x.record.incarnation, func() bool { return s.ctx.Err() != nil })
	if err = errors.Join(err, s.ctx.Err()); err == nil && d != x.in.digest {
		differing = "the digest"
	}
	return differing, err
}

// aside does what may take long beside the movers, unless the server has no
// goroutines.
func (s *Server) aside(f func()) {
	if s.options.Manual {
		f()
		return
	}
	s.scans.add(f)
}

// proposeEntries has entries of a move committed, in order. What waits to be
// written follows Activate at once.
func (s *Server) proposeEntries(host Host, g *group, v *mover, entries []*move, now time.Time) {
	left, applied := len(entries), true
	last := entries[len(entries)-1]
	if last.kind == moveActivate {
		g.parking.expect(last.shard)
	}
	for _, c := range entries {
		host.ProposeUrgent(g.id, encodeCommand(c), func(res multiraft.Result) {
			if c.kind == moveActivate {
				g.parking.shut(c.shard)
			}
			s.moverHears(func(now time.Time) {
				a, ok := res.Value.(*answer)
				applied = applied && res.Err == nil && ok && a.refused == flotillav1.Code_OK
				if left--; left == 0 {
					if v.activate && applied {
						s.movePaused(v.pausedFor(now))
					}
					v.proposed(now, applied)
				}
			})
		})
	}
	if last.kind == moveActivate {
		g.parking.open(last.shard)
		s.release(g, now)
	}
}

// moverHears has a mover take something in.
func (s *Server) moverHears(take func(now time.Time)) {
	s.movers.mu.Lock()
	take(s.now())
	s.movers.mu.Unlock()
	signal(s.movers.wake)
}

// now is the time by which movers wait: a server without goroutines is told it.
func (s *Server) now() time.Time {
	if s.options.Manual {
		return s.turned
	}
	return time.Now()
}

func (s *Server) sortedGroups() []*group {
	var all []*group
	s.groups.Range(func(_, v any) bool {
		all = append(all, v.(*group))
		return true
	})
	slices.SortFunc(all, func(a, b *group) int { return cmp.Compare(a.id, b.id) })
	return all
}

// scans reads copies of shards beside all else, one after the other. There are
// at most two for each move.
type scans struct {
	mu      sync.Mutex // guards what follows
	queue   []func()   // each ends soon once the server's context has
	closed  bool
	arrived chan struct{}
}

func newScans() *scans { return &scans{arrived: make(chan struct{}, 1)} }

// add queues something to read. After the end it is called at once.
func (q *scans) add(f func()) {
	q.mu.Lock()
	closed := q.closed
	if !closed {
		q.queue = append(q.queue, f)
	}
	q.mu.Unlock()
	if closed {
		f()
		return
	}
	signal(q.arrived)
}

func (q *scans) pop() func() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.queue) == 0 {
		return nil
	}
	f := q.queue[0]
	q.queue = q.queue[1:]
	return f
}

// runScans reads until ctx ends, and then ends what is left.
func (s *Server) runScans(ctx context.Context) {
	q := s.scans
	for ctx.Err() == nil {
		if f := q.pop(); f != nil {
			f()
			continue
		}
		select {
		case <-ctx.Done():
		case <-q.arrived:
		}
	}
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	for f := q.pop(); f != nil; f = q.pop() {
		f()
	}
}

// scanBase adds up a copy that is being exported.
func (s *Server) scanBase(scan *baseScan) {
	s.aside(func() {
		if s.ctx.Err() != nil {
			scan.ended.Store(true)
		}
		stop := context.AfterFunc(s.ctx, func() { scan.ended.Store(true) })
		defer stop()
		if err := scan.run(); err != nil {
			s.logger.Error("a moving shard cannot be added up", "shard", scan.shard, "error", err)
		}
		signal(s.movers.wake)
	})
}
