package raft

// Message is what one replica of a group says to another.
type Message struct {
	Group    GroupID
	From, To ReplicaID
	Term     Term // the sender's currentTerm (for a pre-vote: the term it would campaign in)
	Body     Body
}

// Body is the closed set of RPCs: RequestVote, RequestVoteReply,
// AppendEntries, AppendEntriesReply, InstallSnapshot, TimeoutNow,
// ReadIndexRequest and ReadIndexReply, all as pointers.
type Body interface{ isBody() }

// RequestVote asks for a vote (section 5.2), or, with PreVote, whether one
// would be given (thesis section 9.6).
type RequestVote struct {
	PreVote      bool
	Transfer     bool // the leader asked for this election (TimeoutNow): a live leader is no reason to refuse
	LastLogIndex Index
	LastLogTerm  Term
}

// RequestVoteReply answers a RequestVote of the same kind.
type RequestVoteReply struct {
	PreVote bool
	Granted bool
}

// AppendEntries replicates Entries behind PrevLogIndex; without entries it is
// a heartbeat (section 5.3).
type AppendEntries struct {
	PrevLogIndex Index
	PrevLogTerm  Term
	Entries      []Entry
	LeaderCommit Index
	ReadRound    uint64 // echoed in the reply: proves leadership for all reads up to this round
	Sleep        bool   // the leader falls asleep: a follower whose log and commit index equal the leader's does too
	NeededFrom   Index  // the first entry that a member may still need from the log, should the receiver lead next; 0: not said
}

// AppendEntriesReply answers AppendEntries and InstallSnapshot.
type AppendEntriesReply struct {
	Success bool
	// MatchIndex: on success, the follower's log is durable and equal to the
	// leader's up to here.
	MatchIndex Index
	// On failure, where the logs part (section 5.3, fast back-up).
	// ConflictTerm is 0 if the follower's log is shorter than PrevLogIndex;
	// ConflictIndex is then its last index + 1, otherwise the first index that
	// the follower holds of ConflictTerm.
	ConflictTerm  Term
	ConflictIndex Index
	RejectedPrev  Index // the PrevLogIndex that was refused, so that a late refusal can be told from a fresh one
	ReadRound     uint64
	Asleep        bool // the follower fell asleep with this message
	// Suspect: the follower's log was found cut at its start. MatchIndex and
	// the conflict fields steer what to send; the reply counts for nothing
	// else: not for commitment, nor for a read round, nor for check-quorum.
	Suspect bool
}

// InstallSnapshot tells a follower that everything through LastIncludedIndex
// is in place in its state machine: the driver has streamed and durably
// installed it before it steps this message.
type InstallSnapshot struct {
	Snapshot SnapshotMark
}

// TimeoutNow asks the leader's chosen successor to campaign at once (thesis
// section 3.10).
type TimeoutNow struct{}

// ReadIndexRequest forwards a follower's read to the leader. The ID is the
// sending core's own (a nonce of this start and a counter), so that an answer
// to an earlier life is not taken for one to this. Its top bit marks the
// question of a suspect replica, which is answered with the leader's last
// index.
type ReadIndexRequest struct{ ID uint64 }

// ReadIndexReply answers it: reads are linearizable once Index is applied.
// Index 0 means refused (not leader).
type ReadIndexReply struct {
	ID    uint64
	Index Index
}

func (*RequestVote) isBody()        {}
func (*RequestVoteReply) isBody()   {}
func (*AppendEntries) isBody()      {}
func (*AppendEntriesReply) isBody() {}
func (*InstallSnapshot) isBody()    {}
func (*TimeoutNow) isBody()         {}
func (*ReadIndexRequest) isBody()   {}
func (*ReadIndexReply) isBody()     {}
