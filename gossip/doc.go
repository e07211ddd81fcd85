// Package gossip tells nodes of each other over hashicorp/memberlist: who is
// there, under which address, and hints that make others quicker: who leads a
// group, and how new the newest shard map is.
//
// Gossip suggests, never decides. A node that is heard of may be gone, one
// that is not may be well, a hint may be old; whoever uses them must be right
// without them. Nothing waits for convergence.
//
// # Names
//
// memberlist knows a process by a name that must be unique and cannot change.
// A process takes the node's random id and its boot number, so a restart is a
// new member: it is found at once under whatever address it has, and no memory
// of its former life (memberlist's incarnation numbers) stands in its way. The
// NodeID is in the meta data, which may change when the node is registered.
// For one node Members reports its latest life only.
//
// # Meta data, at most 200 bytes
//
//	version   1 byte   1
//	boot      8 bytes  big-endian; grows from life to life
//	node      8 bytes  NodeID, 0 before registration
//	respPort  2 bytes  0: none
//	httpPort  2 bytes  0: none
//	cluster   1 byte length (at most 48) + bytes; empty before registration
//	addr      1 byte length (at most 72) + bytes: gRPC, host:port
//	zone      1 byte length (at most 32) + bytes
//	release   1 byte length (at most 16) + bytes
//
// # Messages
//
//	1 | group 8 | node 8 | term 8    who leads a group
//	2 | revision 8                   a shard map this new exists
//
// What it refuses: members of another cluster (both cluster ids known and
// different), meta data and messages that do not parse, and, with a key,
// whoever does not have it. Refused input is dropped and changes nothing.
package gossip
