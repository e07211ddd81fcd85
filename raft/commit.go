package raft

// delivery is what was handed out to be applied.
type delivery struct {
	handed  Index // through here handed out, or in the state machine already
	applied Index // through here reported with Applied

	batches []delivered // handed out and not yet applied
	bytes   int         // of all batches; bounded by Options.MaxUnappliedBytes
}

// delivered is one Ready.Committed.
type delivered struct {
	last  Index
	bytes int
	// own is the part of bytes that the leader of term took in itself and
	// counts in pendingBytes.
	own  int
	term Term
}

// advanceCommit commits what a quorum has durably, if it is of the leader's own
// term (section 5.4.2: entries of earlier terms are not committed by counting
// replicas, but by one of the current term behind them).
func (r *Raft) advanceCommit() {
	if r.role != Leader {
		return
	}
	n := Index(r.memberships.current().quorumValue(func(id ReplicaID) uint64 {
		return uint64(r.matchOf(id))
	}))
	if n <= r.log.commit || n < r.leading.termStart {
		return
	}
	r.log.commit = n
	r.memberships.settle(n)
	r.leading.due = true
	r.afterCommit()
}

// matchOf is what counts for commitment: durable, here too.
func (r *Raft) matchOf(id ReplicaID) Index {
	if id == r.self {
		return r.log.durable
	}
	if p := r.leading.find(id); p != nil && !p.suspect {
		return p.match
	}
	return 0
}

// committedOwnTerm tells whether the leader has committed an entry of its own
// term: from then on it knows what is committed (section 8).
func (r *Raft) committedOwnTerm() bool {
	return r.leading != nil && r.log.commit >= r.leading.termStart
}

// followCommit is a follower's: as far as the leader says and the message
// vouches for.
func (r *Raft) followCommit(commit Index) {
	if commit > r.log.commit {
		r.log.commit = commit
		r.memberships.settle(commit)
	}
}

// deliverable is how far entries may be applied: committed, and durable here,
// so that the log is never behind the state machine.
func (r *Raft) deliverable() Index { return min(r.log.commit, r.log.durable) }

func (r *Raft) canDeliver() bool {
	return r.delivery.handed < r.deliverable() && r.delivery.bytes < r.options.MaxUnappliedBytes && !r.readFailed
}

// takeCommitted hands out the next committed entries.
func (r *Raft) takeCommitted() []Entry {
	if !r.canDeliver() {
		return nil
	}
	d := &r.delivery
	es, err := r.log.entries(d.handed+1, r.deliverable()+1, r.options.MaxApplyBytes)
	if err != nil || len(es) == 0 {
		// The store has failed, or is about to say so; it is not asked again
		// before the next tick.
		r.readFailed = true
		return nil
	}
	b := delivered{last: es[len(es)-1].Index, term: r.currentTerm}
	for i := range es {
		size := entryBytes(&es[i])
		b.bytes += size
		if r.leading != nil && es[i].Index >= r.leading.termStart {
			b.own += size
		}
	}
	d.handed = b.last
	d.bytes += b.bytes
	d.batches = append(d.batches, b)
	r.log.forget(d.handed)
	return es
}

// Applied says that the state machine has applied everything through i. It
// makes room for more; saying it late only delays, saying it for what was
// never handed out panics.
func (r *Raft) Applied(i Index) {
	d := &r.delivery
	invariant(i <= d.handed, "group %d replica %d: %d is said to be applied, handed out was %d", r.group, r.self, i, d.handed)
	if i <= d.applied {
		return
	}
	d.applied = i
	n := 0
	for ; n < len(d.batches) && d.batches[n].last <= i; n++ {
		b := d.batches[n]
		d.bytes -= b.bytes
		if r.leading != nil && b.term == r.currentTerm {
			r.leading.pendingBytes -= b.own
		}
	}
	d.batches = dropFront(d.batches, n)
}

// skipTo notes that the state machine stands at i, by a snapshot. What was
// handed out before is not to be applied any more.
func (r *Raft) skipTo(i Index) {
	if i > r.delivery.handed {
		r.delivery = delivery{handed: i, applied: i}
	}
}
