package transport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/raft"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
)

func testHeader() SnapshotHeader {
	return SnapshotHeader{
		Group: 7, From: 1, To: 2, Term: 5,
		Mark: raft.SnapshotMark{Index: 1000, Term: 4, Membership: raft.Membership{
			Epoch: 1, Voters: []raft.Member{{Replica: 1, Node: 1}, {Replica: 2, Node: 2}}}},
		BytesEstimate: 1 << 20,
	}
}

// pieces is a source of count chunks of size bytes, and what they add up to.
// The source uses one buffer for all.
func pieces(count, size int) (next func() ([]byte, error), whole []byte) {
	random := rand.NewChaCha8([32]byte{1})
	whole = make([]byte, count*size)
	random.Read(whole)
	buffer, at := make([]byte, size), 0
	return func() ([]byte, error) {
		if at == len(whole) {
			return nil, io.EOF
		}
		at += copy(buffer, whole[at:at+size])
		return buffer, nil
	}, whole
}

// readAll is an install that keeps what it reads.
func readAll(next func() ([]byte, error)) ([]byte, error) {
	var all []byte
	for {
		piece, err := next()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		all = append(all, piece...)
	}
}

type installed struct {
	header SnapshotHeader
	data   []byte
	err    error
}

// installs makes the node take snapshots in, and reports each.
func (n *testNode) installs() <-chan installed {
	out := make(chan installed, 10)
	n.onSnapshot(func(_ context.Context, _ raft.NodeID, h SnapshotHeader, next func() ([]byte, error)) error {
		data, err := readAll(next)
		out <- installed{h, data, err}
		return err
	})
	return out
}

// await receives, within patience.
func await[T any](t testing.TB, ch <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-ch:
	case <-time.After(patience):
		t.Fatal("nothing came")
	}
	return v
}

func (r *recorder) onSnapshot(fn func(context.Context, raft.NodeID, SnapshotHeader, func() ([]byte, error)) error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.install = fn
}

func TestSnapshotArrivesWhole(t *testing.T) {
	a, b := pair(t)
	results := b.installs()
	for _, count := range []int{0, 1, 20} {
		next, whole := pieces(count, 100_000)
		if err := a.SendSnapshot(deadlined(t), 2, testHeader(), next); err != nil {
			t.Fatal(err)
		}
		got := await(t, results)
		if !bytes.Equal(got.data, whole) {
			t.Errorf("%d chunks: %d bytes arrived, not the %d sent", count, len(got.data), len(whole))
		}
		if want := testHeader(); fmt.Sprint(got.header) != fmt.Sprint(want) {
			t.Errorf("header %+v, want %+v", got.header, want)
		}
	}
	if s := a.Stats(); s.SnapshotsSent != 3 || s.SnapshotsSending != 0 || s.SnapshotBytesSent != 21*100_000 {
		t.Errorf("sender's stats %+v", s)
	}
	if s := b.Stats(); s.SnapshotsReceived != 3 || s.SnapshotsTakenIn != 0 || s.SnapshotBytesReceived != 21*100_000 {
		t.Errorf("receiver's stats %+v", s)
	}
}

// A stream that breaks in the middle is taken up where the receiver stands; no
// chunk is lost or given twice.
func TestSnapshotSurvivesBrokenStreams(t *testing.T) {
	var network faultyNet
	a := startNode(t, nodeSpec{id: 1, change: func(o *Options) { o.Dial = network.dial }})
	b := startNode(t, nodeSpec{id: 2})
	meet(t, a, b)
	awaitUp(t, a, b)
	results := b.installs()
	next, whole := pieces(60, 50_000)
	sent := 0
	err := a.SendSnapshot(deadlined(t), 2, testHeader(), func() ([]byte, error) {
		if sent++; sent%20 == 10 {
			network.cut()
		}
		return next()
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := await(t, results); !bytes.Equal(got.data, whole) {
		t.Errorf("%d bytes arrived, not the %d sent", len(got.data), len(whole))
	}
	if a.Stats().SnapshotsResumed < 3 || b.Stats().SnapshotsResumed < 3 {
		t.Errorf("taken up %d and %d times, want 3", a.Stats().SnapshotsResumed, b.Stats().SnapshotsResumed)
	}
}

func TestSnapshotOutcomes(t *testing.T) {
	brief := func(o *Options) { o.Timing.SnapshotGrace = 300 * time.Millisecond }
	a, b := startNode(t, nodeSpec{id: 1, change: brief}), startNode(t, nodeSpec{id: 2, change: brief})
	meet(t, a, b)
	awaitUp(t, a, b)

	t.Run("refused by the handler", func(t *testing.T) {
		b.onSnapshot(func(context.Context, raft.NodeID, SnapshotHeader, func() ([]byte, error)) error {
			return errors.New("have a newer one")
		})
		next, _ := pieces(50, 100_000)
		err := a.SendSnapshot(deadlined(t), 2, testHeader(), next)
		if !errors.Is(err, ErrSnapshotRefused) || !bytes.Contains([]byte(err.Error()), []byte("have a newer one")) {
			t.Errorf("%v, want the handler's refusal", err)
		}
	})
	t.Run("handler stops before the end", func(t *testing.T) {
		b.onSnapshot(func(_ context.Context, _ raft.NodeID, _ SnapshotHeader, next func() ([]byte, error)) error {
			_, err := next()
			return err
		})
		next, _ := pieces(5, 1000)
		if err := a.SendSnapshot(deadlined(t), 2, testHeader(), next); !errors.Is(err, ErrSnapshotRefused) {
			t.Errorf("%v: half a snapshot counts as installed", err)
		}
	})
	t.Run("source fails", func(t *testing.T) {
		results := b.installs()
		next, _ := pieces(5, 1000)
		broken, calls := errors.New("disk"), 0
		err := a.SendSnapshot(deadlined(t), 2, testHeader(), func() ([]byte, error) {
			if calls++; calls == 4 {
				return nil, broken
			}
			return next()
		})
		if !errors.Is(err, broken) {
			t.Errorf("%v, want the source's error", err)
		}
		if got := await(t, results); !errors.Is(got.err, ErrSnapshotBroken) {
			t.Errorf("the receiver's handler saw %v after %d bytes", got.err, len(got.data))
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		results := b.installs()
		ctx, cancel := context.WithCancel(t.Context())
		next, _ := pieces(1000, 1000)
		calls := 0
		err := a.SendSnapshot(ctx, 2, testHeader(), func() ([]byte, error) {
			if calls++; calls == 10 {
				cancel()
			}
			return next()
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%v, want canceled", err)
		}
		if got := await(t, results); !errors.Is(got.err, ErrSnapshotBroken) {
			t.Errorf("the receiver's handler saw %v", got.err)
		}
	})
	t.Run("chunk too large", func(t *testing.T) {
		b.installs()
		next, _ := pieces(1, SnapshotChunkBytesMax+1)
		if err := a.SendSnapshot(deadlined(t), 2, testHeader(), next); !errors.Is(err, ErrSnapshotTooLarge) {
			t.Errorf("%v", err)
		}
	})
	t.Run("unknown peer", func(t *testing.T) {
		if err := a.SendSnapshot(deadlined(t), 9, testHeader(), nil); !errors.Is(err, ErrUnknownPeer) {
			t.Errorf("%v", err)
		}
	})
	t.Run("nobody there", func(t *testing.T) {
		a.SetAddr(5, "127.0.0.1:1")
		next, _ := pieces(1, 10)
		if err := a.SendSnapshot(deadlined(t), 5, testHeader(), next); !errors.Is(err, ErrSnapshotBroken) {
			t.Errorf("%v", err)
		}
	})
	t.Run("receiver restarts", func(t *testing.T) {
		results := b.installs()
		next, _ := pieces(100, 1000)
		calls := 0
		err := a.SendSnapshot(deadlined(t), 2, testHeader(), func() ([]byte, error) {
			if calls++; calls == 50 {
				b.stop()
				again := startNode(t, nodeSpec{id: 2, boot: 2, addr: b.addr})
				again.installs()
				meet(t, a, again)
			}
			return next()
		})
		if !errors.Is(err, ErrSnapshotBroken) {
			t.Errorf("%v, want broken", err)
		}
		if got := await(t, results); got.err == nil {
			t.Error("the old process installed a part")
		}
	})
}

func TestSnapshotSenderThatVanishes(t *testing.T) {
	a := startNode(t, nodeSpec{id: 1})
	b := startNode(t, nodeSpec{id: 2, change: func(o *Options) { o.Timing.SnapshotGrace = 200 * time.Millisecond }})
	meet(t, a, b)
	awaitUp(t, a, b)
	results := b.installs()
	next, _ := pieces(100, 1000)
	calls := 0
	done := make(chan error, 1)
	a.SendSnapshot(deadlined(t), 2, testHeader(), func() ([]byte, error) {
		if calls++; calls == 50 {
			go func() { a.stop(); done <- nil }()
			eventually(t, "b misses a", func() bool { return !b.Alive(1) })
		}
		return next()
	})
	<-done
	if got := await(t, results); !errors.Is(got.err, ErrSnapshotBroken) {
		t.Errorf("the handler saw %v", got.err)
	}
	eventually(t, "the slot is free", func() bool { return b.Stats().SnapshotsTakenIn == 0 })
}

func TestSnapshotLimits(t *testing.T) {
	one := func(o *Options) { o.Limits.SnapshotReceivesMax = 1; o.Limits.SnapshotSendsMax = 1 }
	a, b, c := startNode(t, nodeSpec{id: 1, change: one}), startNode(t, nodeSpec{id: 2, change: one}), startNode(t, nodeSpec{id: 3})
	meet(t, a, b, c)
	awaitUp(t, a, b, c)
	begun, hold := make(chan struct{}, 10), make(chan struct{})
	b.onSnapshot(func(_ context.Context, _ raft.NodeID, _ SnapshotHeader, next func() ([]byte, error)) error {
		begun <- struct{}{}
		<-hold
		_, err := readAll(next)
		return err
	})
	c.installs()
	first := make(chan error, 1)
	go func() {
		next, _ := pieces(3, 1000)
		first <- a.SendSnapshot(deadlined(t), 2, testHeader(), next)
	}()
	<-begun
	next, _ := pieces(3, 1000)
	if err := c.SendSnapshot(deadlined(t), 2, testHeader(), next); !errors.Is(err, ErrSnapshotBusy) {
		t.Errorf("a second snapshot: %v, want busy", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := a.SendSnapshot(ctx, 3, testHeader(), next); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a second send: %v, want it to wait for its slot", err)
	}
	close(hold)
	if err := <-first; err != nil {
		t.Error(err)
	}
	if err := a.SendSnapshot(deadlined(t), 3, testHeader(), next); err != nil {
		t.Errorf("after the slot is free: %v", err)
	}
}

func deadlined(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// A transfer whose stream broke holds a slot while it waits for its sender; it
// makes room for one whose sender is there.
func TestSnapshotWithoutASenderMakesRoom(t *testing.T) {
	a, c := startNode(t, nodeSpec{id: 1}), startNode(t, nodeSpec{id: 3})
	b := startNode(t, nodeSpec{id: 2, change: func(o *Options) {
		o.Limits.SnapshotReceivesMax = 1
		o.Timing.SnapshotGrace = time.Hour
	}})
	meet(t, a, b, c)
	awaitUp(t, a, b, c)
	results := b.installs()
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := flotillav1.NewBulkClient(a.peer(2).currentLine().bulk).Snapshot(ctx)
	if err != nil {
		t.Fatal(err)
	}
	header := testHeader()
	stream.Send(&flotillav1.SnapshotChunk{Envelope: a.envelopeTo(2), Header: header.encode(), Transfer: 1})
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	cancel()
	eventually(t, "another gets in", func() bool {
		next, _ := pieces(1, 10)
		err := c.SendSnapshot(deadlined(t), 2, testHeader(), next)
		if err != nil && !errors.Is(err, ErrSnapshotBusy) {
			t.Fatal(err)
		}
		return err == nil
	})
	if first := await(t, results); !errors.Is(first.err, ErrSnapshotBroken) {
		t.Errorf("the first ended with %v", first.err)
	}
}

// bulkStream speaks the protocol by hand.
func bulkStream(t *testing.T, from, to *testNode) snapshotClient {
	t.Helper()
	stream, err := flotillav1.NewBulkClient(from.peer(to.id).currentLine().bulk).Snapshot(deadlined(t))
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

func TestSnapshotDamagedOnTheWay(t *testing.T) {
	a, b := pair(t)
	good := func(number uint64) *flotillav1.SnapshotChunk {
		return chunk{number: number, data: []byte("some bytes")}.encode()
	}
	flipped := good(1)
	flipped.Data = []byte("some bytez")
	for i, c := range []struct {
		name   string
		second *flotillav1.SnapshotChunk
	}{
		{"a bit flipped", flipped},
		{"a chunk left out", good(2)},
		{"a huge chunk", chunk{number: 1, data: make([]byte, SnapshotChunkBytesMax+1)}.encode()},
		{"a hello in the middle", &flotillav1.SnapshotChunk{Header: (&SnapshotHeader{}).encode(), Number: 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			results := b.installs()
			stream, header := bulkStream(t, a, b), testHeader()
			stream.Send(&flotillav1.SnapshotChunk{Envelope: a.envelopeTo(2), Header: header.encode(), Transfer: uint64(1000 + i)})
			stream.Send(good(0))
			stream.Send(good(0)) // a repetition does no harm
			stream.Send(c.second)
			got := await(t, results)
			if !errors.Is(got.err, ErrSnapshotDamaged) {
				t.Errorf("the handler saw %v after %q", got.err, got.data)
			}
			for {
				reply, err := stream.Recv()
				if err != nil {
					t.Fatalf("no verdict: %v", err)
				}
				if r := decodeSnapshotReply(reply); r.refusal != refusalNone || r.installed {
					if r.installed || r.refusal != refusalDamaged || r.message == "" {
						t.Errorf("verdict %+v, want damaged and why", r)
					}
					return
				}
			}
		})
	}
}

func TestSnapshotHelloRefused(t *testing.T) {
	a, b := pair(t)
	header := testHeader()
	for _, c := range []struct {
		name  string
		hello *flotillav1.SnapshotChunk
	}{
		{"no envelope", &flotillav1.SnapshotChunk{Header: header.encode()}},
		{"another recipient", &flotillav1.SnapshotChunk{Envelope: a.envelopeTo(3), Header: header.encode()}},
		{"no header", &flotillav1.SnapshotChunk{Envelope: a.envelopeTo(2)}},
		{"an unknown transfer", &flotillav1.SnapshotChunk{Envelope: a.envelopeTo(2), Header: header.encode(), Number: 5}},
	} {
		t.Run(c.name, func(t *testing.T) {
			results := b.installs()
			stream := bulkStream(t, a, b)
			stream.Send(c.hello)
			reply, err := stream.Recv()
			if err == nil && (reply.GetRefusal() == refusalNone || reply.GetMessage() == "") {
				t.Errorf("reply %v", reply)
			}
			if len(results) != 0 {
				t.Error("the handler was called")
			}
		})
	}
}

func TestBucketHoldsTheRate(t *testing.T) {
	b := newBucket(1000)
	now := time.Unix(1000, 0)
	var total time.Duration
	for range 50 {
		wait := b.take(now, 100)
		total += wait
		now = now.Add(wait)
	}
	// 5,000 bytes at 1,000 a second, less what was saved up.
	if total < 4800*time.Millisecond || total > 5*time.Second {
		t.Errorf("5,000 bytes at 1,000/s took %v", total)
	}
	now = now.Add(time.Hour)
	if wait := b.take(now, 100); wait != 0 {
		t.Errorf("after a pause: waits %v", wait)
	}
	if wait := b.take(now, 1000); wait < 900*time.Millisecond {
		t.Errorf("an hour was saved up: waits %v", wait)
	}
	if wait := newBucket(-1).take(now, 1<<30); wait != 0 {
		t.Errorf("no limit: waits %v", wait)
	}
}

func TestSnapshotRate(t *testing.T) {
	a := startNode(t, nodeSpec{id: 1, change: func(o *Options) { o.Limits.SnapshotBytesPerSecond = 1 << 20 }})
	b := startNode(t, nodeSpec{id: 2})
	meet(t, a, b)
	b.installs()
	next, _ := pieces(8, 64<<10)
	begun := time.Now()
	if err := a.SendSnapshot(deadlined(t), 2, testHeader(), next); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took < 300*time.Millisecond {
		t.Errorf("512 KiB at 1 MiB/s took %v", took)
	}
}

// readInto is an install that leaves in got what it read.
func readInto(got *[]byte) func(context.Context, raft.NodeID, SnapshotHeader, func() ([]byte, error)) error {
	return func(_ context.Context, _ raft.NodeID, _ SnapshotHeader, next func() ([]byte, error)) (err error) {
		*got, err = readAll(next)
		return err
	}
}
