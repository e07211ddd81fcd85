package statestore

import (
	"bytes"

	"github.com/cockroachdb/pebble/v2"
)

// pebbleView is an iterator with what the buffer held: it holds one state, costs
// less than a Pebble snapshot, and, unlike one, does not notice an excise.
type pebbleView struct {
	buffer bufferView
	iter   *pebble.Iterator
}

func (e *pebbleEngine) newView(lo, hi []byte) (rawView, error) {
	buffer, iter, err := e.buffers.of(lo).view(func() (*pebble.Iterator, error) {
		return e.db.NewIter(&pebble.IterOptions{LowerBound: lo, UpperBound: hi, UseL6Filters: true})
	})
	if err != nil {
		return nil, err
	}
	return &pebbleView{buffer: buffer, iter: iter}, nil
}

func (v *pebbleView) get(key []byte) ([]byte, bool, error) {
	if value, there, found := v.buffer.get(key[prefixBytes:]); found {
		return value, there, nil
	}
	// The prefix of a key is the whole key here, so this uses the filters.
	if !v.iter.SeekPrefixGE(key) || !bytes.Equal(v.iter.Key(), key) {
		return nil, false, v.iter.Error()
	}
	value, err := v.iter.ValueAndErr()
	if err != nil {
		return nil, false, err
	}
	mine := make([]byte, len(value))
	copy(mine, value)
	return mine, true, nil
}

func (v *pebbleView) newIter(lo, hi []byte) (rawIter, error) {
	base, err := asRaw(v.iter.Clone(pebble.CloneOptions{IterOptions: &pebble.IterOptions{LowerBound: lo, UpperBound: hi}}))
	if err != nil {
		return nil, err
	}
	return merged(base, v.buffer.buffer.prefix[:], v.buffer.collect(lo, hi), nil), nil
}

func (v *pebbleView) close() error {
	v.buffer.release()
	return v.iter.Close()
}

// pebbleSnapshot becomes a set of files soon: it keeps nothing from being
// compacted, and excises leave it alone.
type pebbleSnapshot struct {
	snapshot *pebble.EventuallyFileOnlySnapshot
}

func (e *pebbleEngine) newSnapshot(lo, hi []byte) (rawView, error) {
	if err := e.stop.Try(e.buffers.of(lo).drain); err != nil {
		return nil, err
	}
	return pebbleSnapshot{e.db.NewEventuallyFileOnlySnapshot([]pebble.KeyRange{{Start: lo, End: hi}})}, nil
}

func (s pebbleSnapshot) get(key []byte) ([]byte, bool, error) { return getCopy(s.snapshot, key) }

func (s pebbleSnapshot) newIter(lo, hi []byte) (rawIter, error) {
	return asRaw(s.snapshot.NewIter(&pebble.IterOptions{LowerBound: lo, UpperBound: hi}))
}

func (s pebbleSnapshot) close() error { return s.snapshot.Close() }
