package main

import (
	"bytes"
	"crypto/tls"
	"log/slog"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/flotilla-kv/flotilla/internal/tlsfiles"
	"github.com/flotilla-kv/flotilla/internal/tlstest"
	"github.com/flotilla-kv/flotilla/node"
)

func TestExposure(t *testing.T) {
	some := tlsfiles.Paths{CA: "a", Cert: "b", Key: "c"}
	key := make([]byte, 32)
	const here, all = "127.0.0.1:7000", "0.0.0.0:7000"
	for name, test := range map[string]struct {
		o        node.Options
		refused  string // a word of the refusal
		warnings int    // with --insecure
	}{
		"loopback":            {o: node.Options{Listen: here, GossipListen: "[::1]:1", RespListen: "localhost:2", HTTPListen: "127.1.2.3:4"}},
		"all beyond":          {node.Options{Listen: all, GossipListen: all, RespListen: all, HTTPListen: all}, "--tls-ca", 4},
		"every address":       {node.Options{Listen: ":7000", GossipListen: here, RespListen: here, HTTPListen: here}, "--tls-ca", 1},
		"gRPC":                {node.Options{Listen: all, GossipListen: here, RespListen: here, HTTPListen: here}, "--tls-ca", 1},
		"RESP":                {node.Options{Listen: here, GossipListen: here, RespListen: "10.0.0.1:1", HTTPListen: here}, "10.0.0.1:1", 1},
		"HTTP":                {node.Options{Listen: here, GossipListen: here, RespListen: here, HTTPListen: "n1.example:1"}, "n1.example:1", 1},
		"key without TLS":     {node.Options{Listen: all, GossipListen: all, RespListen: all, HTTPListen: all, GossipKey: key}, "--tls-ca", 3},
		"TLS without key":     {node.Options{Listen: all, GossipListen: all, RespListen: all, HTTPListen: all, TLS: some}, "--gossip-key-file", 1},
		"TLS, gossip at home": {o: node.Options{Listen: all, GossipListen: here, RespListen: all, HTTPListen: all, TLS: some}},
		"TLS and key":         {o: node.Options{Listen: all, GossipListen: all, RespListen: all, HTTPListen: all, TLS: some, GossipKey: key}},
	} {
		var log bytes.Buffer
		test.o.Logger = slog.New(slog.NewTextHandler(&log, nil))
		err := checkExposure(&test.o, false)
		switch {
		case test.refused == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case test.refused != "" && (err == nil || !strings.Contains(err.Error(), test.refused) || !strings.Contains(err.Error(), "--insecure")):
			t.Errorf("%s: %v, want a refusal that speaks of %s and --insecure", name, err, test.refused)
		}
		log.Reset()
		if err := checkExposure(&test.o, true); err != nil {
			t.Errorf("%s, with --insecure: %v", name, err)
		}
		if warnings := strings.Count(log.String(), "level=WARN"); warnings != test.warnings {
			t.Errorf("%s, with --insecure: %d warnings, want %d:\n%s", name, warnings, test.warnings, &log)
		}
	}
}

// tlsArgs are the flags for files.
func tlsArgs(files tlstest.Files) []string {
	return []string{"--tls-ca", files.CA, "--tls-cert", files.Cert, "--tls-key", files.Key}
}

func TestTLSFlags(t *testing.T) {
	ca := tlstest.NewCA(t, "ca")
	files := tlstest.FilesIn(t.TempDir())
	files.Write(t, ca.Client(t), ca)
	start := []string{"start", "--name", "n", "--data-dir", t.TempDir(), "--listen", "127.0.0.1:0"}
	for name, test := range map[string]struct {
		args []string
		code int
		want string
	}{
		"only a CA":            {[]string{"status", "--tls-ca", files.CA}, exitUsage, "all three"},
		"no key":               {[]string{"get", "k", "--tls-ca", files.CA, "--tls-cert", files.Cert}, exitUsage, "all three"},
		"only a CA, bench":     {[]string{"bench", "--tls-ca", files.CA}, exitUsage, "all three"},
		"only a CA, check":     {[]string{"check", "--tls-ca", files.CA}, exitUsage, "all three"},
		"only a CA, start":     {append(start, "--tls-ca", files.CA), exitUsage, "all three"},
		"no such file":         {[]string{"status", "--tls-ca", "none", "--tls-cert", files.Cert, "--tls-key", files.Key}, exitFailed, "--tls-ca none: no such file"},
		"a client's for start": {append(start, tlsArgs(files)...), exitFailed, "serverAuth"},
		"dev":                  {append([]string{"dev"}, tlsArgs(files)...), exitUsage, "flotilla start"},
	} {
		code, out, notes := tool(t, test.args...)
		if code != test.code || out != "" || strings.Count(notes, "\n") != 1 || !strings.Contains(notes, test.want) {
			t.Errorf("%s: exit %d, %q, %q; want %d and a line about %q", name, code, out, notes, test.code, test.want)
		}
	}
}

// What a user gets wrong about TLS is told in a line that says what to do, by
// the commands that ask one question and by those that keep a client.
func TestTLSMistakes(t *testing.T) {
	ca, other := tlstest.NewCA(t, "ca"), tlstest.NewCA(t, "other")
	stub := func(pair tlstest.Pair, trusted *tlstest.CA) string {
		return newKVStub(t, grpc.Creds(credentials.NewTLS(&tls.Config{
			Certificates: []tls.Certificate{pair.TLS(t)},
			ClientAuth:   tls.RequireAndVerifyClientCert,
			ClientCAs:    trusted.Pool(),
		}))).addr
	}
	files := func(pair tlstest.Pair, trusted ...*tlstest.CA) []string {
		f := tlstest.FilesIn(t.TempDir())
		f.Write(t, pair, trusted...)
		return tlsArgs(f)
	}
	good := files(ca.Client(t), ca)
	server := stub(ca.Node(t, "127.0.0.1"), ca)
	for name, test := range map[string]struct {
		server string
		flags  []string
		want   string
	}{
		"the node has TLS, we do not":   {server, nil, "not without TLS: give --tls-ca, --tls-cert and --tls-key"},
		"we have TLS, the node has not": {newKVStub(t).addr, good, "not with TLS: if it has none, leave out --tls-ca"},
		"its CA is not ours":            {stub(other.Node(t, "127.0.0.1"), ca), good, "no CA in --tls-ca signed the node's certificate"},
		"our CA is not its":             {server, files(other.Client(t), ca, other), "does not trust the CA of the certificate of --tls-cert"},
		"it has another name":           {stub(ca.Node(t, "n1.example"), ca), good, "does not name the host of --server"},
		"it has no name":                {stub(ca.Node(t), ca), good, "does not name the host of --server"},
		"it has expired":                {stub(ca.Issue(t, tlstest.Expired), ca), good, "not valid now"},
		"ours has expired":              {server, files(ca.Issue(t, tlstest.Expired), ca), "expired at"},
	} {
		for _, command := range [][]string{{"config", "show"}, {"get", "k", "--timeout", "300ms"}} {
			args := append(append(command, "--server", test.server), test.flags...)
			code, out, notes := tool(t, args...)
			if code != exitFailed || out != "" || strings.Count(notes, "\n") != 1 || !strings.Contains(notes, test.want) {
				t.Errorf("%s, %s: exit %d, %q, %q; want a line about %q", name, command[0], code, out, notes, test.want)
			}
		}
	}
	for _, command := range [][]string{{"put", "k", "v"}, {"get", "k"}} {
		args := append(append(command, "--server", server), good...)
		if code, _, notes := tool(t, args...); code != exitOK {
			t.Errorf("%v with all in order: exit %d, %s", command, code, notes)
		}
	}
	// The same from the environment.
	for i, name := range []string{"FLOTILLA_TLS_CA", "FLOTILLA_TLS_CERT", "FLOTILLA_TLS_KEY"} {
		t.Setenv(name, good[2*i+1])
	}
	if code, out, notes := tool(t, "get", "k", "--server", server); code != exitOK || out != "v" {
		t.Errorf("from the environment: exit %d, %q, %s", code, out, notes)
	}
}
