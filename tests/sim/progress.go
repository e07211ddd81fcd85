package sim

import (
	"fmt"
	"strings"
	"time"

	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler"
)

// Bounds.
const (
	foundWithin  = 60 * time.Second // the cluster serves
	healedWithin = 40 * time.Second // after the faults all must be well
	queuedMost   = 4096             // writes of a disk, and calls of a client, under way
)

// phaseTurn looks where the run stands.
func (w *world) phaseTurn() {
	w.checkBounds()
	switch w.phase {
	case phaseFound:
		if w.serves() {
			w.beginFaults()
		} else if w.now > foundWithin {
			w.fail("Progress", "no cluster within %v%s", foundWithin, w.describe())
		}
	case phaseHealed:
		waits := w.waitsFor()
		switch {
		case waits == "":
			w.finish()
		case w.now-w.healedAt > healedWithin:
			w.fail("Progress", "%v after the faults: %s%s", healedWithin, waits, w.describe())
		}
	}
}

// serves tells whether the cluster is made: its groups are born and led.
func (w *world) serves() bool {
	n := w.nodes[0]
	if !n.up() || n.control.current == nil || len(n.control.current.Groups) <= w.profile.groups {
		return false
	}
	for _, g := range n.control.current.Groups {
		led := false
		for _, member := range g.Members {
			if o := w.find(member.Node); o != nil && o.up() && o.host != nil {
				s, ok := o.host.Status(g.ID)
				led = led || ok && s.Role == raft.Leader && (g.ID == raft.ConfigGroup || o.kv.Born(g.ID))
			}
		}
		if !led {
			return false
		}
	}
	return true
}

func (w *world) beginFaults() {
	w.phase = phaseFaulty
	w.note("faults begin", 0, 0, 0, nil)
	w.newWatcher()
	duration := w.options.Faulty
	if duration == 0 {
		duration = w.profile.duration
	}
	w.every(func() time.Duration { return w.between(5*time.Millisecond, w.profile.faultEvery) }, w.faultTurn)
	if every := w.profile.moveEvery; every > 0 {
		w.every(func() time.Duration { return w.upTo(2 * every) }, func() {
			if w.phase == phaseFaulty {
				w.operate()
			}
		})
	}
	w.after(duration, w.heal)
}

// heal ends all faults.
func (w *world) heal() {
	w.note("healed", 0, 0, 0, nil)
	w.phase, w.healedAt = phaseHealed, w.now
	w.network.heal()
	w.network.calm = true
	for _, n := range w.nodes {
		n.broken, n.slow, n.skew = nil, 0, 0
		if n.up() {
			n.until = min(n.until, w.now)
			n.settle()
		} else if n.boots > 0 {
			n.revive()
		}
	}
}

// waitsFor says what is not well yet; "": all is.
func (w *world) waitsFor() string {
	for _, n := range w.nodes {
		if n.wiped {
			continue
		}
		if !n.up() || n.host == nil {
			return fmt.Sprintf("node %d does not run", n.place)
		}
		if n.control.current == nil {
			return fmt.Sprintf("node %d knows no map", n.place)
		}
		for _, s := range n.host.Statuses() {
			if why := w.groupWaits(n, s.Key.Group); why != "" {
				return why
			}
		}
		for _, a := range n.control.current.Assigned(n.id) {
			if _, running := n.host.Status(a.Key.Group); !running {
				return fmt.Sprintf("node %d does not run its replica of group %d", n.place, a.Key.Group)
			}
		}
	}
	if why := w.movesWait(); why != "" {
		return why
	}
	if !w.history.full() {
		return fmt.Sprintf("clients have done %d of %d operations", w.history.healed, opsAfterHeal)
	}
	for _, c := range w.clients {
		if c.calls > 0 {
			return fmt.Sprintf("client %d waits for %d calls", -c.place, c.calls)
		}
	}
	return ""
}

// movesWait says what was decided and is not carried out yet.
func (w *world) movesWait() string {
	for _, n := range w.nodes {
		if n.wiped || !n.governs() {
			continue
		}
		state := n.control.machine.State()
		for _, o := range state.Operations {
			return fmt.Sprintf("operation %d (%s) has not ended", o.ID, o.Reason)
		}
		for _, g := range state.Groups {
			if g.Leaving {
				return fmt.Sprintf("group %d is still there", g.ID)
			}
			for _, m := range g.Members {
				if m.Learner {
					return fmt.Sprintf("replica %d of group %d still learns", m.Replica, g.ID)
				}
			}
		}
		for _, m := range state.Moves {
			if m.State == shardctrler.MoveOrdered || m.State == shardctrler.MoveServed {
				return fmt.Sprintf("move %d of shard %d from group %d to group %d is %v", m.ID, m.Shard, m.From, m.To, m.State)
			}
		}
		for i, at := range state.Shards {
			if len(state.Configs) > 0 && state.Configs[len(state.Configs)-1].Owners[i] != at.Group {
				return fmt.Sprintf("shard %d is at group %d, which the config does not want", i, at.Group)
			}
		}
	}
	return ""
}

// groupWaits says what a replica waits for.
func (w *world) groupWaits(n *node, g raft.GroupID) string {
	s, _ := n.host.Status(g)
	leader := w.find(s.Leader.Node)
	if leader == nil || !leader.up() || leader.host == nil {
		return fmt.Sprintf("node %d knows no leader of group %d", n.place, g)
	}
	l, ok := leader.host.Status(g)
	switch {
	case !ok || l.Role != raft.Leader:
		return fmt.Sprintf("node %d takes node %d for the leader of group %d", n.place, leader.place, g)
	case s.Suspect:
		return fmt.Sprintf("node %d does not count in group %d", n.place, g)
	case s.Applied < l.Commit:
		return fmt.Sprintf("node %d has applied %d of %d entries of group %d", n.place, s.Applied, l.Commit, g)
	case s.Membership.Joint():
		return fmt.Sprintf("group %d is in a joint phase", g)
	case n.kv.Moving(g) > 0:
		return fmt.Sprintf("%d shards of group %d are in a move", n.kv.Moving(g), g)
	}
	return ""
}

// finish reads every key once more, and ends the run when all is answered.
func (w *world) finish() {
	h := &w.history
	if h.finals == 0 {
		for place := range w.profile.keys {
			for _, letter := range "rcl" {
				h.finals++
				h.last++
				w.clients[0].begin(&op{id: h.last, kind: opGet, key: fmt.Sprint(string(letter), place)})
			}
		}
		return
	}
	for _, o := range h.ops[len(h.ops)-h.finals:] {
		if why := w.watcher.waits(o); why != "" {
			if w.now-w.healedAt > healedWithin {
				w.fail("Watches", "%v after the faults %s", healedWithin, why)
			}
			return
		}
	}
	for _, n := range w.nodes {
		if !n.wiped {
			w.states.compare(n)
			w.states.checkOwners(n)
		}
	}
	w.states.checkTable()
	w.states.checkDecisions()
	w.states.checkExplained()
	for o := range w.states.owners {
		w.counts.Moved += int(o.generation) - 1 // of those that own them now
	}
	w.checkHistory()
	w.note("done", 0, uint64(w.counts.Operations), uint64(w.counts.Unknown), nil)
	w.done = true
}

// checkBounds: nothing grows without end.
func (w *world) checkBounds() {
	for _, n := range w.nodes {
		if queued := n.log.Queued(); queued > queuedMost {
			w.fail("Bounded", "%d writes wait for the disk of node %d", queued, n.place)
		}
	}
	for _, c := range w.clients {
		if calls := c.router.Calls(); calls > queuedMost {
			w.fail("Bounded", "client %d has %d calls under way", -c.place, calls)
		}
	}
}

// describe says where everything stands.
func (w *world) describe() string {
	var b strings.Builder
	for _, n := range w.nodes {
		if !n.up() || n.host == nil {
			fmt.Fprintf(&b, "\n  node %d: id %d, up %t, wiped %t, boots %d", n.place, n.id, n.up(), n.wiped, n.boots)
			continue
		}
		for _, s := range n.host.Statuses() {
			fmt.Fprintf(&b, "\n  node %d group %d replica %d: %v of term %d, leader on %d, last %d commit %d applied %d, voters %v learners %v epoch %d, asleep %t suspect %t quorum %t",
				n.place, s.Key.Group, s.Key.Replica, s.Role, s.Term, s.Leader.Node, s.Last, s.Commit, s.Applied, s.Membership.Voters, s.Membership.Learners, s.Membership.Epoch, s.Asleep, s.Suspect, s.HasQuorum)
		}
	}
	return b.String()
}
