package multiraft

import (
	"slices"

	"github.com/flotilla-kv/flotilla/raft"
)

// Clock is the lower median of this node's clock and those of the live peers,
// unix ms.
func (h *Host) Clock() int64 { return lowerMedian(h.opts.Transport.Clocks()) }

// groupClock is the lower median of the clocks of the group's nodes: no
// minority of fast clocks moves it forward.
func (h *Host) groupClock(r *replica) int64 {
	r.learnMembers()
	clocks := make([]int64, 0, 8)
	clocks = append(clocks, h.opts.Wall())
	return h.medianWith(clocks, *r.nodes.Load())
}

// medianWith is the lower median of clocks and those of the other nodes that
// are known.
func (h *Host) medianWith(clocks []int64, nodes []raft.NodeID) int64 {
	for _, node := range nodes {
		if node == h.opts.Self {
			continue
		}
		if ms, ok := h.opts.Transport.Clock(node); ok {
			clocks = append(clocks, ms)
		}
	}
	return lowerMedian(clocks)
}

// GroupClock is the lower median of the clocks of the group's nodes as seen
// here, unix ms: what an entry proposed now would be stamped with, at least.
func (h *Host) GroupClock(g raft.GroupID) int64 {
	clocks := []int64{h.opts.Wall()}
	r, ok := h.find(g)
	if !ok {
		return clocks[0]
	}
	return h.medianWith(clocks, *r.nodes.Load())
}

// lowerMedian of at least one clock; it sorts them.
func lowerMedian(clocks []int64) int64 {
	slices.Sort(clocks)
	return clocks[(len(clocks)-1)/2]
}
