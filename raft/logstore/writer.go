package logstore

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/flotilla-kv/flotilla/raft"
)

// pointDeletesMax: up to so many entries are deleted one by one; a range
// tombstone costs readers more than these.
const pointDeletesMax = 32

// turn is one batch of the writer: all that was queued when it began.
type turn struct {
	seq     uint64
	batch   *pebble.Batch
	durable bool         // somebody waits for it: it is synced
	votes   []voteRecord // to follow into the votes file
	answers []answer
	bytes   int
	started time.Time
}

type answer struct {
	done func(error)
	err  error
}

// writeLoop takes what is queued, puts it into Pebble and leaves the waiting
// for the sync to syncLoop, so that the next turn is encoded meanwhile. Two
// turns at most are under way in syncLoop: what is queued behind them gathers.
func (s *Store) writeLoop() {
	defer close(s.turns)
	for {
		requests, compact, ok := s.queue.take(turnBytesMax)
		if !ok {
			return
		}
		t := s.encode(requests, compact)
		if !s.pending.add(t) {
			t.answer(s.stop.Err())
			return
		}
		if err := s.apply(t); err != nil {
			s.stop.Fail(err)
			return
		}
		select {
		case s.turns <- t:
		case <-s.stop.Failed():
			return
		}
	}
}

// encode builds the batch of one turn and brings the groups' state in memory
// up to it.
func (s *Store) encode(requests []request, compact map[raft.ReplicaKey]beginning) *turn {
	t := &turn{batch: s.db.NewBatch(), started: time.Now()}
	if len(requests) > 0 {
		s.seq++
		t.seq, t.durable = s.seq, true
		must(t.batch.Set([]byte{kindSeq}, binary.BigEndian.AppendUint64(nil, s.seq), nil))
	}
	for _, r := range requests {
		t.answers = append(t.answers, answer{done: r.done, err: s.encodeRequest(t, r)})
		t.bytes += r.bytes
	}
	for id, b := range compact {
		s.encodeCompact(t, id, b)
	}
	s.tails.enforce()
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
		s.encodeReset(t, g, *w.Reset)
	}
	if len(w.Entries) > 0 {
		s.encodeEntries(t, g, w.Entries)
	}
	if w.HardState != nil && *w.HardState != g.hard {
		g.hard = *w.HardState
		value := encodeHardState(g.hard)
		must(t.batch.Set(replicaKey(kindHardState, g.id), value, nil))
		t.votes = append(t.votes, voteRecord{seq: t.seq, kind: voteHardState, id: g.id, payload: value})
	}
}

func (s *Store) encodeReset(t *turn, g *group, mark raft.SnapshotMark) {
	t.deleteEntries(g, g.begin.index+1)
	s.tails.left(g.reset(mark))
	must(t.batch.Set(replicaKey(kindBeginning, g.id), encodeBeginning(g.begin), nil))
}

func (s *Store) encodeEntries(t *turn, g *group, entries []raft.Entry) {
	first, last := entries[0].Index, entries[len(entries)-1].Index
	if first <= g.last {
		// What the new entries overwrite needs no deleting.
		t.deleteMemberships(g, first)
		t.deleteIndexes(kindEntry, g.id, last+1, g.last)
		s.tails.left(g.truncate(first))
	}
	for _, e := range entries {
		op := t.batch.SetDeferred(indexKeyBytes, entryHeaderBytes+len(e.Data))
		putIndexKey(op.Key, kindEntry, g.id, e.Index)
		putEntry(op.Value, e)
		must(op.Finish())
		if e.Kind == raft.EntryMembership {
			must(t.batch.Set(indexKey(kindMembership, g.id, e.Index), encodeIndexedMembership(e.Term, e.Data), nil))
		}
	}
	s.tails.joined(g, last, g.append(entries))
}

// encodeCompact lets the log of id begin behind b, if that still makes sense:
// since it was asked for the log may have been reset or removed.
func (s *Store) encodeCompact(t *turn, id raft.ReplicaKey, b beginning) {
	g, ok := s.group(id)
	if !ok {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if b.index <= g.begin.index || b.index > g.last {
		return
	}
	for _, index := range g.memberships {
		if index <= b.index {
			must(t.batch.Delete(indexKey(kindMembership, id, index), nil))
		}
	}
	must(t.batch.DeleteRange(indexKey(kindEntry, id, g.begin.index+1), indexKey(kindEntry, id, b.index+1), nil))
	must(t.batch.Set(replicaKey(kindBeginning, id), encodeBeginning(b), nil))
	s.tails.left(g.compact(b))
}

// deleteEntries deletes the entries of g from index on, with the copies of
// memberships.
func (t *turn) deleteEntries(g *group, index raft.Index) {
	t.deleteMemberships(g, index)
	t.deleteIndexes(kindEntry, g.id, index, g.last)
}

func (t *turn) deleteMemberships(g *group, from raft.Index) {
	for _, index := range slices.Backward(g.memberships) {
		if index < from {
			return
		}
		must(t.batch.Delete(indexKey(kindMembership, g.id, index), nil))
	}
}

// deleteIndexes deletes first..last.
func (t *turn) deleteIndexes(kind byte, id raft.ReplicaKey, first, last raft.Index) {
	if last < first {
		return
	}
	if last-first >= pointDeletesMax {
		must(t.batch.DeleteRange(indexKey(kind, id, first), indexKey(kind, id, last+1), nil))
		return
	}
	for index := first; index <= last; index++ {
		must(t.batch.Delete(indexKey(kind, id, index), nil))
	}
}

// must is for batch operations, which only fail on a batch that was committed
// already.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

// apply hands the turn to Pebble; it comes back before a sync. Pebble panics
// when it cannot make a new log file: that is a failed disk like any other.
func (s *Store) apply(t *turn) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("write log: %v", r)
		}
	}()
	if !t.durable {
		return s.db.Apply(t.batch, pebble.NoSync)
	}
	return s.db.ApplyNoSyncWait(t.batch, pebble.Sync)
}

// syncLoop waits until turns are durable, in their order, and answers them.
func (s *Store) syncLoop() {
	defer close(s.synced)
	for t := range s.turns {
		if err := s.finish(t); err != nil {
			s.stop.Fail(err)
			return
		}
		if !s.pending.take(t) {
			return
		}
		t.answer(nil)
	}
}

// finish makes the turn durable in both places.
func (s *Store) finish(t *turn) error {
	if t.durable {
		if err := t.batch.SyncWait(); err != nil {
			return fmt.Errorf("sync log: %w", err)
		}
	}
	if err := t.batch.Close(); err != nil {
		return fmt.Errorf("write log: %w", err)
	}
	if len(t.votes) > 0 {
		if err := s.votes.append(t.votes); err != nil {
			return err
		}
	}
	if t.durable {
		s.evidence.note(evidence{seq: t.seq, votes: s.votes.state.number})
		if s.options.Metrics != nil {
			s.options.Metrics.Synced(len(t.answers), t.bytes, time.Since(t.started))
		}
	}
	return nil
}

func (t *turn) answer(failure error) {
	for _, a := range t.answers {
		if a.err == nil {
			a.err = failure
		}
		a.done(a.err)
	}
}

// pendingTurns are those whose requests have left the queue and are not
// answered. Whoever takes a turn answers it.
type pendingTurns struct {
	mu     sync.Mutex // guards all below
	failed bool
	turns  []*turn
}

func (p *pendingTurns) add(t *turn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.failed {
		return false
	}
	p.turns = append(p.turns, t)
	return true
}

// take takes the oldest turn, which is t.
func (p *pendingTurns) take(t *turn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.failed {
		return false
	}
	if p.turns[0] != t {
		panic(fmt.Sprintf("turn %d finished before turn %d", t.seq, p.turns[0].seq))
	}
	p.turns = slices.Delete(p.turns, 0, 1)
	return true
}

// fail takes all turns, for good.
func (p *pendingTurns) fail() []*turn {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failed = true
	turns := p.turns
	p.turns = nil
	return turns
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
	for _, t := range s.pending.fail() {
		t.answer(err)
	}
	for _, r := range s.queue.drop() {
		r.done(err)
	}
}
