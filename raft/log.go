package raft

import "sort"

// entryOverhead is what an entry costs beside its data, in all byte limits:
// an empty command is not free.
const entryOverhead = 32

// maxTailBytes bounds what the in-memory tail keeps of entries that are
// durable already (it then drops them; they are read through the LogReader
// when needed). What is not durable is always kept: there is no other copy.
const maxTailBytes = 8 << 20

// raftLog is the log as the core sees it: the durable part is read through a
// LogReader, the tail lies in memory. The tail holds everything that is not
// yet durable, and what is durable but not yet handed out to be applied.
//
//	base        tailFrom                          last
//	  |  durable, |  in memory                      |
//	  |  in the   |  ... durable ... written ...    |
//	  |  store    |                                 |
//
// Entries of the tail are shared with messages, writes and Ready.Committed, so
// no slot of it is ever written twice.
type raftLog struct {
	stable LogReader

	// The log begins behind base: it is the index of the last snapshot that
	// was installed, or where the stored log began at the start.
	base     Index
	baseTerm Term

	tail      []Entry
	tailFrom  Index // index of tail[0]; last+1 when empty
	tailBytes int

	last     Index
	lastTerm Term
	// All entries in [lastTermFrom, last] have lastTerm: the common questions
	// are answered without reading.
	lastTermFrom Index

	written Index // through here handed out in writes
	durable Index // through here on disk, and equal to this log
	commit  Index // commitIndex of figure 2
}

// openLog reads where the stored log begins and ends. All of it is durable.
func openLog(stable LogReader) (raftLog, error) {
	l := raftLog{stable: stable, base: stable.FirstIndex() - 1, last: stable.LastIndex()}
	var err error
	if l.base > 0 {
		if l.baseTerm, err = stable.Term(l.base); err != nil {
			return l, err
		}
	}
	if l.last > l.base {
		if l.lastTerm, err = stable.Term(l.last); err != nil {
			return l, err
		}
	} else {
		l.last, l.lastTerm = l.base, l.baseTerm
	}
	l.lastTermFrom, l.tailFrom = l.last, l.last+1
	l.written, l.durable = l.last, l.last
	return l, nil
}

// firstIndex is the first entry that can still be read.
func (l *raftLog) firstIndex() Index {
	return max(l.base+1, min(l.stable.FirstIndex(), l.tailFrom))
}

// term of the entry at i; ErrCompacted before the log, ErrUnavailable behind
// it.
func (l *raftLog) term(i Index) (Term, error) {
	switch {
	case i > l.last:
		return 0, ErrUnavailable
	case i >= l.lastTermFrom:
		return l.lastTerm, nil
	case i >= l.tailFrom:
		return l.tail[i-l.tailFrom].Term, nil
	case i == l.base:
		return l.baseTerm, nil
	case i < l.base:
		return 0, ErrCompacted
	}
	return l.stable.Term(i)
}

// matches tells whether the log has an entry of that term at i.
func (l *raftLog) matches(i Index, t Term) bool {
	have, err := l.term(i)
	return err == nil && have == t
}

// isUpToDate is the comparison of section 5.4.1: the later last term wins, and
// of equal ones the longer log.
func (l *raftLog) isUpToDate(lastIndex Index, lastTerm Term) bool {
	return lastTerm > l.lastTerm || lastTerm == l.lastTerm && lastIndex >= l.last
}

// entries returns some of [lo, hi), at least one and no more than maxBytes
// beyond the first. The slice is shared.
func (l *raftLog) entries(lo, hi Index, maxBytes int) ([]Entry, error) {
	if lo <= l.base {
		return nil, ErrCompacted
	}
	if lo < l.tailFrom {
		return l.stable.Entries(lo, min(hi, l.tailFrom), maxBytes)
	}
	from, to := lo-l.tailFrom, hi-l.tailFrom
	return limitBytes(l.tail[from:to:to], maxBytes), nil
}

// limitBytes cuts es to maxBytes, but not below one entry.
func limitBytes(es []Entry, maxBytes int) []Entry {
	total := 0
	for i := range es {
		total += entryBytes(&es[i])
		if total > maxBytes && i > 0 {
			return es[:i:i]
		}
	}
	return es
}

// append adds entries behind last. The caller has checked that they continue
// the log.
func (l *raftLog) append(es ...Entry) {
	for i := range es {
		if es[i].Term != l.lastTerm {
			l.lastTerm, l.lastTermFrom = es[i].Term, es[i].Index
		}
		l.last = es[i].Index
		l.tailBytes += entryBytes(&es[i])
	}
	l.tail = append(l.tail, es...)
}

// truncate drops everything behind last, whose entry has lastTerm.
func (l *raftLog) truncate(last Index, lastTerm Term) {
	invariant(last >= l.commit, "log is truncated to %d, below commitIndex %d", last, l.commit)
	if keep := int(last+1) - int(l.tailFrom); keep > 0 {
		for i := range l.tail[keep:] {
			l.tailBytes -= entryBytes(&l.tail[keep+i])
		}
		// The capacity is cut too: what follows must not overwrite entries
		// that messages and writes still share.
		l.tail = l.tail[:keep:keep]
	} else {
		l.tail, l.tailFrom, l.tailBytes = nil, last+1, 0
	}
	if last < l.lastTermFrom {
		l.lastTermFrom = last
	}
	l.last, l.lastTerm = last, lastTerm
	l.written, l.durable = min(l.written, last), min(l.durable, last)
}

// reset empties the log: it begins behind base. Nothing of it is durable until
// the write that says so is.
func (l *raftLog) reset(base Index, term Term) {
	l.base, l.baseTerm = base, term
	l.tail, l.tailFrom, l.tailBytes = nil, base+1, 0
	l.last, l.lastTerm, l.lastTermFrom = base, term, base
	l.written, l.durable = base, 0
	l.commit = max(l.commit, base)
}

// unwritten are the entries that no write has handed out yet.
func (l *raftLog) unwritten() []Entry {
	if l.written >= l.last {
		return nil
	}
	from := l.written + 1 - l.tailFrom
	return l.tail[from:len(l.tail):len(l.tail)]
}

// forget lets go of the memory of durable entries through handed, and of all
// durable ones if the tail is too large.
func (l *raftLog) forget(handed Index) {
	through := min(l.durable, handed)
	if l.tailBytes > maxTailBytes {
		through = l.durable
	}
	if through < l.tailFrom {
		return
	}
	n := int(through - l.tailFrom + 1)
	for i := range l.tail[:n] {
		l.tailBytes -= entryBytes(&l.tail[i])
	}
	l.tail, l.tailFrom = l.tail[n:], through+1
	if len(l.tail) == 0 {
		l.tail = nil
	}
}

// firstOfTerm returns the first index in (lo, hi] whose term is that of hi, t.
// Terms never fall along a log, so it is searched, not scanned.
func (l *raftLog) firstOfTerm(lo, hi Index, t Term) Index {
	n := sort.Search(int(hi-lo), func(n int) bool {
		have, err := l.term(lo + 1 + Index(n))
		return err == nil && have >= t
	})
	return lo + 1 + Index(n)
}

// lastNotAbove returns the last index in [lo, hi] whose term is at most t, or
// lo-1.
func (l *raftLog) lastNotAbove(lo, hi Index, t Term) Index {
	n := sort.Search(int(hi+1-lo), func(n int) bool {
		have, err := l.term(lo + Index(n))
		return err == nil && have > t
	})
	return lo + Index(n) - 1
}

func entryBytes(e *Entry) int { return len(e.Data) + entryOverhead }
