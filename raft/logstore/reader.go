package logstore

import (
	"errors"
	"fmt"
	"slices"

	"github.com/flotilla-kv/flotilla/raft"
)

// reader is a replica's log as the core reads it. Recent entries come from
// memory; older ones from the files.
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

// stored reads [lo, hi) from the files.
func (r reader) stored(lo, hi raft.Index, maxBytes int) (entries []raft.Entry, err error) {
	for next, bytes := lo, 0; next < hi; {
		run, ok := r.borrow(next)
		if !ok {
			break // compacted or truncated meanwhile
		}
		read, err := run.read(r.g.id, next, min(hi-1, run.last))
		run.segment.readers.Add(-1)
		if err != nil {
			err = fmt.Errorf("read log of group %d: %w", r.g.id.Group, err)
			r.store.stop.Fail(err)
			return nil, err
		}
		for _, e := range read {
			if len(entries) > 0 {
				if bytes += len(e.Data); bytes > maxBytes {
					return entries, nil
				}
			}
			entries = append(entries, e)
		}
		next = run.last + 1
	}
	if len(entries) == 0 {
		return nil, r.missing(lo)
	}
	return entries, nil
}

// borrow finds the run that holds index. Its segment stays as it is until its
// readers are taken down by one.
func (r reader) borrow(index raft.Index) (run, bool) {
	r.g.mu.RLock()
	defer r.g.mu.RUnlock()
	i, ok := r.g.findRun(index)
	if !ok || index <= r.g.begin.index {
		return run{}, false
	}
	found := r.g.runs[i]
	found.segment.readers.Add(1)
	return found, true
}

// findRun is the position of the run that holds index.
func (g *group) findRun(index raft.Index) (int, bool) {
	return slices.BinarySearchFunc(g.runs, index, func(r run, index raft.Index) int {
		switch {
		case r.last < index:
			return -1
		case r.first > index:
			return 1
		}
		return 0
	})
}

// read reads the entries lo..hi of a run. It is an error of the disk if they
// are not there as they were written.
func (r run) read(id raft.ReplicaKey, lo, hi raft.Index) ([]raft.Entry, error) {
	body := make([]byte, r.bytes)
	if _, err := r.segment.file.ReadAt(body, r.at); err != nil {
		return nil, fmt.Errorf("%s at %d: %w", r.segment.name, r.at, err)
	}
	stored, err := decodeEntries(body)
	if err == nil && stored.id != id {
		err = fmt.Errorf("the entries are those of group %d replica %d", stored.id.Group, stored.id.Replica)
	} else if err == nil && stored.next > lo {
		err = fmt.Errorf("the entries begin at %d, and %d was written there", stored.next, lo)
	}
	entries := make([]raft.Entry, 0, hi-lo+1)
	for err == nil && stored.next <= hi {
		var e raft.Entry
		if stored.count == 0 {
			err = fmt.Errorf("entry %d is not among them", stored.next)
		} else if e, err = stored.take(); err == nil && e.Index >= lo {
			entries = append(entries, e)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%s at %d: %w", r.segment.name, r.at, err)
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

// memberships reads the membership entries of the log.
func (r reader) memberships() ([]raft.IndexedMembership, error) {
	r.g.mu.RLock()
	indexes := slices.Clone(r.g.memberships)
	r.g.mu.RUnlock()
	var memberships []raft.IndexedMembership
	for _, i := range indexes {
		entries, err := r.Entries(i, i+1, 0)
		if errors.Is(err, raft.ErrCompacted) || errors.Is(err, raft.ErrUnavailable) {
			continue // meanwhile
		}
		if err != nil {
			return nil, err
		}
		m, err := raft.DecodeMembership(entries[0].Data)
		if err != nil {
			return nil, fmt.Errorf("membership entry %d: %w", i, err)
		}
		memberships = append(memberships, raft.IndexedMembership{Index: i, Term: entries[0].Term, Membership: m})
	}
	return memberships, nil
}
