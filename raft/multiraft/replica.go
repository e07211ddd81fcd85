package multiraft

import (
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/raft/statestore"
)

// replica is one member of a group on this node.
type replica struct {
	key    raft.ReplicaKey
	worker *worker
	spec   ReplicaSpec

	control // the worker's

	// The applier's, or whoever has paused it.
	machine           StateMachine
	state             *statestore.Replica
	appliedMembership raft.Membership

	inFlight   atomic.Int64 // admitted bytes
	published  atomic.Pointer[LeaderView]
	voters     atomic.Pointer[[]raft.NodeID] // their nodes
	heardIndex atomic.Pointer[heardIndex]    // nil: none yet
	outcomes   outcomes
	apply      applyQueue
}

// control is what the worker alone reads and changes.
type control struct {
	core *raft.Raft
	log  raft.LogReader

	gone       bool            // removed or stopped: the core is not touched any more
	touched    bool            // in the worker's list of this turn
	suspect    bool            // the store still marks it so
	wasMember  bool            // the applied membership has named it
	installing bool            // a snapshot comes in; a second one is refused
	frozen     bool            // and is being put in place: the core takes no step
	heldAcks   []raft.WriteAck // that came while frozen

	awakeAt int // position in the worker's awake list; -1: asleep
	idle    int // ticks without work
	ticks   int // ticks in all

	queued    []proposal // not in the log yet
	asked     []read     // not in a round yet
	rounds    rounds
	changes   []jointChange // membership changes that have still to leave the joint phase
	catchUps  []catchUp     // members that have got a snapshot, and lag
	lastStamp int64

	peers    peers
	view     LeaderView // as last told
	campaign campaign
	disk     slowDisk
}

// propose joins what is queued into entries. What cannot be taken now (a
// transfer, too much uncommitted, clocks not heard) stays queued; admission
// bounds it.
func (r *replica) propose() {
	for len(r.queued) > 0 {
		if role := r.core.Role(); role != raft.Leader {
			r.refuseQueued(r.notLeader())
			return
		}
		if r.worker.full() {
			return
		}
		r.learnMembers()
		clock, known := r.worker.h.groupClock(*r.voters.Load())
		if !known {
			r.core.Wake() // it is asked again with each tick
			return
		}
		n := r.joined()
		stamp := max(r.lastStamp, clock)
		index, term, err := r.core.Propose(encodeCommands(stamp, r.queued[:n]))
		switch {
		case err == nil:
			r.lastStamp = stamp
			r.proposed(index, term, n)
		case errors.Is(err, raft.ErrUncommittedFull), errors.Is(err, raft.ErrTransferring):
			return
		case errors.Is(err, raft.ErrNotLeader):
			r.refuseQueued(r.notLeader())
			return
		default:
			r.refuseQueued(err)
			return
		}
	}
}

// joined tells how many queued proposals the next entry takes.
func (r *replica) joined() int {
	bytes, n := 0, 0
	for n < len(r.queued) {
		bytes += len(r.queued[n].command) + commandOverhead
		if n > 0 && bytes > r.worker.h.opts.Limits.EntryBytes {
			break
		}
		n++
	}
	return n
}

// proposed lets the first n queued proposals wait for (index, term).
func (r *replica) proposed(index raft.Index, term raft.Term, n int) {
	props := r.queued[:n:n]
	for i := range props {
		props[i].command = nil // the entry has it
	}
	r.queued = r.queued[n:]
	if len(r.queued) == 0 {
		r.queued = nil
	}
	r.outcomes.add(index, term, props, r.worker.now)
	r.worker.h.stats.entriesProposed.Add(1)
	r.worker.h.stats.commandsProposed.Add(uint64(n))
}

// refuseQueued answers what never entered the log.
func (r *replica) refuseQueued(err error) {
	queued := r.queued
	r.queued = nil
	for i := range queued {
		r.worker.h.answer(queued[i], Result{Err: err})
	}
}

func (r *replica) notLeader() error {
	return &NotLeaderError{Group: r.key.Group, Leader: r.leader(), Term: r.core.Term()}
}

// leader as the core knows it; zero if it knows none or is it itself without
// a membership.
func (r *replica) leader() raft.Member {
	id := r.core.Leader()
	if id == 0 {
		return raft.Member{}
	}
	node, _ := r.nodeOf(id)
	return raft.Member{Replica: id, Node: node}
}

// settle looks at what the step has changed: leadership, sleep, suspicion.
func (r *replica) settle() {
	if v := (LeaderView{Leader: r.leader(), Term: r.core.Term(), Role: r.core.Role()}); v != r.view {
		r.noteView(v)
	}
	// Who sleeps is ticked all the same while something waits here: it may be
	// that nothing will decide it, and then its time has to run out.
	r.worker.setAwake(r, !r.core.Asleep() || r.waits())
	if r.suspect && !r.core.Suspect() {
		r.suspect = false
		r.worker.h.trimmer.noteTrusted(r.key)
	}
}

// noteView publishes a change of leader, term or role.
func (r *replica) noteView(v LeaderView) {
	before := r.view
	r.view = v
	r.published.Store(&v)
	h := r.worker.h
	if v.Leader.Replica != 0 {
		r.campaign = campaign{}
	} else if before.Leader.Replica != 0 && !r.campaign.wanted {
		r.standLater(electionBase, failoverGap)
	}
	if v.Leader == before.Leader && (v.Role == raft.Leader) == (before.Role == raft.Leader) {
		return
	}
	h.stats.leaderChanges.Add(1)
	h.log.Info("leader changed", "group", r.key.Group, "replica", r.key.Replica, "term", v.Term,
		"leader", v.Leader.Replica, "node", v.Leader.Node, "role", v.Role.String())
	if h.opts.OnLeader != nil {
		h.opts.OnLeader(LeaderChange{Group: r.key.Group, Replica: r.key.Replica, LeaderView: v})
	}
}

// waits says that the outcome of something is open here.
func (r *replica) waits() bool {
	proposals, reads := r.outcomes.waiting()
	return len(r.queued)+len(r.asked)+r.rounds.len()+proposals+reads+len(r.changes) > 0
}

// expire ends what has waited too long.
func (r *replica) expire(now time.Time) {
	h := r.worker.h
	lost, late := r.outcomes.expire(now.Add(-h.opts.Timing.ProposalTimeout))
	h.answerLost(lost, ErrUnknown)
	late = append(late, r.rounds.expire(now.Add(-h.opts.Timing.ReadTimeout))...)
	for i := range late {
		h.answerRead(late[i], 0, ErrNoQuorum)
	}
	r.expireChanges(now.Add(-h.opts.Timing.ProposalTimeout))
}

// end answers all that waits when the replica stops.
func (r *replica) end() {
	h := r.worker.h
	r.gone = true
	r.refuseQueued(ErrStopped)
	reads := append(r.asked, r.rounds.drain()...)
	r.asked = nil
	lost, waiting := r.outcomes.drain()
	h.answerLost(lost, ErrUnknown)
	for _, rd := range append(reads, waiting...) {
		h.answerRead(rd, 0, ErrStopped)
	}
	r.endChanges()
	r.worker.setAwake(r, false)
}

// maxHeard bounds the senders a replica remembers beside its membership.
const maxHeard = 32

// peers knows on which node a member lives.
type peers struct {
	of      raft.Membership // what members was made from
	members map[raft.ReplicaID]raft.NodeID
	heard   map[raft.ReplicaID]raft.NodeID // those who sent us something: a replica without membership answers them
}

// nodeOf finds the node of a member.
func (r *replica) nodeOf(id raft.ReplicaID) (raft.NodeID, bool) {
	r.learnMembers()
	if node, ok := r.peers.members[id]; ok {
		return node, true
	}
	node, ok := r.peers.heard[id]
	return node, ok
}

// learnMembers follows the membership in effect. Where former members live is
// remembered: they are still told of their removal.
func (r *replica) learnMembers() {
	m := r.core.Membership()
	p := &r.peers
	if p.members != nil && sameMembership(&m, &p.of) {
		return
	}
	former := p.members
	p.of, p.members = m, make(map[raft.ReplicaID]raft.NodeID)
	for _, member := range m.All() {
		p.members[member.Replica] = member.Node
	}
	voters := make([]raft.NodeID, len(m.Voters))
	for i, member := range m.Voters {
		voters[i] = member.Node
	}
	for id, node := range former {
		r.heard(id, node)
	}
	r.voters.Store(&voters)
}

// sameMembership does not go by the epoch alone: a change that was never
// committed may have had the same.
func sameMembership(a, b *raft.Membership) bool {
	return a.Epoch == b.Epoch && a.Floor == b.Floor && a.Survivor == b.Survivor && slices.Equal(a.Voters, b.Voters) &&
		slices.Equal(a.Outgoing, b.Outgoing) && slices.Equal(a.Learners, b.Learners)
}

// memberOn finds the member that lives on a node.
func (r *replica) memberOn(node raft.NodeID) (raft.ReplicaID, bool) {
	r.learnMembers()
	for id, n := range r.peers.members {
		if n == node {
			return id, true
		}
	}
	return 0, false
}

// heard remembers where a sender lives if the membership does not know it.
func (r *replica) heard(id raft.ReplicaID, node raft.NodeID) {
	p := &r.peers
	if _, ok := p.members[id]; ok || p.heard[id] == node || len(p.heard) >= maxHeard {
		return
	}
	if p.heard == nil {
		p.heard = make(map[raft.ReplicaID]raft.NodeID)
	}
	p.heard[id] = node
}
