package raft_test

import (
	"testing"

	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/raft/rafttest"
)

// BenchmarkReplicate is a leader that takes in one entry a turn and hears two
// followers acknowledge it: the core's cost of a committed entry. Its disk is
// a hostileDisk, which costs next to nothing.
func BenchmarkReplicate(b *testing.B) {
	disk := &hostileDisk{}
	r, err := raft.New(raft.Config{
		Group: rafttest.Group, Replica: 1, Log: disk,
		Membership: raft.Membership{Epoch: 1, Voters: members(1, 2, 3)},
		Rand:       func(int) int { return 0 },
	})
	if err != nil {
		b.Fatal(err)
	}
	turn := func() {
		for r.HasReady() {
			rd := r.Ready()
			if rd.Write.Seq != 0 {
				disk.take(rd.Write)
				r.Persisted(disk.ack())
			}
			if k := len(rd.Committed); k > 0 {
				r.Applied(rd.Committed[k-1].Index)
			}
		}
	}
	r.Campaign()
	turn()
	_ = r.Step(message(1, &raft.RequestVoteReply{PreVote: true, Granted: true}))
	turn()
	_ = r.Step(message(1, &raft.RequestVoteReply{Granted: true}))
	turn()
	data := make([]byte, 100)
	b.ReportAllocs()
	for b.Loop() {
		i, _, err := r.Propose(data)
		if err != nil {
			b.Fatal(err)
		}
		turn()
		for id := raft.ReplicaID(2); id <= 3; id++ {
			m := message(1, &raft.AppendEntriesReply{Success: true, MatchIndex: i})
			m.From = id
			if err := r.Step(m); err != nil {
				b.Fatal(err)
			}
		}
		turn()
	}
}
