package raft_test

import (
	"testing"

	"github.com/flotilla-kv/flotilla/raft"
)

// cutGroup is a group in which entry 2 was committed by replicas 1 (the leader)
// and 2; replica 3 never saw it. Then replica 2 lost it from its disk.
func cutGroup(t *testing.T) *group {
	t.Helper()
	g := led(t, 3)
	g.isolate(3)
	g.propose(1, "a")
	g.crash(2)
	g.r(2).Disk.Cut(1)
	g.r(2).Suspect = true
	g.checker.Cuts++
	g.start(2)
	return g
}

// A suspect replica neither votes nor campaigns: without the leader that knows
// entry 2 nobody can be elected.
func TestSuspectDoesNotVote(t *testing.T) {
	g := cutGroup(t)
	g.crash(1)
	g.join()
	for range 5 * electionTicks {
		g.tick(2, 1)
		g.tick(3, 1)
		g.settle()
	}
	if g.core(2).Role() != raft.Follower || g.core(3).Role() == raft.Leader {
		t.Errorf("replicas 2 and 3 are %v and %v", g.core(2).Role(), g.core(3).Role())
	}
}

// What a suspect replica stores counts for nothing, not for commitment, nor
// for a read, nor for check-quorum.
func TestSuspectDoesNotCount(t *testing.T) {
	g := cutGroup(t)
	i, _, err := g.core(1).Propose([]byte("b"))
	g.must(err)
	g.must(g.core(1).ReadIndex(1))
	for range 3 {
		g.tick(1, 1)
		g.settle()
	}
	if s := g.core(2).Status(); s.Last != i || !s.Suspect {
		t.Fatalf("the suspect replica is not served, or trusted too early: %+v", s)
	}
	if c := g.core(1).CommitIndex(); c >= i {
		t.Errorf("entry %d is committed by counting a suspect replica", c)
	}
	g.propose(1, "c") // its own durable write makes the leader count anew
	if c := g.core(1).CommitIndex(); c >= i {
		t.Errorf("entry %d is committed by counting a suspect replica later", c)
	}
	if len(g.r(1).Reads) != 0 {
		t.Error("a read is confirmed by a suspect replica")
	}
	for range 2 * electionTicks {
		g.tick(1, 1)
		g.settle()
	}
	if g.core(1).Role() == raft.Leader {
		t.Error("a suspect replica keeps a leader in office")
	}
}

// It is trusted again when a leader, confirmed since by others, has brought it
// up to date, and not while anything is still missing from its disk.
func TestSuspectIsTrustedWhenWhole(t *testing.T) {
	g := cutGroup(t)
	g.join()
	for n := 0; g.core(2).Suspect(); n++ {
		if n > 20 {
			t.Fatal("never trusted")
		}
		g.tick(1, 1)
		g.turn()
		for _, m := range g.r(1).Outbox {
			g.deliver(m)
		}
		g.r(1).Outbox = nil
		// All but the suspect's disk moves.
		if last := g.r(2).Disk.LastIndex(); !g.core(2).Suspect() && last < 2 {
			t.Fatalf("trusted with a log of %d on disk", last)
		}
		for _, r := range g.replicas {
			if r.Member.Replica != 2 || n > 10 {
				g.must(r.Persist(r.Unsynced()))
			}
			for _, m := range r.Outbox {
				g.deliver(m)
			}
			r.Outbox = nil
		}
	}
	if i := g.propose(1, "b"); g.r(2).Machine.Applied != i {
		t.Errorf("applied %d", g.r(2).Machine.Applied)
	}
	g.crash(1)
	g.elect(2)
}

// A suspect replica is told the leader's last index, committed or not: it may
// have acknowledged all of that before its log was cut, and such an
// acknowledgement may still be on its way.
func TestSuspectIsToldTheLastIndex(t *testing.T) {
	g := led(t, 3)
	last, _, err := g.core(1).Propose([]byte("uncommitted"))
	g.must(err)
	g.turn()
	g.must(g.r(1).Persist(1))
	g.r(1).Outbox = nil
	g.must(g.core(1).Step(message(1, &raft.ReadIndexRequest{ID: 1<<63 | 5})))
	g.turn()
	round := take[*raft.AppendEntries](g, 1)[0].Body.(*raft.AppendEntries).ReadRound
	out := g.step(3, 1, 1, &raft.AppendEntriesReply{Success: true, MatchIndex: 1, ReadRound: round})
	if b := reply[*raft.ReadIndexReply](g, out); b.Index != last {
		t.Errorf("is told %d, the leader's log ends at %d", b.Index, last)
	}
}

// TestSuspectThatIsCutAgain: what a suspect replica has confirmed may be lost
// once more before the leader has heard that it was whole. The leader believes
// the refusal, and serves it from the beginning.
func TestSuspectThatIsCutAgain(t *testing.T) {
	g := cutGroup(t)
	i := g.propose(1, "b")
	g.tick(1, 1)
	g.settle() // it has confirmed the entry, as a suspect
	g.crash(2)
	g.r(2).Disk.Cut(20)
	g.r(2).Suspect = true
	g.start(2)
	for range 5 {
		g.tick(1, 1)
		g.settle()
	}
	if s := g.core(2).Status(); s.Last < i {
		t.Errorf("the replica is not served again: its log ends at %d of %d", s.Last, i)
	}
}
