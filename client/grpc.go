package client

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/internal/wire"
)

// Settings of gRPC connections; its own defaults would refuse an answer over
// 4 MiB and wait minutes before they notice a dead peer.
const (
	receiveBytesMax  = 72 << 20 // sixteen values of 4 MiB, and room
	keepaliveTime    = 10 * time.Second
	keepaliveTimeout = 5 * time.Second
)

// GRPCDialer connects to nodes with gRPC, one connection and one Batch stream
// each.
type GRPCDialer struct {
	// Credentials protect the connections; nil: none.
	Credentials credentials.TransportCredentials
	// Options are added to those of each connection.
	Options []grpc.DialOption
}

// open makes a gRPC connection; nothing is sent yet.
func (d *GRPCDialer) open(addr string) (*grpc.ClientConn, error) {
	creds := d.Credentials
	if creds == nil {
		creds = insecure.NewCredentials()
	}
	options := append(wire.DialOptions(),
		grpc.WithTransportCredentials(creds),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(receiveBytesMax)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.3, Jitter: 0.2, MaxDelay: 500 * time.Millisecond},
			MinConnectTimeout: dialTimeout,
		}))
	return grpc.NewClient("passthrough:///"+addr, append(options, d.Options...)...)
}

// Dial opens a Batch stream to a node.
func (d *GRPCDialer) Dial(ctx context.Context, to Target, deliver func([]*flotillav1.Response, error)) (Conn, error) {
	cc, err := d.open(to.Addr)
	if err != nil {
		return nil, fmt.Errorf("address %q: %w", to.Addr, err)
	}
	// The stream outlives ctx, which bounds only its making.
	streamCtx, cancel := context.WithCancel(context.Background())
	stop := context.AfterFunc(ctx, cancel)
	stream, err := flotillav1.NewKVClient(cc).Batch(streamCtx)
	if err == nil && !stop() {
		err = ctx.Err()
	}
	if err != nil {
		cancel()
		return nil, errors.Join(err, cc.Close())
	}
	conn := &grpcConn{cc: cc, stream: stream, cancel: cancel, cluster: to.ClusterID, done: make(chan struct{})}
	go conn.receive(deliver)
	return conn, nil
}

// DialWatches makes a connection for watches. It is apart from the Batch
// stream's: a watch that is not read must not hold up calls.
func (d *GRPCDialer) DialWatches(to Target) (WatchConn, error) {
	cc, err := d.open(to.Addr)
	if err != nil {
		return nil, fmt.Errorf("address %q: %w", to.Addr, err)
	}
	return grpcWatchConn{cc}, nil
}

type grpcWatchConn struct{ cc *grpc.ClientConn }

// Watch begins a watch; see WatchConn.
func (c grpcWatchConn) Watch(ctx context.Context, q *flotillav1.WatchRequest) (WatchStream, error) {
	return flotillav1.NewKVClient(c.cc).Watch(ctx, q)
}

// Close ends the connection.
func (c grpcWatchConn) Close() error { return c.cc.Close() }

// grpcConn is a Batch stream and the goroutine that receives from it.
type grpcConn struct {
	cc      *grpc.ClientConn
	stream  grpc.BidiStreamingClient[flotillav1.BatchRequest, flotillav1.BatchResponse]
	cancel  context.CancelFunc
	cluster string
	close   sync.Once
	done    chan struct{} // closed when receive has ended
}

func (c *grpcConn) receive(deliver func([]*flotillav1.Response, error)) {
	defer close(c.done)
	for {
		m, err := c.stream.Recv()
		if err != nil {
			c.cancel() // a Send that is blocked must not outlive the stream
			deliver(nil, err)
			return
		}
		deliver(m.GetResponses(), nil)
	}
}

// Send sends one message.
func (c *grpcConn) Send(requests []*flotillav1.Request) error {
	return c.stream.Send(&flotillav1.BatchRequest{ClusterId: c.cluster, Requests: requests})
}

// Close ends the stream and the connection.
func (c *grpcConn) Close() error {
	c.close.Do(func() {
		c.cancel()
		c.cc.Close()
	})
	<-c.done
	return nil
}
