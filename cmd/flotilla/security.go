package main

import (
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/spf13/pflag"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/flotilla-kv/flotilla/client"
	"github.com/flotilla-kv/flotilla/internal/tlsfiles"
	"github.com/flotilla-kv/flotilla/node"
)

// tlsFlags are those that every command has, with the environment variables
// that they default to.
var tlsFlags = [3]struct{ name, env, usage string }{
	{"tls-ca", "FLOTILLA_TLS_CA", "PEM `FILE` of the CAs to trust (or FLOTILLA_TLS_CA); with it go --tls-cert and --tls-key"},
	{"tls-cert", "FLOTILLA_TLS_CERT", "PEM `FILE` of the certificate to show, signed by such a CA (or FLOTILLA_TLS_CERT)"},
	{"tls-key", "FLOTILLA_TLS_KEY", "PEM `FILE` of its private key (or FLOTILLA_TLS_KEY)"},
}

// addTLSFlags adds them.
func addTLSFlags(flags *pflag.FlagSet, paths *tlsfiles.Paths) {
	for i, to := range []*string{&paths.CA, &paths.Cert, &paths.Key} {
		flags.StringVar(to, tlsFlags[i].name, os.Getenv(tlsFlags[i].env), tlsFlags[i].usage)
	}
}

// refuseTLSFlags is for a command that has no use for them: whoever gives them
// must not believe that they are heeded.
func refuseTLSFlags(flags *pflag.FlagSet) error {
	for _, f := range tlsFlags {
		if flags.Changed(f.name) {
			return usagef("--%s: flotilla dev runs on loopback without TLS; flotilla start has it", f.name)
		}
	}
	return nil
}

// credentials are what the commands talk to nodes with.
func (g *globals) credentials() (credentials.TransportCredentials, error) {
	if err := g.tls.Check(); err != nil {
		return nil, usageError{err}
	}
	if !g.tls.Given() {
		return insecure.NewCredentials(), nil
	}
	files, err := tlsfiles.Load(tlsfiles.Options{Paths: g.tls})
	if err != nil {
		return nil, err
	}
	return files.Credentials(), nil
}

// newClient makes a client of the nodes of --server.
func (g *globals) newClient(options client.Options) (*client.Client, error) {
	var err error
	if options.Servers, err = g.servers(); err != nil {
		return nil, err
	}
	if options.Credentials, err = g.credentials(); err != nil {
		return nil, err
	}
	return client.New(options)
}

// tlsAdvice says what to do about an error of a connection for which TLS, or
// the want of it, is the reason; "" for any other. The errors come as text
// only, from a library or from the other end.
func tlsAdvice(message string, withTLS bool) string {
	has := func(parts ...string) bool {
		for _, part := range parts {
			if strings.Contains(message, part) {
				return true
			}
		}
		return false
	}
	switch {
	case !withTLS && has("server preface", "client preface"):
		return "the node answers, but not without TLS: give --tls-ca, --tls-cert and --tls-key"
	case !withTLS:
		return ""
	case has("first record does not look like a TLS handshake", "authentication handshake failed: EOF", "authentication handshake failed: read"):
		return "the node answers, but not with TLS: if it has none, leave out --tls-ca, --tls-cert and --tls-key (and FLOTILLA_TLS_...)"
	case has("signed by unknown authority"):
		return "no CA in --tls-ca signed the node's certificate"
	case has("x509: certificate is valid for", "x509: cannot validate certificate for", "x509: certificate is not valid for any names"):
		return "the node's certificate does not name the host of --server: use one of its names"
	case has("x509: certificate has expired"):
		return "the node's certificate is not valid now: renew it, or set the clock"
	case has("remote error: tls: expired certificate"):
		return "the node finds the certificate of --tls-cert expired: renew it"
	case has("remote error: tls: unknown certificate authority", "remote error: tls: bad certificate"):
		return "the node does not trust the CA of the certificate of --tls-cert"
	case has("remote error: tls: protocol version not supported"):
		return "the node speaks TLS 1.3 only"
	case has("broken pipe", "connection reset by peer", "error reading server preface"):
		return "the node hangs up after the handshake, most likely because it does not take the certificate of --tls-cert: its log says why"
	}
	return ""
}

// checkExposure refuses to listen beyond loopback at a port that nothing
// protects, unless told to: TLS protects gRPC, RESP and HTTP, its key gossip.
func checkExposure(o *node.Options, insecure bool) error {
	const tlsRemedy = "give --tls-ca, --tls-cert and --tls-key"
	for _, port := range []struct {
		listen, lacks, remedy string
		protected             bool
	}{
		{o.Listen, "TLS", tlsRemedy, o.TLS.Given()},
		{o.GossipListen, "gossip key", "give --gossip-key-file", o.GossipKey != nil},
		{o.RespListen, "TLS", tlsRemedy, o.TLS.Given()},
		{o.HTTPListen, "TLS", tlsRemedy, o.TLS.Given()},
	} {
		host, _, err := net.SplitHostPort(port.listen)
		if err != nil {
			return fmt.Errorf("%q is not HOST:PORT", port.listen)
		}
		if port.protected || isLoopback(host) {
			continue
		}
		if !insecure {
			return fmt.Errorf("%s is beyond loopback and there is no %s: %s, listen on 127.0.0.1, or say --insecure",
				port.listen, port.lacks, port.remedy)
		}
		o.Logger.Warn("listening beyond loopback without "+port.lacks, "listen", port.listen)
	}
	return nil
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
