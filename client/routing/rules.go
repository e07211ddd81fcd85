package routing

import (
	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
)

// Cause is what an attempt met: a response's code, or what befell the
// connection instead of a response.
type Cause int32

// The causes besides the codes of the wire.
const (
	causeNone   Cause = -1
	CauseLost   Cause = -2 // the connection broke after the request was handed to it
	CauseUnsent Cause = -3 // the connection broke, or was never made, before the request left
	CauseSilent Cause = -4 // no answer in time
	CauseNoMap  Cause = -5 // no shard map is known yet
	CauseNobody Cause = -6 // the map names no owner for the shard, or its group has no address
	CauseWindow Cause = -7 // too many numbers of the shard are still waited for
)

// String is for logs and errors.
func (c Cause) String() string {
	switch c {
	case causeNone:
		return "nothing yet"
	case CauseLost:
		return "connection lost"
	case CauseUnsent:
		return "node unreachable"
	case CauseSilent:
		return "no answer from the node"
	case CauseNoMap:
		return "no shard map yet"
	case CauseNobody:
		return "shard not served by anybody yet"
	case CauseWindow:
		return "too many writes to the shard under way"
	}
	switch flotillav1.Code(c) {
	case flotillav1.Code_NOT_LEADER:
		return "node is not the leader"
	case flotillav1.Code_MOVED:
		return "shard moved"
	case flotillav1.Code_BUSY:
		return "busy"
	case flotillav1.Code_UNKNOWN:
		return "outcome unknown"
	case flotillav1.Code_SESSION_EXPIRED:
		return "session expired"
	case flotillav1.Code_INVALID:
		return "invalid request"
	case flotillav1.Code_UNAVAILABLE:
		return "node unavailable"
	case flotillav1.Code_NO_QUORUM:
		return "group has no majority"
	case flotillav1.Code_INTERNAL:
		return "internal error of the server"
	}
	return flotillav1.Code(c).String()
}

// step is what follows from a cause.
type step uint8

const (
	stepDeliver      step = iota // it is the answer
	stepFollowLeader             // ask the leader that was named, or another member
	stepFollowMove               // ask the group that was named
	stepOtherMember              // ask another member of the group
	stepWait                     // ask again later, the same route
	stepRenumber                 // under a new session, if nothing can have happened
	stepGiveUp                   // no attempt will do better
)

// rule is a row of the table of what to do next.
type rule struct {
	next step
	// possible: this attempt may have had an effect, or may yet.
	possible bool
	// busy: there is somebody to answer, who asks for patience. Such waits do
	// not lengthen those after failures.
	busy bool
	// refresh: the shard map has proved to be behind.
	refresh bool
}

// ruleFor is the table.
func ruleFor(c Cause) rule {
	switch c {
	case CauseLost, CauseSilent:
		return rule{next: stepOtherMember, possible: true}
	case CauseUnsent:
		return rule{next: stepOtherMember}
	case CauseNobody:
		return rule{next: stepWait, refresh: true}
	case CauseWindow:
		return rule{next: stepWait, busy: true}
	}
	switch flotillav1.Code(c) {
	case flotillav1.Code_OK:
		return rule{next: stepDeliver}
	case flotillav1.Code_NOT_LEADER:
		return rule{next: stepFollowLeader}
	case flotillav1.Code_MOVED:
		return rule{next: stepFollowMove, refresh: true}
	case flotillav1.Code_BUSY:
		return rule{next: stepWait, busy: true}
	case flotillav1.Code_UNKNOWN:
		return rule{next: stepWait, possible: true}
	case flotillav1.Code_SESSION_EXPIRED:
		return rule{next: stepRenumber}
	case flotillav1.Code_INVALID:
		return rule{next: stepGiveUp}
	case flotillav1.Code_UNAVAILABLE:
		return rule{next: stepOtherMember, refresh: true}
	case flotillav1.Code_NO_QUORUM:
		return rule{next: stepOtherMember, possible: true}
	}
	// INTERNAL, and what a newer server may say: nothing is known.
	return rule{next: stepGiveUp, possible: true}
}
