package disk

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/cockroachdb/pebble/v2"
)

// Stop is how a store ends when its disk fails. The first failure wins: it is
// logged, Failed is closed, and the node's callback runs once, in a goroutine
// of its own (failures surface inside Pebble, under its locks). Nothing the
// store does afterwards counts.
//
// Pebble reports a failed write-ahead log or manifest by calling
// Logger.Fatalf in the middle of a commit and relies on it not to return. A
// failed flush or compaction it reports as a background error, and tries again
// at once, for ever. The Logger and the Listener made here block the reporting
// goroutine for good, perhaps with Pebble's locks. So a store that has failed
// cannot be closed tidily, and calls that are inside Pebble then may never
// return: its Close leaves Pebble as it is, and the process is expected to
// exit.
type Stop struct {
	log     *slog.Logger
	onFatal func(error)

	failed chan struct{}
	mu     sync.Mutex // guards err
	err    error
}

// NewStop makes a Stop whose failure calls onFatal, which must not be nil and
// may call back into the store (only Close makes sense).
func NewStop(log *slog.Logger, onFatal func(error)) *Stop {
	return &Stop{log: log, onFatal: onFatal, failed: make(chan struct{})}
}

// Fail stops the store because of err; only the first call has an effect. It
// returns at once and may be called under any lock.
func (s *Stop) Fail(err error) {
	s.mu.Lock()
	first := s.err == nil
	if first {
		s.err = err
		close(s.failed)
	}
	s.mu.Unlock()
	if !first {
		return
	}
	s.log.Error("disk failed, the store has stopped", "err", err)
	go s.onFatal(err)
}

// Failed is closed when the store has failed.
func (s *Stop) Failed() <-chan struct{} { return s.failed }

// Err is the failure, nil if there was none.
func (s *Stop) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Logger is what Pebble is to be given.
func (s *Stop) Logger() pebble.Logger { return pebbleLogger{s} }

// Listener is the part of Pebble's event listener that concerns failures:
// background errors (a flush or compaction that met a bad or full disk) and
// damage found while reading both stop the store.
func (s *Stop) Listener() pebble.EventListener {
	return pebble.EventListener{
		BackgroundError: func(err error) {
			if !errors.Is(err, pebble.ErrCancelledCompaction) {
				s.Fail(fmt.Errorf("background write: %w", err))
				select {}
			}
		},
		DataCorruption: func(info pebble.DataCorruptionInfo) {
			s.Fail(fmt.Errorf("stored data is damaged: %s: %w", info.Path, info.Details))
		},
	}
}

// Try runs do and returns its result, or the failure if the disk fails before
// do returns, which it then may never do.
func (s *Stop) Try(do func() error) error {
	done := make(chan error, 1)
	go func() { done <- do() }()
	select {
	case err := <-done:
		return err
	case <-s.failed:
		return s.Err()
	}
}

// Open runs pebble.Open in Try.
func (s *Stop) Open(dir string, options *pebble.Options) (*pebble.DB, error) {
	opened := make(chan *pebble.DB, 1)
	err := s.Try(func() error {
		db, err := pebble.Open(dir, options)
		opened <- db
		return err
	})
	if err != nil {
		return nil, err
	}
	return <-opened, nil
}

type pebbleLogger struct{ stop *Stop }

func (l pebbleLogger) Infof(string, ...any) {}

func (l pebbleLogger) Errorf(format string, args ...any) {
	l.stop.log.Warn("pebble: " + fmt.Sprintf(format, args...))
}

// Fatalf never returns: what follows it in Pebble assumes the process is gone.
func (l pebbleLogger) Fatalf(format string, args ...any) {
	l.stop.Fail(fmt.Errorf(format, args...))
	select {}
}
