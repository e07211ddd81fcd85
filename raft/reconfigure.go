package raft

import (
	"fmt"
	"slices"
)

// ProposeMembership changes who is in the group. A change of voters goes
// through joint consensus (section 6, thesis section 4.3): this entry is the
// joint membership, and when it is committed the leader appends the final one
// by itself. The index and term are those of the first entry.
//
// A new voter must be a learner that durably has the log through the membership
// in effect (ErrNotCaughtUp): so it knows that it is a member, and can vote. A
// voter that could not would be missed by the very next election.
//
// ErrNotYetCommitted before the leader has committed an entry of its
// own term (without that rule two leaders' changes can have disjoint
// majorities), ErrMembershipPending while an earlier change is not finished,
// ErrMembership for what no group can be.
func (r *Raft) ProposeMembership(voters, learners []Member) (Index, Term, error) {
	switch {
	case r.role != Leader:
		return 0, 0, ErrNotLeader
	case r.leading.transferee != 0:
		return 0, 0, ErrTransferring
	case !r.committedOwnTerm():
		return 0, 0, ErrNotYetCommitted
	case r.memberships.index() > r.log.commit || r.memberships.current().Joint():
		return 0, 0, ErrMembershipPending
	}
	next, err := r.nextMembership(voters, learners)
	if err != nil {
		return 0, 0, fmt.Errorf("%w: %w", ErrMembership, err)
	}
	if id, ok := r.caughtUp(&next); !ok {
		return 0, 0, fmt.Errorf("%w: replica %d", ErrNotCaughtUp, id)
	}
	r.Wake()
	i := r.appendMembership(next)
	r.afterStep()
	return i, r.currentTerm, nil
}

// nextMembership is the present one's successor toward the wanted lists: joint
// if the voters change.
func (r *Raft) nextMembership(voters, learners []Member) (Membership, error) {
	now := r.memberships.current()
	next := Membership{Epoch: now.Epoch + 1, Voters: slices.Clone(voters), Learners: slices.Clone(learners), Floor: now.Floor, Survivor: now.Survivor}
	sortMembers(next.Voters)
	sortMembers(next.Learners)
	sameVoters := sameReplicas(next.Voters, now.Voters)
	if !sameVoters {
		next.Outgoing = now.Voters
	}
	if err := next.validate(); err != nil {
		return next, err
	}
	if sameVoters && sameReplicas(next.Learners, now.Learners) {
		return next, fmt.Errorf("it is what epoch %d has already", now.Epoch)
	}
	for _, m := range next.All() {
		if had, ok := now.Member(m.Replica); ok && had.Node != m.Node {
			return next, fmt.Errorf("replica %d is on node %d and cannot move to node %d", m.Replica, had.Node, m.Node)
		}
	}
	return next, nil
}

// caughtUp tells whether all new voters know that they are members, or which one
// does not.
func (r *Raft) caughtUp(next *Membership) (ReplicaID, bool) {
	for _, m := range next.Voters {
		if r.memberships.current().IsVoter(m.Replica) {
			continue
		}
		p := r.leading.find(m.Replica)
		if m.Replica != r.self && (p == nil || p.suspect || p.match < r.memberships.index()) {
			return m.Replica, false
		}
	}
	return 0, true
}

// appendMembership puts a membership into the log; it is in effect from here
// on.
func (r *Raft) appendMembership(m Membership) Index {
	i := r.appendOwn(EntryMembership, m.Encode())
	r.memberships.push(IndexedMembership{Index: i, Term: r.currentTerm, Membership: m})
	r.followMembership()
	return i
}

// followMembership keeps one progress for every other member. Members of the
// memberships before the current one, back to the last committed, are served
// too: so a removed replica still hears of its removal.
func (r *Raft) followMembership() {
	l := r.leading
	var kept []progress
	for _, im := range r.memberships.stack {
		for _, m := range im.Membership.All() {
			if m.Replica == r.self || slices.ContainsFunc(kept, func(p progress) bool { return p.member.Replica == m.Replica }) {
				continue
			}
			if p := l.find(m.Replica); p != nil {
				kept = append(kept, *p)
			} else {
				kept = append(kept, progress{member: m, next: r.log.last + 1, heartbeat: true, active: true})
			}
		}
	}
	slices.SortFunc(kept, func(a, b progress) int {
		if a.member.Replica < b.member.Replica {
			return -1
		}
		return 1
	})
	l.progress = kept
	if l.transferee != 0 && !holds(r.memberships.current().Voters, l.transferee) {
		l.transferee = 0
	}
	l.due = true
}

// afterCommit goes on with a membership change whose entry is committed: it
// leaves the joint phase, or lets go of those who are no members any more, of
// itself at last.
func (r *Raft) afterCommit() {
	now := r.memberships.current()
	if r.memberships.index() > r.log.commit {
		return
	}
	if now.Joint() {
		r.appendMembership(Membership{Epoch: now.Epoch + 1, Voters: now.Voters, Learners: now.Learners, Floor: now.Floor, Survivor: now.Survivor})
		return
	}
	for i := range r.leading.progress {
		if _, ok := now.Member(r.leading.progress[i].member.Replica); !ok {
			r.replicate() // tells it what is committed
			r.followMembership()
			break
		}
	}
	if !now.IsVoter(r.self) {
		r.replicate()
		r.handOver()
	}
}
