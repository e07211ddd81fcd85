package raft

import "fmt"

// handleAppendEntries is the receiver's part of AppendEntries (figure 2,
// section 5.3).
func (r *Raft) handleAppendEntries(m *Message, a *AppendEntries) error {
	if r.role == Leader {
		return fmt.Errorf("%w: replica %d claims term %d", ErrTwoLeaders, m.From, m.Term)
	}
	if r.leader != 0 && r.leader != m.From {
		return fmt.Errorf("%w: replica %d claims term %d, which replica %d leads", ErrTwoLeaders, m.From, m.Term, r.leader)
	}
	r.becomeFollower(m.Term, m.From)
	r.heardLeader()
	r.confirmSuspect()
	r.neededFrom = a.NeededFrom

	if !r.hasPrev(a) {
		r.refuseAppend(m.From, a)
		return nil
	}
	lastNew := a.PrevLogIndex + Index(len(a.Entries))
	if err := r.takeEntries(a); err != nil {
		return err
	}
	r.suspicion.matched(lastNew)
	// The last new entry is the message's, not the log's: what lies behind it
	// may not be the leader's.
	r.followCommit(min(a.LeaderCommit, lastNew))
	r.acknowledgeAppend(m.From, a, lastNew)
	r.maybeTrusted()
	return nil
}

// hasPrev is the consistency check of section 5.3. What is committed agrees
// with every leader's log (Leader Completeness), compacted or not.
func (r *Raft) hasPrev(a *AppendEntries) bool {
	return a.PrevLogIndex <= r.log.commit || r.log.matches(a.PrevLogIndex, a.PrevLogTerm)
}

// refuseAppend says where the logs part: the end of ours, or the first entry
// of the term that conflicts.
func (r *Raft) refuseAppend(to ReplicaID, a *AppendEntries) {
	reply := &AppendEntriesReply{RejectedPrev: a.PrevLogIndex, ConflictIndex: r.log.last + 1, ReadRound: a.ReadRound, Suspect: r.suspicion.on}
	if t, err := r.log.term(a.PrevLogIndex); err == nil {
		reply.ConflictTerm = t
		reply.ConflictIndex = r.log.firstOfTerm(r.log.commit, a.PrevLogIndex, t)
	}
	r.send(to, reply)
}

// takeEntries adds what is new. Entries that we have are left alone, so a late
// or repeated message cannot cut the log; from the first that conflicts on,
// ours are replaced.
func (r *Raft) takeEntries(a *AppendEntries) error {
	for i := range a.Entries {
		e := &a.Entries[i]
		if e.Index <= r.log.last {
			have, err := r.log.term(e.Index)
			if err == nil && have == e.Term || err != nil && e.Index <= r.log.commit {
				continue
			}
			if err != nil {
				return fmt.Errorf("raft: group %d replica %d: read entry %d: %w", r.group, r.self, e.Index, err)
			}
			if e.Index <= r.log.commit {
				return fmt.Errorf("%w: entry %d of term %d, committed is term %d", ErrConflictsCommitted, e.Index, e.Term, have)
			}
			prevTerm := a.PrevLogTerm
			if i > 0 {
				prevTerm = a.Entries[i-1].Term
			}
			r.truncateLog(e.Index-1, prevTerm)
		}
		r.appendTaken(a.Entries[i:])
		return nil
	}
	return nil
}

// truncateLog drops what conflicts with the leader's log. Memberships among it
// are no longer in effect (thesis section 4.1), and no write under way vouches
// for it.
func (r *Raft) truncateLog(last Index, lastTerm Term) {
	r.log.truncate(last, lastTerm)
	r.disk.replaced(last)
	r.memberships.truncate(last)
}

// appendTaken adds a leader's entries; a membership is in effect as soon as it
// is in the log (section 6). All have been admitted, so they decode.
func (r *Raft) appendTaken(es []Entry) {
	r.log.append(es...)
	for i := range es {
		if es[i].Kind == EntryMembership {
			m, err := decodeEntryMembership(&es[i])
			invariant(err == nil, "group %d replica %d: admitted entry %d: %v", r.group, r.self, es[i].Index, err)
			r.memberships.push(IndexedMembership{Index: es[i].Index, Term: es[i].Term, Membership: m})
		}
	}
}

// acknowledgeAppend answers a success. With new entries the answer waits until
// they are durable; without, it says at once what is.
func (r *Raft) acknowledgeAppend(to ReplicaID, a *AppendEntries, lastNew Index) {
	reply := &AppendEntriesReply{Success: true, MatchIndex: lastNew, ReadRound: a.ReadRound, Suspect: r.suspicion.on}
	if len(a.Entries) > 0 {
		r.sendAfter(r.seqCovering(lastNew), to, reply)
		return
	}
	reply.MatchIndex = min(r.log.durable, max(lastNew, r.log.commit))
	reply.Asleep = a.Sleep && r.fallAsleep(a)
	r.send(to, reply)
}
