package tlsfiles

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"time"
)

// failuresInterval is how far apart lines about failed handshakes are at the
// least: whoever can connect could fill the log.
const failuresInterval = 10 * time.Second

// failures logs handshakes that failed.
type failures struct {
	logger *slog.Logger
	now    func() time.Time

	mu     sync.Mutex // guards what follows
	logged time.Time
	since  int // failures since that line
}

// note hears how a handshake ended. No failure is a caller that hangs up at
// once, which has only looked whether the port is open, or a call that was
// given up.
func (f *failures) note(what, addr string, err error) {
	if err == nil || errors.Is(err, io.EOF) || errors.Is(err, context.Canceled) {
		return
	}
	now := f.now()
	f.mu.Lock()
	if !f.logged.IsZero() && now.Sub(f.logged) < failuresInterval {
		f.since++
		f.mu.Unlock()
		return
	}
	more := f.since
	f.logged, f.since = now, 0
	f.mu.Unlock()
	f.logger.Warn(what, "addr", addr, "error", err, "not_logged_before", more)
}
