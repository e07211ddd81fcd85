package shardkv

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft/multiraft"
)

// movers drives the imports of the groups that are led here.
type movers struct {
	mu    sync.Mutex // guards what follows
	byKey map[moverKey]*mover
	wake  chan struct{} // has an element when something may have to be done
}

func newMovers() *movers {
	return &movers{byKey: make(map[moverKey]*mover), wake: make(chan struct{}, 1)}
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
	if host == nil || s.options.Pull == nil {
		return 0
	}
	present := make(map[moverKey]bool)
	for _, g := range s.sortedGroups() {
		if g.parking.parks() {
			s.release(g, now)
			wait = moveLook
		}
		imports := g.machine.movesNow().imports
		if len(imports) == 0 || !s.leads(*host, g.id) {
			continue
		}
		wait = moveLook
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
			delete(s.movers.byKey, key)
		}
	}
	return wait
}

// driveImport takes one turn of an import.
func (s *Server) driveImport(host Host, g *group, key moverKey, x *importStatus, now time.Time) {
	s.movers.mu.Lock()
	v := s.movers.byKey[key]
	if v == nil {
		v = new(mover)
		s.movers.byKey[key] = v
	}
	ask, entries := v.turn(now, x)
	s.movers.mu.Unlock()
	if ask != nil {
		ask.ClusterId, ask.ToGroup = s.options.ClusterID(), uint64(g.id)
		s.options.Pull(ask, func(r *flotillav1.PullResponse) {
			s.moverHears(func(now time.Time) { v.answered(now, ask, r) })
		})
	}
	s.proposeEntries(host, g, v, entries)
}

// proposeEntries has entries of a move committed, in order.
func (s *Server) proposeEntries(host Host, g *group, v *mover, entries []*move) {
	left, applied := len(entries), true
	for _, c := range entries {
		host.ProposeUrgent(g.id, encodeCommand(c), func(res multiraft.Result) {
			s.moverHears(func(now time.Time) {
				a, ok := res.Value.(*answer)
				applied = applied && res.Err == nil && ok && a.refused == flotillav1.Code_OK
				if left--; left == 0 {
					v.proposed(now, applied)
				}
			})
		})
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

// scans adds up copies of shards, one after the other.
type scans struct {
	mu      sync.Mutex // guards what follows
	queue   []*baseScan
	closed  bool
	arrived chan struct{}
}

func newScans() *scans { return &scans{arrived: make(chan struct{}, 1)} }

// push queues a scan. After close its view is closed at once.
func (q *scans) push(scan *baseScan) {
	q.mu.Lock()
	closed := q.closed
	if !closed {
		q.queue = append(q.queue, scan)
	}
	q.mu.Unlock()
	if closed {
		scan.view.Close()
		return
	}
	signal(q.arrived)
}

func (q *scans) pop() *baseScan {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.queue) == 0 {
		return nil
	}
	scan := q.queue[0]
	q.queue = q.queue[1:]
	return scan
}

// run scans until ctx ends, and then closes the views of what is left.
func (s *Server) runScans(ctx context.Context) {
	q := s.scans
	for ctx.Err() == nil {
		scan := q.pop()
		if scan == nil {
			select {
			case <-ctx.Done():
			case <-q.arrived:
			}
			continue
		}
		stop := context.AfterFunc(ctx, func() { scan.ended.Store(true) })
		if err := scan.run(); err != nil {
			s.logger.Error("a moving shard cannot be added up", "shard", scan.shard, "error", err)
		}
		stop()
		signal(s.movers.wake)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	for _, scan := range q.queue {
		scan.view.Close()
	}
	q.queue = nil
}
