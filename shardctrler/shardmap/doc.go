// Package shardmap is the numbered table that says which group serves which
// shard, and the routing of keys by xxhash. It is pure data, shared by the
// controller that writes it, the replica groups that obey it and the clients
// that route by it.
//
// A key belongs to the shard named by the top log2(N) bits of xxhash64 of its
// routing key, N a power of two fixed when the cluster is made. So N could be
// doubled later by splitting each shard in two.
package shardmap
