package statestore

import (
	"slices"
	"sync"
	"time"
)

// sparesKeep is how often tables are dropped that nobody took since the last
// time.
const sparesKeep = 10 * time.Second

// spares keeps the memory of a store's tables for use again: a table that
// begins anew would grow step by step, copying what it has into memory that is
// touched for the first time. The garbage collector would empty a sync.Pool
// long before the next drain.
type spares struct {
	room int // bytes, of all together

	mu     sync.Mutex
	tables []*table
	bytes  int         // their capacity
	least  int         // of tables, since the last drop
	drop   *time.Timer // runs while there are tables
}

// take is a table that holds nothing.
func (s *spares) take() *table {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.tables) - 1
	if n < 0 {
		return new(table)
	}
	t := s.tables[n]
	s.tables[n] = nil
	s.tables = s.tables[:n]
	s.bytes -= t.capacity()
	s.least = min(s.least, n)
	return t
}

// give takes a table back, unless views look at it or there is no room.
func (s *spares) give(t *table) {
	if t.views.Load() > 0 {
		return
	}
	t.reset()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bytes+t.capacity() > s.room {
		return
	}
	s.tables = append(s.tables, t)
	s.bytes += t.capacity()
	if s.drop == nil {
		s.drop = time.AfterFunc(sparesKeep, s.dropUnused)
	}
}

// dropUnused drops as many as were never taken lately.
func (s *spares) dropUnused() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.tables[:s.least] {
		s.bytes -= t.capacity()
	}
	s.tables = slices.Delete(s.tables, 0, s.least)
	s.least = len(s.tables)
	s.drop = nil
	if len(s.tables) > 0 {
		s.drop = time.AfterFunc(sparesKeep, s.dropUnused)
	}
}

// close drops all.
func (s *spares) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tables, s.bytes, s.least = nil, 0, 0
	if s.drop != nil {
		s.drop.Stop()
	}
}
