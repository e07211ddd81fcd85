package client

import (
	"context"
	"sync"
)

// gate bounds the calls under way and their bytes. Those who wait go in in
// their order.
type gate struct {
	callsMax, bytesMax int

	mu           sync.Mutex // guards what follows
	calls, bytes int
	waiting      []*gateWaiter
	closed       bool
}

type gateWaiter struct {
	bytes int
	in    chan struct{} // closed when it is in, or the gate is closed
}

func newGate(callsMax, bytesMax int) *gate {
	return &gate{callsMax: callsMax, bytesMax: bytesMax}
}

// weight is what a request of so many bytes counts for: one that is larger
// than the whole bound still goes, alone.
func (g *gate) weight(bytes int) int { return min(bytes, g.bytesMax) }

// try goes in if there is room and nobody waits.
func (g *gate) try(bytes int) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.waiting) == 0 && g.enter(g.weight(bytes))
}

func (g *gate) enter(weight int) bool {
	if g.calls >= g.callsMax || g.bytes+weight > g.bytesMax {
		return false
	}
	g.calls++
	g.bytes += weight
	return true
}

// wait goes in when there is room. On an error it is not in.
func (g *gate) wait(ctx context.Context, bytes int) error {
	g.mu.Lock()
	if g.closed {
		g.mu.Unlock()
		return ErrClosed
	}
	if len(g.waiting) == 0 && g.enter(g.weight(bytes)) {
		g.mu.Unlock()
		return nil
	}
	w := &gateWaiter{bytes: bytes, in: make(chan struct{})}
	g.waiting = append(g.waiting, w)
	g.mu.Unlock()
	select {
	case <-w.in:
		return g.entered()
	case <-ctx.Done():
		return g.giveUp(ctx, w)
	}
}

func (g *gate) entered() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return ErrClosed
	}
	return nil
}

// giveUp leaves the queue, or the gate if the turn came at the same moment.
func (g *gate) giveUp(ctx context.Context, w *gateWaiter) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i, other := range g.waiting {
		if other == w {
			g.waiting = append(g.waiting[:i], g.waiting[i+1:]...)
			g.admit()
			return ctx.Err()
		}
	}
	if !g.closed {
		g.exit(w.bytes)
	}
	return ctx.Err()
}

// leave makes room.
func (g *gate) leave(bytes int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.exit(bytes)
}

func (g *gate) exit(bytes int) {
	g.calls--
	g.bytes -= g.weight(bytes)
	g.admit()
}

func (g *gate) admit() {
	for len(g.waiting) > 0 && g.enter(g.weight(g.waiting[0].bytes)) {
		close(g.waiting[0].in)
		g.waiting = g.waiting[1:]
	}
}

// close turns away those who wait and those who come.
func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	for _, w := range g.waiting {
		close(w.in)
	}
	g.waiting = nil
}
