package statestore

import (
	"github.com/cockroachdb/pebble/v2"

	"github.com/flotilla-kv/flotilla/internal/disk"
)

// pebbleBatch is a plain batch until something is read from it, and an indexed
// one from then on: many batches only write.
type pebbleBatch struct {
	db      *pebble.DB
	stop    *disk.Stop
	batch   *pebble.Batch
	indexed bool
	err     error // of an operation; comes out of commit
}

// batchKeepBytes is up to which size a batch's memory is used again. Pebble's
// 1 MiB is less than what comes of the entries that multiraft applies at once
// while it replays.
const batchKeepBytes = 4 << 20

func (e *pebbleEngine) newBatch() rawBatch {
	return &pebbleBatch{db: e.db, stop: e.stop, batch: e.db.NewBatch(pebble.WithMaxRetainedSizeBytes(batchKeepBytes))}
}

func (b *pebbleBatch) note(err error) {
	if b.err == nil {
		b.err = err
	}
}

// set joins the parts where Pebble wants them.
func (b *pebbleBatch) set(prefix, key, head, tail []byte) {
	op := b.batch.SetDeferred(len(prefix)+len(key), len(head)+len(tail))
	copy(op.Key[copy(op.Key, prefix):], key)
	copy(op.Value[copy(op.Value, head):], tail)
	b.note(op.Finish())
}

func (b *pebbleBatch) delete(key []byte)         { b.note(b.batch.Delete(key, nil)) }
func (b *pebbleBatch) deleteRange(lo, hi []byte) { b.note(b.batch.DeleteRange(lo, hi, nil)) }

func (b *pebbleBatch) changes() int { return int(b.batch.Count()) }

func (b *pebbleBatch) index() error {
	if b.indexed {
		return nil
	}
	indexed := b.db.NewIndexedBatch()
	if !b.batch.Empty() {
		if err := indexed.Apply(b.batch, nil); err != nil {
			return err
		}
	}
	b.note(b.batch.Close())
	b.batch, b.indexed = indexed, true
	return nil
}

func (b *pebbleBatch) get(key []byte) ([]byte, bool, error) {
	if b.batch.Empty() {
		return getCopy(b.db, key)
	}
	if err := b.index(); err != nil {
		return nil, false, err
	}
	return getCopy(b.batch, key)
}

func (b *pebbleBatch) newIter(lo, hi []byte) (rawIter, error) {
	if err := b.index(); err != nil {
		return nil, err
	}
	return asRaw(b.batch.NewIter(&pebble.IterOptions{LowerBound: lo, UpperBound: hi}))
}

func (b *pebbleBatch) commit() error {
	if b.err != nil {
		return b.err
	}
	if err := b.stop.Err(); err != nil {
		return err
	}
	return b.db.Apply(b.batch, pebble.NoSync)
}

func (b *pebbleBatch) close() { _ = b.batch.Close() } // gives memory back; has nothing to report
