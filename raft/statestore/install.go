package statestore

import (
	"fmt"

	"github.com/flotilla-kv/flotilla/raft"
)

// Install takes in a snapshot stream beside the replica's state and then
// replaces that state by it. It is for one goroutine at a time. Exactly one of
// Finish and Abort ends it; Abort after Finish does nothing.
type Install struct {
	replica *Replica
	mark    raft.SnapshotMark
	raw     rawInstall
	stream  *streamReader
	whole   []byte // scratch
	err     error  // the first failure; nothing is taken in after it
	ended   bool
}

// NewInstall begins to take in the snapshot of the state that mark names.
func (r *Replica) NewInstall(mark raft.SnapshotMark) *Install {
	in := &Install{replica: r, mark: mark, raw: r.engine.newInstall(r.prefix, r.end), stream: newStreamReader()}
	in.err = in.raw.add(r.prefix, encodeApplied(appliedRecord{SnapshotMark: mark, installed: true}))
	return in
}

// Add takes in the next chunk, which it does not keep. ErrBadStream: it is
// garbled, and the install can only be aborted.
func (in *Install) Add(chunk []byte) error {
	if in.err == nil {
		in.err = in.stream.add(chunk, in.record)
	}
	return in.failure()
}

func (in *Install) record(key, value []byte) error {
	in.whole = append(append(in.whole[:0], in.replica.prefix...), key...)
	return in.raw.add(in.whole, value)
}

// Finish replaces the replica's state, at once and durably: it has been read
// back as such when Finish returns. ErrBadStream: the stream was not complete,
// and nothing has changed. Nothing may be committed to the replica meanwhile.
func (in *Install) Finish() error {
	if in.err == nil && !in.stream.ended {
		in.err = fmt.Errorf("%w: cut short after %d records", ErrBadStream, in.stream.records)
	}
	if in.err == nil {
		in.err = in.raw.finish()
	}
	if in.err == nil {
		in.err = in.verify()
	}
	if in.err != nil {
		return in.failure()
	}
	in.ended = true
	return nil
}

// verify reads the mark back as guaranteed durable.
func (in *Install) verify() error {
	a, ok, err := readApplied(in.replica.prefix, in.replica.engine.newDurableIter)
	if err != nil {
		return err
	}
	if !ok || a.Index != in.mark.Index || a.Term != in.mark.Term {
		return fmt.Errorf("installed index %d, and %d is durable", in.mark.Index, a.Index)
	}
	return nil
}

func (in *Install) failure() error {
	if in.err == nil {
		return nil
	}
	return fmt.Errorf("install snapshot in group %d: %w", in.replica.id.Group, in.err)
}

// Abort drops what was taken in.
func (in *Install) Abort() error {
	if in.ended {
		return nil
	}
	in.ended = true
	return in.raw.abort()
}
