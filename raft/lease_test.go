package raft_test

import (
	"testing"

	"github.com/flotilla-kv/flotilla/raft"
)

// leased is a led group that serves lease reads, whose leader holds a lease.
func leased(t *testing.T) *group {
	t.Helper()
	g := idle(t, 3)
	g.options.LeaseReads = true
	for id := raft.ReplicaID(1); id <= 3; id++ {
		g.crash(id)
		g.start(id)
		g.tick(id, electionTicks) // the promise that a start implies
	}
	for _, r := range g.replicas {
		r.Outbox = nil
	}
	g.core(1).Campaign()
	g.settle()
	g.tick(1, 1)
	g.settle()
	if _, ok := g.core(1).LeaseRead(); !ok {
		t.Fatal("no lease after a confirmed heartbeat")
	}
	return g
}

// A lease ends before the promises that it rests on, and counts from when the
// heartbeat was sent, not from when it was answered.
func TestLeaseEnds(t *testing.T) {
	g := leased(t)
	g.isolate(1)
	for n := 1; ; n++ {
		g.tick(1, 1)
		if _, ok := g.core(1).LeaseRead(); !ok {
			break
		}
		if n >= electionTicks-2 {
			t.Fatalf("lease still held %d ticks after its heartbeat, promises run for %d", n, electionTicks)
		}
	}

	g = leased(t)
	g.tick(1, 1)
	beats := take[*raft.AppendEntries](g, 1)
	for range 3 { // silence; then a late answer to the first heartbeat
		g.tick(1, 1)
		g.r(1).Outbox = nil
	}
	g.deliver(beats[0])
	g.settle()
	g.tick(1, 1)
	if _, ok := g.core(1).LeaseRead(); ok {
		t.Error("the lease counts from the answer, not from the question")
	}
}

// Whoever has heard the leader grants no vote while the promise runs, whatever
// it suspects; and none after a start for as long.
func TestPromiseOutlivesSuspicionAndRestart(t *testing.T) {
	g := leased(t)
	ask := func() bool {
		return reply[*raft.RequestVoteReply](g, g.step(3, 2, 7, &raft.RequestVote{LastLogIndex: 99, LastLogTerm: 6})).Granted
	}
	g.core(2).LeaderLost()
	if ask() {
		t.Error("the promise is broken on a suspicion")
	}
	g.core(2).Campaign()
	if role := g.core(2).Role(); role != raft.Follower {
		t.Errorf("becomes %v while its promise runs", role)
	}
	g.crash(2)
	g.start(2)
	if ask() {
		t.Error("the promise is forgotten over a restart")
	}
	g.tick(2, electionTicks)
	if !ask() {
		t.Error("no vote after the promise has run out")
	}
}

// A transfer ends the lease for the rest of the term: the TimeoutNow may arrive
// long after the transfer was given up.
func TestTransferDropsLease(t *testing.T) {
	g := leased(t)
	g.must(g.core(1).TransferLeadership(2))
	g.turn()
	take[*raft.TimeoutNow](g, 1)
	if _, ok := g.core(1).LeaseRead(); ok {
		t.Error("lease held while leadership is handed over")
	}
	for range 2 * electionTicks {
		g.tick(1, 1)
		g.settle()
	}
	if _, ok := g.core(1).LeaseRead(); ok || g.core(1).Role() != raft.Leader {
		t.Error("lease held again in the same term")
	}
}

// A sleeping leader has no lease, nor has one that just woke: no tick has
// passed, but time has.
func TestSleepDropsLease(t *testing.T) {
	g := leased(t)
	g.sleep(1)
	if _, ok := g.core(1).LeaseRead(); ok {
		t.Error("lease held asleep")
	}
	g.core(1).Wake()
	if _, ok := g.core(1).LeaseRead(); ok {
		t.Error("lease held right after sleep")
	}
}
