package peer

import (
	"slices"
	"sort"

	"github.com/flotilla-kv/flotilla/raft"
)

// memoryLog is the log of a peer: a raft.LogReader for the core, its encoded
// form for the persister, and the translation between the positions of the log
// and the commands that users count.
//
//	index      base  base+1  base+2  base+3
//	entry        |   no-op   put     put
//	command      7     -       8       9
//
// Slices of entries and their data are shared with the core; nothing that was
// handed out is ever written again.
type memoryLog struct {
	base         raft.Index // the log begins behind it
	baseTerm     raft.Term
	baseCommands int // how many entries through base are commands

	entries []raft.Entry
	noops   []raft.Index // of the entries that are no commands, ascending
	encoded encodedEntries
}

// FirstIndex implements raft.LogReader.
func (l *memoryLog) FirstIndex() raft.Index { return l.base + 1 }

// LastIndex implements raft.LogReader.
func (l *memoryLog) LastIndex() raft.Index { return l.base + raft.Index(len(l.entries)) }

// Term implements raft.LogReader.
func (l *memoryLog) Term(i raft.Index) (raft.Term, error) {
	switch {
	case i < l.base:
		return 0, raft.ErrCompacted
	case i == l.base:
		return l.baseTerm, nil
	case i > l.LastIndex():
		return 0, raft.ErrUnavailable
	}
	return l.entries[i-l.base-1].Term, nil
}

// Entries implements raft.LogReader.
func (l *memoryLog) Entries(lo, hi raft.Index, maxBytes int) ([]raft.Entry, error) {
	switch {
	case lo <= l.base:
		return nil, raft.ErrCompacted
	case hi > l.LastIndex()+1 || lo >= hi:
		return nil, raft.ErrUnavailable
	}
	es := l.entries[lo-l.base-1 : hi-l.base-1 : hi-l.base-1]
	n, bytes := 1, 0
	for n < len(es) && bytes+len(es[n].Data) <= maxBytes {
		bytes += len(es[n].Data)
		n++
	}
	return es[:n:n], nil
}

// lastTerm is that of the last entry.
func (l *memoryLog) lastTerm() raft.Term {
	if n := len(l.entries); n > 0 {
		return l.entries[n-1].Term
	}
	return l.baseTerm
}

// replace puts es in the place of everything from es[0].Index on.
func (l *memoryLog) replace(es []raft.Entry) {
	if len(es) == 0 {
		return
	}
	keep := int(es[0].Index - l.base - 1)
	if keep < len(l.entries) {
		l.entries = l.entries[:keep:keep]
		l.noops = l.noops[:l.noopsThrough(es[0].Index-1)]
		l.encoded.truncate(keep)
	}
	for i := range es {
		l.encoded.append(&es[i])
		l.entries = append(l.entries, es[i])
		if es[i].Kind != raft.EntryCommand {
			l.noops = append(l.noops, es[i].Index)
		}
	}
}

// compact drops the entries through i, which the log holds.
func (l *memoryLog) compact(i raft.Index) {
	n := int(i - l.base)
	l.baseCommands, l.baseTerm = l.commandsThrough(i), l.entries[n-1].Term
	l.noops = slices.Clone(l.noops[l.noopsThrough(i):])
	l.entries = slices.Clone(l.entries[n:])
	l.encoded.drop(n)
	l.base = i
}

// reset empties the log; it begins behind base.
func (l *memoryLog) reset(base raft.Index, term raft.Term, commands int) {
	*l = memoryLog{base: base, baseTerm: term, baseCommands: commands}
}

// noopsThrough counts the entries in (base, i] that are no commands.
func (l *memoryLog) noopsThrough(i raft.Index) int {
	return sort.Search(len(l.noops), func(n int) bool { return l.noops[n] > i })
}

// commandsThrough counts the commands through i, which is not before base nor
// beyond the end.
func (l *memoryLog) commandsThrough(i raft.Index) int {
	return l.baseCommands + int(i-l.base) - l.noopsThrough(i)
}

// indexOf is where a command lies; false: not in this log.
func (l *memoryLog) indexOf(command int) (raft.Index, bool) {
	if command <= l.baseCommands || command > l.commandsThrough(l.LastIndex()) {
		return 0, false
	}
	n := sort.Search(len(l.entries), func(n int) bool {
		return l.commandsThrough(l.base+1+raft.Index(n)) >= command
	})
	return l.base + 1 + raft.Index(n), true
}
