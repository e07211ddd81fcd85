package shardctrler

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// Times of the map source.
const (
	freshCheck      = 250 * time.Millisecond // how often it looks whether the local replica is (still) up to date
	watchBackoffMin = 20 * time.Millisecond
	watchBackoffMax = 500 * time.Millisecond
	saveEvery       = 5 * time.Second // of a change in nothing but shards
	// How long a stream is given to bring a newer map before somebody's wish
	// for one ends it; it doubles as long as none brings any.
	patienceMin = 250 * time.Millisecond
	patienceMax = 4 * time.Second
)

// MapSource is a node's one watch on the config, shared by its groups, clients
// and callers. While this node has an up-to-date replica of the config group,
// the map comes from its applied state; otherwise from a stream that a node
// which has one sends. What was once known is kept: the higher revision wins,
// and for one shard the higher generation.
type MapSource struct {
	view    view
	save    func([]byte) error
	logger  *slog.Logger
	changed signal
	kick    chan struct{} // has an element if somebody wants a newer map at once

	mu      sync.Mutex // guards all below
	cluster string     // "" until known; maps of others are refused
	current *shardmap.Map

	saved savedMap // of the goroutine that runs the source
}

// savedMap is what was last given to be remembered.
type savedMap struct {
	m  *shardmap.Map
	at time.Time
}

// view is what the map source sees of its node.
type view interface {
	// local is this node's replica of the config group; fresh says that it is
	// up to date as far as it can tell.
	local() (m *Machine, fresh bool)
	// addrs are the gRPC addresses under which a node may be found.
	addrs(raft.NodeID) []string
	// peerAddrs are the addresses of nodes of this cluster that gossip told of.
	peerAddrs() []string
	self() raft.NodeID
	dial(addr string) (grpc.ClientConnInterface, error)
	// news is closed when local, peerAddrs or the config group's leader may
	// have changed.
	news() <-chan struct{}
}

func newMapSource(v view, save func([]byte) error, logger *slog.Logger) *MapSource {
	return &MapSource{view: v, save: save, logger: logger, kick: make(chan struct{}, 1)}
}

// Current is the latest map known, nil before the first. It is never modified.
func (s *MapSource) Current() *shardmap.Map {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current
}

// Changed returns a channel that is closed when a newer map is known. Take it
// before Current, and no change is missed.
func (s *MapSource) Changed() <-chan struct{} { return s.changed.wait() }

// Refresh asks for a map newer than revision after, soon. It does not wait:
// Changed tells.
func (s *MapSource) Refresh(after uint64) {
	if m := s.Current(); m != nil && m.Revision > after {
		return
	}
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// belong fixes the cluster whose maps are taken.
func (s *MapSource) belong(cluster string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cluster = cluster
	if s.current != nil && s.current.ClusterID != cluster {
		s.current = nil
	}
}

// offer takes over what is newer in m and tells whether anything was.
func (s *MapSource) offer(m *shardmap.Map) bool {
	if m == nil || !s.take(m) {
		return false
	}
	s.changed.fire()
	return true
}

func (s *MapSource) take(m *shardmap.Map) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m.ClusterID != s.cluster {
		return false
	}
	merged := shardmap.Merge(s.current, m)
	if merged == s.current {
		return false
	}
	s.current = merged
	return true
}

// run follows the config until ctx ends.
func (s *MapSource) run(ctx context.Context) {
	w := &watcher{source: s}
	for ctx.Err() == nil {
		w.turn(ctx)
		s.remember(time.Now())
	}
}

// watcher is the state of the loop that follows the config.
type watcher struct {
	source   *MapSource
	next     int // which address is tried next
	backoff  time.Duration
	patience time.Duration
}

// turn follows one origin until it has something to say or fails.
func (w *watcher) turn(ctx context.Context) {
	s := w.source
	news := s.view.news()
	machine, fresh := s.view.local()
	if fresh {
		w.backoff = 0
		changed := machine.Changed()
		s.offer(machine.Map())
		s.pause(ctx, freshCheck, changed, news)
		return
	}
	addr := w.address()
	if addr == "" {
		s.pause(ctx, freshCheck, nil, news)
		return
	}
	if w.stream(ctx, addr) {
		w.backoff, w.patience = 0, 0
	} else {
		w.next++
	}
	w.backoff = min(max(watchBackoffMin, w.backoff*3/2), watchBackoffMax)
	s.pause(ctx, w.backoff, nil, news)
}

// pause waits, at most for d, for one of the reasons to look again.
func (s *MapSource) pause(ctx context.Context, d time.Duration, changed, news <-chan struct{}) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-changed:
	case <-news:
	case <-s.kick:
	}
}

// address is where to watch next: the nodes that have the config group, as far
// as is known, then whoever gossip tells of. Before the node belongs to a
// cluster there is nobody to watch.
func (w *watcher) address() string {
	if w.source.view.self() == 0 {
		return ""
	}
	addrs := w.source.origins()
	if len(addrs) == 0 {
		return ""
	}
	return addrs[w.next%len(addrs)]
}

// origins lists the addresses of others that may have the config.
func (s *MapSource) origins() []string {
	var addrs []string
	for _, node := range configNodes(s.Current()) {
		if node != s.view.self() {
			addrs = append(addrs, s.view.addrs(node)...)
		}
	}
	for _, a := range s.view.peerAddrs() {
		if !slices.Contains(addrs, a) {
			addrs = append(addrs, a)
		}
	}
	return addrs
}

// configNodes are the nodes that have a replica of the config group, voters
// first.
func configNodes(m *shardmap.Map) []raft.NodeID {
	if m == nil {
		return nil
	}
	g, _ := m.Group(raft.ConfigGroup)
	var voters, learners []raft.NodeID
	for _, member := range g.Members {
		if member.Learner {
			learners = append(learners, member.Node)
		} else {
			voters = append(voters, member.Node)
		}
	}
	return append(voters, learners...)
}

// stream takes maps from one node until it fails, or until the local replica
// is up to date; it tells whether anything new came.
func (w *watcher) stream(ctx context.Context, addr string) (got bool) {
	s := w.source
	conn, err := s.view.dial(addr)
	if err != nil {
		return false
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var after uint64
	if m := s.Current(); m != nil {
		after = m.Revision
	}
	stream, err := flotillav1.NewClusterClient(conn).WatchMap(ctx, &flotillav1.WatchMapRequest{AfterRevision: after, Origin: true})
	if err != nil {
		return false
	}
	guard := w.guard(ctx, cancel)
	defer func() { cancel(); <-guard }()
	for {
		update, err := stream.Recv()
		if err != nil {
			return got
		}
		m, err := mapFromWire(update)
		if err != nil {
			s.logger.Warn("a map was refused", "addr", addr, "error", err)
			return got
		}
		got = s.offer(m) || got
		s.remember(time.Now())
	}
}

// guard cancels a stream as soon as the local replica is up to date, or when
// somebody wants a newer map than it brings. Who wants one asks again and again,
// faster than a stream begins: each is given time to bring something. The
// channel is closed at its end.
func (w *watcher) guard(ctx context.Context, cancel context.CancelFunc) <-chan struct{} {
	s := w.source
	w.patience = min(max(w.patience*2, patienceMin), patienceMax)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer cancel()
		known, since := s.Current(), time.Now()
		for ctx.Err() == nil {
			news := s.view.news()
			if _, fresh := s.view.local(); fresh {
				return
			}
			if m := s.Current(); m != known {
				known, since = m, time.Now()
			}
			look, kick := freshCheck, s.kick
			if left := w.patience - time.Since(since); left > 0 {
				look, kick = min(look, left), nil
			}
			timer := time.NewTimer(look)
			select {
			case <-ctx.Done():
			case <-news:
			case <-timer.C:
			case <-kick:
				if s.Current() == known {
					timer.Stop()
					return
				}
			}
			timer.Stop()
		}
	}()
	return ended
}

// remember gives the map to be kept over a restart: at once if nodes or groups
// changed, otherwise now and then.
func (s *MapSource) remember(now time.Time) {
	m := s.Current()
	if s.save == nil || m == nil || m == s.saved.m {
		return
	}
	if !placesDiffer(s.saved.m, m) && now.Sub(s.saved.at) < saveEvery {
		return
	}
	b, err := EncodeMap(m)
	if err == nil {
		err = s.save(b)
	}
	if err != nil {
		s.logger.Warn("the map could not be remembered", "error", err)
	}
	s.saved = savedMap{m, now}
}

// placesDiffer tells whether a restart would look for something elsewhere.
func placesDiffer(a, b *shardmap.Map) bool {
	if a == nil || b == nil {
		return a != b
	}
	return !slices.Equal(a.Nodes, b.Nodes) || !slices.EqualFunc(a.Groups, b.Groups, func(a, b shardmap.Group) bool {
		return a.ID == b.ID && slices.Equal(a.Members, b.Members)
	})
}
