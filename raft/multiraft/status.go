package multiraft

import (
	"cmp"
	"slices"

	"github.com/flotilla-kv/flotilla/raft"
)

// LeaderView is what a replica knows of its group's leadership.
type LeaderView struct {
	Leader raft.Member // zero: none is known
	Term   raft.Term
	Role   raft.Role // of the replica here
}

// LeaderChange tells that a replica here sees another leader.
type LeaderChange struct {
	Group   raft.GroupID
	Replica raft.ReplicaID
	LeaderView
}

// GroupStatus describes one group as its replica here sees it.
type GroupStatus struct {
	Key raft.ReplicaKey
	LeaderView
	Commit     raft.Index
	Applied    raft.Index
	Last       raft.Index
	LastTerm   raft.Term       // of the entry there
	Membership raft.Membership // in effect
	// Unsettled: the membership is in the log and not known to be committed: it
	// may yet be undone.
	Unsettled  bool
	Asleep     bool
	Suspect    bool // the log was cut; it counts for nothing until a leader has caught it up
	HasQuorum  bool // a majority of the voters lives on nodes that are alive
	Waiting    int  // proposals whose outcome is open here
	Installing bool // a snapshot comes in
	Members    []MemberStatus
}

// MemberStatus is a member as the leader sees it; elsewhere Match is not known.
type MemberStatus struct {
	raft.Member
	Learner    bool
	Alive      bool
	MatchKnown bool
	Match      raft.Index
}

// Status describes a group that has a replica here. It asks the worker: not to
// be called from one of the host's callbacks.
func (h *Host) Status(g raft.GroupID) (GroupStatus, bool) {
	r, ok := h.find(g)
	if !ok {
		return GroupStatus{}, false
	}
	var s GroupStatus
	ok = r.worker.do(func() { s = r.status() })
	return s, ok && s.Key.Group != 0
}

// Statuses describes all groups, in the order of their ids.
func (h *Host) Statuses() []GroupStatus {
	var all []GroupStatus
	for _, w := range h.workers {
		w.do(func() {
			for _, r := range w.groups {
				all = append(all, r.status())
			}
		})
	}
	slices.SortFunc(all, func(a, b GroupStatus) int { return cmp.Compare(a.Key.Group, b.Key.Group) })
	return all
}

func (r *replica) status() GroupStatus {
	if r.gone {
		return GroupStatus{}
	}
	core := r.core.Status()
	proposals, _ := r.outcomes.waiting()
	s := GroupStatus{
		Key:        r.key,
		LeaderView: LeaderView{Leader: r.leader(), Term: core.Term, Role: core.Role},
		Commit:     core.Commit,
		Applied:    r.apply.appliedIndex(),
		Last:       core.Last,
		LastTerm:   core.LastTerm,
		Membership: core.Membership,
		Unsettled:  core.MembershipIndex > core.Commit,
		Asleep:     core.Asleep,
		Suspect:    r.suspect,
		HasQuorum:  r.quorumAlive(),
		Waiting:    proposals + len(r.queued),
		Installing: r.installing,
	}
	for _, m := range s.Membership.All() {
		member := MemberStatus{Member: m, Learner: !s.Membership.IsVoter(m.Replica), Alive: r.worker.h.alive(m.Node)}
		if m.Replica == r.key.Replica {
			member.Match, member.MatchKnown = s.Last, true
		}
		for _, p := range core.Progress {
			if p.Member.Replica == m.Replica {
				member.Match, member.MatchKnown = p.Match, true
			}
		}
		s.Members = append(s.Members, member)
	}
	return s
}
