package shardkv

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/raft/statestore"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// notes are what a machine writes down of changes to shards that are in a move.
// At the source of a move: what was touched, and by how much the copy's digest
// differs from that of the view in which it is being added up. At its target,
// until the move is verified: the digest, and which keys were deleted.
type notes struct {
	index   raft.Index // of the entry that is being applied
	ordinal uint32     // of the last touch in it
	imports []*heldShard
}

// begin prepares for an entry.
func (n *notes) begin(index raft.Index) { n.index, n.ordinal = index, 0 }

// noted tells whether changes to the shard must be written down.
func (sh *heldShard) noted() bool { return sh.state == shardExporting || sh.unverified }

// running is the digest that follows each change; nil: none does yet.
func (sh *heldShard) running() *copyDigest {
	switch {
	case sh.unverified:
		return &sh.in.digest
	case sh.export != nil && sh.export.base != nil:
		return &sh.export.since
	}
	return nil
}

// touch writes down that something in a shard that is being exported changed.
func (n *notes) touch(b *statestore.Batch, sh *heldShard, kind byte, name []byte) {
	if sh.state != shardExporting {
		return
	}
	n.ordinal++
	b.SetJoined(append(appendSpace(nil, kindTouch, sh.id, sh.incarnation), position(n.index, n.ordinal)...), []byte{kind}, name)
}

// position is a place in the order of what was touched.
func position(index raft.Index, ordinal uint32) []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, positionBytes), uint64(index))
	return binary.BigEndian.AppendUint32(b, ordinal)
}

const positionBytes = 8 + 4

// follow has the import's record go into the batch.
func (n *notes) follow(sh *heldShard) {
	if sh.unverified && !sh.in.dirty {
		sh.in.dirty = true
		n.imports = append(n.imports, sh)
	}
}

// key writes down that a key, stored at a place, is about to hold a record,
// given in parts, or to be absent.
func (n *notes) key(b *statestore.Batch, sh *heldShard, at, key []byte, record ...[]byte) error {
	if d := sh.running(); d != nil {
		old, ok, err := b.Get(at)
		if err != nil {
			return err
		}
		if ok {
			d.keys.sub(kindValue, key, old)
		}
		if record != nil {
			d.keys.add(kindValue, key, record...)
		}
	}
	n.touch(b, sh, kindValue, key)
	if sh.unverified && record == nil {
		b.Set(append(appendSpace(nil, kindTombstone, sh.id, sh.incarnation), key...), nil)
	}
	n.follow(sh)
	return nil
}

// answer writes down that an answer was recorded: stored is what lies in its
// slot.
func (n *notes) answer(b *statestore.Batch, sh *heldShard, id sessionID, seq uint64, stored []byte) error {
	_, content, err := decodeAnswerHead(stored)
	if err != nil {
		return err
	}
	name := answerName(id, seq)
	if d := sh.running(); d != nil {
		d.answers.add(kindAnswer, name, content)
	}
	n.touch(b, sh, kindAnswer, name)
	n.follow(sh)
	return nil
}

// gone writes down that answers, still in their slots, are waited for no more.
func (n *notes) gone(b *statestore.Batch, sh *heldShard, id sessionID, answers []kept) error {
	d := sh.running()
	if d == nil {
		return nil
	}
	for _, k := range answers {
		content, err := answerContent(b, answerPlace{shard: sh.id, inc: sh.incarnation, id: id, slot: k.slot}.append(nil))
		if err != nil {
			return err
		}
		d.answers.sub(kindAnswer, answerName(id, k.seq), content)
	}
	n.follow(sh)
	return nil
}

// clearsMax bounds how many keys of a shard in a move one request clears, unless
// it clears them all.
const clearsMax = 10_000

// cleared writes down that a span is about to be cleared.
func (n *notes) cleared(b *statestore.Batch, sh *heldShard, s span, lo, hi []byte) error {
	var e encoder
	s.encode(&e)
	n.touch(b, sh, itemSpan, e.b)
	n.follow(sh)
	d := sh.running()
	if s.whole() {
		if d != nil {
			d.keys = sum{}
		}
		if sh.export != nil {
			sh.export.void = sh.export.base != nil
		}
		if sh.unverified {
			sh.in.cleared = true
		}
		return nil
	}
	if d == nil {
		return nil
	}
	var gone [][]byte
	it := b.Iter(lo, hi)
	for ok := it.First(); ok; ok = it.Next() {
		d.keys.sub(kindValue, it.Key()[spaceBytes:], it.Value())
		if sh.unverified {
			gone = append(gone, bytes.Clone(it.Key()[spaceBytes:]))
		}
	}
	err := it.Close()
	for _, key := range gone {
		b.Set(append(appendSpace(nil, kindTombstone, sh.id, sh.incarnation), key...), nil)
	}
	return err
}

// whole tells whether the span is all the keys there can be.
func (s *span) whole() bool { return len(s.start) == 0 && len(s.end) == 0 && len(s.prefix) == 0 }

func (s *span) encode(e *encoder) {
	e.bytes(s.start)
	e.bytes(s.end)
	e.bytes(s.prefix)
}

func decodeSpan(b []byte) (span, error) {
	d := decoder{b: b}
	s := span{start: d.bytes(), end: d.bytes(), prefix: d.bytes()}
	return s, d.end()
}

// export is what a replica holds in memory of a shard that is being exported,
// or was handed off.
type export struct {
	base  *baseScan  // nil: not begun
	since copyDigest // the difference to the base
	void  bool       // all keys were cleared since: those of the base do not count
	// When this replica applied BeginExport and HandOff; zero: in an earlier life.
	begunAt, handedAt time.Time
}

// digest is that of the copy as it is; false: the base is not added up yet.
func (x *export) digest() (copyDigest, bool) {
	if x == nil || x.base == nil {
		return copyDigest{}, false
	}
	base := x.base.result.Load()
	if base == nil {
		return copyDigest{}, false
	}
	d := *base
	if x.void {
		d.keys = sum{}
	}
	return d.plus(x.since), true
}

// baseScan adds up a shard's copy in a view, beside all else.
type baseScan struct {
	view   *statestore.View
	shard  shardmap.ShardID
	inc    incarnation
	result atomic.Pointer[copyDigest]
	ended  atomic.Bool // nobody waits for it
	failed atomic.Bool // it could not be read: another is to be begun
}

// countExports begins to add up the copies of shards whose export is new.
func (m *Machine) countExports() error {
	for _, sh := range m.order {
		if sh.export == nil || sh.export.base != nil {
			continue
		}
		view, err := m.replica.View()
		if err != nil {
			return err
		}
		sh.export.base = &baseScan{view: view, shard: sh.id, inc: sh.incarnation}
		m.scan(sh.export.base)
	}
	return nil
}

// countAnew gives up copies that could not be added up; the next entry begins
// them again.
func (m *Machine) countAnew() {
	for _, sh := range m.order {
		if sh.export != nil && sh.export.base != nil && sh.export.base.failed.Load() {
			sh.export = &export{begunAt: sh.export.begunAt, handedAt: sh.export.handedAt}
			m.exports = true
		}
	}
}

// endScan lets go of a copy that is being added up.
func (sh *heldShard) endScan() {
	if sh.export != nil && sh.export.base != nil {
		sh.export.base.ended.Store(true)
	}
}

// run adds the copy up and closes the view.
func (s *baseScan) run() error {
	defer s.view.Close()
	d, err := addUp(s.view, s.shard, s.inc, s.ended.Load)
	if err != nil {
		s.failed.Store(true)
		return fmt.Errorf("shard %d: %w", s.shard, err)
	}
	if s.ended.Load() {
		return nil
	}
	s.result.Store(&d)
	return nil
}
