package statestore

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/flotilla-kv/flotilla/raft"
)

var (
	// ErrClosed answers calls on a closed store.
	ErrClosed = errors.New("state store is closed")
	// ErrNoApplied refuses a batch without an applied record.
	ErrNoApplied = errors.New("batch has no applied record")
	// ErrEmptyKey refuses the empty key.
	ErrEmptyKey = errors.New("empty key")
	// ErrNoState answers for a snapshot of a replica that has applied nothing.
	ErrNoState = errors.New("replica has no state")
	// ErrBadStream refuses a snapshot stream that is cut short or garbled.
	ErrBadStream = errors.New("bad snapshot stream")
)

// DamagedError refuses a store that cannot be read.
type DamagedError struct {
	Dir string
	Err error
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("state in %s cannot be opened: %v", e.Dir, e.Err)
}

// Unwrap gives the cause.
func (e *DamagedError) Unwrap() error { return e.Err }

// Store holds the state machines' data of a node. All methods may be called
// from any goroutine.
type Store struct {
	engine engine
}

// Replica gives access to the state of one replica. It costs nothing and
// exists whether or not there is any.
func (s *Store) Replica(id raft.ReplicaKey) *Replica {
	prefix := appendPrefix(make([]byte, 0, prefixBytes), id)
	return &Replica{id: id, engine: s.engine, prefix: prefix, end: successor(prefix)}
}

// EachDurable calls visit for every replica that has durable state, in the
// order of the ids, with the applied index that a crash now would leave it
// with. All come from one moment.
func (s *Store) EachDurable(visit func(raft.ReplicaKey, raft.Index)) error {
	return s.each(s.engine.newDurableIter, visit)
}

// EachApplied is EachDurable for what is visible, durable or not.
func (s *Store) EachApplied(visit func(raft.ReplicaKey, raft.Index)) error {
	return s.each(s.engine.newIter, visit)
}

func (s *Store) each(open func(lo, hi []byte) (rawIter, error), visit func(raft.ReplicaKey, raft.Index)) (err error) {
	iter, err := open(nil, nil)
	if err != nil {
		return fmt.Errorf("list replicas: %w", err)
	}
	defer func() { err = errors.Join(err, iter.Close()) }()
	for ok := iter.First(); ok; {
		if len(iter.Key()) < prefixBytes {
			return fmt.Errorf("list replicas: key %x is too short", iter.Key())
		}
		prefix := append([]byte(nil), iter.Key()[:prefixBytes]...)
		if len(iter.Key()) == prefixBytes {
			applied, err := decodeApplied(iter.Value())
			if err != nil {
				return err
			}
			visit(splitPrefix(prefix), applied.Index)
		}
		next := successor(prefix)
		if next == nil {
			break
		}
		ok = iter.SeekGE(next)
	}
	return iter.Error()
}

// Flush makes all commits so far durable.
func (s *Store) Flush() error { return s.engine.flush() }

// AsyncFlush begins to make all commits so far durable; OnFlushed tells when.
func (s *Store) AsyncFlush() error { return s.engine.asyncFlush() }

// Close flushes and closes the store. Iterators, views and snapshots must be
// closed before. After a failed disk it returns the failure and leaves the
// rest to the end of the process.
func (s *Store) Close() error { return s.engine.close() }

const prefixBytes = 16

func appendPrefix(to []byte, id raft.ReplicaKey) []byte {
	to = binary.BigEndian.AppendUint64(to, uint64(id.Group))
	return binary.BigEndian.AppendUint64(to, uint64(id.Replica))
}

func splitPrefix(prefix []byte) raft.ReplicaKey {
	return raft.ReplicaKey{
		Group:   raft.GroupID(binary.BigEndian.Uint64(prefix)),
		Replica: raft.ReplicaID(binary.BigEndian.Uint64(prefix[8:])),
	}
}

// successor is the first key behind all that begin with prefix; nil if there
// is none.
func successor(prefix []byte) []byte {
	next := append([]byte(nil), prefix...)
	for i := len(next) - 1; i >= 0; i-- {
		if next[i]++; next[i] != 0 {
			return next[:i+1]
		}
	}
	return nil
}
