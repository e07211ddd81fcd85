package rafttest

import (
	"fmt"
	"math/rand/v2"

	"github.com/flotilla-kv/flotilla/raft"
)

// profile is the kind of world a seed draws: few faults of many kinds, or many
// of few, so that the seeds differ more than their dice.
type profile struct {
	voters     int
	drop       int
	repeat     int
	late       int
	lateMost   int64
	delayMost  int64
	syncMost   int64
	streamMost int64
	opEvery    int64
	flushEvery int64
	faultEvery int64
	burst      int
	mortal     int // of a hundred new leaders die at once
	lease      bool
	sleepy     bool
	small      bool // small windows and messages
	tiny       bool // a message carries one entry
	members    bool // membership changes; otherwise cut logs
}

func drawProfile(rng *rand.Rand) profile {
	pick := func(list ...int) int { return list[rng.IntN(len(list))] }
	p := profile{
		voters:     pick(1, 2, 3, 3, 3, 3, 4, 5),
		drop:       pick(0, 0, 10, 100, 250),
		repeat:     pick(0, 20, 200),
		late:       pick(0, 20, 200),
		lateMost:   int64(pick(10, 60, 400)),
		delayMost:  int64(pick(1, 3, 8)),
		syncMost:   int64(pick(1, 3, 15)),
		streamMost: int64(pick(3, 40)),
		opEvery:    int64(pick(2, 8, 30)),
		flushEvery: int64(pick(10, 40, 200)),
		faultEvery: int64(pick(20, 60, 200)),
		burst:      pick(1, 1, 5),
		mortal:     pick(0, 0, 20, 60),
		lease:      rng.IntN(3) == 0,
		sleepy:     rng.IntN(3) == 0,
		small:      rng.IntN(2) == 0,
		members:    rng.IntN(2) == 0,
	}
	if rng.IntN(6) == 0 {
		p.shortReigns(pick(3, 3, 5))
	}
	return p
}

// shortReigns makes it the world of figure 8 of the paper: leaders that die
// soon after their election, with entries on some disks and not on others, and
// messages that carry one entry each.
func (p *profile) shortReigns(voters int) {
	p.voters, p.mortal, p.small, p.tiny = voters, 70, true, true
	p.drop, p.repeat, p.late, p.lease, p.sleepy, p.members = 0, 0, 0, false, false, true
	p.opEvery, p.burst, p.syncMost, p.faultEvery = 2, 5, 3, 60
}

// String names what was drawn.
func (p profile) String() string {
	type plain profile // without this method
	return fmt.Sprintf("%+v", plain(p))
}

func (p profile) options() raft.Options {
	o := raft.Options{HeartbeatTicks: 1, ElectionTicks: 6, LeaseReads: p.lease}
	if p.small {
		o.MaxAppendBytes, o.MaxInflightMessages, o.MaxInflightBytes = 120, 3, 300
		o.MaxApplyBytes, o.MaxUnappliedBytes, o.MaxUncommittedBytes = 200, 400, 2000
		o.MaxPendingReads = 4
	}
	if p.tiny {
		o.MaxAppendBytes = 1
	}
	return o
}

func (p profile) network(rng *rand.Rand) network {
	return network{
		rng: rng, drop: p.drop, repeat: p.repeat, late: p.late, lateMost: p.lateMost, delayMost: p.delayMost,
		blocked: map[direction]bool{},
	}
}

// faultTurn does one thing to the world.
func (s *Sim) faultTurn() {
	if s.healed {
		return
	}
	r := s.anyUp()
	if r == nil {
		return
	}
	switch s.rng.IntN(13) {
	case 0, 1, 2:
		s.crash(r)
		s.planRestart(r)
	case 3:
		s.partition(r)
	case 4, 5:
		s.note("heal", 0, 0, 0)
		s.network.heal()
		s.planNodesSeen()
	case 6:
		s.transfer(s.orLeader(r))
	case 7, 8:
		s.changeMembers(s.orLeader(r))
	case 9:
		s.note("pause", r.Member.Replica, 0, 0)
		r.paused = s.now + 20 + s.rng.Int64N(200)
	case 10:
		s.cutLog(r)
	case 11:
		s.note("campaign", r.Member.Replica, 0, 0)
		r.Core.Campaign()
		s.settle(r)
	case 12:
		for _, o := range s.replicas {
			r.Core.Unreachable(o.Member.Replica)
		}
		s.settle(r)
	}
}

// orLeader is mostly the leader: what only a leader can do is not asked in vain.
func (s *Sim) orLeader(r *simReplica) *simReplica {
	if l := s.currentLeader(); l != nil && l.paused <= s.now && s.rng.IntN(4) > 0 {
		return l
	}
	return r
}

// maybeMortal lets some leaders die soon after their election: what they have
// begun is then on some disks and not on others.
func (s *Sim) maybeMortal(r *simReplica) {
	if r.Core.Role() != raft.Leader || r.Core.Term() == r.led {
		return
	}
	r.led = r.Core.Term()
	if s.healed || s.rng.IntN(100) >= s.profile.mortal {
		return
	}
	s.afterFor(r, s.rng.Int64N(2*(s.profile.delayMost+s.profile.syncMost)), func() {
		if !s.healed {
			s.crash(r)
			s.planRestart(r)
		}
	})
}

func (s *Sim) planRestart(r *simReplica) {
	life := r.life
	s.after(10+s.rng.Int64N(250), func() {
		if r.life == life && !r.retired && !r.Up() {
			s.start(r)
			s.planNodesSeen()
		}
	})
	s.planNodesSeen()
}

// partition blocks some directions: one replica from all, two sides, one
// direction only, or a bridge.
func (s *Sim) partition(r *simReplica) {
	var a, b []raft.ReplicaID
	alone := s.rng.IntN(2) == 0
	for _, o := range s.replicas {
		if id := o.Member.Replica; id == r.Member.Replica || !alone && s.rng.IntN(2) == 0 {
			a = append(a, id)
		} else {
			b = append(b, id)
		}
	}
	s.note("partition", r.Member.Replica, uint64(len(a)), uint64(len(b)))
	s.network.split(a, b, s.rng.IntN(3) == 0)
	if len(b) > 1 && s.rng.IntN(3) == 0 { // a bridge
		for _, id := range a {
			delete(s.network.blocked, direction{id, b[0]})
			delete(s.network.blocked, direction{b[0], id})
		}
	}
	s.planNodesSeen()
}

// sees tells whether one node takes another for alive: it is up and both
// directions are open.
func (s *Sim) sees(a, b raft.ReplicaID) bool {
	r := s.find(b)
	return r != nil && r.Up() && !s.network.blocked[direction{a, b}] && !s.network.blocked[direction{b, a}]
}

// planNodesSeen lets the liveness between nodes be noticed a little later: the
// replicas of a dead leader's group learn of it, and a leader whose follower
// may be back wakes.
func (s *Sim) planNodesSeen() {
	s.after(20+s.rng.Int64N(60), func() {
		for _, r := range s.replicas {
			if !r.Up() || r.paused > s.now {
				continue
			}
			leader := r.Core.Leader()
			if leader != 0 && leader != r.Member.Replica && !s.sees(r.Member.Replica, leader) {
				r.Core.LeaderLost()
			} else {
				r.Core.Wake()
			}
			s.settle(r)
		}
	})
}

// sleepTurn lets idle leaders try to sleep.
func (s *Sim) sleepTurn() {
	if !s.profile.sleepy || s.healed {
		return
	}
	for _, r := range s.replicas {
		if !r.Up() || r.paused > s.now || r.Core.Role() != raft.Leader || r.Core.Asleep() {
			continue
		}
		if r.Core.Sleep(func(n raft.NodeID) bool { return s.sees(r.Member.Replica, raft.ReplicaID(n)) }) {
			s.result.Sleeps++
			s.note("sleep", r.Member.Replica, 0, 0)
		}
		s.settle(r)
	}
}

func (s *Sim) transfer(r *simReplica) {
	voters := r.Core.Membership().Voters
	if len(voters) == 0 {
		return
	}
	to := voters[s.rng.IntN(len(voters))].Replica
	if r.Core.TransferLeadership(to) == nil {
		s.note("transfer", r.Member.Replica, uint64(to), 0)
		s.result.Transfers++
	}
	s.settle(r)
}

// changeMembers proposes another membership: a new learner, learners become
// voters, or a member goes.
func (s *Sim) changeMembers(r *simReplica) {
	if !s.profile.members || r.Core.Role() != raft.Leader {
		return
	}
	m := r.Core.Membership()
	voters, learners := append([]raft.Member(nil), m.Voters...), append([]raft.Member(nil), m.Learners...)
	var added *raft.Member
	switch k := s.rng.IntN(4); {
	case k == 0 && len(voters)+len(learners) < 6:
		added = &raft.Member{Replica: s.lastID + 1, Node: raft.NodeID(s.lastID + 1)}
		learners = append(learners, *added)
	case k <= 1 && len(learners) > 0:
		voters, learners = append(voters, learners...), nil
	case k == 2 && len(learners) > 0:
		learners = learners[1:]
	case len(voters) > 1:
		i := s.rng.IntN(len(voters))
		gone := voters[i]
		voters = append(voters[:i], voters[i+1:]...)
		if s.rng.IntN(3) == 0 {
			learners = append(learners, gone)
		}
	}
	index, term, err := r.Core.ProposeMembership(voters, learners)
	if err == nil {
		s.note("members", r.Member.Replica, uint64(index), uint64(term))
		s.result.Changes++
		if added != nil {
			if s.ops.namedAt == nil {
				s.ops.namedAt = map[raft.ReplicaID]uint64{}
			}
			s.ops.namedAt[added.Replica] = r.Core.Membership().Epoch
			s.create(*added, raft.Membership{})
		}
	}
	s.settle(r)
}

// cutLog crashes a replica and cuts its durable log: one at a time, for more
// than a minority cannot be survived.
func (s *Sim) cutLog(r *simReplica) {
	if s.profile.members || s.profile.voters < 3 {
		return
	}
	for _, o := range s.replicas {
		if o.Suspect {
			return
		}
	}
	s.crash(r)
	n := 1 + s.rng.IntN(20)
	s.note("cut", r.Member.Replica, uint64(n), uint64(r.Disk.LastIndex()))
	r.Disk.Cut(n)
	r.Suspect, r.Owed = true, s.checker.Committed()
	s.checker.Cuts++
	s.planRestart(r)
}

// flushTurn flushes a state machine, and sometimes compacts its log.
func (s *Sim) flushTurn() {
	r := s.anyUp()
	if r == nil {
		return
	}
	r.Flush()
	if s.rng.IntN(3) > 0 {
		r.Disk.Compact(r.Disk.Flushed.Applied - min(r.Disk.Flushed.Applied, raft.Index(s.rng.IntN(8))))
	}
	s.note("flush", r.Member.Replica, uint64(r.Disk.Flushed.Applied), uint64(r.Disk.FirstIndex()))
}

// heal ends all faults and waits for progress.
func (s *Sim) heal() {
	s.note("healed", 0, 0, 0)
	s.healed = true
	s.network.calm()
	for _, r := range s.replicas {
		r.paused = min(r.paused, s.now)
		if !r.Up() && !r.retired {
			s.start(r)
		}
	}
	s.planNodesSeen()
	s.every(func() int64 { return tickEvery }, s.lookForProgress)
}

// lookForProgress proposes one more entry and waits until all members have
// applied it, out of any joint phase and of any suspicion.
func (s *Sim) lookForProgress() {
	if s.done || s.err != nil {
		return
	}
	leader := s.currentLeader()
	if leader == nil {
		return
	}
	if s.marker.term != leader.Core.Term() {
		if i, t, err := leader.Core.Propose([]byte("marker")); err == nil {
			s.marker = position{i, t}
			s.settle(leader)
		}
		return
	}
	m := leader.Core.Membership()
	if m.Joint() || s.checker.DecidedTerm(s.marker.index) != s.marker.term {
		return
	}
	for _, x := range m.All() {
		r := s.find(x.Replica)
		if !r.Up() || r.Machine.Applied < s.marker.index || r.Suspect {
			return
		}
	}
	s.note("done", leader.Member.Replica, uint64(s.marker.index), 0)
	s.done = true
}

// currentLeader is the one of the latest term.
func (s *Sim) currentLeader() *simReplica {
	var leader *simReplica
	for _, r := range s.replicas {
		if r.Up() && r.Core.Role() == raft.Leader && (leader == nil || r.Core.Term() > leader.Core.Term()) {
			leader = r
		}
	}
	return leader
}
