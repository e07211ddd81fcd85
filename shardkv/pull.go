package shardkv

import (
	"bytes"
	"errors"

	"github.com/flotilla-kv/flotilla/raft/statestore"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// What the target of a move asks the source for: pages of its copy of a shard,
// read from one view each.

// copyPage is items, and where the next one goes on.
type copyPage struct {
	items []moveItem
	to    []byte
	done  bool // nothing is left, as of the view
}

// scanCopy reads the copy in the order in which it is stored, keys before
// answers, on from where the last page ended: at least one item, and as many as
// fit in so many bytes.
func scanCopy(view *statestore.View, shard shardmap.ShardID, inc incarnation, from []byte, bytesMax int) (copyPage, error) {
	var p copyPage
	size := 0
	room := func() bool { return size < bytesMax }
	add := func(i moveItem) {
		size += i.bytes()
		p.items = append(p.items, i)
	}
	if len(from) == 0 || from[0] == kindValue {
		if err := p.scanKeys(view, shard, inc, from, room, add); err != nil || !p.done {
			return p, err
		}
		from, p.done = nil, false
	}
	if err := p.scanAnswers(view, shard, inc, from, room, add); err != nil {
		return p, err
	}
	return p, nil
}

// scanKeys reads keys; done: there are no more. from and to are the kind, and
// the last key that was read.
func (p *copyPage) scanKeys(view *statestore.View, shard shardmap.ShardID, inc incarnation, from []byte, room func() bool, add func(moveItem)) error {
	lo := appendSpace(nil, kindValue, shard, inc)
	hi := successor(lo)
	if len(from) > 0 {
		lo = append(append(lo, from[1:]...), 0)
	}
	it := view.NewIter(lo, hi)
	ok := it.First()
	for ; ok && room(); ok = it.Next() {
		key := bytes.Clone(it.Key()[spaceBytes:])
		add(moveItem{kind: kindValue, name: key, stored: bytes.Clone(it.Value())})
		p.to = append([]byte{kindValue}, key...)
	}
	p.done = !ok
	return it.Close()
}

// scanAnswers reads the answers that are waited for, session by session: from
// and to are the kind, and the last session that was read.
func (p *copyPage) scanAnswers(view *statestore.View, shard shardmap.ShardID, inc incarnation, from []byte, room func() bool, add func(moveItem)) error {
	lo := appendSpace(nil, kindAnswer, shard, inc)
	hi := successor(lo)
	if len(from) > 0 {
		if lo = successor(append(lo, from[1:]...)); lo == nil || bytes.Compare(lo, hi) >= 0 {
			p.to, p.done = from, true
			return nil
		}
	}
	for {
		it := view.NewIter(lo, hi)
		if !it.First() {
			p.done = true
			if p.to == nil || p.to[0] == kindValue {
				p.to = []byte{kindAnswer}
			}
			return it.Close()
		}
		place, ok := splitAnswerKey(it.Key())
		if err := it.Close(); err != nil || !ok {
			return errors.Join(err, errMalformed)
		}
		if !room() {
			return nil
		}
		if err := sessionItems(view, shard, inc, place.id, add); err != nil {
			return err
		}
		p.to = place.id.append([]byte{kindAnswer})
		_, lo = sessionSpan(shard, inc, place.id)
	}
}

// sessionItems are a session's answers that are waited for.
func sessionItems(view *statestore.View, shard shardmap.ShardID, inc incarnation, id sessionID, add func(moveItem)) error {
	lo, hi := sessionSpan(shard, inc, id)
	var lowest uint64
	if err := eachAnswer(view, lo, hi, func(_ answerPlace, head answerHead, _ []byte, _ int) { lowest = max(lowest, head.lowest) }); err != nil {
		return err
	}
	return eachAnswer(view, lo, hi, func(_ answerPlace, head answerHead, content []byte, _ int) {
		if head.seq >= lowest {
			add(moveItem{kind: kindAnswer, name: answerName(id, head.seq), stored: bytes.Clone(content)})
		}
	})
}

// touchedSince reads the present state of what was touched behind a position,
// in the order in which it was touched: at least one item, if there is one, and
// as many as fit in so many bytes.
func touchedSince(view *statestore.View, shard shardmap.ShardID, inc incarnation, from []byte, bytesMax int) (copyPage, error) {
	p := copyPage{to: from}
	space := appendSpace(nil, kindTouch, shard, inc)
	it := view.NewIter(append(bytes.Clone(space), append(bytes.Clone(from), 0)...), successor(space))
	size := 0
	ok := it.First()
	for ; ok && size < bytesMax; ok = it.Next() {
		if len(it.Key()) != spaceBytes+positionBytes || len(it.Value()) == 0 {
			it.Close()
			return p, errMalformed
		}
		i, there, err := presentState(view, shard, inc, it.Value()[0], bytes.Clone(it.Value()[1:]))
		if err != nil {
			it.Close()
			return p, err
		}
		if there {
			size += i.bytes()
			p.items = append(p.items, i)
		}
		p.to = bytes.Clone(it.Key()[spaceBytes:])
	}
	p.done = !ok
	return p, it.Close()
}

// presentState is something that was touched as it is now; false: it is of no
// interest any more.
func presentState(view *statestore.View, shard shardmap.ShardID, inc incarnation, kind byte, name []byte) (i moveItem, there bool, err error) {
	i = moveItem{kind: kind, name: name}
	switch kind {
	case kindValue:
		stored, ok, err := view.Get(valueKey(shard, inc, name))
		if ok {
			i.stored = bytes.Clone(stored)
		}
		return i, true, err
	case kindAnswer:
		id, seq, ok := splitAnswerName(name)
		if !ok {
			return i, false, errMalformed
		}
		err := sessionItems(view, shard, inc, id, func(waited moveItem) {
			if _, s, _ := splitAnswerName(waited.name); s == seq {
				i, there = waited, true
			}
		})
		return i, there, err
	case itemSession:
		if len(name) != clientBytes {
			return i, false, errMalformed
		}
		lo, hi := sessionSpan(shard, inc, sessionOf(name))
		err := eachAnswer(view, lo, hi, func(answerPlace, answerHead, []byte, int) { there = true })
		return i, !there, err // it is of interest if it is gone
	case itemSpan:
		i.name, i.stored = nil, name
		return i, true, nil
	}
	return i, false, errMalformed
}
