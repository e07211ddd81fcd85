package shardkv

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

func TestSlotsAgainstASet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var set slotSet
		used := make(map[slot]bool)
		for range rapid.IntRange(1, 300).Draw(t, "steps") {
			want := slot(0)
			for used[want] {
				want++
			}
			if got := set.lowestFree(); got != want {
				t.Fatalf("lowest free is %d, want %d of %v", got, want, used)
			}
			s := slot(rapid.IntRange(0, 200).Draw(t, "slot"))
			if rapid.IntRange(0, 3).Draw(t, "lowest") > 0 {
				s = want
			}
			if used[s] {
				set.free(s)
				delete(used, s)
			} else {
				set.take(s)
				used[s] = true
			}
		}
	})
}

// slots are the answers' records of the rig: slot, number, and whether a
// leftover.
func (r *rig) slots(t *testing.T) string {
	t.Helper()
	view, err := r.replica.View()
	if err != nil {
		t.Fatal(err)
	}
	defer view.Close()
	var all []string
	err = eachAnswer(view, []byte{kindAnswer}, []byte{kindAnswer + 1}, func(p answerPlace, head answerHead, _ []byte, _ int) {
		text := fmt.Sprintf("%d:%d", p.slot, head.seq)
		if head.seq < r.machine.shards[p.shard].sessions.get(p.id).lowest {
			text += "x"
		}
		all = append(all, text)
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(all, " ")
}

// TestAnswersTakeTheLowestFreeSlot: a small answer that is not waited for any
// more lies in its slot until that is written over, a large one is deleted.
func TestAnswersTakeTheLowestFreeSlot(t *testing.T) {
	r := newRig(t)
	r.born(t, epoch, 1)
	r.one(t, epoch, plain(0, put("large", strings.Repeat("v", leftoverBytesMax))))
	step := func(want string, seq, lowest uint64, key string) {
		t.Helper()
		wantCode(t, r.one(t, epoch, numbered(0, alice, seq, lowest, get(key))), flotillav1.Code_OK)
		if got := r.slots(t); got != want {
			t.Fatalf("after write %d the slots hold %q, not %q", seq, got, want)
		}
		r.restart(t)
	}
	step("0:1", 1, 1, "k")
	step("0:2", 2, 2, "k")
	step("0:2 1:4", 4, 2, "large")
	step("0:2 1:4 2:3", 3, 2, "k")
	step("0:2 1:4 2:3 3:5", 5, 2, "large")
	step("0:6 1:4 2:3x 3:5", 6, 4, "k") // 2 and 3 are gone: 6 takes the slot of one
	step("0:6 1:4 2:7 3:5", 7, 4, "k")
	step("0:6 1:8 2:7", 8, 6, "k") // 4 and 5 are gone: one is written over, one deleted
	step("0:9 1:8x 2:7x", 9, 9, "k")
	wantCode(t, r.one(t, epoch, numbered(0, alice, 8, 1, get("k"))), flotillav1.Code_INVALID)
}

// TestANumberedWriteIsTwoChanges of the store, the key and its answer, however
// many entries there are; group and applied record are two more for a batch.
func TestANumberedWriteIsTwoChanges(t *testing.T) {
	r := newRig(t)
	r.born(t, epoch, 4)
	seq := uint64(0)
	for n := range 5 {
		var entries []entry
		for i := range n + 1 {
			e := entry{stamp: epoch + int64(n)}
			for shard := range 4 {
				seq++
				e.commands = append(e.commands, encodeCommand(numbered(shardmap.ShardID(shard), alice, seq, seq, put(fmt.Sprint("k", i), "v"))))
			}
			entries = append(entries, e)
		}
		r.apply(t, entries...)
		if want := 2 + 2*4*(n+1); n > 0 && r.changes != want {
			t.Fatalf("%d entries of 4 writes made %d changes, not %d", n+1, r.changes, want)
		}
	}
	// In the same millisecond there is no record of the group, and a large
	// answer that is written over is not deleted before.
	r.one(t, epoch+4, plain(0, put("large", strings.Repeat("v", leftoverBytesMax))))
	for range 3 {
		seq++
		r.one(t, epoch+4, numbered(0, alice, seq, seq, get("large"), put("k", "v")))
		if r.changes != 3 {
			t.Fatalf("a write made %d changes", r.changes)
		}
	}
}

// TestTheDigestDoesNotSeeSlots: where answers lie, and what is left of older
// ones, is not part of what a copy holds.
func TestTheDigestDoesNotSeeSlots(t *testing.T) {
	r := newRig(t)
	r.born(t, epoch, 1)
	for seq := range uint64(5) {
		r.one(t, epoch, numbered(0, alice, seq+1, 1, put("k", "v")))
	}
	r.one(t, epoch, numbered(0, alice, 6, 4, put("k", "v")))
	r.one(t, epoch, numbered(0, sessionID{client: 1, birth: epoch}, 1, 1, put("k", "v")))
	if got, want := r.slots(t), "0:1 0:6 1:2x 2:3x 3:4 4:5"; got != want {
		t.Fatalf("the slots hold %q, not %q", got, want)
	}
	want := r.digests(t)
	if want[0].Answers != 4 || want[0].Writes != 7 {
		t.Fatalf("digest %+v", want[0])
	}
	// Another copy: no leftovers, the answers in other slots.
	b := r.replica.NewBatch()
	at := func(s slot) []byte { return answerPlace{shard: 0, inc: 1, id: alice, slot: s}.append(nil) }
	for from, to := range map[slot]slot{3: 20, 4: 2, 0: 1} {
		stored, ok, err := r.replica.Get(at(from))
		if err != nil || !ok {
			t.Fatal(ok, err)
		}
		b.Delete(at(from))
		b.Set(at(to), stored)
	}
	r.index++
	b.SetApplied(r.index, 1, raft.Membership{})
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	r.restart(t)
	if got, want := r.slots(t), "0:1 1:6 2:5 20:4"; got != want {
		t.Fatalf("the slots hold %q, not %q", got, want)
	}
	if got := r.digests(t); got != want {
		t.Fatalf("the digest was %+v, and is %+v", want[0], got[0])
	}
	for seq := uint64(4); seq <= 6; seq++ {
		if a := r.one(t, epoch, numbered(0, alice, seq, 1, put("k", "v"))); !a.replayed {
			t.Fatalf("write %d: %s", seq, show(a))
		}
	}
}

// TestTheWriteCountSurvives whatever deletes the answers it rides with.
func TestTheWriteCountSurvives(t *testing.T) {
	r := newRig(t)
	r.born(t, epoch, 1)
	r.one(t, epoch, plain(0, put("large", strings.Repeat("v", leftoverBytesMax))))
	want := uint64(1)
	check := func() {
		t.Helper()
		r.restart(t)
		if got := r.machine.shards[0].writes; got != want || r.digests(t)[0].Writes != want {
			t.Fatalf("the count is %d, by digest %d, and was %d", got, r.digests(t)[0].Writes, want)
		}
	}
	check()
	for seq := uint64(1); seq <= 3; seq++ {
		r.one(t, epoch, numbered(0, alice, seq, 1, put("k", "v"), put("k", "v"), get("large")))
		want += 2
		check()
	}
	r.one(t, epoch, numbered(0, alice, 4, 4, get("k"))) // the large ones go
	check()
	r.one(t, epoch+sessionLife.Milliseconds(), timeOnly{})
	if got := r.digests(t)[0]; got.Answers != 0 {
		t.Fatalf("digest %+v", got)
	}
	check()
}

// TestAnswersOfAnotherCopyDoNotCount: what is late for one incarnation does not
// touch another.
func TestAnswersOfAnotherCopyDoNotCount(t *testing.T) {
	r := newRig(t)
	r.born(t, epoch, 1)
	r.one(t, epoch, numbered(0, alice, 1, 1, put("k", "v")))
	want := r.digests(t)
	b := r.replica.NewBatch()
	for shard, inc := range map[shardmap.ShardID]incarnation{0: 9, 3: 1} {
		var e encoder
		closed("").encode(&e, answerHead{writes: 100, seq: 50, lowest: 50})
		b.Set(answerPlace{shard: shard, inc: inc, id: alice}.append(nil), e.b)
	}
	r.index++
	b.SetApplied(r.index, 1, raft.Membership{})
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	r.restart(t)
	if got := r.digests(t); got != want {
		t.Fatalf("the digest was %+v, and is %+v", want[0], got[0])
	}
	if got := r.writes(t); got[0] != 1 || r.machine.kept.sessions != 1 {
		t.Fatalf("%d writes, %d sessions", got[0], r.machine.kept.sessions)
	}
	if a := r.one(t, epoch, numbered(0, alice, 1, 1, put("k", "v"))); !a.replayed || r.machine.shards[0].writes != 1 {
		t.Fatalf("%d writes, answered %s", r.machine.shards[0].writes, show(a))
	}
}

// TestAnAnswerInTwoSlotsIsDamage: nothing that this code writes leaves one, so a
// state that has one is refused, and the node stops with a reason.
func TestAnAnswerInTwoSlotsIsDamage(t *testing.T) {
	r := newRig(t)
	r.born(t, epoch, 1)
	r.one(t, epoch, numbered(0, alice, 1, 1, put("k", "v")))
	b := r.replica.NewBatch()
	var e encoder
	closed("").encode(&e, answerHead{writes: 1, seq: 1, lowest: 1})
	b.Set(answerPlace{shard: 0, inc: r.machine.shards[0].incarnation, id: alice, slot: 5}.append(nil), e.b)
	r.index++
	b.SetApplied(r.index, 1, raft.Membership{})
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := NewMachine(rigGroup).Restored(r.replica); !errors.Is(err, errMalformed) {
		t.Fatalf("restored: %v", err)
	}
}

// TestManyOpenAnswers: the queue of answers stays in order however they come
// and go.
func TestManyOpenAnswers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		table, s := newSessions(new(tally)), new(sessionState)
		var want []uint64
		for seq := uint64(1); seq < 200; seq++ {
			lowest := s.lowest
			if len(want) > 0 && rapid.IntRange(0, 3).Draw(t, "raises") == 0 {
				lowest = rapid.Uint64Range(want[0], seq).Draw(t, "lowest")
			}
			kept := slices.IndexFunc(want, func(q uint64) bool { return q >= lowest })
			if kept < 0 {
				kept = len(want)
			}
			if gone := table.raise(s, lowest); len(gone) != kept {
				t.Fatalf("%d answers are gone, want %d", len(gone), kept)
			}
			want = want[kept:]
			number := seq
			if rapid.Bool().Draw(t, "skips") {
				seq++
				if rapid.Bool().Draw(t, "back") && seq-1 >= s.lowest { // the later one first
					table.add(s, anAnswer(seq, s))
					want = append(want, seq)
				}
			}
			table.add(s, anAnswer(number, s))
			want = append(want, number)
			slices.Sort(want)
			var got []uint64
			for _, k := range s.answers() {
				got = append(got, k.seq)
			}
			if !slices.Equal(got, want) || table.all.answers != len(want) || s.bytes != 10*len(want) {
				t.Fatalf("answers %v, counted %d of %d bytes; want %v", got, table.all.answers, s.bytes, want)
			}
		}
	})
}

func anAnswer(seq uint64, s *sessionState) kept {
	return kept{seq: seq, size: 10, slot: s.slots.lowestFree()}
}
