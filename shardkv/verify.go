package shardkv

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/flotilla-kv/flotilla/raft/statestore"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// differs says in what a page of the source's frozen copy differs from what is
// stored here; "": in nothing that was not changed since Activate.
func differs(view *statestore.View, x *importStatus, items []moveItem) (differing string, err error) {
	state, err := groupState(view)
	if err != nil {
		return "", err
	}
	c := comparison{copyReader: newCopyReader(view, x.shard, x.record.incarnation), x: x, time: state.time}
	defer func() { err = errors.Join(err, c.close()) }()
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
	*copyReader
	x    *importStatus
	time int64 // the group's
}

// key: it is the same, or was written since, or deleted.
func (c *comparison) key(item *moveItem) (bool, error) {
	stored, there, err := c.view.Get(valueKey(c.shard, c.inc, item.name))
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
	_, deleted, err := c.view.Get(append(appendSpace(nil, kindTombstone, c.shard, c.inc), item.name...))
	return deleted, err
}

// answer: it is the same, or is waited for no more, or its session has ended.
func (c *comparison) answer(item *moveItem) (bool, error) {
	id, seq, ok := splitAnswerName(item.name)
	if !ok {
		return false, errMalformed
	}
	x, err := c.index(id)
	if err != nil || seq < x.lowest || id.endsAt() <= c.time {
		return err == nil, err
	}
	content, err := c.content(id, seq)
	return bytes.Equal(content, item.stored), err
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
