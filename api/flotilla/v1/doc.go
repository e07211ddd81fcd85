// Package flotillav1 is the wire: protobuf messages and gRPC services, and
// nothing else. The .proto files beside this one are the contract; the Go code
// is generated from them.
package flotillav1

//go:generate go run github.com/flotilla-kv/flotilla/internal/protogen ../.. flotilla/v1/kv.proto flotilla/v1/raft.proto flotilla/v1/cluster.proto flotilla/v1/migration.proto
