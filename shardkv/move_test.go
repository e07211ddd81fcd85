package shardkv

import (
	"bytes"
	"fmt"
	"math"
	"testing"

	"pgregory.net/rapid"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft/statestore"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// migration is one move of shard 0 between two rigs, driven by a test as the
// target's leader would drive it.
type migration struct {
	from, to *rig
	move
	stamp int64
}

const movedShard shardmap.ShardID = 0

func (x *migration) at(r *rig, t fataler, kind moveKind, fill func(*move)) *answer {
	c := x.move
	c.kind = kind
	if fill != nil {
		fill(&c)
	}
	return r.one(t, x.stamp, &c)
}

func (x *migration) must(r *rig, t fataler, kind moveKind, fill func(*move)) {
	t.Helper()
	if a := x.at(r, t, kind, fill); a.refused != flotillav1.Code_OK {
		t.Fatalf("entry %d of the move was refused: %s", kind, a.message)
	}
}

// view reads from a rig.
func (r *rig) view(t fataler, read func(*statestore.View) error) {
	t.Helper()
	view, err := r.replica.View()
	if err == nil {
		err = read(view)
		view.Close()
	}
	if err != nil {
		t.Fatalf("read: %v", err)
	}
}

// pull takes over one page, of the scan or of a round, and tells whether
// nothing is left at the source as of it.
func (x *migration) pull(t fataler, bytesMax int) (done bool) {
	t.Helper()
	in, source := x.to.machine.shards[movedShard].in, x.from.machine.shards[movedShard]
	var p copyPage
	kind, from := moveChunk, in.scan
	if in.scanned {
		kind, from = moveRound, in.position
	}
	x.from.view(t, func(view *statestore.View) (err error) {
		if in.scanned {
			p, err = touchedSince(view, movedShard, source.incarnation, from, bytesMax)
		} else {
			p, err = scanCopy(view, movedShard, source.incarnation, from, bytesMax)
		}
		return err
	})
	if in.scanned && p.done && bytes.Equal(p.to, from) {
		return true
	}
	fill := func(c *move) {
		c.from, c.to, c.done, c.items, c.begun = bytes.Clone(from), p.to, p.done && kind == moveChunk, p.items, position(source.begun, 0)
	}
	was := in.digest
	x.must(x.to, t, kind, fill)
	now := x.to.machine.shards[movedShard].in.digest
	if a := x.at(x.to, t, kind, fill); a.refused == flotillav1.Code_OK && !bytes.Equal(from, p.to) {
		t.Fatalf("the same page was taken twice: the digest was %v, %v, and is %v", was, now, x.to.machine.shards[movedShard].in.digest)
	}
	return kind == moveRound && p.done
}

// handOver has the shard served at the target, in one go.
func (x *migration) handOver(t fataler, bytesMax int) {
	t.Helper()
	x.must(x.from, t, moveHandOff, nil)
	if a := x.at(x.from, t, moveCancelExport, nil); a.refused == flotillav1.Code_OK {
		t.Fatalf("a hand-off was taken back")
	}
	x.must(x.from, t, moveBeginExport, nil) // who asks for the move again must not take it for refused
	for !x.pull(t, bytesMax) {
	}
	source := x.from.machine.shards[movedShard]
	digest, ok := source.export.digest()
	if !ok {
		t.Fatalf("the source has no digest")
	}
	x.must(x.to, t, moveActivate, func(c *move) {
		c.to, c.time, c.writes, c.digest = x.to.machine.shards[movedShard].in.position, source.handedTime, source.writes, digest
	})
}

// TestAMoveDoesNotShow moves a shard back and forth between two groups while
// its clients write to it, whoever serves it by then, with restarts of both.
// Every answer, and in the end every key, is what one group would have given.
func TestAMoveDoesNotShow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b, s := newRig(t), newRig(t), new(spec)
		author := newAuthor()
		log := author.log(t)
		s.apply(log[0].stamp, log[0].commands)
		a.apply(t, log[0].entry())
		b.apply(t, newEntry(log[0].stamp, &birth{generation: 1}))
		var x *migration
		owner, other := a, b
		id, generation := migrationID(0), uint64(1)
		for i, d := range log[1:] {
			// What both groups are told, and who answers.
			at := map[*rig]*entry{a: {stamp: d.stamp}, b: {stamp: d.stamp}}
			if owner == a {
				at[b].stamp -= rapid.Int64Range(0, 400).Draw(t, "behind")
			}
			var asked []*rig
			for _, c := range d.commands {
				to := a
				if w, is := c.(*write); is && w.shard == movedShard {
					to = owner
				}
				if o, is := c.(*outcome); is && o.shard == movedShard {
					to = owner
				}
				at[to].commands = append(at[to].commands, encodeCommand(c))
				asked = append(asked, to)
			}
			got := map[*rig][]*answer{}
			for _, r := range []*rig{a, b} {
				if len(at[r].commands) == 0 {
					at[r].commands = [][]byte{encodeCommand(timeOnly{})}
				}
				got[r] = r.apply(t, *at[r])
			}
			for j, want := range s.apply(d.stamp, d.commands) {
				answers := got[asked[j]]
				got[asked[j]] = answers[1:]
				if show(answers[0]) != show(want) {
					t.Fatalf("entry %d command %d %s:\n  got  %s\n  want %s", i, j, showCommand(d.commands[j]), show(answers[0]), show(want))
				}
			}
			a.checkTally(t)
			b.checkTally(t)
			if rapid.IntRange(0, 7).Draw(t, "restart") == 0 {
				rapid.SampledFrom([]*rig{a, b}).Draw(t, "whom").restart(t)
			}
			if x == nil && rapid.Bool().Draw(t, "begins") {
				id++
				x = &migration{from: owner, to: other, move: move{shard: movedShard, id: id, generation: generation, attempt: 1, peer: rigGroup}}
				x.stamp = d.stamp
				x.must(other, t, moveBeginImport, nil)
				x.must(owner, t, moveBeginExport, nil)
			}
			if x == nil {
				continue
			}
			x.stamp = d.stamp
			if owner == x.to { // it serves
				if rapid.Bool().Draw(t, "verified") {
					x.finish(t)
					x = nil
				}
				continue
			}
			size := rapid.SampledFrom([]int{1, 20, 200, 1 << 20}).Draw(t, "page")
			done := false
			for range rapid.IntRange(0, 3).Draw(t, "pages") {
				done = x.pull(t, size)
			}
			switch what := rapid.IntRange(0, 9).Draw(t, "then"); {
			case what == 0: // both forget it
				x.must(owner, t, moveCancelExport, nil)
				x.must(other, t, moveDropImport, nil)
				if a := x.at(owner, t, moveBeginExport, nil); a.refused == flotillav1.Code_OK {
					t.Fatalf("a move that was cancelled began")
				}
				x = nil
			case what == 1: // begun anew
				x.attempt++
				x.must(other, t, moveBeginImport, nil)
			case done && what < 8:
				x.handOver(t, size)
				generation++
				owner, other = other, owner
			}
		}
		// Entries of moves remove expired keys too, which the spec has not seen.
		owner.one(t, author.time, timeOnly{})
		s.apply(author.time, nil)
		sh := owner.machine.shards[movedShard]
		if want := s.shards[movedShard]; sh.writes != want.writes {
			t.Fatalf("the shard has had %d writes, not %d", sh.writes, want.writes)
		}
		delete(s.shards, 1)
		delete(s.shards, 5)
		owner.compareKeys(t, s)
		owner.endsAll(t, author.time+2*sessionLife.Milliseconds())
	})
}

// checkTally: what counts against the group's bounds is what it serves.
func (r *rig) checkTally(t fataler) {
	t.Helper()
	var want tally
	for _, sh := range r.machine.order {
		for _, s := range sh.sessions.byID {
			if sh.state.serves() {
				want.sessions++
				want.answers += len(s.answers())
				want.bytes += s.bytes
			}
		}
	}
	if r.machine.kept != want {
		t.Fatalf("counted %+v, kept %+v", r.machine.kept, want)
	}
}

// endsAll lets the group's time pass all sessions and expiries: nothing is left
// of them in the shards that it serves.
func (r *rig) endsAll(t fataler, stamp int64) {
	t.Helper()
	for range 10 {
		r.one(t, stamp, timeOnly{})
	}
	if r.machine.kept != (tally{}) || r.machine.ends != math.MaxInt64 || r.machine.due != math.MaxInt64 {
		t.Fatalf("%+v is kept, sessions end at %d, keys expire at %d", r.machine.kept, r.machine.ends, r.machine.due)
	}
	r.view(t, func(view *statestore.View) error {
		for _, sh := range r.machine.order {
			if !sh.state.serves() {
				continue
			}
			for _, kind := range []byte{kindAnswer, kindExpiry} {
				it := view.NewIter(spaceOf(kind, sh))
				if it.First() {
					t.Fatalf("%q is left in shard %d", it.Key(), sh.id)
				}
				it.Close()
			}
		}
		return nil
	})
}

// finish ends a move whose target serves, and looks at what is left of it.
func (x *migration) finish(t fataler) {
	t.Helper()
	sh := x.to.machine.shards[movedShard]
	stored, err := Digest(x.to.replica, movedShard)
	d := sh.in.digest
	all := d.keys.plus(d.answers)
	if err != nil || stored != (ShardDigest{High: all.high, Low: all.low, Keys: d.keys.count, Answers: d.answers.count, Writes: sh.writes}) {
		t.Fatalf("the target holds %+v (%v) and follows %+v with %d writes", stored, err, d, sh.writes)
	}
	x.must(x.to, t, moveVerified, nil)
	x.must(x.from, t, moveDeleteCopy, nil)
	x.must(x.to, t, moveDone, nil)
	for _, r := range []*rig{x.from, x.to} {
		r.view(t, func(view *statestore.View) error {
			for _, kind := range []byte{kindTouch, kindTombstone, kindImport} {
				if it := view.NewIter([]byte{kind}, []byte{kind + 1}); it.First() {
					t.Fatalf("%q is left of a move", it.Key())
				} else if err := it.Close(); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if d, err := Digest(x.from.replica, movedShard); err != nil || d != (ShardDigest{}) {
		t.Fatalf("the source still holds %+v (%v)", d, err)
	}
}

// aMove begins a move of shard 0 between two new rigs, with what the source has
// been told before.
func aMove(t *testing.T, stamp int64, told ...command) *migration {
	from, to := newRig(t), newRig(t)
	from.born(t, epoch, 1)
	to.apply(t, newEntry(epoch, &birth{generation: 1}))
	for _, c := range told {
		from.one(t, epoch, c)
	}
	x := &migration{from: from, to: to, stamp: stamp, move: move{shard: movedShard, id: 1, generation: 1, attempt: 1, peer: rigGroup}}
	x.must(to, t, moveBeginImport, nil)
	x.must(from, t, moveBeginExport, nil)
	return x
}

// TestActivateLiftsTheTime: a key that has expired at the source does not come
// back at a target whose time is behind.
func TestActivateLiftsTheTime(t *testing.T) {
	x := aMove(t, epoch, plain(0, op{kind: opPut, key: []byte("k"), value: []byte("v"), expireAt: epoch + 50}))
	x.from.one(t, epoch+60, timeOnly{})
	x.handOver(t, 1<<20)
	if a := x.to.one(t, epoch, plain(0, get("k"))); a.results[0].status != statusAbsent {
		t.Fatalf("the key is back: %s", show(a))
	}
}

// TestACopyThatDiffersIsNotServed: not by the attempt that found it, and not
// after the target has refused the generation; the source then serves again.
func TestACopyThatDiffersIsNotServed(t *testing.T) {
	x := aMove(t, epoch, plain(0, put("k", "v")))
	x.must(x.from, t, moveHandOff, nil)
	for !x.pull(t, 1<<20) {
	}
	source, stands := x.from.machine.shards[movedShard], x.to.machine.shards[movedShard].in.position
	activate := func(c *move) {
		c.to, c.writes = stands, source.writes
		c.digest, _ = source.export.digest()
	}
	wrong := func(c *move) { activate(c); c.digest.keys.low++ }
	if a := x.at(x.to, t, moveActivate, wrong); a.refused == flotillav1.Code_OK || !x.to.machine.shards[movedShard].in.unequal {
		t.Fatalf("a copy that differs was activated: %s", show(a))
	}
	x.to.restart(t)
	if !x.to.machine.shards[movedShard].in.unequal {
		t.Fatal("that the copy differs is forgotten")
	}
	wantCode(t, x.to.one(t, epoch, plain(0, put("k", "w"))), flotillav1.Code_MOVED)
	x.must(x.to, t, moveRefuse, nil)
	if a := x.at(x.to, t, moveActivate, activate); a.refused == flotillav1.Code_OK {
		t.Fatal("activated behind its refusal")
	}
	if a := x.at(x.to, t, moveBeginImport, func(c *move) { c.id = 2 }); a.refused == flotillav1.Code_OK {
		t.Fatal("a generation that was refused is imported again")
	}
	wantCode(t, x.from.one(t, epoch, plain(0, put("k", "w"))), flotillav1.Code_MOVED)
	x.must(x.from, t, moveTakeBack, nil)
	wantCode(t, x.from.one(t, epoch, plain(0, put("k", "w"))), flotillav1.Code_OK)
	if sh := x.from.machine.shards[movedShard]; sh.generation != 3 || sh.state != shardOwned {
		t.Fatalf("taken back at generation %d, %s", sh.generation, sh.describe())
	}
}

// TestAClearOfMuchWaitsForTheMove: one that takes all keys does not.
func TestAClearOfMuchWaitsForTheMove(t *testing.T) {
	e := &write{shard: 0}
	for i := range clearsMax + 1 {
		e.ops = append(e.ops, put(fmt.Sprintf("k%05d", i), ""))
	}
	x := aMove(t, epoch, e)
	part := op{kind: opClear, span: span{prefix: []byte("k")}}
	wantCode(t, x.from.one(t, epoch, plain(0, part)), flotillav1.Code_BUSY)
	wantCode(t, x.from.one(t, epoch, plain(0, op{kind: opClear, span: span{prefix: []byte("k00")}})), flotillav1.Code_OK)
	wantCode(t, x.from.one(t, epoch, plain(0, part)), flotillav1.Code_OK)
	x.from.one(t, epoch, plain(0, put("a", "1")))
	wantCode(t, x.from.one(t, epoch, plain(0, op{kind: opClear}, put("b", "2"))), flotillav1.Code_OK)
	x.handOver(t, 1<<16)
	x.finish(t)
	if a := x.to.one(t, epoch, plain(0, scanAll())); len(a.results[0].pairs) != 1 {
		t.Fatalf("the target holds %s", show(a))
	}
}

// TestADeletionIsAnsweredLate: also when the shard is on its way back already.
func TestADeletionIsAnsweredLate(t *testing.T) {
	x := aMove(t, epoch, plain(0, put("k", "v")))
	x.handOver(t, 1<<20)
	x.must(x.to, t, moveVerified, nil)
	x.must(x.from, t, moveDeleteCopy, nil) // the answer is lost
	back := &migration{from: x.to, to: x.from, stamp: x.stamp, move: move{shard: movedShard, id: 2, generation: 2, attempt: 1, peer: rigGroup}}
	back.must(back.to, t, moveBeginImport, nil)
	wantCode(t, back.at(back.from, t, moveBeginExport, nil), flotillav1.Code_BUSY) // not before the first is done
	x.must(x.from, t, moveDeleteCopy, nil)
	x.must(x.to, t, moveDone, nil)
	back.must(back.from, t, moveBeginExport, nil)
	back.handOver(t, 1<<20)
	back.finish(t)
}
