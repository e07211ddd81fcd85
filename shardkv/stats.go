package shardkv

import (
	"sync/atomic"
	"time"
)

// Stats are counts since the server began, and what is there now.
type Stats struct {
	Watches          int    // streams
	WatchEvents      uint64 // that were sent
	WatchesCompacted uint64 // shards of watches that asked for what is not kept, or fell behind it
	ShardsMoved      uint64 // taken in by groups that were led here
	Parked           int    // requests that wait for a shard that moves
}

// stats are counted where it happens.
type stats struct {
	watchEvents, watchesCompacted, shardsMoved atomic.Uint64
}

// Stats are those of now.
func (s *Server) Stats() Stats {
	all := Stats{
		WatchEvents:      s.stats.watchEvents.Load(),
		WatchesCompacted: s.stats.watchesCompacted.Load(),
		ShardsMoved:      s.stats.shardsMoved.Load(),
		Watches:          s.watches.count(),
	}
	s.groups.Range(func(_, g any) bool {
		all.Parked += g.(*group).parking.count()
		return true
	})
	return all
}

// movePaused notes that a shard is served here, after so long; 0: not known.
func (s *Server) movePaused(pause time.Duration) {
	s.stats.shardsMoved.Add(1)
	if s.options.MovePaused != nil && pause > 0 {
		s.options.MovePaused(pause)
	}
}

func (s *watches) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.all)
}

func (p *parking) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.parked)
}
