package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
)

type watchSender = grpc.ServerStreamingServer[flotillav1.WatchResponse]

// part is a WatchPart of one shard, whose events are puts of a key under their
// versions.
func part(kind flotillav1.WatchPart_Kind, shard, after, version uint64, versions ...uint64) *flotillav1.WatchPart {
	p := &flotillav1.WatchPart{Kind: kind, Shard: shard, After: after, Version: version}
	for _, v := range versions {
		p.Events = append(p.Events, &flotillav1.WatchEvent{Key: []byte("k"), Value: fmt.Append(nil, v), Version: v})
	}
	return p
}

func say(stream watchSender, parts ...*flotillav1.WatchPart) {
	_ = stream.Send(&flotillav1.WatchResponse{Parts: parts})
}

// scripts serves each watch of a cluster with the next of some scripts, and notes
// what was asked for. Behind the last script nothing is said.
func (f *fakeCluster) scripts(of ...func(q *flotillav1.WatchRequest, stream watchSender)) (asked func() []string) {
	var mu sync.Mutex
	var requests []string
	f.change(func() {
		f.watch = func(node uint64, q *flotillav1.WatchRequest, stream watchSender) error {
			mu.Lock()
			n := len(requests)
			line := fmt.Sprintf("node %d group %d:", node, q.Group)
			for _, s := range q.Shards {
				line += fmt.Sprintf(" %d %v @%d", s.Shard, s.Start, s.Version)
			}
			requests = append(requests, line)
			mu.Unlock()
			if n < len(of) {
				of[n](q, stream)
				return nil
			}
			<-stream.Context().Done()
			return nil
		}
	})
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return requests
	}
}

// told reads so many events, as short as they can be written.
func told(t *testing.T, w *Watcher, n int) string {
	t.Helper()
	var all []string
	for range n {
		e, err := w.Next(within(t, 10*time.Second))
		if err != nil {
			t.Fatalf("after %q: %v", all, err)
		}
		all = append(all, fmt.Sprintf("%v@%d", e.Kind, e.Version))
	}
	return strings.Join(all, " ")
}

const (
	partBegin     = flotillav1.WatchPart_BEGIN
	partChanges   = flotillav1.WatchPart_CHANGES
	partState     = flotillav1.WatchPart_STATE
	partStateEnd  = flotillav1.WatchPart_STATE_END
	partMoved     = flotillav1.WatchPart_MOVED
	partCompacted = flotillav1.WatchPart_COMPACTED
)

// A watch follows leaders and moves, and asks each for what it does not have
// yet; what it is told twice it tells once.
func TestAWatchGoesOnElsewhere(t *testing.T) {
	f := newFakeCluster(t, 3)
	moved := part(partMoved, 0, 0, 9)
	moved.Group = 3
	asked := f.scripts(
		func(_ *flotillav1.WatchRequest, stream watchSender) {
			_ = stream.Send(&flotillav1.WatchResponse{Code: flotillav1.Code_NOT_LEADER, LeaderNode: 3, LeaderAddr: f.nodes[2].addr})
		},
		func(_ *flotillav1.WatchRequest, stream watchSender) {
			say(stream, part(partBegin, 0, 0, 5))
			say(stream, part(partChanges, 0, 5, 7, 6, 7))
		}, // the stream ends
		func(_ *flotillav1.WatchRequest, stream watchSender) {
			say(stream, part(partBegin, 0, 0, 7), part(partChanges, 0, 6, 8, 7, 8), part(partChanges, 0, 8, 9), moved)
		},
		func(_ *flotillav1.WatchRequest, stream watchSender) {
			say(stream, part(partBegin, 0, 0, 9), part(partChanges, 0, 9, 10, 10))
			<-stream.Context().Done()
		},
	)
	w, err := f.client(Options{}).Watch(within(t, 20*time.Second), keyOf(0, "k"))
	if err != nil {
		t.Fatal(err)
	}
	if got := told(t, w, 4); got != "put@6 put@7 put@8 put@10" {
		t.Errorf("told %s", got)
	}
	got := asked()
	want := []string{"node 1 group 2: 0 NOW @0", "node 3 group 2: 0 NOW @0", "group 2: 0 AFTER @7", "group 3: 0 AFTER @9"}
	for i := range max(len(got), len(want)) {
		if i >= len(got) || i >= len(want) || !strings.HasSuffix(got[i], want[i]) {
			t.Fatalf("asked\n%s\n\nnot\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
	w.Close()
	if _, err := w.Next(context.Background()); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// What a server leaves out is never passed by in silence.
func TestAGapEndsAWatch(t *testing.T) {
	for name, parts := range map[string][]*flotillav1.WatchPart{
		"changes":  {part(partBegin, 0, 0, 5), part(partChanges, 0, 6, 7, 7)},
		"begin":    {part(partBegin, 0, 0, 6)},
		"moved":    {part(partBegin, 0, 0, 5), part(partMoved, 0, 0, 6)},
		"stranger": {part(partBegin, 1, 0, 5)},
		"state":    {part(partBegin, 0, 0, 5), part(partState, 0, 0, 5, 1)},
	} {
		f := newFakeCluster(t, 1)
		f.scripts(func(_ *flotillav1.WatchRequest, stream watchSender) { say(stream, parts...) })
		w, err := f.client(Options{}).Watch(within(t, 10*time.Second), keyOf(0, "k"), FromVersion(5))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Next(within(t, 5*time.Second)); !errors.Is(err, ErrInternal) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A status is the connection's, not the cluster's: only a response ends a watch
// for good.
func TestALostStreamIsNotTheEnd(t *testing.T) {
	f := newFakeCluster(t, 1)
	var streams atomic.Int64
	f.change(func() {
		f.watch = func(_ uint64, _ *flotillav1.WatchRequest, stream watchSender) error {
			switch n := uint64(streams.Add(1)); n {
			case 4:
				return stream.Send(&flotillav1.WatchResponse{Code: flotillav1.Code_INTERNAL, Message: "a hole"})
			default:
				say(stream, part(partBegin, 0, 0, 4+n), part(partChanges, 0, 4+n, 5+n, 5+n))
				return status.Error(codes.Internal, "stream terminated by RST_STREAM")
			}
		}
	})
	w, err := f.client(Options{}).Watch(within(t, 20*time.Second), keyOf(0, "k"))
	if err != nil {
		t.Fatal(err)
	}
	if got := told(t, w, 3); got != "put@6 put@7 put@8" {
		t.Errorf("told %s", got)
	}
	if _, err := w.Next(within(t, 5*time.Second)); !errors.Is(err, ErrInternal) || !strings.Contains(err.Error(), "a hole") {
		t.Errorf("it ends with %v", err)
	}
}

// A shard whose past is gone is reset, told anew, and goes on behind that. A
// token given meanwhile begins with the keys again, one given later does not.
func TestACompactedShardIsReset(t *testing.T) {
	f := newFakeCluster(t, 1)
	asked := f.scripts(
		func(_ *flotillav1.WatchRequest, stream watchSender) { say(stream, part(partCompacted, 0, 0, 8)) },
		func(_ *flotillav1.WatchRequest, stream watchSender) {
			say(stream, part(partBegin, 0, 0, 9), part(partState, 0, 0, 9, 3, 4), part(partStateEnd, 0, 0, 9, 9))
			say(stream, part(partChanges, 0, 9, 10, 10), part(partChanges, 0, 10, 12))
			<-stream.Context().Done()
		},
	)
	c := f.client(Options{})
	key := keyOf(0, "k")
	w, err := c.Watch(within(t, 20*time.Second), key, FromVersion(5))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	tokens := [][]byte{w.Token()}
	for _, want := range []string{"reset@9 put@3 put@4 put@9", "complete@9", "put@10"} {
		if got := told(t, w, len(strings.Fields(want))); got != want {
			t.Fatalf("told %s, not %s", got, want)
		}
		tokens = append(tokens, w.Token())
	}
	if _, err := w.Next(within(t, 50*time.Millisecond)); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("more: %v", err)
	}
	tokens = append(tokens, w.Token()) // nothing matched, but it has come so far
	for i, want := range []string{"0 AFTER @5", "0 STATE @0", "0 AFTER @9", "0 AFTER @10", "0 AFTER @12"} {
		again, err := c.Watch(within(t, 10*time.Second), key, FromToken(tokens[i]))
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "asked "+want, func() bool { return len(asked()) == 3+i })
		again.Close()
		if got := asked()[2+i]; !strings.HasSuffix(got, want) {
			t.Errorf("with token %d it asked %s", i, got)
		}
	}
	if _, err := c.Watch(within(t, time.Second), keyOf(0, "other"), FromToken(tokens[0])); !errors.Is(err, ErrInvalid) {
		t.Errorf("a token of another key: %v", err)
	}
	elsewhere := slices.Clone(tokens[0])
	elsewhere[1]++
	if _, err := c.Watch(within(t, time.Second), key, FromToken(elsewhere)); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "another cluster") {
		t.Errorf("a token of another cluster: %v", err)
	}
	for i := range tokens[0] {
		if _, err := c.Watch(within(t, time.Second), key, FromToken(tokens[0][:i])); !errors.Is(err, ErrInvalid) {
			t.Errorf("a token cut to %d bytes: %v", i, err)
		}
	}
}

// A shard that is compacted while its keys are read is not read again and again.
func TestACompactedShardIsTriedLessAndLess(t *testing.T) {
	for name, parts := range map[string][]*flotillav1.WatchPart{
		"at once":        {part(partCompacted, 0, 0, 8)},
		"when it begins": {part(partBegin, 0, 0, 9), part(partState, 0, 0, 9, 3), part(partCompacted, 0, 0, 10)},
	} {
		f := newFakeCluster(t, 1)
		var streams atomic.Int64
		f.change(func() {
			f.watch = func(_ uint64, _ *flotillav1.WatchRequest, stream watchSender) error {
				streams.Add(1)
				say(stream, parts...)
				return nil
			}
		})
		w, err := f.client(Options{}).Watch(within(t, 20*time.Second), keyOf(0, "k"), WithState())
		if err != nil {
			t.Fatal(err)
		}
		for ctx := within(t, time.Second); ; {
			if _, err := w.Next(ctx); err != nil {
				break
			}
		}
		// 4 ms, 8, 16 ... at least half of each
		if n := streams.Load(); n < 3 || n > 12 {
			t.Errorf("compacted %s: it was tried %d times", name, n)
		}
		w.Close()
	}
}

// One stream watches all shards of a group, also those that come to it.
func TestAPrefixHasAStreamForEachGroup(t *testing.T) {
	f := newFakeCluster(t, 1)
	var mu sync.Mutex
	open, shards := make(map[uint64]int), make(map[uint64]int) // by group: streams, and what the last one watches
	begun := make(map[uint64]bool)
	f.change(func() {
		f.watch = func(_ uint64, q *flotillav1.WatchRequest, stream watchSender) error {
			mu.Lock()
			open[q.Group]++
			if stream.Context().Err() == nil { // it may begin here when it has ended there
				shards[q.Group] = len(q.Shards)
			}
			first := !begun[q.Group]
			begun[q.Group] = true
			mu.Unlock()
			defer func() {
				mu.Lock()
				open[q.Group]--
				mu.Unlock()
			}()
			var parts []*flotillav1.WatchPart
			for _, s := range q.Shards {
				parts = append(parts, part(partBegin, s.Shard, 0, s.Version))
			}
			say(stream, parts...)
			if first && q.Group == 2 {
				for i := range 3 {
					moved := part(partMoved, uint64(2*i), 0, 0)
					moved.Group = 3
					say(stream, moved)
				}
			}
			<-stream.Context().Done()
			return nil
		}
	})
	w, err := f.client(Options{}).WatchPrefix(within(t, 10*time.Second), "")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	eventually(t, "5 shards watched at group 2 and 11 at group 3", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return open[2] == 1 && shards[2] == 5 && open[3] == 1 && shards[3] == 11
	})
}

// A node that says nothing is left, though the connection stands.
func TestASilentNodeIsLeft(t *testing.T) {
	if testing.Short() {
		t.Skip("it waits for a silence")
	}
	f := newFakeCluster(t, 3)
	asked := f.scripts(
		func(_ *flotillav1.WatchRequest, stream watchSender) {
			say(stream, part(partBegin, 0, 0, 5))
			<-stream.Context().Done()
		},
		func(_ *flotillav1.WatchRequest, stream watchSender) {
			say(stream, part(partBegin, 0, 0, 5), part(partChanges, 0, 5, 6, 6))
			<-stream.Context().Done()
		},
	)
	w, err := f.client(Options{}).Watch(within(t, 20*time.Second), keyOf(0, "k"))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	began := time.Now()
	if got := told(t, w, 1); got != "put@6" || asked()[0][:6] == asked()[1][:6] {
		t.Errorf("told %s; asked %q", got, asked())
	}
	if took := time.Since(began); took > watchSilence+2*time.Second {
		t.Errorf("it took %v", took)
	}
}

// A watch that nobody can begin ends with its time, one of a closed client at
// once, and a wrong one says why.
func TestWatchesThatDoNotBegin(t *testing.T) {
	f := newFakeCluster(t, 1)
	f.scripts()
	c := f.client(Options{Timeout: 50 * time.Millisecond})
	if _, err := c.Watch(context.Background(), "k"); !errors.Is(err, ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("nobody answers: %v", err)
	}
	f.scripts(slices.Repeat([]func(*flotillav1.WatchRequest, watchSender){func(_ *flotillav1.WatchRequest, stream watchSender) {
		_ = stream.Send(&flotillav1.WatchResponse{Code: flotillav1.Code_BUSY, Message: "too many watches"})
	}}, 100)...)
	if _, err := c.Watch(context.Background(), "k"); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "node 1 ") || !strings.Contains(err.Error(), "too many watches") {
		t.Errorf("everybody refuses: %v", err)
	}
	if _, err := c.Watch(context.Background(), ""); !errors.Is(err, ErrInvalid) {
		t.Errorf("an empty key: %v", err)
	}
	if _, err := c.WatchPrefix(context.Background(), "k", FromVersion(3)); !errors.Is(err, ErrInvalid) {
		t.Errorf("a prefix from a version: %v", err)
	}
	f.scripts(func(_ *flotillav1.WatchRequest, stream watchSender) {
		_ = stream.Send(&flotillav1.WatchResponse{Code: flotillav1.Code_INVALID, Message: "so it is"})
	})
	if _, err := c.Watch(context.Background(), "k"); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "so it is") {
		t.Errorf("refused: %v", err)
	}
	f.scripts(func(q *flotillav1.WatchRequest, stream watchSender) {
		say(stream, part(partBegin, q.Shards[0].Shard, 0, 5))
		<-stream.Context().Done()
	})
	ctx, cancel := context.WithCancel(context.Background())
	w, err := c.Watch(ctx, "k")
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := w.Next(context.Background()); !errors.Is(err, context.Canceled) {
		t.Errorf("its context ended: %v", err)
	}
	w, err = c.Watch(context.Background(), "k", FromVersion(5))
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if _, err := w.Next(context.Background()); !errors.Is(err, ErrClosed) {
		t.Errorf("the client was closed: %v", err)
	}
	if _, err := c.Watch(context.Background(), "k", FromVersion(5)); !errors.Is(err, ErrClosed) {
		t.Errorf("a watch of a closed client: %v", err)
	}
}

// Who is not read blocks its stream and nothing else, and loses nothing.
func TestAWatchThatIsNotReadWaits(t *testing.T) {
	f := newFakeCluster(t, 1)
	const messages = 5 * watchQueue
	f.scripts(func(_ *flotillav1.WatchRequest, stream watchSender) {
		say(stream, part(partBegin, 0, 0, 0))
		for v := range uint64(messages) {
			say(stream, part(partChanges, 0, v, v+1, v+1))
		}
		<-stream.Context().Done()
	})
	c := f.client(Options{})
	w, err := c.Watch(within(t, 20*time.Second), keyOf(0, "k"))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	eventually(t, "the queue is full", func() bool { return len(w.items) == watchQueue })
	if _, err := c.Put(within(t, 5*time.Second), "k", nil); err != nil {
		t.Fatal(err)
	}
	for v := range uint64(messages) {
		if e, err := w.Next(within(t, 5*time.Second)); err != nil || e.Version != v+1 {
			t.Fatalf("version %d behind %d: %v", e.Version, v, err)
		}
	}
}
