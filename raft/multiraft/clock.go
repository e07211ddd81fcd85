package multiraft

import (
	"slices"
	"time"

	"github.com/flotilla-kv/flotilla/raft"
)

// Clock is the lower median of this node's clock and those of the live peers,
// unix ms.
func (h *Host) Clock() int64 { return lowerMedian(h.opts.Transport.Clocks()) }

// groupClock is the lower median of the clocks of the group's nodes: no
// minority of fast clocks moves it forward.
func (h *Host) groupClock(r *replica) int64 {
	r.learnMembers()
	return h.clockOf(r)
}

// clockReading is a group's clock as it was at a moment of the host's clock,
// which never jumps.
type clockReading struct {
	ms int64
	at time.Time
}

// readingEvery is how old a group's reading may get before there is a new one.
const readingEvery = time.Second

// clockOf is the median if most of the clocks are known. Otherwise, as in a
// leader that hears nobody, it goes on from the last reading: a clock that is
// wrong must not be believed because it is the only one.
func (h *Host) clockOf(r *replica) int64 {
	clocks := make([]int64, 0, 8)
	clocks = append(clocks, h.opts.Wall())
	nodes := *r.nodes.Load()
	for _, node := range nodes {
		if node == h.opts.Self {
			continue
		}
		if ms, ok := h.opts.Transport.Clock(node); ok {
			clocks = append(clocks, ms)
		}
	}
	ms, now, last := lowerMedian(clocks), h.now(), r.reading.Load()
	switch {
	case 2*len(clocks) <= len(nodes) && last != nil:
		return last.ms + now.Sub(last.at).Milliseconds()
	case 2*len(clocks) > len(nodes) && (last == nil || now.Sub(last.at) >= readingEvery):
		r.reading.Store(&clockReading{ms, now})
	}
	return ms
}

// GroupClock is the lower median of the clocks of the group's nodes as seen
// here, unix ms: what an entry proposed now would be stamped with, at least.
func (h *Host) GroupClock(g raft.GroupID) int64 {
	r, ok := h.find(g)
	if !ok {
		return h.opts.Wall()
	}
	return h.clockOf(r)
}

// lowerMedian of at least one clock; it sorts them.
func lowerMedian(clocks []int64) int64 {
	slices.Sort(clocks)
	return clocks[(len(clocks)-1)/2]
}
