package client

import (
	"context"
	"sync"
	"time"
)

// alarm calls the router's Tick when it is due. It may ring early, never more
// than a timer's tolerance late.
type alarm struct {
	mu   sync.Mutex // guards at
	at   time.Time  // when it will ring; zero: not set
	poke chan struct{}
}

func newAlarm() *alarm { return &alarm{poke: make(chan struct{}, 1)} }

// set makes it ring at the given time if it would ring later. A zero time
// asks for nothing.
func (a *alarm) set(at time.Time) {
	if at.IsZero() {
		return
	}
	a.mu.Lock()
	sooner := a.at.IsZero() || at.Before(a.at)
	if sooner {
		a.at = at
	}
	a.mu.Unlock()
	if sooner {
		select {
		case a.poke <- struct{}{}:
		default:
		}
	}
}

// run rings until ctx ends. ring sets the alarm anew.
func (a *alarm) run(ctx context.Context, clock func() time.Time, ring func()) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		a.mu.Lock()
		at := a.at
		a.mu.Unlock()
		if at.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(at.Sub(clock()))
		}
		select {
		case <-ctx.Done():
			return
		case <-a.poke:
		case <-timer.C:
			a.mu.Lock()
			a.at = time.Time{}
			a.mu.Unlock()
			ring()
		}
	}
}
