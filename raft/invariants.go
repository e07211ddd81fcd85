package raft

import "fmt"

// invariant panics with both numbers and the ids unless ok: we are wrong, or
// the driver broke a promise. It is never reached by what a message says.
func invariant(ok bool, format string, args ...any) {
	if !ok {
		panic("raft: invariant violated: " + fmt.Sprintf(format, args...))
	}
}

// afterStep checks what can be checked in no time, in production too.
func (r *Raft) afterStep() {
	l := &r.log
	if l.commit > l.last || l.durable > l.written || l.written > l.last || l.base > l.commit ||
		r.delivery.applied > r.delivery.handed || l.lastTerm > r.currentTerm ||
		(r.role == Leader) != (r.leading != nil) {
		panic("raft: invariant violated: " + r.describe())
	}
}

func (r *Raft) describe() string {
	l := &r.log
	return fmt.Sprintf("group %d replica %d: %v of term %d; log base %d commit %d durable %d written %d last %d of term %d; handed %d applied %d",
		r.group, r.self, r.role, r.currentTerm, l.base, l.commit, l.durable, l.written, l.last, l.lastTerm, r.delivery.handed, r.delivery.applied)
}

// CheckInvariants examines the whole state of the replica. Tests call it after
// every step; it may read the log.
func (r *Raft) CheckInvariants() error {
	for _, check := range [...]func() error{
		r.checkTail, r.checkPositions, r.checkMemberships, r.checkHeld, r.checkRole, r.checkProgress,
	} {
		if err := check(); err != nil {
			return fmt.Errorf("%w (%s)", err, r.describe())
		}
	}
	return nil
}

// checkTail: the tail is contiguous, ends the log, holds all that is not
// durable, and its terms never fall.
func (r *Raft) checkTail() error {
	l := &r.log
	if l.tailFrom+Index(len(l.tail)) != l.last+1 {
		return fmt.Errorf("tail of %d entries from %d does not end at %d", len(l.tail), l.tailFrom, l.last)
	}
	// While a reset is on its way to the disk, base stands in for durable.
	if l.tailFrom > max(l.durable, l.base)+1 {
		return fmt.Errorf("tail begins at %d, durable is only %d", l.tailFrom, l.durable)
	}
	bytes := 0
	for i := range l.tail {
		e := &l.tail[i]
		bytes += entryBytes(e)
		if e.Index != l.tailFrom+Index(i) || i > 0 && e.Term < l.tail[i-1].Term {
			return fmt.Errorf("entry %d of term %d at place %d of the tail from %d", e.Index, e.Term, i, l.tailFrom)
		}
	}
	if bytes != l.tailBytes {
		return fmt.Errorf("tail has %d bytes, counted are %d", bytes, l.tailBytes)
	}
	if n := len(l.tail); n > 0 && l.tail[n-1].Term != l.lastTerm {
		return fmt.Errorf("last entry has term %d, noted is %d", l.tail[n-1].Term, l.lastTerm)
	}
	return nil
}

// checkPositions: nothing is handed out that is not committed and durable.
func (r *Raft) checkPositions() error {
	l, d := &r.log, &r.delivery
	if d.handed > max(l.base, min(l.commit, l.durable)) && d.handed > d.applied {
		return fmt.Errorf("handed out is more than committed and durable")
	}
	if d.handed > l.commit {
		return fmt.Errorf("handed out is more than committed")
	}
	return nil
}

// checkMemberships: ascending, within the log, epochs growing.
func (r *Raft) checkMemberships() error {
	s := r.memberships.stack
	for i := 1; i < len(s); i++ {
		if s[i].Index <= s[i-1].Index || s[i].Index <= r.log.commit && i > 1 {
			return fmt.Errorf("membership %d of %d is at %d behind %d", i, len(s), s[i].Index, s[i-1].Index)
		}
	}
	if last := r.memberships.index(); last > r.log.last {
		return fmt.Errorf("membership at %d is beyond the log", last)
	}
	return nil
}

// checkHeld: what is held waits for a write that will come.
func (r *Raft) checkHeld() error {
	limit := r.disk.lastSeq
	if r.writePending() {
		limit++
	}
	for _, h := range r.disk.held {
		if h.seq > limit || h.seq <= r.disk.ackedSeq {
			return fmt.Errorf("%T to %d waits for write %d; acknowledged %d, last %d", h.m.Body, h.m.To, h.seq, r.disk.ackedSeq, limit)
		}
	}
	if uint64(len(r.disk.underWay)) != r.disk.lastSeq-r.disk.ackedSeq {
		return fmt.Errorf("%d writes under way between %d and %d", len(r.disk.underWay), r.disk.ackedSeq, r.disk.lastSeq)
	}
	return nil
}

// checkRole: candidates and leaders have voted for themselves, are voters (a
// leader until its removal is committed), and trust their log.
func (r *Raft) checkRole() error {
	switch r.role {
	case Candidate, Leader:
		if r.votedFor != r.self {
			return fmt.Errorf("voted for %d", r.votedFor)
		}
		if r.suspicion.on && !(r.role == Candidate && r.recovering()) {
			return fmt.Errorf("is suspect")
		}
	}
	if r.role == Leader && r.leader != r.self || r.role != Leader && r.leader == r.self {
		return fmt.Errorf("takes %d for the leader", r.leader)
	}
	return nil
}

// checkProgress: followers are known to have no more than the leader.
func (r *Raft) checkProgress() error {
	if r.leading == nil {
		return nil
	}
	for i := range r.leading.progress {
		p := &r.leading.progress[i]
		if p.match > r.log.last || p.next <= p.match || p.next > r.log.last+1 {
			return fmt.Errorf("follower %d: match %d, next %d", p.member.Replica, p.match, p.next)
		}
		bytes := 0
		for _, m := range p.window.out {
			bytes += m.bytes
		}
		if bytes != p.window.bytes || len(p.window.out) > r.options.MaxInflightMessages {
			return fmt.Errorf("follower %d: window of %d messages has %d bytes, counted are %d", p.member.Replica, len(p.window.out), bytes, p.window.bytes)
		}
	}
	if r.leading.pendingBytes < 0 {
		return fmt.Errorf("pending bytes are %d", r.leading.pendingBytes)
	}
	return nil
}
