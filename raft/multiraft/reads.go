package multiraft

import (
	"errors"
	"slices"
	"time"

	"github.com/flotilla-kv/flotilla/raft"
)

// ReadOptions say where a read index may come from.
type ReadOptions struct {
	Lease    bool // the leader's lease is enough, if it has one
	Follower bool // at a follower: ask the leader for its index, and wait until it is applied here
	// Stale, if not 0: an index that is applied here will do, if the question
	// that it answers was asked no longer ago than this. Otherwise it is asked
	// for, as the other fields say.
	Stale time.Duration
}

// heardIndex is what a round has brought: all that was acknowledged before at,
// on this node's clock, is at or below index, whoever has led since.
//
// It begins with the question and not with the answer, and a heartbeat does
// not count: that may have been on its way for long, or come from a leader
// that has been replaced without either of us having heard of it. For the same
// reason nothing is concluded from a group's sleep: with its leader it may lie
// cut off from a majority that has gone on.
type heardIndex struct {
	index raft.Index
	at    time.Time
	wall  int64 // at by the wall clock, unix ms
}

// recent is the index last heard of, if it is no older than bound and applied.
func (r *replica) recent(now time.Time, bound time.Duration) (raft.Index, bool) {
	heard := r.heardIndex.Load()
	if heard == nil {
		return 0, false
	}
	// A machine that slept has not moved its monotonic clock, one whose clock
	// was set back not its wall clock.
	age := max(now.Sub(heard.at), time.Duration(now.UnixMilli()-heard.wall)*time.Millisecond)
	return heard.index, age <= bound && r.apply.appliedIndex() >= heard.index
}

// read is one ReadIndex on its way.
type read struct {
	r     *replica
	opt   ReadOptions
	done  func(raft.Index, error)
	since time.Time
	// leased is the index that a lease gave and that had to be waited for; the
	// lease is checked again before the answer.
	leased raft.Index
}

// round is one question to the core for all reads that were queued together.
// The core answers each, if only with a refusal.
type round struct {
	id    uint64
	asked time.Time
	reads []read
}

// rounds are the questions under way, oldest first.
type rounds struct {
	nextID uint64
	open   []round
}

func (rs *rounds) len() int { return len(rs.open) }

// take removes the round with that id.
func (rs *rounds) take(id uint64) (round, bool) {
	i := slices.IndexFunc(rs.open, func(r round) bool { return r.id == id })
	if i < 0 {
		return round{}, false
	}
	taken := rs.open[i]
	rs.open = slices.Delete(rs.open, i, i+1)
	return taken, true
}

// expire removes the reads that wait since before limit.
func (rs *rounds) expire(limit time.Time) (late []read) {
	for i := range rs.open {
		var lateHere []read
		lateHere, rs.open[i].reads = splitLate(rs.open[i].reads, limit)
		late = append(late, lateHere...)
	}
	rs.open = slices.DeleteFunc(rs.open, func(r round) bool { return len(r.reads) == 0 })
	return late
}

func (rs *rounds) drain() (reads []read) {
	for _, r := range rs.open {
		reads = append(reads, r.reads...)
	}
	rs.open = nil
	return reads
}

// splitLate parts reads into those since before limit and the others.
func splitLate(reads []read, limit time.Time) (late, kept []read) {
	for _, rd := range reads {
		if rd.since.Before(limit) {
			late = append(late, rd)
		} else {
			kept = append(kept, rd)
		}
	}
	return late, kept
}

// askReads takes what was asked since the last turn: what a lease covers is
// answered, all the rest shares one round.
func (r *replica) askReads() {
	if len(r.asked) == 0 {
		return
	}
	asked := r.asked
	r.asked = nil
	if r.core.Role() != raft.Leader {
		asked = r.refuseReads(asked, func(rd *read) bool { return !rd.opt.Follower })
	} else {
		asked = r.leaseReads(asked)
	}
	if len(asked) == 0 {
		return
	}
	if wrongReads {
		for i := range asked {
			r.worker.h.answerRead(asked[i], 0, nil)
		}
		return
	}
	r.rounds.nextID++
	err := r.core.ReadIndex(r.rounds.nextID)
	switch {
	case err == nil:
		r.rounds.open = append(r.rounds.open, round{r.rounds.nextID, r.worker.now, asked})
	case errors.Is(err, raft.ErrReadsFull):
		for i := range asked {
			r.worker.h.answerRead(asked[i], 0, ErrBusy)
		}
	default:
		r.refuseReads(asked, func(*read) bool { return true })
	}
}

// refuseReads answers those that match with "not leader" and returns the
// others.
func (r *replica) refuseReads(reads []read, match func(*read) bool) (kept []read) {
	for i := range reads {
		if match(&reads[i]) {
			r.worker.h.answerRead(reads[i], 0, r.notLeader())
		} else {
			kept = append(kept, reads[i])
		}
	}
	return kept
}

// leaseReads answers what the lease covers now and returns the others. The
// reads were asked before this turn read the clock, so whatever happens behind
// this check is concurrent with them.
func (r *replica) leaseReads(reads []read) (others []read) {
	index, ok := r.core.LeaseRead()
	if !ok {
		return reads
	}
	var covered []read
	for _, rd := range reads {
		switch {
		case !rd.opt.Lease:
			others = append(others, rd)
		case rd.leased != 0: // applied meanwhile, and the lease still stands
			r.worker.h.answerRead(rd, rd.leased, nil)
		default:
			rd.leased = index
			covered = append(covered, rd)
		}
	}
	if len(covered) > 0 && !r.outcomes.read(index, covered) {
		for i := range covered {
			r.worker.h.answerRead(covered[i], index, nil)
		}
	}
	return others
}

// answerRound hands the core's answer to the reads of a round.
func (r *replica) answerRound(rs raft.ReadState) {
	answered, ok := r.rounds.take(rs.ID)
	if !ok {
		return // repeated, or given up
	}
	reads := answered.reads
	if !rs.OK {
		r.refuseReads(reads, func(*read) bool { return true })
		return
	}
	r.heardIndex.Store(&heardIndex{rs.Index, answered.asked, answered.asked.UnixMilli()})
	for i := range reads {
		reads[i].leased = 0
	}
	if !r.outcomes.read(rs.Index, reads) {
		for i := range reads {
			r.worker.h.answerRead(reads[i], rs.Index, nil)
		}
	}
}
