package statestore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/flotilla-kv/flotilla/internal/disk"
)

// formatVersion is the newest layout of the directory that this code writes
// and reads.
const formatVersion = 1

// Options of a Store on Pebble. Dir and OnFatal are required.
type Options struct {
	Dir    string
	FS     vfs.FS        // nil: the operating system's
	Cache  *pebble.Cache // shared by the process; nil: one of its own of 64 MiB
	Logger *slog.Logger  // nil: slog.Default
	// OnFatal is called once, in a goroutine of its own, when the disk has
	// failed; it ends the process. Open may already call it.
	OnFatal func(error)
	// OnFlushed, if set, is called in a goroutine of the store, which waits
	// for it, after something became durable; several flushes may share a
	// call.
	OnFlushed func()

	// MemTableBytes is how much may be committed before it is flushed. Till then
	// about as much lies in memory, and again while it is flushed. 0: 64 MiB; at
	// least 256 KiB.
	MemTableBytes uint64
}

const (
	cacheBytesDefault    = 64 << 20
	memTableBytesDefault = 64 << 20
	memTableBytesMin     = 256 << 10
	memTablePart         = 8        // Pebble's memtables are one part in so many: most goes past them
	blockBytes           = 16 << 10 // of tables on disk: Pebble makes one system call or more for each
	memTablesMax         = 16       // of memtables, in bytes, from which on Pebble lets writers wait
)

// MemTablesBytes is what the memtables of a busy store with the default size
// take, together with the drained buffers that are being flushed. Pebble takes it
// out of the block cache: a shared one has to be so much larger for each store,
// or nothing is left of it, and each read fetches its filters anew.
const MemTablesBytes = 2 * memTableBytesDefault

// Open opens the store in options.Dir, creating it if it is not there. Errors:
// disk.ErrInUse, disk.ErrForeign, *disk.FormatError, *DamagedError.
func Open(options Options) (*Store, error) {
	options, err := options.withDefaults()
	if err != nil {
		return nil, err
	}
	claim, err := disk.Take(options.FS, options.Dir, "statestore", formatVersion)
	if err != nil {
		return nil, err
	}
	e, err := openPebble(options, claim)
	if err != nil {
		return nil, errors.Join(err, claim.Close())
	}
	return &Store{engine: e}, nil
}

func (o Options) withDefaults() (Options, error) {
	if o.Dir == "" || o.OnFatal == nil {
		return o, errors.New("statestore: Dir and OnFatal are required")
	}
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.OnFlushed == nil {
		o.OnFlushed = func() {}
	}
	if o.MemTableBytes == 0 {
		o.MemTableBytes = memTableBytesDefault
	}
	o.MemTableBytes = max(o.MemTableBytes, memTableBytesMin)
	return o, nil
}

// pebbleOptions: no write-ahead log; small memtables, as what comes of a full
// buffer is large enough to be flushed without one; thresholds at which
// compaction does not hold up writes before reads get really deep.
func (o Options) pebbleOptions(cache *pebble.Cache) *pebble.Options {
	po := &pebble.Options{
		FS:                          o.FS,
		Cache:                       cache,
		FormatMajorVersion:          pebble.FormatNewest,
		DisableWAL:                  true,
		MemTableSize:                o.MemTableBytes / memTablePart,
		MemTableStopWritesThreshold: memTablesMax,
		L0CompactionThreshold:       8,
		L0StopWritesThreshold:       200,
		LBaseMaxBytes:               64 << 20,
		BytesPerSync:                1 << 20,
		MaxOpenFiles:                4096,
		CompactionConcurrencyRange:  func() (int, int) { return 1, 2 },
	}
	po.Experimental.DisableIngestAsFlushable = func() bool { return true }
	for i := range po.Levels {
		po.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
		po.Levels[i].Compression = noCompression
		po.Levels[i].BlockSize = blockBytes
	}
	po.Levels[len(po.Levels)-1].Compression = func() *sstable.CompressionProfile { return sstable.SnappyCompression }
	return po
}

// noCompression is for all levels but the last: what they hold is soon to be
// merged away.
func noCompression() *sstable.CompressionProfile { return sstable.NoCompression }

// pebbleEngine is the engine on Pebble.
type pebbleEngine struct {
	fs        vfs.FS
	stop      *disk.Stop
	claim     *disk.Claim
	cache     *pebble.Cache // nil if shared
	options   *pebble.Options
	db        *pebble.DB
	buffers   *buffers
	rangeFew  int    // see the constant; tests have less
	installs  string // where incoming snapshots are written
	installed atomic.Uint64

	flushed  chan struct{} // a flush ended; capacity 1
	closing  chan struct{}
	notified chan struct{} // closed: the flush loop has ended
	closed   sync.Once
	closeErr error
}

func openPebble(options Options, claim *disk.Claim) (*pebbleEngine, error) {
	e := &pebbleEngine{
		rangeFew: rangeFew,
		fs:       options.FS,
		stop:     disk.NewStop(options.Logger.With("store", "state"), options.OnFatal),
		claim:    claim,
		installs: options.FS.PathJoin(options.Dir, "install"),
		flushed:  make(chan struct{}, 1),
		closing:  make(chan struct{}),
		notified: make(chan struct{}),
	}
	if err := e.clearInstalls(); err != nil {
		return nil, err
	}
	if options.Cache == nil {
		e.cache = pebble.NewCache(cacheBytesDefault + MemTablesBytes)
		options.Cache = e.cache
	}
	e.options = options.pebbleOptions(options.Cache)
	e.options.Logger = e.stop.Logger()
	listener := e.stop.Listener()
	listener.FlushEnd = func(info pebble.FlushInfo) {
		if info.Err == nil {
			e.signalFlushed()
		}
	}
	e.options.EventListener = &listener
	e.options.EnsureDefaults() // Open does that to a copy, and installs need them
	db, err := e.stop.Open(options.FS.PathJoin(options.Dir, "pebble"), e.options)
	if err != nil {
		e.release()
		return nil, &DamagedError{Dir: options.Dir, Err: err}
	}
	e.db, e.buffers = db, newBuffers(db, options.MemTableBytes, e.stop.Fail)
	go e.flushLoop(options.OnFlushed)
	return e, nil
}

// clearInstalls removes what a crash left of incoming snapshots.
func (e *pebbleEngine) clearInstalls() error {
	if err := e.fs.RemoveAll(e.installs); err != nil {
		return fmt.Errorf("remove %s: %w", e.installs, err)
	}
	return disk.MakeDir(e.fs, e.installs)
}

func (e *pebbleEngine) release() {
	if e.cache != nil {
		e.cache.Unref()
	}
}

// signalFlushed runs inside Pebble and must not block.
func (e *pebbleEngine) signalFlushed() {
	select {
	case e.flushed <- struct{}{}:
	default:
	}
}

func (e *pebbleEngine) flushLoop(onFlushed func()) {
	defer close(e.notified)
	for {
		select {
		case <-e.flushed:
			onFlushed()
		case <-e.buffers.full:
			_ = e.asyncFlush() // a failure stops the store, which says so
		case <-e.closing:
			return
		}
	}
}

func (e *pebbleEngine) get(key []byte) ([]byte, bool, error) {
	if value, there, found := e.buffers.of(key).get(key[prefixBytes:]); found {
		return value, there, nil
	}
	return getCopy(e.db, key)
}

// getCopy reads a value out of Pebble; the one copy is its caller's.
func getCopy(from pebble.Reader, key []byte) ([]byte, bool, error) {
	value, closer, err := from.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	mine := make([]byte, len(value))
	copy(mine, value)
	return mine, true, closer.Close()
}

// newIter drains the buffers first if it is to show more than one replica.
func (e *pebbleEngine) newIter(lo, hi []byte) (rawIter, error) {
	open := func() (*pebble.Iterator, error) {
		return e.db.NewIter(&pebble.IterOptions{LowerBound: lo, UpperBound: hi})
	}
	if lo == nil {
		if err := e.drain(); err != nil {
			return nil, err
		}
		return asRaw(open())
	}
	view, iter, err := e.buffers.of(lo).view(open)
	if err != nil {
		return nil, err
	}
	return merged(iter, lo[:prefixBytes], view.collect(lo, hi), view.release), nil
}

func (e *pebbleEngine) newDurableIter(lo, hi []byte) (rawIter, error) {
	return asRaw(e.db.NewIter(&pebble.IterOptions{LowerBound: lo, UpperBound: hi, OnlyReadGuaranteedDurable: true}))
}

// asRaw keeps a nil *pebble.Iterator from becoming a non-nil rawIter.
func asRaw(iter *pebble.Iterator, err error) (rawIter, error) {
	if err != nil {
		return nil, err
	}
	return iter, nil
}

func (e *pebbleEngine) excise(lo, hi []byte) error {
	if err := e.drain(); err != nil {
		return err
	}
	defer e.buffers.forget(lo)
	err := e.stop.Try(func() error {
		return e.db.Excise(context.Background(), pebble.KeyRange{Start: lo, End: hi})
	})
	if err != nil {
		return e.failed(err)
	}
	return e.settle(func() (bool, error) { return e.durablyEmpty(lo, hi) })
}

func (e *pebbleEngine) durablyEmpty(lo, hi []byte) (empty bool, err error) {
	iter, err := e.newDurableIter(lo, hi)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, iter.Close()) }()
	return !iter.First(), iter.Error()
}

// settle flushes unless what an excise or ingest did is durable already. With
// DisableIngestAsFlushable it always is; this makes sure.
func (e *pebbleEngine) settle(durable func() (bool, error)) error {
	ok, err := durable()
	if err == nil && !ok {
		err = e.stop.Try(e.db.Flush)
	}
	if err != nil {
		return e.failed(err)
	}
	e.signalFlushed()
	return nil
}

// failed stops the store: an error of the disk is not retried.
func (e *pebbleEngine) failed(err error) error {
	e.stop.Fail(err)
	return err
}

func (e *pebbleEngine) flush() error {
	if err := e.flushing(); err != nil {
		return err
	}
	if err := e.stop.Try(e.db.Flush); err != nil {
		return e.failed(fmt.Errorf("flush: %w", err))
	}
	return nil
}

// drain puts into Pebble what waits in memory. It may wait for a memtable that
// cannot be flushed any more, so a failure of the disk ends it.
func (e *pebbleEngine) drain() error {
	if err := e.stop.Err(); err != nil {
		return err
	}
	if err := e.stop.Try(e.buffers.drain); err != nil {
		return e.failed(fmt.Errorf("drain: %w", err))
	}
	return nil
}

// flushing begins a flush: what is committed from here on is owed to the next.
func (e *pebbleEngine) flushing() error {
	e.buffers.owed.Store(0)
	return e.drain()
}

func (e *pebbleEngine) asyncFlush() error {
	if err := e.flushing(); err != nil {
		return err
	}
	err := e.stop.Try(func() error {
		_, err := e.db.AsyncFlush()
		return err
	})
	if err != nil {
		return e.failed(fmt.Errorf("flush: %w", err))
	}
	return nil
}

func (e *pebbleEngine) close() error {
	e.closed.Do(func() { e.closeErr = e.closeOnce() })
	return e.closeErr
}

func (e *pebbleEngine) closeOnce() error {
	if err := e.stop.Err(); err != nil {
		return err
	}
	err := e.stop.Try(e.buffers.close)
	if err != nil {
		err = e.failed(fmt.Errorf("drain: %w", err))
	} else {
		err = e.flush()
	}
	close(e.closing)
	<-e.notified
	if err != nil {
		return err
	}
	err = errors.Join(e.stop.Try(e.db.Close), e.claim.Close())
	e.release()
	return err
}
