package logstore

import (
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/flotilla-kv/flotilla/raft"
)

// turn is one frame of the log: all that was queued when it began.
type turn struct {
	seq     uint64
	base    int64        // where the frame goes in the active segment
	durable bool         // somebody waits for it: it is synced
	votes   []voteRecord // to follow into the votes file
	answers []answer
	moved   []move
	bytes   int
	started time.Time
}

type answer struct {
	done func(error)
	err  error
}

// move says that a run lies somewhere else as soon as the frame is written.
type move struct {
	g *group
	r run
}

// writeLoop makes one frame after the other of what is queued: what comes while
// one is written and synced shares the next.
func (s *Store) writeLoop() {
	defer close(s.written)
	for {
		requests, compact, ok := s.queue.take(turnBytesMax)
		if !ok {
			return
		}
		if err := s.turn(requests, compact); err != nil {
			s.stop.Fail(err)
			return
		}
	}
}

// turn carries out what was queued. After an error nothing is acknowledged any
// more; the fail loop answers.
func (s *Store) turn(requests []request, compact map[raft.ReplicaKey]beginning) error {
	if err := s.makeRoom(requests); err != nil {
		return err
	}
	t := s.encode(requests, compact)
	if !s.pending.begin(t) {
		t.answer(s.stop.Err())
		return nil
	}
	if err := s.write(t); err != nil {
		return err
	}
	for _, m := range t.moved {
		m.g.moved(m.r)
	}
	s.tails.enforce()
	if t.durable {
		if err := s.persist(t); err != nil {
			return err
		}
	}
	if s.pending.end(t) {
		t.answer(nil)
	}
	return nil
}

// makeRoom goes on to the next segment if what was queued does not fit.
func (s *Store) makeRoom(requests []request) error {
	bytes := int64(frameHeaderBytes)
	for _, r := range requests {
		bytes += int64(r.bytes)
	}
	if active := s.files.active(); active.end+bytes <= active.size || active.end <= s.fresh {
		return nil // a frame larger than a whole segment lets its file grow
	}
	return s.roll()
}

// encode builds the frame of one turn and brings the groups' state in memory
// up to it.
func (s *Store) encode(requests []request, compact map[raft.ReplicaKey]beginning) *turn {
	t := &turn{seq: s.seq + 1, base: s.files.active().end, durable: len(requests) > 0, started: time.Now()}
	s.frame.reset()
	for _, r := range requests {
		t.answers = append(t.answers, answer{done: r.done, err: s.encodeRequest(t, r)})
		t.bytes += r.bytes
	}
	for id, b := range compact {
		s.encodeCompact(id, b)
	}
	if t.durable {
		s.mover.encode(s, t)
	}
	return t
}

func (s *Store) encodeRequest(t *turn, r request) error {
	if r.control != nil {
		return r.control(t)
	}
	groups := make([]*group, len(r.writes))
	for i, w := range r.writes {
		g, ok := s.group(w.ID)
		if !ok {
			return fmt.Errorf("group %d replica %d: %w", w.ID.Group, w.ID.Replica, ErrNoReplica)
		}
		if err := g.check(w.Write); err != nil {
			return err
		}
		groups[i] = g
	}
	for i, w := range r.writes {
		s.encodeWrite(t, groups[i], w.Write)
	}
	return nil
}

func (s *Store) encodeWrite(t *turn, g *group, w raft.Write) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if w.Reset != nil {
		s.tails.left(g.reset(*w.Reset))
		s.frame.add(recordReset, encodeID(g.id), encodeBeginning(g.begin))
	}
	if len(w.Entries) > 0 {
		s.encodeEntries(t, g, w.Entries)
	}
	if w.HardState != nil && *w.HardState != g.hard {
		g.hard = *w.HardState
		value := encodeHardState(g.hard)
		s.frame.add(recordHardState, encodeID(g.id), value)
		t.votes = append(t.votes, voteRecord{seq: t.seq, kind: voteHardState, id: g.id, payload: value})
	}
}

func (s *Store) encodeEntries(t *turn, g *group, entries []raft.Entry) {
	first, last := entries[0].Index, entries[len(entries)-1].Index
	if first <= g.last {
		s.tails.left(g.truncate(first))
	}
	at, length := s.frame.entries(recordEntries, g.id, entries)
	r := run{first: first, last: last, segment: s.files.active(), at: t.base + int64(at), bytes: int32(length)}
	s.tails.joined(g, last, g.append(entries, r))
}

// encodeCompact lets the log of id begin behind b, if that still makes sense:
// since it was asked for the log may have been reset or removed.
func (s *Store) encodeCompact(id raft.ReplicaKey, b beginning) {
	g, ok := s.group(id)
	if !ok {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if b.index <= g.begin.index || b.index > g.last {
		return
	}
	s.tails.left(g.compact(b))
	s.frame.add(recordCompacted, encodeID(id), encodeBeginning(b))
}

// write puts the turn's frame into the file.
func (s *Store) write(t *turn) error {
	if s.frame.empty() && !t.durable {
		return nil
	}
	active := s.files.active()
	sealFrame(s.frame.bytes, active.header.nonce, t.seq)
	if err := active.write(s.frame.bytes); err != nil {
		return err
	}
	s.seq, s.logged = t.seq, t.seq
	return nil
}

// persist makes the turn durable in both places, and then frees what does not
// count any more.
func (s *Store) persist(t *turn) error {
	if err := s.files.active().sync(); err != nil {
		return err
	}
	if len(t.votes) > 0 {
		if err := s.votes.append(t.votes); err != nil {
			return err
		}
	}
	s.evidence.note(evidence{seq: t.seq, votes: s.votes.state.number})
	if s.options.Metrics != nil {
		s.options.Metrics.Synced(len(t.answers), t.bytes, time.Since(t.started))
	}
	return s.files.retire()
}

// roll begins the next segment with a checkpoint: all that is known but the
// entries. What the segments before it hold must be durable when it counts.
func (s *Store) roll() error {
	header := segmentHeader{number: s.files.nextNumber(), beforeTo: s.logged, first: s.seq + 1, nonce: newNonce()}
	if len(s.files.used) > 0 {
		active := s.files.active()
		header.before = active.header.number
		if active.dirty {
			if err := active.sync(); err != nil {
				return err
			}
		}
	}
	next, err := s.files.next(s.stop.Failed())
	if err != nil {
		return err
	}
	return s.begin(next, header)
}

// begin makes next the active segment.
func (s *Store) begin(next *segment, header segmentHeader) error {
	usedBefore := next.header.number != 0
	next.header, next.live = header, 0
	s.checkpoint()
	sealFrame(s.frame.bytes, header.nonce, header.first)
	if _, err := next.file.WriteAt(header.encode(), 0); err != nil {
		return fmt.Errorf("write log: %w", err)
	}
	if usedBefore {
		// A power cut may leave any part of what was not synced. Frames of this
		// use under the header of the last one would look like damage in a
		// segment that others follow.
		if err := next.sync(); err != nil {
			return err
		}
	}
	next.end = segmentHeaderBytes
	if err := next.write(s.frame.bytes); err != nil {
		return err
	}
	s.seq, s.logged = header.first, header.first
	s.files.used = append(s.files.used, next)
	s.fresh = next.end
	s.files.prepare()
	return nil
}

// checkpoint makes the frame that a segment begins with.
func (s *Store) checkpoint() {
	s.frame.reset()
	s.frame.add(recordCheckpoint)
	if s.lost {
		s.frame.add(recordLost)
	}
	if identity, ok := s.Identity(); ok {
		s.frame.add(recordIdentity, encodeIdentity(identity))
	}
	for group, replica := range s.highest {
		s.frame.add(recordHighest, encodeID(raft.ReplicaKey{Group: group, Replica: replica}))
	}
	for _, g := range s.all() {
		g.mu.RLock()
		id := encodeID(g.id)
		s.frame.add(recordReplica, id, encodeReplica(g.record))
		s.frame.add(recordExtent, id, encodeExtent(g.last, g.lastTerm, g.begin))
		if g.hard != (raft.HardState{}) {
			s.frame.add(recordHardState, id, encodeHardState(g.hard))
		}
		g.mu.RUnlock()
	}
}

func encodeIdentity(identity Identity) []byte {
	value, err := json.Marshal(identity)
	if err != nil {
		panic(fmt.Sprintf("identity %+v cannot be encoded: %v", identity, err)) // plain fields
	}
	return value
}

func (t *turn) answer(failure error) {
	for _, a := range t.answers {
		if a.err == nil {
			a.err = failure
		}
		a.done(a.err)
	}
}

// pendingTurn is the turn whose requests have left the queue and are not
// answered. Whoever takes it answers it.
type pendingTurn struct {
	mu     sync.Mutex // guards all below
	failed bool
	turn   *turn
}

// begin is false if nothing begins any more: the caller answers.
func (p *pendingTurn) begin(t *turn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.failed {
		return false
	}
	p.turn = t
	return true
}

// end takes t, unless fail did.
func (p *pendingTurn) end(t *turn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	taken := p.turn == t
	p.turn = nil
	return taken
}

// fail takes the turn; none begins any more.
func (p *pendingTurn) fail() *turn {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failed = true
	t := p.turn
	p.turn = nil
	return t
}

// failLoop answers everybody when the disk has failed.
func (s *Store) failLoop() {
	defer close(s.failDone)
	select {
	case <-s.closing:
		return
	case <-s.stop.Failed():
	}
	err := s.stop.Err()
	s.queue.end(err)
	if t := s.pending.fail(); t != nil {
		t.answer(err)
	}
	for _, r := range s.queue.drop() {
		r.done(err)
	}
}
