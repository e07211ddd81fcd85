// Package wire holds what all of Flotilla's gRPC connections have in common.
package wire

import "google.golang.org/grpc"

// Windows of flow control. They are fixed: to find them out, gRPC would send a
// ping and a window update for nearly every message that comes in, and each is a
// system call here and there. A stream of 8 MiB fills 600 Mbit/s over 100 ms.
const (
	streamWindowBytes = 8 << 20
	connWindowBytes   = 16 << 20
)

// DialOptions are for a client's side of connections.
func DialOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithStaticStreamWindowSize(streamWindowBytes),
		grpc.WithStaticConnWindowSize(connWindowBytes),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(newCodec())),
	}
}

// ServerOptions are for a server's side.
func ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.StaticStreamWindowSize(streamWindowBytes),
		grpc.StaticConnWindowSize(connWindowBytes),
		grpc.ForceServerCodecV2(newCodec()),
	}
}
