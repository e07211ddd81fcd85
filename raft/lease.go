package raft

// lease is how long nobody else can have been elected. Each heartbeat begins a
// round; when a quorum has confirmed a round, each of them grants no vote
// within ElectionTicks of having heard it (Options.LeaseReads), so for a little
// less than that since the round began no other leader has a quorum.
type lease struct {
	now    int          // ticks of this leadership
	rounds []leaseRound // begun and not yet confirmed, oldest first
	from   int          // now at the beginning of the last confirmed round
	held   bool         // a round was confirmed
	waived bool         // dropped for the rest of the term
}

type leaseRound struct {
	round uint64
	began int
}

// leaseSlack is what a lease is shorter than the promise, in ticks: one
// because a tick of the follower may fall right behind the message, one because
// the leader's may fall right before its next, and one for clocks that drift.
const leaseSlack = 3

func (r *Raft) beginLeaseRound() {
	if !r.options.LeaseReads {
		return
	}
	reads := &r.leading.reads
	reads.round++
	reads.lease.rounds = append(reads.lease.rounds, leaseRound{reads.round, reads.lease.now})
	if n := len(reads.lease.rounds); n > r.options.ElectionTicks {
		reads.lease.rounds = dropFront(reads.lease.rounds, n-r.options.ElectionTicks) // too old to be worth a confirmation
	}
}

func (l *lease) confirmed(round uint64) {
	n := 0
	for n < len(l.rounds) && l.rounds[n].round <= round {
		l.from, l.held = l.rounds[n].began, true
		n++
	}
	l.rounds = dropFront(l.rounds, n)
}

func (r *Raft) tickLease() {
	if r.leading != nil {
		r.leading.reads.lease.now++
	}
}

// LeaseRead returns the index that a read has to wait for, without asking
// anybody, if the leader holds a lease. The driver must have delivered all
// ticks that a monotonic clock says are due before it asks, and asks again
// after the wait, before it answers: a pause in between may have outlived the
// lease.
func (r *Raft) LeaseRead() (Index, bool) {
	if !r.options.LeaseReads || r.asleep || !r.committedOwnTerm() {
		return 0, false
	}
	l := &r.leading.reads.lease
	if l.waived || !l.held || l.now-l.from > r.options.ElectionTicks-leaseSlack {
		return 0, false
	}
	return r.log.commit, true
}
