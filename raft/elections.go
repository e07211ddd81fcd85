package raft

import (
	"fmt"
	"slices"
)

// maxFruitless bounds how far fruitless campaigns spread the next ones: the
// timeout is drawn from [E, E + (1+fruitless)*E).
const maxFruitless = 3

// election is the timer, and the votes of the campaign under way.
type election struct {
	elapsed     int // ticks since the timer was reset
	timeout     int // a campaign begins when elapsed reaches it
	sinceLeader int // ticks since a leader was heard, or since the start
	fruitless   int // campaigns since a leader was last known

	granted  []ReplicaID
	refused  []ReplicaID
	transfer bool   // the old leader asked for this campaign
	ownVote  uint64 // the write that makes our own vote durable; 0: it is counted

	// votes were granted to us in a term whose campaign we no longer wait for.
	// As long as we are in that term and nobody leads it, one that comes late
	// still counts: where messages take longer than a campaign, nobody would be
	// elected otherwise.
	votes     []ReplicaID
	votesTerm Term
}

// resetElectionTimer draws a new timeout (section 5.2: randomised, so that
// votes rarely split), from a wider range after fruitless campaigns.
func (r *Raft) resetElectionTimer() {
	e := r.options.ElectionTicks
	r.election.elapsed = 0
	r.election.timeout = e + r.rand(e*(1+min(r.election.fruitless, maxFruitless)))
}

// heardLeader notes a sign of life of the current leader.
func (r *Raft) heardLeader() {
	r.election.sinceLeader = 0
	r.election.fruitless = 0
	r.resetElectionTimer()
}

func (r *Raft) tickFollower() {
	r.election.elapsed++
	r.election.sinceLeader++
	if r.election.elapsed < r.election.timeout {
		return
	}
	if r.mayCampaign() && !r.promised() {
		r.preCampaign()
		return
	}
	// Nothing was heard for an election timeout: this leader is unknown now.
	r.becomeFollower(r.currentTerm, 0)
	r.resetElectionTimer()
}

// mayCampaign tells whether this replica could lead: one that trusts its own
// log, and is a voter now or was in a membership that may still be fallen back
// to. Thesis section 4.2.2: who is not part of its own latest configuration
// must still start elections, for it may be the only one who can be elected
// until that is committed; its own vote does not count then.
func (r *Raft) mayCampaign() bool {
	return !r.suspicion.on && r.memberships.anyVoter(r.self)
}

// promised tells whether a lease may rest on this replica's silence. It counts
// from the last sign of a leader, and after a start as if one had just been
// heard.
func (r *Raft) promised() bool {
	return r.options.LeaseReads && r.election.sinceLeader < r.options.ElectionTicks
}

// shielded tells whether candidates are to be ignored because there is a live
// leader (thesis section 4.2.3).
func (r *Raft) shielded() bool {
	if r.role == Leader || r.promised() {
		return true
	}
	return r.leader != 0 && r.election.sinceLeader < r.options.ElectionTicks
}

// Campaign starts an election now, as if the timeout had run out. A leader, a
// learner, a suspect replica and one whose promise to a lease still runs do
// nothing.
func (r *Raft) Campaign() {
	r.Wake()
	if r.role != Leader && r.mayCampaign() && !r.promised() {
		r.preCampaign()
	}
	r.afterStep()
}

// LeaderLost tells that the node of this replica's leader is dead or has a new
// boot: the replica wakes, no longer shields that leader, and campaigns within
// half an election timeout, at a random moment so that the others do not at
// the same. A promise to a lease is kept all the same.
func (r *Raft) LeaderLost() {
	r.Wake()
	if r.role != Follower || r.leader == 0 {
		return
	}
	r.becomeFollower(r.currentTerm, 0)
	r.election.elapsed = 0
	r.election.timeout = 1 + r.rand(max(1, r.options.ElectionTicks/2))
	if r.promised() {
		r.election.timeout += r.options.ElectionTicks - r.election.sinceLeader
	}
	r.afterStep()
}

// preCampaign asks whether an election could be won, without disturbing
// anyone's term (thesis section 9.6).
func (r *Raft) preCampaign() {
	if r.role == Candidate {
		r.election.votes, r.election.votesTerm = append(r.election.votes[:0], r.election.granted...), r.currentTerm
	}
	r.becomeFollower(r.currentTerm, 0)
	r.role = PreCandidate
	r.election.fruitless++
	r.resetElectionTimer()
	r.election.granted, r.election.refused = r.election.granted[:0], r.election.refused[:0]
	r.election.transfer, r.election.ownVote = false, 0
	r.askForVotes(r.currentTerm+1, true)
	r.countVote(r.self, true)
}

// campaign begins an election (section 5.2): a new term, and a vote for
// oneself that counts once it is durable. Nobody is asked before that either:
// after a crash this replica must not ask again in the same term, with what
// may be a shorter log.
func (r *Raft) campaign(transfer bool) {
	r.becomeFollower(r.currentTerm, 0)
	r.role = Candidate
	r.setHardState(r.currentTerm+1, r.self)
	r.resetElectionTimer()
	r.election.granted, r.election.refused = r.election.granted[:0], r.election.refused[:0]
	r.election.transfer, r.election.ownVote = transfer, r.disk.hardSeq
	r.askForVotes(r.currentTerm, false)
}

func (r *Raft) askForVotes(term Term, pre bool) {
	for _, m := range r.memberships.current().All() {
		if m.Replica == r.self || !r.memberships.current().IsVoter(m.Replica) {
			continue
		}
		b := &RequestVote{PreVote: pre, Transfer: r.election.transfer, LastLogIndex: r.log.last, LastLogTerm: r.log.lastTerm}
		if pre {
			r.sendNow(m.Replica, term, b)
		} else {
			r.send(m.Replica, b)
		}
	}
}

// handleRequestVote grants a vote at most once a term, to a candidate whose
// log is at least as up to date (sections 5.2, 5.4.1).
func (r *Raft) handleRequestVote(m *Message, b *RequestVote) {
	granted := r.mayVote(m, b) && r.log.isUpToDate(b.LastLogIndex, b.LastLogTerm)
	if b.PreVote {
		term := r.currentTerm
		if granted {
			term = m.Term
		}
		if term > 0 { // in term 0 nothing can be said; silence refuses as well
			r.sendNow(m.From, term, &RequestVoteReply{PreVote: true, Granted: granted})
		}
		return
	}
	if granted {
		r.setHardState(r.currentTerm, m.From)
		r.resetElectionTimer()
	}
	r.send(m.From, &RequestVoteReply{Granted: granted})
}

// mayVote tells whether this replica could grant the vote, logs aside. One that
// has never been told who the members are cannot; a learner can, for the
// candidate may know that it has become a voter.
func (r *Raft) mayVote(m *Message, b *RequestVote) bool {
	switch {
	case r.suspicion.on || r.memberships.current().Epoch == 0:
		return false
	case !b.Transfer && r.shielded():
		return false
	case b.PreVote:
		return m.Term > r.currentTerm
	}
	return m.Term == r.currentTerm && r.role != Leader && (r.votedFor == 0 || r.votedFor == m.From)
}

// handleRequestVoteReply counts a vote for the campaign under way.
func (r *Raft) handleRequestVoteReply(m *Message, b *RequestVoteReply) error {
	term, role := r.currentTerm, Candidate
	if b.PreVote {
		role = PreCandidate
		if b.Granted {
			term++ // the term that we would campaign in
		}
	}
	late := !b.PreVote && b.Granted && r.role == PreCandidate && m.Term == r.currentTerm && m.Term == r.election.votesTerm
	if !late && (r.role != role || m.Term != term) {
		return nil // of an earlier campaign
	}
	if !r.memberships.current().IsVoter(m.From) {
		return fmt.Errorf("%w: vote of %d, which is no voter", ErrUnknownReplica, m.From)
	}
	if late {
		r.countLateVote(m.From)
	} else {
		r.countVote(m.From, b.Granted)
	}
	return nil
}

// countLateVote counts a vote in the present term that came after the campaign
// was given up.
func (r *Raft) countLateVote(from ReplicaID) {
	e := &r.election
	if !slices.Contains(e.votes, from) {
		e.votes = append(e.votes, from)
	}
	if r.memberships.current().hasQuorum(func(id ReplicaID) bool { return slices.Contains(e.votes, id) }) {
		r.role = Candidate
		r.becomeLeader(e.votes)
	}
}

// countOwnVote counts our vote for ourselves when it has become durable.
func (r *Raft) countOwnVote() {
	e := &r.election
	if r.role == Candidate && e.ownVote != 0 && e.ownVote <= r.disk.ackedSeq {
		e.ownVote = 0
		r.countVote(r.self, true)
	}
}

func (r *Raft) countVote(from ReplicaID, granted bool) {
	e := &r.election
	if slices.Contains(e.granted, from) || slices.Contains(e.refused, from) {
		return
	}
	if granted {
		e.granted = append(e.granted, from)
	} else {
		e.refused = append(e.refused, from)
	}
	members := r.memberships.current()
	won := members.hasQuorum(func(id ReplicaID) bool { return slices.Contains(e.granted, id) })
	open := members.hasQuorum(func(id ReplicaID) bool { return !slices.Contains(e.refused, id) })
	switch {
	case won && r.role == PreCandidate:
		r.campaign(false)
	case won:
		r.becomeLeader(e.granted)
	case !open:
		r.becomeFollower(r.currentTerm, 0)
	}
}
