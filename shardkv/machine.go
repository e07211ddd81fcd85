package shardkv

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"sync/atomic"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/raft/multiraft"
	"github.com/flotilla-kv/flotilla/raft/statestore"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// expiredAtOnce bounds how many expired keys one entry removes; the rest goes
// with the next, and is absent for everybody meanwhile.
const expiredAtOnce = 256

// Machine is a replica group's state machine: the same entries make the same
// state at every replica, however they are batched. It is called by one
// goroutine at a time; what others may ask is atomic, or in the store.
type Machine struct {
	group    raft.GroupID
	state    groupRecord
	stored   groupRecord // state as it is in the store, or will be with the batch
	shards   map[shardmap.ShardID]*shardRecord
	sessions *sessions
	due      int64 // no key expires before this; MaxInt64: none does

	touched map[shardmap.ShardID]*shardRecord // by the entry being applied

	born    atomic.Bool  // as committed
	nextDue atomic.Int64 // when group time should go on: the next expiry or end of a session; MaxInt64: never
}

var _ multiraft.StateMachine = (*Machine)(nil)

// NewMachine makes the state machine of a group. Restored fills it.
func NewMachine(group raft.GroupID) *Machine {
	m := &Machine{
		group:    group,
		shards:   make(map[shardmap.ShardID]*shardRecord),
		sessions: newSessions(),
		due:      math.MaxInt64,
		touched:  make(map[shardmap.ShardID]*shardRecord),
	}
	m.nextDue.Store(math.MaxInt64)
	return m
}

// Restored builds anew what is kept in memory; see multiraft.StateMachine.
func (m *Machine) Restored(r *statestore.Replica) error {
	view, err := r.View()
	if err != nil {
		return err
	}
	defer view.Close()
	m.state = groupRecord{}
	if b, ok, err := view.Get(groupKey()); err != nil {
		return err
	} else if ok {
		if m.state, err = decodeGroupRecord(b); err != nil {
			return fmt.Errorf("group %d: its record is %w", m.group, err)
		}
	}
	m.stored = m.state
	if err := m.restoreShards(view); err != nil {
		return fmt.Errorf("group %d: shards: %w", m.group, err)
	}
	if err := m.restoreSessions(view); err != nil {
		return fmt.Errorf("group %d: sessions: %w", m.group, err)
	}
	if m.due, err = firstExpiry(snapshotView{view}); err != nil {
		return fmt.Errorf("group %d: expiries: %w", m.group, err)
	}
	m.publish()
	return nil
}

func (m *Machine) restoreShards(view *statestore.View) error {
	clear(m.shards)
	return eachShard(view, func(id shardmap.ShardID, record shardRecord) { m.shards[id] = &record })
}

// eachShard visits the shards that a group knows, ascending.
func eachShard(view *statestore.View, visit func(shardmap.ShardID, shardRecord)) error {
	it := view.NewIter([]byte{kindShard}, []byte{kindShard + 1})
	for ok := it.First(); ok; ok = it.Next() {
		record, err := decodeShardRecord(it.Value())
		if err != nil || len(it.Key()) != kindBytes+shardBytes {
			it.Close()
			return errMalformed
		}
		visit(shardmap.ShardID(binary.BigEndian.Uint32(it.Key()[kindBytes:])), record)
	}
	return it.Close()
}

func (m *Machine) restoreSessions(view *statestore.View) error {
	m.sessions = newSessions()
	it := view.NewIter([]byte{kindAnswer}, []byte{kindAnswer + 1})
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		key, id, seq, good := splitAnswerKey(it.Key())
		if !good {
			return errMalformed
		}
		_, lowest, err := decodeAnswer(it.Value())
		if err != nil {
			return err
		}
		s := m.sessions.open(sessionKey{key, id})
		s.lowest = max(s.lowest, lowest)
		m.sessions.add(s, seq, bytes.Clone(it.Value()))
	}
	return it.Error()
}

// firstExpiry is the first time in the expiry index.
func firstExpiry(v view) (int64, error) {
	it := v.iter([]byte{kindExpiry}, []byte{kindExpiry + 1})
	at := int64(math.MaxInt64)
	if it.First() {
		var ok bool
		if at, _, _, _, ok = splitExpiryKey(it.Key()); !ok {
			it.Close()
			return 0, errMalformed
		}
	}
	return at, it.Close()
}

// publish shows others what was committed.
func (m *Machine) publish() {
	m.born.Store(m.state.born)
	due := m.due
	if end, any := m.sessions.nextEnd(); any {
		due = min(due, end)
	}
	m.nextDue.Store(due)
}

// Committed publishes; see multiraft.StateMachine.
func (m *Machine) Committed(raft.Index) { m.publish() }

// Apply applies one entry; see multiraft.StateMachine. An error means that the
// entry is not understood or the store is damaged: the node must stop.
func (m *Machine) Apply(b *statestore.Batch, e multiraft.Applied, results []any) error {
	clear(m.touched)
	m.state.time = max(m.state.time, e.Stamp)
	if err := m.removeExpired(b); err != nil {
		return err
	}
	m.endSessions(b)
	for i, encoded := range e.Commands {
		c, err := decodeCommand(encoded)
		if err != nil {
			return fmt.Errorf("command %d: %w", i, err)
		}
		a, err := m.applyCommand(b, c)
		if err != nil {
			return fmt.Errorf("command %d: %w", i, err)
		}
		results[i] = a
	}
	for shard, record := range m.touched {
		b.Set(shardKey(shard), record.encode())
	}
	return nil
}

// Finish puts the group's record into the batch, as its time has moved with
// the entries; see multiraft.StateMachine.
func (m *Machine) Finish(b *statestore.Batch) {
	if m.state != m.stored {
		b.Set(groupKey(), m.state.encode())
		m.stored = m.state
	}
}

func (m *Machine) applyCommand(b *statestore.Batch, c command) (*answer, error) {
	switch c := c.(type) {
	case *write:
		return m.applyWrite(b, c)
	case *outcome:
		return m.applyOutcome(b, c)
	case *birth:
		return m.applyBirth(c), nil
	default: // timeOnly: the stamp was its effect
		return new(answer), nil
	}
}

func refusal(code flotillav1.Code, message string) *answer {
	return &answer{refused: code, message: message}
}

// applyBirth gives the group its first shards, once.
func (m *Machine) applyBirth(c *birth) *answer {
	if m.state.born {
		return new(answer)
	}
	m.state.born = true
	for _, shard := range c.shards {
		m.state.lastIncarnation++
		record := &shardRecord{state: shardOwned, generation: c.generation, incarnation: m.state.lastIncarnation}
		m.shards[shard], m.touched[shard] = record, record
	}
	return new(answer)
}

// owned is the record of a shard that is served here; nil and a refusal if it
// is not.
func (m *Machine) owned(shard shardmap.ShardID) (*shardRecord, *answer) {
	if !m.state.born {
		return nil, refusal(flotillav1.Code_UNAVAILABLE, "the group does not know its shards yet")
	}
	record := m.shards[shard]
	if record == nil || !record.state.serves() {
		return nil, refusal(flotillav1.Code_MOVED, fmt.Sprintf("group %d does not serve shard %d", m.group, shard))
	}
	return record, nil
}

// applyWrite carries out a write, unless its number has been answered before.
func (m *Machine) applyWrite(b *statestore.Batch, w *write) (*answer, error) {
	record, refused := m.owned(w.shard)
	if refused != nil {
		return refused, nil
	}
	if w.session.seq == 0 {
		return m.effect(b, w, record)
	}
	if a := m.checkSession(w.session.id); a != nil {
		return a, nil
	}
	n := number{shard: w.shard, inc: record.incarnation, id: w.session.id, seq: w.session.seq, lowest: w.session.lowest}
	s, a, err := m.open(b, n)
	if s == nil {
		return a, err
	}
	if a, err = m.effect(b, w, record); err != nil {
		return nil, err
	}
	kept := a
	if a.refused != flotillav1.Code_OK {
		kept = closed(a.message) // another attempt must not succeed after this one was refused
	}
	m.record(b, s, n, kept)
	return a, nil
}

// number is a session's number in one shard.
type number struct {
	shard  shardmap.ShardID
	inc    incarnation
	id     sessionID
	seq    uint64
	lowest uint64 // the lowest number that is still waited for
}

func (n number) answerKey(seq uint64) []byte { return answerKey(n.shard, n.inc, n.id, seq) }

// open finds the session of a number that was never answered, making it if it
// is new. Without a session the answer says why: it is the one of an earlier
// attempt, or a refusal.
func (m *Machine) open(b *statestore.Batch, n number) (*sessionState, *answer, error) {
	s := m.sessions.get(sessionKey{n.shard, n.id})
	if s != nil {
		if k, known := s.find(n.seq); known {
			a, err := m.recorded(b, n, k)
			if err != nil {
				return nil, nil, err
			}
			return nil, a, nil
		}
		if n.seq < s.lowest {
			return nil, refusal(flotillav1.Code_INVALID, fmt.Sprintf("write %d of the session was acknowledged before", n.seq)), nil
		}
	}
	if why := m.sessions.full(s, n.lowest); why != "" {
		return nil, refusal(flotillav1.Code_BUSY, why), nil
	}
	return m.sessions.open(sessionKey{n.shard, n.id}), nil, nil
}

// recorded is the answer of an earlier attempt.
func (m *Machine) recorded(b *statestore.Batch, n number, k kept) (*answer, error) {
	encoded := k.encoded
	if encoded == nil {
		var ok bool
		var err error
		if encoded, ok, err = b.Get(n.answerKey(n.seq)); err != nil {
			return nil, err
		} else if !ok {
			return nil, fmt.Errorf("shard %d: the answer to write %d of session %x is gone", n.shard, n.seq, n.id.client)
		}
	}
	a, _, err := decodeAnswer(encoded)
	if err != nil {
		return nil, err
	}
	if a.outcome == flotillav1.OutcomeState_NOT_APPLIED {
		a = refusal(flotillav1.Code_INVALID, a.message)
	}
	a.replayed = true
	return a, nil
}

// checkSession refuses sessions that have ended or were born in the future.
func (m *Machine) checkSession(id sessionID) *answer {
	switch {
	case id.endsAt() <= m.state.time:
		return refusal(flotillav1.Code_SESSION_EXPIRED, "the session has ended")
	case id.birth > m.state.time+birthAhead.Milliseconds():
		return refusal(flotillav1.Code_SESSION_EXPIRED, "the session was born in the future: is the client's clock right?")
	}
	return nil
}

// effect evaluates the compares and carries out the branch.
func (m *Machine) effect(b *statestore.Batch, w *write, record *shardRecord) (*answer, error) {
	x := effects{
		shardView: shardView{view: batchView{b}, shard: w.shard, inc: record.incarnation, time: m.state.time},
		batch:     b,
		record:    record,
	}
	m.touched[w.shard] = record
	a := &answer{compared: true}
	for _, c := range w.compares {
		holds, _, err := x.holds(c)
		if err != nil {
			return nil, err
		}
		if why := excess(x.looked, 0); why != "" {
			return refusal(flotillav1.Code_INVALID, why), nil
		}
		a.compared = a.compared && holds
	}
	branch := w.ops
	if !a.compared {
		branch = w.otherwise
	}
	why, err := x.overspent(branch)
	if err != nil {
		return nil, err
	}
	if why != "" {
		return refusal(flotillav1.Code_INVALID, why), nil
	}
	a.results, err = x.run(branch)
	if x.soonest != 0 {
		m.due = min(m.due, x.soonest)
	}
	return a, err
}

// record keeps the answer under its number and drops those that are not waited
// for any more.
func (m *Machine) record(b *statestore.Batch, s *sessionState, n number, a *answer) {
	for _, gone := range m.sessions.raise(s, n.lowest) {
		b.Delete(n.answerKey(gone.seq))
	}
	encoded := a.encode(s.lowest)
	m.sessions.add(s, n.seq, encoded)
	b.Set(n.answerKey(n.seq), encoded)
}

// applyOutcome says what became of a number and closes it.
func (m *Machine) applyOutcome(b *statestore.Batch, c *outcome) (*answer, error) {
	record, refused := m.owned(c.shard)
	if refused != nil {
		return refused, nil
	}
	if c.id.endsAt() <= m.state.time {
		return &answer{outcome: flotillav1.OutcomeState_EXPIRED}, nil
	}
	if a := m.checkSession(c.id); a != nil {
		return a, nil
	}
	n := number{shard: c.shard, inc: record.incarnation, id: c.id, seq: c.seq}
	s, a, err := m.open(b, n)
	switch {
	case err != nil:
		return nil, err
	case s == nil && a.replayed && a.refused != flotillav1.Code_OK:
		return closed(a.message), nil
	case s == nil && a.replayed:
		a.replayed, a.outcome = false, flotillav1.OutcomeState_APPLIED
		return a, nil
	case s == nil:
		return a, nil
	}
	a = closed("the number was closed: its write is never applied")
	m.record(b, s, n, a)
	return a, nil
}

// removeExpired deletes keys whose expiry the group's time has reached. An
// entry of the index counts only if the key still expires then.
func (m *Machine) removeExpired(b *statestore.Batch) error {
	if m.due > m.state.time {
		return nil
	}
	var keys [][]byte
	it := b.Iter([]byte{kindExpiry}, []byte{kindExpiry + 1})
	m.due = math.MaxInt64
	for ok := it.First(); ok; ok = it.Next() {
		at, _, _, _, good := splitExpiryKey(it.Key())
		if !good {
			it.Close()
			return errMalformed
		}
		if at > m.state.time || len(keys) == expiredAtOnce {
			m.due = at
			break
		}
		keys = append(keys, bytes.Clone(it.Key()))
	}
	if err := it.Close(); err != nil {
		return err
	}
	for _, key := range keys {
		if err := m.removeIfExpired(b, key); err != nil {
			return err
		}
	}
	return nil
}

func (m *Machine) removeIfExpired(b *statestore.Batch, index []byte) error {
	at, shard, inc, key, _ := splitExpiryKey(index)
	b.Delete(index)
	stored, ok, err := b.Get(valueKey(shard, inc, key))
	if err != nil || !ok {
		return err
	}
	r, err := decodeRecord(stored)
	if err != nil {
		return err
	}
	if r.expires == at {
		b.Delete(valueKey(shard, inc, key))
	}
	return nil
}

// endSessions forgets sessions that the group's time has passed.
func (m *Machine) endSessions(b *statestore.Batch) {
	for range sessionEndsAtOnce {
		key, ended := m.sessions.endOne(m.state.time)
		if !ended {
			return
		}
		if record := m.shards[key.shard]; record != nil {
			b.DeleteRange(sessionSpan(key.shard, record.incarnation, key.id))
		}
	}
}

// Born tells whether the group knows its shards, as committed here.
func (m *Machine) Born() bool { return m.born.Load() }

// NextDue is the unix ms at which the group's time should go on although
// nobody writes: a key expires, or a session ends. MaxInt64: never.
func (m *Machine) NextDue() int64 { return m.nextDue.Load() }
