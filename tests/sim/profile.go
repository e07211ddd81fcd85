package sim

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/flotilla-kv/flotilla/raft/multiraft"
)

// profile is the kind of world a seed draws: few faults of many kinds, or many
// of few, so that the seeds differ more than their dice.
type profile struct {
	nodes    int
	replicas int
	groups   int
	shards   int
	clients  int
	window   int // operations of a client under way
	keys     int // of each kind
	lanes    int // of a hundred operations are ordered by their client's lane

	// Network. Of a thousand messages.
	drop, repeat, late int
	delay, lateMost    time.Duration
	flip               int // of a thousand chunks of snapshots lose a bit

	// Disks.
	sync        time.Duration // a sync takes up to this
	flush       time.Duration // likewise a flush of the state
	flushAll    bool
	smallLogs   bool // logs are cut at once, so that snapshots are needed
	smallSend   bool // a message carries hardly more than an entry
	appendBytes int  // if smallSend

	drift  int // a node's clock runs up to so many thousandths off
	leases bool

	moveEvery  time.Duration // an operator orders something; 0: never
	replace    time.Duration // a node silent for so long is replaced; 0: in no run
	mortal     int           // of a hundred new leaders die at once
	faultEvery time.Duration
	faults     [faultKinds]int // weights
	damage     damage
	opEvery    time.Duration
	duration   time.Duration
}

// damage is what may befall a disk beyond what was not synced. More than one
// kind in a run could take a majority.
type damage uint8

const (
	damageNone damage = iota
	damageCut         // one log at a time loses its end
	damageWipe        // one node loses everything, for good
)

func drawProfile(rng *rand.Rand) profile {
	pick := func(list ...int) int { return list[rng.IntN(len(list))] }
	ms := func(list ...int) time.Duration { return time.Duration(pick(list...)) * time.Millisecond }
	p := profile{
		nodes:     pick(3, 3, 3, 4, 5),
		groups:    pick(1, 2, 3),
		shards:    pick(4, 8),
		clients:   pick(2, 3, 4),
		window:    pick(1, 2, 4),
		keys:      pick(1, 2, 3),
		lanes:     pick(20, 20, 90),
		drop:      pick(0, 0, 10, 100, 250),
		repeat:    pick(0, 20, 200),
		late:      pick(0, 20, 200),
		delay:     ms(1, 3, 8, 30),
		lateMost:  ms(20, 100, 1000),
		flip:      pick(0, 0, 50, 300),
		sync:      ms(1, 3, 15, 60),
		flush:     ms(5, 50, 300),
		flushAll:  rng.IntN(2) == 0,
		smallLogs: rng.IntN(3) > 0,
		smallSend: rng.IntN(2) == 0, appendBytes: 100,
		drift:      pick(0, 0, 10, 50),
		leases:     rng.IntN(4) == 0,
		mortal:     pick(0, 0, 0, 20, 60),
		moveEvery:  ms(0, 100, 400, 1500),
		replace:    ms(0, 0, 1500, 4000),
		faultEvery: ms(60, 200, 600, 1500),
		damage:     damage(pick(0, 0, 1, 1, 2)),
		opEvery:    ms(2, 8, 25, 80),
		duration:   ms(3000, 5000, 8000),
	}
	p.replicas = 3
	if p.nodes == 5 {
		p.replicas = pick(3, 5)
	}
	if p.leases {
		p.drift = min(p.drift, 50) // of both sides together less than the lease leaves: a tenth
	} else if rng.IntN(4) == 0 {
		p.drift = 300
	}
	for i := range p.faults {
		p.faults[i] = pick(0, 1, 1, 3)
	}
	if rng.IntN(6) == 0 {
		p.shortReigns()
	}
	return p
}

// shortReigns makes it the world of figure 8 of the paper: leaders that die
// soon after their election, with entries on some disks and not on others, and
// messages that carry one entry each.
func (p *profile) shortReigns() {
	p.mortal, p.smallSend, p.appendBytes = 70, true, 1
	p.drop, p.repeat, p.late, p.damage = 0, 0, 0, damageNone
	p.opEvery, p.window, p.sync, p.delay = 15*time.Millisecond, 2, 3*time.Millisecond, 8*time.Millisecond
	p.faultEvery, p.duration = 600*time.Millisecond, 3*time.Second
	p.faults = [faultKinds]int{faultCrash: 1, faultIsolate: 1, faultHeal: 2, faultTransfer: 1}
}

// String names what was drawn.
func (p profile) String() string {
	type plain profile // without this method
	return fmt.Sprintf("%+v", plain(p))
}

func (p profile) limits() multiraft.Limits {
	var l multiraft.Limits
	if p.smallLogs {
		l.LogKeepBytes, l.FollowerKeepBytes = 2<<10, 1<<10
	}
	if p.smallSend {
		l.AppendBytes, l.EntryBytes, l.ApplyBatchBytes = p.appendBytes, 200, 4<<10
	}
	return l
}

// timing makes housekeeping come often enough to be seen within a run.
func (p profile) timing() multiraft.Timing {
	return multiraft.Timing{FlushAfter: 400 * time.Millisecond, TrimEvery: 200 * time.Millisecond}
}

// draw is an index of weights.
func draw(rng *rand.Rand, weights []int) int {
	total := 0
	for _, w := range weights {
		total += w
	}
	if total == 0 {
		return rng.IntN(len(weights))
	}
	at := rng.IntN(total)
	for i, w := range weights {
		if at -= w; at < 0 {
			return i
		}
	}
	return len(weights) - 1
}
