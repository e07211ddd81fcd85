package raft

// Status is what a replica knows of itself and, leading, of the others. It is
// a copy, but for the lists of Membership, which must not be changed.
type Status struct {
	Group   GroupID
	Replica ReplicaID
	Term    Term
	Vote    ReplicaID
	Role    Role
	Leader  ReplicaID // 0: none known

	First Index // of the log
	// NeededFrom is the first entry that a member may still need from it; 0:
	// not known.
	NeededFrom Index
	Last       Index
	// LastTerm is that of the entry at Last.
	LastTerm Term
	Durable  Index
	Commit   Index
	Applied  Index // reported with Applied

	Membership      Membership // in effect, committed or not
	MembershipIndex Index      // of its entry; pending while above Commit

	Asleep   bool
	Suspect  bool
	Transfer ReplicaID // whom leadership is being handed to; 0: nobody

	// PendingBytes are proposed and not yet applied; only at the leader.
	PendingBytes int
	// Progress of every other member; only at the leader.
	Progress []ProgressStatus
}

// ProgressStatus is what a leader knows of one follower.
type ProgressStatus struct {
	Member  Member
	State   ProgressState
	Match   Index
	Next    Index
	Active  bool // heard of in the present check-quorum period
	Suspect bool
}

// Status tells everything; the small questions below cost nothing.
func (r *Raft) Status() Status {
	s := Status{
		Group: r.group, Replica: r.self,
		Term: r.currentTerm, Vote: r.votedFor, Role: r.role, Leader: r.leader,
		First: r.log.firstIndex(), NeededFrom: r.NeededFrom(), Last: r.log.last, LastTerm: r.log.lastTerm, Durable: r.log.durable, Commit: r.log.commit, Applied: r.delivery.applied,
		Membership: *r.memberships.current(), MembershipIndex: r.memberships.index(),
		Asleep: r.asleep, Suspect: r.suspicion.on,
	}
	if l := r.leading; l != nil {
		s.Transfer, s.PendingBytes = l.transferee, l.pendingBytes
		s.Progress = make([]ProgressStatus, len(l.progress))
		for i := range l.progress {
			p := &l.progress[i]
			s.Progress[i] = ProgressStatus{Member: p.member, State: p.state, Match: p.match, Next: p.next, Active: p.active, Suspect: p.suspect}
		}
	}
	return s
}

// Role of this replica now.
func (r *Raft) Role() Role { return r.role }

// Term is the current one.
func (r *Raft) Term() Term { return r.currentTerm }

// Leader of the current term, 0 if none is known.
func (r *Raft) Leader() ReplicaID { return r.leader }

// CommitIndex is how far this replica knows the log to be committed.
func (r *Raft) CommitIndex() Index { return r.log.commit }

// DurableIndex is how far this replica's log is durable.
func (r *Raft) DurableIndex() Index { return r.log.durable }

// Suspect tells whether the replica's log was cut and is not yet whole again.
func (r *Raft) Suspect() bool { return r.suspicion.on }

// Membership in effect. Its lists must not be changed.
func (r *Raft) Membership() Membership { return *r.memberships.current() }

// String gives the role's name.
func (r Role) String() string {
	switch r {
	case Follower:
		return "follower"
	case PreCandidate:
		return "pre-candidate"
	case Candidate:
		return "candidate"
	default:
		return "leader"
	}
}
