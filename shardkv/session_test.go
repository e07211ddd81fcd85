package shardkv

import (
	"fmt"
	"strings"
	"testing"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
)

var alice = sessionID{client: 0xa11ce, birth: epoch}

func wantCode(t *testing.T, a *answer, code flotillav1.Code) {
	t.Helper()
	if a.refused != code {
		t.Fatalf("answered %v %q, want %v", a.refused, a.message, code)
	}
}

func wantNumber(t *testing.T, a *answer, number int64, replayed bool) {
	t.Helper()
	wantCode(t, a, flotillav1.Code_OK)
	if len(a.results) != 1 || a.results[0].number != number || a.replayed != replayed {
		t.Fatalf("answered %s, want number %d, replayed %v", show(a), number, replayed)
	}
}

func TestARetryIsAnsweredNotApplied(t *testing.T) {
	r := newRig(t)
	r.born(t, epoch, 1)
	first := numbered(0, alice, 1, 1, incr("n", 5))
	wantNumber(t, r.one(t, epoch, first), 5, false)
	wantNumber(t, r.one(t, epoch, first), 5, true)
	r.restart(t)
	wantNumber(t, r.one(t, epoch+1, first), 5, true)

	wantNumber(t, r.one(t, epoch, numbered(0, alice, 2, 2, incr("n", 1))), 6, false)
	wantCode(t, r.one(t, epoch, first), flotillav1.Code_INVALID) // acknowledged: its answer is gone
	r.restart(t)
	wantCode(t, r.one(t, epoch, first), flotillav1.Code_INVALID)
	wantNumber(t, r.one(t, epoch, plain(0, incr("n", 0))), 6, false)
}

// TestALargeAnswerIsKept: it lies in the store only, and comes back whole.
func TestALargeAnswerIsKept(t *testing.T) {
	r := newRig(t)
	r.born(t, epoch, 1)
	large := strings.Repeat("v", 1<<20)
	r.one(t, epoch, plain(0, put("k", large)))
	swap := numbered(0, alice, 1, 1, op{kind: opPut, key: []byte("k"), value: []byte("new"), previous: true})
	for i := range 3 {
		a := r.one(t, epoch, swap)
		wantCode(t, a, flotillav1.Code_OK)
		if string(a.results[0].value) != large || a.replayed != (i > 0) {
			t.Fatalf("attempt %d: %d bytes, replayed %v", i, len(a.results[0].value), a.replayed)
		}
		r.restart(t)
	}
}

func TestAnEndedSessionNeverWrites(t *testing.T) {
	r := newRig(t)
	r.born(t, epoch, 1)
	w := numbered(0, alice, 1, 1, incr("n", 1))
	wantNumber(t, r.one(t, epoch, w), 1, false)
	end := epoch + sessionLife.Milliseconds()
	wantNumber(t, r.one(t, end-1, w), 1, true)
	wantCode(t, r.one(t, end, w), flotillav1.Code_SESSION_EXPIRED)
	if s := r.machine.shards[0].sessions; len(s.byID) != 0 || len(s.ends) != 0 || r.machine.kept != (tally{}) {
		t.Fatalf("%d sessions are still kept, in all %+v", len(s.byID), r.machine.kept)
	}
	for stamp := end; stamp < end+3; stamp++ { // forgotten, and still refused, also with the clock back
		wantCode(t, r.one(t, stamp-1000, w), flotillav1.Code_SESSION_EXPIRED)
		wantCode(t, r.one(t, stamp, numbered(0, alice, 2, 1, incr("n", 1))), flotillav1.Code_SESSION_EXPIRED)
		r.restart(t)
	}
	if a := r.one(t, end, &outcome{shard: 0, id: alice, seq: 2}); a.outcome != flotillav1.OutcomeState_EXPIRED {
		t.Fatalf("outcome %v", a.outcome)
	}
	wantNumber(t, r.one(t, end, plain(0, incr("n", 0))), 1, false)
}

func TestASessionFromTheFutureIsRefused(t *testing.T) {
	r := newRig(t)
	r.born(t, epoch, 1)
	soon, later := alice, alice
	soon.birth, later.birth = epoch+birthAhead.Milliseconds(), epoch+birthAhead.Milliseconds()+1
	wantCode(t, r.one(t, epoch, numbered(0, soon, 1, 1, incr("n", 1))), flotillav1.Code_OK)
	wantCode(t, r.one(t, epoch, numbered(0, later, 1, 1, incr("n", 1))), flotillav1.Code_SESSION_EXPIRED)
}

func TestOutcomeClosesTheNumber(t *testing.T) {
	r := newRig(t)
	r.born(t, epoch, 1)
	for range 2 {
		if a := r.one(t, epoch, &outcome{shard: 0, id: alice, seq: 1}); a.outcome != flotillav1.OutcomeState_NOT_APPLIED {
			t.Fatalf("outcome %v", a.outcome)
		}
		wantCode(t, r.one(t, epoch, numbered(0, alice, 1, 1, incr("n", 1))), flotillav1.Code_INVALID)
		r.restart(t)
	}
	wantNumber(t, r.one(t, epoch, numbered(0, alice, 2, 1, incr("n", 1))), 1, false)
	a := r.one(t, epoch, &outcome{shard: 0, id: alice, seq: 2})
	if a.outcome != flotillav1.OutcomeState_APPLIED || a.results[0].number != 1 {
		t.Fatalf("outcome %s", show(a))
	}
}

// TestARefusalThatDependsOnTheStateIsRecorded: another attempt must not succeed
// behind the back of the client that was told "no".
func TestARefusalThatDependsOnTheStateIsRecorded(t *testing.T) {
	r := newRig(t)
	r.born(t, epoch, 1)

	unmet := numbered(0, alice, 1, 1, op{kind: opPut, key: []byte("k"), value: []byte("v"), condition: putIfPresent})
	first := r.one(t, epoch, unmet)
	r.one(t, epoch, plain(0, put("k", "there")))
	if again := r.one(t, epoch, unmet); again.results[0].status != statusConditionFailed || first.results[0].status != statusConditionFailed {
		t.Fatalf("first %s, then %s", show(first), show(again))
	}

	fillLarge(t, r, 9)
	tooMuch := numbered(0, alice, 2, 1, append([]op{put("mark", "x")}, getLarge(9)...)...)
	wantCode(t, r.one(t, epoch, tooMuch), flotillav1.Code_INVALID)
	r.one(t, epoch, plain(0, op{kind: opClear}))
	wantCode(t, r.one(t, epoch, tooMuch), flotillav1.Code_INVALID)
	r.restart(t)
	wantCode(t, r.one(t, epoch, tooMuch), flotillav1.Code_INVALID)
	if a := r.one(t, epoch, &outcome{shard: 0, id: alice, seq: 2}); a.outcome != flotillav1.OutcomeState_NOT_APPLIED {
		t.Fatalf("outcome %s", show(a))
	}
}

// fillLarge stores n values of the largest size.
func fillLarge(t *testing.T, r *rig, n int) {
	t.Helper()
	value := strings.Repeat("x", ValueBytesMax)
	for i := range n {
		wantCode(t, r.one(t, epoch, plain(0, put(fmt.Sprint("large", i), value))), flotillav1.Code_OK)
	}
}

func repeat(o op, n int) (ops []op) {
	for range n {
		ops = append(ops, o)
	}
	return ops
}

func getLarge(n int) (ops []op) {
	for i := range n {
		ops = append(ops, get(fmt.Sprint("large", i)))
	}
	return ops
}

func TestNothingHappensPastTheBounds(t *testing.T) {
	r := newRig(t)
	r.born(t, epoch, 1)
	fillLarge(t, r, 9)
	appends := []op{put("mark", "x")}
	for range 40 {
		appends = append(appends, appendTo("large0", ""))
	}
	large := op{kind: opPut, key: []byte("large1"), value: []byte("small"), previous: true}
	for name, ops := range map[string][]op{
		"answers":  append([]op{put("mark", "x")}, getLarge(9)...),
		"work":     appends,
		"previous": {put("mark", "x"), large, appendTo("large1", strings.Repeat("y", ValueBytesMax)), large, large, large, large, large, large, large, large, large},
		"growth":   append([]op{put("mark", "x"), appendTo("grows", strings.Repeat("y", ValueBytesMax))}, repeat(get("grows"), 9)...),
		"scans":    {put("mark", "x"), scanAll(), scanAll(), scanAll(), scanAll(), scanAll(), scanAll(), scanAll(), scanAll(), scanAll()},
	} {
		t.Run(name, func(t *testing.T) {
			before, _ := Digest(r.replica, 0)
			a := r.one(t, epoch, plain(0, ops...))
			wantCode(t, a, flotillav1.Code_INVALID)
			if after, _ := Digest(r.replica, 0); after != before {
				t.Fatalf("the shard was %+v and is %+v", before, after)
			}
		})
	}
	within := append([]op{put("mark", "x")}, getLarge(2)...)
	if a := r.one(t, epoch, plain(0, within...)); a.refused != flotillav1.Code_OK || len(a.results) != 3 {
		t.Fatalf("2 values of 4 MiB were refused: %v %s", a.refused, a.message)
	}
}

// TestAFullTableSaysBusy: nothing is forgotten to make room, and room comes by
// acknowledging.
func TestAFullTableSaysBusy(t *testing.T) {
	r := newRig(t)
	r.born(t, epoch, 1)
	e := entry{stamp: epoch}
	for seq := range uint64(sessionAnswersMax) {
		e.commands = append(e.commands, encodeCommand(numbered(0, alice, seq+1, 1, put("k", ""))))
	}
	for _, a := range r.apply(t, e) {
		wantCode(t, a, flotillav1.Code_OK)
	}
	next := uint64(sessionAnswersMax + 1)
	wantCode(t, r.one(t, epoch, numbered(0, alice, next, 1, put("k", ""))), flotillav1.Code_BUSY)
	wantCode(t, r.one(t, epoch, &outcome{shard: 0, id: alice, seq: next}), flotillav1.Code_BUSY)
	r.restart(t)
	wantCode(t, r.one(t, epoch, numbered(0, alice, next, 1, put("k", ""))), flotillav1.Code_BUSY)
	for seq := range uint64(sessionAnswersMax) {
		if seq%1000 == 0 {
			if a := r.one(t, epoch, numbered(0, alice, seq+1, 1, put("k", ""))); !a.replayed {
				t.Fatalf("write %d was forgotten: %s", seq+1, show(a))
			}
		}
	}
	wantCode(t, r.one(t, epoch, numbered(0, alice, next, 2, put("k", ""))), flotillav1.Code_OK)
	wantCode(t, r.one(t, epoch, numbered(0, alice, next+1, 2, put("k", ""))), flotillav1.Code_BUSY)
	bob := sessionID{client: 0xb0b, birth: epoch}
	wantCode(t, r.one(t, epoch, numbered(0, bob, 1, 1, put("k", ""))), flotillav1.Code_OK)
}

// TestARetryAfterASnapshotIsAnswered: the table of answers travels with a
// snapshot, so that a replica that was brought forward by one knows them too.
func TestARetryAfterASnapshotIsAnswered(t *testing.T) {
	from, to := newRig(t), newRig(t)
	from.born(t, epoch, 1)
	write := numbered(0, alice, 1, 1, incr("n", 5))
	wantNumber(t, from.one(t, epoch, write), 5, false)
	from.copyTo(t, to)
	wantNumber(t, to.one(t, epoch, write), 5, true)
	wantNumber(t, to.one(t, epoch, plain(0, incr("n", 0))), 5, false)
}
