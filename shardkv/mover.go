package shardkv

import (
	"bytes"
	"fmt"
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// attemptsMax is how often a copy that differs from what was handed off is made
// anew before the target refuses the shard.
const attemptsMax = 3

// Waits after a question or an entry came to nothing.
const (
	moveWaitMin = 10 * time.Millisecond
	moveWaitMax = time.Second
)

// mover drives one import at the leader of its target: a pure step machine.
// What it knows beside what is applied is only what it has just heard; lost with
// the leadership, that is asked for again.
type mover struct {
	began    time.Time // when the source had begun; zero: it has not
	waits    bool      // for an answer, or for entries
	retry    time.Time // nothing before
	failures int       // in a row
	heard    *heardPage
	// cancelRefused: the source has handed the shard off before it heard of the
	// wish to cancel.
	cancelRefused bool
	ended         bool // the source says that the move is no more
	idle          bool // what was touched is taken in but for little: hand off

	// For those who ask how it goes.
	total    uint64    // bytes of the source's copy; 0: not known
	handedAt time.Time // when HandOff was applied at the source; zero: not known
	activate bool      // Activate is proposed
	pause    time.Duration
	why      string // what it waits for, beside what goes on; "": nothing
	whySince time.Time

	// Of the read-back of what is served.
	serves   bool
	compared []byte // through here the source's copy was compared
	pages    int    // since that was committed
	allRead  bool
	sums     bool // what is stored has the digest that it should
	differs  string
}

// moverAct is what a mover wants done next: one thing at a time.
type moverAct struct {
	ask     *flotillav1.PullRequest
	entries []*move
	compare *heardPage // with what is stored
	addUp   bool       // what is stored
}

// heardPage is a page of the source that has not been proposed yet.
type heardPage struct {
	from []byte
	want flotillav1.PullRequest_Want
	*flotillav1.PullResponse
}

// turn is what to do next: ask the source, or propose entries, or nothing yet.
func (v *mover) turn(now time.Time, x *importStatus) moverAct {
	if v.waits || now.Before(v.retry) {
		return moverAct{}
	}
	if x.record.state != shardImporting {
		return v.turnServing(now, x)
	}
	in := &x.in
	switch {
	case v.ended:
		return v.propose(x.step(moveDropImport))
	case in.refused:
		return v.ask(x, flotillav1.PullRequest_WANT_TAKE_BACK, nil)
	case in.cancelled && !v.cancelRefused:
		return v.ask(x, flotillav1.PullRequest_WANT_CANCEL, nil)
	case in.unequal && in.attempt < attemptsMax:
		again := x.step(moveBeginImport)
		again.attempt++
		return v.propose(again)
	case in.unequal:
		return v.propose(x.step(moveRefuse))
	}
	if h := v.heard; h != nil {
		v.heard = nil
		if entries := h.entries(x); entries != nil {
			if c := entries[len(entries)-1]; c.kind == moveActivate {
				v.activate, c.pause = true, v.pausedFor(now).Microseconds()
			}
			return v.propose(entries...)
		}
	}
	switch {
	case !in.scanned:
		return v.ask(x, flotillav1.PullRequest_WANT_SCAN, in.scan)
	case v.idle:
		return v.ask(x, flotillav1.PullRequest_WANT_HAND_OFF, in.position)
	}
	return v.ask(x, flotillav1.PullRequest_WANT_TOUCHED, in.position)
}

// comparedPages is how many pages are compared before how far that has come is
// committed: another leader goes on from there.
const comparedPages = 64

// turnServing reads back what is served, and then has the source's copy deleted.
func (v *mover) turnServing(now time.Time, x *importStatus) moverAct {
	if !v.serves {
		*v = mover{began: v.began, serves: true, pause: v.pause, compared: x.in.compared}
	}
	h := v.heard
	v.heard = nil
	switch {
	case v.ended:
		return v.propose(x.step(moveDone))
	case x.in.verified:
		return v.ask(x, flotillav1.PullRequest_WANT_DELETE, nil)
	case x.in.unequal:
		v.waitFor(now, "an operator: what is stored is not what was handed off, and both copies are kept")
		return moverAct{}
	case v.differs != "":
		return v.propose(x.step(moveDiffers))
	case h != nil:
		v.waits = true
		return moverAct{compare: h}
	case v.pages >= comparedPages:
		v.pages = 0
		c := x.step(moveCompared)
		c.to = v.compared
		return v.propose(c)
	case !v.allRead:
		return v.ask(x, flotillav1.PullRequest_WANT_SCAN, v.compared)
	case !v.sums:
		v.waits = true
		return moverAct{addUp: true}
	}
	c := x.step(moveVerified)
	c.pause = v.pause.Microseconds()
	return v.propose(c)
}

// pausedFor is how long ago the source has handed the shard off; 0: not known.
func (v *mover) pausedFor(now time.Time) time.Duration {
	if v.handedAt.IsZero() {
		return 0
	}
	return max(time.Microsecond, now.Sub(v.handedAt))
}

// waitFor notes what holds the move up.
func (v *mover) waitFor(now time.Time, format string, args ...any) {
	if why := fmt.Sprintf(format, args...); why != v.why {
		v.why, v.whySince = why, now
	}
}

// compares takes in what came of a comparison, or of adding up: in what the
// copies differ, or that it could not be done now.
func (v *mover) compares(now time.Time, page *heardPage, differs string, err error) {
	v.waits = false
	switch {
	case err != nil:
		v.failed(now, "%v", err)
		return
	case differs != "":
		v.differs = differs
	case page == nil:
		v.sums = true
	default:
		v.compared, v.allRead = page.GetTo(), page.GetDone()
		v.pages++
	}
	v.succeeded()
}

// entries take a page in; nil: it does not fit where the import stands, or
// brings nothing.
func (h *heardPage) entries(x *importStatus) (entries []*move) {
	in := &x.in
	page := func(kind moveKind) *move {
		c := x.step(kind)
		c.from, c.to, c.begun, c.items = h.from, h.GetTo(), h.GetBegun(), itemsFromWire(h.GetItems())
		return c
	}
	if h.want == flotillav1.PullRequest_WANT_SCAN {
		if in.scanned || !bytes.Equal(in.scan, h.from) {
			return nil
		}
		c := page(moveChunk)
		c.done = h.GetDone()
		return []*move{c}
	}
	if !in.scanned || !bytes.Equal(in.position, h.from) {
		return nil
	}
	if !bytes.Equal(h.GetTo(), h.from) {
		entries = append(entries, page(moveRound))
	}
	if handed := h.GetHanded(); handed != nil && h.GetDone() {
		c := x.step(moveActivate)
		c.to, c.time, c.writes = h.GetTo(), handed.GetTime(), handed.GetWrites()
		c.digest = copyDigest{keys: sumFromWire(handed.GetKeys()), answers: sumFromWire(handed.GetAnswers())}
		entries = append(entries, c)
	}
	return entries
}

func (v *mover) propose(entries ...*move) moverAct {
	v.waits = true
	return moverAct{entries: entries}
}

func (v *mover) ask(x *importStatus, want flotillav1.PullRequest_Want, from []byte) moverAct {
	v.waits = true
	return moverAct{ask: &flotillav1.PullRequest{Group: uint64(x.source()), Shard: uint64(x.shard), Migration: uint64(x.record.move), Generation: x.in.generation, Want: want, From: from}}
}

// answered takes in what the source says to q; nil: nothing was heard.
func (v *mover) answered(now time.Time, q *flotillav1.PullRequest, r *flotillav1.PullResponse) {
	v.waits = false
	page := q.GetWant() == flotillav1.PullRequest_WANT_SCAN || q.GetWant() == flotillav1.PullRequest_WANT_TOUCHED || q.GetWant() == flotillav1.PullRequest_WANT_HAND_OFF
	switch {
	case r == nil:
		v.failed(now, "group %d to answer", q.GetGroup())
	case page && r.GetCode() == flotillav1.Code_OK && !wellFormed(r):
		v.failed(now, "an undamaged page of group %d", q.GetGroup())
	case q.GetWant() == flotillav1.PullRequest_WANT_CANCEL && r.GetEnded():
		v.cancelRefused = true
	case r.GetEnded() && !v.serves:
		v.ended = true // whatever else is refused may be a matter of who was asked
	case r.GetCode() != flotillav1.Code_OK:
		v.failed(now, "group %d: %v %s", q.GetGroup(), r.GetCode(), r.GetMessage())
	case !page:
		v.ended = true // cancelled, taken back, or deleted
	case v.serves && !r.GetFrozen():
		v.failed(now, "the leader of group %d to apply the hand-off", q.GetGroup())
	default:
		v.succeeded()
		if v.began.IsZero() {
			v.began = now
		}
		if v.total = r.GetTotal(); r.GetHanded() != nil {
			v.handedAt = now.Add(-time.Duration(r.GetHanded().GetAgoUs()) * time.Microsecond)
		}
		v.heard = &heardPage{from: q.GetFrom(), want: q.GetWant(), PullResponse: r}
		v.idle = q.GetWant() != flotillav1.PullRequest_WANT_SCAN && r.GetDone()
		if v.idle && bytes.Equal(r.GetTo(), q.GetFrom()) && r.GetHanded() == nil && q.GetWant() == flotillav1.PullRequest_WANT_HAND_OFF {
			v.failed(now, "group %d to add its copy up", q.GetGroup())
		}
	}
}

// wellFormed tells whether a page can be taken in: what is committed must be
// understood by every replica.
func wellFormed(r *flotillav1.PullResponse) bool {
	for _, w := range r.GetItems() {
		if !itemOK(w) {
			return false
		}
	}
	return r.GetChecksum() == itemsChecksum(r.GetItems())
}

func itemOK(w *flotillav1.MoveItem) bool {
	switch w.GetKind() {
	case kindValue:
		if len(w.GetName()) == 0 || len(w.GetName()) > KeyBytesMax {
			return false
		}
		_, err := decodeRecord(w.GetStored())
		return !w.GetThere() || err == nil
	case kindAnswer:
		_, seq, ok := splitAnswerName(w.GetName())
		e := encoder{b: []byte{0}}
		e.uint(seq)
		_, head, err := decodeAnswer(append(e.b, w.GetStored()...))
		return ok && w.GetThere() && err == nil && head.lowest <= seq
	case itemSession:
		return len(w.GetName()) == clientBytes
	case itemSpan:
		_, err := decodeSpan(w.GetStored())
		return w.GetThere() && err == nil
	}
	return false
}

// proposed takes in what became of entries: whether all of them were applied as
// they were meant.
func (v *mover) proposed(now time.Time, applied bool) {
	v.waits = false
	if !applied {
		v.failed(now, "the group's log")
	} else {
		v.succeeded()
		if v.activate {
			v.pause = v.pausedFor(now)
		}
	}
	v.activate = false
}

func (v *mover) succeeded() { v.failures, v.why = 0, "" }

// failed: it waits for something, and tries again.
func (v *mover) failed(now time.Time, what string, args ...any) {
	v.waitFor(now, what, args...)
	v.retry = now.Add(min(moveWaitMin<<min(v.failures, 10), moveWaitMax))
	v.failures++
	v.idle = false // by then much may have been touched
}

func groupID(id uint64) raft.GroupID { return raft.GroupID(id) }

// moverKey names an import of this node.
type moverKey struct {
	group raft.GroupID
	shard shardmap.ShardID
	move  migrationID
}
