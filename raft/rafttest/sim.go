package rafttest

import (
	"fmt"
	"math/rand/v2"
	"runtime/debug"

	"github.com/flotilla-kv/flotilla/raft"
)

// SimOptions say what to simulate. Everything else is drawn from the seed.
type SimOptions struct {
	Seed uint64
	// Duration of the faulty part, in virtual milliseconds; 0: 1500. After
	// it all faults end, and the group must make progress.
	Duration int64
	// Trace, if set, gets one line an event.
	Trace func(line string)
}

// SimResult is what a run came to.
type SimResult struct {
	// Hash of the trace: equal seeds give equal hashes.
	Hash uint64
	Err  error

	Profile   string
	Events    int
	Committed raft.Index
	Writes    int // acknowledged
	Reads     int // answered
	LeaseRead int // answered from a lease
	Leaders   int
	Crashes   int
	Cuts      int
	Snapshots int
	Changes   int // of the membership
	Transfers int
	Sleeps    int
}

// Timings of the world, in virtual milliseconds.
const (
	tickEvery    = 10
	healedWithin = 4000 // progress must be made this soon after the faults end
)

// Sim is one group in its world.
type Sim struct {
	timeline
	network network
	rng     *rand.Rand
	options raft.Options
	profile profile
	trace   func(string)
	result  SimResult

	checker  *Checker
	replicas []*simReplica // ascending by id; removed ones stay, down for good
	lastID   raft.ReplicaID
	ops      operations
	healed   bool
	marker   position // an entry proposed after the faults ended
	done     bool
	err      error
}

// simReplica is a replica and its process.
type simReplica struct {
	*Replica
	life     int       // counts starts and crashes: what was planned for an earlier one is void
	nextTick int64     // when its clock says so
	led      raft.Term // that it was last seen to lead
	paused   int64     // until then nothing happens to it
	retired  bool
	syncing  bool
	applying bool
}

// RunSim simulates one group from a seed. A panic is an error like others, so
// that its seed becomes known.
func RunSim(o SimOptions) SimResult {
	if o.Duration == 0 {
		o.Duration = 1500
	}
	rng := rand.New(rand.NewPCG(o.Seed, 0x666c6f74696c6c61))
	s := &Sim{rng: rng, checker: NewChecker(), trace: o.Trace}
	s.checker.rules = newRules()
	s.profile = drawProfile(rng)
	s.options = s.profile.options()
	s.network = s.profile.network(rng)
	s.result.Profile = s.profile.String()
	s.ops.pending = map[uint64]*operation{}

	s.run(o.Duration)
	s.result.Err = s.err
	s.result.Committed = s.checker.Committed()
	s.result.Leaders = len(s.checker.terms)
	s.result.Cuts = s.checker.Cuts
	return s.result
}

// run carries out one event after the other.
func (s *Sim) run(duration int64) {
	defer func() {
		if p := recover(); p != nil {
			s.err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	s.found()
	s.plan(duration)
	for s.err == nil && !s.done {
		e, ok := s.next()
		if !ok {
			break
		}
		s.now = e.at
		s.result.Events++
		e.do()
	}
}

// found starts the first members.
func (s *Sim) found() {
	first := raft.Membership{Epoch: 1}
	for i := 1; i <= s.profile.voters; i++ {
		first.Voters = append(first.Voters, raft.Member{Replica: raft.ReplicaID(i), Node: raft.NodeID(i)})
	}
	for _, m := range first.Voters {
		s.create(m, first)
	}
}

func (s *Sim) create(m raft.Member, first raft.Membership) *simReplica {
	r := &simReplica{Replica: NewReplica(m, first, s.checker)}
	s.lastID = max(s.lastID, m.Replica)
	s.checker.Watch(r.Replica)
	s.replicas = append(s.replicas, r)
	s.start(r)
	return r
}

// plan lays out the periodic parts and the end of the faults.
func (s *Sim) plan(duration int64) {
	s.every(func() int64 { return 1 + s.rng.Int64N(s.profile.opEvery) }, s.clientTurn)
	s.every(func() int64 { return 5 + s.rng.Int64N(s.profile.flushEvery) }, s.flushTurn)
	s.every(func() int64 { return 5 + s.rng.Int64N(s.profile.faultEvery) }, s.faultTurn)
	s.every(func() int64 { return tickEvery }, s.sleepTurn)
	s.after(duration, s.heal)
	s.after(duration+healedWithin, func() {
		if !s.done {
			s.fail(violated("Liveness", "no progress %d ms after the faults ended: %s", int64(healedWithin), s.describe()))
		}
	})
}

func (s *Sim) every(interval func() int64, do func()) {
	s.after(interval(), func() {
		do()
		s.every(interval, do)
	})
}

// note adds an event to the trace's hash, and to the trace.
func (s *Sim) note(what string, id raft.ReplicaID, a, b uint64) {
	h := s.result.Hash
	for _, v := range [...]uint64{uint64(s.now), uint64(len(what)), uint64(what[0]), uint64(id), a, b} {
		h = (h ^ v) * 0x100000001B3
		h ^= h >> 31
	}
	s.result.Hash = h
	if s.trace != nil {
		s.trace(fmt.Sprintf("%6d  %-10s %3d  %s", s.now, what, id, s.detail(id, a, b)))
	}
}

func (s *Sim) detail(id raft.ReplicaID, a, b uint64) string {
	line := fmt.Sprintf("%-6d %-6d", a, b)
	if r := s.find(id); r != nil && r.Up() {
		st := r.Core.Status()
		line += fmt.Sprintf("  %-13s term %-3d lead %-2d last %-4d durable %-4d commit %-4d applied %-4d", st.Role, st.Term, st.Leader, st.Last, st.Durable, st.Commit, st.Applied)
	}
	return line
}

func (s *Sim) fail(err error) {
	if s.err == nil && err != nil {
		s.err = fmt.Errorf("at %d ms: %w", s.now, err)
	}
}

func (s *Sim) find(id raft.ReplicaID) *simReplica {
	for _, r := range s.replicas {
		if r.Member.Replica == id {
			return r
		}
	}
	return nil
}

// for one life of a replica: do is void if it crashed or restarted meanwhile,
// and waits if its process is paused.
func (s *Sim) afterFor(r *simReplica, delay int64, do func()) {
	life := r.life
	var run func()
	run = func() {
		switch {
		case r.life != life:
		case r.paused > s.now:
			s.after(r.paused-s.now, run)
		default:
			do()
		}
	}
	s.after(delay, run)
}

func (s *Sim) start(r *simReplica) {
	r.life++
	r.syncing, r.applying = false, false
	if err := r.Start(s.options, s.rng.IntN); err != nil {
		s.fail(err)
		return
	}
	s.note("start", r.Member.Replica, uint64(r.Disk.LastIndex()), uint64(r.Disk.Flushed.Applied))
	r.nextTick = s.now + 1 + s.rng.Int64N(tickEvery)
	s.planTick(r)
	s.settle(r)
}

func (s *Sim) planTick(r *simReplica) {
	s.afterFor(r, max(0, r.nextTick-s.now), func() {
		r.nextTick += tickEvery
		r.Core.Tick()
		r.Ticks++
		s.planTick(r)
		s.settle(r)
	})
}

func (s *Sim) crash(r *simReplica) {
	keep := s.rng.IntN(r.Unsynced() + 1)
	s.note("crash", r.Member.Replica, uint64(keep), uint64(r.Unsynced()))
	r.life++
	r.paused = 0
	r.Crash(keep)
	s.result.Crashes++
	s.ops.forget(r.Member.Replica)
}

// settle carries out what the core has ready, as the driver does.
func (s *Sim) settle(r *simReplica) {
	if err := r.Turn(); err != nil {
		s.fail(err)
		return
	}
	if r.Core.Role() == raft.Leader && r.Core.Term() != r.led {
		s.checkLeases(r)
	}
	s.dispatch(r)
	s.maybeMortal(r)
}

// checkLeases: when a leader is elected nobody else holds a lease. Who stands
// still or has ticks to catch up with asks for none.
func (s *Sim) checkLeases(elected *simReplica) {
	for _, r := range s.replicas {
		if r == elected || !r.Up() || r.paused > s.now || r.nextTick <= s.now {
			continue
		}
		if _, held := r.Core.LeaseRead(); held && r.Core.Term() < elected.Core.Term() {
			s.fail(fmt.Errorf("lease: replica %d is elected in term %d while %d holds a lease of term %d", elected.Member.Replica, elected.Core.Term(), r.Member.Replica, r.Core.Term()))
		}
	}
}

// dispatch takes what a turn has put out.
func (s *Sim) dispatch(r *simReplica) {
	out := r.Outbox
	r.Outbox = nil
	for _, m := range out {
		s.transmit(m)
	}
	for _, to := range r.Snapshots {
		s.stream(r, to)
	}
	r.Snapshots = nil
	if len(r.Reads) > 0 {
		s.answered(r)
	}
	if r.Unsynced() > 0 && !r.syncing {
		r.syncing = true
		s.afterFor(r, 1+s.rng.Int64N(s.profile.syncMost), func() { s.sync(r) })
	}
	if r.Unapplied() > 0 && !r.applying {
		r.applying = true
		s.afterFor(r, s.rng.Int64N(3), func() { s.apply(r) })
	}
}

func (s *Sim) transmit(m raft.Message) {
	for _, delay := range s.network.fates(m.From, m.To) {
		s.after(delay, func() { s.deliver(m) })
	}
}

func (s *Sim) deliver(m raft.Message) {
	r := s.find(m.To)
	if r == nil || !r.Up() {
		return
	}
	if r.paused > s.now {
		s.after(r.paused-s.now, func() { s.deliver(m) })
		return
	}
	err := r.Core.Step(m)
	if s.trace != nil {
		refused := ""
		if err != nil {
			refused = "  refused: " + err.Error()
		}
		s.trace(fmt.Sprintf("%6d  %-10s %3d  %s%s", s.now, "deliver", m.To, Describe(&m), refused))
	}
	s.note("step", m.To, uint64(m.From), uint64(m.Term))
	s.settle(r)
}

func (s *Sim) sync(r *simReplica) {
	r.syncing = false
	n := 1 + s.rng.IntN(r.Unsynced())
	s.note("sync", r.Member.Replica, uint64(n), uint64(r.Unsynced()))
	if err := r.Persist(n); err != nil {
		s.fail(err)
		return
	}
	s.dispatch(r)
}

func (s *Sim) apply(r *simReplica) {
	r.applying = false
	if r.Unapplied() == 0 {
		return
	}
	entries, err := r.Apply(1 + s.rng.IntN(r.Unapplied()))
	if err != nil {
		s.fail(err)
		return
	}
	s.note("apply", r.Member.Replica, uint64(r.Machine.Applied), r.Machine.Chain)
	s.appliedAt(r, entries)
	s.dispatch(r)
	s.maybeRetire(r)
}

// maybeRetire stops a replica whose own log says that it was removed.
func (s *Sim) maybeRetire(r *simReplica) {
	m := r.Machine.Membership
	if _, member := m.Member(r.Member.Replica); !member && m.Epoch > 0 && !m.Joint() && s.named(r.Member.Replica, m.Epoch) {
		s.retire(r)
	}
}

// named tells whether the membership of that epoch follows the one that made
// the replica a member. Ids grow, but an entry from before its time is no
// reason to go.
func (s *Sim) named(id raft.ReplicaID, epoch uint64) bool {
	return epoch > s.ops.namedAt[id]
}

func (s *Sim) retire(r *simReplica) {
	s.note("retire", r.Member.Replica, 0, 0)
	r.life++
	r.retired = true
	r.Crash(r.Unsynced())
}

// stream sends a snapshot of what the leader has applied.
func (s *Sim) stream(leader *simReplica, to raft.Member) {
	from := leader.Member.Replica
	image, m := leader.Stream(to.Replica)
	s.result.Snapshots++
	s.note("stream", from, uint64(to.Replica), uint64(image.Applied))
	ok := false
	arrives := 3 + s.rng.Int64N(s.profile.streamMost)
	if len(s.network.fates(from, to.Replica)) > 0 && image.Applied > 0 {
		s.after(arrives, func() { ok = s.install(m, image) })
	}
	s.afterFor(leader, arrives+2, func() {
		leader.Core.SnapshotDone(to.Replica, image.Applied, ok)
		s.settle(leader)
	})
}

func (s *Sim) install(m raft.Message, image *Machine) bool {
	r := s.find(m.To)
	if r == nil || !r.Up() || r.paused > s.now {
		return false
	}
	die := !s.healed && s.rng.IntN(10) == 0
	s.note("install", m.To, uint64(image.Applied), uint64(m.Term))
	if err := r.Install(m, image, die); err != nil {
		s.fail(err)
		return false
	}
	if !r.Up() {
		r.life++
		s.ops.forget(m.To)
		s.planRestart(r)
		return false
	}
	s.readable(r)
	s.dispatch(r)
	return true
}

// describe says where every replica stands.
func (s *Sim) describe() string {
	text := ""
	for _, r := range s.replicas {
		if r.Up() {
			st := r.Core.Status()
			text += fmt.Sprintf("\n  replica %d %v of term %d, leader %d, last %d commit %d applied %d, membership %+v at %d, asleep %v suspect %v",
				r.Member.Replica, st.Role, st.Term, st.Leader, st.Last, st.Commit, st.Applied, st.Membership, st.MembershipIndex, st.Asleep, st.Suspect)
			for _, p := range st.Progress {
				text += fmt.Sprintf("\n      %+v", p)
			}
		} else {
			text += fmt.Sprintf("\n  replica %d down, retired %v", r.Member.Replica, r.retired)
		}
	}
	return text
}
