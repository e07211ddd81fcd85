package routing

import (
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// Options are the router's constants. A zero field takes its default.
type Options struct {
	// Rand is the random source of session ids and of the jitter of waits. It
	// must be set; session ids of all clients must not meet.
	Rand func() uint64
	// Births is the time by which sessions are born, unix milliseconds. It must
	// be near that of the shards, which refuse a birth a minute ahead of them.
	// Default: now's.
	Births func(now time.Time) int64
	// PreferNode is whom follower and stale reads ask first; 0: all in turn.
	PreferNode raft.NodeID
	// AttemptTimeout is how long a node may be silent on a request before it
	// is asked elsewhere; it doubles with each silence. Default 2 s.
	AttemptTimeout time.Duration
	// RenewAfter is the age at which a session is given up for a new one. It
	// must leave calls time to finish before the hour at which shards forget
	// it. Default 30 min.
	RenewAfter time.Duration
}

// Defaults and limits of a call's attempts.
const (
	attemptTimeoutDefault = 2 * time.Second
	renewAfterDefault     = 30 * time.Minute

	redirectsMax = 3 // tries elsewhere without a wait between two waits
	renewalsMax  = 2 // times a call changes its session; past them the clocks disagree
	silencesMax  = 4 // doublings of the attempt timeout

	failureWaitMin = 4 * time.Millisecond
	failureWaitMax = 100 * time.Millisecond
	busyWaitMin    = time.Millisecond
	busyWaitMax    = 100 * time.Millisecond
)

// Output is what is to be done, in any order, except that Connect of an
// address comes before later Sends to it.
type Output struct {
	Sends      []Send
	Connect    []Target
	Disconnect []string // addresses; LinkDown follows
	Deliveries []Delivery
	// Refresh asks for a map newer than RefreshAfter.
	Refresh      bool
	RefreshAfter uint64
	// Wake is when Tick is due at the latest; zero: not at all.
	Wake time.Time
}

// Send hands a request to the connection to a node.
type Send struct {
	To      Target
	Request *flotillav1.Request
}

// Delivery is a call's end: a response with code OK, or a failure.
type Delivery struct {
	Call     *Call
	Response *flotillav1.Response
	Failure  *Failure
}

// Router routes calls; see the package.
type Router struct {
	options  Options
	routes   routes
	session  *session
	links    map[string]*link
	inFlight map[uint64]*Call // by the id of the attempt
	parked   []*Call          // wait for a map, at most until their wake time
	timers   timers
	lastID   uint64
	closing  bool
	out      Output
}

// New makes a router that knows no map yet.
func New(options Options) *Router {
	if options.AttemptTimeout == 0 {
		options.AttemptTimeout = attemptTimeoutDefault
	}
	if options.Births == nil {
		options.Births = time.Time.UnixMilli
	}
	if options.RenewAfter == 0 {
		options.RenewAfter = renewAfterDefault
	}
	return &Router{
		options: options,
		routes: routes{
			hints:  make(map[shardmap.ShardID]moveHint),
			groups: make(map[raft.GroupID]*groupRoute),
		},
		links:    make(map[string]*link),
		inFlight: make(map[uint64]*Call),
	}
}

// Take moves what is to be done into out, whose slices are reused.
func (r *Router) Take(out *Output) {
	clear(out.Sends)
	clear(out.Deliveries)
	out.Sends, out.Connect, out.Disconnect, out.Deliveries = out.Sends[:0], out.Connect[:0], out.Disconnect[:0], out.Deliveries[:0]
	out.Refresh, out.RefreshAfter = false, 0
	*out, r.out = r.out, *out
	out.Wake = r.timers.next()
}

// Calls is the number of calls under way.
func (r *Router) Calls() int { return len(r.timers.heap) }

// Map is the newest map, nil if none is known.
func (r *Router) Map() *shardmap.Map { return r.routes.current }

// Submit takes a call on.
func (r *Router) Submit(now time.Time, c *Call) {
	c.kind = kindOf(c.Request)
	c.last = causeNone
	r.timers.set(c, c.Deadline)
	if r.routes.current == nil {
		c.state = stateParked
		c.last = CauseNoMap
		r.park(c)
		r.refresh()
		return
	}
	r.admit(now, c)
}

// admit places a call and starts it, or queues it behind others of its lane.
func (r *Router) admit(now time.Time, c *Call) {
	shard, ok := shardOf(c.Request, len(r.routes.owners))
	if !ok {
		r.finish(now, c, nil, r.failure(c, ReasonCrossShard))
		return
	}
	c.shard = shard
	if c.Lane != nil {
		r.enter(now, c)
		return
	}
	r.start(now, c)
}

// start numbers a write if it has no number yet, and sends.
func (r *Router) start(now time.Time, c *Call) {
	if c.kind == kindWrite && !c.numbered {
		if c.number, c.numbered = r.current(now).take(c.shard); !c.numbered {
			r.failed(now, c, CauseWindow, "")
			return
		}
	}
	r.send(now, c)
}

// current is the session to number writes under, renewed in good time.
func (r *Router) current(now time.Time) *session {
	if ms := r.options.Births(now); r.session == nil || r.session.old(ms, r.options.RenewAfter) {
		r.session = newSession(r.options.Rand(), ms)
	}
	return r.session
}

// send makes an attempt along the route as it is known now.
func (r *Router) send(now time.Time, c *Call) {
	c.group = r.routes.owner(c.shard)
	g := r.routes.groups[c.group]
	if g == nil || len(g.members) == 0 {
		r.failed(now, c, CauseNobody, "")
		return
	}
	to := g.leaderOr(r.usable(now))
	if c.anyReplica() {
		to = g.reader(r.options.PreferNode, r.usable(now))
	}
	l := r.link(to)
	c.link = l
	switch {
	case l.state == linkUp:
		r.emit(now, c, l)
	case l.state == linkIdle && now.Before(l.retryAt):
		r.failed(now, c, CauseUnsent, to.Addr)
	default:
		r.linking(c, l)
	}
}

// linking makes a call wait for a connection, which is asked for if nobody has.
func (r *Router) linking(c *Call, l *link) {
	c.state = stateLinking
	r.timers.set(c, c.Deadline)
	l.waiting = append(l.waiting, c)
	if l.state == linkIdle {
		l.state = linkConnecting
		r.out.Connect = append(r.out.Connect, l.target)
	}
}

// emit hands an attempt to a connection. From here on a write may happen.
func (r *Router) emit(now time.Time, c *Call, l *link) {
	r.lastID++
	c.id = r.lastID
	c.attempts++
	c.sent = now
	c.state = stateInFlight
	r.inFlight[c.id] = c
	wake := now.Add(r.options.AttemptTimeout << min(c.silences, silencesMax))
	if wake.After(c.Deadline) {
		wake = c.Deadline
	}
	r.timers.set(c, wake)
	r.out.Sends = append(r.out.Sends, Send{To: l.target, Request: c.attempt(wake.Sub(now))})
}

// attempt is the request as one attempt sends it. It shares the ops of the
// submitted one, which nobody changes any more.
func (c *Call) attempt(wait time.Duration) *flotillav1.Request {
	q := c.Request
	a := &flotillav1.Request{
		Id:          c.id,
		TimeoutMs:   uint32(max(wait.Milliseconds(), 1)),
		Shard:       uint64(c.shard),
		Group:       uint64(c.group),
		Consistency: q.GetConsistency(),
		StalenessMs: q.GetStalenessMs(),
		Compares:    q.GetCompares(),
		Ops:         q.GetOps(),
		Otherwise:   q.GetOtherwise(),
		Outcome:     q.GetOutcome(),
		Follower:    q.GetFollower(),
	}
	if c.numbered {
		a.Session = c.number.wire()
	}
	return a
}

// Response takes in a node's answer. One that nobody waits for is ignored.
func (r *Router) Response(now time.Time, p *flotillav1.Response) {
	c := r.inFlight[p.GetId()]
	if c == nil {
		return
	}
	c.link.delay = 0
	cause := Cause(p.GetCode())
	if ruleFor(cause).next == stepDeliver {
		if g := r.routes.groups[c.group]; g != nil && !c.anyReplica() {
			g.answered(c.link.target)
		}
		r.finish(now, c, p, nil)
		return
	}
	r.learn(c, p)
	r.failed(now, c, cause, p.GetMessage())
}

// learn takes what an answer says about the route.
func (r *Router) learn(c *Call, p *flotillav1.Response) {
	switch ruleFor(Cause(p.GetCode())).next {
	case stepFollowLeader:
		if g := r.routes.groups[c.group]; g != nil {
			named := r.routes.node(raft.NodeID(p.GetLeaderNode()), p.GetLeaderAddr())
			if !r.usableNow(c, named.Addr) {
				named = Target{}
			}
			g.notLeader(c.link.target, named)
		}
	case stepFollowMove:
		r.routes.moved(c.shard, c.group, raft.GroupID(p.GetGroup()))
	}
}

// usableNow is false for a node whose connection failed and is not yet to be
// tried again: a follower may name a dead leader until it notices.
func (r *Router) usableNow(c *Call, addr string) bool {
	l := r.links[addr]
	return l == nil || l == c.link || l.state != linkIdle || l.delay == 0
}

// failed decides what follows a fruitless attempt.
func (r *Router) failed(now time.Time, c *Call, cause Cause, message string) {
	delete(r.inFlight, c.id)
	c.state = stateWaiting
	rule := ruleFor(cause)
	c.last, c.message = cause, message
	c.possible = c.possible || rule.possible && c.kind == kindWrite
	if rule.refresh {
		r.refresh()
	}
	switch rule.next {
	case stepGiveUp:
		r.giveUp(now, c, cause)
	case stepRenumber:
		r.renumber(now, c)
	case stepFollowLeader, stepFollowMove, stepOtherMember:
		if rule.next == stepOtherMember {
			r.turnAway(c)
		}
		if c.redirects < redirectsMax && r.elsewhere(c, rule.next) {
			c.redirects++
			r.send(now, c)
			return
		}
		r.wait(now, c, rule)
	default:
		r.wait(now, c, rule)
	}
}

// turnAway makes the group's next attempts begin at another member.
func (r *Router) turnAway(c *Call) {
	if g := r.routes.groups[c.group]; g != nil && c.link != nil {
		g.skip(c.link.target)
	}
}

// elsewhere reports whether the route now leads to another node than the one
// that just failed, so that a try without a wait makes sense.
func (r *Router) elsewhere(c *Call, next step) bool {
	owner := r.routes.owner(c.shard)
	g := r.routes.groups[owner]
	if g == nil {
		return false
	}
	switch next {
	case stepFollowMove:
		return owner != c.group
	case stepFollowLeader:
		return c.anyReplica() || g.leader.Addr != "" && g.leader.Addr != c.link.target.Addr
	}
	return len(g.members) > 1
}

// wait puts a call off, after each wait for longer up to a bound. Only the
// deadline ends a call that nobody can answer now: a group may be without its
// majority for minutes, and come back.
func (r *Router) wait(now time.Time, c *Call, rule rule) {
	var delay time.Duration
	if rule.busy {
		delay = r.jitter(busyWaitMin, busyWaitMax, c.busies)
		c.busies++
	} else {
		delay = r.jitter(failureWaitMin, failureWaitMax, c.failures)
		c.failures++
		c.busies = 0
	}
	c.redirects = 0
	c.state = stateWaiting
	at := now.Add(delay)
	if at.After(c.Deadline) {
		at = c.Deadline
	}
	r.timers.set(c, at)
	if rule.refresh {
		r.park(c) // a new map ends the wait
	}
}

// jitter doubles least for each time before, up to most, and takes between
// half and all of it, so that calls that failed together do not come back so.
func (r *Router) jitter(least, most time.Duration, before int) time.Duration {
	d := min(least<<min(before, 16), most)
	return d/2 + time.Duration(r.options.Rand()%uint64(d/2+1))
}

// giveUp ends a call that no further attempt can help. A refused merge is
// taken apart instead.
func (r *Router) giveUp(now time.Time, c *Call, cause Cause) {
	invalid := flotillav1.Code(cause) == flotillav1.Code_INVALID
	if invalid && len(c.parts) > 0 && !c.possible {
		r.unmerge(now, c)
		return
	}
	reason := ReasonInternal
	if invalid {
		reason = ReasonInvalid
	}
	r.finish(now, c, nil, r.failure(c, reason))
}

// renumber moves a write to a new session after the old one expired, unless an
// earlier attempt may have had an effect: then a new number could repeat it.
func (r *Router) renumber(now time.Time, c *Call) {
	c.renewals++
	if !c.numbered || c.possible || c.renewals > renewalsMax {
		r.finish(now, c, nil, r.failure(c, ReasonSessionExpired))
		return
	}
	c.number.finish()
	if c.number.session == r.session {
		r.session = nil
	}
	c.numbered = false
	r.start(now, c)
}

// MapChanged takes in a map. An old one is ignored.
func (r *Router) MapChanged(now time.Time, m *shardmap.Map) {
	if !r.routes.update(m) {
		return
	}
	parked := r.parked
	r.parked = nil
	for _, c := range parked {
		c.parked = false
		switch c.state {
		case stateParked:
			r.admit(now, c)
		case stateWaiting:
			r.start(now, c)
		}
	}
	r.dropLinks()
}

// park notes that a call waits for a map.
func (r *Router) park(c *Call) {
	if !c.parked {
		c.parked = true
		r.parked = append(r.parked, c)
	}
}

// unpark forgets calls that were delivered meanwhile, so that the list stays
// within the calls under way.
func (r *Router) unpark() {
	if len(r.parked) <= 2*len(r.timers.heap)+64 {
		return
	}
	kept := r.parked[:0]
	for _, c := range r.parked {
		if c.state != stateDone {
			kept = append(kept, c)
		}
	}
	clear(r.parked[len(kept):])
	r.parked = kept
}

func (r *Router) refresh() {
	r.out.Refresh = true
	if r.routes.current != nil {
		r.out.RefreshAfter = r.routes.current.Revision
	}
}

// Cancel ends a call whose caller no longer waits. A call that was delivered
// is left alone.
func (r *Router) Cancel(now time.Time, c *Call, reason Reason) {
	if c.state != stateDone {
		r.finish(now, c, nil, r.failure(c, reason))
	}
}

// Forget says that nobody will ask any more what became of a write whose
// caller gave up: Outcome has told.
func (r *Router) Forget(w WriteID) {
	if s := r.session; s != nil && s.id == w.Client && s.birthMS == w.BirthMS && s.shards[w.Shard] != nil {
		s.shards[w.Shard].settle(w.Seq, numberFinished)
	}
}

// CancelAll ends every call, those that it would start too.
func (r *Router) CancelAll(now time.Time, reason Reason) {
	r.closing = true
	for len(r.timers.heap) > 0 {
		r.Cancel(now, r.timers.heap[0], reason)
	}
}

// Tick does what is due.
func (r *Router) Tick(now time.Time) {
	for c := r.timers.due(now); c != nil; c = r.timers.due(now) {
		r.silent(now, c)
		switch {
		case !now.Before(c.Deadline):
			r.finish(now, c, nil, r.failure(c, ReasonDeadline))
		case c.state == stateWaiting:
			r.start(now, c)
		default:
			c.silences++
			r.failed(now, c, CauseSilent, c.link.target.Addr)
		}
	}
	r.unpark()
}

// finish delivers a call: the only place where one ends.
func (r *Router) finish(now time.Time, c *Call, p *flotillav1.Response, f *Failure) {
	delete(r.inFlight, c.id)
	r.timers.remove(c)
	c.state = stateDone
	if c.numbered {
		if f != nil && f.Possible {
			c.number.abandon()
		} else {
			c.number.finish()
		}
	}
	switch {
	case len(c.parts) == 0 && c.internal:
		// nobody waits for it: its parts went back to the queue, or it has none
	case len(c.parts) == 0:
		r.out.Deliveries = append(r.out.Deliveries, Delivery{Call: c, Response: p, Failure: f})
	case f != nil:
		r.failParts(now, c, f)
	default:
		r.split(now, c, p)
	}
	switch {
	case c.whole != nil:
		r.dropPart(now, c)
	case c.Lane != nil:
		r.leave(now, c, f)
	}
}
