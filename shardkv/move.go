package shardkv

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/raft/statestore"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// migrationID numbers the moves of shards, over all groups; see package
// shardctrler.
type migrationID uint64

// moveKind tells the entries of a move apart; the numbers are those of the
// commands.
type moveKind byte

// The entries of a move, at its source and at its target.
const (
	moveBeginExport  moveKind = 5
	moveHandOff      moveKind = 6
	moveCancelExport moveKind = 7
	moveTakeBack     moveKind = 8
	moveDeleteCopy   moveKind = 9
	moveBeginImport  moveKind = 10
	moveChunk        moveKind = 11
	moveRound        moveKind = 12
	moveActivate     moveKind = 13
	moveRefuse       moveKind = 14
	moveDropImport   moveKind = 15
	moveVerified     moveKind = 16
	moveCancelImport moveKind = 17
	moveDone         moveKind = 18 // the source has deleted its copy
	moveDiffers      moveKind = 19 // what is stored is not what was handed off
	moveCompared     moveKind = 20 // how far the read-back has come
)

// move is an entry of a move. Each names the shard, the migration and what it
// was planned for, and does nothing where that is not how things are.
type move struct {
	kind  moveKind
	shard shardmap.ShardID
	id    migrationID
	// generation that the shard has at its source until HandOff. Its target
	// serves it one higher; taken back it is two higher.
	generation uint64
	attempt    uint64       // of the import, from 1
	peer       raft.GroupID // the group at the other end

	// Of chunk, round and activate: how far the import stands before it, and
	// after it. A scan goes by keys, rounds go by what was touched.
	from, to []byte
	begun    []byte // chunk: where the rounds begin
	done     bool   // chunk: nothing of the scan comes behind it
	items    []moveItem

	// Of activate: the shard as it was handed off.
	time   int64
	writes uint64
	digest copyDigest
	pause  int64 // of verified, too: microseconds since HandOff; 0: unknown
}

func (*move) isCommand() {}

func (c *move) size() int {
	size := 128 + len(c.from) + len(c.to)
	for i := range c.items {
		size += c.items[i].bytes()
	}
	return size
}

func (c *move) encode(e *encoder) {
	e.uint(uint64(c.shard))
	e.uint(uint64(c.id))
	e.uint(c.generation)
	e.uint(c.attempt)
	e.uint(uint64(c.peer))
	switch c.kind {
	case moveChunk, moveRound:
		e.bytes(c.from)
		e.bytes(c.to)
		e.bytes(c.begun)
		e.bool(c.done)
		e.uint(uint64(len(c.items)))
		for i := range c.items {
			c.items[i].encode(e)
		}
	case moveActivate:
		e.bytes(c.to)
		e.int(c.time)
		e.uint(c.writes)
		c.digest.keys.encode(e)
		c.digest.answers.encode(e)
		e.int(c.pause)
	case moveVerified:
		e.int(c.pause)
	case moveCompared:
		e.bytes(c.to)
	}
}

func decodeMove(d *decoder, kind moveKind) *move {
	c := &move{kind: kind, shard: shardmap.ShardID(d.uint()), id: migrationID(d.uint()), generation: d.uint(), attempt: d.uint(), peer: raft.GroupID(d.uint())}
	switch kind {
	case moveChunk, moveRound:
		c.from, c.to, c.begun, c.done = d.bytes(), d.bytes(), d.bytes(), d.bool()
		for range d.count() {
			c.items = append(c.items, decodeItem(d))
		}
	case moveActivate:
		c.to, c.time, c.writes = d.bytes(), d.int(), d.uint()
		c.digest = copyDigest{keys: decodeSum(d), answers: decodeSum(d)}
		c.pause = d.int()
	case moveVerified:
		c.pause = d.int()
	case moveCompared:
		c.to = d.bytes()
	}
	return c
}

func (i *moveItem) encode(e *encoder) {
	e.byte(i.kind)
	e.bytes(i.name)
	e.bool(i.stored != nil)
	if i.stored != nil {
		e.bytes(i.stored)
	}
}

func decodeItem(d *decoder) moveItem {
	i := moveItem{kind: d.byte(), name: d.bytes()}
	if d.bool() {
		i.stored = d.bytes()
	}
	return i
}

// moveItem is the present state of something in the shard.
type moveItem struct {
	kind byte // kindValue, kindAnswer, itemSession, itemSpan
	// name is the key, the session and number of an answer, or the session.
	name []byte
	// stored is the record of a key, nil if it is absent, the content of an
	// answer, or the span that was cleared.
	stored []byte
}

// Kinds of items besides keys and answers.
const (
	itemSession = 'S' // a session has ended
	itemSpan    = 'C' // a span of keys was cleared
)

func (i *moveItem) bytes() int { return 8 + len(i.name) + len(i.stored) }

// answerName names an answer wherever it lies.
func answerName(id sessionID, seq uint64) []byte {
	return binary.BigEndian.AppendUint64(id.append(make([]byte, 0, clientBytes+8)), seq)
}

func splitAnswerName(b []byte) (id sessionID, seq uint64, ok bool) {
	if len(b) != clientBytes+8 {
		return sessionID{}, 0, false
	}
	return sessionOf(b), binary.BigEndian.Uint64(b[clientBytes:]), true
}

// sessionOf reads what sessionID.append wrote.
func sessionOf(b []byte) sessionID {
	return sessionID{client: binary.BigEndian.Uint64(b), birth: int64(binary.BigEndian.Uint64(b[8:]))}
}

// applyMove carries out an entry of a move. Refused, it has done nothing.
func (m *Machine) applyMove(b *statestore.Batch, c *move) (*answer, error) {
	sh := m.shards[c.shard]
	if sh == nil {
		if c.kind != moveBeginImport && c.kind != moveCancelImport {
			return refused("the group never had shard %d", c.shard), nil
		}
		sh = m.hold(c.shard, shardRecord{})
	}
	switch c.kind {
	case moveBeginExport:
		return m.beginExport(c, sh), nil
	case moveHandOff:
		return m.handOff(c, sh), nil
	case moveCancelExport:
		return m.cancelExport(b, c, sh), nil
	case moveTakeBack:
		return m.takeBack(b, c, sh), nil
	case moveDeleteCopy:
		return m.deleteHandedOff(b, c, sh), nil
	case moveBeginImport:
		return m.beginImport(b, c, sh), nil
	case moveVerified, moveDiffers, moveDone, moveCompared:
		return m.verified(b, c, sh), nil
	}
	if c.kind == moveCancelImport && sh.state == shardAbsent && c.id > sh.move {
		sh.move = c.id // it has not begun, and never will
		m.save(sh)
		return new(answer), nil
	}
	if why := sh.importsAs(c); why != "" {
		return refused("%s", why), nil
	}
	switch c.kind {
	case moveChunk, moveRound:
		return m.takeIn(b, c, sh)
	case moveActivate:
		return m.activate(c, sh), nil
	case moveRefuse:
		m.refuseImport(b, c, sh)
	case moveCancelImport:
		sh.in.cancelled = true
		m.saveImport(sh)
	default: // moveDropImport
		m.dropImport(b, sh)
	}
	return new(answer), nil
}

func refused(format string, args ...any) *answer {
	return refusal(flotillav1.Code_INVALID, fmt.Sprintf(format, args...))
}

// beginExport: from here on the group notes what it touches in the shard.
func (m *Machine) beginExport(c *move, sh *heldShard) *answer {
	switch {
	case (sh.state == shardExporting || sh.state == shardHandedOff) && sh.move == c.id:
		return new(answer) // it has begun
	case sh.state != shardOwned:
		return refused("shard %d is %s in migration %d", sh.id, sh.describe(), sh.move)
	case sh.in != nil && sh.generation == c.generation && c.id > sh.move:
		return refusal(flotillav1.Code_BUSY, fmt.Sprintf("shard %d is not verified since migration %d", sh.id, sh.move))
	case sh.generation != c.generation || c.id <= sh.move:
		return refused("shard %d is at generation %d and has seen migration %d", sh.id, sh.generation, sh.move)
	}
	sh.state, sh.move, sh.peer, sh.begun = shardExporting, c.id, c.peer, m.notes.index
	sh.export, m.exports = &export{begunAt: m.clock()}, true
	m.save(sh)
	return new(answer)
}

// handOff is the one point of decision: the group serves the shard no longer.
func (m *Machine) handOff(c *move, sh *heldShard) *answer {
	switch {
	case sh.state == shardHandedOff && sh.move == c.id:
		return new(answer)
	case sh.state != shardExporting || sh.move != c.id:
		return refused("shard %d is %s in migration %d", sh.id, sh.describe(), sh.move)
	}
	sh.state, sh.handed, sh.handedTime = shardHandedOff, m.notes.index, m.state.time
	sh.export.handedAt = m.clock()
	sh.sessions.leave()
	m.save(sh)
	return new(answer)
}

// cancelExport ends an export before its hand-off, also one that never began.
func (m *Machine) cancelExport(b *statestore.Batch, c *move, sh *heldShard) *answer {
	switch {
	case sh.state == shardHandedOff && sh.move == c.id:
		return refused("shard %d was handed to group %d: what was decided stands", sh.id, sh.peer)
	case sh.state == shardExporting && sh.move == c.id:
		m.endExport(b, sh, shardOwned)
	case c.id <= sh.move:
	case sh.in != nil || sh.state != shardOwned && sh.state != shardAbsent:
		return refusal(flotillav1.Code_BUSY, fmt.Sprintf("shard %d is %s in migration %d", sh.id, sh.describe(), sh.move))
	default:
		sh.move = c.id // a late BeginExport does nothing
		m.save(sh)
	}
	return new(answer)
}

// takeBack serves a shard again whose target has refused it for good.
func (m *Machine) takeBack(b *statestore.Batch, c *move, sh *heldShard) *answer {
	if sh.state != shardHandedOff || sh.move != c.id {
		return refused("shard %d is %s in migration %d", sh.id, sh.describe(), sh.move)
	}
	m.endExport(b, sh, shardOwned)
	sh.generation = c.generation + 2
	m.serve(sh)
	return new(answer)
}

// deleteHandedOff deletes the copy of a shard that its target has verified.
func (m *Machine) deleteHandedOff(b *statestore.Batch, c *move, sh *heldShard) *answer {
	switch {
	case sh.state == shardHandedOff && sh.move == c.id:
	case sh.move >= c.id && sh.state != shardExporting && sh.state != shardHandedOff || sh.move > c.id:
		return new(answer) // it is deleted: nothing later could have begun before
	default:
		return refused("shard %d is %s in migration %d", sh.id, sh.describe(), sh.move)
	}
	m.endExport(b, sh, shardAbsent)
	m.deleteCopy(b, sh)
	return new(answer)
}

// endExport forgets what was noted for a move.
func (m *Machine) endExport(b *statestore.Batch, sh *heldShard, state shardState) {
	sh.state, sh.begun, sh.handed, sh.handedTime = state, 0, 0, 0
	sh.endScan()
	sh.export = nil
	b.DeleteRange(spaceOf(kindTouch, sh))
	m.save(sh)
}

// deleteCopy deletes all that the present copy of a shard holds.
func (m *Machine) deleteCopy(b *statestore.Batch, sh *heldShard) {
	for _, kind := range [...]byte{kindValue, kindExpiry, kindAnswer, kindTouch, kindTombstone} {
		b.DeleteRange(spaceOf(kind, sh))
	}
	sh.sessions.leave()
	sh.sessions = newSessions(new(tally))
	sh.due = math.MaxInt64
	sh.writes = 0
	m.save(sh)
}

// spaceOf are the bounds of a kind of records of a shard's copy.
func spaceOf(kind byte, sh *heldShard) (lo, hi []byte) {
	lo = appendSpace(nil, kind, sh.id, sh.incarnation)
	return lo, successor(lo)
}

// serve has a copy's keys expire and its sessions end.
func (m *Machine) serve(sh *heldShard) {
	sh.sessions.join(&m.kept)
	m.noteDue(sh)
	m.noteEnd(sh)
}

// beginImport begins a copy; one of an earlier attempt goes.
func (m *Machine) beginImport(b *statestore.Batch, c *move, sh *heldShard) *answer {
	again := sh.state == shardImporting && sh.move == c.id
	switch {
	case again && sh.in.attempt == c.attempt:
		return new(answer)
	case again && sh.in.attempt > c.attempt:
		return refused("shard %d is at attempt %d", sh.id, sh.in.attempt)
	case again:
		m.deleteCopy(b, sh)
	case sh.state != shardAbsent:
		return refused("shard %d is %s in migration %d", sh.id, sh.describe(), sh.move)
	case c.id <= sh.move || c.generation < sh.generation:
		return refused("shard %d has seen migration %d and generation %d", sh.id, sh.move, sh.generation)
	}
	m.state.lastIncarnation++
	sh.state, sh.move, sh.peer, sh.incarnation = shardImporting, c.id, c.peer, m.state.lastIncarnation
	sh.sessions = newSessions(new(tally))
	sh.in = &imported{generation: c.generation, attempt: c.attempt}
	m.save(sh)
	m.saveImport(sh)
	return new(answer)
}

// importsAs says why an entry is not of the import that goes on; "": it is.
func (sh *heldShard) importsAs(c *move) string {
	switch {
	case sh.state != shardImporting || sh.move != c.id:
		return fmt.Sprintf("shard %d is %s in migration %d", sh.id, sh.describe(), sh.move)
	case sh.in.attempt != c.attempt || sh.in.generation != c.generation:
		return fmt.Sprintf("shard %d is at attempt %d of generation %d", sh.id, sh.in.attempt, sh.in.generation)
	}
	return ""
}

// takeIn adds a chunk or a round to the copy, if it stands where that begins.
func (m *Machine) takeIn(b *statestore.Batch, c *move, sh *heldShard) (*answer, error) {
	in := sh.in
	stands := &in.scan
	if c.kind == moveRound {
		stands = &in.position
	}
	if in.refused || in.scanned != (c.kind == moveRound) || !bytes.Equal(*stands, c.from) {
		return refused("shard %d stands elsewhere", sh.id), nil
	}
	for i := range c.items {
		if err := m.takeItem(b, sh, &c.items[i]); err != nil {
			return nil, err
		}
	}
	*stands = bytes.Clone(c.to)
	if c.kind == moveChunk {
		if len(c.from) == 0 {
			in.position = bytes.Clone(c.begun)
		}
		in.scanned = c.done
	}
	m.saveImport(sh)
	return new(answer), nil
}

// takeItem brings one thing in the copy to the state given.
func (m *Machine) takeItem(b *statestore.Batch, sh *heldShard, i *moveItem) error {
	switch i.kind {
	case kindValue:
		return m.takeKey(b, sh, i.name, i.stored)
	case kindAnswer:
		return m.takeAnswer(b, sh, i.name, i.stored)
	case itemSession:
		if len(i.name) != clientBytes {
			return errMalformed
		}
		return m.dropSession(b, sh, sessionOf(i.name))
	case itemSpan:
		s, err := decodeSpan(i.stored)
		if err != nil {
			return err
		}
		return m.clearImported(b, sh, s)
	}
	return errMalformed
}

func (m *Machine) takeKey(b *statestore.Batch, sh *heldShard, key, stored []byte) error {
	at := valueKey(sh.id, sh.incarnation, key)
	if sh.in.scanned { // a scan meets each key once
		old, ok, err := b.Get(at)
		if err != nil {
			return err
		}
		if ok {
			sh.in.digest.keys.sub(kindValue, key, old)
		}
	}
	if stored == nil {
		b.Delete(at)
		return nil
	}
	r, err := decodeRecord(stored)
	if err != nil {
		return err
	}
	sh.in.digest.keys.add(kindValue, key, stored)
	b.Set(at, stored)
	if r.expires != 0 {
		b.Set(expiryKey(sh.id, sh.incarnation, r.expires, key), nil)
		sh.due = min(sh.due, r.expires)
	}
	return nil
}

// importedAnswersMax bounds the answers of one session in a copy that is being
// taken in: while pages of different times come in there may be more than a
// session may have.
const importedAnswersMax = 3 * sessionAnswersMax

func (m *Machine) takeAnswer(b *statestore.Batch, sh *heldShard, name, content []byte) error {
	id, seq, ok := splitAnswerName(name)
	lowest, n := binary.Uvarint(content)
	if !ok || n <= 0 || lowest > seq {
		return errMalformed
	}
	s := sh.sessions.open(id)
	if _, known := s.find(seq); known || seq < s.lowest {
		return nil
	}
	if err := m.raiseImported(b, sh, id, s, lowest); err != nil {
		return err
	}
	if len(s.answers()) >= importedAnswersMax {
		sh.in.unequal = true // no source has so many
		return nil
	}
	place := answerPlace{shard: sh.id, inc: sh.incarnation, id: id, slot: s.slots.lowestFree()}
	var e encoder
	e.uint(0) // the shard's write count comes with Activate
	e.uint(seq)
	e.b = append(e.b, content...)
	sh.sessions.add(s, kept{seq: seq, size: len(e.b), slot: place.slot})
	sh.in.digest.answers.add(kindAnswer, name, content)
	b.Set(place.append(nil), e.b)
	return nil
}

// raiseImported drops answers that are waited for no more, from the digest too.
func (m *Machine) raiseImported(b *statestore.Batch, sh *heldShard, id sessionID, s *sessionState, lowest uint64) error {
	for _, g := range sh.sessions.raise(s, lowest) {
		if err := m.dropAnswer(b, sh, id, g); err != nil {
			return err
		}
	}
	return nil
}

func (m *Machine) dropAnswer(b *statestore.Batch, sh *heldShard, id sessionID, g kept) error {
	at := answerPlace{shard: sh.id, inc: sh.incarnation, id: id, slot: g.slot}.append(nil)
	content, err := answerContent(b, at)
	if err != nil {
		return err
	}
	sh.in.digest.answers.sub(kindAnswer, answerName(id, g.seq), content)
	b.Delete(at)
	return nil
}

// answerContent reads what the digest counts of an answer.
func answerContent(b *statestore.Batch, at []byte) ([]byte, error) {
	stored, ok, err := b.Get(at)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, fmt.Errorf("%w: an answer is gone", errMalformed)
	}
	_, content, err := decodeAnswerHead(stored)
	return content, err
}

func (m *Machine) dropSession(b *statestore.Batch, sh *heldShard, id sessionID) error {
	s := sh.sessions.get(id)
	if s == nil {
		return nil
	}
	for _, k := range s.answers() {
		if err := m.dropAnswer(b, sh, id, k); err != nil {
			return err
		}
	}
	sh.sessions.remove(id)
	b.DeleteRange(sessionSpan(sh.id, sh.incarnation, id))
	return nil
}

// clearImported clears a span of the copy as the source did.
func (m *Machine) clearImported(b *statestore.Batch, sh *heldShard, s span) error {
	if s.whole() {
		sh.in.digest.keys = sum{}
		b.DeleteRange(spaceOf(kindValue, sh))
		b.DeleteRange(spaceOf(kindExpiry, sh))
		sh.due = math.MaxInt64
		return nil
	}
	v := shardView{view: batchView{b}, shard: sh.id, inc: sh.incarnation}
	lo, hi := v.bounds(s)
	if string(lo) >= string(hi) {
		return nil
	}
	it := b.Iter(lo, hi)
	for ok := it.First(); ok; ok = it.Next() {
		sh.in.digest.keys.sub(kindValue, it.Key()[spaceBytes:], it.Value())
	}
	if err := it.Close(); err != nil {
		return err
	}
	b.DeleteRange(lo, hi)
	return nil
}

// activate serves the shard, if the copy is what was handed off.
func (m *Machine) activate(c *move, sh *heldShard) *answer {
	in := sh.in
	if !in.scanned || in.refused || !bytes.Equal(in.position, c.to) {
		return refused("shard %d stands elsewhere", sh.id)
	}
	if in.digest != c.digest {
		in.unequal = true
		m.saveImport(sh)
		return refused("shard %d is not what group %d handed off: %+v here, %+v there", sh.id, sh.peer, in.digest, c.digest)
	}
	m.state.time = max(m.state.time, c.time)
	in.writes = c.writes
	m.saveImport(sh)
	sh.pause, sh.copied = c.pause, c.digest.bytes()
	sh.state, sh.generation, sh.writes, sh.unverified = shardOwned, c.generation+1, c.writes, true
	sh.begin = c.writes
	m.save(sh)
	m.serve(sh)
	return new(answer)
}

// refuseImport: the group will never serve the generation. The source may take
// the shard back, and when it has the import is dropped.
func (m *Machine) refuseImport(b *statestore.Batch, c *move, sh *heldShard) {
	m.deleteCopy(b, sh)
	sh.in.refused = true
	sh.generation = max(sh.generation, c.generation+1)
	m.save(sh)
	m.saveImport(sh)
}

// dropImport forgets an import that the source has ended.
func (m *Machine) dropImport(b *statestore.Batch, sh *heldShard) {
	m.deleteCopy(b, sh)
	b.Delete(importKey(sh.id))
	sh.in = nil
	sh.state = shardAbsent
	m.save(sh)
}

// verified ends the move at its target: first the source may delete its copy,
// then nothing is left of the move. If the copies differ both are kept.
func (m *Machine) verified(b *statestore.Batch, c *move, sh *heldShard) *answer {
	if sh.move != c.id || sh.in == nil || sh.state != shardOwned && sh.state != shardExporting {
		return refused("shard %d is %s in migration %d", sh.id, sh.describe(), sh.move)
	}
	switch c.kind {
	case moveCompared:
		sh.in.compared = bytes.Clone(c.to)
		m.saveImport(sh)
	case moveDiffers:
		sh.in.unequal = true
		m.saveImport(sh)
	case moveVerified:
		if sh.in.unequal {
			return refused("shard %d is stored otherwise than it was handed off", sh.id)
		}
		sh.unverified, sh.in.verified = false, true
		if c.pause != 0 {
			sh.pause = c.pause
		}
		b.DeleteRange(spaceOf(kindTombstone, sh))
		m.save(sh)
		m.saveImport(sh)
	default: // moveDone
		if !sh.in.verified {
			return refused("shard %d is not verified", sh.id)
		}
		sh.in = nil
		b.Delete(importKey(sh.id))
	}
	return new(answer)
}

// saveImport has the import's record go into the batch.
func (m *Machine) saveImport(sh *heldShard) {
	if !sh.in.dirty {
		sh.in.dirty = true
		m.notes.imports = append(m.notes.imports, sh)
	}
}

func (sh *heldShard) describe() string {
	if sh.unverified {
		return "not yet verified"
	}
	return sh.state.String()
}
