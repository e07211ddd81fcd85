package shardkv

import (
	"bytes"
	"fmt"

	"github.com/flotilla-kv/flotilla/raft/statestore"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// differs says in what a page of the source's frozen copy differs from what is
// stored here; "": in nothing that was not changed since Activate.
func differs(view *statestore.View, x *importStatus, items []moveItem) (string, error) {
	state, err := groupState(view)
	if err != nil {
		return "", err
	}
	c := comparison{view: view, x: x, time: state.time}
	for i := range items {
		var same bool
		switch item := &items[i]; item.kind {
		case kindValue:
			same, err = c.key(item)
		case kindAnswer:
			same, err = c.answer(item)
		default:
			err = errMalformed
		}
		if err != nil || !same {
			return fmt.Sprintf("%q", items[i].name), err
		}
	}
	return "", nil
}

// comparison compares what was handed off with what is stored.
type comparison struct {
	view *statestore.View
	x    *importStatus
	time int64 // the group's
	// The session looked at last, and its answers by name.
	session sessionID
	answers map[string][]byte
	lowest  uint64
}

// key: it is the same, or was written since, or deleted.
func (c *comparison) key(item *moveItem) (bool, error) {
	shard, inc := c.x.shard, c.x.record.incarnation
	stored, there, err := c.view.Get(valueKey(shard, inc, item.name))
	switch {
	case err != nil:
		return false, err
	case there && bytes.Equal(stored, item.stored):
		return true, nil
	case there:
		r, err := decodeRecord(stored)
		return r.version > c.x.in.writes, err
	case c.x.in.cleared:
		return true, nil
	}
	_, deleted, err := c.view.Get(append(appendSpace(nil, kindTombstone, shard, inc), item.name...))
	return deleted, err
}

// answer: it is the same, or is waited for no more, or its session has ended.
func (c *comparison) answer(item *moveItem) (bool, error) {
	id, seq, ok := splitAnswerName(item.name)
	if !ok {
		return false, errMalformed
	}
	if c.answers == nil || c.session != id {
		c.session, c.answers, c.lowest = id, make(map[string][]byte), 0
		lo, hi := sessionSpan(c.x.shard, c.x.record.incarnation, id)
		err := eachAnswer(c.view, lo, hi, func(_ answerPlace, head answerHead, content []byte, _ int) {
			c.answers[string(answerName(id, head.seq))] = bytes.Clone(content)
			c.lowest = max(c.lowest, head.lowest)
		})
		if err != nil {
			return false, err
		}
	}
	return seq < c.lowest || id.endsAt() <= c.time || bytes.Equal(c.answers[string(item.name)], item.stored), nil
}

// addUp reads a copy and adds it up, unless it is ended before.
func addUp(view *statestore.View, shard shardmap.ShardID, inc incarnation, ended func() bool) (copyDigest, error) {
	var d copyDigest
	lo := appendSpace(nil, kindValue, shard, inc)
	it := view.NewIter(lo, successor(lo))
	for ok := it.First(); ok && !ended(); ok = it.Next() {
		d.keys.add(kindValue, it.Key()[spaceBytes:], it.Value())
	}
	if err := it.Close(); err != nil || ended() {
		return d, err
	}
	_, err := eachWaited(view, shard, inc, func(id sessionID, head answerHead, content []byte) {
		d.answers.add(kindAnswer, answerName(id, head.seq), content)
	})
	return d, err
}
