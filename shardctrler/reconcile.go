package shardctrler

import (
	"context"
	"errors"
	"sync"
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
)

// Times of the loop around the reconciler.
const (
	observeEvery   = 2 * time.Second        // reports of all nodes
	observeOften   = 100 * time.Millisecond // likewise, while a membership changes
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
		c.reign(ctx, &reign{c: c, leading: at, drive: NewDrive()})
	}
}

// reign is the loop's state during one term of leadership of this node.
type reign struct {
	leading
	c      *Controller
	drive  *Drive
	asked  time.Time // when reports were last asked for
	asking bool
	work   sync.WaitGroup // sends and report rounds

	wake     signal
	mu       sync.Mutex // guards all below
	results  []SendResult
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
	out := r.drive.Turn(r.input(now, state, st))
	r.c.setWaits(r.drive.Waits(state, now))
	for _, s := range out.Sends {
		r.send(ctx, s)
	}
	if r.propose(ctx, out.Commands) {
		return true // what was committed may ask for more at once
	}
	r.pause(ctx, r.next(now, state, st, out.Next), changed, news, wake)
	return true
}

// input is what a turn decides from, now.
func (r *reign) input(now time.Time, state *State, st GroupStatus) DriveInput {
	in := DriveInput{Now: now, State: state, Self: r.c.self(), Config: st, Alive: r.c.options.Alive, Hints: r.c.takeHints(state)}
	r.mu.Lock()
	defer r.mu.Unlock()
	in.Reports = answered(r.reports)
	in.Results, r.results = r.results, nil
	return in
}

// next is how long to wait if nothing happens.
func (r *reign) next(now time.Time, state *State, st GroupStatus, wanted time.Time) time.Duration {
	wait := lookEvery
	if _, pending := state.pendingFor(raft.ConfigGroup); pending || len(st.Membership.Learners) > 0 {
		wait = catchUpCheck
	} else if state.changing() {
		wait = observeOften
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
func (r *reign) send(ctx context.Context, s Send) {
	r.work.Add(1)
	go func() {
		defer r.work.Done()
		ctx, cancel := context.WithTimeout(ctx, sendTimeout)
		defer cancel()
		answer, err := r.c.executeAt(ctx, s.To, s.Request)
		r.mu.Lock()
		r.results = append(r.results, s.Result(answer, err))
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

// takeHints takes the hints of groups that something is pending for.
func (c *Controller) takeHints(s *State) []LeaderHint {
	c.mu.Lock()
	defer c.mu.Unlock()
	var hints []LeaderHint
	for _, o := range s.Operations {
		group, _ := o.group()
		if node := c.hints[group]; node != 0 {
			hints = append(hints, LeaderHint{group, node})
			delete(c.hints, group)
		}
	}
	for _, m := range s.underWay() {
		if node := c.hints[m.To]; node != 0 {
			hints = append(hints, LeaderHint{m.To, node})
			delete(c.hints, m.To)
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
	m, every := r.machine.Map(), observeEvery
	if r.machine.State().changing() {
		every = observeOften
	}
	if r.asking || now.Sub(r.asked) < every || m == nil {
		return
	}
	r.asking, r.asked = true, now
	r.work.Add(1)
	go func() {
		defer r.work.Done()
		ctx, cancel := context.WithTimeout(ctx, observeTimeout)
		defer cancel()
		reports := r.c.collect(ctx, m, new(flotillav1.GetNodeReportRequest))
		r.mu.Lock()
		r.reports, r.answered = reports, true
		r.mu.Unlock()
		r.wake.fire()
	}()
}
