package raft_test

import (
	"testing"

	"github.com/flotilla-kv/flotilla/raft"
)

func everyNode(raft.NodeID) bool { return true }

// sleep lets the group of a leader fall asleep.
func (g *group) sleep(leader raft.ReplicaID) {
	g.t.Helper()
	for range 3 {
		g.core(leader).Sleep(everyNode)
		g.settle()
	}
	for _, r := range g.replicas {
		if r.Up() && !r.Core.Asleep() {
			g.t.Fatalf("replica %d is awake: %+v", r.Member.Replica, r.Core.Status())
		}
	}
}

func TestAsleepNeitherTicksNorSends(t *testing.T) {
	g := led(t, 3)
	g.propose(1, "a")
	g.sleep(1)
	for _, r := range g.replicas {
		g.tick(r.Member.Replica, 10*electionTicks)
		if len(r.Outbox) != 0 || r.Core.Term() != 1 {
			t.Errorf("replica %d says %+v", r.Member.Replica, r.Outbox)
		}
	}
}

// Any message, proposal or read wakes, and a leader that wakes wakes all.
func TestWaking(t *testing.T) {
	for name, wake := range map[string]func(*group){
		"proposal":      func(g *group) { g.propose(1, "x") },
		"read":          func(g *group) { g.must(g.core(1).ReadIndex(1)) },
		"follower read": func(g *group) { g.must(g.core(2).ReadIndex(1)) },
		"driver":        func(g *group) { g.core(1).Wake() },
		"candidate": func(g *group) {
			g.must(g.core(1).Step(message(9, &raft.RequestVote{PreVote: true})))
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := led(t, 3)
			g.sleep(1)
			wake(g)
			g.settle()
			for _, r := range g.replicas {
				if r.Core.Asleep() {
					t.Errorf("replica %d sleeps on", r.Member.Replica)
				}
			}
		})
	}
}

// The death of the leader's node wakes followers, and they elect another soon.
func TestSleeperElectsAfterLeaderLost(t *testing.T) {
	g := led(t, 3)
	g.sleep(1)
	g.crash(1)
	g.core(2).LeaderLost()
	g.core(3).LeaderLost()
	for n := 0; g.core(2).Role() != raft.Leader; n++ {
		if n > electionTicks {
			t.Fatal("no leader after an election timeout")
		}
		g.tick(2, 1)
		g.settle()
	}
}

// A follower that lacks an entry or its commit index does not fall asleep, and
// the leader waits for it while its node lives.
func TestNoSleepWithLaggard(t *testing.T) {
	g := led(t, 3)
	g.isolate(3)
	g.propose(1, "a")
	if g.core(1).CanSleep(everyNode) || g.core(1).Sleep(everyNode) {
		t.Fatal("sleeps although a live member lags")
	}
	if !g.core(1).CanSleep(func(n raft.NodeID) bool { return n != 3 }) {
		t.Fatal("does not sleep although all live members have everything")
	}
	g.join()
	// Sleep comes to a follower that has the log but not the commit index.
	i, _, err := g.core(1).Propose([]byte("b"))
	g.must(err)
	g.turn()
	for _, m := range take[*raft.AppendEntries](g, 1) {
		g.deliver(m)
	}
	g.must(g.r(2).Persist(g.r(2).Unsynced()))
	out := g.step(1, 2, 1, &raft.AppendEntries{PrevLogIndex: i, PrevLogTerm: 1, LeaderCommit: i - 1, Sleep: true})
	if reply[*raft.AppendEntriesReply](g, out).Asleep || g.core(2).Asleep() {
		t.Error("a follower falls asleep on an uncommitted entry")
	}
}
