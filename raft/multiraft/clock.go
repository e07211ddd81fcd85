package multiraft

import (
	"slices"

	"github.com/flotilla-kv/flotilla/raft"
)

// Clock is the lower median of this node's clock and those of the live peers,
// unix ms.
func (h *Host) Clock() int64 { return lowerMedian(h.opts.Transport.Clocks()) }

// groupClock is the lower median of the clocks of the group's voters, unix ms:
// no minority of fast clocks moves it forward. False: fewer are heard than a
// quorum, so that the median could be one wrong clock. Without a quorum nothing
// is committed anyhow.
func (h *Host) groupClock(voters []raft.NodeID) (ms int64, known bool) {
	clocks := make([]int64, 0, 8)
	for _, node := range voters {
		if node == h.opts.Self {
			clocks = append(clocks, h.opts.Wall())
		} else if ms, ok := h.opts.Transport.Clock(node); ok {
			clocks = append(clocks, ms)
		}
	}
	if len(clocks) <= len(voters)/2 {
		return 0, false
	}
	return lowerMedian(clocks), true
}

// GroupClock is the lower median of the clocks of the group's voters as seen
// here, unix ms: what an entry proposed now would be stamped with, at least.
// Zero, at which nothing is due: too few of the clocks are heard.
func (h *Host) GroupClock(g raft.GroupID) int64 {
	r, ok := h.find(g)
	if !ok {
		return 0
	}
	ms, _ := h.groupClock(*r.voters.Load())
	return ms
}

// lowerMedian of at least one clock; it sorts them.
func lowerMedian(clocks []int64) int64 {
	slices.Sort(clocks)
	return clocks[(len(clocks)-1)/2]
}
