package transport

import (
	"errors"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
)

// raftService is the receiving side of messages and pings.
type raftService struct {
	flotillav1.UnimplementedRaftTransportServer
	t *Transport
}

// streamKind tells the streams of a peer apart.
type streamKind uint8

const (
	messageStream streamKind = iota
	livenessStream
)

type inboundKey struct {
	kind streamKind
	from raft.NodeID
}

// inbound is a stream of a peer. A peer has one of each kind: a newer one ends
// the older, whose connection may be half dead.
type inbound struct {
	key        inboundKey
	superseded chan struct{} // closed by the newer one
}

func (in *inbound) isSuperseded() bool {
	select {
	case <-in.superseded:
		return true
	default:
		return false
	}
}

var (
	errStopping   = status.Error(codes.Unavailable, "the node stops, or has not started yet")
	errSuperseded = status.Error(codes.Aborted, "a newer stream of the same node has come")
)

// serve runs receive, which reads from the stream until it ends, and returns
// when it does or nobody wants it any more; gRPC then ends the stream, and with
// it receive.
func (t *Transport) serve(receive func(in *inbound) error) error {
	if !t.enter() {
		return errStopping
	}
	in := &inbound{superseded: make(chan struct{})}
	ended := make(chan error, 1)
	go func() {
		defer t.wg.Done()
		ended <- receive(in)
		t.leave(in)
	}()
	select {
	case err := <-ended:
		return err
	case <-in.superseded:
		return errSuperseded
	case <-t.ctx.Done():
		return errStopping
	}
}

// adopt makes in the stream of its kind from a node, in place of an older one.
func (t *Transport) adopt(in *inbound, kind streamKind, from raft.NodeID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	in.key = inboundKey{kind, from}
	if old := t.inbounds[in.key]; old != nil {
		close(old.superseded)
	}
	t.inbounds[in.key] = in
}

func (t *Transport) leave(in *inbound) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.inbounds[in.key] == in {
		delete(t.inbounds, in.key)
	}
}

// admit checks the envelope that a stream begins with.
func (t *Transport) admit(first *flotillav1.Envelope) (envelope, error) {
	e := decodeEnvelope(first)
	if err := e.check(t.identity); err != nil {
		t.count.streamsRefused.Add(1)
		t.log.Warn("stream refused", "from", e.from, "err", err)
		return e, status.Error(codes.FailedPrecondition, err.Error())
	}
	return e, nil
}

// Messages takes in the Raft messages of a peer.
func (s *raftService) Messages(stream grpc.ClientStreamingServer[flotillav1.RaftBatch, flotillav1.RaftClosed]) error {
	return s.t.serve(func(in *inbound) error { return s.t.receiveMessages(in, stream) })
}

func (t *Transport) receiveMessages(in *inbound, stream grpc.ServerStream) error {
	batch := new(flotillav1.RaftBatch)
	if err := stream.RecvMsg(batch); err != nil {
		return endOf(err)
	}
	hello, err := t.admit(batch.GetEnvelope())
	if err != nil {
		return err
	}
	t.adopt(in, messageStream, hello.from)
	var ms []raft.Message
	for {
		ms = t.deliver(in, hello.from, batch, ms)
		if err := stream.RecvMsg(batch); err != nil {
			return endOf(err)
		}
		if again := batch.GetEnvelope(); again != nil && decodeEnvelope(again) != hello {
			t.count.streamsRefused.Add(1)
			return status.Error(codes.FailedPrecondition, "the envelope changed within a stream")
		}
	}
}

// deliver hands a batch to the handler; ms is memory that is used again.
func (t *Transport) deliver(in *inbound, from raft.NodeID, batch *flotillav1.RaftBatch, ms []raft.Message) []raft.Message {
	ms, invalid := decodeBatch(batch, ms[:0])
	if invalid > 0 {
		t.count.droppedInvalid.Add(uint64(invalid))
	}
	if len(ms) == 0 || in.isSuperseded() || t.ctx.Err() != nil {
		return ms
	}
	t.count.batchesReceived.Add(1)
	t.count.messagesReceived.Add(uint64(len(ms)))
	bytes := 0
	for i := range ms {
		bytes += messageBytes(&ms[i])
	}
	t.count.bytesReceived.Add(uint64(bytes))
	t.handler.HandleMessages(from, ms)
	clear(ms)
	return ms
}

// Liveness takes in the pings of a peer.
func (s *raftService) Liveness(stream grpc.ClientStreamingServer[flotillav1.LivenessPing, flotillav1.RaftClosed]) error {
	return s.t.serve(func(in *inbound) error { return s.t.receivePings(in, stream) })
}

func (t *Transport) receivePings(in *inbound, stream grpc.ServerStream) error {
	p := new(flotillav1.LivenessPing)
	if err := stream.RecvMsg(p); err != nil {
		return endOf(err)
	}
	hello, err := t.admit(p.GetEnvelope())
	if err != nil {
		return err
	}
	t.adopt(in, livenessStream, hello.from)
	for {
		if in.isSuperseded() {
			return errSuperseded
		}
		t.pinged(hello, p)
		if err := stream.RecvMsg(p); err != nil {
			t.pingsEnded(in, hello.from, err)
			return endOf(err)
		}
	}
}

// pinged takes in one ping. One of a node that no address was given for is
// ignored: nothing is kept for strangers.
func (t *Transport) pinged(hello envelope, p *flotillav1.LivenessPing) {
	t.count.pingsReceived.Add(1)
	from := t.peer(hello.from)
	if from == nil {
		return
	}
	if from.heard(t.opts.Clock(), decodePing(hello.boot, p), t.opts.Timing.SuspectAfter) {
		t.announce()
	}
	if l := from.currentLine(); l != nil {
		l.heard()
	}
}

// pingsEnded takes a peer down whose stream was reset. One that ends properly
// only moves to another connection.
func (t *Transport) pingsEnded(in *inbound, from raft.NodeID, err error) {
	if errors.Is(err, io.EOF) || in.isSuperseded() || t.ctx.Err() != nil {
		return
	}
	if p := t.peer(from); p != nil && p.broken() {
		t.announce()
	}
}

// endOf is what a stream that could be read no further is answered with.
func endOf(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
