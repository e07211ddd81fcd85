package logstore

import (
	"errors"
	"fmt"

	"github.com/flotilla-kv/flotilla/raft"
)

// recover reads what the files hold, compares it with the side files, repairs
// what they know better, goes on in a new segment, and opens the side files for
// writing. It is the only code that runs before the loops start.
func (s *Store) recover() error {
	if err := s.replayAll(); err != nil {
		return &DamagedError{Dir: s.options.Dir, Err: err}
	}
	side, err := s.readSides()
	if err != nil {
		return err
	}
	s.lost = s.lost || side.votes.lost
	if reason := side.cutReason(s.seq); reason != "" {
		if err := s.recoverCut(side, reason); err != nil {
			return err
		}
	}
	if s.lost {
		s.log.Error("the replicas of this node stay down: each has to be replaced by a new one", "reason", ErrVotesLost, "replicas", len(s.groups))
	}
	// What was read need not be on the disk yet, and the side files must never
	// be ahead of it.
	if len(s.files.used) > 0 {
		if err := s.files.active().sync(); err != nil {
			return err
		}
	}
	if err := s.openSides(side); err != nil {
		return err
	}
	// What a torn frame has left in the last segment is never looked at again.
	err = s.roll()
	if err == nil {
		err = s.files.active().sync()
	}
	if err != nil {
		return errors.Join(err, s.votes.close(), s.evidence.file.close())
	}
	return nil
}

// sides is what the side files said at Open.
type sides struct {
	evidence      evidence
	counter       uint64
	evidenceFound bool
	votes         votesState
	votesDamage   error
}

func (s *Store) sidePath(name string) string { return s.options.FS.PathJoin(s.options.Dir, name) }

func (s *Store) readSides() (sides, error) {
	var side sides
	var err error
	side.evidence, side.counter, side.evidenceFound, err = readEvidence(s.options.FS, s.sidePath("evidence"))
	if err != nil {
		return side, err
	}
	side.votes, side.votesDamage, err = readVotes(s.options.FS, s.sidePath("votes"))
	if err != nil {
		return side, err
	}
	if side.votesDamage == nil && side.votes.number < side.evidence.votes {
		side.votesDamage = fmt.Errorf("the votes file ends at record %d of %d", side.votes.number, side.evidence.votes)
	}
	return side, nil
}

// cutReason says why a log that ends with frame seq must have lost its end;
// "" if nothing speaks for it.
func (side sides) cutReason(seq uint64) string {
	switch {
	case seq < side.evidence.seq:
		return fmt.Sprintf("the log ends at frame %d, and frame %d was durable", seq, side.evidence.seq)
	case seq < side.votes.seq:
		return fmt.Sprintf("the log ends at frame %d, and the votes of frame %d were durable", seq, side.votes.seq)
	case seq > 0 && !side.evidenceFound:
		return fmt.Sprintf("the log ends at frame %d, and the evidence of how far it was is gone", seq)
	}
	return ""
}

// recoverCut makes every replica that ever was, and was not removed, suspect,
// with the highest term and vote that either copy knows. Without the second
// copy the replicas are lost.
func (s *Store) recoverCut(side sides, reason string) error {
	s.log.Error("the log was cut: all replicas are suspect", "reason", reason, "replicas", len(s.groups))
	if !s.hasIdentity {
		return fmt.Errorf("%w (%s)", ErrLogLost, reason)
	}
	s.cut = true
	s.seq = max(s.seq, side.evidence.seq, side.votes.seq)
	damage := side.votesDamage
	if damage == nil {
		damage = s.takeVotes(side.votes)
	}
	if damage != nil {
		s.log.Error("the second copy of the votes is damaged", "reason", damage)
		s.lost = true
	}
	for _, g := range s.groups {
		g.record.Suspect = true
	}
	return nil
}

// takeVotes brings replica records, terms and votes up to the second copy.
func (s *Store) takeVotes(votes votesState) error {
	for group, replica := range votes.highest {
		s.highest[group] = max(s.highest[group], replica)
	}
	for id := range s.groups {
		if _, exists := votes.replicas[id]; !exists {
			s.forget(id) // its removal was durable, and the log lost it
		}
	}
	for id, replica := range votes.replicas {
		if err := s.takeReplica(id, replica); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) takeReplica(id raft.ReplicaKey, replica votesReplica) error {
	g := s.groups[id]
	if g == nil {
		first, err := raft.DecodeMembership(replica.first)
		if err != nil {
			return err
		}
		g = &group{id: id, record: Record{ID: id, First: first}}
		s.groups[id] = g
	}
	if replica.hard == nil {
		return nil
	}
	hard, err := decodeHardState(replica.hard)
	if err != nil {
		return err
	}
	if hard.Term > g.hard.Term || hard.Term == g.hard.Term && g.hard.Vote == 0 {
		g.hard = hard
	}
	return nil
}

// openSides writes both side files anew, from what the log holds now.
func (s *Store) openSides(side sides) error {
	state := newVotesState()
	state.number = max(side.votes.number, side.evidence.votes)
	state.seq = s.seq
	state.lost = s.lost
	for group, replica := range s.highest {
		state.highest[group] = replica
	}
	for id, g := range s.groups {
		replica := votesReplica{first: g.record.First.Encode()}
		if g.hard != (raft.HardState{}) {
			replica.hard = encodeHardState(g.hard)
		}
		state.replicas[id] = replica
	}
	if side.votesDamage != nil && s.seq > 0 {
		s.log.Warn("the votes file was damaged and is written anew from the log", "reason", side.votesDamage)
	}
	var err error
	if s.votes, err = writeVotes(s.options.FS, s.sidePath("votes"), state); err != nil {
		return err
	}
	now := evidence{seq: s.seq, votes: s.votes.state.number}
	file, err := writeEvidence(s.options.FS, s.sidePath("evidence"), side.counter, now)
	if err != nil {
		return errors.Join(err, s.votes.close())
	}
	s.evidence = newEvidenceKeeper(file, s.options.EvidenceEvery, now, s.stop)
	return nil
}
