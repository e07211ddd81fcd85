package main

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
)

// Watch tells of a put, a deletion and a clear behind version 5, and then ends
// what watched it.
func (s *kvStub) Watch(q *flotillav1.WatchRequest, stream grpc.ServerStreamingServer[flotillav1.WatchResponse]) error {
	s.mu.Lock()
	s.watched = append(s.watched, q.GetShards()[0])
	s.mu.Unlock()
	events := []*flotillav1.WatchEvent{
		{Kind: flotillav1.WatchEvent_PUT, Key: []byte("k"), Value: []byte{0xff}, Version: 6, ExpireAtMs: 1},
		{Kind: flotillav1.WatchEvent_DELETE, Key: []byte("k"), Version: 7},
		{Kind: flotillav1.WatchEvent_CLEAR, Key: []byte("a"), Prefix: []byte("k"), Version: 8},
	}
	err := stream.Send(&flotillav1.WatchResponse{Parts: []*flotillav1.WatchPart{
		{Kind: flotillav1.WatchPart_BEGIN, Version: 5},
		{Kind: flotillav1.WatchPart_CHANGES, After: 5, Version: 8, Events: events},
	}})
	<-stream.Context().Done()
	return err
}

// lines is an output that interrupts who writes to it after so many lines.
type lines struct {
	mu   sync.Mutex // guards what follows
	b    bytes.Buffer
	left int
	stop context.CancelFunc
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.left -= bytes.Count(p, []byte("\n")); l.left <= 0 {
		l.stop()
	}
	return l.b.Write(p)
}

func TestWatchPrintsALineAnEvent(t *testing.T) {
	s := newKVStub(t)
	const (
		table = "put\t6\tk\t\xff\ndelete\t7\tk\nclear\t8\tfrom \"a\" to \"\", prefix \"k\"\n"
		first = `{"kind":"put","shard":0,"version":6,"key":"k","value":"/w==","encoding":"base64","expires_at":"1970-01-01T00:00:00.001Z","end":"","prefix":"","token":""}` + "\n"
	)
	watch := func(args ...string) (stdout, stderr string) {
		t.Helper()
		ctx, stop := context.WithTimeout(context.Background(), 10*time.Second)
		defer stop()
		out, complaints := &lines{left: 3, stop: stop}, new(bytes.Buffer)
		if code := run(ctx, append([]string{"watch", "--server", s.addr}, args...), nil, out, complaints); code != exitOK {
			t.Fatalf("watch %v exits with %d: %s", args, code, complaints)
		}
		return out.b.String(), complaints.String()
	}
	if got, _ := watch("k"); got != table {
		t.Errorf("it prints\n%s", got)
	}
	if got, _ := watch("--prefix", "", "-o", "json"); !strings.HasPrefix(got, first) {
		t.Errorf("it prints\n%s", got)
	}
	got, complaint := watch("k", "--from", "5", "--tokens", "-o", "json")
	token, found := strings.CutPrefix(strings.TrimSpace(complaint), "to go on: --from ")
	if !found || !strings.HasSuffix(got, `"token":"`+token+"\"}\n") {
		t.Errorf("it ends with %q and prints\n%s", complaint, got)
	}
	s.mu.Lock()
	last := s.watched[2]
	s.mu.Unlock()
	if last.Start != flotillav1.WatchFrom_AFTER || last.Version != 5 {
		t.Errorf("it asked for %v", last)
	}
}

// fullDisk takes so many lines and no more.
type fullDisk struct{ left int }

func (d *fullDisk) Write(p []byte) (int, error) {
	if d.left--; d.left < 0 {
		return 0, errors.New("no space left")
	}
	return len(p), nil
}

// What was not printed is told again by who goes on.
func TestWatchGoesOnBehindWhatItHasPrinted(t *testing.T) {
	s := newKVStub(t)
	ctx, stop := context.WithTimeout(context.Background(), 10*time.Second)
	defer stop()
	complaints := new(bytes.Buffer)
	if code := run(ctx, []string{"watch", "--server", s.addr, "k"}, nil, &fullDisk{left: 1}, complaints); code == exitOK {
		t.Fatal("nobody has noticed that the disk is full")
	}
	_, token, _ := strings.Cut(complaints.String(), "to go on: --from ")
	token, _, _ = strings.Cut(token, "\n")
	run(ctx, []string{"watch", "--server", s.addr, "k", "--from", token}, nil, &fullDisk{}, complaints)
	s.mu.Lock()
	defer s.mu.Unlock()
	if last := s.watched[len(s.watched)-1]; len(s.watched) != 2 || last.Version != 6 {
		t.Errorf("it goes on with %v after %s", last, complaints)
	}
}

func TestWrongWatches(t *testing.T) {
	for _, args := range [][]string{
		{}, {"k", "--prefix", "k"}, {"--prefix", "k", "--from", "5"}, {"k", "--from", "?"}, {"k", "--from", "5", "--state"}, {"k", "-o", "xml"}, {"k", "--timeout", "0s"},
	} {
		var out, complaint bytes.Buffer
		if code := run(context.Background(), append([]string{"watch"}, args...), nil, &out, &complaint); code != exitUsage {
			t.Errorf("watch %v exits with %d: %s", args, code, &complaint)
		}
	}
}
