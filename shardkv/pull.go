package shardkv

import (
	"bytes"
	"errors"

	"github.com/flotilla-kv/flotilla/raft/statestore"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// What the target of a move asks the source for: pages of its copy of a shard,
// read from one view each.

// pageLooked bounds what is looked at for one page, besides what goes into it:
// a page comes soon, however little of what is there is of interest.
const pageLooked = 65_536

// copyPage is items, and where the next one goes on.
type copyPage struct {
	items []moveItem
	to    []byte
	done  bool // nothing is left, as of the view

	room   int // bytes that may still come in
	looked int
}

func (p *copyPage) add(i moveItem) {
	p.room -= i.bytes()
	p.items = append(p.items, i)
}

// full tells whether the page takes no more.
func (p *copyPage) full() bool { return p.room <= 0 || p.looked >= pageLooked }

// copyReader reads the copy of a shard in a view. It makes one iterator over all
// answers: to make one takes a look at all that the store has still in memory.
type copyReader struct {
	view    *statestore.View
	shard   shardmap.ShardID
	inc     incarnation
	answers *statestore.Iter // nil: not needed yet
	indexes map[sessionID]*answerIndex
}

// answerIndex tells where the answers of a session lie.
type answerIndex struct {
	lowest uint64
	slots  map[uint64]slot // by number; leftovers below lowest too
}

func newCopyReader(view *statestore.View, shard shardmap.ShardID, inc incarnation) *copyReader {
	return &copyReader{view: view, shard: shard, inc: inc, indexes: make(map[sessionID]*answerIndex)}
}

func (r *copyReader) close() error {
	if r.answers == nil {
		return nil
	}
	return r.answers.Close()
}

// iter is over all answers of the copy.
func (r *copyReader) iter() *statestore.Iter {
	if r.answers == nil {
		lo := appendSpace(nil, kindAnswer, r.shard, r.inc)
		r.answers = r.view.NewIter(lo, successor(lo))
	}
	return r.answers
}

// index finds the answers of a session.
func (r *copyReader) index(id sessionID) (*answerIndex, error) {
	if x := r.indexes[id]; x != nil {
		return x, nil
	}
	x := &answerIndex{slots: make(map[uint64]slot)}
	lo, hi := sessionSpan(r.shard, r.inc, id)
	it := r.iter()
	for ok := it.SeekGE(lo); ok && bytes.Compare(it.Key(), hi) < 0; ok = it.Next() {
		place, good := splitAnswerKey(it.Key())
		head, _, err := decodeAnswerHead(it.Value())
		if !good || err != nil {
			return nil, errors.Join(errMalformed, err)
		}
		x.lowest = max(x.lowest, head.lowest)
		x.slots[head.seq] = place.slot
	}
	r.indexes[id] = x
	return x, it.Error()
}

// content is an answer that is waited for; nil: it is not.
func (r *copyReader) content(id sessionID, seq uint64) ([]byte, error) {
	x, err := r.index(id)
	if err != nil {
		return nil, err
	}
	at, there := x.slots[seq]
	if !there || seq < x.lowest {
		return nil, nil
	}
	stored, there, err := r.view.Get(answerPlace{shard: r.shard, inc: r.inc, id: id, slot: at}.append(nil))
	if err != nil || !there {
		return nil, errors.Join(errMalformed, err)
	}
	_, content, err := decodeAnswerHead(stored)
	return content, err
}

// scanCopy reads the copy in the order in which it is stored, keys before
// answers, on from where the last page ended: at least one item, and as many as
// fit in so many bytes. from and to are the kind and what is stored there of the
// last that was read: the key, or the session and the slot.
func scanCopy(view *statestore.View, shard shardmap.ShardID, inc incarnation, from []byte, bytesMax int) (p copyPage, err error) {
	p.room = bytesMax
	r := newCopyReader(view, shard, inc)
	defer func() { err = errors.Join(err, r.close()) }()
	if len(from) == 0 || from[0] == kindValue {
		if err := p.scanKeys(r, from); err != nil || !p.done {
			return p, err
		}
		from, p.done = nil, false
	}
	return p, p.scanAnswers(r, from)
}

func (p *copyPage) scanKeys(r *copyReader, from []byte) error {
	lo := appendSpace(nil, kindValue, r.shard, r.inc)
	hi := successor(lo)
	if len(from) > 0 {
		lo = append(append(lo, from[1:]...), 0)
	}
	it := r.view.NewIter(lo, hi)
	ok := it.First()
	for ; ok && !p.full(); ok = it.Next() {
		key := bytes.Clone(it.Key()[spaceBytes:])
		p.add(moveItem{kind: kindValue, name: key, stored: bytes.Clone(it.Value())})
		p.to = append([]byte{kindValue}, key...)
	}
	p.done = !ok
	return it.Close()
}

// scanAnswers reads the answers that are waited for, session by session.
func (p *copyPage) scanAnswers(r *copyReader, from []byte) error {
	at := appendSpace(nil, kindAnswer, r.shard, r.inc)
	if len(from) > 0 {
		at = append(append(at, from[1:]...), 0)
	}
	it := r.iter()
	var session sessionID
	var x *answerIndex
	for ok := it.SeekGE(at); ok; ok = it.Next() {
		if p.full() {
			return it.Error()
		}
		place, good := splitAnswerKey(it.Key())
		if !good {
			return errMalformed
		}
		if x == nil || place.id != session {
			at = append(at[:0], it.Key()...)
			var err error
			if x, err = r.index(place.id); err != nil {
				return err
			}
			delete(r.indexes, place.id) // it does not come again
			session = place.id
			it.SeekGE(at)
		}
		head, content, err := decodeAnswerHead(it.Value())
		if err != nil {
			return err
		}
		p.looked++
		if head.seq >= x.lowest {
			p.add(moveItem{kind: kindAnswer, name: answerName(place.id, head.seq), stored: bytes.Clone(content)})
		}
		p.to = append([]byte{kindAnswer}, it.Key()[spaceBytes:]...)
	}
	p.done = true
	if len(p.to) == 0 || p.to[0] == kindValue {
		p.to = from
		if len(from) == 0 {
			p.to = []byte{kindAnswer}
		}
	}
	return it.Error()
}

// touchedSince reads the present state of what was touched behind a position,
// in the order in which it was touched: at least one, if there is one, and as
// much as fits in so many bytes. What was touched several times comes once, for
// its state is that of the view; what is behind a span or a session that went
// comes again, for it has to be put back.
func touchedSince(view *statestore.View, shard shardmap.ShardID, inc incarnation, from []byte, bytesMax int) (p copyPage, err error) {
	p = copyPage{to: from, room: bytesMax}
	r := newCopyReader(view, shard, inc)
	space := appendSpace(nil, kindTouch, shard, inc)
	it := view.NewIter(append(bytes.Clone(space), append(bytes.Clone(from), 0)...), successor(space))
	defer func() { err = errors.Join(err, it.Close(), r.close()) }()
	seen := make(map[string]bool)
	ok := it.First()
	for ; ok && !p.full(); ok = it.Next() {
		if len(it.Key()) != spaceBytes+positionBytes || len(it.Value()) == 0 {
			return p, errMalformed
		}
		p.looked++
		p.to = bytes.Clone(it.Key()[spaceBytes:])
		kind := it.Value()[0]
		if seen[string(it.Value())] {
			continue
		}
		i, there, err := r.presentState(kind, bytes.Clone(it.Value()[1:]))
		if err != nil {
			return p, err
		}
		if kind == itemSpan || kind == itemSession {
			clear(seen)
		} else {
			seen[string(it.Value())] = true
		}
		if there {
			p.add(i)
		}
	}
	p.done = !ok
	return p, it.Error()
}

// presentState is something that was touched as it is now; false: it is of no
// interest any more.
func (r *copyReader) presentState(kind byte, name []byte) (i moveItem, there bool, err error) {
	i = moveItem{kind: kind, name: name}
	switch kind {
	case kindValue:
		stored, ok, err := r.view.Get(valueKey(r.shard, r.inc, name))
		if ok {
			i.stored = bytes.Clone(stored)
		}
		return i, true, err
	case kindAnswer:
		id, seq, ok := splitAnswerName(name)
		if !ok {
			return i, false, errMalformed
		}
		content, err := r.content(id, seq)
		i.stored = bytes.Clone(content)
		return i, content != nil, err
	case itemSession:
		if len(name) != clientBytes {
			return i, false, errMalformed
		}
		x, err := r.index(sessionOf(name))
		return i, err == nil && len(x.slots) == 0, err // it is of interest if it is gone
	case itemSpan:
		i.name, i.stored = nil, name
		return i, true, nil
	}
	return i, false, errMalformed
}
