package shardkv

import (
	"context"
	"errors"
	"io"
	"runtime"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
)

// Bounds of one stream. At streamRequestsMax unanswered requests it is not
// read on until answers have gone out: the client is held back by gRPC's flow
// control.
const (
	streamRequestsMax = 65_536
	streamBytesMax    = 64 << 20 // of answers not sent yet: reads are answered "busy", and nothing more is read
	batchResponsesMax = 4096
	batchBytesMax     = 8 << 20
)

// Do is one request; see the KV service.
func (s *Server) Do(ctx context.Context, q *flotillav1.Request) (*flotillav1.Response, error) {
	done := make(chan *flotillav1.Response, 1)
	s.submit(q, func(r *flotillav1.Response) { done <- r }, nil)
	select {
	case r := <-done:
		return r, nil
	case <-ctx.Done():
		return nil, grpcstatus.FromContextError(ctx.Err()).Err()
	}
}

// Batch serves a stream of requests: one goroutine reads, one writes what was
// answered meanwhile, together.
func (s *Server) Batch(stream grpc.BidiStreamingServer[flotillav1.BatchRequest, flotillav1.BatchResponse]) error {
	ctx, stop := context.WithCancel(stream.Context())
	defer stop()
	b := &batchStream{server: s, stream: stream, arrived: make(chan struct{}, 1), sent: make(chan struct{}, 1)}
	failed := make(chan error, 2)
	var running sync.WaitGroup
	running.Go(func() { failed <- b.write(ctx) })
	go func() { failed <- b.read(ctx) }() // ends with the stream, when Batch has returned
	var err error
	select {
	case err = <-failed:
	case <-s.ctx.Done():
		err = grpcstatus.Error(codes.Unavailable, "the node is stopping")
	}
	stop()
	running.Wait()
	if errors.Is(err, io.EOF) {
		return nil // the client has closed its side: it waits for nothing more
	}
	return err
}

// batchStream is one client's stream.
type batchStream struct {
	server *Server
	stream grpc.BidiStreamingServer[flotillav1.BatchRequest, flotillav1.BatchResponse]

	mu         sync.Mutex // guards what follows
	answers    []*flotillav1.Response
	bytes      int // of answers, those being sent among them
	unanswered int
	arrived    chan struct{} // has an element when there are answers
	sent       chan struct{} // has an element when unanswered has gone down
}

// read submits what comes in.
func (b *batchStream) read(ctx context.Context) error {
	for {
		batch, err := b.stream.Recv()
		if err != nil {
			return err
		}
		if id := batch.GetClusterId(); id != "" && id != b.server.options.ClusterID() {
			return grpcstatus.Errorf(codes.FailedPrecondition, "this is cluster %q, not %q", b.server.options.ClusterID(), id)
		}
		if err := b.admit(ctx, len(batch.GetRequests())); err != nil {
			return err
		}
		for _, q := range batch.GetRequests() {
			b.server.submit(q, b.answer, b.room)
		}
	}
}

// admit waits until there is room for n more requests.
func (b *batchStream) admit(ctx context.Context, n int) error {
	for {
		b.mu.Lock()
		room := b.unanswered == 0 || b.unanswered+n <= streamRequestsMax && b.bytes < streamBytesMax
		if room {
			b.unanswered += n
		}
		b.mu.Unlock()
		if room {
			return nil
		}
		select {
		case <-b.sent:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// room tells whether another large answer can be taken.
func (b *batchStream) room() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.bytes < streamBytesMax
}

func (b *batchStream) answer(r *flotillav1.Response) {
	b.mu.Lock()
	b.answers = append(b.answers, r)
	b.bytes += largePart(r)
	b.mu.Unlock()
	signal(b.arrived)
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// write sends all that has been answered, in few messages.
func (b *batchStream) write(ctx context.Context) error {
	for {
		select {
		case <-b.arrived:
		case <-ctx.Done():
			return ctx.Err()
		}
		runtime.Gosched() // what is about to be answered shares the message
		b.mu.Lock()
		answers := b.answers
		b.answers = nil
		b.mu.Unlock()
		for len(answers) > 0 {
			n, bytes := messageLength(answers)
			if err := b.stream.Send(&flotillav1.BatchResponse{Responses: answers[:n]}); err != nil {
				return err
			}
			clear(answers[:n]) // they may be large
			answers = answers[n:]
			b.mu.Lock()
			b.unanswered -= n
			b.bytes -= bytes
			b.mu.Unlock()
			signal(b.sent)
		}
	}
}

// messageLength is how many of the answers, at least one, go into a message,
// and what they measure.
func messageLength(answers []*flotillav1.Response) (n, bytes int) {
	for i, r := range answers {
		size := largePart(r)
		if i > 0 && (i == batchResponsesMax || bytes+size > batchBytesMax) {
			return i, bytes
		}
		bytes += size
	}
	return len(answers), bytes
}

// largePart is about the size of a response; only what may be large is
// measured.
func largePart(r *flotillav1.Response) int {
	size := 64
	for _, result := range r.GetResults() {
		size += 64 + len(result.GetValue())
		for _, p := range result.GetPairs() {
			size += 32 + len(p.GetKey()) + len(p.GetValue())
		}
	}
	return size
}
