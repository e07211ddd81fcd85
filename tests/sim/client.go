package sim

import (
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/client/routing"
)

// client is a user with the real router, whose connections are the world's.
type client struct {
	w      *world
	place  int // below 0
	rand   *rand.Rand
	router *routing.Router
	lane   *routing.Lane // orders some of its operations
	links  map[string]*connection
	wake   time.Duration // when the router is ticked next; 0: not planned
	asking bool          // for a map
	calls  int           // under way
}

// connection carries requests to a node in order, until it breaks.
type connection struct {
	to    *node
	boot  uint64 // of the process it leads to
	up    bool
	sent  []uint64 // requests not yet answered
	epoch int      // counts the times it was made
}

func (w *world) newClient(i int) {
	c := &client{w: w, place: -(i + 1), rand: rand.New(rand.NewPCG(w.options.Seed, uint64(i))), links: make(map[string]*connection), lane: new(routing.Lane)}
	c.router = routing.New(routing.Options{Rand: c.rand.Uint64})
	w.clients = append(w.clients, c)
	w.after(w.upTo(100*time.Millisecond), c.work)
	w.every(func() time.Duration { return 500 * time.Millisecond }, c.refresh)
}

// work begins operations one after another, up to its window at once.
func (c *client) work() {
	w := c.w
	pace := w.upTo(2*w.profile.opEvery) + time.Millisecond
	switch {
	case w.phase == phaseFaulty && c.calls < w.profile.window:
		c.begin(c.choose())
	case w.phase == phaseHealed && c.calls < w.profile.window && !w.history.full():
		w.history.healed++
		c.begin(c.choose())
		pace += 50 * time.Millisecond
	}
	w.after(pace, c.work)
}

// begin hands an operation to the router.
func (c *client) begin(op *op) {
	w := c.w
	op.client, op.begin = c.place, w.now
	deadline := w.between(500*time.Millisecond, 6*time.Second)
	if w.phase == phaseHealed {
		deadline = healedWithin // it must be answered
	}
	call := &routing.Call{Request: op.request(), Deadline: w.clock().Add(deadline), Owner: op}
	if op.lane {
		call.Lane = c.lane
	}
	c.calls++
	w.history.began(op)
	w.note("begin", c.place, uint64(op.id), uint64(op.kind), op.String)
	c.router.Submit(w.clock(), call)
	c.pump()
}

// pump carries out what the router wants done.
func (c *client) pump() {
	w := c.w
	for {
		var out routing.Output
		c.router.Take(&out)
		for _, t := range out.Connect {
			c.connect(t)
		}
		for _, addr := range out.Disconnect {
			w.after(0, func() { c.breakLink(addr) })
		}
		for _, s := range out.Sends {
			c.send(s)
		}
		if out.Refresh {
			c.refresh()
		}
		c.planTick(out.Wake)
		if len(out.Deliveries) == 0 {
			return
		}
		for _, d := range out.Deliveries {
			c.calls--
			op := d.Call.Owner.(*op)
			w.history.ended(w.now, op, d)
			w.note("end", c.place, uint64(op.id), uint64(op.outcome), op.String)
			if op.outcome == outcomeUnknown && d.Failure.Write.Client != 0 && w.chance(40) {
				c.resolve(op, d.Failure.Write)
			}
		}
	}
}

// planTick lets the router act when it wants to.
func (c *client) planTick(wake time.Time) {
	w := c.w
	if wake.IsZero() {
		return
	}
	at := max(wake.Sub(w.clock()), 0) + w.now
	if c.wake != 0 && c.wake <= at {
		return
	}
	c.wake = at
	w.after(at-w.now, func() {
		if c.wake == at {
			c.wake = 0
			c.router.Tick(w.clock())
			c.pump()
		}
	})
}

// connect tries to reach a node.
func (c *client) connect(t routing.Target) {
	w := c.w
	var to *node
	for _, n := range w.nodes {
		if n.addr == t.Addr {
			to = n
		}
	}
	l := &connection{to: to}
	if before := c.links[t.Addr]; before != nil {
		l.epoch = before.epoch + 1
	}
	c.links[t.Addr] = l
	d, passes := w.network.passes(party(c.place), party(to.place))
	if !passes {
		d = time.Second // nobody answers
	}
	w.after(d, func() {
		switch {
		case c.links[t.Addr] != l:
		case !passes || !to.up() || to.until > w.now:
			c.router.LinkDown(w.clock(), t.Addr, errRefused, nil)
			c.pump()
		default:
			l.boot, l.up = to.boot, true
			c.router.LinkUp(w.clock(), t.Addr)
			c.pump()
		}
	})
}

var (
	errRefused = errors.New("refused")
	errBroken  = errors.New("broken")
)

// send puts a request on its connection.
func (c *client) send(s routing.Send) {
	w := c.w
	l := c.links[s.To.Addr]
	id := s.Request.GetId()
	if l == nil || !l.up {
		w.after(0, func() {
			c.router.LinkDown(w.clock(), s.To.Addr, errBroken, []uint64{id})
			c.pump()
		})
		return
	}
	l.sent = append(l.sent, id)
	d, passes := w.network.passes(party(c.place), party(l.to.place))
	if !passes {
		return // the router hears nothing, and asks elsewhere
	}
	to, boot := l.to, l.boot
	w.after(d, func() {
		if !l.up || !to.up() || to.boot != boot {
			return
		}
		to.forLife(0, func() {
			w.note("request", to.place, id, s.Request.GetShard(), nil)
			to.serve(s.Request, func(r *flotillav1.Response) { c.answer(l, s.To.Addr, r) })
		})
	})
}

// answer brings a response back.
func (c *client) answer(l *connection, addr string, r *flotillav1.Response) {
	w := c.w
	d, passes := w.network.passes(party(l.to.place), party(c.place))
	if !passes {
		return
	}
	w.after(d, func() {
		if !l.up || c.links[addr] != l {
			return
		}
		l.sent = slices.DeleteFunc(l.sent, func(id uint64) bool { return id == r.GetId() })
		w.note("response", c.place, r.GetId(), uint64(r.GetCode()), func() string { return r.GetCode().String() + " " + r.GetMessage() })
		c.router.Heard(w.clock(), addr)
		c.router.Response(w.clock(), r)
		c.pump()
	})
}

// breakLink ends a connection: what was on its way on it is lost.
func (c *client) breakLink(addr string) {
	l := c.links[addr]
	if l == nil || !l.up {
		return
	}
	l.up = false
	delete(c.links, addr)
	c.router.LinkDown(c.w.clock(), addr, errBroken, nil)
	c.pump()
}

// nodeDied hears of a process that ended, at once or when its silence is
// noticed.
func (c *client) nodeDied(n *node, reset bool) {
	l := c.links[n.addr]
	if l == nil || !l.up {
		return
	}
	d := c.w.upTo(5 * time.Millisecond)
	if !reset {
		d = c.w.between(time.Second, 5*time.Second) // keepalive
	}
	c.w.after(d, func() {
		if c.links[n.addr] == l {
			c.breakLink(n.addr)
		}
	})
}

// refresh asks some node for its map, unless that is under way.
func (c *client) refresh() {
	if !c.asking {
		c.asking = true
		c.w.after(0, c.askMap)
	}
}

func (c *client) askMap() {
	w := c.w
	again := func() { w.after(100*time.Millisecond, c.askMap) }
	n := w.anyUp()
	if n == nil {
		again()
		return
	}
	there, passes := w.network.passes(party(c.place), party(n.place))
	back, passesBack := w.network.passes(party(n.place), party(c.place))
	if !passes || !passesBack {
		again()
		return
	}
	w.after(there+back, func() {
		if !n.up() || n.control.current == nil {
			again()
			return
		}
		c.asking = false
		c.router.MapChanged(w.clock(), n.control.current)
		c.pump()
	})
}

// resolve asks what became of a write whose outcome is unknown, which closes
// its number.
func (c *client) resolve(op *op, id routing.WriteID) {
	w := c.w
	ask := &flotillav1.Request{Shard: uint64(id.Shard), Outcome: &flotillav1.Outcome{ClientId: id.Client, BirthMs: id.BirthMS, Seq: id.Seq}}
	question := newQuestion(op)
	call := &routing.Call{Request: ask, Deadline: w.clock().Add(10 * time.Second), Owner: question}
	c.calls++
	c.router.Submit(w.clock(), call)
}
