package shardkv

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft/multiraft"
	"github.com/flotilla-kv/flotilla/raft/statestore"
)

// exporting is a rig whose shard 0 is being exported by migration 6.
func exporting(t *testing.T) (*rig, *migration) {
	t.Helper()
	r := newRig(t)
	r.born(t, epoch, 1)
	x := &migration{from: r, stamp: epoch, move: move{shard: movedShard, id: 6, generation: 1, attempt: 1, peer: otherGroup}}
	x.must(r, t, moveBeginExport, nil)
	return r, x
}

// TestACancelOfAnotherMoveIsRefused: what bears a higher number than the move
// under way must not make that forgotten.
func TestACancelOfAnotherMoveIsRefused(t *testing.T) {
	later := func(c *move) { c.id = 7 }
	r, x := exporting(t)
	if a := x.at(r, t, moveCancelExport, later); a.refused != flotillav1.Code_BUSY {
		t.Errorf("while it is exported: %v", a.refused)
	}
	x.must(r, t, moveHandOff, nil)
	if a := x.at(r, t, moveCancelExport, later); a.refused != flotillav1.Code_BUSY {
		t.Errorf("handed off: %v", a.refused)
	}
	if a := x.at(r, t, moveDeleteCopy, func(c *move) { c.id = 5 }); a.refused == flotillav1.Code_OK && r.machine.shards[0].state != shardHandedOff {
		t.Error("a copy was deleted by another move")
	}
	x.must(r, t, moveTakeBack, nil)
	if sh := r.machine.shards[0]; sh.state != shardOwned || sh.generation != 3 {
		t.Errorf("taken back it is %+v", sh.shardRecord)
	}
	if a := x.at(r, t, moveCancelExport, later); a.refused != flotillav1.Code_OK {
		t.Errorf("a move that never began cannot be ended: %s", a.message)
	}
	if a := x.at(r, t, moveBeginExport, func(c *move) { c.id, c.generation = 7, 3 }); a.refused == flotillav1.Code_OK {
		t.Error("a move begins that was ended before")
	}
}

// TestAPageSaysOnceWhatIsSo: a key that was touched often comes once, and what is
// behind a span that was cleared comes again.
func TestAPageSaysOnceWhatIsSo(t *testing.T) {
	r, _ := exporting(t)
	for range 1000 {
		r.one(t, epoch, plain(0, appendTo("hot", "x")))
	}
	r.one(t, epoch, plain(0, op{kind: opClear, span: span{prefix: []byte("h")}}, put("hot", "again")))
	r.view(t, func(view *statestore.View) error {
		p, err := touchedSince(view, 0, r.machine.shards[0].incarnation, position(0, 0), 1<<20)
		if err != nil || !p.done || len(p.items) != 3 || p.items[0].kind != kindValue || p.items[1].kind != itemSpan || p.items[2].kind != kindValue {
			t.Errorf("%d items, done %v: %v", len(p.items), p.done, err)
		}
		return nil
	})
}

// TestAPageEndsWithinASession: what one session keeps may be more than an entry
// holds.
func TestAPageEndsWithinASession(t *testing.T) {
	r, _ := exporting(t)
	const answers, each = 64, 1 << 10
	for seq := range uint64(answers) {
		r.one(t, epoch, plain(0, put("big", strings.Repeat("v", each))))
		r.one(t, epoch, numbered(0, alice, seq+1, 1, op{kind: opPut, key: []byte("big"), value: []byte("x"), previous: true}))
	}
	r.view(t, func(view *statestore.View) error {
		inc := r.machine.shards[0].incarnation
		var from []byte
		pages, seen := 0, make(map[string]bool)
		for done := false; !done; pages++ {
			p, err := scanCopy(view, 0, inc, from, 4*each)
			if err != nil || pages > 200 {
				t.Fatalf("page %d: %v", pages, err)
			}
			size := 0
			for _, i := range p.items {
				size += i.bytes()
				if seen[string(i.name)] {
					t.Fatalf("%q comes twice", i.name)
				}
				seen[string(i.name)] = true
			}
			if size > 6*each {
				t.Fatalf("a page of %d bytes", size)
			}
			from, done = p.to, p.done
		}
		if len(seen) != answers+1 || pages < answers/8 {
			t.Errorf("%d items in %d pages", len(seen), pages)
		}
		return nil
	})
	big := op{kind: opDelete, key: []byte("a"), previous: true}
	fill := plain(0, put("a", strings.Repeat("v", ValueBytesMax)))
	r.one(t, epoch, fill)
	over := []op{big, put("a", strings.Repeat("v", ValueBytesMax-1)), big, put("a", strings.Repeat("v", ValueBytesMax-1)), big}
	if a := r.one(t, epoch, numbered(0, alice, 1000, 1, over...)); a.refused != flotillav1.Code_INVALID {
		t.Errorf("an answer of three values of 4 MiB is recorded: %v", a.refused)
	}
}

// TestClearsAreCountedTogether: of one request, by what they clear in all.
func TestClearsAreCountedTogether(t *testing.T) {
	r, _ := exporting(t)
	const keys = 1_500
	for i := range keys {
		r.one(t, epoch, plain(0, put(fmt.Sprint("k", i), "v")))
	}
	clears := func(n int) (ops []op) {
		for range n {
			ops = append(ops, op{kind: opClear, span: span{prefix: []byte("k")}})
		}
		return ops
	}
	if a := r.one(t, epoch, numbered(0, alice, 1, 1, clears(clearsMax/keys+1)...)); a.refused != flotillav1.Code_BUSY {
		t.Errorf("%d keys are cleared at once: %v", (clearsMax/keys+1)*keys, a.refused)
	}
	if a := r.one(t, epoch, numbered(0, alice, 1, 1, clears(1)...)); a.refused != flotillav1.Code_OK {
		t.Errorf("fewer are not: %s", a.message)
	}
	if a := r.one(t, epoch, numbered(0, alice, 1, 1, clears(clearsMax/keys+1)...)); !a.replayed {
		t.Errorf("what was answered before is answered %v", a.refused)
	}
}

// TestAFloodOfAnswersIsNoCopy: more than any source has is not taken in.
func TestAFloodOfAnswersIsNoCopy(t *testing.T) {
	r := newRig(t)
	r.apply(t, newEntry(epoch, &birth{generation: 1}))
	x := &migration{to: r, stamp: epoch, move: move{shard: movedShard, id: 6, generation: 1, attempt: 1, peer: otherGroup}}
	x.must(r, t, moveBeginImport, nil)
	from := []byte(nil)
	for seq := uint64(1); seq < 1<<16+10; {
		c := x.move
		c.kind, c.from, c.to = moveChunk, from, []byte{kindAnswer, byte(seq >> 8), byte(seq)}
		for range 4096 {
			c.items = append(c.items, moveItem{kind: kindAnswer, name: answerName(alice, seq), stored: []byte{1, 0, 0}})
			seq++
		}
		if a := r.one(t, epoch, &c); a.refused != flotillav1.Code_OK {
			t.Fatalf("answer %d: %s", seq, a.message)
		}
		from = c.to
	}
	if !r.machine.shards[0].in.unequal {
		t.Error("it is taken for a copy")
	}
}

// TestAHandOffIsAskedForOnlyAfterASuccess: while the source does not answer, much
// may be touched.
func TestAHandOffIsAskedForOnlyAfterASuccess(t *testing.T) {
	x := &importStatus{record: shardRecord{state: shardImporting}, in: imported{scanned: true, position: position(1, 0)}}
	var v mover
	now := time.Now()
	next := func() *flotillav1.PullRequest {
		now = now.Add(time.Minute)
		return v.turn(now, x).ask
	}
	q := next()
	v.answered(now, q, &flotillav1.PullResponse{To: q.From, Done: true, Checksum: itemsChecksum(nil)})
	if q = next(); q.GetWant() != flotillav1.PullRequest_WANT_HAND_OFF {
		t.Fatalf("nothing is left, and it asks for %v", q.GetWant())
	}
	v.answered(now, q, nil)
	if q = next(); q.GetWant() != flotillav1.PullRequest_WANT_TOUCHED {
		t.Fatalf("the answer was lost, and it asks for %v", q.GetWant())
	}
}

// TestNoTimerTakesAShardBack: however long nobody answers and nothing is applied,
// the target asks for an end of a move only when its own log has refused the
// shard, and the source serves it again for nothing else.
func TestNoTimerTakesAShardBack(t *testing.T) {
	r, x := exporting(t)
	x.must(r, t, moveHandOff, nil)
	in := &importStatus{record: shardRecord{state: shardImporting}, in: imported{scanned: true, position: position(1, 0)}}
	var v mover
	now := time.Now()
	for hour := range 100 {
		now = now.Add(time.Hour)
		r.one(t, epoch+int64(hour+1)*3_600_000, timeOnly{})
		if sh := r.machine.shards[movedShard]; sh.state != shardHandedOff {
			t.Fatalf("after %d hours the source's shard is %s", hour+1, sh.describe())
		}
		act := v.turn(now, in)
		switch {
		case act.ask != nil && (act.ask.Want == flotillav1.PullRequest_WANT_TAKE_BACK || act.ask.Want == flotillav1.PullRequest_WANT_CANCEL):
			t.Fatalf("after %d hours the target asks for %v", hour+1, act.ask.Want)
		case act.ask != nil && hour%10 == 0: // now and then it hears what is to be activated, and its log takes nothing
			v.answered(now, act.ask, &flotillav1.PullResponse{To: act.ask.From, Done: true, Frozen: true, Summed: true, Checksum: itemsChecksum(nil), Handed: &flotillav1.HandedOff{}})
		case act.ask != nil:
			v.answered(now, act.ask, nil)
		case len(act.entries) > 0:
			v.proposed(now, false)
		default:
			t.Fatalf("after %d hours it does nothing", hour+1)
		}
	}
}

// TestNothingIsHandedOffWhileMuchIsLeft: however the target comes to ask for it.
func TestNothingIsHandedOffWhileMuchIsLeft(t *testing.T) {
	serveTwo(t, func(w *twoGroups, a, b *bench) {
		key := keyIn(0)
		a.want(a.do(ask(wirePut(key, "v"))), flotillav1.Code_OK)
		w.spoils(func(q *flotillav1.PullRequest, _ *flotillav1.PullResponse) bool {
			return q.Want != flotillav1.PullRequest_WANT_SCAN
		})
		w.begin(b, rigGroup, 0, 1, 1)
		w.until("it has scanned", func() bool {
			m, _ := b.host.rig.machine.movesNow().importing(0)
			return m.in.scanned
		})
		for i := range 50 {
			a.want(a.do(ask(wirePut(fmt.Sprintf("{%s}%d", key, i), strings.Repeat("x", 1000)))), flotillav1.Code_OK)
		}
		m, _ := b.host.rig.machine.movesNow().importing(0)
		r, err := a.server.Pull(w.Context(), &flotillav1.PullRequest{ClusterId: "cluster", Group: uint64(rigGroup), ToGroup: uint64(otherGroup),
			Migration: 1, Generation: 1, Want: flotillav1.PullRequest_WANT_HAND_OFF, From: m.in.position, BytesMax: 4_000})
		if err != nil || r.GetCode() != flotillav1.Code_OK || r.GetDone() || r.GetFrozen() || a.shard(0).state != shardExporting {
			t.Fatalf("%v, done %v, frozen %v, the shard is %v: %v", r.GetCode(), r.GetDone(), r.GetFrozen(), a.shard(0).state, err)
		}
	})
}

// TestAnEndedReadBackIsNoneThatPassed: the server ends while it adds up.
func TestAnEndedReadBackIsNoneThatPassed(t *testing.T) {
	serveTwo(t, func(w *twoGroups, a, b *bench) {
		a.want(a.do(ask(wirePut(keyIn(0), "v"))), flotillav1.Code_OK)
		w.spoils(func(*flotillav1.PullRequest, *flotillav1.PullResponse) bool { return b.shard(0).state == shardOwned })
		w.begin(b, rigGroup, 0, 1, 1)
		w.until("it is served", func() bool { return b.shard(0).state == shardOwned })
		b.server.stop()
		if differs, err := b.server.readBack(b.server.group(b.id), moverKey{b.id, 0, 1}, nil); err == nil || differs != "" {
			t.Errorf("%q, %v", differs, err)
		}
		if wait := b.server.driveOnce(time.Now()); wait != 0 {
			t.Error("a server that ends drives moves")
		}
	})
}

// TestTheReadBackGoesOnWhereItWas: another leader does not begin again.
func TestTheReadBackGoesOnWhereItWas(t *testing.T) {
	x := &importStatus{record: shardRecord{state: shardOwned, unverified: true}}
	var v mover
	now := time.Now()
	var cursor []byte
	for page := range comparedPages {
		act := v.turn(now, x)
		if !bytes.Equal(act.ask.GetFrom(), cursor) {
			t.Fatalf("page %d begins at %q", page, act.ask.GetFrom())
		}
		cursor = []byte{kindValue, byte(page)}
		v.answered(now, act.ask, &flotillav1.PullResponse{Frozen: true, To: cursor, Checksum: itemsChecksum(nil)})
		v.compares(now, v.turn(now, x).compare, "", nil)
	}
	act := v.turn(now, x)
	if len(act.entries) != 1 || act.entries[0].kind != moveCompared || !bytes.Equal(act.entries[0].to, cursor) {
		t.Fatalf("after %d pages it turns to %+v", comparedPages, act)
	}
	x.in.compared = cursor
	var next mover
	if act := next.turn(now, x); !bytes.Equal(act.ask.GetFrom(), cursor) {
		t.Errorf("another leader begins at %q", act.ask.GetFrom())
	}
}

// TestWhoWaitsAtAFollowerIsNotForgotten: no entry comes, and yet it is told to go
// elsewhere.
func TestWhoWaitsAtAFollowerIsNotForgotten(t *testing.T) {
	serveTwo(t, func(w *twoGroups, a, b *bench) {
		w.spoils(func(*flotillav1.PullRequest, *flotillav1.PullResponse) bool { return true })
		w.begin(b, rigGroup, 0, 1, 1)
		b.host.set(func() { b.host.leader, b.host.err = self+1, &multiraft.NotLeaderError{} })
		began := time.Now()
		q := ask(wirePut(keyIn(0), "v"))
		q.Group, q.TimeoutMs = uint64(otherGroup), 60_000
		if r := b.do(q); r.GetCode() == flotillav1.Code_OK || time.Since(began) > 2*parkFor {
			t.Errorf("answered %v after %v", r.GetCode(), time.Since(began))
		}
	})
}

// TestACopyThatCannotBeReadIsAddedUpAgain: with the next entry, from then on.
func TestACopyThatCannotBeReadIsAddedUpAgain(t *testing.T) {
	r := newRig(t)
	r.born(t, epoch, 1)
	r.one(t, epoch, plain(0, put("k", "v")))
	scans := 0
	r.machine.scan = func(s *baseScan) {
		if scans++; scans == 1 {
			s.view.Close()
			s.failed.Store(true)
			return
		}
		if err := s.run(); err != nil {
			t.Error(err)
		}
	}
	x := &migration{from: r, stamp: epoch, move: move{shard: movedShard, id: 6, generation: 1, attempt: 1, peer: otherGroup}}
	x.must(r, t, moveBeginExport, nil)
	r.one(t, epoch, plain(0, put("l", "w")))
	x.must(r, t, moveBeginExport, nil)
	r.one(t, epoch, plain(0, put("k", "x")))
	got, summed := r.machine.shards[0].export.digest()
	r.view(t, func(view *statestore.View) error {
		want, err := addUp(view, 0, r.machine.shards[0].incarnation, func() bool { return false })
		if !summed || got != want || scans != 2 {
			t.Errorf("after %d scans: %v, the digest is %+v, it should be %+v", scans, summed, got, want)
		}
		return err
	})
}

// TestATimeThatCameWithAShardStays: what has expired at the source does not come
// back at a target whose clock is behind.
func TestATimeThatCameWithAShardStays(t *testing.T) {
	a, x := exporting(t)
	b := newRig(t)
	b.apply(t, newEntry(epoch, &birth{generation: 1}))
	x.to = b
	a.one(t, epoch, plain(0, put("k", "v"), op{kind: opPut, key: []byte("gone"), value: []byte("v"), ttl: 10}))
	x.must(b, t, moveBeginImport, nil)
	for !x.pull(t, 1<<20) {
	}
	a.one(t, epoch+60_000, timeOnly{})
	x.handOver(t, 1<<20) // with the target's clock
	if b.machine.state.time < epoch+60_000 {
		t.Errorf("the target's time is %d, the source's was %d", b.machine.state.time, epoch+60_000)
	}
	if got := b.one(t, epoch, plain(0, get("gone"))); got.refused != flotillav1.Code_OK || got.results[0].status != statusAbsent {
		t.Errorf("what had expired is there again: %s", show(got))
	}
}
