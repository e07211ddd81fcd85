package transport

import "errors"

// Errors that callers can act on.
var (
	// ErrClosed: the transport was closed, or the peer removed.
	ErrClosed = errors.New("transport: closed")
	// ErrNotStarted: Start has not been called.
	ErrNotStarted = errors.New("transport: not started")
	// ErrUnknownPeer: no address was given for the node.
	ErrUnknownPeer = errors.New("transport: unknown peer")
	// ErrSnapshotBusy: the receiver takes in as many snapshots as it may. Come
	// back after a pause.
	ErrSnapshotBusy = errors.New("transport: receiver takes in other snapshots")
	// ErrSnapshotRefused: the receiver does not want this snapshot, or failed to
	// install it; the text says why.
	ErrSnapshotRefused = errors.New("transport: snapshot refused")
	// ErrSnapshotDamaged: a chunk arrived damaged, out of order or too large.
	// Nothing was installed.
	ErrSnapshotDamaged = errors.New("transport: snapshot damaged on the way")
	// ErrSnapshotBroken: the stream broke and could not be taken up in time, or
	// the other side has given up. Whether the snapshot was installed is unknown.
	ErrSnapshotBroken = errors.New("transport: snapshot stream broken")
	// ErrSnapshotTooLarge: a chunk exceeds SnapshotChunkBytesMax.
	ErrSnapshotTooLarge = errors.New("transport: snapshot chunk too large")
)
