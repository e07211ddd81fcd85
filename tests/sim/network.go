package sim

import (
	"slices"
	"time"
)

// party is an end of the network: a node by its place from 1, a client below 0.
type party int

type direction struct{ from, to party }

// network decides what becomes of what is sent.
type network struct {
	w       *world
	blocked map[direction]bool
	calm    bool
	order   map[direction]time.Duration // when the last of an ordered stream arrives
}

func newNetwork(w *world) network {
	return network{w: w, blocked: make(map[direction]bool), order: make(map[direction]time.Duration)}
}

// fates are the delays after which copies of a datagram arrive; none: it is
// lost.
func (n *network) fates(from, to party) (delays []time.Duration) {
	w, p := n.w, &n.w.profile
	if n.blocked[direction{from, to}] {
		return nil
	}
	if n.calm {
		return []time.Duration{w.upTo(2 * time.Millisecond)}
	}
	if w.rng.IntN(1000) < p.drop {
		return nil
	}
	copies := 1
	if w.rng.IntN(1000) < p.repeat {
		copies = 2
	}
	for range copies {
		d := w.upTo(p.delay)
		if w.rng.IntN(1000) < p.late {
			d += w.upTo(p.lateMost)
		}
		delays = append(delays, d)
	}
	return delays
}

// passes is the delay of the next message of an ordered stream; false: nothing
// passes now.
func (n *network) passes(from, to party) (time.Duration, bool) {
	w := n.w
	key := direction{from, to}
	if n.blocked[key] {
		return 0, false
	}
	d := w.upTo(2 * time.Millisecond)
	if !n.calm {
		d = w.upTo(w.profile.delay)
	}
	at := max(w.now+d, n.order[key])
	n.order[key] = at
	return at - w.now, true
}

// cut blocks a direction, and the other one too if both.
func (n *network) cut(from, to party, both bool) {
	if from == to {
		return
	}
	n.blocked[direction{from, to}] = true
	if both {
		n.blocked[direction{to, from}] = true
	}
}

func (n *network) heal() { clear(n.blocked) }

// split cuts every pair of the two sides.
func (n *network) split(a, b []party, both bool) {
	for _, x := range a {
		for _, y := range b {
			n.cut(x, y, both)
		}
	}
}

// ring lets everybody hear only his neighbours in the order given: each sees
// another majority.
func (n *network) ring(all []party, reach int) {
	for i, x := range all {
		for j, y := range all {
			apart := min((i-j+len(all))%len(all), (j-i+len(all))%len(all))
			if apart > reach {
				n.cut(x, y, true)
			}
		}
	}
}

// chain lets everybody hear only who stands next to him.
func (n *network) chain(all []party) {
	for i, x := range all {
		for j, y := range all {
			if i-j > 1 || j-i > 1 {
				n.cut(x, y, true)
			}
		}
	}
}

// parties are the nodes, in an order that is drawn.
func (w *world) parties() []party {
	var all []party
	for _, n := range w.nodes {
		if !n.wiped {
			all = append(all, party(n.place))
		}
	}
	w.rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all
}

// swizzle clogs some nodes one by one and lets them go in another order.
func (w *world) swizzle() {
	all := w.parties()
	some := all[:1+w.rng.IntN(len(all))]
	at := time.Duration(0)
	for _, x := range some {
		w.after(at, func() {
			if w.phase == phaseFaulty {
				w.note("clog", int(x), 0, 0, nil)
				w.network.split([]party{x}, all, true)
			}
		})
		at += w.upTo(300 * time.Millisecond)
	}
	back := slices.Clone(some)
	w.rng.Shuffle(len(back), func(i, j int) { back[i], back[j] = back[j], back[i] })
	for _, x := range back {
		at += w.upTo(300 * time.Millisecond)
		w.after(at, func() {
			w.note("unclog", int(x), 0, 0, nil)
			for _, y := range all {
				delete(w.network.blocked, direction{x, y})
				delete(w.network.blocked, direction{y, x})
			}
		})
	}
}
