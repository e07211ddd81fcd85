package client

import (
	"context"
	"errors"
	"testing"
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
)

func TestTheGateBoundsCallsAndBytesInOrder(t *testing.T) {
	g := newGate(2, 100)
	ctx := context.Background()
	if err := g.wait(ctx, 60); err != nil {
		t.Fatal(err)
	}
	if g.try(60) {
		t.Fatal("past the bytes")
	}
	entered := make(chan int, 2)
	for i := range 2 {
		waiting := len(g.waiting)
		go func() {
			if g.wait(ctx, 60-20*i) == nil {
				entered <- i
			}
		}()
		eventually(t, "it waits", func() bool {
			g.mu.Lock()
			defer g.mu.Unlock()
			return len(g.waiting) == waiting+1
		})
	}
	if g.try(1) {
		t.Fatal("past those who wait")
	}
	g.leave(60)
	if first, second := <-entered, <-entered; first+second != 1 {
		t.Fatalf("%d and %d", first, second)
	}
	g.leave(60)
	g.leave(40)
	if g.calls != 0 || g.bytes != 0 {
		t.Fatalf("%d calls and %d bytes left", g.calls, g.bytes)
	}
	if !g.try(1000) {
		t.Fatal("a request larger than the bound must go alone")
	}
}

func TestOneWhoGivesUpAtTheGateLeavesNothing(t *testing.T) {
	g := newGate(1, 100)
	if !g.try(1) {
		t.Fatal("empty")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := g.wait(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	g.leave(1)
	if g.calls != 0 || g.bytes != 0 || len(g.waiting) != 0 {
		t.Fatalf("%d calls, %d bytes, %d waiting", g.calls, g.bytes, len(g.waiting))
	}
	g.close()
	if err := g.wait(context.Background(), 1); !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
}

func TestPastItsBoundSubmitIsBusyAndMethodsWait(t *testing.T) {
	f := newFakeCluster(t, 1)
	f.intercept = func(uint64, *flotillav1.Request) (*flotillav1.Response, bool) { return nil, true }
	c := f.client(Options{CallsMax: 1})
	first := make(chan error, 1)
	c.Submit(writeRequest(incrOp("k", 1)), func(_ *flotillav1.Response, err error) { first <- err })
	second := make(chan error, 1)
	c.Submit(writeRequest(incrOp("k", 1)), func(_ *flotillav1.Response, err error) { second <- err })
	if err := <-second; !errors.Is(err, ErrBusy) {
		t.Fatal(err)
	}
	if _, err := c.Incr(within(t, 50*time.Millisecond), "k", 1); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrUnknownOutcome) {
		t.Fatal(err)
	}
	c.Close()
	<-first
}

func TestOneWhoGivesUpAsItsTurnComesMakesRoomAgain(t *testing.T) {
	g := newGate(1, 100)
	g.try(1)
	w := &gateWaiter{bytes: 1, in: make(chan struct{})}
	g.waiting = append(g.waiting, w)
	g.leave(1) // its turn comes,
	<-w.in
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := g.giveUp(ctx, w); !errors.Is(err, context.Canceled) { // and it has gone
		t.Fatal(err)
	}
	if !g.try(1) {
		t.Fatal("its room is lost")
	}
}

func TestEveryCallLeavesTheGate(t *testing.T) {
	c := newFakeCluster(t, 1).client(Options{CallsMax: 2})
	for range 10 {
		if _, err := c.Incr(within(t, 5*time.Second), "k", 1); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		c.Submit(writeRequest(incrOp("k", 1)), func(_ *flotillav1.Response, err error) { done <- err })
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if c.gate.calls != 0 || c.gate.bytes != 0 {
		t.Fatalf("%d calls and %d bytes are left in the gate", c.gate.calls, c.gate.bytes)
	}
}
