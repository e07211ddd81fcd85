package tlsfiles

import (
	"context"
	"errors"
	"net"

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
	return conn, info, err
}

// ServerHandshake is the server's side; the server sets a deadline on raw.
func (c grpcCredentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := c.files.latest().grpc.ServerHandshake(raw)
	c.files.callers.note("TLS handshake refused", raw.RemoteAddr().String(), err)
	return conn, info, err
}

// Info says that this is TLS.
func (c grpcCredentials) Info() credentials.ProtocolInfo { return c.files.current.Load().grpc.Info() }

// Clone returns the same: there is nothing in it to change.
func (c grpcCredentials) Clone() credentials.TransportCredentials { return c }

// OverrideServerName is refused: the name is that of the address.
func (c grpcCredentials) OverrideServerName(string) error {
	return errors.New("the server's name is that of its address")
}
