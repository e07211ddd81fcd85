package routing

import (
	"testing"
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
)

func TestALaneHoldsBackWhatStandsBehindARetry(t *testing.T) {
	b := newBench(t)
	var lane Lane
	b.submitIn(&lane, put(0))
	b.submitIn(&lane, get(0))
	first := b.sent(1) // and nothing of the read
	b.answer(first, flotillav1.Code_NOT_LEADER, leaderIs(2))
	again := b.sent(2)
	b.answer(again, flotillav1.Code_OK)
	b.succeeds()
	if q := b.sent(2); q.GetSession() != nil {
		t.Fatalf("expected the read, sent %v", q)
	}
}

func TestALaneDoesNotHoldBackOtherShards(t *testing.T) {
	b := newBench(t)
	var lane Lane
	b.submitIn(&lane, put(0))
	b.submitIn(&lane, put(1))
	if len(b.sends) != 2 {
		t.Fatalf("%d requests sent", len(b.sends))
	}
}

func TestWaitingWritesOfALaneGoTogether(t *testing.T) {
	b := newBench(t)
	var lane Lane
	for range 4 {
		b.submitIn(&lane, put(0))
	}
	b.submitIn(&lane, get(0))
	b.submitIn(&lane, put(0))
	b.answer(b.sent(1), flotillav1.Code_OK)
	b.succeeds()
	q := b.sent(1)
	if len(q.GetOps()) != 3 || q.GetSession().GetSeq() != 2 || q.GetSession().GetLowest() != 2 {
		t.Fatalf("sent %v", q)
	}
	b.answer(q, flotillav1.Code_OK, func(p *flotillav1.Response) {
		for i, r := range p.GetResults() {
			r.Version = uint64(10 + i)
		}
	})
	if len(b.ended) != 3 {
		t.Fatalf("%d calls ended", len(b.ended))
	}
	for i, d := range b.ended {
		if d.Failure != nil || len(d.Response.GetResults()) != 1 || d.Response.GetResults()[0].GetVersion() != uint64(10+i) {
			t.Fatalf("call %d got %+v", i, d)
		}
	}
	b.ended = nil
	b.answer(b.sent(1), flotillav1.Code_OK) // the read, by itself
	b.succeeds()
	b.answer(b.sent(1), flotillav1.Code_OK) // the write behind it
	b.succeeds()
	if len(lane.queues) != 0 {
		t.Fatalf("an idle lane keeps %d queues", len(lane.queues))
	}
}

func TestARefusedMergeIsTakenApart(t *testing.T) {
	b := newBench(t)
	var lane Lane
	for range 3 {
		b.submitIn(&lane, put(0))
	}
	b.answer(b.sent(1), flotillav1.Code_OK)
	b.succeeds()
	b.answer(b.sent(1), flotillav1.Code_INVALID)
	b.answer(b.sent(1), flotillav1.Code_INVALID) // the bad one
	b.fails(ReasonInvalid, false)
	b.answer(b.sent(1), flotillav1.Code_OK) // its neighbour
	b.succeeds()
}

func TestAPartThatEndsBeforeItsMergeIsSentIsLeftOut(t *testing.T) {
	b := newBench(t)
	var lane Lane
	b.submitIn(&lane, put(0))
	short := &Call{Request: put(0), Deadline: b.now.Add(time.Second), Lane: &lane}
	b.do(func() { b.r.Submit(b.now, short) })
	b.submitIn(&lane, put(0))
	b.answer(b.sent(1), flotillav1.Code_OK)
	b.succeeds()
	b.answer(b.sent(1), flotillav1.Code_BUSY)
	b.do(func() { b.r.Cancel(b.now, short, ReasonCancelled) })
	b.fails(ReasonCancelled, false)
	b.pass()
	q := b.sent(1)
	if len(q.GetOps()) != 1 {
		t.Fatalf("sent %v: its caller was told that it had no effect", q)
	}
	b.answer(q, flotillav1.Code_OK)
	b.succeeds()
}

func TestAPartThatEndsWhileItsMergeIsUnderWayLeavesTheOthersTheirAnswers(t *testing.T) {
	b := newBench(t)
	var lane Lane
	b.submitIn(&lane, put(0))
	gone := b.submitIn(&lane, get(0))
	b.submitIn(&lane, get(0))
	b.answer(b.sent(1), flotillav1.Code_OK)
	b.succeeds()
	q := b.sent(1)
	b.do(func() { b.r.Cancel(b.now, gone, ReasonCancelled) })
	b.fails(ReasonCancelled, false)
	b.answer(q, flotillav1.Code_OK, func(p *flotillav1.Response) { p.Results[1].Version = 7 })
	if d := b.end(); d.Failure != nil || d.Response.GetResults()[0].GetVersion() != 7 {
		t.Fatalf("the other part got %+v", d)
	}
}

func TestAPartOfAMergeEndsAtItsOwnDeadline(t *testing.T) {
	b := newBench(t)
	var lane Lane
	b.submitIn(&lane, put(0))
	short := &Call{Request: put(0), Deadline: b.now.Add(1), Lane: &lane}
	b.do(func() { b.r.Submit(b.now, short) })
	b.submitIn(&lane, put(0))
	b.answer(b.sent(1), flotillav1.Code_OK)
	b.succeeds()
	q := b.sent(1)
	if len(q.GetOps()) != 2 {
		t.Fatalf("sent %v", q)
	}
	b.now = b.now.Add(1)
	b.do(func() { b.r.Tick(b.now) })
	b.fails(ReasonDeadline, true)
	b.answer(q, flotillav1.Code_OK, func(p *flotillav1.Response) { p.Results[1].Version = 7 })
	if d := b.end(); d.Failure != nil || d.Response.GetResults()[0].GetVersion() != 7 {
		t.Fatalf("the other part got %+v", d)
	}
}

func TestTheNumberOfAGivenUpWriteIsClosedBeforeTheLaneGoesOn(t *testing.T) {
	b := newBench(t)
	var lane Lane
	c := b.submitIn(&lane, put(0))
	b.submitIn(&lane, put(0))
	first := b.sent(1)
	b.do(func() { b.r.Cancel(b.now, c, ReasonCancelled) })
	b.fails(ReasonCancelled, true)
	q := b.sent(1)
	if q.GetOutcome().GetSeq() != first.GetSession().GetSeq() || q.GetOutcome().GetClientId() != first.GetSession().GetClientId() {
		t.Fatalf("sent %v: the write given up could take effect behind it", q)
	}
	b.answer(q, flotillav1.Code_BUSY)
	b.pass()
	b.answer(b.sent(1), flotillav1.Code_OK)
	if next := b.sent(1); next.GetSession().GetSeq() != 2 || next.GetSession().GetLowest() != 2 {
		t.Fatalf("sent %v", next)
	}
}

func TestAGivenUpWriteIsClosedWhenSomethingComesBehindIt(t *testing.T) {
	b := newBench(t)
	var lane Lane
	c := b.submitIn(&lane, put(0))
	b.sent(1)
	b.do(func() { b.r.Cancel(b.now, c, ReasonCancelled) })
	b.fails(ReasonCancelled, true)
	b.quiet()
	b.submitIn(&lane, get(0))
	q := b.sent(1)
	if q.GetOutcome() == nil {
		t.Fatalf("sent %v", q)
	}
	b.answer(q, flotillav1.Code_OK)
	b.answer(b.sent(1), flotillav1.Code_OK)
	b.succeeds()
	if len(lane.queues) != 0 {
		t.Fatal("the lane keeps a queue")
	}
}

func TestAMergeThatMayHaveHappenedIsRepeatedAsItWas(t *testing.T) {
	b := newBench(t)
	var lane Lane
	b.submitIn(&lane, put(0))
	gone := b.submitIn(&lane, put(0))
	b.submitIn(&lane, put(0))
	b.answer(b.sent(1), flotillav1.Code_OK)
	b.succeeds()
	b.answer(b.sent(1), flotillav1.Code_UNKNOWN)
	b.do(func() { b.r.Cancel(b.now, gone, ReasonCancelled) })
	b.fails(ReasonCancelled, true)
	b.pass()
	if q := b.sent(1); len(q.GetOps()) != 2 {
		t.Fatalf("the same number with %d ops, before it had 2", len(q.GetOps()))
	}
}

func TestReadsOfDifferentStrengthAreNotMerged(t *testing.T) {
	b := newBench(t)
	var lane Lane
	b.submitIn(&lane, put(0))
	b.submitIn(&lane, get(0))
	stale := get(0)
	stale.Consistency, stale.StalenessMs = flotillav1.Consistency_STALE, 1000
	b.submitIn(&lane, stale)
	b.answer(b.sent(1), flotillav1.Code_OK)
	b.succeeds()
	if q := b.sent(1); len(q.GetOps()) != 1 || q.GetConsistency() != flotillav1.Consistency_LINEARIZABLE {
		t.Fatalf("sent %v", q)
	}
}
