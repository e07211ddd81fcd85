// Package resp is the Redis door of a node: any Redis client, speaking RESP 2
// or 3, talks to any node and reaches every key of the cluster.
//
// A [Server] turns commands into requests for its [Backend] (the node's own
// client, which routes, numbers and retries) and the answers into replies as
// Redis 7.0 gives them. To its clients it is a single Redis: CLUSTER and the
// like are refused, and no client has to know of shards, except that commands
// which write several keys together need them in one shard.
//
// # What happens to a command
//
//	socket -> reader: parser -> dispatch -> handler -> pipe -> Lane.Submit
//	socket <- writer <- ring of reply slots  <----------- Lane's answers
//
// A connection has two goroutines and none for a command. The reader parses
// all that one read brought and pushes each command into the connection's
// pipe: a slot in the order of replies, and parts, each an operation on one
// key. The parts go into the queue of their shard, from which one request at a
// time is under way; what arrives in the meantime is merged into the next, so
// that a long pipeline takes few requests. All requests of a connection go
// through one [Lane] of the backend: commands that meet in one shard take
// effect in their order, however often one has to be retried, and one whose
// outcome was given up as unknown has no effect behind a later one any more.
// Reads and writes are not merged with each other: a read in a write would go
// through the log. Commands on different shards have no order among each
// other. Commands that need several steps (SCAN, WATCH, DBSIZE, conditional
// EXPIRE) run in the reader, after everything before them is answered.
//
// # What it promises
//
//   - Replies come in the order of the commands.
//   - MULTI with EXEC, and MSET, are one request each: all or nothing, in one
//     shard, otherwise CROSSSLOT. WATCH remembers versions, and EXEC compares
//     them in the same request.
//   - MGET, DEL, UNLINK and EXISTS go to all shards they need. Each key is
//     linearizable by itself; there is no common moment. The same holds for
//     DBSIZE, KEYS and FLUSHALL, which go shard by shard.
//   - An error that begins with CLUSTERDOWN or TRYAGAIN means that the command
//     had no effect. Where that is not known the error begins with "ERR outcome
//     unknown".
//   - SCAN gives every key that was there from its beginning to its end, once.
//     Its cursors are kept by this node for ten minutes after their last use,
//     and in bounded number; an unknown one is an error that says so.
//
// # What it refuses
//
// Lengths are checked before anything is allocated for them: a line of 64 KiB,
// 1,048,576 arguments, an argument of 4 MiB, a command of 8 MiB. Buffers grow
// only with bytes received. Malformed input gets "-ERR Protocol error" and the
// connection ends; HTTP on the port ends it without a word. A connection that
// has too much under way (commands, operations or bytes) is not read from until
// replies have gone out, and one that does not take its replies for a minute
// is closed.
//
// Where the door differs from Redis on purpose: a bulk string must end with
// CRLF, and a header with CRLF, not any two bytes; keys have 1 to 65,535
// bytes; there is database 0 only; SCAN, KEYS, DBSIZE, FLUSHALL, HELLO, AUTH,
// CLIENT REPLY and EXPIRE with a condition are not allowed inside MULTI; a
// transaction whose keys are in several shards is refused by EXEC; SCAN's COUNT
// is cut at 10,240, and KEYS gives up at 100,000 keys; CONFIG SET takes only
// what changes nothing.
package resp
