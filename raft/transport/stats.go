package transport

import "sync/atomic"

// Stats are running totals since the start, for metrics.
type Stats struct {
	MessagesSent, MessagesReceived     uint64 // Raft messages
	BatchesSent, BatchesReceived       uint64
	BytesSent, BytesReceived           uint64 // of Raft messages, estimated
	DroppedQueueFull                   uint64 // displaced by newer ones
	DroppedUnreachable                 uint64 // queued for a peer that could not be reached, or lost with its stream
	DroppedUnknownPeer                 uint64 // for a node without an address
	DroppedTooLarge                    uint64 // no peer could receive them
	DroppedInvalid                     uint64 // received and malformed
	StreamsOpened, StreamsBroken       uint64 // outgoing
	StreamsRefused                     uint64 // incoming, of the wrong cluster, sender or recipient
	StreamsCancelled                   uint64 // outgoing, a Send to a suspected peer was blocked
	PingsSent, PingsReceived           uint64
	PeerUps, PeerDowns                 uint64
	SnapshotsSent, SnapshotsReceived   uint64 // installed
	SnapshotsFailed                    uint64 // either side
	SnapshotsResumed                   uint64 // streams that took up a broken transfer, either side
	SnapshotBytesSent                  uint64
	SnapshotBytesReceived              uint64
	SnapshotsSending, SnapshotsTakenIn int64 // under way now
}

// counters are what Stats is read from.
type counters struct {
	messagesSent, messagesReceived                                      atomic.Uint64
	batchesSent, batchesReceived                                        atomic.Uint64
	bytesSent, bytesReceived                                            atomic.Uint64
	droppedQueueFull, droppedUnreachable                                atomic.Uint64
	droppedUnknownPeer, droppedTooLarge, droppedInvalid                 atomic.Uint64
	streamsOpened, streamsBroken, streamsRefused, streamsCancelled      atomic.Uint64
	pingsSent, pingsReceived                                            atomic.Uint64
	peerUps, peerDowns                                                  atomic.Uint64
	snapshotsSent, snapshotsReceived, snapshotsFailed, snapshotsResumed atomic.Uint64
	snapshotBytesSent, snapshotBytesReceived                            atomic.Uint64
	snapshotsSending, snapshotsTakenIn                                  atomic.Int64
}

func (c *counters) read() Stats {
	return Stats{
		MessagesSent: c.messagesSent.Load(), MessagesReceived: c.messagesReceived.Load(),
		BatchesSent: c.batchesSent.Load(), BatchesReceived: c.batchesReceived.Load(),
		BytesSent: c.bytesSent.Load(), BytesReceived: c.bytesReceived.Load(),
		DroppedQueueFull:   c.droppedQueueFull.Load(),
		DroppedUnreachable: c.droppedUnreachable.Load(),
		DroppedUnknownPeer: c.droppedUnknownPeer.Load(),
		DroppedTooLarge:    c.droppedTooLarge.Load(),
		DroppedInvalid:     c.droppedInvalid.Load(),
		StreamsOpened:      c.streamsOpened.Load(), StreamsBroken: c.streamsBroken.Load(),
		StreamsRefused: c.streamsRefused.Load(), StreamsCancelled: c.streamsCancelled.Load(),
		PingsSent: c.pingsSent.Load(), PingsReceived: c.pingsReceived.Load(),
		PeerUps: c.peerUps.Load(), PeerDowns: c.peerDowns.Load(),
		SnapshotsSent: c.snapshotsSent.Load(), SnapshotsReceived: c.snapshotsReceived.Load(),
		SnapshotsFailed: c.snapshotsFailed.Load(), SnapshotsResumed: c.snapshotsResumed.Load(),
		SnapshotBytesSent: c.snapshotBytesSent.Load(), SnapshotBytesReceived: c.snapshotBytesReceived.Load(),
		SnapshotsSending: c.snapshotsSending.Load(), SnapshotsTakenIn: c.snapshotsTakenIn.Load(),
	}
}
