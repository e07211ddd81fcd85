// Package transport carries Raft messages, liveness and snapshots between the
// nodes of a cluster, over one gRPC connection per peer for all groups and a
// second one for bulk.
//
// # Contract
//
//   - Send never blocks. Messages to a peer arrive in the order in which they
//     were sent, each at most once, or not at all: Raft repairs what is lost.
//   - What waits for a peer is bounded in messages and bytes; the oldest go
//     first. When a stream ends, what waited for it goes too: the process that
//     it was for may be another one now.
//   - A peer is up if it was heard, and is known to hear us, within
//     SuspectAfter. A connection that is refused or reset takes it down at once,
//     and so does a new boot number. The handler is told in order.
//   - A snapshot arrives whole and undamaged, or the handler's next gives an
//     error other than io.EOF and nothing may be installed.
//   - Connections go only to nodes that SetAddr named.
//
// # What it refuses
//
// A stream whose first message does not say this cluster, this node as the
// recipient and another node as the sender (FailedPrecondition; the sender
// tries again after RefusedPause). Messages without a body, or with one of a
// later version, with ids of 0, of a replica to itself, with terms or indexes
// past 2^63, or with entries that leave gaps: dropped and counted. Whether a
// message fits the state of its group is for the core to say. Nothing that
// comes from the wire makes this package panic.
//
// # Streams
//
// Package api has the messages (raft.proto). Between a pair A and B there are,
// each way:
//
//	connection 1   RaftTransport.Messages   RaftBatch, RaftBatch, ...
//	               RaftTransport.Liveness   LivenessPing each PingInterval
//	connection 2   Bulk.Snapshot            one stream a transfer, while it lasts
//
// The first message of a stream carries the envelope (cluster id, sender,
// recipient, the sender's boot number) and may carry nothing else. A batch is
// all that is queued, up to BatchBytes (one larger message excepted); no gRPC
// message exceeds ReceiveBytesMax. A newer stream of the same kind from the
// same node ends the older.
//
// A Send of gRPC blocks when the peer does not read. So each stream has a
// goroutine of its own, and suspicion cancels the stream of messages: at once
// when the peer goes down, and whenever a Send to a peer that is not up has
// been blocked for SuspectAfter. A peer that is up and slow is waited for;
// meanwhile its queue drops the oldest. The connection to a peer that fell
// silent, or does not come up over it, is closed, so that the way back is a new
// one and not TCP's next retransmission.
//
// # Liveness
//
// A ping says the sender's boot number, its clock, the round trip it measured,
// and an echo: the boot number and sequence number that it heard last from the
// receiver, and how long ago. From the echo the receiver learns that its ping
// of that number was heard, so a peer that hears nobody is not alive, however
// loudly it speaks. PeerLiveness.ProvenAt is when that ping was sent. A clock
// reading that was delayed on the way does not displace a better one for five
// seconds. A process that has stood still itself judges nobody until the peers
// have had their time again.
//
// # Snapshots
//
//	sender                              receiver
//	envelope, header, transfer    ->
//	                              <-    next 0 (or busy, not wanted)
//	chunk 0, 1, 2, ...            ->
//	                              <-    next 1, next 2, ...
//	(the stream breaks; another begins)
//	envelope, header, transfer    ->
//	                              <-    next 7
//	chunk 7, ..., the last        ->
//	                              <-    installed
//
// Chunks are numbered without gaps and carry an xxhash64 of their data. The
// sender keeps the chunks that are not acknowledged, SnapshotWindow of them, so
// it can go on where the receiver stands; the receiver's handler waits for
// SnapshotGrace in the middle of its reading. Neither a restart of the sender
// nor one of the receiver is bridged: the transfer then fails and Raft begins
// another. A damaged or unexpected chunk ends the transfer on both sides.
//
// # In memory
//
// [Memory] is a network with the same surface for simulations, without sockets,
// goroutines or a clock of its own, and with faults for each directed pair. It
// shares the codec and the liveness rules with the real one.
//
// # Deviations
//
// The identity (cluster, node, boot) is given to Start, not to New: services
// have to be registered with a gRPC server before it serves, and a node serves
// before it knows who it is.
package transport
