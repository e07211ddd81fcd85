package statestore

import (
	"errors"
	"fmt"
	"io"

	"github.com/flotilla-kv/flotilla/raft"
)

// Snapshot streams the state of a replica as of one moment. It may live for
// long: it holds files, and no memory beyond a chunk and a record. It is for
// one goroutine at a time.
type Snapshot struct {
	// Mark says which state it is.
	Mark raft.SnapshotMark

	replica *Replica
	raw     rawView
	stream  *streamWriter
	resume  []byte // the whole key to go on from
	ended   bool
}

// Snapshot begins a snapshot of the state as it is now. ErrNoState: there is
// none. It must be closed.
func (r *Replica) Snapshot() (*Snapshot, error) {
	raw, err := r.engine.newSnapshot(r.prefix, r.end)
	if err != nil {
		return nil, fmt.Errorf("snapshot of group %d: %w", r.id.Group, err)
	}
	a, ok, err := readApplied(r.prefix, raw.newIter)
	if err == nil && !ok {
		err = ErrNoState
	}
	if err != nil {
		return nil, fmt.Errorf("snapshot of group %d: %w", r.id.Group, errors.Join(err, raw.close()))
	}
	resume, _ := r.bounds(nil, nil)
	return &Snapshot{Mark: a.SnapshotMark, replica: r, raw: raw, stream: newStreamWriter(), resume: resume}, nil
}

// Next returns the next chunk, of at most ChunkBytes, which belongs to the
// caller. After the last it returns io.EOF.
func (s *Snapshot) Next() ([]byte, error) {
	if len(s.stream.pending) < ChunkBytes && !s.ended {
		if err := s.fill(); err != nil {
			return nil, fmt.Errorf("snapshot of group %d: %w", s.replica.id.Group, err)
		}
	}
	if len(s.stream.pending) == 0 {
		return nil, io.EOF
	}
	return s.stream.chunk(), nil
}

// fill encodes records until a chunk is full. The iterator lives only for
// this: it would pin what the snapshot itself is careful not to.
func (s *Snapshot) fill() (err error) {
	iter, err := s.raw.newIter(s.resume, s.replica.end)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, iter.Close()) }()
	for ok := iter.First(); ok; ok = iter.Next() {
		if len(s.stream.pending) >= ChunkBytes {
			s.resume = append(s.resume[:0], iter.Key()...)
			return nil
		}
		s.stream.record(iter.Key()[prefixBytes:], iter.Value())
	}
	if err := iter.Error(); err != nil {
		return err
	}
	s.ended = true
	s.stream.end()
	return nil
}

// Close gives the snapshot back.
func (s *Snapshot) Close() error { return s.raw.close() }
