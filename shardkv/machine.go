package shardkv

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync/atomic"
	"time"

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
	group  raft.GroupID
	state  groupRecord
	stored groupRecord // state as it is in the store, or will be with the batch
	shards map[shardmap.ShardID]*heldShard
	order  []*heldShard // shards, ascending
	dirty  []*heldShard // whose records go into the batch
	kept   tally        // of the tables of sessions
	due    int64        // no key of a shard that serves expires before this; MaxInt64: none does
	ends   int64        // likewise of sessions

	notes   notes
	history history
	replica *statestore.Replica
	exports bool   // some copy is not being added up yet
	moved   func() // is called when a move has gone on
	clock   func() time.Time
	scan    func(*baseScan) // has a copy added up, beside the machine
	scratch scratch

	born    atomic.Bool            // as committed
	moves   atomic.Pointer[moving] // as committed
	inMoves bool                   // some shard is in one, or was by the last look
	nextDue atomic.Int64           // when group time should go on: the next expiry or end of a session; MaxInt64: never
}

var _ multiraft.StateMachine = (*Machine)(nil)

// NewMachine makes the state machine of a group. Restored fills it.
func NewMachine(group raft.GroupID) *Machine {
	m := &Machine{
		group:  group,
		shards: make(map[shardmap.ShardID]*heldShard),
		due:    math.MaxInt64,
		ends:   math.MaxInt64,
		moved:  func() {},
		clock:  time.Now,
		scan:   func(s *baseScan) { _ = s.run() },
	}
	m.nextDue.Store(math.MaxInt64)
	m.moves.Store(new(moving))
	return m
}

// Restored builds anew what is kept in memory; see multiraft.StateMachine.
func (m *Machine) Restored(r *statestore.Replica) error {
	view, err := r.View()
	if err != nil {
		return err
	}
	defer view.Close()
	m.replica, m.notes = r, notes{}
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
	if err := m.restoreExpiries(view); err != nil {
		return fmt.Errorf("group %d: expiries: %w", m.group, err)
	}
	if err := m.countExports(); err != nil {
		return fmt.Errorf("group %d: exports: %w", m.group, err)
	}
	m.inMoves = true
	applied, _, _, err := view.Applied()
	for _, sh := range m.order {
		sh.begin = sh.writes
	}
	m.history.restart(applied, m.order)
	m.publish(applied)
	return err
}

func (m *Machine) restoreShards(view *statestore.View) error {
	clear(m.shards)
	for _, sh := range m.order {
		sh.endScan()
	}
	m.order, m.dirty, m.kept = nil, nil, tally{}
	if err := eachShard(view, func(id shardmap.ShardID, record shardRecord) { m.hold(id, record) }); err != nil {
		return err
	}
	for _, sh := range m.order {
		if sh.state == shardExporting || sh.state == shardHandedOff {
			sh.export = new(export)
		}
	}
	if err := m.restoreImports(view); err != nil {
		return err
	}
	for _, sh := range m.order {
		if sh.in == nil && (sh.state == shardImporting || sh.unverified) {
			return fmt.Errorf("%w: shard %d is %s, and how far is not there", errMalformed, sh.id, sh.describe())
		}
	}
	return nil
}

func (m *Machine) restoreImports(view *statestore.View) error {
	it := view.NewIter([]byte{kindImport}, []byte{kindImport + 1})
	for ok := it.First(); ok; ok = it.Next() {
		in, err := decodeImported(bytes.Clone(it.Value()))
		var sh *heldShard
		if len(it.Key()) == kindBytes+shardBytes {
			sh = m.shards[shardmap.ShardID(binary.BigEndian.Uint32(it.Key()[kindBytes:]))]
		}
		if err != nil || sh == nil {
			it.Close()
			return errMalformed
		}
		sh.in = in
	}
	return it.Close()
}

// hold takes a shard in that the group did not know.
func (m *Machine) hold(id shardmap.ShardID, record shardRecord) *heldShard {
	sh := &heldShard{shardRecord: record, id: id, saved: record.writes, sessions: newSessions(new(tally)), due: math.MaxInt64}
	if record.state.serves() {
		sh.sessions.join(&m.kept)
	}
	m.shards[id] = sh
	at, _ := slices.BinarySearchFunc(m.order, id, func(sh *heldShard, id shardmap.ShardID) int { return cmp.Compare(sh.id, id) })
	m.order = slices.Insert(m.order, at, sh)
	return sh
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
	err := eachAnswer(view, []byte{kindAnswer}, []byte{kindAnswer + 1}, func(p answerPlace, head answerHead, _ []byte, size int) {
		sh := m.shards[p.shard]
		if sh == nil || sh.incarnation != p.inc {
			return
		}
		sh.writes = max(sh.writes, head.writes)
		s := sh.sessions.open(p.id)
		s.lowest = max(s.lowest, head.lowest)
		s.queue = append(s.queue, kept{seq: head.seq, size: size, slot: p.slot})
	})
	if err != nil {
		return err
	}
	m.ends = math.MaxInt64
	for _, sh := range m.order {
		for id, s := range sh.sessions.byID {
			if err := sh.sessions.sift(s); err != nil {
				return fmt.Errorf("shard %d, session %x: %w", sh.id, id.client, err)
			}
		}
		m.noteEnd(sh)
	}
	return nil
}

// restoreExpiries finds when the first key of each shard expires.
func (m *Machine) restoreExpiries(view *statestore.View) error {
	m.due = math.MaxInt64
	it := view.NewIter([]byte{kindExpiry}, []byte{kindExpiry + 1})
	for _, sh := range m.order {
		var err error
		if sh.due, err = firstExpiry(it, sh); err != nil {
			it.Close()
			return err
		}
		m.noteDue(sh)
	}
	return it.Close()
}

// firstExpiry leads an iterator of the expiry index to the first of a shard's
// copy; MaxInt64: there is none.
func firstExpiry(it *statestore.Iter, sh *heldShard) (int64, error) {
	space := appendSpace(nil, kindExpiry, sh.id, sh.incarnation)
	if !it.SeekGE(space) || !bytes.HasPrefix(it.Key(), space) {
		return math.MaxInt64, nil
	}
	at, _, ok := splitExpiryKey(it.Key())
	if !ok {
		return 0, errMalformed
	}
	return at, nil
}

// noteDue has the machine look at the shard's keys when one expires.
func (m *Machine) noteDue(sh *heldShard) {
	if sh.state.serves() {
		m.due = min(m.due, sh.due)
	}
}

// noteEnd has it look at the shard's sessions when one ends.
func (m *Machine) noteEnd(sh *heldShard) {
	if end, any := sh.sessions.nextEnd(); any && sh.state.serves() {
		m.ends = min(m.ends, end)
	}
}

// publish shows others what was committed.
func (m *Machine) publish(applied raft.Index) {
	m.born.Store(m.state.born)
	due := m.due
	if rest := due % expiryStep; rest != 0 && due < math.MaxInt64-expiryStep {
		due += expiryStep - rest
	}
	m.nextDue.Store(min(due, m.ends))
	if m.inMoves {
		m.history.publish(applied, m.order)
		m.showMoves(applied)
	} else {
		m.history.publish(applied, nil)
	}
}

// Committed publishes; see multiraft.StateMachine.
func (m *Machine) Committed(applied raft.Index) {
	if m.inMoves {
		m.countAnew()
	}
	if m.exports {
		m.exports = false
		if err := m.countExports(); err != nil {
			m.exports = true // again with the next
		}
	}
	m.publish(applied)
}

// Apply applies one entry; see multiraft.StateMachine. An error means that the
// entry is not understood or the store is damaged: the node must stop.
func (m *Machine) Apply(b *statestore.Batch, e multiraft.Applied, results []any) error {
	m.state.time = max(m.state.time, e.Stamp)
	m.notes.begin(e.Index)
	if err := m.removeExpired(b); err != nil {
		return err
	}
	if err := m.endSessions(b); err != nil {
		return err
	}
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
	for _, sh := range m.notes.imports {
		if sh.in != nil && sh.in.dirty {
			sh.in.dirty = false
			b.Set(importKey(sh.id), sh.in.encode())
		}
	}
	m.notes.imports = m.notes.imports[:0]
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
	case *move:
		m.inMoves = true
		return m.applyMove(b, c)
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
	m.state.born, m.inMoves = true, true // shards have come
	for _, shard := range c.shards {
		m.state.lastIncarnation++
		m.save(m.hold(shard, shardRecord{state: shardOwned, generation: c.generation, incarnation: m.state.lastIncarnation}))
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
	switch {
	case sh == nil:
		return nil, notServed(m.group, shard, shardRecord{})
	case !sh.state.serves():
		return nil, notServed(m.group, shard, sh.shardRecord)
	}
	return sh, nil
}

// notServed says who serves a shard that this group does not.
func notServed(group raft.GroupID, shard shardmap.ShardID, record shardRecord) *answer {
	a := refusal(flotillav1.Code_MOVED, fmt.Sprintf("group %d does not serve shard %d", group, shard))
	a.movedTo = record.peer
	return a
}

// applyWrite carries out a write, unless its number has been answered before.
func (m *Machine) applyWrite(b *statestore.Batch, w *write) (*answer, error) {
	sh, refused := m.owned(w.shard)
	if refused != nil {
		return refused, nil
	}
	if sh.noted() && !sh.sessions.answered(w.session) {
		if busy, err := m.clearsTooMuch(b, w, sh); busy || err != nil {
			return refusal(flotillav1.Code_BUSY, fmt.Sprintf("shard %d moves: clear it in smaller parts, or later", sh.id)), err
		}
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
	return a, m.record(b, s, n, kept)
}

// clearsTooMuch tells whether either branch does.
func (m *Machine) clearsTooMuch(b *statestore.Batch, w *write, sh *heldShard) (bool, error) {
	x := m.scratch.effectsOn(b, sh, m.state.time, &m.notes, &m.history)
	busy, err := x.clearsTooMuch(w.ops)
	if busy || err != nil {
		return busy, err
	}
	return x.clearsTooMuch(w.otherwise)
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

// answerKey is where the answer in a slot lies. It lives until the next.
func (m *Machine) answerKey(n number, s slot) []byte {
	m.scratch.key = answerPlace{shard: n.shard.id, inc: n.shard.incarnation, id: n.id, slot: s}.append(m.scratch.key[:0])
	return m.scratch.key
}

// open finds the session of a number that was never answered, making it if it
// is new. Without a session the answer says why: it is the one of an earlier
// attempt, or a refusal.
func (m *Machine) open(b *statestore.Batch, n number) (*sessionState, *answer, error) {
	table := n.shard.sessions
	s := table.get(n.id)
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
	if why := table.full(s, n.lowest); why != "" {
		return nil, refusal(flotillav1.Code_BUSY, why), nil
	}
	if s == nil {
		s = table.open(n.id)
		m.noteEnd(n.shard)
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
	x := m.scratch.effectsOn(b, sh, m.state.time, &m.notes, &m.history)
	defer func() { m.scratch.spent += x.looked }()
	compared := true
	for _, c := range w.compares {
		holds, _, err := x.holds(c)
		if err != nil {
			return nil, err
		}
		if why := excess(x.looked, 0, recordedBytesMax); why != "" {
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
		sh.due = min(sh.due, x.soonest)
		m.noteDue(sh)
	}
	return a, err
}

// record keeps the answer in the lowest slot that is free, and with it the
// shard's write count. Those that are not waited for any more free theirs: small
// ones lie there until they are written over, large ones are deleted. What a
// deleted one says of the write count, the new one says too.
func (m *Machine) record(b *statestore.Batch, s *sessionState, n number, a *answer) error {
	gone := n.shard.sessions.raise(s, n.lowest)
	if n.shard.noted() {
		if err := m.notes.gone(b, n.shard, n.id, gone); err != nil {
			return err
		}
	}
	free := s.slots.lowestFree()
	for _, g := range gone {
		if g.size > leftoverBytesMax && g.slot != free {
			b.Delete(m.answerKey(n, g.slot))
		}
	}
	e := &m.scratch.encoder
	e.b = e.b[:0]
	a.encode(e, answerHead{writes: n.shard.writes, seq: n.seq, lowest: s.lowest})
	n.shard.sessions.add(s, kept{seq: n.seq, size: len(e.b), slot: free})
	b.Set(m.answerKey(n, free), e.b)
	if n.shard.noted() {
		return m.notes.answer(b, n.shard, n.id, n.seq, e.b)
	}
	return nil
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
	return a, m.record(b, s, n, a)
}

// expiryStep is how exactly, in milliseconds, expired keys are deleted: to look
// for them with each entry would cost more than all else. Who reads looks at the
// key's expiry itself.
const expiryStep = 100

// removeExpired deletes keys whose expiry the group's time has reached, counted
// in steps, in the shards that serve: nothing else touches a copy that does not.
func (m *Machine) removeExpired(b *statestore.Batch) error {
	reached := m.state.time - m.state.time%expiryStep
	if m.due > reached {
		return nil
	}
	it := b.Iter([]byte{kindExpiry}, []byte{kindExpiry + 1})
	var due []dueKey
	var err error
	m.due = math.MaxInt64
	for _, sh := range m.order {
		if !sh.state.serves() {
			continue
		}
		if sh.due <= reached && err == nil {
			due, err = sh.findExpired(it, reached, due)
		}
		m.due = min(m.due, sh.due)
	}
	if err := errors.Join(err, it.Close()); err != nil {
		return err
	}
	for _, d := range due {
		if err := m.removeIfExpired(b, d); err != nil {
			return err
		}
	}
	return nil
}

// dueKey is an entry of the expiry index whose time has come.
type dueKey struct {
	shard *heldShard
	at    int64
	index []byte // where the entry lies
}

// findExpired adds the shard's keys that are due by reached, as many as one
// entry may remove, and notes when the next one is.
func (sh *heldShard) findExpired(it *statestore.Iter, reached int64, due []dueKey) ([]dueKey, error) {
	at, err := firstExpiry(it, sh)
	space := appendSpace(nil, kindExpiry, sh.id, sh.incarnation)
	for err == nil && at <= reached && len(due) < expiredAtOnce {
		due = append(due, dueKey{sh, at, bytes.Clone(it.Key())})
		if !it.Next() || !bytes.HasPrefix(it.Key(), space) {
			at = math.MaxInt64
			break
		}
		var ok bool
		if at, _, ok = splitExpiryKey(it.Key()); !ok {
			err = errMalformed
		}
	}
	sh.due = at
	return due, err
}

// removeIfExpired: an entry of the index counts only if the key still expires
// then.
func (m *Machine) removeIfExpired(b *statestore.Batch, d dueKey) error {
	b.Delete(d.index)
	_, key, _ := splitExpiryKey(d.index)
	at := valueKey(d.shard.id, d.shard.incarnation, key)
	stored, ok, err := b.Get(at)
	if err != nil || !ok {
		return err
	}
	r, err := decodeRecord(stored)
	if err != nil {
		return err
	}
	if r.expires != d.at {
		return nil
	}
	if d.shard.noted() {
		err = m.notes.key(b, d.shard, at, key)
	}
	b.Delete(at)
	d.shard.writes++
	m.save(d.shard) // no answer carries the count
	m.history.add(d.shard, flotillav1.WatchEvent_EXPIRED, key, nil, 0)
	return err
}

// endSessions forgets sessions that the group's time has passed, in the shards
// that serve. Write counts that may be recorded nowhere else go into the shards'
// records.
func (m *Machine) endSessions(b *statestore.Batch) error {
	if m.ends > m.state.time {
		return nil
	}
	m.ends = math.MaxInt64
	left := sessionEndsAtOnce
	for _, sh := range m.order {
		if !sh.state.serves() {
			continue
		}
		for ; left > 0; left-- {
			id, s := sh.sessions.ended(m.state.time)
			if s == nil {
				break
			}
			if sh.noted() {
				if err := m.notes.gone(b, sh, id, s.answers()); err != nil {
					return err
				}
				m.notes.touch(b, sh, itemSession, id.append(nil))
			}
			sh.sessions.remove(id)
			b.DeleteRange(sessionSpan(sh.id, sh.incarnation, id))
			if sh.saved != sh.writes {
				m.save(sh)
			}
		}
		m.noteEnd(sh)
	}
	return nil
}

// Born tells whether the group knows its shards, as committed here.
func (m *Machine) Born() bool { return m.born.Load() }

// NextDue is the unix ms at which the group's time should go on although
// nobody writes: a key expires, or a session ends. MaxInt64: never.
func (m *Machine) NextDue() int64 { return m.nextDue.Load() }
