package multiraft

import (
	"fmt"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/raft"
)

// TestAGroupIsRecoveredFromOneReplica: it goes on with what that one has, gets
// new ones, also after a restart, and hears nothing of the lost ones that come
// back after all.
func TestAGroupIsRecoveredFromOneReplica(t *testing.T) {
	w := newWorld(t, 4, nil)
	w.group(2, 1, 1, 2, 3)
	w.mustPropose(2, "a")
	w.same(2, 1)
	w.crash(1)
	w.crash(2)
	w.run(5 * time.Second)
	leads := func() bool {
		s, _ := w.nodes[3].host.Status(2)
		return s.Role == raft.Leader
	}
	propose := func(command string) {
		t.Helper()
		w.until("it leads", leads)
		if res := w.propose(3, 2, command); res.Err != nil {
			t.Fatal(res.Err)
		}
	}
	if leads() {
		t.Fatal("a minority has a leader")
	}
	key := raft.ReplicaKey{Group: 2, Replica: 3}
	for range 2 { // the same order again
		if err := w.nodes[3].host.Recover(key, 1000, 10); err != nil {
			t.Fatal(err)
		}
	}
	propose("b")
	w.crash(3)
	w.up(3)
	propose("c")

	w.up(1) // both are a majority of what they know
	w.up(2)
	w.run(10 * time.Second)
	s, _ := w.nodes[3].host.Status(2)
	if s.Role != raft.Leader || s.Membership.Epoch != 1000 || len(s.Membership.Voters) != 1 {
		t.Fatalf("the lost ones were heard: %+v", s)
	}
	w.crash(1)
	w.crash(2)

	newcomer := raft.Member{Replica: 14, Node: 4}
	w.startOn(4, ReplicaSpec{Group: 2, Replica: 14})
	done := false
	w.nodes[3].host.ChangeMembership(2, 1000, []raft.Member{{Replica: 3, Node: 3}}, []raft.Member{newcomer}, func(err error) {
		if done = true; err != nil {
			t.Error(err)
		}
	})
	w.until("the learner is a member", func() bool { return done })
	propose("d")
	w.until("the learner has all", func() bool {
		tally := w.nodes[4].tally[2]
		return tally != nil && tally.count == 4
	})
}

// TestASnapshotOfTheLostIsNotTaken: it waited for the survivor to be heard of
// again, and comes in a later term.
func TestASnapshotOfTheLostIsNotTaken(t *testing.T) {
	w := newWorld(t, 3, func(o *Options) { o.Limits.LogKeepBytes = 1 })
	w.group(2, 1, 1, 2, 3)
	w.mustPropose(2, "first")
	w.isolate(3)
	for i := range 30 {
		w.mustPropose(2, fmt.Sprintf("k%d=%d", i, i))
	}
	w.run(3 * time.Second)
	for range 6 { // the leadership goes to and fro
		if err := w.nodes[w.leader(2)].host.Transfer(2, 0); err != nil {
			t.Fatal(err)
		}
		w.run(2 * time.Second)
	}
	key := raft.ReplicaKey{Group: 2, Replica: 3}
	if err := w.nodes[3].host.Recover(key, 1000, 10); err != nil {
		t.Fatal(err)
	}
	w.until("it leads", func() bool { s, _ := w.nodes[3].host.Status(2); return s.Role == raft.Leader })
	if res := w.propose(3, 2, "acknowledged by the survivor"); res.Err != nil {
		t.Fatal(res.Err)
	}
	w.heal(3)
	w.run(10 * time.Second)
	w.crash(3)
	w.up(3)
	w.run(5 * time.Second)
	s, _ := w.nodes[3].host.Status(2)
	if n := w.nodes[3].host.Stats().SnapshotsInstalled; n > 0 || s.Membership.Epoch != 1000 || s.Role != raft.Leader {
		t.Fatalf("%d snapshots came; it is %+v", n, s)
	}
}
