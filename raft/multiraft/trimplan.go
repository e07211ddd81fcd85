package multiraft

import (
	"cmp"
	"slices"

	"github.com/flotilla-kv/flotilla/raft"
)

// logUse is what the trimmer knows of one replica's log.
type logUse struct {
	key     raft.ReplicaKey
	first   raft.Index // first entry kept
	last    raft.Index
	bytes   int64      // kept
	durable raft.Index // the state store cannot lose what was applied through here
	needed  raft.Index // first entry that a member of the group still needs; last+1 if none
	pinned  raft.Index // first entry that is needed behind a snapshot, see replica.pinned; last+1 if none
}

// cut is one order to the log store: nothing through this index is needed.
type cut struct {
	key     raft.ReplicaKey
	through raft.Index
}

// planCuts decides what the logs of a node no longer need: everything behind
// what is durable in the state store, except what a member still needs; and if
// the logs then keep more than budget, that too, from the log that keeps most
// first. It never cuts what is not durable or what is needed
// behind a snapshot. over says that what is left exceeds the budget: only a flush of
// the state store can help.
func planCuts(uses []logUse, budget int64) (cuts []cut, over bool) {
	type kept struct {
		logUse
		through raft.Index // cut so far
		left    int64
	}
	logs := make([]kept, len(uses))
	var total int64
	for i, u := range uses {
		through := min(u.durable, u.needed-1, u.pinned-1)
		logs[i] = kept{u, through, u.leftBehind(through)}
		total += logs[i].left
	}
	slices.SortStableFunc(logs, func(a, b kept) int {
		return cmp.Or(cmp.Compare(b.left, a.left), cmp.Compare(a.key.Group, b.key.Group))
	})
	for i := range logs {
		u := &logs[i]
		if total > budget {
			u.through = max(u.through, min(u.durable, u.pinned-1))
			total += u.leftBehind(u.through) - u.left
		}
		if u.through >= u.first {
			cuts = append(cuts, cut{u.key, u.through})
		}
	}
	return cuts, total > budget
}

// leftBehind estimates the bytes that stay behind a cut through index; entries
// are taken to be of one size.
func (u logUse) leftBehind(through raft.Index) int64 {
	if through < u.first || u.last < u.first {
		return u.bytes
	}
	if through >= u.last {
		return 0
	}
	return int64(float64(u.bytes) * float64(u.last-through) / float64(u.last-u.first+1))
}
