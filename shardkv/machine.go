package shardkv

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"sync"
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
// goroutine at a time; what others may ask stands below mu or is atomic.
type Machine struct {
	group    raft.GroupID
	state    groupRecord
	sessions *sessions
	due      int64 // no key expires before this; MaxInt64: none does

	born    atomic.Bool  // as committed
	nextDue atomic.Int64 // when group time should go on: the next expiry or end of a session; MaxInt64: never

	mu     sync.RWMutex // guards shards: Apply writes, others read
	shards map[shardmap.ShardID]*shardRecord
}

var _ multiraft.StateMachine = (*Machine)(nil)

// NewMachine makes the state machine of a group. Restored fills it.
func NewMachine(group raft.GroupID) *Machine {
	m := &Machine{group: group, sessions: newSessions(), due: math.MaxInt64, shards: make(map[shardmap.ShardID]*shardRecord)}
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
	shards := make(map[shardmap.ShardID]*shardRecord)
	it := view.NewIter([]byte{kindShard}, []byte{kindShard + 1})
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		if len(it.Key()) != kindBytes+shardBytes {
			return errMalformed
		}
		record, err := decodeShardRecord(it.Value())
		if err != nil {
			return err
		}
		shards[shardmap.ShardID(binary.BigEndian.Uint32(it.Key()[kindBytes:]))] = &record
	}
	m.mu.Lock()
	m.shards = shards
	m.mu.Unlock()
	return it.Error()
}

func (m *Machine) restoreSessions(view *statestore.View) error {
	m.sessions = newSessions()
	it := view.NewIter([]byte{kindAnswer}, []byte{kindAnswer + 1})
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		key := it.Key()
		if len(key) != spaceBytes+clientBytes+seqBytes {
			return errMalformed
		}
		id := sessionID{client: binary.BigEndian.Uint64(key[spaceBytes:]), birth: int64(binary.BigEndian.Uint64(key[spaceBytes+8:]))}
		encoded := bytes.Clone(it.Value())
		_, lowest, err := decodeAnswer(encoded)
		if err != nil {
			return err
		}
		s := m.sessions.open(sessionKey{shardmap.ShardID(binary.BigEndian.Uint32(key[kindBytes:])), id})
		if s == nil {
			return fmt.Errorf("more than %d sessions are stored", sessionsMax)
		}
		s.lowest = max(s.lowest, lowest)
		s.add(binary.BigEndian.Uint64(key[spaceBytes+clientBytes:]), encoded)
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
	m.mu.Lock()
	defer m.mu.Unlock()
	before := m.state
	m.state.time = max(m.state.time, e.Stamp)
	if err := m.removeExpired(b); err != nil {
		return err
	}
	m.endSessions(b)
	touched := make(map[shardmap.ShardID]bool)
	for i, encoded := range e.Commands {
		c, err := decodeCommand(encoded)
		if err != nil {
			return fmt.Errorf("command %d: %w", i, err)
		}
		a, err := m.applyCommand(b, c, touched)
		if err != nil {
			return fmt.Errorf("command %d: %w", i, err)
		}
		results[i] = a
	}
	for shard := range touched {
		b.Set(shardKey(shard), m.shards[shard].encode())
	}
	if m.state != before {
		b.Set(groupKey(), m.state.encode())
	}
	return nil
}

func (m *Machine) applyCommand(b *statestore.Batch, c command, touched map[shardmap.ShardID]bool) (*answer, error) {
	switch c := c.(type) {
	case *write:
		return m.applyWrite(b, c, touched)
	case *outcome:
		return m.applyOutcome(b, c)
	case *birth:
		return m.applyBirth(c, touched), nil
	default: // timeOnly: the stamp was its effect
		return new(answer), nil
	}
}

func refusal(code flotillav1.Code, message string) *answer {
	return &answer{refused: code, message: message}
}

// applyBirth gives the group its first shards, once.
func (m *Machine) applyBirth(c *birth, touched map[shardmap.ShardID]bool) *answer {
	if m.state.born {
		return new(answer)
	}
	m.state.born = true
	for _, shard := range c.shards {
		m.state.lastIncarnation++
		m.shards[shard] = &shardRecord{state: shardOwned, generation: c.generation, incarnation: m.state.lastIncarnation}
		touched[shard] = true
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
func (m *Machine) applyWrite(b *statestore.Batch, w *write, touched map[shardmap.ShardID]bool) (*answer, error) {
	record, refused := m.owned(w.shard)
	if refused != nil {
		return refused, nil
	}
	numbered := w.session.seq != 0
	var s *sessionState
	if numbered {
		var a *answer
		var err error
		if s, a, err = m.number(w); a != nil || err != nil {
			return a, err
		}
	}
	a, err := m.effect(b, w, record)
	if err != nil {
		return nil, err
	}
	touched[w.shard] = true
	if numbered {
		m.record(b, w.shard, record.incarnation, w.session.id, w.session.seq, max(s.lowest, w.session.lowest), a, s)
	}
	return a, nil
}

// number finds the session of a numbered write. An answer instead means that
// nothing is to be done: the number has been answered, or is refused.
func (m *Machine) number(w *write) (*sessionState, *answer, error) {
	if a := m.checkSession(w.session.id); a != nil {
		return nil, a, nil
	}
	key := sessionKey{w.shard, w.session.id}
	if s := m.sessions.get(key); s != nil {
		if encoded, known := s.find(w.session.seq); known {
			a, err := replay(encoded)
			return nil, a, err
		}
		if w.session.seq < s.lowest {
			return nil, refusal(flotillav1.Code_INVALID, fmt.Sprintf("write %d of the session was acknowledged before", w.session.seq)), nil
		}
		if s.full() && w.session.lowest <= s.lowest {
			return nil, refusal(flotillav1.Code_BUSY, "the session has too many unacknowledged answers"), nil
		}
		return s, nil, nil
	}
	s := m.sessions.open(key)
	if s == nil {
		return nil, refusal(flotillav1.Code_BUSY, "the group has too many sessions"), nil
	}
	return s, nil, nil
}

// replay is the answer of an earlier attempt.
func replay(encoded []byte) (*answer, error) {
	a, _, err := decodeAnswer(encoded)
	if err != nil {
		return nil, err
	}
	if a.outcome == flotillav1.OutcomeState_NOT_APPLIED {
		return refusal(flotillav1.Code_INVALID, "the number was closed: the write will never be applied"), nil
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
	a := &answer{compared: true}
	for _, c := range w.compares {
		holds, _, err := x.holds(c)
		if err != nil {
			return nil, err
		}
		a.compared = a.compared && holds
	}
	branch := w.ops
	if !a.compared {
		branch = w.otherwise
	}
	var err error
	a.results, err = x.run(branch)
	if x.soonest != 0 {
		m.due = min(m.due, x.soonest)
	}
	return a, err
}

// record keeps the answer under its number and drops those that are not waited
// for any more.
func (m *Machine) record(b *statestore.Batch, shard shardmap.ShardID, inc incarnation, id sessionID, seq, lowest uint64, a *answer, s *sessionState) {
	gone := s.raise(lowest)
	for i := range gone {
		b.Delete(answerKey(shard, inc, id, gone[i].seq))
		gone[i] = kept{}
	}
	encoded := a.encode(lowest)
	s.add(seq, encoded)
	b.Set(answerKey(shard, inc, id, seq), encoded)
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
	key := sessionKey{c.shard, c.id}
	s := m.sessions.open(key)
	if s == nil {
		return refusal(flotillav1.Code_BUSY, "the group has too many sessions"), nil
	}
	if encoded, known := s.find(c.seq); known {
		a, _, err := decodeAnswer(encoded)
		if err == nil && a.outcome == flotillav1.OutcomeState_OUTCOME_UNSPECIFIED {
			a.outcome = flotillav1.OutcomeState_APPLIED
		}
		return a, err
	}
	if c.seq < s.lowest {
		return refusal(flotillav1.Code_INVALID, fmt.Sprintf("write %d of the session was acknowledged before", c.seq)), nil
	}
	if s.full() {
		return refusal(flotillav1.Code_BUSY, "the session has too many unacknowledged answers"), nil
	}
	a := &answer{outcome: flotillav1.OutcomeState_NOT_APPLIED}
	m.record(b, c.shard, record.incarnation, c.id, c.seq, s.lowest, a, s)
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

// Shard describes one shard of the group.
type Shard struct {
	ID         shardmap.ShardID
	State      string
	Generation shardmap.Generation
	Writes     uint64
	inc        incarnation
}

// Shards lists the shards that the group knows, ascending.
func (m *Machine) Shards() []Shard {
	m.mu.RLock()
	defer m.mu.RUnlock()
	all := make([]Shard, 0, len(m.shards))
	for id, r := range m.shards {
		all = append(all, Shard{ID: id, State: r.state.String(), Generation: shardmap.Generation(r.generation), Writes: r.writes, inc: r.incarnation})
	}
	slices.SortFunc(all, func(a, b Shard) int { return cmp.Compare(a.ID, b.ID) })
	return all
}
