package tlsfiles

import (
	"context"
	"crypto/tls"
	"net"
)

// Listener makes a listener whose connections are to shake hands, by
// HandshakeContext, before they are used. How long that may take is for the
// user of the connection to say.
func (f *Files) Listener(inner net.Listener, who ClientCertificates) net.Listener {
	return &listener{Listener: inner, files: f, config: f.ServerConfig(who)}
}

type listener struct {
	net.Listener
	files  *Files
	config *tls.Config
}

// Accept returns the next connection. It waits for no handshake: one that
// stalls would keep all others out.
func (l *listener) Accept() (net.Conn, error) {
	raw, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &conn{Conn: tls.Server(raw, l.config), listener: l}, nil
}

type conn struct {
	*tls.Conn
	listener *listener
}

// HandshakeContext shakes hands within ctx.
func (c *conn) HandshakeContext(ctx context.Context) error {
	err := c.Conn.HandshakeContext(ctx)
	c.listener.files.callers.note("TLS handshake refused", c.RemoteAddr().String(), err)
	return err
}
