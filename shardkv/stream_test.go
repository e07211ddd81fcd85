package shardkv

import (
	"context"

	"google.golang.org/grpc"
)

// grpcServerStream is what a fake stream does not need of a real one.
type grpcServerStream struct {
	grpc.ServerStream
	ctx context.Context
}

// Context is the call's.
func (s grpcServerStream) Context() context.Context { return s.ctx }
