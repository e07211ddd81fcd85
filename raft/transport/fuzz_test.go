package transport

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"reflect"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
)

func encoded(f *testing.F, m proto.Message) []byte {
	f.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		f.Fatal(err)
	}
	return b
}

// FuzzSnapshotWire decodes what the streams of snapshots and of liveness carry.
// What passes is within bounds, and is the same when it is sent on.
func FuzzSnapshotWire(f *testing.F) {
	h := testHeader()
	f.Add(encoded(f, h.encode()))
	f.Add(encoded(f, chunk{number: 3, data: []byte("data"), last: true}.encode()))
	f.Add(encoded(f, snapshotReply{next: 4, refusal: refusalBusy, message: "m"}.encode()))
	f.Add(encoded(f, encodePing(envelope{clusterID: "c", from: 1, to: 2, boot: 3}.encode(), ping{boot: 3, seq: 5, clock: 7, echoSeq: 2, echoBoot: 9, rtt: time.Second})))
	f.Fuzz(func(t *testing.T, b []byte) {
		header := new(flotillav1.SnapshotHeader)
		if proto.Unmarshal(b, header) == nil {
			if h, err := decodeHeader(header); err == nil {
				if h.Term > wireMax || h.Mark.Index > wireMax || h.Mark.Index == 0 || h.BytesEstimate < 0 {
					t.Fatalf("passed: %+v", h)
				}
				if again, err := decodeHeader(h.encode()); err != nil || !reflect.DeepEqual(again, h) {
					t.Fatalf("%+v became %+v, %v", h, again, err)
				}
			}
		}
		piece := new(flotillav1.SnapshotChunk)
		if proto.Unmarshal(b, piece) == nil {
			if c, err := decodeChunk(piece); err == nil && len(c.data) > SnapshotChunkBytesMax && !c.cancel {
				t.Fatalf("passed: %d bytes", len(c.data))
			}
			decodeEnvelope(piece.GetEnvelope()).check(Identity{ClusterID: "c", Self: 2, Boot: 1})
		}
		reply := new(flotillav1.SnapshotReply)
		if proto.Unmarshal(b, reply) == nil {
			decodeSnapshotReply(reply)
		}
		live := new(flotillav1.LivenessPing)
		if proto.Unmarshal(b, live) == nil {
			l := newLink(3)
			now := time.UnixMilli(1_700_000_000_000)
			for range 2 {
				l.next(now, now.UnixMilli())
				l.heard(now, decodePing(9, live), time.Second)
				now = now.Add(100 * time.Millisecond)
				l.clockNow(now)
				l.expire(now, time.Second)
			}
			if l.rtt < -1 {
				t.Fatalf("a round trip of %v", l.rtt)
			}
		}
	})
}

// canned is a stream whose chunks were written before it began.
type canned struct {
	snapshotServer
	ctx    context.Context
	chunks []*flotillav1.SnapshotChunk
}

func (s *canned) Context() context.Context             { return s.ctx }
func (s *canned) Send(*flotillav1.SnapshotReply) error { return nil }

func (s *canned) Recv() (*flotillav1.SnapshotChunk, error) {
	if len(s.chunks) == 0 {
		return nil, io.EOF
	}
	c := s.chunks[0]
	s.chunks = s.chunks[1:]
	return c, nil
}

// taker takes snapshots in, and nothing else.
type taker struct {
	Handler
	took []byte
	done bool
}

func (k *taker) HandleSnapshot(_ context.Context, _ raft.NodeID, _ SnapshotHeader, next func() ([]byte, error)) error {
	var err error
	k.took, err = readAll(next)
	k.done = err == nil
	return err
}

// FuzzSnapshotStream feeds the receiver of snapshots a stream of any chunks. The
// handler gets those that are whole and in their turn, it is told the end only
// when the last of them came, and nothing of the stream outlives the transport.
func FuzzSnapshotStream(f *testing.F) {
	h := testHeader()
	hello := &flotillav1.SnapshotChunk{Envelope: envelope{clusterID: "c", from: 1, to: 2, boot: 3}.encode(), Header: h.encode(), Transfer: 1}
	stream := func(chunks ...*flotillav1.SnapshotChunk) (b []byte) {
		for _, c := range chunks {
			one := encoded(f, c)
			b = append(append(b, byte(len(one)>>8), byte(len(one))), one...)
		}
		return b
	}
	f.Add(stream(hello, chunk{data: []byte("a")}.encode(), chunk{number: 1, data: []byte("b"), last: true}.encode()))
	f.Add(stream(hello, chunk{number: 1}.encode()))
	f.Add(stream(hello, chunk{cancel: true}.encode()))
	f.Add(stream(hello, &flotillav1.SnapshotChunk{Data: []byte("x"), Checksum: 1}))
	f.Add(stream(hello, hello, hello))
	f.Add(stream(chunk{data: []byte("a"), last: true}.encode()))
	f.Fuzz(func(t *testing.T, b []byte) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		s := &canned{ctx: ctx}
		for len(b) > 2 {
			n := min(int(b[0])<<8|int(b[1]), len(b)-2)
			c := new(flotillav1.SnapshotChunk)
			if proto.Unmarshal(b[2:2+n], c) != nil {
				return
			}
			s.chunks = append(s.chunks, c)
			b = b[2+n:]
		}
		whole, complete := wanted(s.chunks)
		tr, err := New(Options{Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		k := new(taker)
		if err := tr.Start(Identity{ClusterID: "c", Self: 2, Boot: 1}, k); err != nil {
			t.Fatal(err)
		}
		_ = (&bulkService{t: tr}).Snapshot(s)
		cancel()   // as gRPC does when its handler returns
		tr.Close() // waits for the handler
		if !bytes.HasPrefix(whole, k.took) || k.done && (!complete || len(k.took) != len(whole)) {
			t.Fatalf("took %q of %q, to the end %v, complete %v", k.took, whole, k.done, complete)
		}
	})
}

// wanted is what a handler may get of a stream, and whether its end is in it.
func wanted(chunks []*flotillav1.SnapshotChunk) (whole []byte, complete bool) {
	next := uint64(0)
	for _, c := range chunks[min(1, len(chunks)):] {
		piece, err := decodeChunk(c)
		if err != nil || piece.cancel || piece.number > next {
			return whole, false
		}
		if piece.number < next {
			continue
		}
		whole = append(whole, piece.data...)
		next++
		if piece.last {
			return whole, true
		}
	}
	return whole, false
}
