package multiraft

import (
	"errors"
	"fmt"

	"github.com/flotilla-kv/flotilla/raft"
)

// What a proposal or a read may end with. ErrUnknown alone says that the
// proposal may have happened or may still happen; all others promise that it
// had no effect and will have none.
var (
	// ErrNotLeader is what a *NotLeaderError is.
	ErrNotLeader = errors.New("not the leader")
	// ErrBusy: the group or the node has as much under way as it may; come
	// back after a pause.
	ErrBusy = errors.New("busy")
	// ErrUnknown: proposed, but what became of it cannot be told here. A retry
	// has to bear the same number (or read first).
	ErrUnknown = errors.New("outcome unknown")
	// ErrNoGroup: this node has no replica of the group.
	ErrNoGroup = errors.New("no replica of the group on this node")
	// ErrStopped: the host, or the replica, was stopped first.
	ErrStopped = errors.New("stopped")
	// ErrNoQuorum: a read whose leadership could not be confirmed in time.
	ErrNoQuorum = errors.New("leadership not confirmed in time")
	// ErrTooLarge: the command exceeds CommandBytesMax.
	ErrTooLarge = errors.New("command too large")
	// ErrRunning: Start was asked for a group of which another replica runs.
	ErrRunning = errors.New("another replica of the group runs on this node")
	// ErrSnapshotRefused: the replica does not want this snapshot (any more).
	ErrSnapshotRefused = errors.New("snapshot refused")
	// ErrNoTarget: leadership cannot be handed to the replica asked for, or to
	// anybody: not a live voter.
	ErrNoTarget = errors.New("no replica that could take over leadership")
)

// NotLeaderError says who might be the leader. The proposal had and will have
// no effect. errors.Is(err, ErrNotLeader) holds.
type NotLeaderError struct {
	Group  raft.GroupID
	Leader raft.Member // zero: unknown
	Term   raft.Term
}

func (e *NotLeaderError) Error() string {
	if e.Leader.Replica == 0 {
		return fmt.Sprintf("not the leader of group %d, and it is not known who is", e.Group)
	}
	return fmt.Sprintf("not the leader of group %d: node %d is", e.Group, e.Leader.Node)
}

// Is makes a *NotLeaderError an ErrNotLeader.
func (e *NotLeaderError) Is(target error) bool { return target == ErrNotLeader }

// EpochError refuses a membership change that was planned for another epoch.
type EpochError struct {
	Group       raft.GroupID
	Asked, Have uint64
}

func (e *EpochError) Error() string {
	return fmt.Sprintf("group %d: membership change for epoch %d, the group is at %d", e.Group, e.Asked, e.Have)
}
