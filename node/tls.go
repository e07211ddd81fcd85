package node

import (
	"crypto/tls"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/flotilla-kv/flotilla/internal/tlsfiles"
)

// security is what protects the node's connections: TLS, or nothing. gRPC is
// mutual: nodes and clients show certificates. The RESP door wants the password
// or, where there is none, a certificate; the HTTP door, which shows no data,
// neither (docs/decisions/0005).
type security struct {
	files *tlsfiles.Files // nil: plain text
}

// openSecurity reads the TLS files, if there are any.
func (n *Node) openSecurity() error {
	if !n.options.TLS.Given() {
		return nil
	}
	host, _, err := net.SplitHostPort(n.addresses.GRPC)
	if err != nil {
		return err
	}
	n.security.files, err = tlsfiles.Load(tlsfiles.Options{Paths: n.options.TLS, Host: host, Logger: n.logger})
	if err != nil {
		return err
	}
	n.metrics.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: "flotilla", Name: "tls_expiry_timestamp_seconds", Help: "When the TLS certificate, or a CA behind it, expires.",
	}, func() float64 { return float64(n.security.files.Expires().Unix()) }))
	n.logger.Info("TLS is on", "not_after", n.security.files.Expires().UTC().Format(time.RFC3339),
		"resp_wants_certificate", respClients(n.options.RespPassword) == tlsfiles.Certified)
	return nil
}

// credentials are those of gRPC, for both ends.
func (s security) credentials() credentials.TransportCredentials {
	if s.files == nil {
		return insecure.NewCredentials()
	}
	return s.files.Credentials()
}

// handshakeTimeout bounds the handshakes of callers at the gRPC and RESP doors;
// at the HTTP door httpHeaderTimeout does.
const handshakeTimeout = 5 * time.Second

// serverOptions are what the gRPC server needs. A connection that does not get
// so far as to speak HTTP/2 ends soon, TLS or not.
func (s security) serverOptions() []grpc.ServerOption {
	return []grpc.ServerOption{grpc.Creds(s.credentials()), grpc.ConnectionTimeout(handshakeTimeout)}
}

// respListener protects the RESP door.
func (s security) respListener(inner net.Listener, password string) net.Listener {
	if s.files == nil {
		return inner
	}
	return s.files.Listener(inner, respClients(password))
}

func respClients(password string) tlsfiles.ClientCertificates {
	if password == "" {
		return tlsfiles.Certified
	}
	return tlsfiles.Anybody
}

// httpListener protects the HTTP door. net/http knows a tls.Conn, bounds its
// handshake and tells who speaks without TLS.
func (s security) httpListener(inner net.Listener) net.Listener {
	if s.files == nil {
		return inner
	}
	return tls.NewListener(inner, s.files.ServerConfig(tlsfiles.Anybody))
}
