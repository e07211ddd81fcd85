package raft

import (
	"errors"
	"fmt"
)

// leadership is a leader's volatile state (figure 2), made anew at each
// election.
type leadership struct {
	termStart Index      // of the no-op that began the term
	progress  []progress // of every other member, sorted by replica
	due       bool       // something may have to be sent at the next Ready

	sinceHeartbeat int // ticks
	sinceQuorum    int // ticks since check-quorum

	pendingBytes int // proposed in this term, and not yet applied
	reads        leaderReads

	transferee      ReplicaID // 0: no transfer under way
	transferElapsed int
	timeoutNowSent  bool

	falling bool // asleep, once the followers are

	neededFrom Index // of the log, as of this turn
}

// becomeLeader begins a term with a no-op (section 8): committing it commits
// everything before it.
func (r *Raft) becomeLeader(votes []ReplicaID) {
	invariant(r.role == Candidate, "group %d replica %d: %v of term %d becomes leader without an election", r.group, r.self, r.role, r.currentTerm)
	r.role, r.leader = Leader, r.self
	r.election.fruitless = 0
	r.suspicion = suspicion{} // who could make it whole is lost: see Recover
	r.failForwarded()
	r.leading = &leadership{}
	r.followMembership()
	for _, id := range votes {
		if p := r.leading.find(id); p != nil {
			p.active = true // a vote is a sign of life as good as any
		}
	}
	r.leading.termStart = r.appendOwn(EntryNoop, nil)
}

// abdicate forgets what only a leader has.
func (r *Raft) abdicate() {
	r.failReads()
	r.leading = nil
	r.election.sinceLeader = r.options.ElectionTicks
	r.election.granted, r.election.refused = nil, nil
	r.election.votes, r.election.votesTerm = nil, 0 // a term is led once
}

// appendOwn adds an entry of the leader's own term to its log (Leader
// Append-Only: it never changes or removes one).
func (r *Raft) appendOwn(kind EntryKind, data []byte) Index {
	e := Entry{Index: r.log.last + 1, Term: r.currentTerm, Kind: kind, Data: data}
	r.log.append(e)
	r.leading.pendingBytes += entryBytes(&e)
	r.leading.due = true
	return e.Index
}

// find returns the follower's progress, or nil.
func (l *leadership) find(id ReplicaID) *progress {
	for i := range l.progress {
		if l.progress[i].member.Replica == id {
			return &l.progress[i]
		}
	}
	return nil
}

func (r *Raft) tickLeader() {
	l := r.leading
	if l.sinceHeartbeat++; l.sinceHeartbeat >= r.options.HeartbeatTicks {
		l.sinceHeartbeat = 0
		r.beat()
	}
	if l.sinceQuorum++; l.sinceQuorum >= r.options.QuorumTicks {
		l.sinceQuorum = 0
		if !r.checkQuorum() {
			r.becomeFollower(r.currentTerm, 0)
			return
		}
	}
	r.tickTransfer()
	r.tickLease()
}

// beat makes every follower hear from us at the next Ready.
func (r *Raft) beat() {
	l := r.leading
	l.due = true
	r.beginLeaseRound()
	for i := range l.progress {
		p := &l.progress[i]
		p.beat()
		if p.state == Snapshot && !p.requested {
			r.requestSnapshot(p)
		}
	}
}

// checkQuorum tells whether a quorum was heard since it was last asked: a
// leader that cannot commit anything should not be believed in (thesis section
// 6.2).
func (r *Raft) checkQuorum() bool {
	ok := r.memberships.current().hasQuorum(func(id ReplicaID) bool {
		if id == r.self {
			return true
		}
		p := r.leading.find(id)
		return p != nil && p.active
	})
	for i := range r.leading.progress {
		r.leading.progress[i].active = false
	}
	return ok
}

// replicate says to every follower what it should hear now. It runs once a
// Ready, so that everything of one turn goes in as few messages as possible.
func (r *Raft) replicate() {
	l := r.leading
	if l == nil || !l.due {
		return
	}
	l.due = false
	r.beginReadRound()
	l.neededFrom = r.NeededFrom()
	for i := range l.progress {
		r.replicateTo(&l.progress[i])
	}
}

// NeededFrom is the first entry of the log that a member may still need from
// it: everything before can be compacted without making anybody need a
// snapshot who does not need one already. A leader says so to its followers,
// so that the next one has what this one kept. Of members that a leader has not
// heard of it believes what its predecessor said. 0: nothing is known.
func (r *Raft) NeededFrom() Index {
	if r.leading == nil {
		return r.neededFrom
	}
	first, needed := r.log.firstIndex(), r.log.last+1
	for i := range r.leading.progress {
		next := r.leading.progress[i].match + 1
		if next == 1 {
			next = max(next, r.neededFrom)
		}
		if next >= first {
			needed = min(needed, next)
		}
	}
	return needed
}

func (r *Raft) replicateTo(p *progress) {
	for p.next <= r.log.last && p.mayAppend(&r.options) {
		if !r.sendEntries(p) {
			break
		}
	}
	commitNews := p.commitSent < r.log.commit && p.state == Replicate && p.mayAppend(&r.options)
	if p.heartbeat || p.askRound || commitNews {
		r.sendHeartbeat(p)
	}
}

// sendEntries sends the next entries, as many as fit one message, and tells
// whether it did.
func (r *Raft) sendEntries(p *progress) bool {
	prevTerm, err := r.log.term(p.next - 1)
	if err == nil {
		var es []Entry
		if es, err = r.log.entries(p.next, r.log.last+1, r.options.MaxAppendBytes); err == nil && len(es) > 0 {
			r.sendAppend(p, p.next-1, prevTerm, es)
			bytes := 0
			for i := range es {
				bytes += entryBytes(&es[i])
			}
			p.sent(es[len(es)-1].Index, bytes)
			return true
		}
	}
	if errors.Is(err, ErrCompacted) {
		r.requestSnapshot(p)
	}
	return false
}

// sendHeartbeat sends an AppendEntries without entries. It names what was last
// sent, so that a follower which has missed something says so.
func (r *Raft) sendHeartbeat(p *progress) {
	prev := p.next - 1
	if p.state == Snapshot {
		prev = p.match
	}
	prevTerm, err := r.log.term(prev)
	if err != nil {
		if errors.Is(err, ErrCompacted) && p.state != Snapshot {
			r.requestSnapshot(p)
		}
		prev, prevTerm = 0, 0 // the empty log, on which all agree
	}
	r.sendAppend(p, prev, prevTerm, nil)
}

func (r *Raft) sendAppend(p *progress, prev Index, prevTerm Term, es []Entry) {
	p.heartbeat = false
	p.askRound = p.askRound && len(es) > 0
	p.commitSent = r.log.commit
	r.send(p.member.Replica, &AppendEntries{
		PrevLogIndex: prev, PrevLogTerm: prevTerm, Entries: es,
		LeaderCommit: r.log.commit,
		ReadRound:    r.leading.reads.round,
		Sleep:        r.leading.falling && len(es) == 0,
		NeededFrom:   r.leading.neededFrom,
	})
}

// handleAppendEntriesReply moves a follower's progress (section 5.3).
func (r *Raft) handleAppendEntriesReply(m *Message, b *AppendEntriesReply) error {
	if r.role != Leader {
		return nil // of a time when we led
	}
	l := r.leading
	p := l.find(m.From)
	if p == nil {
		return fmt.Errorf("%w: %d acknowledges, which is no member", ErrUnknownReplica, m.From)
	}
	if b.MatchIndex > r.log.last || b.ReadRound > l.reads.round {
		return fmt.Errorf("%w: replica %d acknowledges %d in round %d, the last are %d and %d",
			ErrBadMessage, m.From, b.MatchIndex, b.ReadRound, r.log.last, l.reads.round)
	}
	r.noteSuspect(p, b)
	p.asleep = b.Asleep && l.falling
	l.due = true
	if b.Success {
		p.acknowledged(b.MatchIndex)
		r.maybeEndSnapshot(p)
	} else {
		r.handleRefusal(p, b)
	}
	if p.suspect {
		return nil // it counts for nothing
	}
	p.active = true
	r.confirmRound(p, b.ReadRound)
	r.continueTransfer(p)
	r.maybeAsleep()
	r.advanceCommit() // last: it may change the membership, or end the leadership
	return nil
}

// handleRefusal backs up by a whole term at a time (end of section 5.3): to
// the end of our part of the conflicting term, or to its beginning in the
// follower's log if we have none of it.
func (r *Raft) handleRefusal(p *progress, b *AppendEntriesReply) {
	hint := b.ConflictIndex
	if b.ConflictTerm != 0 && b.ConflictIndex <= b.RejectedPrev && b.RejectedPrev <= r.log.last {
		lo := max(b.ConflictIndex, r.log.firstIndex())
		if i := r.log.lastNotAbove(lo, max(lo, b.RejectedPrev), b.ConflictTerm); i >= lo && r.log.matches(i, b.ConflictTerm) {
			hint = i + 1
		}
	}
	p.refused(b.RejectedPrev, hint)
}

// Unreachable says that what was lately sent to a follower may be lost, for
// instance because the connection broke. It is asked again where its log
// stands.
func (r *Raft) Unreachable(to ReplicaID) {
	if r.leading == nil {
		return
	}
	if p := r.leading.find(to); p != nil && p.state == Replicate {
		p.probe(p.match + 1)
		// The heartbeat finds out when it is back; entries would be sent in
		// vain.
		p.probing = true
	}
}
