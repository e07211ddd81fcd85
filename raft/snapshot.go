package raft

// requestSnapshot asks the driver to stream a snapshot to a follower whose
// next entry is gone from the log (section 7).
func (r *Raft) requestSnapshot(p *progress) {
	p.probe(p.next)
	p.state, p.requested = Snapshot, true
	r.out.snapshots = append(r.out.snapshots, p.member)
}

// SnapshotDone reports the end of a stream that Ready.Snapshots asked for. ok:
// the follower has installed the snapshot at index, and goes on behind it.
// Otherwise it is asked for again at the next heartbeat.
func (r *Raft) SnapshotDone(to ReplicaID, index Index, ok bool) {
	if r.leading == nil {
		return
	}
	p := r.leading.find(to)
	if p == nil || p.state != Snapshot {
		return
	}
	if !ok {
		p.requested = false
		return
	}
	p.probe(min(index, r.log.last) + 1)
	r.leading.due = true
}

// maybeEndSnapshot goes on replicating when a follower turns out to have, by
// whatever way, what the log no longer holds.
func (r *Raft) maybeEndSnapshot(p *progress) {
	if p.state == Snapshot && p.match+1 >= r.log.firstIndex() {
		p.probe(p.match + 1)
		p.state = Replicate
	}
}

// WantsSnapshot tells whether a snapshot at index, from a leader of term that is
// heard, would bring this replica forward. The driver asks before it puts one in place, and
// lets no turn of this replica pass between the answer and the InstallSnapshot
// message; that is stepped only if the state is in place.
func (r *Raft) WantsSnapshot(from ReplicaID, term Term, index Index) bool {
	return !r.memberships.current().lost(from) && index > r.delivery.handed && (r.role != Leader || term > r.currentTerm)
}

// handleInstallSnapshot takes note of a state that the driver has durably put
// in place.
func (r *Raft) handleInstallSnapshot(m *Message, b *InstallSnapshot) error {
	if r.role == Leader || r.leader != 0 && r.leader != m.From {
		r.adoptSnapshot(b.Snapshot)
		return nil
	}
	r.becomeFollower(m.Term, m.From)
	r.heardLeader()
	r.confirmSuspect()
	r.adoptSnapshot(b.Snapshot)
	// What is committed here is in every leader's log.
	match := max(b.Snapshot.Index, r.log.commit)
	r.suspicion.matched(match)
	r.sendAfter(r.seqCovering(match), m.From, &AppendEntriesReply{Success: true, MatchIndex: match, Suspect: r.suspicion.on})
	r.maybeTrusted()
	return nil
}

// adoptSnapshot brings log and commitIndex to a state that is in place. If the
// log durably holds the snapshot's last entry, what follows it is kept (figure
// 13, step 6); otherwise the log begins anew behind it.
func (r *Raft) adoptSnapshot(s SnapshotMark) {
	r.skipTo(s.Index)
	switch {
	case s.Index < r.log.commit || s.Index == r.log.base:
		// The log holds it, or is about to.
	case s.Index <= r.log.durable && r.log.matches(s.Index, s.Term):
		r.followCommit(s.Index)
	case r.role == Leader:
		// A leader never changes its log; it will commit by itself.
	default:
		r.resetLog(s)
	}
}

// resetLog lets the log begin behind s, with the next write.
func (r *Raft) resetLog(s SnapshotMark) {
	r.log.reset(s.Index, s.Term)
	r.disk.replaced(0)
	r.disk.forgetAcknowledgements(s.Index)
	r.disk.reset = &s
	r.memberships.stack = []IndexedMembership{{Index: s.Index, Term: s.Term, Membership: s.Membership}}
}
