package raft_test

import (
	"errors"
	"testing"

	"github.com/flotilla-kv/flotilla/raft"
)

// TestRecover: the last replica of three goes on alone with all that it has,
// hears nothing more of the others, and gets new ones.
func TestRecover(t *testing.T) {
	g := led(t, 3)
	g.propose(1, "a")
	g.cut[[2]raft.ReplicaID{3, 1}] = true // what is proposed now is not known to be committed
	g.cut[[2]raft.ReplicaID{2, 1}] = true
	last := g.propose(1, "b")
	if c := g.core(3).Status().Commit; c >= last {
		t.Fatalf("%d is committed already", c)
	}
	g.crash(1)
	g.crash(2)
	g.must(g.core(3).Recover(1<<20, 4))
	if sent := take[*raft.RequestVote](g, 3); len(sent) > 0 {
		t.Errorf("it asks for votes: %+v", sent)
	}
	g.settle()
	s := g.core(3).Status()
	if s.Role != raft.Leader || s.Commit < last+2 {
		t.Fatalf("after the recovery: %+v", s)
	}
	if m := g.core(3).Membership(); m.Epoch != 1<<20 || len(m.Voters) != 1 || m.Voters[0].Replica != 3 || m.Joint() {
		t.Fatalf("the members are %+v", m)
	}
	g.must(g.core(3).Recover(1<<20, 4)) // the same order again
	g.propose(3, "c")

	term := s.Term
	for _, body := range []raft.Body{
		&raft.AppendEntries{PrevLogIndex: 1, PrevLogTerm: 1, Entries: entries(2, term+5)},
		&raft.RequestVote{Transfer: true, LastLogIndex: 1000, LastLogTerm: term + 4},
		&raft.InstallSnapshot{Snapshot: raft.SnapshotMark{Index: 1000, Term: term + 4, Membership: raft.Membership{Epoch: 9, Voters: members(1, 2, 3)}}},
	} {
		if err := g.core(3).Step(raft.Message{Group: g.core(3).Status().Group, From: 2, To: 3, Term: term + 5, Body: body}); !errors.Is(err, raft.ErrUnknownReplica) {
			t.Errorf("%T of a lost replica: %v", body, err)
		}
	}
	if s := g.core(3).Status(); s.Role != raft.Leader || s.Term != term {
		t.Fatalf("a lost replica was heard: %+v", s)
	}

	g.add(members(4)[0], raft.Membership{})
	_, _, err := g.core(3).ProposeMembership(members(3), members(4))
	g.must(err)
	g.settle()
	_, _, err = g.core(3).ProposeMembership(members(3, 4), nil)
	g.must(err)
	g.settle()
	if m := g.core(4).Membership(); len(m.Voters) != 2 || m.Floor != 4 {
		t.Fatalf("the new replica's members are %+v", m)
	}
	if err := g.core(4).Step(raft.Message{Group: g.core(3).Status().Group, From: 1, To: 4, Term: term + 5, Body: &raft.RequestVote{LastLogIndex: 1000, LastLogTerm: term + 4}}); !errors.Is(err, raft.ErrUnknownReplica) {
		t.Errorf("the new replica hears a lost one: %v", err)
	}
}

// TestRecoverEndsAfterARestart: what it has written suffices.
func TestRecoverEndsAfterARestart(t *testing.T) {
	g := led(t, 3)
	last := g.propose(1, "a")
	g.crash(1)
	g.crash(2)
	g.must(g.core(3).Recover(7, 4))
	g.turn()
	g.must(g.r(3).Persist(g.r(3).Unsynced()))
	g.r(3).Outbox = nil
	g.crash(3)
	g.start(3)
	for range 4 * electionTicks {
		g.tick(3, 1)
		g.settle()
	}
	if s := g.core(3).Status(); s.Role != raft.Leader || s.Commit <= last || g.core(3).Membership().Epoch != 7 {
		t.Fatalf("after the restart: %+v, %+v", s, g.core(3).Membership())
	}
	g.propose(3, "b")
}

// TestRecoverRefuses what cannot be meant.
func TestRecoverRefuses(t *testing.T) {
	g := led(t, 3)
	g.add(members(4)[0], raft.Membership{})
	for _, x := range []struct {
		name  string
		id    raft.ReplicaID
		epoch uint64
		floor raft.ReplicaID
	}{
		{"an epoch that has passed", 3, 1, 4},
		{"no floor above it", 3, 9, 3},
		{"a replica that knows no members", 4, 9, 5},
	} {
		if err := g.core(x.id).Recover(x.epoch, x.floor); !errors.Is(err, raft.ErrMembership) {
			t.Errorf("%s: %v", x.name, err)
		}
	}
	if s := g.core(3).Status(); s.Role != raft.Follower || s.Term != 1 {
		t.Errorf("a refusal changed something: %+v", s)
	}
}

// TestTheSurvivorIsTakenOut: those that the group got later hear it to the end, and
// one of them is handed its leadership.
func TestTheSurvivorIsTakenOut(t *testing.T) {
	g := led(t, 3)
	g.propose(1, "a")
	g.crash(1)
	g.crash(2)
	g.must(g.core(3).Recover(1<<20, 4))
	g.settle()
	for id := raft.ReplicaID(4); id <= 6; id++ {
		g.add(members(id)[0], raft.Membership{})
	}
	_, _, err := g.core(3).ProposeMembership(members(3), members(4, 5, 6))
	g.must(err)
	g.settle()
	_, _, err = g.core(3).ProposeMembership(members(4, 5, 6), nil)
	g.must(err)
	g.settle()
	leads := 0
	for id := raft.ReplicaID(4); id <= 6; id++ {
		if g.core(id).Role() == raft.Leader {
			leads++
		}
	}
	if leads != 1 {
		t.Errorf("%d of the new ones lead", leads)
	}
}

// TestRecoverOfACutLog goes on, where it was interrupted too: the store calls the
// log cut until it is told otherwise.
func TestRecoverOfACutLog(t *testing.T) {
	g := led(t, 3)
	g.propose(1, "a")
	g.crash(1)
	g.crash(2)
	for range 2 {
		g.crash(3)
		g.r(3).Suspect = true
		g.start(3)
		g.tick(3, 3*electionTicks)
		g.settle()
		if s := g.core(3).Status(); s.Role == raft.Leader || !s.Suspect {
			t.Fatalf("by itself it is %+v", s)
		}
		g.must(g.core(3).Recover(1<<20, 4))
		g.settle()
		if s := g.core(3).Status(); s.Role != raft.Leader || s.Suspect {
			t.Fatalf("it is %+v", s)
		}
	}
	g.propose(3, "b")
}
