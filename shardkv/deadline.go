package shardkv

import (
	"context"
	"sync"
	"time"
)

// wheelTick is how exact deadlines are, and wheelSlots how many ticks ahead
// the wheel sees; later deadlines go round again.
const (
	wheelTick  = 10 * time.Millisecond
	wheelSlots = 1024
)

// wheel calls expire for calls whose time is up. It costs no timer for a call:
// they lie in lists, one for each tick, and one goroutine goes round while
// there are any. A call that is answered leaves its list at once.
type wheel struct {
	expire func(*call)

	mu      sync.Mutex // guards what follows, and the links of all calls in it
	slots   [wheelSlots]*call
	at      int // the slot that is due next
	pending int
	wake    chan struct{} // has an element when the wheel is to turn
}

// links place a call in the wheel.
type links struct {
	prev, next *call
	slot       int
	rounds     int // how often the wheel still passes by
	in         bool
}

func newWheel(expire func(*call)) *wheel { return &wheel{expire: expire, wake: make(chan struct{}, 1)} }

// add puts a call into the slot of its deadline.
func (w *wheel) add(c *call, after time.Duration) {
	ticks := max(1, int(after/wheelTick))
	w.mu.Lock()
	c.links = links{
		slot:   (w.at + (ticks-1)%wheelSlots) % wheelSlots,
		rounds: (ticks - 1) / wheelSlots,
		in:     true,
	}
	if c.next = w.slots[c.slot]; c.next != nil {
		c.next.prev = c
	}
	w.slots[c.slot] = c
	w.pending++
	first := w.pending == 1
	w.mu.Unlock()
	if first {
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

// remove takes a call out, if it is in.
func (w *wheel) remove(c *call) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.unlink(c)
}

func (w *wheel) unlink(c *call) {
	if !c.in {
		return
	}
	if c.prev != nil {
		c.prev.next = c.next
	} else {
		w.slots[c.slot] = c.next
	}
	if c.next != nil {
		c.next.prev = c.prev
	}
	c.links = links{}
	w.pending--
}

// run turns the wheel until ctx ends. It stands still while it is empty.
func (w *wheel) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		}
		if !w.goRound(ctx) {
			return
		}
	}
}

// goRound turns until the wheel is empty; false: ctx has ended.
func (w *wheel) goRound(ctx context.Context) bool {
	tick := time.NewTicker(wheelTick)
	defer tick.Stop()
	for left := true; left; {
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
		left = w.turn()
	}
	return true
}

// turn expires the calls of the slot that is due; left: there are others.
func (w *wheel) turn() (left bool) {
	w.mu.Lock()
	var expired []*call
	for c := w.slots[w.at]; c != nil; {
		next := c.next
		if c.rounds > 0 {
			c.rounds--
		} else {
			w.unlink(c)
			expired = append(expired, c)
		}
		c = next
	}
	w.at = (w.at + 1) % wheelSlots
	left = w.pending > 0
	w.mu.Unlock()
	for _, c := range expired {
		w.expire(c)
	}
	return left
}
