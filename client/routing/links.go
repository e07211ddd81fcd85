package routing

import (
	"slices"
	"time"
)

// Pace of reconnecting to a node that cannot be reached.
const (
	reconnectMin = 20 * time.Millisecond
	reconnectMax = 500 * time.Millisecond
)

// link is the connection to one node as the router knows it. While it is down
// calls go elsewhere or wait; none is kept waiting for one that failed.
type link struct {
	target  Target
	state   linkState
	delay   time.Duration // until the next attempt to connect; 0: nothing failed
	retryAt time.Time
	waiting []*Call // until it is up or down

	heard   time.Time // when something last came over it
	silence time.Time // when a request that it has been silent on since ended; zero: none
	ending  bool      // it was given up, and is still to break
}

type linkState uint8

const (
	linkIdle linkState = iota
	linkConnecting
	linkUp
)

// link finds or makes the link to a target.
func (r *Router) link(to Target) *link {
	l := r.links[to.Addr]
	if l == nil {
		l = &link{target: to}
		r.links[to.Addr] = l
	}
	return l
}

// usable reports whether it makes sense to turn to a node now.
func (r *Router) usable(now time.Time) func(addr string) bool {
	return func(addr string) bool {
		l := r.links[addr]
		return l == nil || l.state != linkIdle || !now.Before(l.retryAt)
	}
}

// LinkUp says that the connection that Output.Connect asked for is made.
func (r *Router) LinkUp(now time.Time, addr string) {
	l := r.links[addr]
	if l == nil || l.state != linkConnecting {
		return
	}
	l.state = linkUp
	l.heard, l.silence, l.ending = now, time.Time{}, false
	waiting := l.waiting
	l.waiting = nil
	for _, c := range waiting {
		if c.state == stateLinking && c.link == l {
			r.emit(now, c, l)
		}
	}
}

// LinkDown says that the connection to a node could not be made, or broke, and
// which of the requests handed to it had not left by then.
func (r *Router) LinkDown(now time.Time, addr string, cause error, unsent []uint64) {
	l := r.links[addr]
	if l == nil || l.state == linkIdle {
		return
	}
	waiting := l.waiting
	l.waiting = nil
	l.state = linkIdle
	l.delay = min(max(l.delay*13/10, reconnectMin), reconnectMax)
	l.retryAt = now.Add(l.delay)
	for _, g := range r.routes.groups {
		g.skip(l.target)
	}
	message := l.target.Addr
	if cause != nil {
		message += ": " + cause.Error()
	}
	for _, id := range unsent {
		if c := r.inFlight[id]; c != nil && c.link == l {
			r.failed(now, c, CauseUnsent, message)
		}
	}
	for _, c := range r.sentOver(l) {
		r.failed(now, c, CauseLost, message)
	}
	for _, c := range waiting {
		if c.state == stateLinking && c.link == l {
			r.failed(now, c, CauseUnsent, message)
		}
	}
}

// Heard says that something came over the connection to a node.
func (r *Router) Heard(now time.Time, addr string) {
	if l := r.links[addr]; l != nil {
		l.heard, l.silence = now, time.Time{}
	}
}

// silenceMax is how long after a first request in vain a second one ends the
// connection.
const silenceMax = time.Second

// silent notes that a request's time was over without a word from its node. A
// node answers by then even what it cannot do, so one that lets two requests
// pass in total silence is out of reach, though its connection stands: half
// open, as after a cable was pulled. A new one may reach it.
func (r *Router) silent(now time.Time, c *Call) {
	l := c.link
	switch {
	case c.state != stateInFlight || l.state != linkUp || l.ending || l.heard.After(c.sent):
	case l.silence.IsZero():
		l.silence = now
	case now.Sub(l.silence) >= silenceMax:
		l.ending = true
		r.out.Disconnect = append(r.out.Disconnect, l.target.Addr)
	}
}

// sentOver lists the calls under way on a link, in the order they were sent.
func (r *Router) sentOver(l *link) []*Call {
	var calls []*Call
	for _, c := range r.inFlight {
		if c.link == l {
			calls = append(calls, c)
		}
	}
	slices.SortFunc(calls, func(a, b *Call) int {
		if a.id < b.id {
			return -1
		}
		return 1
	})
	return calls
}

// dropLinks gives up the connections to nodes that are no longer in the map
// and that nobody waits for.
func (r *Router) dropLinks() {
	wanted := make(map[string]bool, len(r.routes.current.Nodes))
	for _, n := range r.routes.current.Nodes {
		wanted[n.Addr] = true
	}
	for _, c := range r.inFlight {
		wanted[c.link.target.Addr] = true
	}
	var gone []string
	for addr, l := range r.links {
		if !wanted[addr] && len(l.waiting) == 0 && l.state != linkConnecting {
			gone = append(gone, addr)
		}
	}
	slices.Sort(gone)
	for _, addr := range gone {
		if r.links[addr].state == linkUp {
			r.out.Disconnect = append(r.out.Disconnect, addr)
		}
		delete(r.links, addr)
	}
}
