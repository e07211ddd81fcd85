package raft

// A group falls asleep when there is nothing to do and nothing to make up for:
// asleep, a replica neither ticks nor sends. The leader's driver asks for it
// with Sleep; the leader's AppendEntries then bear Sleep, each follower that
// has its log and commit index falls asleep and says so, and when all have the
// leader does. Any message, proposal or read wakes a replica, and a leader that
// wakes is heard by all. Failure detection is the driver's meanwhile: it wakes
// with Wake, or with LeaderLost when the leader's node died.

// Asleep tells whether the replica sleeps: Tick does nothing.
func (r *Raft) Asleep() bool { return r.asleep }

// CanSleep tells whether the leader has nothing to do, and every member on a
// live node has its whole log, committed.
func (r *Raft) CanSleep(alive func(NodeID) bool) bool {
	l := r.leading
	switch {
	case l == nil || l.transferee != 0 || l.reads.len() > 0:
		return false
	case !r.committedOwnTerm() || r.log.commit != r.log.last || r.log.durable != r.log.last:
		return false
	case r.memberships.current().Joint():
		return false
	}
	for i := range l.progress {
		if p := &l.progress[i]; alive(p.member.Node) && (p.match != r.log.last || p.suspect) {
			return false
		}
	}
	return true
}

// Sleep lets a leader fall asleep, and tells whether it sleeps. It takes a
// round trip: the driver calls it at each of its intervals while nothing
// happens, which also repeats what was lost. A follower is not asked; it tells
// whether it sleeps.
func (r *Raft) Sleep(alive func(NodeID) bool) bool {
	if r.leading == nil || r.asleep {
		return r.asleep
	}
	if !r.CanSleep(alive) {
		r.Wake()
		return false
	}
	l := r.leading
	l.falling = true
	for i := range l.progress {
		p := &l.progress[i]
		p.awaited = alive(p.member.Node)
		if p.awaited && !p.asleep {
			p.heartbeat, l.due = true, true
		}
	}
	r.maybeAsleep()
	return r.asleep
}

// maybeAsleep lets the leader sleep when all whom it waits for do.
func (r *Raft) maybeAsleep() {
	l := r.leading
	if l == nil || !l.falling || r.log.commit != r.log.last {
		return
	}
	for i := range l.progress {
		if p := &l.progress[i]; p.awaited && !p.asleep {
			return
		}
	}
	r.asleep = true
}

// fallAsleep is the follower's answer to an AppendEntries with Sleep. It stays
// awake unless log and commit index are the leader's, durably.
func (r *Raft) fallAsleep(a *AppendEntries) bool {
	ready := a.PrevLogIndex == r.log.last && r.log.durable == r.log.last &&
		r.log.commit == r.log.last && a.LeaderCommit == r.log.last &&
		len(r.forwarded.reads) == 0 && !r.suspicion.on && !r.writePending()
	if !ready {
		r.Wake()
	}
	r.asleep = ready
	return ready
}

// Wake ends sleep: timers start anew, and a leader is heard at once.
func (r *Raft) Wake() {
	l := r.leading
	if !r.asleep && (l == nil || !l.falling) {
		return
	}
	r.asleep = false
	if l == nil {
		r.resetElectionTimer()
		return
	}
	l.falling = false
	l.sinceQuorum = 0 // nobody had a reason to be heard
	l.reads.lease.held = false
	for i := range l.progress {
		p := &l.progress[i]
		p.awaited, p.asleep, p.active = false, false, true
	}
	r.beat()
}

// wakeFor wakes the replica for a message, unless that belongs to falling
// asleep itself.
func (r *Raft) wakeFor(m *Message) {
	switch b := m.Body.(type) {
	case *AppendEntries:
		if b.Sleep && m.Term == r.currentTerm && m.From == r.leader {
			return
		}
	case *AppendEntriesReply:
		if b.Success && m.Term == r.currentTerm {
			return
		}
	}
	r.Wake()
}
