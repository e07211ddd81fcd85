package logstore

import (
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/flotilla-kv/flotilla/raft"
)

// reader is a replica's log as the core reads it. Recent entries come from
// memory; older ones from Pebble.
type reader struct {
	store *Store
	g     *group
}

var _ raft.LogReader = reader{}

func (r reader) FirstIndex() raft.Index {
	r.g.mu.RLock()
	defer r.g.mu.RUnlock()
	return r.g.begin.index + 1
}

func (r reader) LastIndex() raft.Index {
	r.g.mu.RLock()
	defer r.g.mu.RUnlock()
	return r.g.last
}

func (r reader) Term(i raft.Index) (raft.Term, error) {
	r.g.mu.RLock()
	term, known, err := r.g.tailTerm(i)
	r.g.mu.RUnlock()
	if known || err != nil {
		return term, err
	}
	entries, err := r.stored(i, i+1, 0)
	if err != nil {
		return 0, err
	}
	return entries[0].Term, nil
}

func (r reader) Entries(lo, hi raft.Index, maxBytes int) ([]raft.Entry, error) {
	r.g.mu.RLock()
	entries, err := r.g.recent(lo, hi, maxBytes)
	r.g.mu.RUnlock()
	if entries != nil || err != nil {
		return entries, err
	}
	return r.stored(lo, hi, maxBytes)
}

// recent answers from the tail; nil if lo lies before it.
func (g *group) recent(lo, hi raft.Index, maxBytes int) ([]raft.Entry, error) {
	switch {
	case lo <= g.begin.index:
		return nil, raft.ErrCompacted
	case hi <= lo || hi > g.last+1:
		return nil, raft.ErrUnavailable
	case len(g.tail) == 0 || lo < g.tail[0].Index:
		return nil, nil
	}
	from := g.tail[lo-g.tail[0].Index : hi-g.tail[0].Index]
	return append([]raft.Entry(nil), from[:fit(from, maxBytes)]...), nil
}

// fit counts the entries from the first on that stay within maxBytes beyond
// it.
func fit(entries []raft.Entry, maxBytes int) int {
	bytes := 0
	for n, e := range entries[1:] {
		if bytes += len(e.Data); bytes > maxBytes {
			return n + 1
		}
	}
	return len(entries)
}

// stored reads [lo, hi) from Pebble.
func (r reader) stored(lo, hi raft.Index, maxBytes int) (entries []raft.Entry, err error) {
	iter, err := r.store.db.NewIter(&pebble.IterOptions{
		LowerBound: indexKey(kindEntry, r.g.id, lo),
		UpperBound: indexKey(kindEntry, r.g.id, hi),
	})
	if err != nil {
		return nil, fmt.Errorf("read log of group %d: %w", r.g.id.Group, err)
	}
	defer func() {
		if err = errors.Join(err, iter.Close()); err != nil {
			entries = nil
		}
	}()
	bytes := 0
	for ok := iter.First(); ok; ok = iter.Next() {
		index, _ := splitIndex(iter.Key())
		if index != lo+raft.Index(len(entries)) {
			break
		}
		e, err := decodeEntry(index, iter.Value())
		if err != nil {
			return nil, err
		}
		if len(entries) > 0 {
			if bytes += len(e.Data); bytes > maxBytes {
				break
			}
		}
		entries = append(entries, e)
	}
	if err := iter.Error(); err != nil {
		return nil, fmt.Errorf("read log of group %d: %w", r.g.id.Group, err)
	}
	if len(entries) == 0 {
		return nil, r.missing(lo)
	}
	return entries, nil
}

// missing explains why an entry is not stored: it was compacted while we read,
// or the caller asked for what it had truncated.
func (r reader) missing(i raft.Index) error {
	if i < r.FirstIndex() {
		return raft.ErrCompacted
	}
	return raft.ErrUnavailable
}
