package raft

import "slices"

// durability knows which writes are under way and holds back what may not be
// said before they are on disk.
type durability struct {
	lastSeq  uint64 // of the last write handed out
	ackedSeq uint64 // this one and all before it are durable

	hardChanged bool   // term or vote go into the next write
	hardSeq     uint64 // the write that makes the present term and vote durable
	reset       *SnapshotMark

	underWay []writeUnderWay
	held     []heldMessage
}

// writeUnderWay is a write that was handed out and is not yet durable.
type writeUnderWay struct {
	seq      uint64
	last     Index // as in its WriteAck
	lastTerm Term
	// reaches: once the write is durable, the disk's log equals ours through
	// here. It falls when entries are replaced meanwhile: the write vouches
	// for nothing that took their place.
	reaches Index
}

// heldMessage waits for the write seq.
type heldMessage struct {
	seq uint64
	m   Message
}

// nextSeq is the number of the write that takes what is pending now.
func (d *durability) nextSeq() uint64 { return d.lastSeq + 1 }

// writePending tells whether there is something to write.
func (r *Raft) writePending() bool {
	return r.disk.hardChanged || r.disk.reset != nil || r.log.written < r.log.last
}

// setHardState changes term and vote; both are durable before anybody is told.
func (r *Raft) setHardState(term Term, vote ReplicaID) {
	if r.currentTerm == term && r.votedFor == vote {
		return
	}
	r.currentTerm, r.votedFor = term, vote
	r.disk.hardChanged = true
	r.disk.hardSeq = r.disk.nextSeq()
}

// takeWrite hands out all that is to be written, as one write.
func (r *Raft) takeWrite() Write {
	if !r.writePending() {
		return Write{}
	}
	d := &r.disk
	d.lastSeq++
	w := Write{Seq: d.lastSeq, Reset: d.reset, Entries: r.log.unwritten()}
	if d.hardChanged {
		w.HardState = &HardState{Term: r.currentTerm, Vote: r.votedFor}
	}
	d.hardChanged, d.reset = false, nil

	u := writeUnderWay{seq: w.Seq, reaches: r.log.last}
	if n := len(w.Entries); n > 0 {
		u.last, u.lastTerm = w.Entries[n-1].Index, w.Entries[n-1].Term
	}
	d.underWay = append(d.underWay, u)
	r.log.written = r.log.last
	return w
}

// seqCovering is the write after which the log is durable through i: one under
// way, or the next.
func (r *Raft) seqCovering(i Index) uint64 {
	if i <= r.log.durable {
		return 0
	}
	for _, u := range r.disk.underWay {
		if u.reaches >= i {
			return u.seq
		}
	}
	return r.disk.nextSeq()
}

// replaced lowers what the writes under way vouch for: entries behind last are
// gone from our log.
func (d *durability) replaced(last Index) {
	for i := range d.underWay {
		d.underWay[i].reaches = min(d.underWay[i].reaches, last)
	}
}

// forgetAcknowledgements drops what is held and would vouch for entries behind
// last: they are gone. (When a newer leader replaces entries the term has
// changed and nothing of it is released; a snapshot can come within a term.)
func (d *durability) forgetAcknowledgements(last Index) {
	d.held = slices.DeleteFunc(d.held, func(h heldMessage) bool {
		b, ok := h.m.Body.(*AppendEntriesReply)
		return ok && b.Success && b.MatchIndex > last
	})
}

// Persisted says that a write, and all before it, are durable. A repeated or
// outrun acknowledgement changes nothing. One that does not fit what was
// handed out is a broken promise of the driver, and panics: votes and
// acknowledgements would rest on it.
func (r *Raft) Persisted(ack WriteAck) {
	d := &r.disk
	invariant(ack.Seq <= d.lastSeq, "group %d replica %d: write %d is acknowledged, the last handed out is %d", r.group, r.self, ack.Seq, d.lastSeq)
	if ack.Seq <= d.ackedSeq {
		return
	}
	n := int(ack.Seq - d.ackedSeq) // writes are numbered without gaps
	u := d.underWay[n-1]
	invariant(u.last == ack.Last && u.lastTerm == ack.LastTerm,
		"group %d replica %d: write %d is acknowledged with last entry %d of term %d, handed out was %d of term %d",
		r.group, r.self, ack.Seq, ack.Last, ack.LastTerm, u.last, u.lastTerm)
	d.ackedSeq = ack.Seq
	d.underWay = dropFront(d.underWay, n)
	r.log.durable = max(r.log.durable, u.reaches)
	r.log.forget(r.delivery.handed)

	r.releaseHeld()
	r.countOwnVote()
	r.advanceCommit()
	r.maybeTrusted()
	r.afterStep()
}

// releaseHeld sends what waited for writes that are durable now. What was said
// in an older term is dropped instead: nobody waits for it, and a newer leader
// may have replaced what it vouches for.
func (r *Raft) releaseHeld() {
	held := r.disk.held
	keep := held[:0]
	for _, h := range held {
		switch {
		case h.seq > r.disk.ackedSeq:
			keep = append(keep, h)
		case h.m.Term >= r.currentTerm:
			r.out.add(h.m)
		}
	}
	clear(held[len(keep):])
	r.disk.held = keep
}

// send says body in the current term, once that term is durable.
func (r *Raft) send(to ReplicaID, body Body) { r.sendAfter(0, to, body) }

// sendAfter says body in the current term, once the write seq is durable, and
// the term with it (figure 2: persistent state is updated on stable storage
// before responding to RPCs).
func (r *Raft) sendAfter(seq uint64, to ReplicaID, body Body) {
	m := Message{Group: r.group, From: r.self, To: to, Term: r.currentTerm, Body: body}
	seq = max(seq, r.disk.hardSeq)
	if seq <= r.disk.ackedSeq {
		r.out.add(m)
		return
	}
	r.disk.held = append(r.disk.held, heldMessage{seq, m})
}

// sendNow says body in a term that nobody relies on: that of a pre-vote.
func (r *Raft) sendNow(to ReplicaID, term Term, body Body) {
	r.out.add(Message{Group: r.group, From: r.self, To: to, Term: term, Body: body})
}

// outbox collects what the next Ready hands out.
type outbox struct {
	messages   []Message
	readStates []ReadState
	snapshots  []Member
}

// add queues m. An acknowledgement that follows another to the same leader
// takes its place: acknowledgements are cumulative.
func (o *outbox) add(m Message) {
	if b, ok := m.Body.(*AppendEntriesReply); ok && b.Success && len(o.messages) > 0 {
		before := &o.messages[len(o.messages)-1]
		if a, ok := before.Body.(*AppendEntriesReply); ok && a.Success && before.To == m.To && before.Term == m.Term && a.Suspect == b.Suspect {
			b.MatchIndex = max(b.MatchIndex, a.MatchIndex)
			b.ReadRound = max(b.ReadRound, a.ReadRound)
			before.Body = b
			return
		}
	}
	o.messages = append(o.messages, m)
}

// dropFront removes the first n and lets go of the memory when nothing is
// left.
func dropFront[T any](s []T, n int) []T {
	if n >= len(s) {
		return nil
	}
	return s[n:]
}
