package raft_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/raft/rafttest"
)

// Each test names the sentence of the paper (or of the thesis) that it holds
// the core to.

// 5.1: "If one server's current term is smaller than the other's, then it
// updates its current term to the larger value. If a candidate or leader
// discovers that its term is out of date, it immediately reverts to follower
// state."
func TestLaterTermMakesFollower(t *testing.T) {
	for name, body := range map[string]raft.Body{
		"append":      &raft.AppendEntries{},
		"appendReply": &raft.AppendEntriesReply{},
		"voteReply":   &raft.RequestVoteReply{},
		"readReply":   &raft.ReadIndexReply{},
	} {
		for _, role := range []raft.Role{raft.Follower, raft.PreCandidate, raft.Candidate, raft.Leader} {
			t.Run(name+"/"+role.String(), func(t *testing.T) {
				g := idle(t, 3)
				bring(g, role)
				g.step(2, 1, 9, body)
				if s := g.core(1).Status(); s.Term != 9 || s.Role != raft.Follower {
					t.Errorf("is %v of term %d", s.Role, s.Term)
				}
				if g.r(1).Disk.Hard.Term != 9 {
					t.Errorf("term %d is on the disk", g.r(1).Disk.Hard.Term)
				}
			})
		}
	}
}

// bring lets replica 1 reach a role in a young group.
func bring(g *group, role raft.Role) {
	g.t.Helper()
	switch role {
	case raft.PreCandidate:
		g.core(1).Campaign()
		g.turn()
	case raft.Candidate:
		g.core(1).Campaign()
		g.turn()
		g.step(2, 1, 1, &raft.RequestVoteReply{PreVote: true, Granted: true})
	case raft.Leader:
		g.elect(1)
	}
	if g.core(1).Role() != role {
		g.t.Fatalf("is %v, wanted %v", g.core(1).Role(), role)
	}
}

// 5.1: "If a server receives a request with a stale term number, it rejects
// the request."
func TestRejectStaleTerm(t *testing.T) {
	g := withLog(t, 3, 1, 1, 2, 3)
	before := g.core(1).Status()
	out := g.step(2, 1, 2, &raft.AppendEntries{PrevLogIndex: 2, PrevLogTerm: 2, Entries: entries(3, 2), LeaderCommit: 3})
	if b := reply[*raft.AppendEntriesReply](g, out); b.Success || out[0].Term != 3 {
		t.Errorf("append: %+v in term %d", b, out[0].Term)
	}
	out = g.step(2, 1, 2, &raft.RequestVote{LastLogIndex: 9, LastLogTerm: 9})
	if b := reply[*raft.RequestVoteReply](g, out); b.Granted || out[0].Term != 3 {
		t.Errorf("vote: %+v in term %d", b, out[0].Term)
	}
	if after := g.core(1).Status(); after.Last != before.Last || after.Commit != before.Commit || after.Vote != before.Vote {
		t.Errorf("changed from %+v to %+v", before, after)
	}
}

// 5.2: "When servers start up, they begin as followers."
func TestStartAsFollower(t *testing.T) {
	g := led(t, 3)
	g.crash(1)
	g.start(1)
	if role := g.core(1).Role(); role != raft.Follower {
		t.Errorf("starts as %v", role)
	}
}

// 5.2: "Leaders send periodic heartbeats (AppendEntries RPCs that carry no log
// entries) to all followers in order to maintain their authority."
func TestLeaderHeartbeats(t *testing.T) {
	g := led(t, 3)
	for range 3 {
		g.tick(1, 1)
		beats := take[*raft.AppendEntries](g, 1)
		if len(beats) != 2 {
			t.Fatalf("%d heartbeats", len(beats))
		}
		for _, m := range beats {
			if b := m.Body.(*raft.AppendEntries); len(b.Entries) != 0 || b.PrevLogIndex != 1 {
				t.Errorf("heartbeat to %d: %+v", m.To, b)
			}
		}
	}
}

// 5.2: "If a follower receives no communication over a period of time called
// the election timeout, then it assumes there is no viable leader and begins
// an election." With pre-vote (thesis 9.6) it asks first, and its term stays.
func TestTimeoutBeginsElection(t *testing.T) {
	g := idle(t, 3)
	g.tick(1, electionTicks-1)
	if n := len(g.r(1).Outbox); n != 0 {
		t.Fatalf("%d messages before the timeout", n)
	}
	g.tick(1, 1)
	asked := take[*raft.RequestVote](g, 1)
	if len(asked) != 2 || !asked[0].Body.(*raft.RequestVote).PreVote || asked[0].Term != 1 || g.core(1).Term() != 0 {
		t.Fatalf("asks %+v in term %d", asked, g.core(1).Term())
	}
}

// 5.2: "a follower increments its current term and transitions to candidate
// state. It then votes for itself and issues RequestVote RPCs in parallel to
// each of the other servers in the cluster."
func TestCandidateAsksAll(t *testing.T) {
	g := idle(t, 5)
	g.core(1).Campaign()
	g.turn()
	for id := raft.ReplicaID(2); id <= 3; id++ {
		g.must(g.core(1).Step(raft.Message{Group: rafttest.Group, From: id, To: 1, Term: 1, Body: &raft.RequestVoteReply{PreVote: true, Granted: true}}))
	}
	g.turn()
	if s := g.core(1).Status(); s.Role != raft.Candidate || s.Term != 1 || s.Vote != 1 {
		t.Fatalf("%+v", s)
	}
	take[*raft.RequestVote](g, 1)
	g.must(g.r(1).Persist(g.r(1).Unsynced()))
	if asked := take[*raft.RequestVote](g, 1); len(asked) != 4 {
		t.Errorf("asks %d", len(asked))
	}
}

// Figure 2: persistent state is "updated on stable storage before responding
// to RPCs". Nobody is asked for a vote, or given one, before it is on disk.
func TestVoteIsDurableFirst(t *testing.T) {
	g := idle(t, 3)
	bring(g, raft.Candidate) // persisted by step
	g = idle(t, 3)
	g.core(1).Campaign()
	g.turn()
	take[*raft.RequestVote](g, 1)
	g.must(g.core(1).Step(raft.Message{Group: rafttest.Group, From: 2, To: 1, Term: 1, Body: &raft.RequestVoteReply{PreVote: true, Granted: true}}))
	g.turn()
	if out := g.r(1).Outbox; len(out) != 0 {
		t.Errorf("says %+v before its vote is durable", out)
	}
	g.must(g.core(2).Step(raft.Message{Group: rafttest.Group, From: 1, To: 2, Term: 1, Body: &raft.RequestVote{}}))
	g.turn()
	if out := g.r(2).Outbox; len(out) != 0 {
		t.Errorf("answers %+v before its vote is durable", out)
	}
	g.must(g.r(2).Persist(1))
	if out := g.r(2).Outbox; len(out) != 1 || !out[0].Body.(*raft.RequestVoteReply).Granted {
		t.Errorf("answers %+v", out)
	}
}

// 5.2: "A candidate wins an election if it receives votes from a majority of
// the servers in the full cluster for the same term."
func TestMajorityWins(t *testing.T) {
	for _, c := range []struct {
		n, granted int
		leads      bool
	}{{1, 0, true}, {2, 0, false}, {2, 1, true}, {3, 0, false}, {3, 1, true}, {4, 1, false}, {4, 2, true}, {5, 1, false}, {5, 2, true}} {
		g := idle(t, c.n)
		g.core(1).Campaign()
		g.turn()
		for id := raft.ReplicaID(2); int(id) <= c.n; id++ {
			g.step(id, 1, 1, &raft.RequestVoteReply{PreVote: true, Granted: true})
		}
		g.must(g.r(1).Persist(g.r(1).Unsynced()))
		for id := raft.ReplicaID(2); int(id) < 2+c.granted; id++ {
			g.step(id, 1, 1, &raft.RequestVoteReply{Granted: true})
			g.step(id, 1, 1, &raft.RequestVoteReply{Granted: true}) // repeated: counts once
		}
		if got := g.core(1).Role() == raft.Leader; got != c.leads {
			t.Errorf("%d of %d others granted: leads %v", c.granted, c.n-1, got)
		}
	}
}

// 5.2: "Each server will vote for at most one candidate in a given term, on a
// first-come-first-served basis", restarts included.
func TestOneVoteATerm(t *testing.T) {
	g := idle(t, 3)
	vote := func(from raft.ReplicaID) bool {
		return reply[*raft.RequestVoteReply](g, g.step(from, 1, 5, &raft.RequestVote{LastLogIndex: 1, LastLogTerm: 1})).Granted
	}
	if !vote(2) || vote(3) || !vote(2) {
		t.Error("votes are not first come, first served")
	}
	g.crash(1)
	g.start(1)
	if vote(3) {
		t.Error("a second vote after a restart")
	}
	if !vote(2) {
		t.Error("its own vote is forgotten after a restart")
	}
}

// 5.2: "If the leader's term is at least as large as the candidate's current
// term, then the candidate recognizes the leader as legitimate and returns to
// follower state. If the term in the RPC is smaller than the candidate's
// current term, then the candidate rejects the RPC and continues in candidate
// state."
func TestCandidateMeetsLeader(t *testing.T) {
	g := idle(t, 3)
	bring(g, raft.Candidate)
	g.step(2, 1, 1, &raft.AppendEntries{})
	if s := g.core(1).Status(); s.Role != raft.Follower || s.Leader != 2 {
		t.Errorf("same term: %v of leader %d", s.Role, s.Leader)
	}
	g = withLog(t, 3, 1, 4)
	g.core(1).Campaign()
	g.turn()
	g.step(2, 1, 5, &raft.RequestVoteReply{PreVote: true, Granted: true})
	g.step(2, 1, 4, &raft.AppendEntries{})
	if s := g.core(1).Status(); s.Role != raft.Candidate {
		t.Errorf("older term: %v", s.Role)
	}
}

// 5.2: "election timeouts are chosen randomly from a fixed interval".
func TestTimeoutsAreRandom(t *testing.T) {
	seen := map[int]bool{}
	for k := range electionTicks {
		g := idle(t, 3)
		g.random = func(n int) int { return k % n }
		g.crash(1)
		g.start(1)
		n := 0
		for ; g.core(1).Role() == raft.Follower; n++ {
			g.tick(1, 1)
		}
		if n < electionTicks || n >= 2*electionTicks {
			t.Errorf("timeout of %d ticks", n)
		}
		seen[n] = true
	}
	if len(seen) != electionTicks {
		t.Errorf("%d different timeouts", len(seen))
	}
}

// 5.3: "The leader appends the command to its log as a new entry, then issues
// AppendEntries RPCs in parallel to each of the other servers": before its own
// disk has it.
func TestLeaderReplicatesInParallel(t *testing.T) {
	g := led(t, 3)
	g.propose(1, "a")
	i, _, err := g.core(1).Propose([]byte("b"))
	g.must(err)
	g.turn()
	sent := take[*raft.AppendEntries](g, 1)
	if len(sent) != 2 || g.r(1).Unsynced() != 1 {
		t.Fatalf("%d messages with %d writes under way", len(sent), g.r(1).Unsynced())
	}
	for _, m := range sent {
		if b := m.Body.(*raft.AppendEntries); len(b.Entries) != 1 || b.Entries[0].Index != i || string(b.Entries[0].Data) != "b" {
			t.Errorf("to %d: %+v", m.To, b)
		}
	}
}

// 5.3: "A log entry is committed once the leader that created the entry has
// replicated it on a majority of the servers." Its own copy counts when it is
// durable.
func TestCommitByMajority(t *testing.T) {
	g := led(t, 3)
	i, _, err := g.core(1).Propose([]byte("a"))
	g.must(err)
	g.turn()
	g.must(g.core(1).Step(raft.Message{Group: rafttest.Group, From: 2, To: 1, Term: 1, Body: &raft.AppendEntriesReply{Success: true, MatchIndex: i}}))
	if c := g.core(1).CommitIndex(); c != i-1 {
		t.Errorf("committed %d with one durable copy", c)
	}
	// Replica 2 has it on disk too, in truth.
	for _, m := range take[*raft.AppendEntries](g, 1) {
		g.deliver(m)
	}
	g.must(g.r(2).Persist(1))
	g.must(g.r(1).Persist(1))
	if c := g.core(1).CommitIndex(); c != i {
		t.Errorf("committed %d with two durable copies", c)
	}
}

// 5.3: committing "also commits all preceding entries in the leader's log,
// including entries created by previous leaders"; "once a follower learns that
// a log entry is committed, it applies the entry to its local state machine
// (in log order)".
func TestCommitCarriesPredecessors(t *testing.T) {
	g := withLog(t, 3, 1, 1, 2)
	g.fill(2, 1)
	g.elect(1)
	for id := raft.ReplicaID(1); id <= 3; id++ {
		if a := g.r(id).Machine.Applied; a != 3 {
			t.Errorf("replica %d applied %d", id, a)
		}
	}
}

// 5.3: "If the follower does not find an entry in its log with the same index
// and term, then it refuses the new entries."
func TestConsistencyCheck(t *testing.T) {
	for _, c := range []struct {
		prev     raft.Index
		prevTerm raft.Term
		ok       bool
		conflict raft.Term
		index    raft.Index
	}{
		{0, 0, true, 0, 0},
		{3, 2, true, 0, 0},
		{3, 3, false, 2, 2},
		{5, 4, true, 0, 0},
		{6, 4, false, 0, 6},
		{9, 4, false, 0, 6},
	} {
		g := withLog(t, 3, 1, 1, 2, 2, 4, 4)
		b := reply[*raft.AppendEntriesReply](g, g.step(2, 1, 5, &raft.AppendEntries{PrevLogIndex: c.prev, PrevLogTerm: c.prevTerm}))
		if b.Success != c.ok || !c.ok && (b.ConflictTerm != c.conflict || b.ConflictIndex != c.index || b.RejectedPrev != c.prev) {
			t.Errorf("behind %d of term %d: %+v", c.prev, c.prevTerm, b)
		}
	}
}

// 5.3, figure 7: the leader brings any follower's log to its own.
func TestLeaderRepairsFollowers(t *testing.T) {
	leader := []raft.Term{1, 1, 1, 4, 4, 5, 5, 6, 6, 6}
	for name, follower := range map[string][]raft.Term{
		"a": {1, 1, 1, 4, 4, 5, 5, 6, 6},
		"b": {1, 1, 1, 4},
		"c": {1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6},
		"d": {1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7},
		"e": {1, 1, 1, 4, 4, 4, 4},
		"f": {1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3},
	} {
		t.Run(name, func(t *testing.T) {
			// The third replica is empty; with it and without the follower
			// the leader is elected, in a term above all.
			g := idle(t, 3)
			g.fill(2, follower...)
			g.fill(1, leader...)
			g.step(3, 1, 8, &raft.AppendEntriesReply{})
			g.isolate(2)
			g.elect(1)
			g.join()
			for range 3 {
				g.tick(1, 1)
				g.settle()
			}
			one, two := g.core(1).Status(), g.core(2).Status()
			if one.Last != two.Last || two.Commit != one.Last || g.r(2).Machine.Chain != g.r(1).Machine.Chain {
				t.Errorf("leader %+v\nfollower %+v", one, two)
			}
		})
	}
}

// End of 5.3: "one AppendEntries RPC will be required for each term with
// conflicting entries, rather than one RPC per entry".
func TestBackUpByTerms(t *testing.T) {
	g := idle(t, 3)
	long := []raft.Term{1}
	for range 200 {
		long = append(long, 2)
	}
	g.fill(2, long...)
	g.fill(1, 1, 3, 3)
	g.isolate(2)
	g.elect(1)
	g.join()
	g.tick(1, 1)
	refusals := 0
	for g.core(2).CommitIndex() < g.core(1).CommitIndex() && refusals < 100 {
		for _, m := range g.r(2).Outbox {
			if b, ok := m.Body.(*raft.AppendEntriesReply); ok && !b.Success {
				refusals++
			}
		}
		if !g.round() {
			g.tick(1, 1)
		}
	}
	if refusals > 4 {
		t.Errorf("%d refusals for two terms", refusals)
	}
}

// 5.3: "If an existing entry conflicts with a new one (same index but
// different terms), delete the existing entry and all that follow it"; and
// only then: a late or repeated message removes nothing.
func TestTruncateOnlyOnConflict(t *testing.T) {
	g := withLog(t, 3, 1, 1, 1, 1)
	g.step(2, 1, 1, &raft.AppendEntries{Entries: entries(1, 1)})
	if last := g.core(1).Status().Last; last != 3 {
		t.Errorf("a late message leaves %d entries", last)
	}
	g.step(2, 1, 2, &raft.AppendEntries{PrevLogIndex: 1, PrevLogTerm: 1, Entries: entries(2, 2)})
	if last := g.core(1).Status().Last; last != 2 {
		t.Errorf("a conflict leaves %d entries", last)
	}
}

// Figure 2: "If leaderCommit > commitIndex, set commitIndex = min(leaderCommit,
// index of last new entry)": not beyond what the message vouches for.
func TestCommitOnlyWhatTheMessageVouchesFor(t *testing.T) {
	g := withLog(t, 3, 1, 1, 1, 1)
	g.step(2, 1, 2, &raft.AppendEntries{PrevLogIndex: 1, PrevLogTerm: 1, LeaderCommit: 3})
	if c := g.core(1).CommitIndex(); c != 1 {
		t.Errorf("heartbeat behind 1 commits %d", c)
	}
	g.step(2, 1, 2, &raft.AppendEntries{PrevLogIndex: 1, PrevLogTerm: 1, Entries: entries(2, 1), LeaderCommit: 3})
	if c := g.core(1).CommitIndex(); c != 2 {
		t.Errorf("an entry at 2 commits %d", c)
	}
}

// 5.4.1: "the voter denies its vote if its own log is more up-to-date than
// that of the candidate".
func TestVoterComparesLogs(t *testing.T) {
	for _, c := range []struct {
		log     []raft.Term
		index   raft.Index
		term    raft.Term
		granted bool
	}{
		{nil, 0, 0, true},
		{[]raft.Term{1}, 0, 0, false},
		{[]raft.Term{1, 1}, 1, 1, false},
		{[]raft.Term{1, 1}, 2, 1, true},
		{[]raft.Term{1, 1}, 3, 1, true},
		{[]raft.Term{1, 2}, 9, 1, false},
		{[]raft.Term{1, 1, 1}, 1, 2, true},
	} {
		for _, pre := range []bool{true, false} {
			g := withLog(t, 3, 1, c.log...)
			b := reply[*raft.RequestVoteReply](g, g.step(2, 1, 9, &raft.RequestVote{PreVote: pre, LastLogIndex: c.index, LastLogTerm: c.term}))
			if b.Granted != c.granted {
				t.Errorf("log %v, candidate's ends at %d of term %d, pre %v: granted %v", c.log, c.index, c.term, pre, b.Granted)
			}
		}
	}
}

// 5.4.2, figure 8: "Raft never commits log entries from previous terms by
// counting replicas. Only log entries from the leader's current term are
// committed by counting replicas."
func TestOldTermsAreNotCounted(t *testing.T) {
	g := withLog(t, 3, 1, 1, 2)
	g.fill(2, 1)
	g.core(1).LeaderLost()
	g.core(2).LeaderLost()
	g.core(1).Campaign()
	for g.core(1).Role() != raft.Leader {
		g.round()
	}
	// Its no-op at 3 is on no other disk; 2, of term 2, is on a majority's.
	g.step(2, 1, 3, &raft.AppendEntriesReply{Success: true, MatchIndex: 2})
	if c := g.core(1).CommitIndex(); c != 0 {
		t.Fatalf("committed %d by counting an old term", c)
	}
	g.settle()
	g.tick(1, 1)
	g.settle()
	if c := g.core(1).CommitIndex(); c != 3 {
		t.Errorf("committed %d", c)
	}
}

// 5.5: "If a follower or candidate crashes, then future RPCs sent to it will
// fail. Raft handles these failures by retrying indefinitely."
func TestCrashedFollowerCatchesUp(t *testing.T) {
	g := led(t, 3)
	g.crash(3)
	for range 20 {
		g.propose(1, "x")
	}
	g.start(3)
	g.tick(1, 1)
	g.settle()
	if a := g.r(3).Machine.Applied; a != 21 {
		t.Errorf("applied %d", a)
	}
}

// 6 and thesis 4.3: "Agreement (for elections and entry commitment) requires
// majorities from both the old and new configurations."
func TestJointNeedsBothMajorities(t *testing.T) {
	for _, away := range [][]raft.ReplicaID{{4, 5}, {2, 3}} {
		g := led(t, 3)
		for id := raft.ReplicaID(4); id <= 6; id++ {
			g.add(members(id)[0], raft.Membership{})
		}
		_, _, err := g.core(1).ProposeMembership(members(1, 2, 3), members(4, 5, 6))
		g.must(err)
		g.settle()
		for _, id := range away {
			g.isolate(id)
		}
		i, _, err := g.core(1).ProposeMembership(members(4, 5, 6), nil)
		g.must(err)
		g.settle()
		if c := g.core(1).CommitIndex(); c >= i {
			t.Fatalf("%d is committed without %v", i, away)
		}
		g.join()
		g.tick(1, 1)
		g.settle()
		if m := g.core(4).Membership(); m.Joint() || len(m.Voters) != 3 || m.Voters[0].Replica != 4 {
			t.Errorf("membership %+v", m)
		}
	}
}

// 6: "Once a given server adds the new configuration entry to its log, it uses
// that configuration for all future decisions (a server always uses the latest
// configuration in its log, regardless of whether the entry is committed)";
// and falls back when it is truncated.
func TestMembershipFollowsTheLog(t *testing.T) {
	g := withLog(t, 3, 1, 1)
	next := raft.Membership{Epoch: 2, Voters: members(1, 2, 3), Learners: members(4)}
	e := raft.Entry{Index: 2, Term: 2, Kind: raft.EntryMembership, Data: next.Encode()}
	g.step(2, 1, 2, &raft.AppendEntries{PrevLogIndex: 1, PrevLogTerm: 1, Entries: []raft.Entry{e}})
	if m := g.core(1).Membership(); m.Epoch != 2 {
		t.Fatalf("epoch %d with the entry in the log", m.Epoch)
	}
	g.crash(1)
	g.start(1)
	if m := g.core(1).Membership(); m.Epoch != 2 {
		t.Fatalf("epoch %d after a restart", m.Epoch)
	}
	g.step(3, 1, 3, &raft.AppendEntries{PrevLogIndex: 1, PrevLogTerm: 1, Entries: entries(2, 3)})
	if m := g.core(1).Membership(); m.Epoch != 1 {
		t.Errorf("epoch %d with the entry truncated", m.Epoch)
	}
}

// 6: "the leader steps down (returns to follower state) once it has committed
// the log entry for the new configuration"; here it also names a successor.
func TestRemovedLeaderStepsDown(t *testing.T) {
	g := led(t, 3)
	_, _, err := g.core(1).ProposeMembership(members(2, 3), nil)
	g.must(err)
	g.settle()
	if g.core(1).Role() == raft.Leader {
		t.Error("the removed leader leads on")
	}
	if g.core(2).Role() != raft.Leader && g.core(3).Role() != raft.Leader {
		t.Error("nobody took over")
	}
	if m := g.core(1).Membership(); len(m.Voters) != 2 || m.Joint() {
		t.Errorf("the removed replica has not heard: %+v", m)
	}
}

// Thesis 4.1 (and the bug of 2015): no membership change before the leader has
// committed an entry of its own term, nor while another is pending.
func TestOneMembershipChangeAtATime(t *testing.T) {
	g := idle(t, 3)
	g.core(1).Campaign()
	for g.core(1).Role() != raft.Leader {
		g.round()
	}
	if _, _, err := g.core(1).ProposeMembership(members(1, 2, 3), members(4)); !errors.Is(err, raft.ErrNotYetCommitted) {
		t.Errorf("before an entry of its own term is committed: %v", err)
	}
	g.settle()
	if _, _, err := g.core(1).ProposeMembership(members(1, 2, 3), members(4)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := g.core(1).ProposeMembership(members(1, 2, 3), members(5)); !errors.Is(err, raft.ErrMembershipPending) {
		t.Errorf("while a change is pending: %v", err)
	}
}

// Thesis 4.1, as it was found in 2015: four servers, and two leaders that each
// begin a change in their own term, of which the first is on its leader alone.
// If the second need not commit anything before, both can be decided, by
// majorities that have nobody in common.
func TestTwoLeadersChangeTheMembership(t *testing.T) {
	for name, change := range map[string]struct{ first, second []raft.Member }{
		"add and remove": {members(1, 2, 3, 4, 5), members(2, 3, 4)},
		"two adds":       {members(1, 2, 3, 4, 5), members(1, 2, 3, 4, 6)},
		"two removes":    {members(1, 2, 3), members(2, 3, 4)},
	} {
		t.Run(name, func(t *testing.T) {
			g := led(t, 4)
			for id := raft.ReplicaID(5); id <= 6; id++ {
				g.add(members(id)[0], raft.Membership{})
			}
			if _, _, err := g.core(1).ProposeMembership(members(1, 2, 3, 4), members(5, 6)); err != nil {
				t.Fatal(err)
			}
			g.settle()
			g.isolate(1)
			if _, _, err := g.core(1).ProposeMembership(change.first, nil); err != nil {
				t.Fatal(err)
			}
			g.settle()
			for id := raft.ReplicaID(2); id <= 4; id++ {
				g.core(id).LeaderLost()
			}
			g.core(2).Campaign()
			for g.core(2).Role() != raft.Leader {
				g.round()
			}
			if _, _, err := g.core(2).ProposeMembership(change.second, nil); !errors.Is(err, raft.ErrNotYetCommitted) {
				t.Fatalf("before an entry of its own term is committed: %v", err)
			}
			g.settle()
			if _, _, err := g.core(2).ProposeMembership(change.second, nil); err != nil {
				t.Fatal(err)
			}
			g.settle()
			// The first leader is back, and its change is in its log.
			g.join()
			g.tick(1, 3*electionTicks) // it notices that it has no quorum
			g.core(1).Campaign()
			g.settle()
			g.tick(2, 1)
			g.settle()
			for id := raft.ReplicaID(1); id <= 4; id++ {
				m := g.core(id).Membership()
				if is := slices.Equal(m.Voters, change.second); !is && slices.ContainsFunc(change.second, func(v raft.Member) bool { return v.Replica == id }) {
					t.Errorf("replica %d has the voters %v", id, m.Voters)
				}
			}
			if g.core(1).Role() == raft.Leader || g.core(2).Role() != raft.Leader {
				t.Errorf("1 is %v, 2 is %v", g.core(1).Role(), g.core(2).Role())
			}
		})
	}
}

// 6, thesis 4.2.3: "if a server receives a RequestVote RPC within the minimum
// election timeout of hearing from a current leader, it does not update its
// term or grant its vote."
func TestLiveLeaderShieldsFromCandidates(t *testing.T) {
	g := led(t, 3)
	for _, pre := range []bool{true, false} {
		out := g.step(3, 2, 7, &raft.RequestVote{PreVote: pre, LastLogIndex: 99, LastLogTerm: 6})
		if b := reply[*raft.RequestVoteReply](g, out); b.Granted || g.core(2).Term() != 1 {
			t.Errorf("pre %v: %+v in term %d", pre, b, g.core(2).Term())
		}
	}
	g.tick(2, electionTicks-1)
	if b := reply[*raft.RequestVoteReply](g, g.step(3, 2, 7, &raft.RequestVote{LastLogIndex: 99, LastLogTerm: 6})); b.Granted {
		t.Error("granted before the minimum election timeout")
	}
	g = led(t, 3)
	g.core(2).LeaderLost()
	if b := reply[*raft.RequestVoteReply](g, g.step(3, 2, 7, &raft.RequestVote{LastLogIndex: 99, LastLogTerm: 6})); !b.Granted {
		t.Error("not granted although the leader is known to be dead")
	}
}

// Thesis 9.6: a partitioned replica that returns disturbs nobody.
func TestPreVoteKeepsTheTerm(t *testing.T) {
	g := led(t, 3)
	g.isolate(3)
	g.tick(3, 20*electionTicks)
	g.r(3).Outbox = nil
	g.join()
	g.tick(3, 2*electionTicks)
	g.settle()
	g.tick(1, 1)
	g.settle()
	if s := g.core(1).Status(); s.Role != raft.Leader || s.Term != 1 || g.core(3).Leader() != 1 {
		t.Errorf("leader is %v of term %d, replica 3 follows %d", s.Role, s.Term, g.core(3).Leader())
	}
}

// Thesis 6.2: "a leader in Raft steps down if an election timeout elapses
// without a successful round of heartbeats to a majority of its cluster".
func TestCheckQuorum(t *testing.T) {
	g := led(t, 3)
	g.isolate(1)
	for range 2 * electionTicks {
		g.tick(1, 1)
		g.settle()
	}
	if g.core(1).Role() == raft.Leader {
		t.Error("a leader that nobody hears leads on")
	}
}

// 7, figure 13: a snapshot replaces the log, unless the log holds its last
// entry: then "log entries covered by the snapshot are deleted but entries
// following the snapshot are still valid and must be retained".
func TestSnapshotAndLog(t *testing.T) {
	mark := raft.SnapshotMark{Index: 2, Term: 1, Membership: raft.Membership{Epoch: 1, Voters: members(1, 2, 3)}}
	for _, c := range []struct {
		log  []raft.Term
		last raft.Index
	}{{nil, 2}, {[]raft.Term{1}, 2}, {[]raft.Term{1, 1, 1}, 3}} {
		g := idle(t, 3)
		g.fill(2, 1, 1, 1)
		g.core(2).LeaderLost()
		g.isolate(1)
		g.elect(2) // commits the entries, with replica 3
		g.fill(1, c.log...)
		image := &rafttest.Machine{Membership: mark.Membership}
		image.Replay(entries(1, 1, 1))
		g.must(g.r(1).Install(raft.Message{Group: rafttest.Group, From: 2, To: 1, Term: g.core(2).Term(), Body: &raft.InstallSnapshot{Snapshot: mark}}, image, false))
		g.must(g.r(1).Persist(g.r(1).Unsynced()))
		if s := g.core(1).Status(); s.Last != c.last || s.Commit != 2 {
			t.Errorf("log %v: ends at %d, committed %d", c.log, s.Last, s.Commit)
		}
		acks := take[*raft.AppendEntriesReply](g, 1)
		if n := len(acks); n == 0 || acks[n-1].Body.(*raft.AppendEntriesReply).MatchIndex != 2 {
			t.Errorf("log %v: acknowledges %+v", c.log, acks)
		}
	}
}

// 7: a follower that lags behind the leader's log gets a snapshot.
func TestLaggardGetsSnapshot(t *testing.T) {
	g := led(t, 3)
	g.crash(3)
	for range 9 {
		g.propose(1, "x")
	}
	g.r(1).Flush()
	g.r(1).Disk.Compact(8)
	g.start(3)
	g.tick(1, 1)
	g.settle()
	if s := g.r(1).Snapshots; len(s) != 1 || s[0].Replica != 3 {
		t.Fatalf("snapshots for %+v", s)
	}
	image, m := g.r(1).Stream(3)
	g.must(g.r(3).Install(m, image, false))
	g.core(1).SnapshotDone(3, image.Applied, true)
	g.settle()
	g.propose(1, "y")
	if a := g.r(3).Machine.Applied; a != 11 {
		t.Errorf("applied %d", a)
	}
}

// 8: "a leader must have the latest information on which entries are
// committed [...] Raft handles this by having each leader commit a blank no-op
// entry into the log at the start of its term"; a read waits for that.
func TestReadWaitsForOwnTerm(t *testing.T) {
	g := led(t, 3)
	g.propose(1, "a")
	g.isolate(1)
	g.core(2).LeaderLost()
	g.core(3).LeaderLost()
	g.core(2).Campaign()
	for g.core(2).Role() != raft.Leader {
		g.round()
	}
	g.must(g.core(2).ReadIndex(1))
	g.turn()
	// Replica 3 confirms the leadership but has not stored the no-op.
	g.step(3, 2, 2, &raft.AppendEntriesReply{Success: true, MatchIndex: 2})
	if rs := g.r(2).Reads; len(rs) != 0 {
		t.Fatalf("answered %+v before an entry of the own term is committed", rs)
	}
	g.tick(2, 1)
	g.settle()
	if rs := g.r(2).Reads; len(rs) != 1 || !rs[0].OK || rs[0].Index < 3 {
		t.Errorf("answers %+v", rs)
	}
}

// 8: "a leader must check whether it has been deposed before processing a
// read-only request [...] by having the leader exchange heartbeat messages with
// a majority of the cluster before responding": messages from before the
// request prove nothing. All that wait share one round.
func TestReadNeedsARoundOfItsOwn(t *testing.T) {
	g := led(t, 3)
	g.tick(1, 1)
	old := take[*raft.AppendEntries](g, 1)
	for id := uint64(1); id <= 50; id++ {
		g.must(g.core(1).ReadIndex(id))
	}
	g.turn()
	fresh := take[*raft.AppendEntries](g, 1)
	if len(fresh) != 2 {
		t.Fatalf("%d messages for 50 reads", len(fresh))
	}
	for _, m := range old {
		g.deliver(m)
	}
	g.settle()
	if rs := g.r(1).Reads; len(rs) != 0 {
		t.Fatalf("answers %+v to a round from before", rs)
	}
	g.deliver(fresh[0])
	g.settle()
	if rs := g.r(1).Reads; len(rs) != 50 {
		t.Errorf("%d answers", len(rs))
	}
}

// 8: a deposed leader answers no read.
func TestDeposedLeaderRefusesReads(t *testing.T) {
	g := led(t, 3)
	g.isolate(1)
	g.elect(2)
	g.propose(2, "new")
	g.must(g.core(1).ReadIndex(1))
	g.settle()
	if rs := g.r(1).Reads; len(rs) != 0 {
		t.Fatalf("answers %+v alone", rs)
	}
	g.join()
	g.tick(2, 1)
	g.settle()
	if rs := g.r(1).Reads; len(rs) != 1 || rs[0].OK {
		t.Errorf("answers %+v", rs)
	}
}

// Thesis 6.4: a follower's read goes through the leader.
func TestFollowerRead(t *testing.T) {
	g := led(t, 3)
	i := g.propose(1, "a")
	g.must(g.core(2).ReadIndex(77))
	g.settle()
	if rs := g.r(2).Reads; len(rs) != 1 || rs[0] != (raft.ReadState{ID: 77, Index: i, OK: true}) {
		t.Errorf("answers %+v", rs)
	}
}

// Thesis 3.10: the leader brings the target's log to its own, sends TimeoutNow,
// and meanwhile takes no proposals; if the target does not take over within an
// election timeout, it goes on.
func TestTransfer(t *testing.T) {
	g := led(t, 3)
	g.isolate(3)
	g.propose(1, "a")
	g.must(g.core(1).TransferLeadership(3))
	if _, _, err := g.core(1).Propose(nil); !errors.Is(err, raft.ErrTransferring) {
		t.Errorf("proposal while transferring: %v", err)
	}
	for range electionTicks {
		g.tick(1, 1)
		g.settle()
	}
	if _, _, err := g.core(1).Propose(nil); err != nil {
		t.Errorf("proposal after the transfer was given up: %v", err)
	}
	g.join()
	g.tick(1, 1)
	g.settle()
	g.must(g.core(1).TransferLeadership(3))
	g.settle()
	if g.core(3).Role() != raft.Leader || g.core(3).Term() != 2 {
		t.Errorf("target is %v of term %d", g.core(3).Role(), g.core(3).Term())
	}
}

// TestALateVoteCounts: in the term of the last campaign, as long as nobody leads
// it, also when the next one is being prepared. A term is led once.
func TestALateVoteCounts(t *testing.T) {
	late := func(term raft.Term) (*group, raft.Status) {
		g := idle(t, 3)
		bring(g, raft.Candidate)
		for g.core(1).Status().Role == raft.Candidate {
			g.core(1).Tick()
			g.turn()
		}
		if s := g.core(1).Status(); s.Role != raft.PreCandidate || s.Term != 1 {
			t.Fatalf("after a fruitless campaign: %v of term %d", s.Role, s.Term)
		}
		g.step(2, 1, term, &raft.RequestVoteReply{Granted: true})
		return g, g.core(1).Status()
	}
	g, s := late(1)
	if s.Role != raft.Leader || s.Term != 1 {
		t.Fatalf("with a late vote: %v of term %d", s.Role, s.Term)
	}
	for g.core(1).Status().Role == raft.Leader { // nobody answers
		g.core(1).Tick()
		g.turn()
	}
	g.core(1).Campaign()
	g.turn()
	g.step(3, 1, 1, &raft.RequestVoteReply{Granted: true})
	if s := g.core(1).Status(); s.Role == raft.Leader {
		t.Fatalf("term %d is led twice", s.Term)
	}
	g = idle(t, 3)
	bring(g, raft.Candidate)
	g.step(2, 1, 1, &raft.AppendEntries{}) // somebody leads the term
	for g.core(1).Status().Role != raft.PreCandidate {
		g.core(1).Tick()
		g.turn()
	}
	g.step(3, 1, 1, &raft.RequestVoteReply{Granted: true})
	if s := g.core(1).Status(); s.Role == raft.Leader {
		t.Fatalf("term %d is led twice", s.Term)
	}
}
