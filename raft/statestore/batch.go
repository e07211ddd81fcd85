package statestore

import (
	"fmt"

	"github.com/flotilla-kv/flotilla/raft"
)

// Batch gathers the effects of entries. It is for one goroutine at a time. Keys
// and values are copied. A key that is empty is a bug of the caller and fails
// the Commit.
type Batch struct {
	replica *Replica
	raw     rawBatch
	applied bool
	err     error
}

func (b *Batch) check(key []byte) {
	if len(key) == 0 && b.err == nil {
		b.err = ErrEmptyKey
	}
}

// Get returns a copy of the value, as the batch would leave it.
func (b *Batch) Get(key []byte) (value []byte, ok bool, err error) {
	if len(key) == 0 {
		return nil, false, ErrEmptyKey
	}
	return b.raw.get(key)
}

// Set sets the value of key.
func (b *Batch) Set(key, value []byte) { b.SetJoined(key, nil, value) }

// SetJoined sets the value of key to head followed by tail, so that who has
// both need not join them first.
func (b *Batch) SetJoined(key, head, tail []byte) {
	b.check(key)
	b.raw.set(key, head, tail)
}

// Delete removes key.
func (b *Batch) Delete(key []byte) {
	b.check(key)
	b.raw.delete(key)
}

// Changes is how many changes the batch gathers, that of SetApplied too. A key
// that is set twice may count once.
func (b *Batch) Changes() int { return b.raw.changes() }

// Bytes is about what the batch holds in memory.
func (b *Batch) Bytes() int { return b.raw.bytes() }

// DeleteRange removes the keys of [lo, hi); nil is no bound.
func (b *Batch) DeleteRange(lo, hi []byte) { b.raw.deleteRange(b.replica.bounds(lo, hi)) }

// Iter walks the keys of [lo, hi), as the batch would leave them; nil is no
// bound. The batch must not change while it is open. It must be closed before
// Commit or Close.
func (b *Batch) Iter(lo, hi []byte) *Iter { return newIter(b.replica, lo, hi, b.raw.newIter) }

// SetApplied says which entry the batch leads to, and the membership as of it.
func (b *Batch) SetApplied(index raft.Index, term raft.Term, membership raft.Membership) {
	b.applied = true
	mark := raft.SnapshotMark{Index: index, Term: term, Membership: membership}
	b.raw.set(nil, encodeApplied(appliedRecord{SnapshotMark: mark}), nil)
}

// Commit makes the batch visible as a whole; it becomes durable later. The
// batch is used up, whatever the result.
func (b *Batch) Commit() error {
	defer b.Close()
	if b.err != nil {
		return b.err
	}
	if !b.applied {
		return ErrNoApplied
	}
	if err := b.raw.commit(); err != nil {
		return fmt.Errorf("commit to group %d: %w", b.replica.id.Group, err)
	}
	return nil
}

// Close drops the batch. It does nothing after Commit.
func (b *Batch) Close() {
	if b.raw != nil {
		b.raw.close()
		b.raw = nil
	}
}
