package multiraft

import (
	"testing"

	"github.com/flotilla-kv/flotilla/raft"
)

// What waited to be applied when a snapshot replaced the state is applied only
// if the snapshot does not hold it; its last entry in particular is not applied
// again, and the one behind it is.
func TestAJumpDropsWhatTheSnapshotHolds(t *testing.T) {
	var q applyQueue
	q.init(1)
	if !q.push([]raft.Entry{{Index: 2}, {Index: 3}, {Index: 4}}) {
		t.Fatal("nobody has to apply what was pushed")
	}
	q.pause()
	q.jump(3)
	if i := q.appliedIndex(); i != 3 {
		t.Errorf("applied through %d", i)
	}
	if left := q.begin(1 << 20); left != nil {
		t.Errorf("begins %+v while it is paused", left)
	}
	if !q.resume() {
		t.Fatal("nobody has to apply the rest")
	}
	if left := q.begin(1 << 20); len(left) != 1 || left[0].Index != 4 {
		t.Errorf("behind a snapshot at 3 are applied: %+v", left)
	}
}
