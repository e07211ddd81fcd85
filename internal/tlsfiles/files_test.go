package tlsfiles

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flotilla-kv/flotilla/internal/tlstest"
)

const host = "127.0.0.1"

// world is a set of files in use, with a clock of the test and the lines that
// were logged.
type world struct {
	*Files
	paths tlstest.Files
	ca    *tlstest.CA
	log   *logBuffer
	clock atomic.Int64 // unix nanoseconds
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{paths: tlstest.FilesIn(t.TempDir()), ca: tlstest.NewCA(t, "ca"), log: new(logBuffer)}
	w.paths.Write(t, w.ca.Node(t, host), w.ca)
	w.clock.Store(time.Now().UnixNano())
	var err error
	w.Files, err = load(Options{Paths: Paths(w.paths), Host: host, Logger: slog.New(slog.NewTextHandler(w.log, nil))}, w.time)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) time() time.Time         { return time.Unix(0, w.clock.Load()) }
func (w *world) advance(d time.Duration) { w.clock.Add(int64(d)) }
func (w *world) serial() *big.Int        { return w.latest().leaf.SerialNumber }

type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logBuffer) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(line)
}

// lines are the logged lines that contain all words.
func (l *logBuffer) lines(words ...string) (found []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
next:
	for line := range strings.Lines(l.text.String()) {
		for _, word := range words {
			if !strings.Contains(line, word) {
				continue next
			}
		}
		found = append(found, line)
	}
	return found
}

// Each mistake with the files is told in one line that names the file and what
// is wrong with it.
func TestLoadRefuses(t *testing.T) {
	ca, other := tlstest.NewCA(t, "ca"), tlstest.NewCA(t, "other")
	good := ca.Node(t, host)
	for name, test := range map[string]struct {
		spoil func(t *testing.T, f tlstest.Files)
		want  []string
	}{
		"no CA file":    {func(t *testing.T, f tlstest.Files) { remove(t, f.CA) }, []string{"--tls-ca", "ca.crt", "no such file"}},
		"no cert file":  {func(t *testing.T, f tlstest.Files) { remove(t, f.Cert) }, []string{"--tls-cert", "node.crt", "no such file"}},
		"no key file":   {func(t *testing.T, f tlstest.Files) { remove(t, f.Key) }, []string{"--tls-key", "node.key", "no such file"}},
		"a directory":   {func(t *testing.T, f tlstest.Files) { remove(t, f.CA); mkdir(t, f.CA) }, []string{"--tls-ca", "no regular file"}},
		"nonsense CA":   {func(t *testing.T, f tlstest.Files) { write(t, f.CA, []byte("nonsense")) }, []string{"--tls-ca", "no certificate in PEM"}},
		"empty CA":      {func(t *testing.T, f tlstest.Files) { write(t, f.CA, nil) }, []string{"--tls-ca", "no certificate in PEM"}},
		"nonsense cert": {func(t *testing.T, f tlstest.Files) { write(t, f.Cert, []byte("nonsense")) }, []string{"--tls-cert", "no certificate in PEM"}},
		"nonsense key":  {func(t *testing.T, f tlstest.Files) { write(t, f.Key, []byte("nonsense")) }, []string{"--tls-key", "no private key in PEM"}},
		"huge":          {func(t *testing.T, f tlstest.Files) { write(t, f.CA, make([]byte, fileBytesMax+1)) }, []string{"--tls-ca", "right file"}},
		"cut off":       {func(t *testing.T, f tlstest.Files) { write(t, f.CA, ca.PEM[:len(ca.PEM)-40]) }, []string{"--tls-ca", "cut off"}},
		"second of a bundle damaged": {func(t *testing.T, f tlstest.Files) {
			write(t, f.CA, append(bytes.Clone(ca.PEM), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")})...))
		}, []string{"--tls-ca", "certificate 2", "damaged"}},
		"DER": {func(t *testing.T, f tlstest.Files) {
			block, _ := pem.Decode(good.Cert)
			write(t, f.Cert, block.Bytes)
		}, []string{"--tls-cert", "DER"}},
		"swapped":         {func(t *testing.T, f tlstest.Files) { write(t, f.Cert, good.Key); write(t, f.Key, good.Cert) }, []string{"--tls-cert", "swapped"}},
		"cert as key":     {func(t *testing.T, f tlstest.Files) { write(t, f.Key, good.Cert) }, []string{"--tls-key", "swapped"}},
		"damaged key":     {func(t *testing.T, f tlstest.Files) { write(t, f.Key, badKey(nil)) }, []string{"--tls-key", "node.key", "parse"}},
		"old passphrase":  {func(t *testing.T, f tlstest.Files) { write(t, f.Key, badKey(map[string]string{"DEK-Info": "x"})) }, []string{"--tls-key", "passphrase"}},
		"new passphrase":  {func(t *testing.T, f tlstest.Files) { write(t, f.Key, encryptedKey()) }, []string{"--tls-key", "passphrase"}},
		"another's key":   {func(t *testing.T, f tlstest.Files) { write(t, f.Key, ca.Node(t, host).Key) }, []string{"--tls-key", "does not belong to", "node.crt"}},
		"of another CA":   {func(t *testing.T, f tlstest.Files) { f.Write(t, other.Node(t, host), ca) }, []string{"node.crt is not signed by a CA of --tls-ca", "ca.crt"}},
		"of no server":    {func(t *testing.T, f tlstest.Files) { f.Write(t, ca.Client(t), ca) }, []string{"--tls-cert", "serverAuth, clientAuth"}},
		"for no host":     {func(t *testing.T, f tlstest.Files) { f.Write(t, ca.Node(t), ca) }, []string{"names no host, not 127.0.0.1", "subjectAltName", "--advertise"}},
		"for other hosts": {func(t *testing.T, f tlstest.Files) { f.Write(t, ca.Node(t, "n1.example", "10.1.2.3"), ca) }, []string{"names n1.example 10.1.2.3, not 127.0.0.1"}},
		"expired":         {func(t *testing.T, f tlstest.Files) { f.Write(t, node(t, ca, tlstest.Expired), ca) }, []string{"--tls-cert", "expired at"}},
		"not yet valid":   {func(t *testing.T, f tlstest.Files) { f.Write(t, node(t, ca, tlstest.NotYetValid), ca) }, []string{"--tls-cert", "not valid before", "clock"}},
		"expired CA": {func(t *testing.T, f tlstest.Files) {
			old := tlstest.NewExpiredCA(t, "old")
			f.Write(t, old.Node(t, host), old)
		}, []string{"not signed by a CA of --tls-ca", "expired"}},
	} {
		t.Run(name, func(t *testing.T) {
			paths := tlstest.FilesIn(t.TempDir())
			paths.Write(t, good, ca)
			if _, err := Load(Options{Paths: Paths(paths), Host: host}); err != nil {
				t.Fatalf("before anything was spoilt: %v", err)
			}
			test.spoil(t, paths)
			_, err := Load(Options{Paths: Paths(paths), Host: host})
			if err == nil {
				t.Fatal("the files were taken")
			}
			for _, word := range test.want {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("%q lacks %q", err, word)
				}
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("%q is more than a line", err)
			}
		})
	}
}

// A part of the three files is refused, and so is a wildcard as a host.
func TestLoadRefusesOptions(t *testing.T) {
	paths := tlstest.FilesIn(t.TempDir())
	ca := tlstest.NewCA(t, "ca")
	paths.Write(t, ca.Node(t, "n1.example", "::"), ca)
	for _, test := range []struct {
		paths Paths
		host  string
		want  string
	}{
		{Paths{}, host, "no TLS files"},
		{Paths{CA: paths.CA}, host, "all three"},
		{Paths{CA: paths.CA, Cert: paths.Cert}, host, "all three"},
		{Paths{Cert: paths.Cert, Key: paths.Key}, host, "all three"},
		{Paths(paths), "::", "--advertise"},
		{Paths(paths), "0.0.0.0", "--advertise"},
	} {
		if _, err := Load(Options{Paths: test.paths, Host: test.host}); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%+v for %q: %v, want a word about %q", test.paths, test.host, err, test.want)
		}
	}
	if _, err := Load(Options{Paths: Paths(paths), Host: "n1.example"}); err != nil {
		t.Error(err)
	}
}

// A client's certificate need not name a host nor be good for servers, and an
// intermediate may stand behind the certificate.
func TestLoadForAClient(t *testing.T) {
	paths := tlstest.FilesIn(t.TempDir())
	ca := tlstest.NewCA(t, "ca")
	paths.Write(t, ca.Client(t), ca)
	if _, err := Load(Options{Paths: Paths(paths)}); err != nil {
		t.Error(err)
	}
	paths.Write(t, ca.Issue(t, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), ca)
	if _, err := Load(Options{Paths: Paths(paths)}); err == nil || !strings.Contains(err.Error(), "clientAuth") {
		t.Errorf("a certificate for servers only: %v", err)
	}
	middle := ca.Intermediate(t, "middle")
	pair := middle.Client(t)
	paths.Write(t, pair, ca)
	if _, err := Load(Options{Paths: Paths(paths)}); err == nil || !strings.Contains(err.Error(), "not signed by a CA") {
		t.Errorf("an intermediate that is nowhere: %v", err)
	}
	pair.Cert = append(pair.Cert, middle.PEM...)
	paths.Write(t, pair, ca)
	if _, err := Load(Options{Paths: Paths(paths)}); err != nil {
		t.Errorf("with the intermediate behind the certificate: %v", err)
	}
}

func node(t *testing.T, ca *tlstest.CA, change func(*x509.Certificate)) tlstest.Pair {
	return ca.Issue(t, func(c *x509.Certificate) {
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
		c.IPAddresses = []net.IP{net.ParseIP(host)}
		change(c)
	})
}

func write(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func mkdir(t *testing.T, path string) {
	t.Helper()
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
}

func badKey(headers map[string]string) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Headers: headers, Bytes: []byte("x")})
}

func encryptedKey() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte("x")})
}

// Files that change are in use from the next look on, whole.
func TestChangedFilesAreTaken(t *testing.T) {
	w := newWorld(t)
	newCA := tlstest.NewCA(t, "new")
	next := newCA.Node(t, host)
	w.paths.Write(t, next, newCA)
	if w.serial().Cmp(next.Serial(t)) == 0 {
		t.Error("taken before lookInterval had passed: the looks are not bounded")
	}
	w.advance(lookInterval)
	if w.serial().Cmp(next.Serial(t)) != 0 {
		t.Error("not taken at the next look")
	}
	if lines := w.log.lines("TLS files taken"); len(lines) != 1 {
		t.Errorf("logged %q", lines)
	}
	// A link that is turned to other files, as a secret mounted into a container
	// is, and a file in the place of one of the same size and time.
	w.advance(lookInterval)
	info, err := os.Stat(w.paths.Cert)
	if err != nil {
		t.Fatal(err)
	}
	turned := newCA.Node(t, host)
	for path, content := range map[string][]byte{w.paths.Cert: turned.Cert, w.paths.Key: turned.Key} {
		target := filepath.Join(t.TempDir(), "file")
		write(t, target, content)
		if err := os.Chtimes(target, info.ModTime(), info.ModTime()); err != nil {
			t.Fatal(err)
		}
		remove(t, path)
		if err := os.Symlink(target, path); err != nil {
			t.Fatal(err)
		}
	}
	if w.serial().Cmp(turned.Serial(t)) != 0 {
		t.Error("the links were turned, and what they show is not taken")
	}
}

// A clock that is set back stops nothing.
func TestClockSetBack(t *testing.T) {
	w := newWorld(t)
	next := w.ca.Node(t, host)
	w.paths.Write(t, next, w.ca)
	w.advance(-30 * time.Minute)
	if w.serial().Cmp(next.Serial(t)) != 0 {
		t.Error("not looked at after the clock was set back")
	}
}

// While nothing changes the files are not read.
func TestUnchangedFilesAreNotRead(t *testing.T) {
	w := newWorld(t)
	before := w.latest()
	for range 10 {
		w.advance(lookInterval)
		if w.latest() != before {
			t.Fatal("the files were read again")
		}
	}
	// Files written anew with the same content are no news.
	for _, path := range []string{w.paths.CA, w.paths.Cert, w.paths.Key} {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		tlstest.Replace(t, path, content)
	}
	w.advance(lookInterval)
	w.latest()
	if lines := w.log.lines("TLS files"); len(lines) != 0 {
		t.Errorf("logged %q", lines)
	}
}

// While one looks, which may take as long as a disk takes, others go on with
// what there is.
func TestNobodyWaitsForALook(t *testing.T) {
	w := newWorld(t)
	before := w.latest()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.advance(time.Hour)
	if w.latest() != before {
		t.Error("another set, though nobody could look")
	}
}

// Broken files keep those before them in use, which is logged once; mended ones
// are taken.
func TestBrokenFilesKeepTheOld(t *testing.T) {
	w := newWorld(t)
	old := w.serial()
	next := w.ca.Node(t, host)
	broken := []struct {
		what  string
		write func()
	}{
		{"node.crt", func() { tlstest.Replace(t, w.paths.Cert, []byte("nonsense")) }},
		{"does not belong", func() { tlstest.Replace(t, w.paths.Cert, next.Cert) }},
		{"no such file", func() { remove(t, w.paths.Cert) }},
		{"names n9.example", func() { w.paths.Write(t, w.ca.Node(t, "n9.example"), w.ca) }},
		{"expired", func() { w.paths.Write(t, node(t, w.ca, tlstest.Expired), w.ca) }},
		{"not signed", func() { w.paths.Write(t, next, tlstest.NewCA(t, "other")) }},
	}
	for i, b := range broken {
		b.write()
		for range 5 {
			w.advance(lookInterval)
			if w.serial().Cmp(old) != 0 {
				t.Fatalf("%s: the old certificate is not in use any more", b.what)
			}
		}
		if lines := w.log.lines("not taken"); len(lines) != i+1 || !strings.Contains(lines[i], b.what) {
			t.Fatalf("%s: logged %q, want one line more, about it", b.what, lines)
		}
	}
	w.paths.Write(t, next, w.ca)
	w.advance(lookInterval)
	if w.serial().Cmp(next.Serial(t)) != 0 {
		t.Error("mended files are not taken")
	}
	if lines := w.log.lines("TLS files taken"); len(lines) != 1 {
		t.Errorf("logged %q", lines)
	}
}

// A certificate of the future is taken when its time has come, though the file
// does not change again.
func TestCertificateOfTheFuture(t *testing.T) {
	w := newWorld(t)
	next := node(t, w.ca, tlstest.NotYetValid)
	w.paths.Write(t, next, w.ca)
	w.advance(lookInterval)
	if w.serial().Cmp(next.Serial(t)) == 0 {
		t.Fatal("taken before its time")
	}
	w.advance(2 * time.Minute)
	if w.serial().Cmp(next.Serial(t)) != 0 {
		t.Error("not taken in its time")
	}
}

// The end of a certificate's life is announced, once for each stage.
func TestExpiryIsAnnounced(t *testing.T) {
	w := newWorld(t)
	if left := w.Expires().Sub(w.time()); left <= 0 || left > tlstest.Life {
		t.Errorf("%s of life left, of %s", left, tlstest.Life)
	}
	turn := func() {
		for range 3 {
			w.warn(w.latest())
		}
	}
	turn()
	if lines := w.log.lines("expire"); len(lines) != 0 {
		t.Errorf("with half its life to go: %q", lines)
	}
	w.advance(tlstest.Life - 5*time.Minute)
	turn()
	if lines := w.log.lines("expires soon"); len(lines) != 1 {
		t.Errorf("five minutes before the end: %q", lines)
	}
	w.advance(10 * time.Minute)
	turn()
	if lines := w.log.lines("has expired"); len(lines) != 1 {
		t.Errorf("after the end: %q", lines)
	}
}

// Watch looks by itself and ends with its context.
func TestWatchLooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.now = time.Now // the bubble's
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go w.Watch(ctx)
		synctest.Wait()
		next := w.ca.Node(t, host)
		w.paths.Write(t, next, w.ca)
		time.Sleep(watchInterval)
		synctest.Wait()
		if w.current.Load().leaf.SerialNumber.Cmp(next.Serial(t)) != 0 {
			t.Error("Watch has not looked")
		}
	})
}

// Failures are logged a line each failuresInterval, with how many there were.
func TestFailuresAreLoggedSparingly(t *testing.T) {
	w := newWorld(t)
	for range 100 {
		w.callers.note("refused", "addr", fmt.Errorf("flood"))
	}
	w.advance(failuresInterval)
	w.callers.note("refused", "addr", fmt.Errorf("flood"))
	lines := w.log.lines("flood")
	if len(lines) != 2 || !strings.Contains(lines[1], "not_logged_before=99") {
		t.Errorf("logged %q", lines)
	}
}

func TestServerConfigIsTLS13Only(t *testing.T) {
	w := newWorld(t)
	for _, who := range []ClientCertificates{Anybody, Certified} {
		config := w.ServerConfig(who)
		inner, err := config.GetConfigForClient(nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []*tls.Config{config, inner} {
			if c.MinVersion != tls.VersionTLS13 || !c.SessionTicketsDisabled {
				t.Errorf("%v: version %x, tickets disabled %v", who, c.MinVersion, c.SessionTicketsDisabled)
			}
		}
	}
}
