package multiraft

import (
	"math"
	"slices"
	"time"

	"github.com/flotilla-kv/flotilla/raft"
)

// catchUpPatience is how long the log is kept for a follower that has got a
// snapshot and comes no nearer to the log's end.
const catchUpPatience = 10 * time.Second

// catchUp is a follower that has got a snapshot and gets the log behind it now.
// That is kept, whatever the budget says, as long as the follower comes nearer
// to its end: cut away, it would cost another snapshot, behind which as much is
// written again, and so on for ever.
type catchUp struct {
	to    raft.Member
	index raft.Index // of the snapshot
	lag   raft.Index // the least seen
	since time.Time  // when it was seen
}

// beginCatchUp follows a member that has got a snapshot to the end of the log.
func (r *replica) beginCatchUp(to raft.Member, index raft.Index) {
	r.catchUps = slices.DeleteFunc(r.catchUps, func(c catchUp) bool { return c.to.Replica == to.Replica })
	r.catchUps = append(r.catchUps, catchUp{to: to, index: index, lag: math.MaxUint64, since: r.worker.h.now()})
}

// pinned is the first entry that is needed behind a snapshot, one on its way or
// one that has come; last+1 if there is none.
func (r *replica) pinned(core *raft.Status) raft.Index {
	first := core.Last + 1
	if mark := r.worker.h.sends.lowestMark(r.key); mark != 0 {
		first = mark + 1
	}
	now := r.worker.h.now()
	kept := r.catchUps[:0]
	for _, c := range r.catchUps {
		has, ok := c.has(core)
		if !ok || !r.worker.h.alive(c.to.Node) || !c.look(core.Last-has, now) {
			continue
		}
		kept = append(kept, c)
		first = min(first, has+1)
	}
	r.catchUps = kept
	return first
}

// has is how far the member has the log; false: it is no member any more, or
// this replica does not lead.
func (c *catchUp) has(core *raft.Status) (raft.Index, bool) {
	for _, p := range core.Progress {
		if p.Member.Replica == c.to.Replica {
			return min(max(p.Match, c.index), core.Last), true
		}
	}
	return 0, false
}

// look takes note of how far the member is behind now, and tells whether the
// log is still kept for it.
func (c *catchUp) look(lag raft.Index, now time.Time) bool {
	if lag < c.lag {
		c.lag, c.since = lag, now
	}
	return lag > 0 && now.Sub(c.since) < catchUpPatience
}
