package tlsfiles

import (
	"context"
	"errors"
	"net"
	"os"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/credentials"
)

// Credentials are mutual TLS for gRPC, for both ends. The caller checks that the
// certificate names the host of the address that it called.
func (f *Files) Credentials() credentials.TransportCredentials { return grpcCredentials{f} }

// grpcCredentials hand each handshake to the credentials of the latest set.
type grpcCredentials struct{ files *Files }

// ClientHandshake is the caller's side; ctx bounds it.
func (c grpcCredentials) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := c.files.latest().grpc.ClientHandshake(ctx, authority, raw)
	c.files.calls.note("TLS handshake with a node failed", authority, err)
	if err != nil {
		return nil, nil, err
	}
	return &callerConn{Conn: conn}, info, nil
}

// ServerHandshake is the server's side; the server sets a deadline on raw.
func (c grpcCredentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := c.files.latest().grpc.ServerHandshake(raw)
	c.files.callers.note("TLS handshake refused", raw.RemoteAddr().String(), err)
	return conn, info, err
}

// callerConn is a connection to a server. In TLS 1.3 the server judges the
// caller's certificate when the caller's handshake is over already: what it
// minds comes as an alert, and a write may fail before anybody has read that.
type callerConn struct {
	net.Conn
	heard atomic.Bool // the server has said something: it has let us in
}

// Read notes that the server speaks.
func (c *callerConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 && !c.heard.Load() {
		c.heard.Store(true)
	}
	return n, err
}

// Write gives the alert as the reason of a failure, if there is one.
func (c *callerConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if err != nil && !c.heard.Load() {
		c.Conn.SetReadDeadline(time.Now().Add(alertWait))
		if _, reason := c.Conn.Read(make([]byte, 1)); reason != nil && !errors.Is(reason, os.ErrDeadlineExceeded) {
			err = reason
		}
	}
	return n, err
}

// alertWait bounds the wait for an alert that has most likely arrived.
const alertWait = 100 * time.Millisecond

// Info says that this is TLS.
func (c grpcCredentials) Info() credentials.ProtocolInfo { return c.files.current.Load().grpc.Info() }

// Clone returns the same: there is nothing in it to change.
func (c grpcCredentials) Clone() credentials.TransportCredentials { return c }

// OverrideServerName is refused: the name is that of the address.
func (c grpcCredentials) OverrideServerName(string) error {
	return errors.New("the server's name is that of its address")
}
