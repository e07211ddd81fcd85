// Package shardkv is a replica group: the state machine of its shards' keys
// and sessions, and the server that stands before the groups of a node.
//
// # The idea
//
// [Machine] is pure: an entry (commands and the leader's stamp) and a state
// give the next state and an answer for each command. It never looks at a
// clock: a group's time is the largest stamp applied, and a key expires when
// the group's time says so. [Server] takes requests over gRPC or in process,
// checks them, proposes writes, asks for the index of reads, and answers.
//
// # What holds
//
//   - Ownership is checked when a write is applied, and for a read in the view
//     from which it is answered. "Moved", "busy", "not leader" and
//     "unavailable" promise that the attempt had and will have no effect;
//     "unknown" does not.
//   - A numbered write (RIFL) takes effect once: its answer is recorded with
//     its effect, also that of a refused condition, and given again to every
//     retry until the client says that it waits no more (lowest). Nothing is
//     evicted: a full table answers "busy". A session ends when the group's
//     time passes its birth by an hour; from then on its writes are answered
//     "expired", so what is forgotten is never applied again.
//   - A shard counts its writes, and a key's version is the count at its last
//     one: versions only grow, and no two writes of a shard share one.
//   - An unconditional put does not read what was there.
//   - A leader that would answer with a key whose expiry the clock has passed
//     has the group's time committed first. It does so too when the next key or
//     session falls due; a group where nothing does is left alone.
//
// What it refuses: keys outside the stated shard, sizes beyond the limits,
// requests that would read, write or answer too much (all or nothing, before
// the first operation), sessions born in the future. A committed command that
// is not understood stops the node: it must not be skipped.
//
// # Records
//
// Keys within the replica's part of the state store; integers big-endian, u a
// uvarint, i a signed varint, t a u length and so many bytes, b a byte.
//
//	'g'                                     born b, time i, last incarnation u
//	's' shard 4                             state b, generation u, incarnation u, writes u
//	'k' shard 4 | incarnation 8 | key       version 8, expiry 8 (unix ms, 0: never), value
//	'e' expiry 8 | shard 4 | inc. 8 | key   (empty)
//	'a' shard 4 | incarnation 8 | client 8 | birth 8 | seq 8
//	                                        lowest u, flags b, result*
//	result                                  status b, existed b, value t, version u, number i,
//	                                        expiry i, count u, (key t, value t, version u, expiry i)*, next t
//
// An entry of the expiry index counts only if its key still expires then: it is
// not looked for when a key is overwritten. The incarnation is taken anew for
// each copy of a shard that a group gets, so that whatever is late for one copy
// hits only its own.
//
// # Commands
//
// Version b (1), kind b, and by kind; n* stands for a u count and so many n.
//
//	1 write    shard u, client 8, birth i, seq u, lowest u, compare*, op*, otherwise op*
//	2 birth    generation u, shard u*
//	3 time
//	4 outcome  shard u, client 8, birth i, seq u
//
//	compare    target b, key t, then by target: version u or value t
//	op         kind b, then by kind:
//	  get      key t, flags b          put     key t, value t, flags b, condition b
//	  delete   key t, flags b, version u       (version u | expected t), ttl i, expiry i
//	  append   key t, value t          incr    key t, by i
//	  expire   key t, ttl i, expiry i
//	  scan, clear  start t, end t, prefix t, limit u, flags b
package shardkv
