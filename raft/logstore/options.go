package logstore

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/flotilla-kv/flotilla/raft"
)

// formatVersion is the newest layout of the directory that this code writes
// and reads.
const formatVersion = 1

// Options of a Store. Dir, and OnFatal are required.
type Options struct {
	Dir    string
	FS     vfs.FS       // nil: the operating system's
	Logger *slog.Logger // nil: slog.Default
	// OnFatal is called once, in a goroutine of its own, when the disk has
	// failed; it ends the process. Open may already call it.
	OnFatal func(error)
	// Metrics, if set, is told of each synced frame.
	Metrics Metrics

	QueueBytes    int           // Append blocks while more than this is queued; 0: 64 MiB
	TailBytes     int           // recent entries kept in memory, all groups together; 0: 64 MiB
	SegmentBytes  int64         // size of a file of the log when it has grown; 0: 16 MiB
	EvidenceEvery time.Duration // at most this long after a sync the evidence file knows of it; 0: 1 s
}

// Metrics sees what the store does. Its methods are called from the store's
// goroutines and must not block.
type Metrics interface {
	// Synced: one sync made writes requests with this many bytes durable.
	Synced(requests, bytes int, took time.Duration)
}

const (
	queueBytesDefault = 64 << 20
	tailBytesDefault  = 64 << 20
	segmentDefault    = 16 << 20
	// turnBytesMax bounds one frame: a larger one would hold up what is queued
	// behind it.
	turnBytesMax = 8 << 20
)

var (
	// ErrClosed answers calls on a closed store.
	ErrClosed = errors.New("log store is closed")
	// ErrOldReplica refuses to create a replica whose id was used before.
	ErrOldReplica = errors.New("replica id was used before")
	// ErrNoReplica answers for a replica that does not exist here.
	ErrNoReplica = errors.New("no such replica in the log store")
	// ErrLogLost refuses a directory whose log is gone or lost the node's
	// identity while the side files remember it.
	ErrLogLost = errors.New("the node's log is lost: remove its data directory and let it join as a new node")
	// ErrVotesLost refuses a replica of a node whose log was cut while the
	// second copy of its votes was damaged too; see Store.Lost.
	ErrVotesLost = errors.New("the node's log was cut and the second copy of its votes is damaged: " +
		"what its replicas have promised is not known")
)

// DamagedError refuses a log that cannot be read.
type DamagedError struct {
	Dir string
	Err error
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("log in %s cannot be opened: %v", e.Dir, e.Err)
}

// Unwrap gives the cause.
func (e *DamagedError) Unwrap() error { return e.Err }

// WriteError refuses a write that does not fit the log: a gap before its
// entries, or entries behind the log's beginning. It is a bug of the caller;
// nothing was written.
type WriteError struct {
	ID   raft.ReplicaKey
	What string
}

func (e *WriteError) Error() string {
	return fmt.Sprintf("group %d replica %d: %s", e.ID.Group, e.ID.Replica, e.What)
}

func (o Options) withDefaults() (Options, error) {
	if o.Dir == "" || o.OnFatal == nil {
		return o, errors.New("logstore: Dir and OnFatal are required")
	}
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	setDefault(&o.QueueBytes, queueBytesDefault)
	setDefault(&o.TailBytes, tailBytesDefault)
	setDefault(&o.SegmentBytes, segmentDefault)
	setDefault(&o.EvidenceEvery, time.Second)
	return o, nil
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}
