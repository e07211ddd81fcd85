package raft

import "errors"

// What a caller can act on. None of them has changed anything.
var (
	// ErrNotLeader: ask the leader (see Status.Leader).
	ErrNotLeader = errors.New("raft: this replica is not the leader")
	// ErrNoLeader: no leader is known to forward to; ask again later.
	ErrNoLeader = errors.New("raft: no leader is known")
	// ErrTransferring: leadership is being handed over; ask again, it takes
	// an election timeout at most.
	ErrTransferring = errors.New("raft: leadership is being transferred")
	// ErrUncommittedFull: Options.MaxUncommittedBytes are on their way
	// already; ask again when some are applied.
	ErrUncommittedFull = errors.New("raft: too many bytes are proposed and not yet applied")
	// ErrReadsFull: Options.MaxPendingReads reads are waiting already.
	ErrReadsFull = errors.New("raft: too many reads are waiting")
	// ErrMembershipPending: an earlier change is not finished.
	ErrMembershipPending = errors.New("raft: a membership change is under way")
	// ErrNotYetCommitted: the leader has not committed an entry of its own
	// term, so it may not yet change the membership.
	ErrNotYetCommitted = errors.New("raft: the leader has not yet committed an entry of its own term")
	// ErrMembership: the membership asked for is not possible.
	ErrMembership = errors.New("raft: impossible membership")
	// ErrNotCaughtUp: a new voter is not yet a learner that has the log
	// through the present membership; ask again when it has.
	ErrNotCaughtUp = errors.New("raft: a new voter has not caught up as a learner")
	// ErrUnknownReplica: the replica is not a member in that role, or the
	// message claims to be from one who cannot have sent it.
	ErrUnknownReplica = errors.New("raft: unknown replica")
)

// What a LogReader answers.
var (
	// ErrCompacted: the entry was compacted away.
	ErrCompacted = errors.New("raft: entry is compacted")
	// ErrUnavailable: the entry is beyond the end of the log.
	ErrUnavailable = errors.New("raft: entry is beyond the end of the log")
)

// Why Step refuses a message. It is dropped, and nothing has changed.
var (
	// ErrWrongGroup: the message is of another group.
	ErrWrongGroup = errors.New("raft: message of another group")
	// ErrWrongReplica: the message is for another replica.
	ErrWrongReplica = errors.New("raft: message for another replica")
	// ErrTermJump: a term so far ahead that no run of elections reaches it.
	ErrTermJump = errors.New("raft: message with an impossible term")
	// ErrBadMessage: malformed, for instance entries out of order or a
	// membership that does not decode.
	ErrBadMessage = errors.New("raft: malformed message")
	// ErrTwoLeaders: another replica claims to lead the term that this one
	// leads. One of the two is broken.
	ErrTwoLeaders = errors.New("raft: a second leader in one term")
	// ErrConflictsCommitted: the message contradicts a committed entry. The
	// sender is broken, or this replica is.
	ErrConflictsCommitted = errors.New("raft: message contradicts a committed entry")
)
