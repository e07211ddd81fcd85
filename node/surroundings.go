package node

import (
	"context"
	"net"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"google.golang.org/grpc"
)

// surroundings are what a node takes from the operating system. What is nil is
// the real thing, and so is all of it but in the binary of tests/chaos.
type surroundings struct {
	fs    vfs.FS
	clock func() time.Time
	dial  func(ctx context.Context, addr string) (net.Conn, error)
	// leaseReads lets groups serve reads from their leaders' leases.
	leaseReads bool
}

// dialOptions are those of the connections that gRPC would dial itself.
func (s surroundings) dialOptions() []grpc.DialOption {
	if s.dial == nil {
		return nil
	}
	return []grpc.DialOption{grpc.WithContextDialer(s.dial)}
}
