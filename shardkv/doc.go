// Package shardkv is what a replica group does with its log: keys of the
// shards it owns, the sessions of those who write them, and the life of the
// shards themselves.
//
// [Machine] is the state machine: a pure step from (state, group time,
// command) to (writes, answer). The same entries make the same bytes at every
// replica, however they were batched and whenever it was restarted. [Server] is
// the node's front to all its groups: it checks requests, has writes committed,
// reads from consistent views, and answers every request once, within its time.
//
// # Shards
//
// A group is born with its first shards (command birth, once for ever); it
// serves a shard that is owned or exporting. Ownership is checked where it
// counts: of a write when its entry is applied, of a read in the view from which
// it is answered. A write to a shard that is not served changes nothing, is not
// recorded, and is answered MOVED. Each shard counts its writes, and a key's
// version is the count at its last write: versions only grow and no two writes
// of a shard share one. Whatever changes is a write, the removal of an expired
// key too. Stored keys carry an incarnation, which the group takes
// anew for every copy it begins, so that nothing late for one copy touches
// another.
//
// # Moves
//
// Not driven by anybody yet. A shard goes from its source to its target in
// entries of both logs, each of which names migration, generation and attempt
// and does nothing where they are not the shard's.
//
//	source  owned ─beginExport─▶ exporting ─handOff─▶ handed-off ─deleteCopy─▶ absent
//	             ◀─cancelExport─            ◀──────takeBack────── (to owned)
//	target  absent ─beginImport─▶ importing ─chunk*─round*─activate─▶ owned, not verified ─verified, done─▶ owned
//	             ◀─dropImport, refuse─
//
// From beginExport on the source notes what each entry touches: positions in
// the order of what was touched, never operations. The target takes the copy in
// pages in the order in which it is stored (chunks), then the present state of
// what was touched behind beginExport (rounds): each only where it stands, so
// what comes twice does nothing. Both sides know the digest of their copies:
// the source has a view of beginExport's time added up beside it and follows
// the difference; the target's is in its state. HandOff decides; Activate
// serves the copy, under the source's time, if the digests are equal.
//
// Time leaves a copy alone that does not serve: its keys do not expire and its
// sessions do not end. Until a move is verified the target leaves a tombstone
// for each key that is deleted. In a shard that moves, a clear of more than
// 10,000 keys is answered BUSY, unless it is of all.
//
// # Watches
//
// Each replica keeps, in memory, what has lately changed in its group's shards:
// each write of a shard under its version, in the order of the log, published
// when it is committed (see history). A watch is a stream from the group's
// leader that tells what is there of some shards, one key or those with a
// prefix, behind a version. It says for which versions it speaks, so a gap
// would show. It ends with MOVED when all through the hand-off was told, and
// goes on at the target, whose history begins there; with COMPACTED where
// history does not reach back to it, be it too old, too slow, or the replica
// restarted: then the caller reads the keys as of a version, and goes on behind
// that. Nothing is buffered for a watch that is slow. A value over 64 KiB is
// told if it is still the key's when it is, otherwise that is COMPACTED too.
//
// # Time
//
// A group's time is the largest stamp applied. A key is there until group time
// reaches its expiry; what has expired is removed by whichever entry comes next
// (a bounded number at once; absent is all of it from the first). The leader
// has an entry committed for the sake of time in two cases only: it would
// answer with a key whose expiry its clock has passed, or something is due
// (Machine.NextDue). A group without expiries and sessions does nothing.
//
// # Sessions (RIFL)
//
// A numbered write is applied at most once. Its answer is recorded in the shard
// under (client, birth, number), whatever it is: done, a condition unmet, or
// refused as too much. It is dropped when a later write of the session says
// that it is not waited for any more (lowest); numbers below that are refused.
// The session is forgotten when group time has passed its birth by an hour, and
// whatever comes under its name from then on is answered SESSION_EXPIRED. An
// outcome is itself a log entry: it tells what became of a number, and closes
// one that was not applied.
//
// Answers lie in the store as they are, previous values and all, so a retry is
// told exactly what the first attempt was. In memory is only where they lie.
// Per session and shard 16,384 answers or 64 MiB are kept, per group 262,144
// sessions, 2^20 answers or 1 GiB. At a limit new numbers are answered BUSY;
// nothing is evicted.
//
// A numbered write costs two changes of the store: the key, and its answer.
// Answers lie in slots, 0 upwards for each session and shard. An answer that is
// not waited for any more is not deleted: it is a leftover until its slot, the
// lowest that is free, is written over. (One over 256 bytes is deleted. So a
// session leaves at most 4 MiB, and that goes with it.) What is a leftover
// needs no mark: its number is below the session's lowest, which is the largest
// in the heads of its answers, as the one that raised it is waited for as long
// as nothing raises it further. The shard's write count rides with the answers
// for the same reason; the shard's own record follows only when no answer says
// it, or when slots are deleted that may have said it.
//
// # What is refused
//
// Before the log, as INVALID: keys that are empty, over 65,535 bytes or of
// another shard, values over 4 MiB, requests over 8 MiB of keys and values or
// 16,384 operations, a negative time to live, unknown operations.
// When applied, before the first operation takes effect, also as INVALID:
// transactions whose results may pass 32 MiB or that may read and write more
// than 256 MiB (see bounds.go); the same bounds hold for reads.
// A committed command that is not understood stops the node.
//
// # Reads
//
// Linearizable by ReadIndex, all reads of a group that are ready from one view.
// LEASE uses the leader's lease if it has one, follower reads ask the leader
// for its index. STALE is answered at once if the last such question of this
// replica was asked within the bound and its answer is applied; otherwise it is
// a follower read, which is that question.
//
// # Commands
//
// One committed command; uv is an unsigned varint, v a signed (zigzag) one,
// bytes are a uv length and so many bytes; other numbers are big-endian.
//
//	version  1   1
//	kind     1   1 write, 2 birth, 3 time, 4 outcome, 5 to 19 entries of a move
//
//	write    shard uv | client 8 | birth v | seq uv | lowest uv (seq 0: not numbered)
//	         | compares | ops | otherwise, each a uv count and so many of
//	compare  target 1 (0 exists, 1 absent, 2 version, 3 value) | key bytes
//	         | version uv (target 2) | value bytes (target 3)
//	op       kind 1, and then
//	  1 get     key bytes | flags 1 (4 no value)
//	  2 put     key bytes | value bytes | flags 1 (1 keep ttl, 2 previous)
//	            | condition 1 (0 always, 1 absent, 2 present, 3 version, 4 value)
//	            | version uv (3) | expected bytes (4) | ttl v | expire at v
//	  3 delete  key bytes | flags 1 (2 previous) | version uv
//	  4 append  key bytes | value bytes
//	  5 incr    key bytes | by v
//	  6 expire  key bytes | ttl v | expire at v
//	  7 scan    start, end, prefix bytes | limit uv | flags 1 (8 keys only, 16 count only)
//	  8 clear   as scan
//	birth    generation uv | count uv | count times shard uv
//	time     nothing
//	outcome  shard uv | client 8 | birth v | seq uv
//	move     shard uv | migration uv | generation uv | attempt uv | other group uv, and then
//	         5 beginExport, 6 handOff, 7 cancelExport, 8 takeBack, 9 deleteCopy,
//	         10 beginImport, 14 refuse, 15 dropImport, 16 verified, 17 cancelImport, 18 done, 19 differs: nothing
//	         11 chunk, 12 round: from bytes | to bytes | rounds begin at bytes | last 1 | items
//	         13 activate: to bytes | time v | writes uv | digest
//	item     kind 1 ('k' key, 'a' answer, 'S' session, 'C' cleared span) | name bytes | there 1 | stored bytes (if there)
//	digest   of keys, then of answers: high 8 | low 8 | count uv
//
// # Stored records
//
// Keys are those within a replica's space of the state store.
//
//	'g'                                               the group: version 1 (3) | born 1 | time v | last incarnation uv
//	's' shard 4                                       a shard: state 1 | generation uv | incarnation uv
//	                                                  | writes uv (or more: the most in it and in the shard's slots)
//	                                                  | migration uv | other group uv | beginExport at uv | handOff at uv
//	                                                  | time of that v | not verified 1
//	'i' shard 4                                       an import until it is verified: generation uv | attempt uv
//	                                                  | scan bytes | position bytes | flags 1 (1 scanned, 2 unequal, 4 cleared, 8 refused,
//	                                                  | 16 to be cancelled, 32 verified) | writes at HandOff uv | digest
//	'u' shard 4 | incarnation 8 | index 8 | ordinal 4 touched by that entry: kind of item 1 | name
//	'd' shard 4 | incarnation 8 | key                 (empty) deleted since Activate
//	'k' shard 4 | incarnation 8 | key                 a key: version 8 | expiry 8 (unix ms, 0 never) | value
//	'e' shard 4 | incarnation 8 | expiry 8 | key      (empty) look at that key when group time gets there
//	'a' shard 4 | incarnation 8 | client 8 | birth 8 | slot 2   an answer, or what is left of one
//
// An entry of the expiry index may be out of date: what counts is the expiry in
// the key's own record. So a write need not read what it replaces.
//
//	answer   writes uv (of the shard by then) | seq uv | lowest uv (of the session by then)
//	         | flags 1 (1 compared, 2 closed)
//	         closed: message bytes
//	         else count uv, and count times
//	         status 1 | flags 1 (1 existed) | value bytes | version uv | number v
//	         | expiry v | count uv | pairs uv, each key bytes | value bytes | version uv
//	         | expiry v | next bytes
//
// [Digest] tells whether two copies of a shard are the same: in which slots
// answers lie, and what is left of others, does not count.
package shardkv
