package sim

import (
	"errors"
	"time"

	"github.com/flotilla-kv/flotilla/raft"
)

// faultKind is something that is done to the world.
type faultKind int

const (
	faultCrash faultKind = iota
	faultCrashAll
	faultStop
	faultPause
	faultIsolate
	faultSplit
	faultOneWay
	faultRing
	faultChain
	faultSwizzle
	faultClientCut
	faultHeal
	faultSlowDisk
	faultFullDisk
	faultDamage
	faultClock
	faultLeap
	faultTransfer
	faultReset
	faultKinds
)

var errDiskFull = errors.New("no space left on device")

// faultTurn does one thing to the world.
func (w *world) faultTurn() {
	if w.phase != phaseFaulty {
		return
	}
	n := w.anyUp()
	if n == nil {
		return
	}
	k := faultKind(draw(w.rng, w.profile.faults[:]))
	w.note("fault", n.place, uint64(k), 0, k.String)
	switch k {
	case faultCrash:
		n.crash()
		n.planRestart()
	case faultCrashAll:
		for _, o := range w.upNodes() {
			o.crash()
			o.planRestart()
		}
	case faultStop:
		w.counts.Stops++
		n.handOver(w.now + handOverMost)
	case faultPause:
		n.pause(w.between(100*time.Millisecond, 2500*time.Millisecond))
	case faultIsolate, faultSplit, faultOneWay, faultRing, faultChain, faultSwizzle, faultClientCut:
		w.counts.Partitions++
		w.partition(k, n)
	case faultHeal:
		w.network.heal()
	case faultSlowDisk:
		n.slow = []time.Duration{0, 30 * time.Millisecond, 200 * time.Millisecond, time.Second}[w.rng.IntN(4)]
	case faultFullDisk:
		n.broken = errDiskFull
		w.counts.FullDisks++
	case faultDamage:
		w.damage(n)
	case faultClock:
		w.jump(n)
	case faultLeap:
		if w.chance(20) {
			w.leap += 61 * time.Minute // the sessions of all end
			w.counts.Jumps++
		}
	case faultTransfer:
		w.transfer(n)
	case faultReset:
		for _, c := range w.clients {
			c.breakLink(n.addr)
		}
	}
}

// String names a fault.
func (k faultKind) String() string {
	return [...]string{"crash", "crash of all", "stop", "pause", "isolate", "split", "one way", "ring", "chain", "swizzle-clog",
		"client cut off", "heal", "slow disk", "full disk", "damage", "clock", "leap", "transfer", "connections reset"}[k]
}

func (n *node) pause(d time.Duration) {
	n.w.counts.Pauses++
	n.until = n.w.now + d
	n.forLife(d, n.settle)
}

// partition cuts the network in one of its ways.
func (w *world) partition(k faultKind, n *node) {
	all := w.parties()
	self := party(n.place)
	switch k {
	case faultIsolate:
		w.network.split([]party{self}, all, true)
	case faultSplit:
		at := 1 + w.rng.IntN(len(all)-1)
		w.network.split(all[:at], all[at:], true)
		for _, c := range w.clients { // each on one of the sides
			side := all[:at]
			if w.chance(50) {
				side = all[at:]
			}
			w.network.split([]party{party(c.place)}, side, true)
		}
	case faultOneWay:
		some := all[:1+w.rng.IntN(len(all)-1)]
		if w.chance(50) {
			w.network.split([]party{self}, some, false)
		} else {
			w.network.split(some, []party{self}, false)
		}
	case faultRing:
		w.network.ring(all, max(1, len(all)/4))
	case faultChain:
		w.network.chain(all)
	case faultSwizzle:
		w.swizzle()
	case faultClientCut:
		c := w.clients[w.rng.IntN(len(w.clients))]
		w.network.cut(party(c.place), self, w.chance(50))
	}
}

// damage takes from a disk what it had promised to keep, within what the
// profile allows: more could take a majority, which nothing survives.
func (w *world) damage(n *node) {
	if n.id == 0 || len(w.nodes) < w.profile.nodes {
		return
	}
	switch w.profile.damage {
	case damageCut:
		w.cutLog(n)
	case damageWipe:
		w.wipe(n)
	}
}

// cutLog ends a node and cuts one of its logs, if every group goes on without it:
// no other node still counts for nothing because of such a cut, and none has two
// voters only, as the config group does when the third node of three is drained.
func (w *world) cutLog(n *node) {
	for _, o := range w.nodes {
		if !o.up() || o.host == nil {
			return // it may be suspect
		}
		for _, s := range o.host.Statuses() {
			if s.Suspect || s.Membership.Joint() || len(s.Membership.Voters) < 3 {
				return
			}
		}
	}
	keys := n.log.Known()
	if len(keys) == 0 {
		return
	}
	key := keys[w.rng.IntN(len(keys))]
	entries := 1 + w.rng.IntN(20)
	w.note("cut", n.place, uint64(key.Group), uint64(entries), nil)
	n.crash()
	n.log.CrashCut(key, entries)
	w.counts.Cuts++
	n.planRestart()
}

// wipe takes a machine away for ever. Another one comes in its place, under
// another name.
func (w *world) wipe(n *node) {
	for _, o := range w.nodes {
		if o.wiped || !o.up() || o.host == nil {
			return
		}
		for _, s := range o.host.Statuses() {
			if s.Membership.Joint() || len(s.Membership.Voters) < 3 || s.Key.Group != raft.ConfigGroup && s.Leader.Node == 0 {
				return // a group that is being made is not safe yet
			}
		}
	}
	if m := n.control.current; m == nil || len(m.Groups) <= 1 {
		return
	}
	w.note("wipe", n.place, 0, 0, nil)
	n.crash()
	n.wiped = true
	w.counts.Wiped++
	o := w.newNode()
	w.after(w.between(100*time.Millisecond, time.Second), o.start)
}

// clockTold is how old what others know of a clock may be.
const clockTold = 3 * time.Second

// jump sets a node's wall clock wrong, or right again: of a minority only, for
// the majority's clocks are the time; also as others know them, who may not have
// heard yet that a clock is right again.
func (w *world) jump(n *node) {
	wrong := 0
	for _, o := range w.nodes {
		if o != n && (o.skew != 0 || o.wrongAt != 0 && w.now-o.wrongAt < clockTold) {
			wrong++
		}
	}
	if n.skew != 0 {
		n.wrongAt = w.now
	}
	n.skew = 0
	if wrong == 0 && w.chance(70) {
		n.skew = time.Duration(w.rng.Int64N(2*int64(time.Hour)) - int64(time.Hour))
	}
	w.counts.Jumps++
	w.note("jump", n.place, uint64(n.skew), 0, n.skew.String)
}

// transfer asks a leader to hand over to somebody.
func (w *world) transfer(n *node) {
	if n.host == nil {
		return
	}
	for _, s := range n.host.Statuses() {
		if s.Role != raft.Leader || len(s.Membership.Voters) < 2 {
			continue
		}
		to := s.Membership.Voters[w.rng.IntN(len(s.Membership.Voters))]
		w.counts.Transfers++
		w.note("transfer", n.place, uint64(s.Key.Group), uint64(to.Replica), nil)
		_ = n.host.Transfer(s.Key.Group, to.Replica) // it may be refused
		break
	}
	n.settle()
}
