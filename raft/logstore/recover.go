package logstore

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"

	"github.com/cockroachdb/pebble/v2"

	"github.com/flotilla-kv/flotilla/raft"
)

// recover reads what Pebble holds, compares it with the side files, repairs
// what they know better, and opens the side files for writing. It is the only
// code that runs before the loops start.
func (s *Store) recover() error {
	if err := s.loadAll(); err != nil {
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
	return s.openSides(side)
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

// cutReason says why a log that ends with batch seq must have lost its end;
// "" if nothing speaks for it.
func (side sides) cutReason(seq uint64) string {
	switch {
	case seq < side.evidence.seq:
		return fmt.Sprintf("the log ends at batch %d, and batch %d was durable", seq, side.evidence.seq)
	case seq < side.votes.seq:
		return fmt.Sprintf("the log ends at batch %d, and the votes of batch %d were durable", seq, side.votes.seq)
	case seq > 0 && !side.evidenceFound:
		return fmt.Sprintf("the log ends at batch %d, and the evidence of how far it was is gone", seq)
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
	s.seq = max(s.seq, side.evidence.seq, side.votes.seq) + 1
	t := &turn{seq: s.seq, batch: s.db.NewBatch()}
	defer t.batch.Close()
	must(t.batch.Set([]byte{kindSeq}, binary.BigEndian.AppendUint64(nil, s.seq), nil))
	damage := side.votesDamage
	if damage == nil {
		damage = s.takeVotes(t, side.votes)
	}
	if damage != nil {
		s.log.Error("the second copy of the votes is damaged", "reason", damage)
		s.lost = true
	}
	if s.lost {
		must(t.batch.Set([]byte{kindLost}, nil, nil))
	}
	for _, g := range s.groups {
		s.setSuspect(t, g, true)
	}
	if err := s.db.Apply(t.batch, pebble.Sync); err != nil {
		return fmt.Errorf("write log: %w", err)
	}
	return nil
}

// takeVotes brings replica records, terms and votes up to the second copy.
func (s *Store) takeVotes(t *turn, votes votesState) error {
	for group, replica := range votes.highest {
		s.highest[group] = max(s.highest[group], replica)
		must(t.batch.Set(highestKey(group), binary.BigEndian.AppendUint64(nil, uint64(s.highest[group])), nil))
	}
	for id, g := range s.groups {
		if _, exists := votes.replicas[id]; !exists {
			// Its removal was durable, and the log lost it.
			t.deleteEntries(g, g.begin.index+1)
			for _, kind := range []byte{kindReplica, kindHardState, kindBeginning} {
				must(t.batch.Delete(replicaKey(kind, id), nil))
			}
			delete(s.groups, id)
		}
	}
	for id, replica := range votes.replicas {
		if err := s.takeReplica(t, id, replica); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) takeReplica(t *turn, id raft.ReplicaKey, replica votesReplica) error {
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
		must(t.batch.Set(replicaKey(kindHardState, id), encodeHardState(hard), nil))
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

// loadAll reads the store's own records and the extent of every log.
func (s *Store) loadAll() (err error) {
	iter, err := s.db.NewIter(nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, iter.Close()) }()
	if iter.SeekGE([]byte{kindSeq}) && len(iter.Key()) == 1 && iter.Key()[0] == kindSeq {
		s.seq = binary.BigEndian.Uint64(iter.Value())
	}
	s.lost = iter.SeekGE([]byte{kindLost}) && len(iter.Key()) == 1 && iter.Key()[0] == kindLost
	if iter.SeekGE([]byte{kindIdentity}) && len(iter.Key()) == 1 && iter.Key()[0] == kindIdentity {
		if err := json.Unmarshal(iter.Value(), &s.identity); err != nil {
			return fmt.Errorf("identity: %w", err)
		}
		s.hasIdentity = true
	}
	if err := s.loadRecords(iter); err != nil {
		return err
	}
	for _, g := range s.groups {
		if err := s.loadGroup(iter, g); err != nil {
			return fmt.Errorf("group %d replica %d: %w", g.id.Group, g.id.Replica, err)
		}
	}
	return iter.Error()
}

func (s *Store) loadRecords(iter *pebble.Iterator) error {
	for ok := iter.SeekGE([]byte{kindHighest}); ok && iter.Key()[0] == kindHighest; ok = iter.Next() {
		if len(iter.Key()) != 9 || len(iter.Value()) != 8 {
			return fmt.Errorf("highest replica: %w", errShort)
		}
		s.highest[raft.GroupID(binary.BigEndian.Uint64(iter.Key()[1:]))] = raft.ReplicaID(binary.BigEndian.Uint64(iter.Value()))
	}
	for ok := iter.SeekGE([]byte{kindReplica}); ok && iter.Key()[0] == kindReplica; ok = iter.Next() {
		id, whole := splitReplicaKey(iter.Key())
		if !whole {
			return fmt.Errorf("replica record: %w", errShort)
		}
		record, err := decodeReplica(id, iter.Value())
		if err != nil {
			return err
		}
		s.groups[id] = &group{id: id, record: record}
	}
	return iter.Error()
}

func (s *Store) loadGroup(iter *pebble.Iterator, g *group) (err error) {
	if key := replicaKey(kindHardState, g.id); seekExact(iter, key) {
		if g.hard, err = decodeHardState(iter.Value()); err != nil {
			return err
		}
	}
	if key := replicaKey(kindBeginning, g.id); seekExact(iter, key) {
		if g.begin, err = decodeBeginning(iter.Value()); err != nil {
			return err
		}
	}
	g.last, g.lastTerm = g.begin.index, g.begin.term
	prefix := replicaKey(kindEntry, g.id)
	if iter.SeekLT(indexKey(kindEntry, g.id, math.MaxUint64)) {
		if index, ok := splitIndex(iter.Key()); ok && string(iter.Key()[:replicaKeyBytes]) == string(prefix) && index > g.begin.index {
			e, err := decodeEntry(index, iter.Value())
			if err != nil {
				return err
			}
			g.last, g.lastTerm = index, e.Term
		}
	}
	for ok := iter.SeekGE(replicaKey(kindMembership, g.id)); ok; ok = iter.Next() {
		id, _ := splitReplicaKey(iter.Key())
		index, whole := splitIndex(iter.Key())
		if !whole || id != g.id || iter.Key()[0] != kindMembership {
			break
		}
		g.memberships = append(g.memberships, index)
	}
	return s.loadSize(g)
}

// loadSize estimates; what is in Pebble's memtables is not counted, and Open
// has flushed them.
func (s *Store) loadSize(g *group) error {
	if g.last == g.begin.index {
		return nil
	}
	bytes, err := s.db.EstimateDiskUsage(indexKey(kindEntry, g.id, g.begin.index+1), indexKey(kindEntry, g.id, g.last+1))
	if err != nil {
		return fmt.Errorf("estimate size: %w", err)
	}
	g.sizes = sizeLedger{total: int64(bytes), runs: []sizeRun{{first: g.begin.index + 1, last: g.last, bytes: int64(bytes)}}}
	return nil
}

func seekExact(iter *pebble.Iterator, key []byte) bool {
	return iter.SeekGE(key) && string(iter.Key()) == string(key)
}

// loadMemberships reads the membership entries in the log of id.
func (s *Store) loadMemberships(id raft.ReplicaKey) (memberships []raft.IndexedMembership, err error) {
	iter, err := s.db.NewIter(&pebble.IterOptions{
		LowerBound: indexKey(kindMembership, id, 0),
		UpperBound: indexKey(kindMembership, id, math.MaxUint64),
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, iter.Close()) }()
	for ok := iter.First(); ok; ok = iter.Next() {
		index, _ := splitIndex(iter.Key())
		m, err := decodeIndexedMembership(index, iter.Value())
		if err != nil {
			return nil, err
		}
		memberships = append(memberships, m)
	}
	return memberships, iter.Error()
}
