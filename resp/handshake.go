package resp

import (
	"context"
	"crypto/tls"
	"errors"
	"time"
)

// handshaker is a connection that is to shake hands before anything else, as
// one of TLS is.
type handshaker interface {
	HandshakeContext(ctx context.Context) error
}

// shakeHands is false if the connection is of no use. A handshake is bounded as
// a whole: a client may not sit on its place by sending a byte now and then.
func (c *conn) shakeHands() bool {
	h, ok := c.nc.(handshaker)
	if !ok {
		return true
	}
	ctx, cancel := context.WithTimeout(context.Background(), c.server.handshakeTimeout)
	defer cancel()
	err := h.HandshakeContext(ctx)
	if err == nil {
		return true
	}
	c.server.stats.protocolErrors.Add(1)
	c.server.logger.Debug("resp: handshake failed", "client", c.nc.RemoteAddr(), "error", err)
	var plain tls.RecordHeaderError
	if errors.As(err, &plain) && plain.Conn != nil {
		plain.Conn.SetWriteDeadline(time.Now().Add(refusalTime))
		plain.Conn.Write([]byte("-ERR this port speaks TLS, and the client does not (redis-cli --tls)\r\n"))
	}
	return false
}
