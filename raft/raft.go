package raft

import (
	"fmt"
)

// Config is what a replica starts from.
type Config struct {
	Group   GroupID
	Replica ReplicaID
	// Log is the replica's durable log. If Applied is behind its end, or the
	// entry there is another, the first write resets the log to Applied.
	Log       LogReader
	HardState HardState

	// The state machine's position, and the membership as of there. Epoch 0
	// is a replica that starts empty: it neither votes nor campaigns until the
	// leader's log or a snapshot names members.
	Applied     Index
	AppliedTerm Term
	Membership  Membership
	// LogMemberships are the membership entries behind Applied, ascending.
	LogMemberships []IndexedMembership

	// Suspect: the log was found cut at this start; see suspect.go.
	Suspect bool
	// Rand is uniform in [0, n); the only source of chance.
	Rand    func(n int) int
	Options Options
}

// Raft is one replica of one group. It is not safe for concurrent use: it has
// one owner, who feeds it and carries out what Ready says.
type Raft struct {
	group   GroupID
	self    ReplicaID
	options Options
	rand    func(n int) int

	currentTerm Term
	votedFor    ReplicaID
	role        Role
	leader      ReplicaID // of currentTerm; 0: none known

	log         raftLog
	memberships memberships
	disk        durability
	delivery    delivery
	election    election
	leading     *leadership // nil unless role is Leader
	forwarded   forwardedReads
	suspicion   suspicion
	asleep      bool
	neededFrom  Index // as the leader said last; see NeededFrom
	readFailed  bool  // the log could not be read; tried again at the next tick
	out         outbox
}

// New starts a replica as a follower. It refuses a configuration that
// contradicts itself.
func New(c Config) (*Raft, error) {
	options := c.Options.withDefaults()
	if err := options.validate(); err != nil {
		return nil, err
	}
	if err := c.validate(); err != nil {
		return nil, err
	}
	log, err := openLog(c.Log)
	if err != nil {
		return nil, fmt.Errorf("raft: group %d replica %d: open log: %w", c.Group, c.Replica, err)
	}
	r := &Raft{
		group: c.Group, self: c.Replica, options: options, rand: c.Rand,
		currentTerm: c.HardState.Term, votedFor: c.HardState.Vote,
		log: log,
	}
	if err := r.startAt(&c); err != nil {
		return nil, err
	}
	r.startForwarding()
	r.suspicion.on = c.Suspect
	r.resetElectionTimer()
	return r, nil
}

func (c *Config) validate() error {
	switch {
	case c.Group == 0 || c.Replica == 0:
		return fmt.Errorf("raft: group %d replica %d: ids begin at 1", c.Group, c.Replica)
	case c.Log == nil || c.Rand == nil:
		return fmt.Errorf("raft: group %d replica %d: no log or no random source", c.Group, c.Replica)
	}
	if err := c.Membership.validate(); err != nil {
		return fmt.Errorf("raft: group %d replica %d: %w: %w", c.Group, c.Replica, ErrMembership, err)
	}
	return nil
}

// startAt puts log, membership and commitIndex where the state machine is.
func (r *Raft) startAt(c *Config) error {
	if first := r.log.base + 1; c.Applied+1 < first {
		return fmt.Errorf("raft: group %d replica %d: the log begins at %d, but only %d is applied", r.group, r.self, first, c.Applied)
	}
	r.memberships.push(IndexedMembership{Index: c.Applied, Term: c.AppliedTerm, Membership: c.Membership})
	r.delivery = delivery{handed: c.Applied, applied: c.Applied}
	if r.log.matches(c.Applied, c.AppliedTerm) {
		r.log.commit = c.Applied
		for _, m := range c.LogMemberships {
			if m.Index > c.Applied && m.Index <= r.log.last {
				r.memberships.push(m)
			}
		}
	} else {
		r.resetLog(SnapshotMark{Index: c.Applied, Term: c.AppliedTerm, Membership: c.Membership})
		if c.AppliedTerm > r.currentTerm {
			// The crash came between installing a snapshot of a later term
			// and noting that term; no vote was given in it.
			r.setHardState(c.AppliedTerm, 0)
		}
	}
	if r.log.lastTerm > r.currentTerm {
		// The term of an entry is durable before the entry; only a cut
		// log's hard state can be behind.
		if !c.Suspect {
			return fmt.Errorf("raft: group %d replica %d: the log's last term is %d, the stored term %d", r.group, r.self, r.log.lastTerm, r.currentTerm)
		}
		r.setHardState(r.log.lastTerm, 0)
	}
	return nil
}

// Tick moves the replica's time: elections, heartbeats, timeouts. A sleeping
// replica has none.
func (r *Raft) Tick() {
	if r.asleep {
		return
	}
	r.readFailed = false
	r.tickForwarded()
	if r.role == Leader {
		r.tickLeader()
	} else {
		r.tickFollower()
	}
	r.afterStep()
}

// Step takes a message in. An error says why it was refused; then nothing has
// changed.
func (r *Raft) Step(m Message) error {
	if err := r.admit(&m); err != nil {
		return err
	}
	r.wakeFor(&m)
	err := r.step(&m)
	r.afterStep()
	return err
}

// step applies the rules for terms that hold for all messages (section 5.1),
// then those of the message.
func (r *Raft) step(m *Message) error {
	if m.Term < r.currentTerm {
		return r.answerOldTerm(m)
	}
	if m.Term > r.currentTerm && r.raisesTerm(m) {
		r.becomeFollower(m.Term, 0)
	}
	switch b := m.Body.(type) {
	case *RequestVote:
		r.handleRequestVote(m, b)
	case *RequestVoteReply:
		return r.handleRequestVoteReply(m, b)
	case *AppendEntries:
		return r.handleAppendEntries(m, b)
	case *AppendEntriesReply:
		return r.handleAppendEntriesReply(m, b)
	case *InstallSnapshot:
		return r.handleInstallSnapshot(m, b)
	case *TimeoutNow:
		return r.handleTimeoutNow(m)
	case *ReadIndexRequest:
		return r.handleReadIndexRequest(m, b)
	case *ReadIndexReply:
		r.handleReadIndexReply(m, b)
	}
	return nil
}

// raisesTerm tells whether a message of a later term makes us join that term.
// Pre-votes speak of a term that nobody is in yet; and who hears a live leader
// ignores candidates altogether (thesis section 4.2.3).
func (r *Raft) raisesTerm(m *Message) bool {
	switch b := m.Body.(type) {
	case *RequestVote:
		return !b.PreVote && (b.Transfer || !r.shielded())
	case *RequestVoteReply:
		return !(b.PreVote && b.Granted)
	}
	return true
}

// answerOldTerm tells the sender of a request that its term is over. Replies
// of an older term mean nothing any more.
func (r *Raft) answerOldTerm(m *Message) error {
	switch b := m.Body.(type) {
	case *RequestVote:
		r.send(m.From, &RequestVoteReply{PreVote: b.PreVote})
	case *AppendEntries:
		r.send(m.From, &AppendEntriesReply{RejectedPrev: b.PrevLogIndex, ConflictIndex: r.log.last + 1, Suspect: r.suspicion.on})
	case *InstallSnapshot:
		// What a deposed leader sent is committed all the same, and it is
		// in the state machine already.
		r.adoptSnapshot(b.Snapshot)
	case *ReadIndexRequest:
		r.send(m.From, &ReadIndexReply{ID: b.ID})
	}
	return nil
}

// becomeFollower joins term, or steps down within it.
func (r *Raft) becomeFollower(term Term, leader ReplicaID) {
	if term > r.currentTerm {
		r.setHardState(term, 0)
	}
	if r.role == Leader {
		r.abdicate()
	}
	if leader != r.leader {
		r.failForwarded()
		r.suspicion.newLeader()
	}
	if r.role != Follower {
		r.resetElectionTimer()
	}
	r.role, r.leader = Follower, leader
	if leader != 0 {
		r.election.votesTerm = 0 // the term is led
	}
}

// Propose appends a command to the log of the leader. It returns where the
// entry will be, if it is committed: an entry of another term at that index
// means that it was not. data is kept, not copied.
func (r *Raft) Propose(data []byte) (Index, Term, error) {
	switch {
	case r.role != Leader:
		r.Wake()
		return 0, 0, ErrNotLeader
	case r.leading.transferee != 0:
		return 0, 0, ErrTransferring
	}
	size := len(data) + entryOverhead
	if p := r.leading.pendingBytes; p > 0 && p+size > r.options.MaxUncommittedBytes {
		return 0, 0, ErrUncommittedFull
	}
	r.Wake()
	i := r.appendOwn(EntryCommand, data)
	r.afterStep()
	return i, r.currentTerm, nil
}

// HasReady tells whether Ready has something to say.
func (r *Raft) HasReady() bool {
	return len(r.out.messages) > 0 || r.writePending() || r.canDeliver() ||
		r.leading != nil && r.leading.due ||
		len(r.out.readStates) > 0 || len(r.out.snapshots) > 0
}

// Ready takes out everything that is to be done. All of it is the driver's
// from then on; entries and their data are shared and must not be changed.
func (r *Raft) Ready() Ready {
	r.replicate()
	rd := Ready{
		Write:      r.takeWrite(),
		Messages:   r.out.messages,
		Committed:  r.takeCommitted(),
		ReadStates: r.out.readStates,
		Snapshots:  r.out.snapshots,
	}
	r.out = outbox{}
	r.afterStep()
	return rd
}
