package peer

import (
	"fmt"
	"math"

	"github.com/flotilla-kv/flotilla/raft"
)

// A peer belongs to one group only, so its number means nothing.
const group raft.GroupID = 1

// What no group reaches; beyond it users' ints would overflow.
const (
	termMax  = raft.Term(math.MaxInt64)
	indexMax = raft.Index(math.MaxInt64)
)

// snapshotPatience is how many ticks a snapshot may be on its way before
// another is sent: a second, and twice as long after each that was given up, up
// to eight, for a slow network is not a broken one.
const (
	snapshotPatience    = 33
	snapshotDoublingMax = 3
)

// replica is the peer as a value that is stepped: the core, its log and what
// of both belongs on the disk. It has no lock, no goroutine and no clock.
type replica struct {
	core       *raft.Raft
	me         int
	membership raft.Membership // of all peers, for ever
	log        memoryLog
	hard       raft.HardState // as it was last handed out to be saved

	// snapshot is the latest, ours or a leader's; the log begins behind it
	// from the next turn on. It is never changed, only replaced.
	snapshot *snapshot
	unsaved  bool        // the snapshot is not in the persister yet
	installs []*snapshot // those of leaders, since the last turn
	handed   int         // commands that were handed out, or lie in a snapshot that was

	waiting []*waiter
	streams []stream // by peer
	asked   canvass
}

// snapshot is a state: that after the entry at index, and after the command
// that users count as number command.
type snapshot struct {
	index   raft.Index
	term    raft.Term
	command int
	data    []byte
	sum     uint32
}

// canvass is the campaign under way, whose requests are said again at each
// heartbeat's interval until it is decided: the core asks once, which would
// make an election on a bad network a matter of several campaigns.
type canvass struct {
	requests []outgoing
	age      int // ticks
	due      bool
}

// waiter waits until all that was stepped before it is saved.
type waiter struct {
	from  raft.ReplicaID // whose answers it collects; 0: nobody's
	reply DeliverReply
	done  chan struct{} // closed by the loop
	saved bool          // all that it waits for has been handed out to be saved
}

// stream is the snapshot on its way to a follower.
type stream struct {
	under     bool // one is on its way
	lost      bool // its call failed; sent again at the next sign of life
	age       int  // ticks
	fruitless int  // given up since the last success
}

// turn is what one turn wants done, in the order of its fields.
type turn struct {
	requests   []outgoing
	save       bool
	state      []byte
	snapshot   []byte
	ack        raft.WriteAck // Seq 0: the core has written nothing
	deliveries []delivery
	done       []*waiter
}

// outgoing is a request to a peer.
type outgoing struct {
	to      int
	request Request
}

// openReplica starts peer me of peers from what its persister holds.
func openReplica(peers, me int, random func(int) int, state, data []byte) (*replica, error) {
	if me < 0 || me >= peers {
		return nil, fmt.Errorf("there is no such peer")
	}
	rp := &replica{me: me, membership: raft.Membership{Epoch: 1}, streams: make([]stream, peers)}
	for i := range peers {
		rp.membership.Voters = append(rp.membership.Voters, raft.Member{Replica: idOf(i), Node: raft.NodeID(i + 1)})
	}
	if err := rp.restore(peers, state, data); err != nil {
		return nil, err
	}
	core, err := raft.New(raft.Config{
		Group: group, Replica: idOf(me),
		Log: &rp.log, HardState: rp.hard,
		Applied: rp.log.base, AppliedTerm: rp.log.baseTerm, Membership: rp.membership,
		Rand: random,
		Options: raft.Options{
			HeartbeatTicks: heartbeatTicks, ElectionTicks: electionTicks, QuorumTicks: quorumTicks,
			MaxInflightMessages: inflightMessagesMax,
		},
	})
	rp.core = core
	return rp, err
}

// idOf is the replica that a peer is to the core; peerOf is the way back.
func idOf(peer int) raft.ReplicaID { return raft.ReplicaID(peer + 1) }

func peerOf(id raft.ReplicaID) int { return int(id) - 1 }

// restore takes in what the persister holds: nothing, or a state with the
// snapshot that belongs to it.
func (rp *replica) restore(peers int, state, data []byte) error {
	rp.snapshot = &snapshot{data: data, sum: checksum(data)}
	if len(state) == 0 {
		if len(data) > 0 {
			return fmt.Errorf("%w: a snapshot of %d bytes without a state", errState, len(data))
		}
		return nil
	}
	p, entries, err := decodeState(state)
	switch {
	case err != nil:
		return err
	case p.peers != peers || p.me != rp.me:
		return fmt.Errorf("%w: it is of peer %d of %d", errState, p.me, p.peers)
	case p.snapshotSum != rp.snapshot.sum:
		return fmt.Errorf("%w: its snapshot is another than the one of %d bytes beside it", errState, len(data))
	case p.hard.Term > termMax || p.hard.Vote > idOf(peers-1):
		return fmt.Errorf("%w: it voted in term %d for peer %d", errState, p.hard.Term, peerOf(p.hard.Vote))
	}
	rp.log.reset(p.base, p.baseTerm, p.commands)
	rp.log.replace(entries)
	rp.hard = p.hard
	rp.handed = p.commands
	rp.snapshot.index, rp.snapshot.term, rp.snapshot.command = p.base, p.baseTerm, p.commands
	return nil
}

// start appends a command at the leader and tells its number.
func (rp *replica) start(command []byte) (int, bool) {
	i, term, err := rp.core.Propose(command)
	if err != nil {
		return -1, false
	}
	// The log has the entries that were handed out to be saved. What a leader
	// has appended since are commands, and one no-op if it is the first of the
	// term (section 8): a leader takes no entries of others.
	last := rp.log.LastIndex()
	n := rp.log.commandsThrough(last) + int(i-last)
	if rp.log.lastTerm() != term {
		n--
	}
	return n, true
}

// compact takes a snapshot from the state machine, which stands behind the
// command; false: it is not news, or not possible.
func (rp *replica) compact(command int, data []byte) bool {
	if command <= rp.snapshot.command || command > rp.handed {
		return false
	}
	i, ok := rp.log.indexOf(command)
	if !ok {
		return false
	}
	term, err := rp.log.Term(i)
	if err != nil {
		return false
	}
	rp.snapshot = &snapshot{index: i, term: term, command: command, data: data, sum: checksum(data)}
	rp.unsaved = true
	return true
}

// tick moves time.
func (rp *replica) tick() {
	rp.core.Tick()
	rp.asked.age++
	rp.asked.due = rp.asked.age%heartbeatTicks == 0 && len(rp.asked.requests) > 0
	for i := range rp.streams {
		s := &rp.streams[i]
		if s.age++; s.under && s.age >= snapshotPatience<<min(s.fruitless, snapshotDoublingMax) {
			s.fruitless++
			rp.endStream(i, 0, false)
		}
	}
}

// wait makes a waiter for the next turn.
func (rp *replica) wait(from raft.ReplicaID) *waiter {
	w := &waiter{from: from, done: make(chan struct{})}
	rp.waiting = append(rp.waiting, w)
	return w
}

// admits refuses what can be told to be wrong before looking at the requests.
func (rp *replica) admits(args *DeliverArgs) bool {
	return args != nil && args.To == rp.me && args.From != rp.me &&
		args.From >= 0 && args.From < len(rp.streams) && len(args.Requests) <= laneMax
}

// deliver steps another peer's requests. What the core refuses is dropped: it
// says nothing that a peer of ours would.
func (rp *replica) deliver(args *DeliverArgs) *waiter {
	w := rp.wait(idOf(args.From))
	for i := range args.Requests {
		r := &args.Requests[i]
		if r.InstallSnapshot != nil && r.RequestVote == nil && r.AppendEntries == nil {
			w.reply.Installed = rp.install(w.from, raft.Term(r.Term), r.InstallSnapshot)
			continue
		}
		if r.InstallSnapshot == nil && (r.RequestVote == nil) != (r.AppendEntries == nil) {
			_ = rp.core.Step(raft.Message{Group: group, From: w.from, To: idOf(rp.me), Term: raft.Term(r.Term), Body: bodyOf(r)})
		}
	}
	return w
}

// install puts a leader's snapshot in place and tells whether its state, or a
// later one, is. State and log are saved as one by the turn that follows, and
// nothing is answered before.
func (rp *replica) install(from raft.ReplicaID, term raft.Term, b *InstallSnapshot) bool {
	s := &snapshot{index: raft.Index(b.LastIncludedIndex), term: raft.Term(b.LastIncludedTerm), command: int(b.CommandIndex), data: b.Data}
	if !rp.core.WantsSnapshot(from, term, s.index) {
		return rp.core.Role() != raft.Leader && s.index > 0 && s.index <= rp.core.CommitIndex()
	}
	if !rp.possible(s) {
		return false
	}
	mark := raft.SnapshotMark{Index: s.index, Term: s.term, Membership: rp.membership}
	err := rp.core.Step(raft.Message{Group: group, From: from, To: idOf(rp.me), Term: term, Body: &raft.InstallSnapshot{Snapshot: mark}})
	if err != nil {
		return false
	}
	s.sum = checksum(s.data)
	rp.snapshot, rp.handed = s, s.command
	rp.unsaved, rp.installs = true, append(rp.installs, s)
	return true
}

// possible tells whether a snapshot can be of this group's log: between what
// was handed out here and its index lie at most as many commands as entries,
// and where our log has its last entry it counts as many.
func (rp *replica) possible(s *snapshot) bool {
	if s.index > indexMax || s.command < rp.handed || s.command > int(s.index) {
		return false
	}
	if term, err := rp.log.Term(s.index); err == nil && term == s.term {
		return s.command == rp.log.commandsThrough(s.index)
	}
	return true
}

// answered takes in what came of a call to a peer.
func (rp *replica) answered(to int, args *DeliverArgs, reply *DeliverReply, ok bool) {
	if ok {
		rp.stepAnswers(to, reply)
		if rp.streams[to].lost {
			rp.endStream(to, 0, false) // it is there: once more
		}
	}
	for i := range args.Requests {
		s := args.Requests[i].InstallSnapshot
		switch {
		case s == nil:
		case ok && reply.Installed:
			rp.streams[to].fruitless = 0
			rp.endStream(to, raft.Index(s.LastIncludedIndex), true)
		default:
			rp.streams[to].lost = rp.streams[to].under
		}
	}
}

func (rp *replica) stepAnswers(from int, reply *DeliverReply) {
	for i := range reply.Answers {
		a := &reply.Answers[i]
		if body := replyOf(a); body != nil {
			_ = rp.core.Step(raft.Message{Group: group, From: idOf(from), To: idOf(rp.me), Term: raft.Term(a.Term), Body: body})
		}
	}
}

func (rp *replica) endStream(to int, index raft.Index, ok bool) {
	s := &rp.streams[to]
	s.under, s.lost = false, false
	rp.core.SnapshotDone(idOf(to), index, ok)
}

// ready tells whether a turn has something to do.
func (rp *replica) ready() bool {
	return rp.core.HasReady() || rp.unsaved || len(rp.waiting) > 0 || rp.asked.due
}

// turn takes out all that is to be done. Of what it says to others, requests
// may leave at once, for the core holds back what may not; answers go to their
// waiters, who are done when the turn is.
func (rp *replica) turn() turn {
	rd := rp.core.Ready()
	t := turn{save: rd.Write.Seq != 0 || rp.unsaved}
	rp.write(&rd.Write)
	if t.save {
		t.state, t.snapshot = rp.encode(), rp.snapshot.data
		t.ack = ackOf(&rd.Write)
		rp.unsaved = false
	}
	rp.distribute(&t, rd.Messages)
	rp.canvass(&t)
	for _, m := range rd.Snapshots {
		t.requests = append(t.requests, rp.streamTo(peerOf(m.Replica)))
	}
	rp.handOut(&t, rd.Committed)
	rp.release(&t)
	return t
}

// write brings the log to what the core has written, and behind the snapshot.
func (rp *replica) write(w *raft.Write) {
	if w.HardState != nil {
		rp.hard = *w.HardState
	}
	if w.Reset != nil {
		s := rp.installedAt(w.Reset.Index)
		rp.log.reset(s.index, s.term, s.command)
	}
	rp.log.replace(w.Entries)
	if rp.snapshot.index > rp.log.base {
		rp.log.compact(rp.snapshot.index)
	}
}

// installedAt is the snapshot to which the core resets the log. It need not be
// the last: another may have come with its log behind the first.
func (rp *replica) installedAt(i raft.Index) *snapshot {
	for _, s := range rp.installs {
		if s.index == i {
			return s
		}
	}
	panic(fmt.Sprintf("peer: the log is reset to %d, where no snapshot was installed", i))
}

// encode is the state as it is to be saved.
func (rp *replica) encode() []byte {
	p := persisted{
		peers: len(rp.streams), me: rp.me,
		hard: rp.hard,
		base: rp.log.base, baseTerm: rp.log.baseTerm, commands: rp.log.baseCommands,
		snapshotSum: rp.snapshot.sum,
	}
	return p.encode(rp.log.encoded.bytes)
}

func ackOf(w *raft.Write) raft.WriteAck {
	ack := raft.WriteAck{Seq: w.Seq}
	if n := len(w.Entries); n > 0 {
		ack.Last, ack.LastTerm = w.Entries[n-1].Index, w.Entries[n-1].Term
	}
	return ack
}

// saved tells the core that a turn's state is durable.
func (rp *replica) saved(t *turn) {
	if t.ack.Seq != 0 {
		rp.core.Persisted(t.ack)
	}
}

// distribute sorts what the core says into requests and answers. An answer goes
// to every waiter of its addressee: any of their calls may be lost, and which
// of them it belongs to need not be known.
func (rp *replica) distribute(t *turn, messages []raft.Message) {
	for i := range messages {
		m := &messages[i]
		if r, ok := requestOf(m); ok {
			t.requests = append(t.requests, outgoing{peerOf(m.To), r})
			continue
		}
		a, ok := answerOf(m)
		if !ok {
			panic(fmt.Sprintf("peer: the core says %T, for which there is no form", m.Body))
		}
		for _, w := range rp.waiting {
			if w.from == m.To {
				w.reply.Answers = append(w.reply.Answers, a)
			}
		}
	}
}

// canvass notes the campaign that this turn begins, or repeats the one under
// way. A peer that has answered says the same again.
func (rp *replica) canvass(t *turn) {
	var asked []outgoing
	for _, o := range t.requests {
		if o.request.RequestVote != nil {
			asked = append(asked, o)
		}
	}
	due := rp.asked.due
	rp.asked.due = false
	switch role := rp.core.Role(); {
	case len(asked) > 0:
		rp.asked = canvass{requests: asked}
	case role != raft.PreCandidate && role != raft.Candidate:
		rp.asked.requests = nil
	case due && rp.isUnderWay():
		t.requests = append(t.requests, rp.asked.requests...)
	}
}

// isUnderWay tells whether what was asked last is still the question: a
// pre-vote is about the next term, a vote about the present one.
func (rp *replica) isUnderWay() bool {
	if len(rp.asked.requests) == 0 {
		return false
	}
	r, term := &rp.asked.requests[0].request, rp.core.Term()
	if r.RequestVote.PreVote {
		return rp.core.Role() == raft.PreCandidate && raft.Term(r.Term) == term+1
	}
	return rp.core.Role() == raft.Candidate && raft.Term(r.Term) == term
}

// streamTo sends a follower the snapshot.
func (rp *replica) streamTo(to int) outgoing {
	s := rp.snapshot
	rp.streams[to].under, rp.streams[to].lost, rp.streams[to].age = true, false, 0
	return outgoing{to, Request{
		Term: uint64(rp.core.Term()),
		InstallSnapshot: &InstallSnapshot{
			LastIncludedIndex: uint64(s.index), LastIncludedTerm: uint64(s.term),
			CommandIndex: uint64(s.command), Data: s.data,
		},
	}}
}

// handOut queues what is to be applied: a leader's snapshot, then the entries
// that are committed behind it.
func (rp *replica) handOut(t *turn, committed []raft.Entry) {
	if n := len(rp.installs); n > 0 {
		s := rp.installs[n-1]
		rp.installs = nil
		t.deliveries = append(t.deliveries, delivery{snapshot: s, through: s.index})
	}
	if len(committed) == 0 {
		return
	}
	d := delivery{entries: committed, command: rp.handed, through: committed[len(committed)-1].Index}
	for i := range committed {
		if committed[i].Kind == raft.EntryCommand {
			rp.handed++
		}
	}
	t.deliveries = append(t.deliveries, d)
}

// release lets those go who wait for nothing more. What the core holds back for
// this turn's state comes out in the next, so a turn that saves keeps those who
// have come since the last.
func (rp *replica) release(t *turn) {
	keep := rp.waiting[:0]
	for _, w := range rp.waiting {
		if w.saved || !t.save {
			t.done = append(t.done, w)
			continue
		}
		w.saved = true
		keep = append(keep, w)
	}
	clear(rp.waiting[len(keep):])
	rp.waiting = keep
}

var _ raft.LogReader = (*memoryLog)(nil)
