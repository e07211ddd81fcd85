package logstore

import (
	"bufio"
	"fmt"
	"io"
	"math"
	"slices"

	"github.com/flotilla-kv/flotilla/raft"
)

// replayAll brings the groups' state in memory up to the end of the log. The
// log ends where a frame is missing or damaged; what lies behind that does not
// count, and whether it should have is for the side files to say.
func (s *Store) replayAll() error {
	for i, g := range s.files.used {
		last := uint64(math.MaxUint64)
		if i+1 < len(s.files.used) {
			last = s.files.used[i+1].header.beforeTo
		}
		if err := s.replaySegment(g, last); err != nil {
			return fmt.Errorf("%s: %w", g.name, err)
		}
		if last != math.MaxUint64 && s.seq < last {
			s.log.Error("the log ends within a segment that others follow", "file", g.name, "frame", s.seq, "should have", last)
			s.files.discard(i + 1)
			break
		}
	}
	s.logged = s.seq
	return s.checkWhole()
}

// replaySegment replays the frames of one file, through the one numbered last.
func (s *Store) replaySegment(g *segment, last uint64) error {
	in := bufio.NewReaderSize(io.NewSectionReader(g.file, segmentHeaderBytes, math.MaxInt64-segmentHeaderBytes), zeroStepBytes)
	frames := frameReader{in: in, header: g.header, at: segmentHeaderBytes, next: g.header.first}
	for frames.next <= last {
		seq, payload, at, ok, err := frames.read()
		if err != nil {
			return err
		}
		if !ok {
			return nil
		}
		if err := s.replayFrame(g, payload, at); err != nil {
			return fmt.Errorf("frame %d: %w", seq, err)
		}
		s.seq, g.end = seq, frames.at
	}
	return nil
}

func (s *Store) replayFrame(g *segment, payload []byte, at int64) error {
	checkpoint := false
	for rest := payload; len(rest) > 0; {
		kind, body, behind, err := splitRecord(rest)
		if err != nil {
			return err
		}
		bodyAt := at + int64(len(payload)-len(rest)+recordHeaderBytes)
		if err := s.replayRecord(g, kind, body, bodyAt); err != nil {
			return fmt.Errorf("record of kind %d: %w", kind, err)
		}
		rest = behind
		checkpoint = checkpoint || kind == recordCheckpoint
	}
	if checkpoint {
		s.dropStale()
	}
	return nil
}

func (s *Store) replayRecord(g *segment, kind byte, body []byte, at int64) (err error) {
	switch kind {
	case recordCheckpoint:
		s.beginCheckpoint()
		return nil
	case recordLost:
		s.lost = true
		return nil
	case recordIdentity:
		s.identity, err = decodeIdentity(body)
		s.hasIdentity = true
		return err
	case recordEntries:
		return s.replayEntries(run{segment: g, at: at, bytes: int32(len(body))}, body)
	case recordMoved:
		return s.replayMoved(run{segment: g, at: at, bytes: int32(len(body))}, body)
	}
	id, value, err := splitID(body)
	if err != nil {
		return err
	}
	switch kind {
	case recordHighest:
		s.highest[id.Group] = max(s.highest[id.Group], id.Replica)
		return nil
	case recordReplica:
		return s.replayReplica(id, value)
	case recordRemoved:
		s.forget(id)
		return nil
	}
	r, err := s.replayed(id)
	if err != nil {
		return err
	}
	switch kind {
	case recordHardState:
		r.hard, err = decodeHardState(value)
	case recordCompacted, recordReset:
		var b beginning
		if b, err = decodeBeginning(value); err == nil && kind == recordReset {
			r.reset(raft.SnapshotMark{Index: b.index, Term: b.term})
			r.begin = b
		} else if err == nil {
			r.compact(b)
		}
	case recordExtent:
		err = r.replayExtent(value)
	default:
		err = fmt.Errorf("it is not known: was the log written by a newer program?")
	}
	return err
}

// replayed is a replica that a record speaks of.
func (s *Store) replayed(id raft.ReplicaKey) (*group, error) {
	g := s.groups[id]
	if g == nil {
		return nil, fmt.Errorf("group %d replica %d: %w", id.Group, id.Replica, ErrNoReplica)
	}
	return g, nil
}

// beginCheckpoint forgets what the checkpoint's own records say anew. A replica
// that is not among them is none.
func (s *Store) beginCheckpoint() {
	for _, g := range s.groups {
		g.stale, g.hard = true, raft.HardState{}
	}
}

// dropStale ends a frame: a checkpoint is one frame by itself.
func (s *Store) dropStale() {
	for id, g := range s.groups {
		if g.stale {
			s.forget(id)
		}
	}
}

// forget drops a replica with its entries.
func (s *Store) forget(id raft.ReplicaKey) {
	if g := s.groups[id]; g != nil {
		g.dropRuns(len(g.runs))
		delete(s.groups, id)
	}
}

func (s *Store) replayReplica(id raft.ReplicaKey, value []byte) error {
	record, err := decodeReplica(id, value)
	if err != nil {
		return err
	}
	s.highest[id.Group] = max(s.highest[id.Group], id.Replica)
	g := s.groups[id]
	if g == nil {
		g = &group{id: id}
		s.groups[id] = g
	}
	g.record, g.stale = record, false
	return nil
}

// replayExtent takes over how far a log went by a checkpoint. Entries that it
// speaks of and that are not there have to lie in a segment that is gone, and
// to be compacted or moved further on.
func (g *group) replayExtent(value []byte) error {
	last, lastTerm, begin, err := decodeExtent(value)
	if err != nil {
		return err
	}
	if last < g.last {
		g.truncate(last + 1)
	}
	g.compact(begin)
	g.last, g.lastTerm = last, lastTerm
	return nil
}

func (s *Store) replayEntries(r run, body []byte) error {
	stored, err := decodeEntries(body)
	if err != nil {
		return err
	}
	g, err := s.replayed(stored.id)
	if err != nil {
		return err
	}
	r.first = stored.next
	if r.first <= g.begin.index || r.first > g.last+1 {
		return fmt.Errorf("group %d replica %d: entry %d behind %d..%d", g.id.Group, g.id.Replica, r.first, g.begin.index+1, g.last)
	}
	if r.first <= g.last {
		g.truncate(r.first)
	}
	for stored.count > 0 {
		e, err := stored.take()
		if err != nil {
			return err
		}
		g.extend(&e)
	}
	r.last = g.last
	g.addRun(r)
	return nil
}

func (s *Store) replayMoved(r run, body []byte) error {
	stored, err := decodeEntries(body)
	if err != nil {
		return err
	}
	g, err := s.replayed(stored.id)
	if err != nil {
		return err
	}
	r.first = stored.next
	for stored.count > 0 {
		e, err := stored.take()
		if err != nil {
			return err
		}
		if i, found := slices.BinarySearch(g.memberships, e.Index); !found && e.Kind == raft.EntryMembership {
			g.memberships = slices.Insert(g.memberships, i, e.Index)
		}
	}
	r.last = stored.next - 1
	g.moveRun(r)
	return nil
}

// checkWhole ends a replay: every log must have all its entries.
func (s *Store) checkWhole() error {
	for id, g := range s.groups {
		if index, missing := g.gap(); missing {
			return fmt.Errorf("group %d replica %d: entry %d of %d..%d is missing: a file of the log is lost",
				id.Group, id.Replica, index, g.begin.index+1, g.last)
		}
		g.sizes = sizeLedger{}
		for _, r := range g.runs {
			g.sizes.addRun(r.first, r.last, int64(r.bytes))
		}
	}
	return nil
}
