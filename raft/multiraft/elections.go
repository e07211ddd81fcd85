package multiraft

import (
	"cmp"
	"slices"
	"time"

	"github.com/flotilla-kv/flotilla/raft"
)

// The delay between the ranks of a group that has lost its leader: after a
// start, when everybody is without one, and after a known death. Where an
// election of somebody else's may be under way, the first rank waits too.
const (
	startGap     = 500 * time.Millisecond
	failoverGap  = 150 * time.Millisecond
	electionBase = 250 * time.Millisecond
)

// campaignPauseMax bounds how long fruitless campaigns are apart.
const campaignPauseMax = 4 * time.Second

// lonelyPace is by how much the election timer of a replica slows down while
// no majority of its group is alive.
const lonelyPace = 8

// campaign is a replica's intention to stand for election, beside the core's
// own timer, which rests until the first attempt.
type campaign struct {
	wanted   bool
	base     time.Duration // before the first rank
	gap      time.Duration // between ranks
	at       time.Time     // zero: no majority was alive yet
	attempts int
}

// standLater lets r stand for election when its rank's turn comes.
func (r *replica) standLater(base, gap time.Duration) {
	r.core.Wake()
	r.campaign = campaign{wanted: true, base: base, gap: gap}
}

// tick gives all awake replicas the ticks that are due.
func (w *worker) tick() {
	interval := w.h.opts.Timing.Tick
	if len(w.awake) == 0 || w.ticked.IsZero() {
		w.ticked = w.now
		return
	}
	n := int(w.now.Sub(w.ticked) / interval)
	if n <= 0 {
		return
	}
	w.ticked = w.ticked.Add(time.Duration(n) * interval)
	campaigning := 0
	var due []*replica
	for _, r := range w.awake {
		if r.frozen {
			continue
		}
		w.touch(r)
		r.tick(n, w.now)
		if role := r.core.Role(); role == raft.Candidate || role == raft.PreCandidate {
			campaigning++
		}
		if r.campaignDue(w.now) {
			due = append(due, r)
		}
	}
	w.stand(due, w.h.opts.Limits.CampaignsMax-campaigning)
}

// stand starts the campaigns that are due, those that wait longest first, as
// long as there is room for more at once.
func (w *worker) stand(due []*replica, room int) {
	slices.SortStableFunc(due, func(a, b *replica) int {
		return cmp.Or(a.campaign.at.Compare(b.campaign.at), cmp.Compare(a.key.Group, b.key.Group))
	})
	for _, r := range due {
		if room <= 0 {
			return
		}
		if role := r.core.Role(); role != raft.Candidate && role != raft.PreCandidate {
			room--
		}
		c := &r.campaign
		pause := min(100*time.Millisecond<<c.attempts, campaignPauseMax)
		c.attempts = min(c.attempts+1, 10)
		c.at = w.now.Add(pause + w.h.randDuration(pause))
		w.h.stats.campaigns.Add(1)
		r.core.Campaign()
	}
}

// maxTicksAtOnce bounds what a replica is made to live through at once after
// the process stood still: it should hear what is in the inbox before it gives
// its leader up. A group with leases lives through all of it, or a lease would
// outlast its time.
const maxTicksAtOnce = 3

// tick is n ticks of a replica.
func (r *replica) tick(n int, now time.Time) {
	before := r.ticks
	r.ticks += n
	if !r.spec.LeaseReads {
		n = min(n, maxTicksAtOnce)
	}
	if r.resting(now) {
		n = 0
	}
	for range n {
		r.core.Tick()
	}
	if second := int(time.Second / r.worker.h.opts.Timing.Tick); before/second != r.ticks/second {
		r.expire(now)
	}
	r.watchDisk(now)
	r.idle += n
	r.trySleep()
}

// resting says whether the core's election timer has to wait: the rank's turn
// has not come, or nobody could win.
func (r *replica) resting(now time.Time) bool {
	if r.view.Leader.Replica != 0 || r.spec.LeaseReads {
		return false
	}
	c := &r.campaign
	if !r.quorumAlive() {
		c.at = time.Time{}
		return r.ticks%lonelyPace != 0
	}
	return c.wanted && c.attempts == 0
}

// campaignDue says whether r stands for election now.
func (r *replica) campaignDue(now time.Time) bool {
	c := &r.campaign
	if !c.wanted || !r.quorumAlive() {
		return false
	}
	if c.at.IsZero() {
		rank := r.rank()
		if rank < 0 { // it has no vote
			c.wanted = false
			return false
		}
		c.at = now.Add(c.base + time.Duration(rank)*c.gap + r.worker.h.randDuration(c.gap/8))
	}
	return !now.Before(c.at)
}

// rank is the replica's place among the live voters: the preferred node's
// first, then in an order that begins at another voter in each group. -1: no
// voter.
func (r *replica) rank() int {
	m := r.core.Membership()
	if !m.IsVoter(r.key.Replica) {
		return -1
	}
	self := r.worker.h.opts.Self
	if r.worker.h.SlowDisk() {
		return len(m.Voters) // behind all others
	}
	if r.spec.Preferred == self {
		return 0
	}
	rank := 0
	n := len(m.Voters)
	for i := range n {
		v := m.Voters[(int(r.key.Group)+i)%n]
		if v.Node == r.spec.Preferred && r.worker.h.alive(v.Node) {
			rank++ // it goes before all others, wherever it stands in the list
		}
	}
	for i := range n {
		v := m.Voters[(int(r.key.Group)+i)%n]
		if v.Replica == r.key.Replica {
			break
		}
		if v.Node != r.spec.Preferred && r.worker.h.alive(v.Node) {
			rank++
		}
	}
	return rank
}

// quorumAlive says whether a majority of the voters lives on live nodes.
func (r *replica) quorumAlive() bool {
	m := r.core.Membership()
	return r.majorityAlive(m.Voters) && (len(m.Outgoing) == 0 || r.majorityAlive(m.Outgoing))
}

func (r *replica) majorityAlive(voters []raft.Member) bool {
	n := 0
	for _, v := range voters {
		if r.worker.h.alive(v.Node) {
			n++
		}
	}
	return n > len(voters)/2
}

// trySleep lets a leader without work fall asleep; its followers follow.
func (r *replica) trySleep() {
	h := r.worker.h
	if r.idle < h.opts.Timing.ticks(h.opts.Timing.SleepAfter) || r.view.Role != raft.Leader {
		return
	}
	if !r.waits() && !r.installing {
		r.core.Sleep(h.alive) // takes a round trip; asked again with each tick
	}
}

// setAwake puts r into the set of those that are ticked, or takes it out.
func (w *worker) setAwake(r *replica, awake bool) {
	switch {
	case awake && r.awakeAt < 0:
		r.awakeAt = len(w.awake)
		w.awake = append(w.awake, r)
		r.idle = 0
	case !awake && r.awakeAt >= 0:
		last := w.awake[len(w.awake)-1]
		w.awake[r.awakeAt] = last
		last.awakeAt = r.awakeAt
		w.awake[len(w.awake)-1] = nil
		w.awake = w.awake[:len(w.awake)-1]
		r.awakeAt = -1
	}
}

// nodeDown: a node died, or came back with a new boot: its leaders are gone.
func (w *worker) nodeDown(node raft.NodeID) {
	for _, r := range w.sorted() {
		if r.frozen || r.view.Leader.Node != node || r.view.Role == raft.Leader {
			continue
		}
		r.core.LeaderLost()
		r.standLater(0, failoverGap)
		w.touch(r)
	}
}

// nodeUp: a node is back. Leaders with a member there wake: it may lag, or was
// restarted and knows no leader. They sleep again when it is in step. What waits
// for its clock is proposed.
func (w *worker) nodeUp(node raft.NodeID) {
	for _, r := range w.sorted() {
		if len(r.queued) > 0 {
			w.touch(r)
		}
		if _, member := r.memberOn(node); member && r.view.Role == raft.Leader && !r.frozen {
			r.core.Wake() // also from falling asleep, which did not wait for that node
			r.idle = 0
			w.touch(r)
		}
	}
}
