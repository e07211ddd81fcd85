package statestore

import (
	"errors"
	"sync"

	"github.com/cockroachdb/pebble/v2"
)

// pebbleBatch gathers its changes in a table, as the buffer does that it will
// be committed to. One that removes a range with many keys goes on as an indexed
// batch of Pebble's, which knows ranges. It reads what Pebble has: the buffer is
// drained first, and once more by the commit.
type pebbleBatch struct {
	engine *pebbleEngine
	buffer *buffer
	prefix []byte
	table  *table
	ranges *pebble.Batch // nil as long as there is none
	few    int           // ranges that were deleted key by key
	err    error         // of an operation; comes out of commit
}

// batchKeepBytes is up to which size a batch's memory is used again. Pebble's
// 1 MiB is less than what comes of the entries that multiraft applies at once
// while it replays.
const batchKeepBytes = 4 << 20

// A batch's table knows one commit, its own, and no view.
const (
	batchCommit = 1
	batchSeen   = 0
)

// batchTables keeps the memory of batches.
var batchTables = sync.Pool{New: func() any { return new(table) }}

func (e *pebbleEngine) newBatch(prefix []byte) rawBatch {
	return &pebbleBatch{engine: e, buffer: e.buffers.of(prefix), prefix: prefix, table: batchTables.Get().(*table)}
}

var errBatchTooLarge = errors.New("batch is too large")

func (b *pebbleBatch) note(err error) {
	if b.err == nil {
		b.err = err
	}
}

// batchBytesMax is far beyond what a caller that bounds its batches comes to, and
// what a table's numbers can count.
const batchBytesMax = 2 << 30

func (b *pebbleBatch) set(key, head, tail []byte) {
	if b.bytes()+len(key)+len(head)+len(tail) > batchBytesMax {
		b.note(errBatchTooLarge)
		return
	}
	if b.ranges == nil {
		b.table.set(hashKey(key), key, head, tail, batchCommit, batchSeen)
		return
	}
	op := b.ranges.SetDeferred(len(b.prefix)+len(key), len(head)+len(tail))
	copy(op.Key[copy(op.Key, b.prefix):], key)
	copy(op.Value[copy(op.Value, head):], tail)
	b.note(op.Finish())
}

func (b *pebbleBatch) delete(key []byte) {
	if b.ranges == nil {
		b.table.remove(hashKey(key), key, batchCommit, batchSeen)
		return
	}
	b.note(b.ranges.Delete(b.whole(key), nil))
}

// rangeFew: what a range holds is deleted key by key up to so many. To drain the
// buffer costs more, and so do all reads behind it that find their keys in Pebble.
const rangeFew = 2_048

// rangesMax is how many ranges of a batch are looked through for that.
const rangesMax = 8

func (b *pebbleBatch) deleteRange(lo, hi []byte) {
	if b.few++; b.ranges == nil && b.few <= rangesMax {
		few, err := b.deleteFew(lo, hi)
		if b.note(err); few {
			return
		}
	}
	b.note(b.toRanges())
	if b.ranges != nil {
		b.note(b.ranges.DeleteRange(lo, hi, nil))
	}
}

// deleteFew deletes a range key by key, unless it holds too many.
func (b *pebbleBatch) deleteFew(lo, hi []byte) (few bool, err error) {
	it, err := b.newIter(lo, hi)
	if err != nil {
		return false, err
	}
	var keys []byte
	var ends []int
	for ok := it.First(); ok && len(ends) <= b.engine.rangeFew; ok = it.Next() {
		keys = append(keys, it.Key()[prefixBytes:]...)
		ends = append(ends, len(keys))
	}
	if err := it.Close(); err != nil || len(ends) > b.engine.rangeFew {
		return false, err
	}
	from := 0
	for _, end := range ends {
		b.delete(keys[from:end])
		from = end
	}
	return true, nil
}

func (b *pebbleBatch) whole(key []byte) []byte {
	return append(append(make([]byte, 0, len(b.prefix)+len(key)), b.prefix...), key...)
}

// toRanges goes on with a batch of Pebble's.
func (b *pebbleBatch) toRanges() error {
	if b.ranges != nil {
		return nil
	}
	if err := b.buffer.drain(); err != nil {
		return err
	}
	b.ranges = b.engine.db.NewIndexedBatch()
	for _, item := range b.table.collect(nil, nil, batchCommit) {
		if err := addTo(b.ranges, b.prefix, item.key, item.value, item.deleted); err != nil {
			return err
		}
	}
	return nil
}

func (b *pebbleBatch) changes() int {
	if b.ranges != nil {
		return int(b.ranges.Count())
	}
	return b.table.keys
}

func (b *pebbleBatch) bytes() int {
	if b.ranges != nil {
		return b.ranges.Len()
	}
	return b.table.bytes()
}

func (b *pebbleBatch) get(key []byte) ([]byte, bool, error) {
	if b.ranges != nil {
		return getCopy(b.ranges, b.whole(key))
	}
	if value, there, found := b.table.get(hashKey(key), key, batchCommit); found {
		return value, there, nil
	}
	if value, there, found := b.buffer.get(key); found {
		return value, there, nil
	}
	return getCopy(b.engine.db, b.whole(key))
}

// newIter shows the batch's changes on top of the buffer on top of Pebble.
func (b *pebbleBatch) newIter(lo, hi []byte) (rawIter, error) {
	if b.ranges != nil {
		return asRaw(b.ranges.NewIter(&pebble.IterOptions{LowerBound: lo, UpperBound: hi}))
	}
	below, err := b.engine.newIter(lo, hi)
	if err != nil {
		return nil, err
	}
	ownLo, ownHi := b.buffer.bounds(lo, hi)
	return merged(below, b.prefix, b.table.collect(ownLo, ownHi, batchCommit), nil), nil
}

func (b *pebbleBatch) commit() error {
	if b.err != nil {
		return b.err
	}
	if err := b.engine.stop.Err(); err != nil {
		return err
	}
	if b.ranges != nil {
		return b.buffer.addRanges(b.ranges)
	}
	return b.buffer.add(b.table)
}

func (b *pebbleBatch) close() {
	if b.ranges != nil {
		_ = b.ranges.Close() // gives memory back; has nothing to report
	}
	b.table.reset()
	batchTables.Put(b.table)
	b.table = nil
}
