package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
)

// bulkService is the receiving side of snapshots.
type bulkService struct {
	flotillav1.UnimplementedBulkServer
	t *Transport
}

type snapshotServer = grpc.BidiStreamingServer[flotillav1.SnapshotChunk, flotillav1.SnapshotReply]

// Snapshot carries a transfer: a new one, or one whose stream broke.
func (s *bulkService) Snapshot(stream snapshotServer) error {
	t := s.t
	if !t.enter() {
		return errStopping
	}
	chunks := make(chan *flotillav1.SnapshotChunk)
	go func() {
		defer t.wg.Done()
		readChunks(stream, chunks)
	}()
	if !t.enter() {
		return errStopping
	}
	defer t.wg.Done()
	return t.snapshotsIn.serve(stream, chunks)
}

// readChunks passes on what comes until the stream or its handler ends.
func readChunks(stream snapshotServer, to chan<- *flotillav1.SnapshotChunk) {
	defer close(to)
	for {
		c, err := stream.Recv()
		if err != nil {
			return
		}
		select {
		case to <- c:
		case <-stream.Context().Done():
			return
		}
	}
}

// transferKey names a transfer for as long as its sender's process lives.
type transferKey struct {
	from raft.NodeID
	boot uint64
	id   uint64
}

// transfer is a snapshot on its way in. It outlives the streams that carry it;
// at most one carries it at a time, and that one owns wanted.
type transfer struct {
	key    transferKey
	header SnapshotHeader
	ctx    context.Context
	cancel context.CancelCauseFunc
	chunks chan chunk    // from the stream to the handler
	done   chan struct{} // closed when the handler has returned
	err    error         // its verdict, once done is closed

	wanted uint64 // the chunk that comes next
	ended  bool   // the handler has seen the end; its goroutine's

	carrier *carrier    // under the receiver's mu; nil: no stream
	expiry  *time.Timer // as carrier; gives up a transfer without a stream
}

// carrier is a stream that carries a transfer.
type carrier struct {
	superseded chan struct{} // closed when another one takes over
	left       chan struct{} // closed when it has let go of the transfer
}

// finishedMax is how many verdicts are remembered, for a sender whose stream
// broke before it heard one.
const finishedMax = 16

// snapshotReceiver is what the snapshots that come in have in common.
type snapshotReceiver struct {
	t *Transport

	mu        sync.Mutex // guards all below
	transfers map[transferKey]*transfer
	active    int           // transfers whose handler runs
	finished  []transferKey // those whose handler has returned, oldest first
}

func newSnapshotReceiver(t *Transport) *snapshotReceiver {
	return &snapshotReceiver{t: t, transfers: make(map[transferKey]*transfer)}
}

// serve runs one stream.
func (r *snapshotReceiver) serve(stream snapshotServer, chunks <-chan *flotillav1.SnapshotChunk) error {
	var hello *flotillav1.SnapshotChunk
	select {
	case hello = <-chunks:
	case <-r.t.ctx.Done():
		return errStopping
	}
	if hello == nil {
		return nil // it ended before it began
	}
	from, err := r.t.admit(hello.GetEnvelope())
	if err != nil {
		return err
	}
	header, err := decodeHeader(hello.GetHeader())
	if err != nil {
		return stream.Send(snapshotReply{refusal: refusalDamaged, message: err.Error()}.encode())
	}
	key := transferKey{from: from.from, boot: from.boot, id: hello.GetTransfer()}
	tr, c, refusal := r.attach(key, header, hello.GetNumber())
	if tr == nil {
		return stream.Send(refusal.encode())
	}
	defer r.detach(tr, c)
	return r.carry(tr, c, stream, chunks)
}

// attach finds or begins a transfer and makes the caller its carrier. Without
// one it says why.
func (r *snapshotReceiver) attach(key transferKey, header SnapshotHeader, begin uint64) (*transfer, *carrier, snapshotReply) {
	c := &carrier{superseded: make(chan struct{}), left: make(chan struct{})}
	r.mu.Lock()
	tr := r.transfers[key]
	if tr == nil {
		var refusal snapshotReply
		if tr, refusal = r.beginLocked(key, header, begin); tr == nil {
			r.mu.Unlock()
			return nil, nil, refusal
		}
	} else {
		r.t.count.snapshotsResumed.Add(1)
	}
	old := tr.carrier
	tr.carrier = c
	if tr.expiry != nil {
		tr.expiry.Stop()
	}
	r.mu.Unlock()
	if old != nil {
		close(old.superseded)
		<-old.left
	}
	return tr, c, snapshotReply{}
}

// beginLocked begins a transfer if it is at its first chunk and there is room.
func (r *snapshotReceiver) beginLocked(key transferKey, header SnapshotHeader, begin uint64) (*transfer, snapshotReply) {
	if begin != 0 {
		return nil, snapshotReply{refusal: refusalUnknown, message: "the receiver does not know the transfer (any more)"}
	}
	if r.active >= r.t.opts.Limits.SnapshotReceivesMax {
		r.giveUpOneLocked()
		return nil, snapshotReply{refusal: refusalBusy, message: "the receiver takes in other snapshots"}
	}
	if !r.t.enter() {
		return nil, snapshotReply{refusal: refusalBusy, message: "the receiver stops"}
	}
	tr := &transfer{key: key, header: header, chunks: make(chan chunk), done: make(chan struct{})}
	tr.ctx, tr.cancel = context.WithCancelCause(r.t.ctx)
	r.transfers[key] = tr
	r.active++
	r.t.count.snapshotsTakenIn.Add(1)
	go r.install(tr)
	return tr, snapshotReply{}
}

// giveUpOneLocked makes room, for the next attempt: a transfer without a stream
// waits for a sender that may never return.
func (r *snapshotReceiver) giveUpOneLocked() {
	for _, tr := range r.transfers {
		if tr.carrier == nil && !tr.isDone() {
			tr.cancel(fmt.Errorf("%w: given up for another", ErrSnapshotBroken))
			return
		}
	}
}

func (tr *transfer) isDone() bool {
	select {
	case <-tr.done:
		return true
	default:
		return false
	}
}

// detach lets go of the transfer. Without another carrier it has SnapshotGrace
// to find one.
func (r *snapshotReceiver) detach(tr *transfer, c *carrier) {
	r.mu.Lock()
	if tr.carrier == c {
		tr.carrier = nil
		if !tr.isDone() {
			tr.expiry = time.AfterFunc(r.t.opts.Timing.SnapshotGrace, func() {
				tr.cancel(fmt.Errorf("%w: its sender did not come back", ErrSnapshotBroken))
			})
		}
	}
	r.mu.Unlock()
	close(c.left)
}

// install runs the handler and keeps its verdict.
func (r *snapshotReceiver) install(tr *transfer) {
	defer r.t.wg.Done()
	err := r.t.handler.HandleSnapshot(tr.ctx, tr.key.from, tr.header, tr.next)
	if err == nil && !tr.ended {
		err = errors.New("the handler did not read it to the end")
	}
	if cause := context.Cause(tr.ctx); err != nil && cause != nil {
		err = cause // the handler may have wrapped it, or not
	}
	tr.cancel(context.Canceled)
	r.mu.Lock()
	defer r.mu.Unlock()
	tr.err = err
	close(tr.done)
	if tr.expiry != nil {
		tr.expiry.Stop()
	}
	r.active--
	r.t.count.snapshotsTakenIn.Add(-1)
	if err != nil {
		r.t.count.snapshotsFailed.Add(1)
	} else {
		r.t.count.snapshotsReceived.Add(1)
	}
	r.finished = append(r.finished, tr.key)
	if len(r.finished) > finishedMax {
		delete(r.transfers, r.finished[0])
		r.finished = r.finished[1:]
	}
}

// next is what the handler reads.
func (tr *transfer) next() ([]byte, error) {
	if tr.ended {
		return nil, io.EOF
	}
	select {
	case c := <-tr.chunks:
		tr.ended = c.last
		if c.last && len(c.data) == 0 {
			return nil, io.EOF
		}
		return c.data, nil
	case <-tr.ctx.Done():
		return nil, context.Cause(tr.ctx)
	}
}

// carry passes the chunks of one stream on and acknowledges them, until the
// transfer or the stream is over.
func (r *snapshotReceiver) carry(tr *transfer, c *carrier, stream snapshotServer, chunks <-chan *flotillav1.SnapshotChunk) error {
	if err := stream.Send(snapshotReply{next: tr.wanted}.encode()); err != nil {
		return err
	}
	for {
		select {
		case in, ok := <-chunks:
			if !ok {
				return status.Error(codes.Canceled, "the stream broke")
			}
			if err := r.carryChunk(tr, c, stream, in); err != nil {
				return err
			}
		case <-tr.done:
			return stream.Send(tr.verdict().encode())
		case <-c.superseded:
			return errSuperseded
		case <-r.t.ctx.Done():
			return errStopping
		}
	}
}

// carryChunk passes one chunk on. A damaged or unexpected one ends the
// transfer; the verdict follows when the handler has returned.
func (r *snapshotReceiver) carryChunk(tr *transfer, c *carrier, stream snapshotServer, in *flotillav1.SnapshotChunk) error {
	piece, err := decodeChunk(in)
	switch {
	case err != nil:
		tr.cancel(fmt.Errorf("%w: %w", ErrSnapshotDamaged, err))
		return nil
	case piece.cancel:
		tr.cancel(fmt.Errorf("%w: its sender gave up", ErrSnapshotBroken))
		return nil
	case piece.number < tr.wanted:
		return nil // a repetition
	case piece.number > tr.wanted:
		tr.cancel(fmt.Errorf("%w: chunk %d came where %d was due", ErrSnapshotDamaged, piece.number, tr.wanted))
		return nil
	}
	select {
	case tr.chunks <- piece:
	case <-tr.ctx.Done():
		return nil
	case <-c.superseded:
		return errSuperseded
	}
	tr.wanted++
	r.t.count.snapshotBytesReceived.Add(uint64(len(piece.data)))
	return stream.Send(snapshotReply{next: tr.wanted}.encode())
}

// verdict is the last reply: what became of the transfer.
func (tr *transfer) verdict() snapshotReply {
	switch {
	case tr.err == nil:
		return snapshotReply{next: tr.wanted, installed: true}
	case errors.Is(tr.err, ErrSnapshotDamaged):
		return snapshotReply{next: tr.wanted, refusal: refusalDamaged, message: tr.err.Error()}
	case errors.Is(tr.err, ErrSnapshotBroken):
		return snapshotReply{next: tr.wanted, refusal: refusalUnknown, message: tr.err.Error()}
	}
	return snapshotReply{next: tr.wanted, refusal: refusalNotWanted, message: tr.err.Error()}
}
