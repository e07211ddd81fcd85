package client

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// stuckDialer makes connections whose first Send blocks until it is told to
// break.
type stuckDialer struct {
	entered chan struct{}
	fail    chan struct{}
	once    sync.Once
	dialled atomic.Bool
}

// Dial makes one connection; after it the node cannot be reached.
func (d *stuckDialer) Dial(context.Context, Target, func([]*flotillav1.Response, error)) (Conn, error) {
	if d.dialled.Swap(true) {
		return nil, errBroken
	}
	return d, nil
}

var errBroken = errors.New("broken")

func (d *stuckDialer) Send([]*flotillav1.Request) error {
	d.once.Do(func() { close(d.entered) })
	<-d.fail
	return errBroken
}

func (d *stuckDialer) Close() error { return nil }

// TestWhatNeverLeftIsToldApartFromWhatDid: of three requests one is in the Send
// that fails, two are still queued.
func TestWhatNeverLeftIsToldApartFromWhatDid(t *testing.T) {
	f := newFakeCluster(t, 1)
	d := &stuckDialer{entered: make(chan struct{}), fail: make(chan struct{})}
	m, err := decodeMap(f.wireMap())
	if err != nil {
		t.Fatal(err)
	}
	c := f.client(Options{Dialer: d, Maps: fixedMap{m}})
	errs := make(chan error, 3)
	put := func() { _, err := c.Put(within(t, 300*time.Millisecond), "k", nil); errs <- err }
	go put()
	<-d.entered
	go put()
	go put()
	eventually(t, "two are queued", func() bool {
		c.linksMu.Lock()
		defer c.linksMu.Unlock()
		for _, l := range c.links {
			l.mu.Lock()
			defer l.mu.Unlock()
			return len(l.queue) == 2
		}
		return false
	})
	close(d.fail)
	var unknown int
	for range 3 {
		err := <-errs
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		if errors.Is(err, ErrUnknownOutcome) {
			unknown++
		}
	}
	if unknown != 1 {
		t.Errorf("%d writes may have happened, one was sent", unknown)
	}
}

func TestAMessageIsBounded(t *testing.T) {
	small := &flotillav1.Request{Ops: []*flotillav1.Op{putOp("k", nil, nil)}}
	large := &flotillav1.Request{Ops: []*flotillav1.Op{putOp("k", make([]byte, ValueBytesMax), nil)}}
	for name, test := range map[string]struct {
		batch []*flotillav1.Request
		want  int
	}{
		"one":        {[]*flotillav1.Request{small}, 1},
		"many":       {slices.Repeat([]*flotillav1.Request{small}, 3*messageRequestsMax), messageRequestsMax},
		"large":      {[]*flotillav1.Request{large, small}, 1},
		"then large": {[]*flotillav1.Request{small, large}, 1},
	} {
		if n := messageLength(test.batch); n != test.want {
			t.Errorf("%s: %d requests in a message, want %d", name, n, test.want)
		}
	}
}

// fixedMap is the map of a cluster that does not change.
type fixedMap struct{ m *shardmap.Map }

func (f fixedMap) Current() *shardmap.Map   { return f.m }
func (f fixedMap) Changed() <-chan struct{} { return nil }
func (f fixedMap) Refresh(uint64)           {}
