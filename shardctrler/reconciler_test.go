package shardctrler

import (
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/raft"
)

// pendingBirths is a state whose groups wait to be born.
func pendingBirths(t *testing.T) *run {
	t.Helper()
	r := newRun()
	r.apply(initCommand(16, 3, 2))
	for _, name := range []string{"b", "c"} {
		r.apply(Register{Registration: registrationOf(name)})
	}
	r.apply(Commit{Operations: Plan(r.state, allUp(r.state))})
	for _, o := range r.state.Operations { // the config group's growth is not what is tested
		c := o.Body.(ChangeMembership)
		r.apply(Observe{Group: 1, Epoch: 3, Members: c.Members[:1]})
	}
	for _, o := range Plan(r.state, allUp(r.state)) {
		if _, ok := o.Body.(Birth); ok {
			r.apply(Commit{Operations: []Operation{o}})
		}
	}
	if len(r.state.Operations) != 2 {
		t.Fatalf("pending %+v", r.state.Operations)
	}
	return r
}

func TestReconcilerSendsUntilAccepted(t *testing.T) {
	run := pendingBirths(t)
	r := newReconciler()
	now := time.Unix(1_000, 0)
	quiet := Observed{}
	out := r.turn(turnInput{now: now, state: run.state, observed: quiet})
	if len(out.sends) != 2 || len(out.commands) != 0 {
		t.Fatalf("first turn %+v", out)
	}
	sent := out.sends[0]
	g, _ := run.state.group(sent.operation.Body.(Birth).Group)
	if sent.to != g.Preferred || len(sent.shards) != 8 {
		t.Errorf("sent to %d with %d shards, preferred is %d", sent.to, len(sent.shards), g.Preferred)
	}
	// While it runs it is not sent again.
	if out = r.turn(turnInput{now: now.Add(time.Hour), state: run.state}); len(out.sends) != 0 {
		t.Fatalf("sent twice: %+v", out.sends)
	}
	// A hint where the leader is leads there at once.
	out = r.turn(turnInput{now: now, state: run.state, results: []SendResult{{Operation: sent.operation.ID, Leader: 7, Detail: "not here"}}})
	if len(out.sends) != 1 || out.sends[0].to != 7 {
		t.Fatalf("after a hint %+v", out.sends)
	}
	// Failures back off, and say when to look again.
	out = r.turn(turnInput{now: now, state: run.state, results: []SendResult{{Operation: sent.operation.ID, Detail: "nobody"}}})
	if len(out.sends) != 0 || !out.next.After(now) || out.next.Sub(now) > sendBackoffQuick {
		t.Fatalf("after a failure %+v", out)
	}
	// A leader that appears is used at once.
	out = r.turn(turnInput{now: now, state: run.state, hints: []LeaderHint{{Group: g.ID, Node: 3}}})
	if len(out.sends) != 1 || out.sends[0].to != 3 {
		t.Fatalf("after the leader appeared %+v", out)
	}
	out = r.turn(turnInput{now: now, state: run.state, results: []SendResult{{Operation: sent.operation.ID, Accepted: true, Detail: "born"}}})
	if len(out.commands) != 1 || out.commands[0] != (Finish{Operation: sent.operation.ID, Done: true, Detail: "born"}) {
		t.Fatalf("accepted %+v", out.commands)
	}
	// If that was lost, it is sent again after a while, and no sooner.
	if out = r.turn(turnInput{now: now, state: run.state}); len(out.sends) != 0 {
		t.Fatalf("at once: %+v", out.sends)
	}
	if out = r.turn(turnInput{now: now.Add(resend), state: run.state}); len(out.sends) != 1 {
		t.Fatalf("later: %+v", out.sends)
	}
	// A new reconciler knows nothing and sends all.
	if out = newReconciler().turn(turnInput{now: now, state: run.state}); len(out.sends) != 2 {
		t.Fatalf("another leader sends %+v", out.sends)
	}
	// What has ended is forgotten, and a late answer to it says nothing.
	run.apply(Finish{Operation: sent.operation.ID, Done: true})
	out = r.turn(turnInput{now: now, state: run.state, results: []SendResult{{Operation: sent.operation.ID, Accepted: true}}})
	if len(out.commands) != 0 || r.attempts[sent.operation.ID] != nil {
		t.Fatalf("after the end %+v", out)
	}
}

func TestBackoffGrowsAndIsBounded(t *testing.T) {
	a := new(attempt)
	var last time.Duration
	for a.failures = 1; a.failures < 200; a.failures++ {
		d := a.backoff()
		if d < last || d <= 0 || d > sendBackoffMax || (a.failures <= sendsQuick && d > sendBackoffQuick) {
			t.Fatalf("failure %d waits %v after %v", a.failures, d, last)
		}
		last = d
	}
	if last != sendBackoffMax {
		t.Errorf("ends at %v", last)
	}
}

func TestReconcilerObservesNewsOnly(t *testing.T) {
	run := pendingBirths(t)
	o := allUp(run.state)
	r := newReconciler()
	if out := r.turn(turnInput{now: time.Unix(1, 0), state: run.state, observed: o}); len(out.commands) != 1 {
		t.Fatalf("no news: %+v", out.commands) // the plan: the config group is to grow
	}
	o.Groups[1].Epoch++
	out := r.turn(turnInput{now: time.Unix(1, 0), state: run.state, observed: o})
	if c, ok := out.commands[0].(Observe); !ok || len(out.commands) != 1 || c.Group != 2 || c.Epoch != 2 || len(c.Members) != 3 {
		t.Fatalf("news: %+v", out.commands)
	}
	o.Groups[1].Joint = true
	for _, c := range r.turn(turnInput{now: time.Unix(1, 0), state: run.state, observed: o}).commands {
		if _, ok := c.(Observe); ok {
			t.Fatalf("a joint phase was reported: %+v", c)
		}
	}
}

func TestTransferIsGivenUpAndHeld(t *testing.T) {
	run := newRun()
	for _, c := range storyOfAGroup(t) {
		run.apply(c)
	}
	g := run.state.Groups[1]
	o := allUp(run.state)
	for _, m := range g.Members {
		if m.Node != g.Preferred {
			o.Groups[1].Leader = m.Node
		}
	}
	r := newReconciler()
	now := time.UnixMilli(run.state.Time)
	// A leader that is new is left alone; its term counts, too.
	if out := r.turn(turnInput{now: now, state: run.state, observed: o}); len(out.commands) != 0 {
		t.Fatalf("at once: %+v", out.commands)
	}
	now = now.Add(transferSettle)
	o.Groups[1].Term++
	if out := r.turn(turnInput{now: now, state: run.state, observed: o}); len(out.commands) != 0 {
		t.Fatalf("in a new term at once: %+v", out.commands)
	}
	now = now.Add(transferSettle)
	out := r.turn(turnInput{now: now, state: run.state, observed: o})
	run.apply(out.commands[0])
	now = time.UnixMilli(run.state.Time)
	out = r.turn(turnInput{now: now, state: run.state, observed: o})
	if len(out.sends) != 1 || out.sends[0].to != o.Groups[1].Leader {
		t.Fatalf("sends %+v", out.sends)
	}
	id := out.sends[0].operation.ID
	late := now.Add(transferPatience + time.Second)
	out = r.turn(turnInput{now: late, state: run.state, observed: o, results: []SendResult{{Operation: id, Detail: "no"}}})
	if f, ok := out.commands[0].(Finish); !ok || f.Done {
		t.Fatalf("not given up: %+v", out.commands)
	}
	run.apply(out.commands[0])
	if out = r.turn(turnInput{now: late, state: run.state, observed: o}); len(out.commands) != 0 {
		t.Fatalf("tried again at once: %+v", out.commands)
	}
	if out = r.turn(turnInput{now: late.Add(transferHold), state: run.state, observed: o}); len(out.commands) != 1 {
		t.Fatalf("never tried again: %+v", out.commands)
	}
}

func TestSendsAreBounded(t *testing.T) {
	run := newRun()
	run.apply(initCommand(256, 1, 200))
	run.apply(Commit{Operations: Plan(run.state, allUp(run.state))})
	run.apply(Commit{Operations: Plan(run.state, allUp(run.state))})
	out := newReconciler().turn(turnInput{now: time.Unix(1, 0), state: run.state})
	if len(run.state.Operations) != 200 || len(out.sends) != sendsMax {
		t.Fatalf("%d sent of %d", len(out.sends), len(run.state.Operations))
	}
	for _, s := range out.sends {
		if s.to != raft.NodeID(1) {
			t.Fatalf("sent to %d", s.to)
		}
	}
}

// TestWhatMayBeUndoneIsNotObserved: a membership that the leader's log names and
// that is not committed can vanish with the leader.
func TestWhatMayBeUndoneIsNotObserved(t *testing.T) {
	r := afterBringUp(t)
	for _, unsettled := range []bool{true, false} {
		st := GroupStatus{Group: 2, IsLeader: true, Leader: raft.Member{Replica: 1, Node: 1}, Term: 1, Unsettled: unsettled,
			Membership: raft.Membership{Epoch: 9, Voters: []raft.Member{{Replica: 1, Node: 1}}}}
		seen := observedGroup(groupReport(st, true))
		if news := observations(r.state, Observed{Groups: []ObservedGroup{seen}}); (len(news) == 0) != unsettled {
			t.Errorf("unsettled %v: observed %+v", unsettled, news)
		}
	}
}
