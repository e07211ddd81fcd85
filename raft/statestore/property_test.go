package statestore

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"pgregory.net/rapid"

	"github.com/flotilla-kv/flotilla/raft"
)

// pair drives the store on Pebble and the model with the same operations and
// compares them. Pebble flushes when told to: its memtable is large enough.
// One thing is Pebble's to choose: an install or a destroy may flush what other
// replicas have not.
type pair struct {
	t     *rapid.T
	fs    *vfs.MemFS
	model *Model
	real  *Store
	ms    *Store
	index raft.Index
	held  []heldViews
}

// heldViews are views of both that were made at the same time.
type heldViews struct{ real, model *View }

func newPair(t *rapid.T) *pair {
	p := &pair{t: t, fs: vfs.NewCrashableMem(), model: NewModel()}
	p.open()
	return p
}

func (p *pair) open() {
	real, err := Open(Options{Dir: "state", FS: p.fs, Logger: quiet(), MemTableBytes: 4 << 20, OnFatal: func(err error) { panic(err) }})
	if err != nil {
		p.t.Fatalf("open: %v", err)
	}
	real.engine.(*pebbleEngine).rangeFew = rapid.SampledFrom([]int{0, 1, 3, rangeFew}).Draw(p.t, "range is few")
	p.real, p.ms = real, OpenModel(p.model, nil)
}

// both does the same to both and compares what comes of it.
func both(p *pair, do func(*Store) string) {
	p.t.Helper()
	if real, model := do(p.real), do(p.ms); real != model {
		p.t.Fatalf("the store has\n%s\nand the model\n%s", real, model)
	}
}

func (p *pair) id() raft.ReplicaKey {
	return key(rapid.Uint64Range(2, 3).Draw(p.t, "group"), rapid.Uint64Range(1, 2).Draw(p.t, "replica"))
}

func (p *pair) key(name string) []byte {
	return rapid.SliceOfN(rapid.SampledFrom([]byte("abcd\x00\xff")), 1, 2).Draw(p.t, name)
}

func (p *pair) bound(name string) []byte {
	if rapid.IntRange(0, 3).Draw(p.t, name+" open") == 0 {
		return nil
	}
	return p.key(name)
}

// span draws bounds in order: crossed ones are for callers to avoid.
func (p *pair) span() (lo, hi []byte) {
	lo, hi = p.bound("lo"), p.bound("hi")
	if hi != nil && string(lo) > string(hi) {
		lo, hi = hi, lo
	}
	return lo, hi
}

// commit applies a batch of some operations, with reads among them.
func (p *pair) commit(*rapid.T) {
	id := p.id()
	p.index++
	var ops []func(*Batch) string
	for range rapid.IntRange(0, 8).Draw(p.t, "ops") {
		k := p.key("key")
		lo, hi := p.span()
		switch rapid.IntRange(0, 7).Draw(p.t, "op") {
		case 0, 1, 2:
			v := fmt.Appendf(nil, "v%d", rapid.IntRange(0, 99).Draw(p.t, "value"))
			ops = append(ops, func(b *Batch) string { b.Set(k, v); return "" })
		case 7:
			v := fmt.Appendf(nil, "v%d", rapid.IntRange(0, 99).Draw(p.t, "value"))
			cut := rapid.IntRange(0, len(v)).Draw(p.t, "cut")
			ops = append(ops, func(b *Batch) string { b.SetJoined(k, v[:cut], v[cut:]); return "" })
		case 3:
			ops = append(ops, func(b *Batch) string { b.Delete(k); return "" })
		case 4:
			if rapid.IntRange(0, 2).Draw(p.t, "range") == 0 { // seldom: it drains the buffer
				ops = append(ops, func(b *Batch) string { b.DeleteRange(lo, hi); return "" })
			}
		case 5:
			ops = append(ops, func(b *Batch) string { return getText(b.Get(k)) })
		case 6:
			moves := p.moves()
			ops = append(ops, func(b *Batch) string { return walk(b.Iter(lo, hi)) + wander(b.Iter(lo, hi), moves) })
		}
	}
	fails := rapid.IntRange(0, 9).Draw(p.t, "dropped") == 0
	both(p, func(s *Store) string {
		b := s.Replica(id).NewBatch()
		var text []string
		for _, op := range ops {
			text = append(text, op(b))
		}
		if fails {
			b.Close()
		} else {
			b.SetApplied(p.index, 1, membership())
			text = append(text, fmt.Sprint(b.Commit()))
		}
		return strings.Join(text, "\n")
	})
}

// drain moves what waits in memory into Pebble, of one replica or of all.
func (p *pair) drain(*rapid.T) {
	e := p.real.engine.(*pebbleEngine)
	drain := e.buffers.drain
	if rapid.Bool().Draw(p.t, "one") {
		b := e.buffers.of(appendPrefix(nil, p.id()))
		drain = b.drain
		if rapid.Bool().Draw(p.t, "in the background") {
			drain = func() error {
				b.order.Lock()
				defer b.order.Unlock()
				if b.table == nil {
					return nil
				}
				return b.change()
			}
		}
	}
	if err := drain(); err != nil {
		p.t.Fatalf("drain: %v", err)
	}
}

// hold makes a view that stays open while other things happen.
func (p *pair) hold(*rapid.T) {
	id := p.id()
	var h heldViews
	for _, v := range []struct {
		view  **View
		store *Store
	}{{&h.real, p.real}, {&h.model, p.ms}} {
		var err error
		if *v.view, err = v.store.Replica(id).View(); err != nil {
			p.t.Fatalf("view: %v", err)
		}
	}
	p.held = append(p.held, h)
}

// look compares a view that was held, and may let it go.
func (p *pair) look(*rapid.T) {
	if len(p.held) == 0 {
		return
	}
	i := rapid.IntRange(0, len(p.held)-1).Draw(p.t, "view")
	h, k := p.held[i], p.key("get")
	lo, hi := p.span()
	moves := p.moves()
	text := func(v *View) string {
		return getText(v.Get(k)) + walk(v.NewIter(nil, nil)) + wander(v.NewIter(lo, hi), moves)
	}
	if real, model := text(h.real), text(h.model); real != model {
		p.t.Fatalf("the store's view has\n%s\nand the model's\n%s", real, model)
	}
	if rapid.Bool().Draw(p.t, "let go") {
		p.held[i] = p.held[len(p.held)-1]
		p.held = p.held[:len(p.held)-1]
		h.close(p)
	}
}

func (h heldViews) close(p *pair) {
	if err := errors.Join(h.real.Close(), h.model.Close()); err != nil {
		p.t.Fatalf("close view: %v", err)
	}
}

func (p *pair) letGo() {
	for _, h := range p.held {
		h.close(p)
	}
	p.held = nil
}

// moves draws a walk to and fro.
func (p *pair) moves() (moves []func(*Iter) bool) {
	for range rapid.IntRange(0, 8).Draw(p.t, "moves") {
		k := p.key("seek")
		moves = append(moves, rapid.SampledFrom([]func(*Iter) bool{
			(*Iter).First, (*Iter).Last, (*Iter).Next, (*Iter).Prev, (*Iter).Next, (*Iter).Prev,
			func(i *Iter) bool { return i.SeekGE(k) },
			func(i *Iter) bool { return i.SeekLT(k) },
		}).Draw(p.t, "move"))
	}
	return moves
}

// wander makes the moves, from the first key on.
func wander(iter *Iter, moves []func(*Iter) bool) string {
	text := fmt.Sprint(iter.First())
	for _, move := range moves {
		if move(iter) {
			text += fmt.Sprintf(" %q=%q", iter.Key(), iter.Value())
		} else {
			text += " -"
		}
	}
	return text + fmt.Sprint(iter.Close())
}

func getText(value []byte, ok bool, err error) string { return fmt.Sprintf("%q %v %v", value, ok, err) }

func walk(iter *Iter) string {
	var text []string
	for ok := iter.First(); ok; ok = iter.Next() {
		text = append(text, fmt.Sprintf("%q=%q", iter.Key(), iter.Value()))
	}
	text = append(text, fmt.Sprint(iter.Close()))
	return strings.Join(text, " ")
}

// move copies one replica over another, as a snapshot does.
func (p *pair) move(*rapid.T) {
	from, to := p.id(), p.id()
	both(p, func(s *Store) string {
		snapshot, err := s.Replica(from).Snapshot()
		if errors.Is(err, ErrNoState) {
			return "no state"
		}
		if err != nil {
			p.t.Fatalf("snapshot: %v", err)
		}
		install := s.Replica(to).NewInstall(snapshot.Mark)
		text := fmt.Sprintf("%+v", snapshot.Mark)
		for {
			chunk, err := snapshot.Next()
			if err == io.EOF {
				break
			}
			text += fmt.Sprintf(" %x %v", chunk, err) // both must encode the same
			if err := install.Add(chunk); err != nil {
				p.t.Fatalf("add: %v", err)
			}
		}
		return text + fmt.Sprint(install.Finish(), snapshot.Close())
	})
	p.settle()
}

func (p *pair) destroy(*rapid.T) {
	id := p.id()
	both(p, func(s *Store) string { return fmt.Sprint(s.Replica(id).Destroy()) })
	p.settle()
}

// settle lets the model follow if Pebble has flushed all by the way.
func (p *pair) settle() {
	if durableText(p, p.real) == appliedText(p, p.real) {
		p.model.Flush()
	}
}

func (p *pair) flush(*rapid.T) {
	both(p, func(s *Store) string { return fmt.Sprint(s.Flush()) })
}

func (p *pair) reopen(*rapid.T) {
	p.letGo()
	both(p, func(s *Store) string { return fmt.Sprint(s.Close()) })
	p.open()
}

func (p *pair) crash(*rapid.T) {
	p.letGo()
	clone := p.fs.CrashClone(vfs.CrashCloneCfg{RNG: rand.New(rand.NewPCG(1, 1))})
	if err := p.real.Close(); err != nil {
		p.t.Fatalf("close: %v", err)
	}
	p.fs = clone
	p.model.Crash()
	p.open()
}

func durableText(p *pair, s *Store) string { return eachText(p, s.EachDurable) }
func appliedText(p *pair, s *Store) string { return eachText(p, s.EachApplied) }

func eachText(p *pair, each func(func(raft.ReplicaKey, raft.Index)) error) string {
	text := ""
	if err := each(func(id raft.ReplicaKey, index raft.Index) { text += fmt.Sprint(id, index, " ") }); err != nil {
		p.t.Fatalf("list: %v", err)
	}
	return text
}

func (p *pair) compare(*rapid.T) {
	if rapid.IntRange(0, 3).Draw(p.t, "list") == 0 { // seldom: it drains the buffers
		both(p, func(s *Store) string { return appliedText(p, s) })
	}
	both(p, func(s *Store) string { return durableText(p, s) })
	id, k := p.id(), p.key("get")
	lo, hi := p.span()
	moves := p.moves()
	both(p, func(s *Store) string {
		return p.replicaText(s.Replica(id), k, lo, hi) + wander(s.Replica(id).NewIter(lo, hi), moves)
	})
}

func (p *pair) replicaText(r *Replica, k, lo, hi []byte) string {
	view, err := r.View()
	if err != nil {
		p.t.Fatalf("view: %v", err)
	}
	index, term, m, err := view.Applied()
	mark, installed, merr := r.SnapshotMark()
	durable, derr := r.DurableApplied()
	text := []string{
		walk(r.NewIter(nil, nil)), walk(r.NewIter(lo, hi)), walk(view.NewIter(lo, hi)),
		getText(r.Get(k)), getText(view.Get(k)),
		fmt.Sprint(index, term, m, err, mark, installed, merr, durable, derr),
	}
	if err := view.Close(); err != nil {
		p.t.Fatalf("close view: %v", err)
	}
	return strings.Join(text, "\n")
}

func TestModelAgreesWithPebble(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := newPair(t)
		defer func() {
			p.letGo()
			if err := p.real.Close(); err != nil {
				t.Fatalf("close: %v", err)
			}
		}()
		t.Repeat(map[string]func(*rapid.T){
			"commit": p.commit, "commit2": p.commit, "commit3": p.commit,
			"move": p.move, "destroy": p.destroy, "flush": p.flush,
			"reopen": p.reopen, "crash": p.crash,
			"drain": p.drain, "hold": p.hold, "look": p.look, "look2": p.look,
			"": p.compare,
		})
	})
}
