package peer

import (
	"errors"
	"fmt"
	"testing"

	"github.com/flotilla-kv/flotilla/raft"
	"pgregory.net/rapid"
)

// TestLogAgreesWithAList drives the log and a plain list of all that it ever
// held with the same writes, conflicts, compactions and resets.
func TestLogAgreesWithAList(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &logAndList{t: t, term: 1}
		t.Repeat(map[string]func(*rapid.T){
			"append":   func(*rapid.T) { w.append(w.last() + 1) },
			"conflict": func(t *rapid.T) { w.append(w.draw("from", w.log.base+1, w.last()+1)) },
			"compact":  w.compact,
			"reset":    w.reset,
			"":         func(*rapid.T) { w.compare() },
		})
	})
}

// logAndList is a log, and the list whose element i is entry i; entries that
// the log was reset over are only counted.
type logAndList struct {
	t        *rapid.T
	log      memoryLog
	list     []raft.Entry // from the first index on
	commands []int        // commands through list[i]
	term     raft.Term
}

func (w *logAndList) last() raft.Index { return raft.Index(len(w.list)) }

func (w *logAndList) draw(label string, lo, hi raft.Index) raft.Index {
	return raft.Index(rapid.Uint64Range(uint64(lo), uint64(hi)).Draw(w.t, label))
}

func (w *logAndList) put(e raft.Entry) {
	n := 0
	if len(w.commands) > 0 {
		n = w.commands[len(w.commands)-1]
	}
	if e.Kind == raft.EntryCommand {
		n++
	}
	w.list, w.commands = append(w.list, e), append(w.commands, n)
}

// append writes a few entries from an index on, in the place of what is there.
func (w *logAndList) append(from raft.Index) {
	w.list, w.commands = w.list[:from-1], w.commands[:from-1]
	w.term += raft.Term(rapid.IntRange(0, 2).Draw(w.t, "terms"))
	var es []raft.Entry
	for i := range rapid.IntRange(1, 5).Draw(w.t, "entries") {
		es = append(es, w.entry(from+raft.Index(i)))
		w.put(es[i])
	}
	w.log.replace(es)
}

func (w *logAndList) entry(i raft.Index) raft.Entry {
	e := raft.Entry{Index: i, Term: w.term, Kind: raft.EntryCommand, Data: []byte(fmt.Sprint(i, " of ", w.term))}
	if rapid.IntRange(0, 2).Draw(w.t, "kind") == 0 {
		e.Kind, e.Data = raft.EntryNoop, nil
	}
	return e
}

func (w *logAndList) compact(t *rapid.T) {
	if w.last() == w.log.base {
		t.Skip("nothing to compact")
	}
	w.log.compact(w.draw("through", w.log.base+1, w.last()))
}

// reset is a leader's snapshot far ahead.
func (w *logAndList) reset(t *rapid.T) {
	for range w.draw("ahead", 1, 5) {
		w.put(w.entry(w.last() + 1))
	}
	w.log.reset(w.last(), w.list[w.last()-1].Term, w.commands[w.last()-1])
}

func (w *logAndList) compare() {
	w.t.Helper()
	l := &w.log
	if l.LastIndex() != w.last() {
		w.t.Fatalf("the log ends at %d, the list at %d", l.LastIndex(), w.last())
	}
	for i := l.base + 1; i <= w.last(); i++ {
		e := &w.list[i-1]
		if term, err := l.Term(i); err != nil || term != e.Term {
			w.t.Fatalf("entry %d has term %d (%v), the list's has %d", i, term, err, e.Term)
		}
		if n := l.commandsThrough(i); n != w.commands[i-1] {
			w.t.Fatalf("through entry %d the log counts %d commands, the list %d", i, n, w.commands[i-1])
		}
		if at, ok := l.indexOf(w.commands[i-1]); e.Kind == raft.EntryCommand && (!ok || at != i) {
			w.t.Fatalf("command %d is at entry %d (%t), in the list at %d", w.commands[i-1], at, ok, i)
		}
	}
	for _, n := range []int{0, l.baseCommands, l.commandsThrough(w.last()) + 1} {
		if at, ok := l.indexOf(n); ok {
			w.t.Fatalf("command %d, which is not in the log, is at entry %d", n, at)
		}
	}
	if _, err := l.Entries(l.base, w.last()+1, 100); !errors.Is(err, raft.ErrCompacted) {
		w.t.Fatalf("the entry at base: %v", err)
	}
	w.compareEncoded()
}

// compareEncoded reads the log back from its encoded form.
func (w *logAndList) compareEncoded() {
	w.t.Helper()
	es, err := decodeEntries(w.log.encoded.bytes, w.log.base)
	if err != nil || len(es) != len(w.log.entries) {
		w.t.Fatalf("%d entries are decoded as %d: %v", len(w.log.entries), len(es), err)
	}
	for i := range es {
		if have := w.list[es[i].Index-1]; !sameEntry(&es[i], &have) || !sameEntry(&w.log.entries[i], &have) {
			w.t.Fatalf("entry %+v is decoded as %+v, in the list %+v", w.log.entries[i], es[i], have)
		}
	}
}

func sameEntry(a, b *raft.Entry) bool {
	return a.Index == b.Index && a.Term == b.Term && a.Kind == b.Kind && string(a.Data) == string(b.Data)
}
