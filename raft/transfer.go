package raft

import "fmt"

// TransferLeadership hands leadership to a voter (thesis section 3.10): new
// proposals are refused until the target has the whole log and is told to
// campaign at once. If it does not lead within an election timeout, this
// replica goes on as leader.
func (r *Raft) TransferLeadership(to ReplicaID) error {
	if r.role != Leader {
		return ErrNotLeader
	}
	l := r.leading
	p := l.find(to)
	if p == nil || p.suspect || !holds(r.memberships.current().Voters, to) {
		return fmt.Errorf("%w: %d is no other voter", ErrUnknownReplica, to)
	}
	if l.transferee == to {
		return nil
	}
	r.Wake()
	l.transferee, l.transferElapsed, l.timeoutNowSent = to, 0, false
	r.continueTransfer(p)
	r.afterStep()
	return nil
}

// continueTransfer tells the target to campaign once it has the whole log. It
// will be voted for although a leader lives, so no lease holds any more: for
// the rest of the term, because the message may arrive late.
func (r *Raft) continueTransfer(p *progress) {
	l := r.leading
	if l.transferee != p.member.Replica || l.timeoutNowSent || p.suspect || p.match != r.log.last {
		return
	}
	l.timeoutNowSent = true
	l.reads.lease.waived = true
	r.send(l.transferee, &TimeoutNow{})
}

func (r *Raft) tickTransfer() {
	l := r.leading
	if l.transferee == 0 {
		return
	}
	if l.transferElapsed++; l.transferElapsed >= r.options.ElectionTicks {
		l.transferee = 0
	}
}

// handleTimeoutNow campaigns at once; only the leader can ask for it.
func (r *Raft) handleTimeoutNow(m *Message) error {
	if m.From != r.leader {
		return fmt.Errorf("%w: %d asks for an election and does not lead", ErrUnknownReplica, m.From)
	}
	if r.mayCampaign() {
		r.campaign(true)
	}
	return nil
}

// handOver ends the leadership of a replica that is no voter any more (section
// 6: it steps down once the new configuration is committed). The voter that is
// furthest is told to campaign, so that the group need not wait for a timeout.
func (r *Raft) handOver() {
	var best *progress
	for i := range r.leading.progress {
		p := &r.leading.progress[i]
		if !p.suspect && holds(r.memberships.current().Voters, p.member.Replica) && (best == nil || p.match > best.match) {
			best = p
		}
	}
	if best != nil {
		r.send(best.member.Replica, &TimeoutNow{})
	}
	r.becomeFollower(r.currentTerm, 0)
}
