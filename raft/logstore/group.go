package logstore

import (
	"fmt"
	"slices"
	"sync"

	"github.com/flotilla-kv/flotilla/raft"
)

// group is what the store knows in memory of one replica's log. Only the
// writer changes it (in the order of the log); readers take the lock.
type group struct {
	id    raft.ReplicaKey
	stale bool // during Open: the checkpoint being read has not named it

	mu       sync.RWMutex // guards all below
	record   Record
	hard     raft.HardState
	begin    beginning // the first entry is begin.index+1
	last     raft.Index
	lastTerm raft.Term
	// tail is an end of the log without gaps: empty, or its last entry is last.
	tail      []raft.Entry
	tailBytes int
	// runs says where in the files the entries lie, ascending and without gaps.
	runs  []run
	sizes sizeLedger
	// memberships are the indexes of the log's membership entries, ascending.
	memberships []raft.Index
}

// run is a record of entries in a segment. Of its entries those count that lie
// in first..last and behind the log's beginning.
type run struct {
	first, last raft.Index
	segment     *segment
	at          int64 // of the record's body
	bytes       int32 // of the body
}

func entryBytes(e raft.Entry) int { return len(e.Data) + entryOverheadBytes }

// check says whether w fits behind the log as it is.
func (g *group) check(w raft.Write) error {
	g.mu.RLock()
	defer g.mu.RUnlock()
	begin, last := g.begin.index, g.last
	if w.Reset != nil {
		begin, last = w.Reset.Index, w.Reset.Index
	}
	for i, e := range w.Entries {
		first := w.Entries[0].Index
		switch {
		case i == 0 && e.Index <= begin:
			return &WriteError{ID: g.id, What: fmt.Sprintf("entry %d lies behind the log's beginning %d", e.Index, begin+1)}
		case i == 0 && e.Index > last+1:
			return &WriteError{ID: g.id, What: fmt.Sprintf("entry %d leaves a gap behind %d", e.Index, last)}
		case e.Index != first+raft.Index(i):
			return &WriteError{ID: g.id, What: fmt.Sprintf("entry %d follows %d", e.Index, first+raft.Index(i)-1)}
		}
	}
	return nil
}

// reset empties the log; it begins behind mark. It returns how many bytes left
// the tail.
func (g *group) reset(mark raft.SnapshotMark) (freed int) {
	freed = g.tailBytes
	g.begin = beginning{index: mark.Index, term: mark.Term, mark: &mark}
	g.last, g.lastTerm = mark.Index, mark.Term
	g.tail, g.tailBytes = nil, 0
	g.sizes = sizeLedger{}
	g.memberships = nil
	g.dropRuns(len(g.runs))
	return freed
}

// dropRuns forgets the first n runs.
func (g *group) dropRuns(n int) {
	for i := range n {
		g.runs[i].segment.live -= int64(g.runs[i].bytes)
		g.runs[i] = run{}
	}
	if g.runs = g.runs[n:]; len(g.runs) == 0 {
		g.runs = nil
	}
}

// cutRuns forgets where the entries from index on lie.
func (g *group) cutRuns(index raft.Index) {
	for n := len(g.runs); n > 0 && g.runs[n-1].last >= index; n-- {
		r := &g.runs[n-1]
		if r.first < index && index-1 > g.begin.index { // else nothing of it is left
			r.last = index - 1
			return
		}
		r.segment.live -= int64(r.bytes)
		*r = run{}
		g.runs = g.runs[:n-1]
	}
}

// addRun notes where entries that follow last lie.
func (g *group) addRun(r run) {
	r.segment.live += int64(r.bytes)
	g.runs = append(g.runs, r)
}

// moveRun notes that the entries of r lie somewhere else now. It does nothing
// unless they are one run's, as far as that still counts. At Open that run may
// be in a file that is gone.
func (g *group) moveRun(r run) {
	i, _ := slices.BinarySearchFunc(g.runs, r.first, func(old run, first raft.Index) int {
		if old.last < first {
			return -1
		}
		return 1
	})
	if i < len(g.runs) && g.runs[i].first <= r.last {
		g.runs[i].segment.live -= int64(g.runs[i].bytes)
		r.last = min(r.last, g.runs[i].last)
		g.runs[i] = r
	} else {
		g.runs = slices.Insert(g.runs, i, r)
	}
	r.segment.live += int64(r.bytes)
}

// gap is the first index of the log that no run holds; false if there is none.
func (g *group) gap() (raft.Index, bool) {
	next := g.begin.index + 1
	for _, r := range g.runs {
		if r.first > next {
			return next, true
		}
		next = r.last + 1
	}
	return next, next <= g.last
}

// truncate forgets the entries from index on; lastTerm is left to append,
// which follows.
func (g *group) truncate(index raft.Index) (freed int) {
	g.sizes.dropFrom(index)
	for n := len(g.memberships); n > 0 && g.memberships[n-1] >= index; n-- {
		g.memberships = g.memberships[:n-1]
	}
	g.last = index - 1
	g.cutRuns(index)
	keep := len(g.tail)
	for keep > 0 && g.tail[keep-1].Index >= index {
		keep--
		freed += entryBytes(g.tail[keep])
		g.tail[keep] = raft.Entry{}
	}
	g.tail = g.tail[:keep]
	g.tailBytes -= freed
	return freed
}

// append adds entries that follow last and lie at r. It returns how many bytes
// joined the tail.
func (g *group) append(entries []raft.Entry, r run) (added int) {
	for i := range entries {
		g.extend(&entries[i])
		added += entryBytes(entries[i])
	}
	g.addRun(r)
	g.tail = append(g.tail, entries...)
	g.tailBytes += added
	return added
}

// extend notes an entry that follows last.
func (g *group) extend(e *raft.Entry) {
	g.sizes.add(e.Index, int64(entryBytes(*e)))
	if e.Kind == raft.EntryMembership {
		g.memberships = append(g.memberships, e.Index)
	}
	g.last, g.lastTerm = e.Index, e.Term
}

// compact forgets the entries through b.index.
func (g *group) compact(b beginning) (freed int) {
	g.begin = b
	g.sizes.dropThrough(b.index)
	n := 0
	for n < len(g.runs) && g.runs[n].last <= b.index {
		n++
	}
	g.dropRuns(n)
	for len(g.memberships) > 0 && g.memberships[0] <= b.index {
		g.memberships = g.memberships[1:]
	}
	return g.evict(b.index)
}

// evict takes the entries through index out of the tail.
func (g *group) evict(through raft.Index) (freed int) {
	n := 0
	for n < len(g.tail) && g.tail[n].Index <= through {
		freed += entryBytes(g.tail[n])
		g.tail[n] = raft.Entry{}
		n++
	}
	g.tail = g.tail[n:]
	if len(g.tail) == 0 {
		g.tail = nil
	}
	g.tailBytes -= freed
	return freed
}

// tailTerm answers for what needs no disk.
func (g *group) tailTerm(i raft.Index) (term raft.Term, known bool, err error) {
	switch {
	case i < g.begin.index:
		return 0, false, raft.ErrCompacted
	case i > g.last:
		return 0, false, raft.ErrUnavailable
	case i == g.begin.index:
		return g.begin.term, true, nil
	case i == g.last:
		return g.lastTerm, true, nil
	case len(g.tail) > 0 && i >= g.tail[0].Index:
		return g.tail[i-g.tail[0].Index].Term, true, nil
	}
	return 0, false, nil
}

// tailRunsMax bounds the list of what is in the tails.
const tailRunsMax = 1 << 16

// tailBudget evicts the oldest entries of all tails when they exceed their
// budget. It belongs to the writer.
type tailBudget struct {
	limit, bytes int
	runs         []tailRun // a queue: oldest first
}

// tailRun says that the entries through last joined g's tail together. Some
// may have left it since.
type tailRun struct {
	g    *group
	last raft.Index
}

func (b *tailBudget) joined(g *group, last raft.Index, bytes int) {
	b.bytes += bytes
	b.runs = append(b.runs, tailRun{g, last})
}

func (b *tailBudget) left(bytes int) { b.bytes -= bytes }

func (b *tailBudget) enforce() {
	n := 0
	for n < len(b.runs) && (b.bytes > b.limit || len(b.runs)-n > tailRunsMax) {
		run := b.runs[n]
		run.g.mu.Lock()
		b.bytes -= run.g.evict(run.last)
		run.g.mu.Unlock()
		b.runs[n] = tailRun{}
		n++
	}
	b.runs = b.runs[n:]
}
