package logstore

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"pgregory.net/rapid"

	"github.com/flotilla-kv/flotilla/raft"
)

// pair drives the store on Pebble and the model with the same operations and
// compares them. Every operation is waited for, so what a crash leaves is
// determined, except for compactions, which are not synced.
type pair struct {
	t     *rapid.T
	fs    *vfs.MemFS
	real  *Store
	model *Model
	ms    *ModelStore
	term  raft.Term
}

func newPair(t *rapid.T) *pair {
	p := &pair{t: t, fs: vfs.NewCrashableMem(), model: NewModel()}
	p.open()
	both(p, func(s store) error { return s.SetIdentity(Identity{Node: 1}) })
	return p
}

// store is what both have in common.
type store interface {
	Append([]Write, func(error))
	Compact(raft.ReplicaKey, raft.Index)
	Create(raft.ReplicaKey, raft.Membership) error
	Remove(raft.ReplicaKey) error
	SetIdentity(Identity) error
	Identity() (Identity, bool)
	MarkSuspect() error
	ClearSuspect(raft.ReplicaKey) error
	Replicas() []Record
	Load(raft.ReplicaKey) (State, error)
	Reader(raft.ReplicaKey) raft.LogReader
	Cut() bool
	Close() error
}

var (
	_ store = (*Store)(nil)
	_ store = (*ModelStore)(nil)
)

func (p *pair) options() Options {
	return Options{
		Dir: "log", FS: p.fs, Logger: quiet(), SegmentBytes: 4 << 10, TailBytes: 2 << 10,
		OnFatal: func(err error) { panic(err) },
	}
}

func (p *pair) open() {
	var err error
	if p.real, err = Open(p.options()); err != nil {
		p.t.Fatalf("open: %v", err)
	}
	if p.ms, err = p.model.Open(); err != nil {
		p.t.Fatalf("open model: %v", err)
	}
}

// both does the same to both and compares the errors.
func both(p *pair, do func(store) error) {
	p.t.Helper()
	real, model := do(p.real), do(p.ms)
	if errorKind(real) != errorKind(model) {
		p.t.Fatalf("the store says %v, the model %v", real, model)
	}
}

func errorKind(err error) string {
	var refused *WriteError
	switch {
	case err == nil:
		return "none"
	case errors.As(err, &refused):
		return "write"
	}
	for _, known := range []error{ErrOldReplica, ErrNoReplica, ErrClosed, raft.ErrCompacted, raft.ErrUnavailable} {
		if errors.Is(err, known) {
			return known.Error()
		}
	}
	return "other: " + err.Error()
}

func (p *pair) id() raft.ReplicaKey {
	return key(rapid.Uint64Range(2, 4).Draw(p.t, "group"), rapid.Uint64Range(1, 6).Draw(p.t, "replica"))
}

// live prefers a replica that exists.
func (p *pair) live() raft.ReplicaKey {
	records := p.ms.Replicas()
	if len(records) == 0 || rapid.IntRange(0, 19).Draw(p.t, "any") == 0 {
		return p.id()
	}
	return rapid.SampledFrom(records).Draw(p.t, "replica").ID
}

func (p *pair) create(*rapid.T) {
	id := p.id()
	first := raft.Membership{}
	if rapid.Bool().Draw(p.t, "born") {
		first = membership(1)
	}
	both(p, func(s store) error { return s.Create(id, first) })
}

func (p *pair) remove(*rapid.T) {
	id := p.live()
	both(p, func(s store) error { return s.Remove(id) })
}

// write makes a write that usually fits: behind the end, or overwriting some
// of it.
func (p *pair) write(id raft.ReplicaKey) raft.Write {
	var w raft.Write
	state, _ := p.ms.Load(id)
	first, last := state.First, state.Last
	if rapid.IntRange(0, 9).Draw(p.t, "reset") == 0 {
		mark := raft.SnapshotMark{Index: last + raft.Index(rapid.IntRange(0, 50).Draw(p.t, "ahead")), Term: p.term, Membership: membership(3)}
		w.Reset = &mark
		first, last = mark.Index+1, mark.Index
	}
	if rapid.IntRange(0, 2).Draw(p.t, "vote") == 0 {
		w.HardState = &raft.HardState{Term: p.term, Vote: raft.ReplicaID(rapid.Uint64Range(0, 3).Draw(p.t, "for"))}
	}
	p.term += raft.Term(rapid.IntRange(0, 1).Draw(p.t, "term"))
	at := last + 1
	switch rapid.IntRange(0, 9).Draw(p.t, "where") {
	case 0, 1:
		at = raft.Index(rapid.Uint64Range(uint64(first), uint64(last+1)).Draw(p.t, "at"))
	case 2:
		at = raft.Index(rapid.Uint64Range(0, uint64(last+3)).Draw(p.t, "at"))
	}
	for i := range rapid.IntRange(0, 60).Draw(p.t, "entries") {
		e := raft.Entry{Index: at + raft.Index(i), Term: p.term, Kind: raft.EntryCommand, Data: []byte(fmt.Sprint("data ", p.term, i))}
		if rapid.IntRange(0, 9).Draw(p.t, "membership") == 0 {
			e.Kind, e.Data = raft.EntryMembership, encoded(uint64(e.Index))
		}
		w.Entries = append(w.Entries, e)
	}
	return w
}

func (p *pair) append(*rapid.T) {
	var writes []Write
	seen := map[raft.ReplicaKey]bool{}
	for range rapid.IntRange(1, 3).Draw(p.t, "writes") {
		if id := p.live(); !seen[id] {
			seen[id] = true
			writes = append(writes, Write{ID: id, Write: p.write(id)})
		}
	}
	both(p, func(s store) error {
		result := make(chan error, 1)
		s.Append(writes, func(err error) { result <- err })
		p.model.SyncAll()
		return <-result
	})
}

func (p *pair) compact(*rapid.T) {
	id := p.live()
	r := p.ms.Reader(id)
	through := raft.Index(rapid.Uint64Range(uint64(r.FirstIndex())-1, uint64(r.LastIndex())+2).Draw(p.t, "through"))
	p.real.Compact(id, through)
	p.ms.Compact(id, through)
	want := r.FirstIndex()
	waitFor(p.t, func() bool { return p.real.Reader(id).FirstIndex() == want })
}

func (p *pair) suspect(*rapid.T) {
	if rapid.Bool().Draw(p.t, "mark") {
		both(p, func(s store) error { return s.MarkSuspect() })
		return
	}
	id := p.live()
	both(p, func(s store) error { return s.ClearSuspect(id) })
}

func (p *pair) reopen(*rapid.T) {
	both(p, func(s store) error { return s.Close() })
	p.open()
}

// crash loses what is not synced. Whether a compaction was is Pebble's to say.
func (p *pair) crash(*rapid.T) {
	firsts := map[raft.ReplicaKey]raft.Index{}
	for _, r := range p.ms.Replicas() {
		firsts[r.ID] = p.ms.Reader(r.ID).FirstIndex()
	}
	clone := p.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 0, RNG: rand.New(rand.NewPCG(1, 1))})
	if err := p.real.Close(); err != nil {
		p.t.Fatalf("close: %v", err)
	}
	p.fs = clone
	p.model.Crash()
	p.open()
	for id, first := range firsts {
		if r := p.real.Reader(id); r.FirstIndex() == first && p.ms.Reader(id).FirstIndex() != first {
			p.ms.Compact(id, first-1)
		}
	}
	if p.real.Cut() {
		p.t.Fatal("a crash is taken for a cut log")
	}
}

// compare checks that both hold the same.
func (p *pair) compare(*rapid.T) {
	real, model := p.real.Replicas(), p.ms.Replicas()
	if fmt.Sprint(real) != fmt.Sprint(model) {
		p.t.Fatalf("replicas are %v, in the model %v", real, model)
	}
	for _, record := range model {
		p.compareReplica(record.ID)
	}
	if got, want := tailBytes(p.real), p.real.tails.bytes; got != want {
		p.t.Fatalf("tails hold %d bytes, the budget counts %d", got, want)
	}
}

func (p *pair) compareReplica(id raft.ReplicaKey) {
	real, err := p.real.Load(id)
	if err != nil {
		p.t.Fatalf("load %v: %v", id, err)
	}
	model, err := p.ms.Load(id)
	if err != nil {
		p.t.Fatalf("load %v of the model: %v", id, err)
	}
	if got, want := stateText(real), stateText(model); got != want {
		p.t.Fatalf("%v holds\n%s, in the model\n%s", id, got, want)
	}
	rr, mr := p.real.Reader(id), p.ms.Reader(id)
	for lo := mr.FirstIndex() - min(mr.FirstIndex(), 2); lo <= mr.LastIndex()+1; lo++ {
		rt, rerr := rr.Term(lo)
		mt, merr := mr.Term(lo)
		if rt != mt || errorKind(rerr) != errorKind(merr) {
			p.t.Fatalf("%v: term of %d is %d, %v; in the model %d, %v", id, lo, rt, rerr, mt, merr)
		}
	}
	if mr.LastIndex() < mr.FirstIndex() {
		return
	}
	lo := raft.Index(rapid.Uint64Range(uint64(mr.FirstIndex()), uint64(mr.LastIndex())).Draw(p.t, "lo"))
	maxBytes := rapid.IntRange(0, 400).Draw(p.t, "max")
	re, rerr := rr.Entries(lo, mr.LastIndex()+1, maxBytes)
	me, merr := mr.Entries(lo, mr.LastIndex()+1, maxBytes)
	if !sameEntries(re, me) || errorKind(rerr) != errorKind(merr) {
		p.t.Fatalf("%v: entries from %d are %v, %v; in the model %v, %v", id, lo, re, rerr, me, merr)
	}
}

func stateText(s State) string {
	mark := "none"
	if s.SnapshotMark != nil {
		mark = fmt.Sprintf("%+v", *s.SnapshotMark)
	}
	s.SnapshotMark = nil
	return fmt.Sprintf("%+v mark %s", s, mark)
}

func TestModelAgreesWithPebble(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := newPair(t)
		defer func() {
			if err := p.real.Close(); err != nil {
				t.Fatalf("close: %v", err)
			}
		}()
		t.Repeat(map[string]func(*rapid.T){
			"create": p.create, "append": p.append, "append2": p.append, "append3": p.append,
			"compact": p.compact, "remove": p.remove, "suspect": p.suspect,
			"reopen": p.reopen, "crash": p.crash,
			"": p.compare,
		})
	})
}
