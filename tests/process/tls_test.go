//go:build process

package process

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/flotilla-kv/flotilla/internal/tlstest"
)

// tlsCluster is three processes that speak TLS, and the certificate that
// callers show.
type tlsCluster struct {
	t     *testing.T
	dir   string
	key   string // file of the gossip key
	ports []int
	files []tlstest.Files // of each node
	nodes []*process

	callers *x509.CertPool // whom callers trust
	caller  atomic.Pointer[tls.Certificate]
}

func newTLSCluster(t *testing.T, ca *tlstest.CA) *tlsCluster {
	t.Helper()
	c := &tlsCluster{t: t, dir: t.TempDir(), ports: freePorts(t, 3), nodes: make([]*process, 3), callers: ca.Pool()}
	var secret [16]byte
	rand.Read(secret[:])
	c.key = filepath.Join(c.dir, "gossip.key")
	if err := os.WriteFile(c.key, []byte(hex.EncodeToString(secret[:])), 0o600); err != nil {
		t.Fatal(err)
	}
	c.show(ca.Client(t))
	for i := range c.nodes {
		c.files = append(c.files, tlstest.FilesIn(t.TempDir()))
		c.files[i].Write(t, ca.Node(t, "127.0.0.1"), ca)
	}
	return c
}

func (c *tlsCluster) at(i, offset int) string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(c.ports[i]+offset))
}

func (c *tlsCluster) start(i int) {
	c.t.Helper()
	name := fmt.Sprintf("n%d", i+1)
	args := []string{"start", "--name", name, "--data-dir", filepath.Join(c.dir, name), "--listen", c.at(i, 0), "--gossip-key-file", c.key}
	for j := range c.nodes {
		if j != i {
			args = append(args, "--join", c.at(j, 1))
		}
	}
	c.nodes[i] = launch(c.t, name, append(args, flags(c.files[i])...)...)
}

// flags name files on a command line.
func flags(f tlstest.Files) []string {
	return []string{"--tls-ca", f.CA, "--tls-cert", f.Cert, "--tls-key", f.Key}
}

// show makes pair what callers show from now on.
func (c *tlsCluster) show(pair tlstest.Pair) {
	certificate := pair.TLS(c.t)
	c.caller.Store(&certificate)
}

func (c *tlsCluster) callerConfig() *tls.Config {
	return &tls.Config{
		RootCAs:    c.callers,
		ServerName: "127.0.0.1",
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return c.caller.Load(), nil
		},
	}
}

func (c *tlsCluster) redis(i int) *redis.Client {
	client := redis.NewClient(&redis.Options{Addr: c.at(i, 2), MaxRetries: -1, ReadTimeout: 15 * time.Second, TLSConfig: c.callerConfig()})
	c.t.Cleanup(func() { client.Close() })
	return client
}

// rotate gives every node another certificate, signed by signer, and other CAs
// to trust, and waits until each shows it at each of its doors.
func (c *tlsCluster) rotate(signer *tlstest.CA, trusted ...*tlstest.CA) {
	c.t.Helper()
	for i := range c.nodes {
		pair := signer.Node(c.t, "127.0.0.1")
		c.files[i].Write(c.t, pair, trusted...)
		for _, door := range []int{0, 2, 3} {
			eventually(c.t, 15*time.Second, func() error { return c.shows(c.at(i, door), pair.Serial(c.t)) })
		}
	}
}

// shows reports whether the certificate shown at addr has this number.
func (c *tlsCluster) shows(addr string, serial *big.Int) error {
	conn, err := tls.Dial("tcp", addr, c.callerConfig())
	if err != nil {
		return err
	}
	defer conn.Close()
	if shown := conn.ConnectionState().PeerCertificates[0].SerialNumber; shown.Cmp(serial) != 0 {
		return fmt.Errorf("%s shows certificate %x, not %x yet", addr, shown, serial)
	}
	return nil
}

// TestTLS brings up three processes over TLS and uses them as users do; then,
// under load, all certificates and the CA are replaced with no restart, and a
// node that is restarted after that is let in by the others. No request fails.
func TestTLS(t *testing.T) {
	old, next := tlstest.NewCA(t, "old"), tlstest.NewCA(t, "next")
	c := newTLSCluster(t, old)
	c.callers.AppendCertsFromPEM(next.PEM)
	for i := range c.nodes {
		c.start(i)
	}
	for _, n := range c.nodes {
		n.waitLine("flotilla: waiting for init", 20*time.Second)
	}
	operator := tlstest.FilesIn(t.TempDir())
	operator.Write(t, old.Client(t), old)
	all := strings.Join([]string{c.at(0, 0), c.at(1, 0), c.at(2, 0)}, ",")
	command := func(args ...string) []string {
		return slices.Concat(args, []string{"--server", all}, flags(operator))
	}
	must := func(args ...string) string {
		t.Helper()
		stdout, stderr, code := flotilla(t, command(args...)...)
		if code != 0 {
			t.Fatalf("%v: exit %d: %s", args, code, stderr)
		}
		return stdout
	}
	must("init", "--shards", "64")
	for _, n := range c.nodes {
		n.waitLine("flotilla: ready", 40*time.Second)
	}

	must("put", "k", "v")
	if got := must("get", "k"); got != "v" {
		t.Errorf("get: %q", got)
	}
	if got := must("status"); strings.Count(got, "127.0.0.1") < 9 {
		t.Errorf("status shows no three nodes with their addresses:\n%s", got)
	}
	must("bench", "--duration", "300ms", "--keys", "100", "--clients", "8")
	must("check", "--duration", "300ms", "--clients", "4")
	c.tryRedisCLI(operator, old)
	c.tryWithoutTLS()

	client := c.redis(0)
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	wait := load(ctx, client, counters(8))
	waitCounter(t, client, "counter-0", 50)
	c.rotate(old, old, next)
	c.show(next.Client(t))
	c.rotate(next, old, next)
	c.rotate(next, next)
	c.nodes[2].terminate(30 * time.Second)
	c.start(2)
	c.nodes[2].waitLine("flotilla: ready", 40*time.Second)
	reached, err := client.Get(t.Context(), "counter-0").Int()
	if err != nil {
		t.Fatal(err)
	}
	waitCounter(t, client, "counter-0", reached+50)
	stop()
	gap, total := judge(t, client, wait())
	t.Logf("%d increments while all certificates were replaced and a node restarted, longest gap %s", total, gap)

	wantFailure(t, command("get", "k", "--timeout", "1s"), "no CA in --tls-ca signed the node's certificate")
	operator.Write(t, old.Client(t), old, next)
	wantFailure(t, command("status"), "does not trust the CA of the certificate of --tls-cert")
	operator.Write(t, next.Client(t), next)
	if got := must("get", "k"); got != "v" {
		t.Errorf("get with the new CA: %q", got)
	}

	// A file that is broken changes nothing but the log.
	tlstest.Replace(t, c.files[0].Cert, []byte("nonsense"))
	c.nodes[0].waitLine("the TLS files have changed and are not taken", 20*time.Second)
	if got := must("get", "k"); got != "v" {
		t.Errorf("get past a broken file: %q", got)
	}
	c.nodes[1].terminate(30 * time.Second)
	c.start(1)
	c.nodes[1].waitLine("flotilla: ready", 40*time.Second)
}

// tryRedisCLI uses the Redis door as the manual says.
func (c *tlsCluster) tryRedisCLI(caller tlstest.Files, ca *tlstest.CA) {
	c.t.Helper()
	if _, err := exec.LookPath("redis-cli"); err != nil {
		c.t.Log("SKIPPED redis-cli: not installed")
		return
	}
	run := func(args ...string) string {
		ctx, cancel := context.WithTimeout(c.t.Context(), 20*time.Second)
		defer cancel()
		out, _ := exec.CommandContext(ctx, "redis-cli", append([]string{"-p", strconv.Itoa(c.ports[1] + 2)}, args...)...).CombinedOutput()
		return strings.TrimSpace(string(out))
	}
	withCert := []string{"--tls", "--cacert", caller.CA, "--cert", caller.Cert, "--key", caller.Key}
	if got := run(append(withCert, "SET", "from-redis-cli", "1")...); got != "OK" {
		c.t.Errorf("redis-cli --tls: %q", got)
	}
	if got := run(append(withCert, "GET", "k")...); got != "v" {
		c.t.Errorf("redis-cli --tls: %q", got)
	}
	if got := run("--tls", "--cacert", caller.CA, "GET", "k"); got == "v" {
		c.t.Error("redis-cli is let in without a certificate, and there is no password")
	}
	if got := run("GET", "k"); !strings.Contains(got, "this port speaks TLS") {
		c.t.Errorf("redis-cli without TLS: %q", got)
	}
}

// tryWithoutTLS calls every door in plain text.
func (c *tlsCluster) tryWithoutTLS() {
	c.t.Helper()
	for _, args := range [][]string{{"status"}, {"get", "k", "--timeout", "1s"}} {
		wantFailure(c.t, append(args, "--server", c.at(0, 0)), "not without TLS", "--tls-ca")
	}
	response, err := http.Get("http://" + c.at(0, 3) + "/metrics")
	if err != nil {
		c.t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusBadRequest {
		c.t.Errorf("/metrics without TLS: %s", response.Status)
	}
	browser := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: c.callers}}}
	defer browser.CloseIdleConnections()
	response, err = browser.Get("https://" + c.at(0, 3) + "/readyz")
	if err != nil {
		c.t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusOK {
		c.t.Errorf("/readyz over TLS: %s", response.Status)
	}
}

// TestTLSRefusals: what a node must not start with.
func TestTLSRefusals(t *testing.T) {
	ca, other := tlstest.NewCA(t, "ca"), tlstest.NewCA(t, "other")
	free := freePorts(t, 1)[0]
	for name, test := range map[string]struct {
		pair   tlstest.Pair
		listen string
		more   []string
		want   []string
	}{
		"of another CA":   {other.Node(t, "127.0.0.1"), "127.0.0.1", nil, []string{"is not signed by a CA of --tls-ca"}},
		"for no server":   {ca.Client(t), "127.0.0.1", nil, []string{"serverAuth, clientAuth"}},
		"for another":     {ca.Node(t, "n9.example"), "127.0.0.1", nil, []string{"names n9.example, not 127.0.0.1", "--advertise"}},
		"every address":   {ca.Node(t, "127.0.0.1"), "0.0.0.0", []string{"--insecure"}, []string{"--advertise HOST"}},
		"no gossip key":   {ca.Node(t, "127.0.0.1"), "0.0.0.0", []string{"--advertise", "127.0.0.1"}, []string{"--gossip-key-file", "--insecure"}},
		"advertised name": {ca.Node(t, "127.0.0.1"), "127.0.0.1", []string{"--advertise", "n1.example"}, []string{"names 127.0.0.1, not n1.example"}},
	} {
		t.Run(name, func(t *testing.T) {
			files := tlstest.FilesIn(t.TempDir())
			files.Write(t, test.pair, ca)
			args := []string{"start", "--name", "x", "--data-dir", filepath.Join(t.TempDir(), "x"), "--listen", net.JoinHostPort(test.listen, strconv.Itoa(free))}
			wantFailure(t, slices.Concat(args, flags(files), test.more), test.want...)
		})
	}
	// Beyond loopback, with TLS and a gossip key, no --insecure is needed.
	c := newTLSCluster(t, ca)
	p := launch(t, "x", slices.Concat([]string{"start", "--name", "x", "--data-dir", filepath.Join(c.dir, "x"), "--listen", net.JoinHostPort("0.0.0.0", strconv.Itoa(free)),
		"--advertise", "127.0.0.1", "--gossip-key-file", c.key}, flags(c.files[0]))...)
	p.waitLine("flotilla: waiting for init", 20*time.Second)
	if strings.Contains(p.tail(100), "WARN") {
		t.Errorf("a warning, though all ports are protected:\n%s", p.tail(100))
	}
	p.terminate(20 * time.Second)
}
