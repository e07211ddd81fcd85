package raft

// A replica is suspect when its log was found cut: something that it has
// acknowledged may be missing. It then neither votes nor campaigns, and its
// replies are marked so that they count for nothing, until a leader has made it
// whole. That leader must lead a term not below the one that the replica
// remembers (the rule for terms sees to it), and must have been confirmed after
// this start by a majority without this replica: the replica asks with a
// ReadIndexRequest of its own kind, whose round its own replies do not count
// in. The answer is the leader's last index, which is at least its commit
// index. It is also at least all that this replica can have acknowledged to
// that leader before the start: so even such an acknowledgement that arrives
// late says nothing untrue once the replica is trusted again.
//
// Safety rests on the vote: a leader that makes the replica whole was elected
// by a majority without it, and that meets the rest of any majority in which it
// was counted. That its acknowledgements count for nothing is a second lock. It
// may open early, when a reply from before the cut arrives behind later ones.
type suspicion struct {
	on      bool
	asked   uint64 // ID of the question to this leader; 0: none
	target  Index  // the answer; 0: none yet
	matches Index  // the log equals this leader's through here
}

// newLeader forgets what an earlier leader has said.
func (s *suspicion) newLeader() {
	s.asked, s.target, s.matches = 0, 0, 0
}

// matched notes how far the present leader has found the logs equal.
func (s *suspicion) matched(i Index) { s.matches = max(s.matches, i) }

// confirmSuspect asks the leader, with each sign of life, until it answers.
func (r *Raft) confirmSuspect() {
	s := &r.suspicion
	if !s.on || s.target != 0 {
		return
	}
	if s.asked == 0 {
		s.asked = r.forwarded.newID() | suspectQuestion
	}
	r.send(r.leader, &ReadIndexRequest{ID: s.asked})
}

func (r *Raft) suspectAnswered(b *ReadIndexReply) {
	if s := &r.suspicion; s.on && b.ID == s.asked && b.Index > 0 {
		s.target = b.Index
		r.maybeTrusted()
	}
}

// maybeTrusted ends the suspicion when the log is durably whole.
func (r *Raft) maybeTrusted() {
	s := &r.suspicion
	if s.on && s.target != 0 && s.matches >= s.target && r.log.durable >= s.target {
		s.on = false
	}
}

// noteSuspect is the leader's side: a follower that says that it is suspect has
// lost what it had confirmed. So has one that was known to be and refuses what
// it has confirmed since: its log was cut again.
func (r *Raft) noteSuspect(p *progress, b *AppendEntriesReply) {
	if b.Suspect && (!p.suspect || !b.Success && b.RejectedPrev <= p.match) {
		p.match = 0
		if p.state == Replicate {
			p.probe(p.next)
		}
	}
	p.suspect = b.Suspect
}
