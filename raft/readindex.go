package raft

import "fmt"

// suspectQuestion marks the wire ID of a suspect replica's question.
const suspectQuestion = 1 << 63

// leaderReads are the reads that wait for a proof that the leader still leads
// (section 8; thesis section 6.4). All that wait share one round: a number
// carried by AppendEntries and echoed in the replies.
type leaderReads struct {
	round      uint64        // the last begun
	waiting    []pendingRead // for the next round
	confirming []pendingRead // for a quorum to echo inRound
	inRound    uint64
	index      Index // commitIndex when inRound began
	lease      lease
}

// pendingRead came from this replica's driver (from 0) or from a follower.
type pendingRead struct {
	id   uint64
	from ReplicaID
}

func (l *leaderReads) len() int { return len(l.waiting) + len(l.confirming) }

// ReadIndex asks for an index such that a read is linearizable once it is
// applied. The answer comes in Ready.ReadStates under id, perhaps refused. On a
// follower the question goes to the leader, and is refused if no answer comes
// within an election timeout. ErrNoLeader or ErrReadsFull: no answer will come.
func (r *Raft) ReadIndex(id uint64) error {
	r.Wake()
	switch {
	case r.role == Leader:
		if r.leading.reads.len() >= r.options.MaxPendingReads {
			return ErrReadsFull
		}
		r.queueRead(pendingRead{id: id})
	case r.leader == 0:
		return ErrNoLeader
	case len(r.forwarded.reads) >= r.options.MaxPendingReads:
		return ErrReadsFull
	default:
		r.forwardRead(id)
	}
	return nil
}

func (r *Raft) queueRead(p pendingRead) {
	r.leading.reads.waiting = append(r.leading.reads.waiting, p)
	r.leading.due = true
}

// beginReadRound starts a round for all reads that wait, unless one is under
// way. A leader does not know what is committed before it has committed an
// entry of its own term (section 8); until then they wait.
func (r *Raft) beginReadRound() {
	reads := &r.leading.reads
	if len(reads.waiting) == 0 || len(reads.confirming) > 0 || !r.committedOwnTerm() {
		return
	}
	reads.round++
	reads.inRound, reads.index = reads.round, r.log.commit
	reads.confirming, reads.waiting = reads.waiting, nil
	for i := range r.leading.progress {
		r.leading.progress[i].askRound = true
	}
	r.answerRound() // a quorum of one needs nobody
}

// confirmRound notes that a follower was with us when it heard the round. What it
// has said before may be enough by now: it was a learner then, and votes.
func (r *Raft) confirmRound(p *progress, round uint64) {
	if round <= p.ackedRound && len(r.leading.reads.confirming) == 0 {
		return
	}
	p.ackedRound = max(p.ackedRound, round)
	r.answerRound()
}

// answerRound answers the reads of the round once a quorum has confirmed it.
func (r *Raft) answerRound() {
	reads := &r.leading.reads
	confirmed := r.memberships.current().quorumValue(func(id ReplicaID) uint64 {
		if id == r.self {
			return reads.round
		}
		if p := r.leading.find(id); p != nil {
			return p.ackedRound
		}
		return 0
	})
	reads.lease.confirmed(confirmed)
	if len(reads.confirming) == 0 || confirmed < reads.inRound {
		return
	}
	for _, p := range reads.confirming {
		r.answerRead(p, reads.index)
	}
	reads.confirming = nil
	r.leading.due = r.leading.due || len(reads.waiting) > 0
}

func (r *Raft) answerRead(p pendingRead, index Index) {
	switch {
	case p.from == 0:
		r.out.readStates = append(r.out.readStates, ReadState{ID: p.id, Index: index, OK: true})
	case p.id&suspectQuestion != 0:
		r.send(p.from, &ReadIndexReply{ID: p.id, Index: r.log.last})
	default:
		r.send(p.from, &ReadIndexReply{ID: p.id, Index: index})
	}
}

// failReads refuses all reads: leadership is lost.
func (r *Raft) failReads() {
	reads := &r.leading.reads
	for _, list := range [...][]pendingRead{reads.confirming, reads.waiting} {
		for _, p := range list {
			if p.from == 0 {
				r.out.readStates = append(r.out.readStates, ReadState{ID: p.id})
			} else {
				r.send(p.from, &ReadIndexReply{ID: p.id})
			}
		}
	}
	reads.confirming, reads.waiting = nil, nil
}

// handleReadIndexRequest queues a follower's read with our own, or refuses it
// at once.
func (r *Raft) handleReadIndexRequest(m *Message, b *ReadIndexRequest) error {
	if r.role != Leader {
		r.send(m.From, &ReadIndexReply{ID: b.ID})
		return nil
	}
	if r.leading.find(m.From) == nil {
		return fmt.Errorf("%w: read of %d, which is no member", ErrUnknownReplica, m.From)
	}
	if r.leading.reads.len() >= r.options.MaxPendingReads {
		r.send(m.From, &ReadIndexReply{ID: b.ID})
		return nil
	}
	r.queueRead(pendingRead{id: b.ID, from: m.From})
	return nil
}

// forwardedReads are a follower's reads that its leader has been asked about.
type forwardedReads struct {
	// nextID begins at a random number: an answer to an earlier life of this
	// replica must not be taken for one to this.
	nextID uint64
	reads  []forwardedRead
}

type forwardedRead struct {
	wire uint64 // ID in the messages
	id   uint64 // the driver's
	age  int    // ticks
}

func (r *Raft) startForwarding() {
	r.forwarded.nextID = uint64(r.rand(1<<31-1)+1) << 32
}

func (f *forwardedReads) newID() uint64 {
	f.nextID = (f.nextID + 1) &^ suspectQuestion
	return f.nextID
}

func (r *Raft) forwardRead(id uint64) {
	f := forwardedRead{wire: r.forwarded.newID(), id: id}
	r.forwarded.reads = append(r.forwarded.reads, f)
	r.send(r.leader, &ReadIndexRequest{ID: f.wire})
}

func (r *Raft) handleReadIndexReply(m *Message, b *ReadIndexReply) {
	if m.From != r.leader {
		return
	}
	if b.ID&suspectQuestion != 0 {
		r.suspectAnswered(b)
		return
	}
	reads := r.forwarded.reads
	for i, f := range reads {
		if f.wire == b.ID {
			r.out.readStates = append(r.out.readStates, ReadState{ID: f.id, Index: b.Index, OK: b.Index > 0})
			r.forwarded.reads = append(reads[:i], reads[i+1:]...)
			return
		}
	}
}

// tickForwarded refuses what was not answered within an election timeout.
// Reads were forwarded in order of age.
func (r *Raft) tickForwarded() {
	reads := r.forwarded.reads
	n := 0
	for i := range reads {
		if reads[i].age++; reads[i].age > r.options.ElectionTicks {
			r.out.readStates = append(r.out.readStates, ReadState{ID: reads[i].id})
			n = i + 1
		}
	}
	r.forwarded.reads = dropFront(reads, n)
}

// failForwarded refuses all that was forwarded: the leader is another now.
func (r *Raft) failForwarded() {
	for _, f := range r.forwarded.reads {
		r.out.readStates = append(r.out.readStates, ReadState{ID: f.id})
	}
	r.forwarded.reads = nil
}
