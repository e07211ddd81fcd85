package statestore

import (
	"errors"
	"fmt"

	"github.com/flotilla-kv/flotilla/raft"
)

// Replica is the state of one replica. Keys are given and returned without its
// prefix. Its methods may be called from any goroutine; commits of one replica
// are ordered by their caller.
type Replica struct {
	id     raft.ReplicaKey
	engine engine
	prefix []byte // all keys of the replica begin with it
	end    []byte // the first key behind them
}

// ID names the replica.
func (r *Replica) ID() raft.ReplicaKey { return r.id }

// key is the whole key, in a buffer of its own.
func (r *Replica) key(key []byte) []byte {
	whole := make([]byte, 0, prefixBytes+len(key))
	return append(append(whole, r.prefix...), key...)
}

// bounds are the whole keys for a range of the caller's; nil lo or hi: from
// the first or to the last. The applied record is never in it.
func (r *Replica) bounds(lo, hi []byte) (wholeLo, wholeHi []byte) {
	if len(lo) == 0 {
		lo = []byte{0}
	}
	if hi == nil {
		return r.key(lo), r.end
	}
	return r.key(lo), r.key(hi)
}

// Get returns a copy of the value; ok is false if there is none.
func (r *Replica) Get(key []byte) (value []byte, ok bool, err error) {
	if len(key) == 0 {
		return nil, false, ErrEmptyKey
	}
	return r.engine.get(r.key(key))
}

// NewIter walks the keys of [lo, hi) as they are now; nil is no bound. It must
// be closed.
func (r *Replica) NewIter(lo, hi []byte) *Iter {
	return newIter(r, lo, hi, r.engine.newIter)
}

// View shows the state as it is now. It is for one goroutine at a time and
// not for long: it holds memory and files. It must be closed.
func (r *Replica) View() (*View, error) {
	raw, err := r.engine.newView(r.prefix, r.end)
	if err != nil {
		return nil, fmt.Errorf("view of group %d: %w", r.id.Group, err)
	}
	return &View{replica: r, raw: raw}, nil
}

// NewBatch begins a batch.
func (r *Replica) NewBatch() *Batch {
	return &Batch{replica: r, raw: r.engine.newBatch(r.prefix)}
}

// Applied is the applied record as it is now; all zero if there is none.
func (r *Replica) Applied() (raft.Index, raft.Term, raft.Membership, error) {
	a, _, err := r.applied()
	return a.Index, a.Term, a.Membership, err
}

// SnapshotMark is the mark of the snapshot that was installed, as long as
// nothing was applied on top of it.
func (r *Replica) SnapshotMark() (raft.SnapshotMark, bool, error) {
	a, ok, err := r.applied()
	if err != nil || !ok || !a.installed {
		return raft.SnapshotMark{}, false, err
	}
	return a.SnapshotMark, true, nil
}

func (r *Replica) applied() (a appliedRecord, ok bool, err error) {
	value, ok, err := r.engine.get(r.prefix)
	if err != nil || !ok {
		return appliedRecord{}, false, err
	}
	a, err = decodeApplied(value)
	return a, err == nil, err
}

// DurableApplied is the applied index that a crash now would leave; 0 if
// nothing is durable. For many replicas use Store.EachDurable.
func (r *Replica) DurableApplied() (raft.Index, error) {
	a, _, err := readApplied(r.prefix, r.engine.newDurableIter)
	return a.Index, err
}

// readApplied reads an applied record through an iterator.
func readApplied(prefix []byte, open func(lo, hi []byte) (rawIter, error)) (a appliedRecord, ok bool, err error) {
	iter, err := open(prefix, append(append([]byte(nil), prefix...), 0))
	if err != nil {
		return a, false, err
	}
	defer func() { err = errors.Join(err, iter.Close()) }()
	if !iter.First() {
		return a, false, iter.Error()
	}
	a, err = decodeApplied(iter.Value())
	return a, err == nil, err
}

// Destroy removes all of the replica's state, durably.
func (r *Replica) Destroy() error {
	if err := r.engine.excise(r.prefix, r.end); err != nil {
		return fmt.Errorf("destroy state of group %d replica %d: %w", r.id.Group, r.id.Replica, err)
	}
	return nil
}

// View is one state of a replica.
type View struct {
	replica *Replica
	raw     rawView
}

// Get returns a copy of the value; ok is false if there is none.
func (v *View) Get(key []byte) (value []byte, ok bool, err error) {
	if len(key) == 0 {
		return nil, false, ErrEmptyKey
	}
	return v.raw.get(v.replica.key(key))
}

// NewIter walks the keys of [lo, hi); nil is no bound. It must be closed
// before the view.
func (v *View) NewIter(lo, hi []byte) *Iter { return newIter(v.replica, lo, hi, v.raw.newIter) }

// Applied is the applied record of the state shown.
func (v *View) Applied() (raft.Index, raft.Term, raft.Membership, error) {
	a, _, err := readApplied(v.replica.prefix, v.raw.newIter)
	return a.Index, a.Term, a.Membership, err
}

// Close gives the view back.
func (v *View) Close() error { return v.raw.close() }
