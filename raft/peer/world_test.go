package peer

import (
	"fmt"
	"slices"
	"testing"

	"github.com/flotilla-kv/flotilla/raft"
	"pgregory.net/rapid"
)

// TestNumbersOfCommands steps three peers by hand, without time, goroutines or a
// network: calls are delivered in any order, twice or never; peers crash before
// and after they save, take snapshots at any point and apply late. Commands
// must come out in one order, under the numbers that Start gave them.
func TestNumbersOfCommands(t *testing.T) {
	t.Parallel()
	var seen happenings
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, 3)
		actions := []func(*rapid.T){
			w.tick, w.rush, w.start, w.start, w.start, w.deliver, w.deliver, w.deliver, w.deliver,
			w.settle, w.settle, w.settle, w.snapshot, w.snapshot, w.snapshot, w.crash, w.leave, w.depose,
		}
		for range short(200, 600) {
			rapid.SampledFrom(actions).Draw(t, "action")(t)
			w.examine()
		}
		seen.add(&w.seen)
	})
	if seen.kept == 0 || seen.installed == 0 || seen.replaced == 0 || seen.restored == 0 {
		t.Fatalf("a part of the story was never told: %+v", seen)
	}
	t.Logf("%+v", seen)
}

// happenings counts what the test is about.
type happenings struct {
	kept      int // commands under the number that Start gave
	installed int // snapshots of a leader
	replaced  int // turns that replaced entries
	restored  int // lives that began with a snapshot
}

func (h *happenings) add(o *happenings) {
	h.kept += o.kept
	h.installed += o.installed
	h.replaced += o.replaced
	h.restored += o.restored
}

// world is a few replicas, their disks, and the calls between them.
type world struct {
	t        *rapid.T
	machines []*machine
	calls    []call
	log      []string          // command n, at n-1, as the first applied it
	promised map[string]int    // the number that Start gave
	taken    map[int]*snapshot // by command
	serial   int
	away     int // whom no call reaches, nor leaves; -1: nobody
	seen     happenings
}

// machine is one peer: what it is now, what it has saved, what it has applied.
type machine struct {
	rp       *replica
	state    []byte
	snapshot []byte
	applied  int
}

// call is on its way to a peer, or, with a reply, back.
type call struct {
	args  DeliverArgs
	reply *DeliverReply
}

func newWorld(t *rapid.T, n int) *world {
	w := &world{t: t, promised: make(map[string]int), taken: make(map[int]*snapshot), away: -1}
	for range n {
		w.machines = append(w.machines, &machine{})
	}
	for i := range n {
		w.open(i)
	}
	return w
}

func (w *world) open(i int) {
	m := w.machines[i]
	rp, err := openReplica(len(w.machines), i, func(n int) int { return rapid.IntRange(0, n-1).Draw(w.t, "chance") }, m.state, m.snapshot)
	if err != nil {
		w.t.Fatalf("peer %d does not open: %v", i, err)
	}
	m.rp, m.applied = rp, rp.snapshot.command
	if m.applied > 0 {
		w.seen.restored++
	}
}

func (w *world) pick(t *rapid.T) int { return rapid.IntRange(0, len(w.machines)-1).Draw(t, "peer") }

func (w *world) tick(t *rapid.T) {
	i := w.pick(t)
	w.machines[i].rp.tick()
	w.pump(i, 0)
}

// rush lets a peer's time pass until it campaigns.
func (w *world) rush(t *rapid.T) {
	i := w.pick(t)
	for range 2 * electionTicks {
		w.machines[i].rp.tick()
	}
	w.pump(i, 0)
}

func (w *world) start(t *rapid.T) {
	i := w.pick(t)
	for range rapid.IntRange(1, 3).Draw(t, "commands") {
		w.startAt(i)
	}
	// Sometimes more comes before the turn.
	if rapid.Bool().Draw(t, "turn") {
		w.pump(i, 0)
	}
}

func (w *world) startAt(i int) {
	w.serial++
	command := fmt.Sprint("command ", w.serial)
	if n, ok := w.machines[i].rp.start([]byte(command)); ok {
		w.promised[command] = n
	}
}

// deliver moves any one of the calls, loses it, or delivers it and keeps it.
func (w *world) deliver(t *rapid.T) {
	if len(w.calls) == 0 {
		return
	}
	k := rapid.IntRange(0, len(w.calls)-1).Draw(t, "call")
	c := w.calls[k]
	fate := rapid.IntRange(0, 9).Draw(t, "fate")
	if fate > 0 {
		w.calls = slices.Delete(w.calls, k, k+1)
	}
	if fate != 1 {
		w.move(c)
	}
}

// leave cuts a peer off, or brings it back.
func (w *world) leave(t *rapid.T) {
	w.away = rapid.IntRange(-1, len(w.machines)-1).Draw(t, "away")
}

// depose has a peer that nobody hears take commands, if it leads, and another one
// campaign and take some too: when all hear each other again, the first ones go.
func (w *world) depose(t *rapid.T) {
	i := w.pick(t)
	w.settle(t)
	w.away = i
	w.startAt(i)
	w.pump(i, 0)
	other := (i + 1) % len(w.machines)
	for range 2 * electionTicks {
		w.machines[other].rp.tick()
	}
	w.pump(other, 0)
	w.settle(t)
	w.startAt(other)
	w.pump(other, 0)
	w.settle(t)
	w.away = -1
}

// settle delivers all calls in order until none is left.
func (w *world) settle(*rapid.T) {
	for n := 0; len(w.calls) > 0 && n < 1000; n++ {
		c := w.calls[0]
		w.calls = w.calls[1:]
		w.move(c)
	}
}

func (w *world) move(c call) {
	i := c.args.To
	if w.away == c.args.To || w.away == c.args.From {
		return
	}
	if c.reply != nil {
		i = c.args.From
		w.machines[i].rp.answered(c.args.To, &c.args, c.reply, true)
		w.pump(i, 0)
		return
	}
	rp := w.machines[i].rp
	if !rp.admits(&c.args) {
		w.t.Fatalf("peer %d does not admit %+v", i, c.args)
	}
	waiting := rp.deliver(&c.args)
	w.pump(i, 0)
	select {
	case <-waiting.done:
		w.calls = append(w.calls, call{c.args, &waiting.reply})
	default:
		w.t.Fatalf("peer %d has nothing to do and does not answer", i)
	}
}

// The moments of a turn at which a peer may crash; 0 is none.
const (
	crashBeforeSave = 1 + iota
	crashAfterSave
	crashes
)

// crash ends a peer in the middle of its next turn, if it has one.
func (w *world) crash(t *rapid.T) {
	i := w.pick(t)
	rp := w.machines[i].rp
	rp.tick()
	_, _ = rp.start([]byte("at the end"))
	w.pump(i, rapid.IntRange(crashBeforeSave, crashes-1).Draw(t, "moment"))
	if w.machines[i].rp == rp {
		w.open(i)
	}
}

// pump runs a peer's turns, as Raft.turns does.
func (w *world) pump(i, crash int) {
	m := w.machines[i]
	for n := 0; m.rp.ready(); n++ {
		if n > 1000 {
			w.t.Fatalf("peer %d: turns have no end", i)
		}
		before := slices.Clone(m.rp.log.entries)
		t := m.rp.turn()
		if n := len(before); n > 0 {
			if term, err := m.rp.log.Term(before[n-1].Index); err == nil && term != before[n-1].Term {
				w.seen.replaced++
			}
		}
		for _, o := range t.requests {
			w.calls = append(w.calls, call{args: DeliverArgs{From: i, To: o.to, Requests: []Request{o.request}}})
		}
		if crash == crashBeforeSave {
			w.open(i)
			return
		}
		if t.save {
			m.state, m.snapshot = slices.Clone(t.state), slices.Clone(t.snapshot)
		}
		if crash == crashAfterSave {
			w.open(i)
			return
		}
		if t.save {
			m.rp.saved(&t)
		}
		for k := range t.deliveries {
			w.apply(i, &t.deliveries[k])
		}
		for _, done := range t.done {
			close(done.done)
		}
	}
}

// apply takes in what a peer hands out, as the applier does.
func (w *world) apply(i int, d *delivery) {
	m := w.machines[i]
	if s := d.snapshot; s != nil {
		if want := w.taken[s.command]; want == nil || string(want.data) != string(s.data) || want.index != s.index || want.term != s.term {
			w.t.Fatalf("peer %d is handed a snapshot at %d that nobody took: %+v", i, s.command, s)
		}
		if s.command <= m.applied {
			w.t.Fatalf("peer %d is handed a snapshot at %d behind command %d", i, s.command, m.applied)
		}
		m.applied = s.command
		w.seen.installed++
	}
	if d.snapshot == nil && d.command != m.applied {
		w.t.Fatalf("peer %d is handed commands behind %d, it has applied %d", i, d.command, m.applied)
	}
	for _, e := range d.entries {
		if e.Kind == raft.EntryCommand {
			m.applied++
			w.check(i, m.applied, string(e.Data))
		}
	}
	if rapid.IntRange(0, 3).Draw(w.t, "late") > 0 {
		m.rp.core.Applied(d.through)
	}
}

func (w *world) check(i, n int, command string) {
	if n == len(w.log)+1 {
		w.log = append(w.log, command)
	}
	if w.log[n-1] != command {
		w.t.Fatalf("peer %d applies %q as command %d, another applied %q", i, command, n, w.log[n-1])
	}
	if promised, ok := w.promised[command]; ok {
		w.seen.kept++
		if promised != n {
			w.t.Fatalf("Start gave %q the number %d, it is applied as %d", command, promised, n)
		}
	}
}

func (w *world) snapshot(t *rapid.T) {
	i := w.pick(t)
	m := w.machines[i]
	n := rapid.IntRange(0, m.applied+1).Draw(t, "through")
	data := fmt.Appendf(nil, "state %d", n)
	before := m.rp.snapshot.command
	ok := m.rp.compact(n, data)
	if ok != (n > before && n <= m.applied) {
		t.Fatalf("peer %d, snapshot at %d, applied %d: taken is %t of %d", i, before, m.applied, ok, n)
	}
	if !ok {
		return
	}
	w.taken[n] = m.rp.snapshot
	w.pump(i, 0)
	if m.rp.log.base != m.rp.snapshot.index || string(m.snapshot) != string(data) {
		t.Fatalf("peer %d: the log begins behind %d, the snapshot is at %d", i, m.rp.log.base, m.rp.snapshot.index)
	}
}

func (w *world) examine() {
	for i, m := range w.machines {
		if err := m.rp.core.CheckInvariants(); err != nil {
			w.t.Fatalf("peer %d: %v", i, err)
		}
		if through := m.rp.log.baseCommands; through != m.rp.snapshot.command {
			w.t.Fatalf("peer %d: the log begins behind command %d, the snapshot is at %d", i, through, m.rp.snapshot.command)
		}
	}
}
