package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
)

// SnapshotHeader says what a snapshot is and between whom it travels.
type SnapshotHeader struct {
	Group    raft.GroupID
	From, To raft.ReplicaID
	Term     raft.Term // the leader's
	Mark     raft.SnapshotMark
	// BytesEstimate is how much will come, for progress reports; 0: unknown.
	BytesEstimate int64
}

// snapshotSender is what the snapshots that are sent have in common.
type snapshotSender struct {
	slots     chan struct{} // has an element for each transfer under way
	bucket    *bucket
	transfers atomic.Uint64 // numbers them
}

func newSnapshotSender(t *Transport) *snapshotSender {
	return &snapshotSender{
		slots:  make(chan struct{}, t.opts.Limits.SnapshotSendsMax),
		bucket: newBucket(t.opts.Limits.SnapshotBytesPerSecond),
	}
}

// SendSnapshot streams a snapshot to a node and returns nil when that has
// installed it. next gives the chunks, at most SnapshotChunkBytesMax each and
// valid until the next call, then io.EOF. While SnapshotSendsMax transfers are
// under way it waits. A stream that breaks is taken up again for SnapshotGrace.
// Errors are those of errors.go, next's, and ctx's.
func (t *Transport) SendSnapshot(ctx context.Context, to raft.NodeID, h SnapshotHeader, next func() ([]byte, error)) error {
	if !t.enter() {
		return ErrClosed
	}
	defer t.wg.Done()
	p := t.peer(to)
	if p == nil {
		return ErrUnknownPeer
	}
	select {
	case t.snapshotsOut.slots <- struct{}{}:
		defer func() { <-t.snapshotsOut.slots }()
	case <-ctx.Done():
		return ctx.Err()
	case <-t.ctx.Done():
		return ErrClosed
	}
	t.count.snapshotsSending.Add(1)
	defer t.count.snapshotsSending.Add(-1)
	s := &sending{t: t, p: p, header: h, id: t.snapshotsOut.transfers.Add(1), next: next}
	err := s.run(ctx)
	if err != nil {
		t.count.snapshotsFailed.Add(1)
		return err
	}
	t.count.snapshotsSent.Add(1)
	return nil
}

// sending is one transfer. It outlives the streams that carry it.
type sending struct {
	t      *Transport
	p      *peer
	header SnapshotHeader
	id     uint64
	next   func() ([]byte, error)

	window   []chunk  // produced and not acknowledged; the first is number acked
	acked    uint64   // the receiver has taken all chunks before this one
	complete bool     // the last chunk was produced
	failed   bool     // next has failed
	spare    [][]byte // memory of acknowledged chunks
}

// errStreamBroken is a stream's end that another stream may make good.
var errStreamBroken = errors.New("stream broken")

func (s *sending) run(ctx context.Context) error {
	grace := s.t.opts.Timing.SnapshotGrace
	deadline := s.t.opts.Clock().Add(grace)
	for pause := backoffBase; ; pause = min(backoffMax, time.Duration(float64(pause)*backoffMultiplier)) {
		before := s.acked
		err := s.stream(ctx)
		switch {
		case !errors.Is(err, errStreamBroken):
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		case s.t.ctx.Err() != nil:
			return ErrClosed
		}
		now := s.t.opts.Clock()
		if s.acked > before {
			deadline, pause = now.Add(grace), backoffBase
		}
		if now.After(deadline) {
			return fmt.Errorf("%w: %w", ErrSnapshotBroken, err)
		}
		if err := sleep(ctx, pause); err != nil {
			return err
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// stream carries the transfer on until it is over or the stream breaks.
func (s *sending) stream(ctx context.Context) error {
	l := s.p.currentLine()
	if l == nil {
		return ErrUnknownPeer
	}
	sctx, cancel := context.WithCancel(s.t.ctx)
	defer cancel()
	// A caller that gives up is told to the receiver first, if that goes through.
	defer context.AfterFunc(ctx, func() { time.AfterFunc(giveUpTime, cancel) })()
	stream, err := flotillav1.NewBulkClient(l.bulk).Snapshot(sctx)
	if err == nil {
		err = stream.Send(&flotillav1.SnapshotChunk{
			Envelope: s.t.envelopeTo(s.p.id), Header: s.header.encode(), Transfer: s.id, Number: s.acked})
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return brokenBy(err)
	}
	replies := listen(stream)
	err = s.converse(ctx, stream, replies)
	if ctx.Err() != nil || s.failed {
		s.giveUp(stream, replies, cancel)
	}
	cancel()
	<-replies.ended
	return err
}

// giveUpTime is how long a cancelled transfer tries to say so.
const giveUpTime = 200 * time.Millisecond

// giveUp tells the receiver that no other stream will follow, and waits until
// it has heard that: a stream that is cancelled forgets what it has not sent.
func (s *sending) giveUp(stream snapshotClient, replies *replies, cancel context.CancelFunc) {
	defer time.AfterFunc(giveUpTime, cancel).Stop()
	if stream.Send(chunk{cancel: true}.encode()) == nil && stream.CloseSend() == nil {
		<-replies.ended
	}
}

func brokenBy(err error) error {
	if status.Code(err) == codes.FailedPrecondition {
		return fmt.Errorf("%w: %s", ErrSnapshotRefused, status.Convert(err).Message())
	}
	return fmt.Errorf("%w: %w", errStreamBroken, err)
}

// converse sends chunks as far as the window allows, from the one that the
// receiver asks for first.
func (s *sending) converse(ctx context.Context, stream snapshotClient, replies *replies) error {
	reply, err := replies.wait(ctx)
	if err != nil {
		return err
	}
	if over, err := s.taken(reply); over || err != nil {
		return err
	}
	if s.acked > 0 {
		s.t.count.snapshotsResumed.Add(1)
	}
	for cursor := s.acked; ; {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if reply, news, err := replies.poll(); err != nil {
			return err
		} else if news {
			if over, err := s.taken(reply); over || err != nil {
				return err
			}
			cursor = max(cursor, s.acked)
		}
		c, ok, err := s.chunkAt(cursor)
		if err != nil {
			s.failed = true
			return err
		}
		if !ok {
			replies.await(ctx)
			continue
		}
		if err := s.sendChunk(ctx, stream, c); err != nil {
			return err
		}
		cursor++
	}
}

type snapshotClient = grpc.BidiStreamingClient[flotillav1.SnapshotChunk, flotillav1.SnapshotReply]

func (s *sending) sendChunk(ctx context.Context, stream snapshotClient, c chunk) error {
	if sleep(ctx, s.t.snapshotsOut.bucket.take(s.t.opts.Clock(), len(c.data))) != nil {
		return nil // the loop sees ctx
	}
	if err := stream.Send(c.encode()); err != nil && !errors.Is(err, io.EOF) {
		return brokenBy(err)
	} // io.EOF: the replies say why
	s.t.count.snapshotBytesSent.Add(uint64(len(c.data)))
	return nil
}

// chunkAt is the chunk with the number given, produced if it is the next and
// the window has room; false: it has to wait, or there is none.
func (s *sending) chunkAt(number uint64) (chunk, bool, error) {
	at := int(number - s.acked)
	if at < len(s.window) {
		return s.window[at], true, nil
	}
	if s.complete || len(s.window) >= s.t.opts.Limits.SnapshotWindow {
		return chunk{}, false, nil
	}
	c := chunk{number: number}
	data, err := s.next()
	switch {
	case errors.Is(err, io.EOF):
		c.last, s.complete = true, true
	case err != nil:
		return chunk{}, false, err
	case len(data) > SnapshotChunkBytesMax:
		return chunk{}, false, fmt.Errorf("%w: %d bytes", ErrSnapshotTooLarge, len(data))
	default:
		c.data = s.copied(data)
	}
	s.window = append(s.window, c)
	return c, true, nil
}

func (s *sending) copied(data []byte) []byte {
	var memory []byte
	if n := len(s.spare); n > 0 {
		memory, s.spare = s.spare[n-1], s.spare[:n-1]
	}
	return append(memory[:0], data...)
}

// taken takes in a reply: it ends the transfer or acknowledges chunks.
func (s *sending) taken(r snapshotReply) (over bool, err error) {
	switch {
	case r.installed:
		return true, nil
	case r.refusal == refusalBusy:
		return true, ErrSnapshotBusy
	case r.refusal == refusalDamaged:
		return true, fmt.Errorf("%w: %s", ErrSnapshotDamaged, r.message)
	case r.refusal == refusalUnknown:
		return true, fmt.Errorf("%w: %s", ErrSnapshotBroken, r.message)
	case r.refusal != refusalNone:
		return true, fmt.Errorf("%w: %s", ErrSnapshotRefused, r.message)
	case r.next < s.acked || r.next > s.acked+uint64(len(s.window)):
		return true, fmt.Errorf("%w: the receiver asks for chunk %d, %d to %d are at hand",
			ErrSnapshotBroken, r.next, s.acked, s.acked+uint64(len(s.window)))
	}
	n := int(r.next - s.acked)
	for _, c := range s.window[:n] {
		if cap(c.data) > 0 {
			s.spare = append(s.spare, c.data)
		}
	}
	s.window = slices.Delete(s.window, 0, n)
	s.acked = r.next
	return false, nil
}

// replies keeps the latest reply of a stream. An older one is of no interest:
// acknowledgements count up, and the last reply is the verdict.
type replies struct {
	news  chan struct{} // has an element if there is something to poll
	ended chan struct{} // closed when the reader has ended

	mu     sync.Mutex // guards all below
	latest snapshotReply
	unread bool
	err    error
}

func listen(stream snapshotClient) *replies {
	r := &replies{news: make(chan struct{}, 1), ended: make(chan struct{})}
	go r.read(stream)
	return r
}

func (r *replies) read(stream snapshotClient) {
	defer close(r.ended)
	for {
		reply, err := stream.Recv()
		r.mu.Lock()
		if err != nil {
			r.err = err
		} else {
			r.latest, r.unread = decodeSnapshotReply(reply), true
		}
		r.mu.Unlock()
		signal(r.news)
		if err != nil {
			return
		}
	}
}

// poll returns the latest reply that was not returned yet, and the stream's end
// only after it.
func (r *replies) poll() (reply snapshotReply, news bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.unread {
		r.unread = false
		return r.latest, true, nil
	}
	if r.err != nil {
		return snapshotReply{}, false, brokenBy(r.err)
	}
	return snapshotReply{}, false, nil
}

// await returns when there may be news or ctx has ended.
func (r *replies) await(ctx context.Context) {
	select {
	case <-r.news:
	case <-ctx.Done():
	}
}

func (r *replies) wait(ctx context.Context) (snapshotReply, error) {
	for {
		reply, news, err := r.poll()
		if news || err != nil {
			return reply, err
		}
		if ctx.Err() != nil {
			return snapshotReply{}, ctx.Err()
		}
		r.await(ctx)
	}
}
