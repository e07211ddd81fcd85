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
	shards   map[shardmap.ShardID]*heldShard
	dirty    []*heldShard // whose records go into the batch
	sessions *sessions
	due      int64 // no key expires before this; MaxInt64: none does

	scratch scratch

	born    atomic.Bool  // as committed
	nextDue atomic.Int64 // when group time should go on: the next expiry or end of a session; MaxInt64: never
}

var _ multiraft.StateMachine = (*Machine)(nil)

// NewMachine makes the state machine of a group. Restored fills it.
func NewMachine(group raft.GroupID) *Machine {
	m := &Machine{
		group:    group,
		shards:   make(map[shardmap.ShardID]*heldShard),
		sessions: newSessions(),
		due:      math.MaxInt64,
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
	m.dirty = nil
	return eachShard(view, func(id shardmap.ShardID, record shardRecord) {
		m.shards[id] = &heldShard{shardRecord: record, id: id, saved: record.writes}
	})
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

// restoreSessions finds what the slots of the shards' present copies hold, and
// the write counts that ride there.
func (m *Machine) restoreSessions(view *statestore.View) error {
	m.sessions = newSessions()
	err := eachAnswer(view, []byte{kindAnswer}, []byte{kindAnswer + 1}, func(p answerPlace, head answerHead, _ []byte, size int) {
		sh := m.shards[p.shard]
		if sh == nil || sh.incarnation != p.inc {
			return
		}
		sh.writes = max(sh.writes, head.writes)
		s := m.sessions.open(sessionKey{p.shard, p.id})
		s.lowest = max(s.lowest, head.lowest)
		s.queue = append(s.queue, kept{seq: head.seq, size: size, slot: p.slot})
	})
	if err != nil {
		return err
	}
	for key, s := range m.sessions.byKey {
		if err := m.sessions.sift(s); err != nil {
			return fmt.Errorf("shard %d, session %x: %w", key.shard, key.id.client, err)
		}
	}
	return nil
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
	if rest := due % expiryStep; rest != 0 && due < math.MaxInt64-expiryStep {
		due += expiryStep - rest
	}
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
	m.state.time = max(m.state.time, e.Stamp)
	if err := m.removeExpired(b); err != nil {
		return err
	}
	m.endSessions(b)
	m.scratch.begin(len(e.Commands), e.Waited)
	defer m.scratch.end()
	for i, encoded := range e.Commands {
		c, err := decodeCommand(encoded, &m.scratch.write)
		if err != nil {
			return fmt.Errorf("command %d: %w", i, err)
		}
		a, err := m.applyCommand(b, c)
		if err != nil {
			return fmt.Errorf("command %d: %w", i, err)
		}
		if e.Waited {
			results[i] = a
		}
	}
	return nil
}

// Finish puts the records into the batch that have changed: the group's, whose
// time has moved with the entries, and those of shards; see
// multiraft.StateMachine.
func (m *Machine) Finish(b *statestore.Batch) {
	for _, sh := range m.dirty {
		sh.dirty = false
		record := sh.shardRecord
		record.writes = sh.saved // behind it came writes that answers carry; how entries are batched must not show
		b.Set(shardKey(sh.id), record.encode())
	}
	m.dirty = m.dirty[:0]
	if m.state != m.stored {
		b.Set(groupKey(), m.state.encode())
		m.stored = m.state
	}
}

func (m *Machine) applyCommand(b *statestore.Batch, c command) (*answer, error) {
	if m.scratch.spent > entryBytesMax {
		switch c.(type) {
		case *write, *outcome:
			return refusal(flotillav1.Code_BUSY, "what came together with this is too large"), nil
		}
	}
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
		sh := &heldShard{id: shard, shardRecord: shardRecord{state: shardOwned, generation: c.generation, incarnation: m.state.lastIncarnation}}
		m.shards[shard] = sh
		m.save(sh)
	}
	return new(answer)
}

// save has the shard's record hold its write count as it is now.
func (m *Machine) save(sh *heldShard) {
	sh.saved = sh.writes
	if !sh.dirty {
		sh.dirty = true
		m.dirty = append(m.dirty, sh)
	}
}

// owned is a shard that is served here; nil and a refusal if it is not.
func (m *Machine) owned(shard shardmap.ShardID) (*heldShard, *answer) {
	if !m.state.born {
		return nil, refusal(flotillav1.Code_UNAVAILABLE, "the group does not know its shards yet")
	}
	sh := m.shards[shard]
	if sh == nil || !sh.state.serves() {
		return nil, refusal(flotillav1.Code_MOVED, fmt.Sprintf("group %d does not serve shard %d", m.group, shard))
	}
	return sh, nil
}

// applyWrite carries out a write, unless its number has been answered before.
func (m *Machine) applyWrite(b *statestore.Batch, w *write) (*answer, error) {
	sh, refused := m.owned(w.shard)
	if refused != nil {
		return refused, nil
	}
	if w.session.seq == 0 {
		return m.applyPlain(b, w, sh)
	}
	if a := m.checkSession(w.session.id); a != nil {
		return a, nil
	}
	// No number acknowledges itself. The door refuses that; here it only must
	// not be recorded, or a restart would take the answer for a leftover.
	n := number{shard: sh, id: w.session.id, seq: w.session.seq, lowest: min(w.session.lowest, w.session.seq)}
	s, a, err := m.open(b, n)
	if s == nil {
		return a, err
	}
	if a, err = m.effect(b, w, sh); err != nil {
		return nil, err
	}
	kept := a
	if a.refused != flotillav1.Code_OK {
		kept = closed(a.message) // another attempt must not succeed after this one was refused
	}
	m.record(b, s, n, kept)
	return a, nil
}

// applyPlain carries out a write without a number. No answer carries the write
// count, so the shard's record does.
func (m *Machine) applyPlain(b *statestore.Batch, w *write, sh *heldShard) (*answer, error) {
	before := sh.writes
	a, err := m.effect(b, w, sh)
	if sh.writes != before {
		m.save(sh)
	}
	return a, err
}

// number is a session's number in one shard.
type number struct {
	shard  *heldShard
	id     sessionID
	seq    uint64
	lowest uint64 // the lowest number that is still waited for; at most seq
}

// session names the session in the table.
func (n number) session() sessionKey { return sessionKey{n.shard.id, n.id} }

// answerKey is where the answer in a slot lies. It lives until the next.
func (m *Machine) answerKey(n number, s slot) []byte {
	m.scratch.key = answerPlace{shard: n.shard.id, inc: n.shard.incarnation, id: n.id, slot: s}.append(m.scratch.key[:0])
	return m.scratch.key
}

// open finds the session of a number that was never answered, making it if it
// is new. Without a session the answer says why: it is the one of an earlier
// attempt, or a refusal.
func (m *Machine) open(b *statestore.Batch, n number) (*sessionState, *answer, error) {
	s := m.sessions.get(n.session())
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
	if s == nil {
		s = m.sessions.open(n.session())
	}
	return s, nil, nil
}

// recorded is the answer of an earlier attempt.
func (m *Machine) recorded(b *statestore.Batch, n number, k kept) (*answer, error) {
	encoded, ok, err := b.Get(m.answerKey(n, k.slot))
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, fmt.Errorf("shard %d: the answer to write %d of session %x is gone", n.shard.id, n.seq, n.id.client)
	}
	m.scratch.spent += len(encoded)
	a, head, err := decodeAnswer(encoded)
	if err != nil {
		return nil, err
	}
	if head.seq != n.seq {
		return nil, fmt.Errorf("shard %d: slot %d of session %x holds the answer to write %d, not %d", n.shard.id, k.slot, n.id.client, head.seq, n.seq)
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
func (m *Machine) effect(b *statestore.Batch, w *write, sh *heldShard) (*answer, error) {
	x := m.scratch.effectsOn(b, sh, m.state.time)
	defer func() { m.scratch.spent += x.looked }()
	compared := true
	for _, c := range w.compares {
		holds, _, err := x.holds(c)
		if err != nil {
			return nil, err
		}
		if why := excess(x.looked, 0); why != "" {
			return refusal(flotillav1.Code_INVALID, why), nil
		}
		compared = compared && holds
	}
	branch := w.ops
	if !compared {
		branch = w.otherwise
	}
	why, err := x.overspent(branch)
	if err != nil {
		return nil, err
	}
	if why != "" {
		return refusal(flotillav1.Code_INVALID, why), nil
	}
	a := m.scratch.newAnswer(len(branch))
	a.compared = compared
	err = x.run(branch, a.results)
	for i := range a.results {
		m.scratch.spent += a.results[i].size()
	}
	if x.soonest != 0 {
		m.due = min(m.due, x.soonest)
	}
	return a, err
}

// record keeps the answer in the lowest slot that is free, and with it the
// shard's write count. Those that are not waited for any more free theirs: small
// ones lie there until they are written over, large ones are deleted. What a
// deleted one says of the write count, the new one says too.
func (m *Machine) record(b *statestore.Batch, s *sessionState, n number, a *answer) {
	gone := m.sessions.raise(s, n.lowest)
	free := s.slots.lowestFree()
	for _, g := range gone {
		if g.size > leftoverBytesMax && g.slot != free {
			b.Delete(m.answerKey(n, g.slot))
		}
	}
	e := &m.scratch.encoder
	e.b = e.b[:0]
	a.encode(e, answerHead{writes: n.shard.writes, seq: n.seq, lowest: s.lowest})
	m.sessions.add(s, kept{seq: n.seq, size: len(e.b), slot: free})
	b.Set(m.answerKey(n, free), e.b)
}

// applyOutcome says what became of a number and closes it.
func (m *Machine) applyOutcome(b *statestore.Batch, c *outcome) (*answer, error) {
	sh, refused := m.owned(c.shard)
	if refused != nil {
		return refused, nil
	}
	if c.id.endsAt() <= m.state.time {
		return &answer{outcome: flotillav1.OutcomeState_EXPIRED}, nil
	}
	if a := m.checkSession(c.id); a != nil {
		return a, nil
	}
	n := number{shard: sh, id: c.id, seq: c.seq}
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

// expiryStep is how exactly, in milliseconds, expired keys are deleted: to look
// for them with each entry would cost more than all else. Who reads looks at the
// key's expiry itself.
const expiryStep = 100

// removeExpired deletes keys whose expiry the group's time has reached, counted
// in steps. An entry of the index counts only if the key still expires then.
func (m *Machine) removeExpired(b *statestore.Batch) error {
	reached := m.state.time - m.state.time%expiryStep
	if m.due > reached {
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
		if at > reached || len(keys) == expiredAtOnce {
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

// endSessions forgets sessions that the group's time has passed. Write counts
// that may be recorded nowhere else go into the shards' records.
func (m *Machine) endSessions(b *statestore.Batch) {
	for range sessionEndsAtOnce {
		key, ended := m.sessions.endOne(m.state.time)
		if !ended {
			return
		}
		if sh := m.shards[key.shard]; sh != nil {
			b.DeleteRange(sessionSpan(key.shard, sh.incarnation, key.id))
			if sh.saved != sh.writes {
				m.save(sh)
			}
		}
	}
}

// Born tells whether the group knows its shards, as committed here.
func (m *Machine) Born() bool { return m.born.Load() }

// NextDue is the unix ms at which the group's time should go on although
// nobody writes: a key expires, or a session ends. MaxInt64: never.
func (m *Machine) NextDue() int64 { return m.nextDue.Load() }
