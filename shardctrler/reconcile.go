package shardctrler

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// Times of the loop around the reconciler.
const (
	observeEvery   = 2 * time.Second        // reports of all nodes
	observeTimeout = 500 * time.Millisecond // of one round
	aliveFor       = 2 * time.Second        // a node last heard of so long ago still counts as alive
	lookEvery      = time.Second            // at the nodes, if nothing happens
	catchUpCheck   = 20 * time.Millisecond  // while the config group's own membership is being changed
	sendTimeout    = 2 * time.Second
	proposeTimeout = 5 * time.Second
)

// reconcile runs the reconciler while this node leads the config group. It
// starts anew with each term: what a turn remembers can be lost.
func (c *Controller) reconcile(ctx context.Context) {
	for ctx.Err() == nil {
		news := c.news()
		at, leads := c.leads()
		if !leads || c.stopping.Load() {
			c.setWaits(nil)
			c.sleep(ctx, lookEvery, news)
			continue
		}
		c.reign(ctx, &reign{c: c, leading: at,
			reconciler: newReconciler(), heard: make(map[raft.NodeID]time.Time)})
	}
}

// reign is the loop's state during one term of leadership of this node.
type reign struct {
	leading
	c          *Controller
	reconciler *reconciler
	heard      map[raft.NodeID]time.Time // when each node was last heard of
	asked      time.Time                 // when reports were last asked for
	asking     bool
	work       sync.WaitGroup // sends and report rounds

	wake     signal
	mu       sync.Mutex // guards all below
	results  []sendResult
	reports  []report
	answered bool
}

// reign turns until leadership or ctx ends, and waits for what it started.
func (c *Controller) reign(ctx context.Context, r *reign) {
	ctx, cancel := context.WithCancel(ctx)
	defer r.work.Wait()
	defer cancel()
	barrier, done := context.WithTimeout(ctx, proposeTimeout)
	err := r.host.Barrier(barrier)
	done()
	if err != nil {
		c.sleep(ctx, sendBackoffQuick, c.news())
		return
	}
	c.logger.Info("this node leads the config group and reconciles", "term", r.term)
	for ctx.Err() == nil && r.turn(ctx) {
	}
}

// turn observes, decides and acts once, then waits for a reason to do it
// again; false: this node leads no longer.
func (r *reign) turn(ctx context.Context) bool {
	changed, news, wake := r.machine.Changed(), r.c.news(), r.wake.wait()
	st, hosted := r.host.Status(raft.ConfigGroup)
	if at, leads := r.c.leads(); !leads || at != r.leading || !hosted || r.c.stopping.Load() {
		return false
	}
	state := r.machine.State()
	if !state.Initialised() {
		r.pause(ctx, lookEvery, changed, news, wake)
		return true
	}
	now := time.Now()
	r.askReports(ctx, now)
	in := turnInput{now: now, state: state, observed: r.observe(now, state, st), results: r.takeResults(), hints: r.c.takeHints(state)}
	out := r.reconciler.turn(in)
	r.c.setWaits(r.reconciler.waits(state, now))
	for _, s := range out.sends {
		r.send(ctx, state.ClusterID, s)
	}
	if r.propose(ctx, out.commands) {
		return true // what was committed may ask for more at once
	}
	r.pause(ctx, r.next(now, state, st, out.next), changed, news, wake)
	return true
}

// next is how long to wait if nothing happens.
func (r *reign) next(now time.Time, state *State, st GroupStatus, wanted time.Time) time.Duration {
	wait := lookEvery
	if _, pending := state.pendingFor(raft.ConfigGroup); pending || len(st.Membership.Learners) > 0 {
		wait = catchUpCheck
	}
	if !wanted.IsZero() {
		wait = min(wait, max(time.Millisecond, wanted.Sub(now)))
	}
	return wait
}

func (r *reign) pause(ctx context.Context, d time.Duration, changed, news, wake <-chan struct{}) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-changed:
	case <-news:
	case <-wake:
	}
}

// propose has the commands decided, all at once, and tells whether all were.
func (r *reign) propose(ctx context.Context, commands []Command) bool {
	if len(commands) == 0 {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
	defer cancel()
	errs := make([]error, len(commands))
	var deciding sync.WaitGroup
	for i, command := range commands {
		deciding.Add(1)
		go func() {
			defer deciding.Done()
			var answer any
			answer, errs[i] = r.c.propose(ctx, command)
			if committed, ok := answer.(Committed); ok && errs[i] == nil {
				errs[i] = errors.Join(committed.Refused...)
			}
		}()
	}
	deciding.Wait()
	if err := errors.Join(errs...); err != nil {
		r.c.logger.Info("the reconciler was refused and plans again", "error", err)
		return false
	}
	return true
}

// send has one attempt made, by a goroutine of its own: at most sendsMax run.
func (r *reign) send(ctx context.Context, cluster string, s send) {
	r.work.Add(1)
	go func() {
		defer r.work.Done()
		ctx, cancel := context.WithTimeout(ctx, sendTimeout)
		defer cancel()
		result := sendResult{operation: s.operation.ID}
		answer, err := r.c.executeAt(ctx, s.to, s.request(cluster))
		if err != nil {
			result.detail = err.Error()
		} else {
			result.accepted, result.leader, result.detail = answer.Accepted, raft.NodeID(answer.LeaderNode), answer.Message
		}
		r.mu.Lock()
		r.results = append(r.results, result)
		r.mu.Unlock()
		r.wake.fire()
	}()
}

// executeAt carries an operation to a node.
func (c *Controller) executeAt(ctx context.Context, node raft.NodeID, request *flotillav1.ExecuteRequest) (*flotillav1.ExecuteResponse, error) {
	if node == c.self() {
		return c.Execute(ctx, request)
	}
	last := error(&NotLeaderError{Group: raft.GroupID(request.Group)})
	for _, client := range c.clients(node) {
		answer, err := client.Execute(ctx, request)
		if err == nil {
			return answer, nil
		}
		last = err
	}
	return nil, last
}

func (r *reign) takeResults() []sendResult {
	r.mu.Lock()
	defer r.mu.Unlock()
	results := r.results
	r.results = nil
	return results
}

// takeHints takes the hints of groups that something is pending for.
func (c *Controller) takeHints(s *State) []leaderHint {
	c.mu.Lock()
	defer c.mu.Unlock()
	var hints []leaderHint
	for _, o := range s.Operations {
		group, _ := o.group()
		if node := c.hints[group]; node != 0 {
			hints = append(hints, leaderHint{group, node})
			delete(c.hints, group)
		}
	}
	return hints
}

func (c *Controller) setWaits(waits []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waits = waits
}

// askReports asks all nodes, now and then, in the background.
func (r *reign) askReports(ctx context.Context, now time.Time) {
	r.mu.Lock()
	if r.answered {
		r.asking, r.answered = false, false
	}
	r.mu.Unlock()
	m := r.machine.Map()
	if r.asking || now.Sub(r.asked) < observeEvery || m == nil {
		return
	}
	r.asking, r.asked = true, now
	r.work.Add(1)
	go func() {
		defer r.work.Done()
		ctx, cancel := context.WithTimeout(ctx, observeTimeout)
		defer cancel()
		reports := r.c.collect(ctx, m, false)
		r.mu.Lock()
		r.reports, r.answered = reports, true
		r.mu.Unlock()
		r.wake.fire()
	}()
}

// observe puts together what is known now: which nodes are heard of, what the
// leaders reported last, and the config group from its own replica.
func (r *reign) observe(now time.Time, s *State, st GroupStatus) Observed {
	r.mu.Lock()
	reports := r.reports
	r.mu.Unlock()
	var o Observed
	for _, n := range s.Nodes {
		o.Nodes = append(o.Nodes, r.heardOf(now, n))
		o.Nodes[len(o.Nodes)-1].Ready = isReady(reports, n.ID)
	}
	groups := make(map[raft.GroupID]ObservedGroup)
	for _, rep := range reports {
		for _, g := range rep.report.GetGroups() {
			seen := observedGroup(g)
			if before, ok := groups[seen.ID]; !ok || before.Term < seen.Term {
				groups[seen.ID] = seen
			}
		}
	}
	groups[raft.ConfigGroup] = ObservedGroup{ID: raft.ConfigGroup, Leader: st.Leader.Node, Term: st.Term,
		Epoch: st.Membership.Epoch, Joint: len(st.Membership.Outgoing) > 0, Members: observedMembers(st)}
	for _, g := range groups {
		o.Groups = append(o.Groups, g)
	}
	slices.SortFunc(o.Groups, func(a, b ObservedGroup) int { return compare(a.ID, b.ID) })
	return o
}

// isReady tells whether a node's last report says that it is ready.
func isReady(reports []report, node raft.NodeID) bool {
	i := slices.IndexFunc(reports, func(r report) bool { return r.node == node })
	return i >= 0 && reports[i].report.GetReady()
}

// heardOf counts a node as alive until it has been silent for a while; one
// that is new here has just been heard of: it registered, or this node has
// only begun to listen.
func (r *reign) heardOf(now time.Time, n Node) ObservedNode {
	last, known := r.heard[n.ID]
	if !known || n.ID == r.c.self() || r.c.options.Alive(n.ID) {
		last = now
		r.heard[n.ID] = now
	}
	silent := now.Sub(last)
	if silent < aliveFor {
		return ObservedNode{ID: n.ID, Alive: true}
	}
	return ObservedNode{ID: n.ID, Silent: silent}
}

// observedGroup is a group as its leader reported it.
func observedGroup(g *flotillav1.GroupStatus) ObservedGroup {
	o := ObservedGroup{ID: raft.GroupID(g.Id), Leader: raft.NodeID(g.LeaderNode), Term: raft.Term(max(0, g.Term)), Epoch: g.Epoch, Joint: g.Joint}
	for _, m := range g.Replicas {
		o.Members = append(o.Members, ObservedMember{Lag: m.MatchLag, Member: shardmap.Member{
			Replica: raft.ReplicaID(m.ReplicaId), Node: raft.NodeID(m.NodeId), Learner: m.Role == "learner"}})
	}
	return o
}
