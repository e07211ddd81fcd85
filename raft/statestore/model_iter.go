package statestore

import "bytes"

// modelIter walks a tree of its own. Behind either end it is not valid, and,
// like Pebble's, comes back from there by one step.
type modelIter struct {
	tree   *modelTree
	lo, hi []byte
	at     *modelPair
	before bool // not valid, and before the first key (else behind the last)
}

func (i *modelIter) take(p *modelPair, before bool) bool {
	i.at, i.before = p, before
	return p != nil
}

// forward finds the first key from lo on.
func (i *modelIter) forward(lo []byte) (found *modelPair) {
	if bytes.Compare(lo, i.lo) < 0 {
		lo = i.lo
	}
	ascend(i.tree, lo, i.hi, func(p modelPair) bool {
		found = &p
		return false
	})
	return found
}

// backward finds the last key below hi; nil is no bound.
func (i *modelIter) backward(hi []byte) (found *modelPair) {
	if hi == nil || i.hi != nil && bytes.Compare(hi, i.hi) > 0 {
		hi = i.hi
	}
	visit := func(p modelPair) bool {
		if hi != nil && bytes.Compare(p.key, hi) >= 0 {
			return true // hi itself
		}
		if bytes.Compare(p.key, i.lo) >= 0 {
			found = &p
		}
		return false
	}
	if hi == nil {
		i.tree.Descend(visit)
	} else {
		i.tree.DescendLessOrEqual(modelPair{key: hi}, visit)
	}
	return found
}

func (i *modelIter) First() bool            { return i.take(i.forward(i.lo), false) }
func (i *modelIter) Last() bool             { return i.take(i.backward(nil), true) }
func (i *modelIter) SeekGE(key []byte) bool { return i.take(i.forward(key), false) }
func (i *modelIter) SeekLT(key []byte) bool { return i.take(i.backward(key), true) }

func (i *modelIter) Next() bool {
	switch {
	case i.at != nil:
		return i.take(i.forward(append(append([]byte{}, i.at.key...), 0)), false)
	case i.before:
		return i.First()
	}
	return false
}

func (i *modelIter) Prev() bool {
	switch {
	case i.at != nil:
		return i.take(i.backward(i.at.key), true)
	case !i.before:
		return i.Last()
	}
	return false
}

func (i *modelIter) Valid() bool   { return i.at != nil }
func (i *modelIter) Key() []byte   { return i.at.key }
func (i *modelIter) Value() []byte { return i.at.value }
func (i *modelIter) Error() error  { return nil }
func (i *modelIter) Close() error  { return nil }
