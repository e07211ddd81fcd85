package tlsfiles

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Times of following the files.
const (
	lookInterval  = time.Second      // between two looks at the files
	watchInterval = 10 * time.Second // between two looks of Watch
)

// Paths name the files. All three are given or none.
type Paths struct {
	CA   string // certificates that are trusted, one or more
	Cert string // the own certificate, then the intermediates that signed it
	Key  string // of the certificate
}

// Given reports whether there is to be TLS.
func (p Paths) Given() bool { return p != Paths{} }

// Check refuses a part of the three.
func (p Paths) Check() error {
	if p.Given() && (p.CA == "" || p.Cert == "" || p.Key == "") {
		return errors.New("TLS needs --tls-ca, --tls-cert and --tls-key: give all three or none")
	}
	return nil
}

// each is the three with the flags that name them.
func (p Paths) each() [3]struct{ flag, path string } {
	return [3]struct{ flag, path string }{{"--tls-ca", p.CA}, {"--tls-cert", p.Cert}, {"--tls-key", p.Key}}
}

// Options say which files and for whom. Paths are required.
type Options struct {
	Paths Paths
	// Host is what others call this process by: its certificate has to name it.
	// Empty for a process that only calls.
	Host   string
	Logger *slog.Logger // nil: none
}

// Files are the three files, read and checked, and followed from then on. All
// methods may be called concurrently.
type Files struct {
	options Options
	logger  *slog.Logger
	now     func() time.Time
	calls   failures // of handshakes that this process began
	callers failures // of those that others began

	current atomic.Pointer[set]
	looked  atomic.Int64 // when the files were last looked at, unix nanoseconds

	mu        sync.Mutex // held while the files are looked at; guards what follows
	stamps    [3]os.FileInfo
	complaint string // about the files as they are; "": current is what they say
	warned    warning
}

// Load reads and checks the files.
func Load(options Options) (*Files, error) {
	return load(options, time.Now)
}

func load(options Options, now func() time.Time) (*Files, error) {
	if err := options.Paths.Check(); err != nil {
		return nil, err
	}
	if !options.Paths.Given() {
		return nil, errors.New("no TLS files are given")
	}
	f := &Files{options: options, logger: options.Logger, now: now}
	if f.logger == nil {
		f.logger = slog.New(slog.DiscardHandler)
	}
	f.calls.logger, f.calls.now = f.logger, now
	f.callers.logger, f.callers.now = f.logger, now
	f.stamps = stampsOf(options.Paths)
	s, err := readSet(options, now())
	if err != nil {
		return nil, err
	}
	f.current.Store(s)
	f.looked.Store(now().UnixNano())
	return f, nil
}

// latest is what the files say, as of lookInterval ago at most. Who finds that
// it is time looks at them; whoever comes meanwhile takes what there is.
func (f *Files) latest() *set {
	now := f.now()
	since := time.Duration(now.UnixNano() - f.looked.Load())
	if (since >= lookInterval || since < 0) && f.mu.TryLock() { // < 0: the clock was set back
		f.look(now)
		f.mu.Unlock()
	}
	return f.current.Load()
}

// look takes the files if they have changed and are fine. The caller holds mu.
func (f *Files) look(now time.Time) {
	// The stamps are older than what is read: a file that changes meanwhile is
	// read again next time.
	stamps := stampsOf(f.options.Paths)
	if f.complaint == "" && sameStamps(stamps, f.stamps) {
		f.looked.Store(now.UnixNano())
		return
	}
	f.stamps = stamps
	s, err := readSet(f.options, now)
	f.looked.Store(now.UnixNano())
	if err != nil {
		if f.complaint != err.Error() {
			f.complaint = err.Error()
			f.logger.Error("the TLS files have changed and are not taken; those before them stay in use", "error", err)
		}
		return
	}
	before := f.current.Swap(s)
	if f.complaint != "" || !before.says(s) {
		f.logger.Info("TLS files taken", "serial", s.leaf.SerialNumber.Text(16), "not_after", s.expires.UTC().Format(time.RFC3339))
	}
	f.complaint = ""
}

// stampsOf is what the file system says of the files; nil for one that is not
// there.
func stampsOf(paths Paths) (stamps [3]os.FileInfo) {
	for i, file := range paths.each() {
		if info, err := os.Stat(file.path); err == nil {
			stamps[i] = info
		}
	}
	return stamps
}

func sameStamps(a, b [3]os.FileInfo) bool {
	for i := range a {
		switch {
		case a[i] == nil && b[i] == nil:
		case a[i] == nil || b[i] == nil:
			return false
		case !os.SameFile(a[i], b[i]) || !a[i].ModTime().Equal(b[i].ModTime()) || a[i].Size() != b[i].Size():
			return false
		}
	}
	return true
}

// Expires is when the certificate, or the CA behind it, expires.
func (f *Files) Expires() time.Time { return f.latest().expires }

// Watch looks at the files until ctx ends, and warns before they expire.
func (f *Files) Watch(ctx context.Context) {
	ticker := time.NewTicker(watchInterval)
	defer ticker.Stop()
	for {
		f.warn(f.latest())
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// warning is what was last said about the time left.
type warning struct {
	about *set
	stage lifeStage
}

// lifeStage is how much of its life a certificate has left.
type lifeStage uint8

const (
	stageFresh lifeStage = iota
	stageSoon            // under a tenth of its life
	stageExpired
)

// warn says, once for each stage, that the certificate runs out.
func (f *Files) warn(s *set) {
	stage := s.stage(f.now())
	f.mu.Lock()
	known := f.warned == warning{s, stage}
	f.warned = warning{s, stage}
	f.mu.Unlock()
	expires := s.expires.UTC().Format(time.RFC3339)
	switch {
	case known:
	case stage == stageSoon:
		f.logger.Warn("the TLS certificate, or its CA, expires soon: replace the files, no restart is needed", "not_after", expires)
	case stage == stageExpired:
		f.logger.Error("the TLS certificate, or its CA, has expired: nobody takes new connections with it; replace the files, no restart is needed", "not_after", expires)
	}
}

// ClientCertificates says whose certificates a server demands.
type ClientCertificates bool

// Whom a server lets in.
const (
	Anybody   ClientCertificates = false
	Certified ClientCertificates = true // who shows a certificate of a CA in the file
)

// ServerConfig is TLS for a server that is not gRPC's.
func (f *Files) ServerConfig(who ClientCertificates) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			if who == Certified {
				return f.latest().mutual, nil
			}
			return f.latest().open, nil
		},
	}
}
