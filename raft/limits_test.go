package raft_test

import (
	"errors"
	"math"
	"slices"
	"testing"

	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/raft/rafttest"
)

// restartWith starts all replicas anew with other options.
func restartWith(t *testing.T, n int, o raft.Options) *group {
	t.Helper()
	g := idle(t, n)
	o.HeartbeatTicks, o.ElectionTicks = 1, electionTicks
	g.options = o
	for id := raft.ReplicaID(1); int(id) <= n; id++ {
		g.crash(id)
		g.start(id)
	}
	g.elect(1)
	return g
}

// Own votes count when they are durable, also if an earlier write becomes so
// first.
func TestOwnVoteNeedsItsOwnWrite(t *testing.T) {
	g := idle(t, 1)
	g.must(g.core(1).Step(raft.Message{Group: rafttest.Group, From: 2, To: 1, Term: 3, Body: &raft.RequestVoteReply{}}))
	g.turn() // a write with term 3
	g.core(1).Campaign()
	g.turn() // a write with term 4 and the vote
	g.must(g.r(1).Persist(1))
	if role := g.core(1).Role(); role != raft.Candidate {
		t.Fatalf("is %v with its vote not durable", role)
	}
	g.must(g.r(1).Persist(1))
	if role := g.core(1).Role(); role != raft.Leader {
		t.Errorf("is %v with its vote durable", role)
	}
}

// In a joint phase an election needs both majorities.
func TestJointElectionNeedsBothMajorities(t *testing.T) {
	joint := raft.Membership{Epoch: 2, Voters: members(1, 4, 5), Outgoing: members(1, 2, 3)}
	for _, c := range []struct {
		votes []raft.ReplicaID
		won   bool
	}{
		{[]raft.ReplicaID{4, 5}, false},
		{[]raft.ReplicaID{2, 3}, false},
		{[]raft.ReplicaID{2, 4}, true},
	} {
		g := idle(t, 3)
		e := raft.Entry{Index: 1, Term: 1, Kind: raft.EntryMembership, Data: joint.Encode()}
		g.step(2, 1, 1, &raft.AppendEntries{Entries: []raft.Entry{e}})
		g.core(1).LeaderLost()
		g.core(1).Campaign()
		g.turn()
		for id := raft.ReplicaID(2); id <= 5; id++ {
			g.step(id, 1, 2, &raft.RequestVoteReply{PreVote: true, Granted: true})
		}
		for _, id := range c.votes {
			g.step(id, 1, 2, &raft.RequestVoteReply{Granted: true})
		}
		if got := g.core(1).Role() == raft.Leader; got != c.won {
			t.Errorf("votes of %v and its own: leads %v", c.votes, got)
		}
	}
}

// A joint phase ends when its own entry is committed; that an earlier one is
// does not end it. Left too early, one majority alone would decide while the
// other may not know that it has no say any more.
func TestJointPhaseEndsWhenItIsCommitted(t *testing.T) {
	g := led(t, 3)
	before, _, err := g.core(1).Propose([]byte("before"))
	g.must(err)
	g.turn()
	first := take[*raft.AppendEntries](g, 1)
	joint, _, err := g.core(1).ProposeMembership(members(1, 2), nil)
	g.must(err)
	g.turn()
	second := take[*raft.AppendEntries](g, 1)
	g.must(g.r(1).Persist(g.r(1).Unsynced()))
	confirm := func(sent []raft.Message) {
		for _, m := range sent {
			g.deliver(m)
			g.must(g.r(m.To).Persist(g.r(m.To).Unsynced()))
			for _, answer := range take[*raft.AppendEntriesReply](g, m.To) {
				g.deliver(answer)
			}
		}
	}
	confirm(first)
	if m := g.core(1).Membership(); g.core(1).CommitIndex() != before || !m.Joint() {
		t.Fatalf("committed through %d, the joint phase begins at %d, the membership is %+v", g.core(1).CommitIndex(), joint, m)
	}
	confirm(second)
	if m := g.core(1).Membership(); g.core(1).CommitIndex() < joint || m.Joint() {
		t.Errorf("committed through %d, the joint phase begins at %d, the membership is %+v", g.core(1).CommitIndex(), joint, m)
	}
}

// Thesis 4.2.2: who is not in its own latest membership campaigns nevertheless
// while that is not committed, for it may be the only one who can win.
func TestRemovedInPendingMembershipCampaigns(t *testing.T) {
	g := idle(t, 2)
	joint := raft.Membership{Epoch: 2, Voters: members(2), Outgoing: members(1, 2)}
	final := raft.Membership{Epoch: 3, Voters: members(2)}
	es := []raft.Entry{
		{Index: 1, Term: 1, Kind: raft.EntryMembership, Data: joint.Encode()},
		{Index: 2, Term: 1, Kind: raft.EntryMembership, Data: final.Encode()},
	}
	g.step(2, 1, 1, &raft.AppendEntries{Entries: es})
	g.step(1, 2, 1, &raft.AppendEntries{Entries: es[:1]})
	g.core(2).LeaderLost()
	g.core(1).LeaderLost()
	g.core(1).Campaign()
	g.settle()
	if m := g.core(2).Membership(); m.Epoch != 3 || g.core(2).Role() != raft.Leader {
		t.Errorf("replica 2 is %v with epoch %d", g.core(2).Role(), m.Epoch)
	}
}

// A replica that starts empty votes for nobody until it knows the members.
func TestEmptyReplicaDoesNotVote(t *testing.T) {
	g := idle(t, 3)
	g.add(members(4)[0], raft.Membership{})
	if b := reply[*raft.RequestVoteReply](g, g.step(2, 4, 1, &raft.RequestVote{LastLogIndex: 9, LastLogTerm: 1})); b.Granted {
		t.Error("votes without a membership")
	}
	g.tick(4, 5*electionTicks)
	if g.core(4).Role() != raft.Follower {
		t.Error("campaigns without a membership")
	}
}

func TestNewVoterHasCaughtUp(t *testing.T) {
	g := led(t, 3)
	if _, _, err := g.core(1).ProposeMembership(members(1, 2, 3, 4), nil); !errors.Is(err, raft.ErrNotCaughtUp) {
		t.Errorf("a voter that was no learner: %v", err)
	}
	g.add(members(4)[0], raft.Membership{})
	g.isolate(4)
	_, _, err := g.core(1).ProposeMembership(members(1, 2, 3), members(4))
	g.must(err)
	g.settle()
	if _, _, err := g.core(1).ProposeMembership(members(1, 2, 3, 4), nil); !errors.Is(err, raft.ErrNotCaughtUp) {
		t.Errorf("a learner that has heard nothing: %v", err)
	}
	g.join()
	g.tick(1, 1)
	g.settle()
	if _, _, err := g.core(1).ProposeMembership(members(1, 2, 3, 4), nil); err != nil {
		t.Errorf("a learner that has everything: %v", err)
	}
}

// Learners get the log, and however many have it, it counts for nothing.
func TestLearnersDoNotCount(t *testing.T) {
	g := led(t, 3)
	for _, m := range members(4, 5) {
		g.add(m, raft.Membership{})
	}
	_, _, err := g.core(1).ProposeMembership(members(1, 2, 3), members(4, 5))
	g.must(err)
	g.settle()
	g.isolate(2)
	g.isolate(3)
	i := g.propose(1, "a")
	if g.r(4).Disk.LastIndex() != i || g.r(5).Disk.LastIndex() != i {
		t.Fatalf("the learners have %d and %d of %d", g.r(4).Disk.LastIndex(), g.r(5).Disk.LastIndex(), i)
	}
	if c := g.core(1).CommitIndex(); c >= i {
		t.Errorf("entry %d, which one of three voters has, is committed", i)
	}
	g.join()
	g.tick(1, 1)
	g.settle()
	if c := g.core(1).CommitIndex(); c < i {
		t.Errorf("committed through %d of %d with all voters", c, i)
	}
}

func TestImpossibleMemberships(t *testing.T) {
	g := led(t, 3)
	moved := []raft.Member{{Replica: 1, Node: 1}, {Replica: 2, Node: 9}, {Replica: 3, Node: 3}}
	for name, lists := range map[string][2][]raft.Member{
		"no voters": {nil, nil},
		"unchanged": {members(1, 2, 3), nil},
		"twice":     {members(1, 2, 2, 3), nil},
		"both":      {members(1, 2, 3), members(3)},
		"zero":      {members(0, 1, 2, 3), nil},
		"moved":     {moved, members(4)},
	} {
		if _, _, err := g.core(1).ProposeMembership(lists[0], lists[1]); !errors.Is(err, raft.ErrMembership) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if g.r(1).Core.Status().Last != 1 {
		t.Error("a refused change is in the log")
	}
}

// An answer to a read of an earlier life is not taken for one of this.
func TestReadAnswerOfAnEarlierLife(t *testing.T) {
	g := led(t, 3)
	life := 0
	g.random = func(n int) int { life++; return life % n }
	g.crash(2)
	g.start(2)
	g.tick(1, 1)
	g.settle()
	g.must(g.core(2).ReadIndex(1))
	g.turn()
	asked := take[*raft.ReadIndexRequest](g, 2)
	g.crash(2)
	g.start(2)
	g.tick(1, 1)
	g.settle()
	g.must(g.core(2).ReadIndex(1))
	g.turn()
	take[*raft.ReadIndexRequest](g, 2) // lost
	g.deliver(asked[0])
	g.settle()
	if rs := g.r(2).Reads; len(rs) != 0 {
		t.Errorf("answers %+v to another question", rs)
	}
}

// TimeoutNow goes out only when the target has the whole log.
func TestTransferWaitsForTheLog(t *testing.T) {
	g := led(t, 3)
	g.isolate(3)
	g.propose(1, "a")
	g.join()
	g.must(g.core(1).TransferLeadership(3))
	g.turn()
	if told := take[*raft.TimeoutNow](g, 1); len(told) != 0 {
		t.Error("a target that lags is told to campaign")
	}
	g.tick(1, 1)
	g.settle()
	if g.core(3).Role() != raft.Leader {
		t.Error("the target does not lead")
	}
}

// A snapshot that is said to be installed lets the leader go on behind it, even
// if the follower's own word is lost.
func TestSnapshotDoneGoesOn(t *testing.T) {
	g := led(t, 3)
	g.crash(3)
	for range 5 {
		g.propose(1, "x")
	}
	g.r(1).Flush()
	g.r(1).Disk.Compact(6)
	g.start(3)
	g.tick(1, 1)
	g.settle()
	if n := len(g.r(1).Snapshots); n != 1 {
		t.Fatalf("%d snapshots asked for", n)
	}
	g.core(1).SnapshotDone(3, 6, false)
	g.tick(1, 1)
	g.settle()
	if n := len(g.r(1).Snapshots); n != 2 {
		t.Fatalf("%d snapshots asked for after one failed", n)
	}
	g.core(1).SnapshotDone(3, 6, true)
	if p := g.core(1).Status().Progress[1]; p.State == raft.Snapshot || p.Next != 7 {
		t.Errorf("goes on with %+v", p)
	}
}

// A write that becomes durable vouches for nothing that took the place of its
// entries since: the acknowledgement of entries 1 to 3 of term 1 says nothing of
// those that a newer leader has put there.
func TestAReplacedWriteVouchesForNothing(t *testing.T) {
	g := idle(t, 3)
	say := func(from raft.ReplicaID, term raft.Term, b raft.Body) {
		t.Helper()
		g.must(g.core(1).Step(raft.Message{Group: rafttest.Group, From: from, To: 1, Term: term, Body: b}))
		g.must(g.r(1).Turn())
	}
	say(2, 1, &raft.AppendEntries{Entries: entries(1, 1, 1, 1)})
	say(3, 2, &raft.AppendEntries{}) // a write of its own for term 2
	say(3, 2, &raft.AppendEntries{PrevLogIndex: 1, PrevLogTerm: 1, Entries: entries(2, 2, 2, 2)})
	g.must(g.r(1).Persist(2)) // the entries of term 1, and term 2; not its entries
	take[*raft.AppendEntriesReply](g, 1)
	say(3, 2, &raft.AppendEntries{PrevLogIndex: 4, PrevLogTerm: 2})
	out := take[*raft.AppendEntriesReply](g, 1)
	if b := reply[*raft.AppendEntriesReply](g, out); b.MatchIndex != 1 {
		t.Errorf("acknowledges %d, on its disk only entry 1 is the leader's", b.MatchIndex)
	}
	g.must(g.r(1).Persist(g.r(1).Unsynced()))
	out = take[*raft.AppendEntriesReply](g, 1)
	if b := reply[*raft.AppendEntriesReply](g, out); b.MatchIndex != 4 {
		t.Errorf("acknowledges %d once all is durable", b.MatchIndex)
	}
}

// Entries are applied once they are committed and durable here, so that the log
// is never behind the state machine.
func TestAppliesOnlyWhatIsDurableHere(t *testing.T) {
	g := idle(t, 3)
	g.must(g.core(1).Step(message(1, &raft.AppendEntries{Entries: entries(1, 1, 1), LeaderCommit: 2})))
	g.turn()
	if c, n := g.core(1).CommitIndex(), g.r(1).Unapplied(); c != 2 || n != 0 {
		t.Errorf("%d entries are handed out before they are durable; committed %d", n, c)
	}
	g.must(g.r(1).Persist(1))
	if n := g.r(1).Unapplied(); n != 2 {
		t.Errorf("%d entries are handed out when both are durable", n)
	}
}

func TestUncommittedLimit(t *testing.T) {
	g := restartWith(t, 3, raft.Options{MaxUncommittedBytes: 1000})
	g.isolate(1)
	n := 0
	for ; n < 100; n++ {
		if _, _, err := g.core(1).Propose(make([]byte, 100)); errors.Is(err, raft.ErrUncommittedFull) {
			break
		}
	}
	if n < 5 || n > 10 {
		t.Errorf("%d proposals of 100 bytes are taken with a limit of 1000", n)
	}
	g.join()
	for range 3 {
		g.tick(1, 1)
		g.settle()
	}
	if _, _, err := g.core(1).Propose(make([]byte, 5000)); err != nil {
		t.Errorf("one that is larger than the limit, with nothing before it: %v", err)
	}
	g.settle()
	if b := g.core(1).Status().PendingBytes; b != 0 {
		t.Errorf("%d bytes pending at rest", b)
	}
}

// What is handed out and not applied is bounded; saying that it is applied
// makes room.
func TestUnappliedLimit(t *testing.T) {
	g := restartWith(t, 1, raft.Options{MaxApplyBytes: 100, MaxUnappliedBytes: 300})
	for range 20 {
		_, _, err := g.core(1).Propose(make([]byte, 68))
		g.must(err)
	}
	g.turn()
	g.must(g.r(1).Persist(g.r(1).Unsynced()))
	if n := g.r(1).Unapplied(); n != 3 {
		t.Errorf("%d entries of 100 bytes are handed out with a limit of 300", n)
	}
	g.settle()
	if a := g.r(1).Machine.Applied; a != 21 {
		t.Errorf("applied %d", a)
	}
}

func TestReadLimit(t *testing.T) {
	g := restartWith(t, 3, raft.Options{MaxPendingReads: 2})
	for _, id := range []raft.ReplicaID{1, 2} {
		g.must(g.core(id).ReadIndex(1))
		g.must(g.core(id).ReadIndex(2))
		if err := g.core(id).ReadIndex(3); !errors.Is(err, raft.ErrReadsFull) {
			t.Errorf("replica %d: %v", id, err)
		}
	}
}

// What Step refuses changes nothing.
func TestRefusedMessages(t *testing.T) {
	bad := func(e raft.Entry) raft.Body { return &raft.AppendEntries{Entries: []raft.Entry{e}} }
	for name, c := range map[string]struct {
		m    raft.Message
		want error
	}{
		"group":         {raft.Message{Group: 9, From: 2, To: 1, Term: 5, Body: &raft.AppendEntries{}}, raft.ErrWrongGroup},
		"to another":    {raft.Message{Group: rafttest.Group, From: 2, To: 3, Term: 5, Body: &raft.AppendEntries{}}, raft.ErrWrongReplica},
		"from nobody":   {raft.Message{Group: rafttest.Group, To: 1, Term: 5, Body: &raft.AppendEntries{}}, raft.ErrUnknownReplica},
		"from itself":   {raft.Message{Group: rafttest.Group, From: 1, To: 1, Term: 5, Body: &raft.AppendEntries{}}, raft.ErrUnknownReplica},
		"term 0":        {message(0, &raft.AppendEntries{}), raft.ErrTermJump},
		"last term":     {message(math.MaxUint64, &raft.AppendEntries{}), raft.ErrTermJump},
		"term jump":     {message(1<<40, &raft.AppendEntries{}), raft.ErrTermJump},
		"no body":       {message(5, nil), raft.ErrBadMessage},
		"nil body":      {message(5, (*raft.AppendEntries)(nil)), raft.ErrBadMessage},
		"gap":           {message(5, bad(raft.Entry{Index: 2, Term: 5})), raft.ErrBadMessage},
		"entry term 0":  {message(5, bad(raft.Entry{Index: 1})), raft.ErrBadMessage},
		"future entry":  {message(5, bad(raft.Entry{Index: 1, Term: 6})), raft.ErrBadMessage},
		"unknown kind":  {message(5, bad(raft.Entry{Index: 1, Term: 5, Kind: 77})), raft.ErrBadMessage},
		"membership":    {message(5, bad(raft.Entry{Index: 1, Term: 5, Kind: raft.EntryMembership, Data: []byte{1, 2, 3}})), raft.ErrBadMessage},
		"terms fall":    {message(5, &raft.AppendEntries{PrevLogIndex: 1, PrevLogTerm: 4, Entries: entries(2, 3)}), raft.ErrBadMessage},
		"last index":    {message(5, &raft.AppendEntries{PrevLogIndex: math.MaxUint64, PrevLogTerm: 4}), raft.ErrBadMessage},
		"zero snapshot": {message(5, &raft.InstallSnapshot{}), raft.ErrBadMessage},
	} {
		g := withLog(t, 3, 1, 1, 1)
		before := g.core(1).Status()
		if err := g.core(1).Step(c.m); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if after := g.core(1).Status(); after.Term != before.Term || after.Last != before.Last || after.Leader != before.Leader {
			t.Errorf("%s: changed to %+v", name, after)
		}
	}
}

func message(term raft.Term, body raft.Body) raft.Message {
	return raft.Message{Group: rafttest.Group, From: 2, To: 1, Term: term, Body: body}
}

func TestMembershipCodec(t *testing.T) {
	for _, m := range []raft.Membership{
		{},
		{Epoch: 1, Voters: members(1)},
		{Epoch: 1 << 60, Voters: members(1, 2, 300), Outgoing: members(2, 7), Learners: members(7, 1<<50)},
		{Epoch: 9, Voters: members(3), Floor: 1 << 40, Survivor: 3},
	} {
		b := m.Encode()
		got, err := raft.DecodeMembership(b)
		if err != nil || got.Epoch != m.Epoch || !slices.Equal(got.Voters, m.Voters) || !slices.Equal(got.Outgoing, m.Outgoing) || !slices.Equal(got.Learners, m.Learners) || got.Floor != m.Floor || got.Survivor != m.Survivor {
			t.Errorf("%+v comes back as %+v, %v", m, got, err)
		}
		for cut := range len(b) {
			if _, err := raft.DecodeMembership(b[:cut]); err == nil {
				t.Errorf("%d of %d bytes decode", cut, len(b))
			}
		}
		if _, err := raft.DecodeMembership(append(b, 0)); err == nil {
			t.Error("a byte too many decodes")
		}
	}
}

// A round that a learner has confirmed is enough as soon as it votes: what it has
// said before counts, and a round that nobody answers would hold up all reads.
func TestARoundIsCountedAnewWhenALearnerVotes(t *testing.T) {
	g := led(t, 2)
	g.add(members(3)[0], raft.Membership{})
	_, _, err := g.core(1).ProposeMembership(members(1, 2), members(3))
	g.must(err)
	g.settle()
	g.cut[[2]raft.ReplicaID{2, 1}], g.lost = true, nil
	_, _, err = g.core(1).ProposeMembership(members(1, 3), nil)
	g.must(err)
	g.settle()
	late := g.lost // 2 has the joint membership, and says so later
	g.cut[[2]raft.ReplicaID{1, 2}] = true
	g.must(g.core(1).ReadIndex(7))
	g.settle()
	if rs := g.r(1).Reads; len(rs) != 0 {
		t.Fatalf("answers %+v without the majority that goes", rs)
	}
	g.join()
	for _, m := range late {
		g.deliver(m)
	}
	g.isolate(2)
	g.settle()
	g.tick(1, 2)
	g.settle()
	if s := g.core(1).Status(); len(s.Membership.Outgoing) > 0 {
		t.Fatalf("the membership is still %+v", s.Membership)
	}
	if rs := g.r(1).Reads; len(rs) != 1 || !rs[0].OK {
		t.Errorf("answers %+v though both voters confirmed the round", rs)
	}
}
