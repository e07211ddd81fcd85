package multiraft

import (
	"time"

	"github.com/flotilla-kv/flotilla/raft"
)

// slowDisk watches, at a leader, whether its own disk holds the group back: an
// entry that a majority has made durable, and this node not for a long while.
// The leader answers only what is durable here, so its requests wait for
// nobody but its own disk, and whoever has the longest log should lead instead.
// A group whose disks are all slow has no such entry.
type slowDisk struct {
	index raft.Index // committed, and not yet durable here; 0: none is watched
	since time.Time
	led   time.Time // since when the replica leads; zero: it does not
}

// Times of slow disks.
const (
	// slowSync is how long the own disk may be behind the majority's: well
	// above a sync that met a flush or a busy neighbour.
	slowSync = 300 * time.Millisecond
	// slowHold is for how long a node whose disk was slow lets others lead.
	slowHold = 30 * time.Second
	// slowSettle is for how long a new leader is left alone: where all disks
	// are slow, leadership must not go round.
	slowSettle = 5 * time.Second
)

// watchDisk hands leadership over if the own disk holds the group back.
func (r *replica) watchDisk(now time.Time) {
	d := &r.disk
	if r.core.Role() != raft.Leader {
		*d = slowDisk{}
		return
	}
	if d.led.IsZero() {
		d.led = now
	}
	commit, durable := r.core.CommitIndex(), r.core.DurableIndex()
	switch {
	case durable >= d.index:
		*d = slowDisk{led: d.led}
		if durable < commit {
			d.index, d.since = commit, now
		}
	case now.Sub(d.since) >= slowSync && now.Sub(d.led) >= slowSettle:
		d.since = now // if nobody takes over, it is asked again
		r.giveWay(now, commit, durable)
	}
}

func (r *replica) giveWay(now time.Time, commit, durable raft.Index) {
	h := r.worker.h
	h.slowUntil.Store(now.Add(slowHold).UnixNano())
	to := r.successor()
	if to == 0 || r.transfer(to) != nil {
		return
	}
	h.log.Warn("leadership is handed over: this node's disk is slow", "group", r.key.Group, "replica", r.key.Replica,
		"to", to, "committed", commit, "durable", durable)
}

// SlowDisk tells whether this node's disk held a group back lately: others
// should lead.
func (h *Host) SlowDisk() bool { return h.now().UnixNano() < h.slowUntil.Load() }
