package client

import (
	"context"
	"fmt"
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/client/routing"
)

// Limits of what a request may hold.
const (
	KeyBytesMax     = 65_535
	ValueBytesMax   = 4 << 20
	RequestBytesMax = 8 << 20
)

// Submit sends a request and returns; done is called exactly once, with a
// response of code OK or with an error as the methods return it, which moreover
// has a method Code() with the response code nearest to it. Results that are no
// success in themselves, such as an absent key, come in the response.
//
// done is called from any goroutine, perhaps before Submit returns. It must not
// block and must not call Close. The request and all bytes in it belong to the
// client from here on. Its keys decide the shard; Shard is read only if it
// names none. TimeoutMs says how long the caller waits, 0 for Options.Timeout.
// Id, Group and Session are the client's and ignored. When the client has too
// much under way the answer is ErrBusy.
//
// Requests that are submitted one after the other may take effect in any
// order; see Lane.
func (c *Client) Submit(request *flotillav1.Request, done func(*flotillav1.Response, error)) {
	c.submit(request, nil, done)
}

// Lane keeps requests that meet in one shard in their order: each takes effect
// after those submitted to the lane before it, whatever has to be retried.
// Requests that wait go on together as one where that changes no answer.
type Lane struct {
	client *Client
	lane   routing.Lane
}

// NewLane makes a lane: one for each caller that wants its order kept. It
// needs no closing.
func (c *Client) NewLane() *Lane { return &Lane{client: c} }

// Submit is Client.Submit in the lane's order. Calls of Submit on one lane must
// not be concurrent, or there is no order to keep.
func (l *Lane) Submit(request *flotillav1.Request, done func(*flotillav1.Response, error)) {
	l.client.submit(request, &l.lane, done)
}

func (c *Client) submit(request *flotillav1.Request, lane *routing.Lane, done func(*flotillav1.Response, error)) {
	bytes, err := checkRequest(request)
	if err != nil {
		done(nil, refused(flotillav1.Code_INVALID, err))
		return
	}
	if !c.gate.try(bytes) {
		done(nil, refused(flotillav1.Code_BUSY, fmt.Errorf("%w: %d calls under way", ErrBusy, c.options.CallsMax)))
		return
	}
	timeout := c.options.Timeout
	if ms := request.GetTimeoutMs(); ms > 0 {
		timeout = time.Duration(ms) * time.Millisecond
	}
	p := &pending{bytes: bytes, done: done}
	p.call = routing.Call{Request: request, Deadline: c.options.Clock().Add(timeout), Lane: lane, Owner: p}
	c.begin(p)
}

// pending is a call that went in through the gate.
type pending struct {
	call  routing.Call
	bytes int
	done  func(*flotillav1.Response, error)
}

// begin hands a call to the router, or ends it if the client is closed.
func (c *Client) begin(p *pending) {
	out := outputs.Get().(*routing.Output)
	c.mu.Lock()
	closed := c.closed
	if !closed {
		c.router.Submit(c.options.Clock(), &p.call)
		c.router.Take(out)
	}
	c.mu.Unlock()
	if closed {
		outputs.Put(out)
		c.gate.leave(p.bytes)
		p.done(nil, refused(flotillav1.Code_UNAVAILABLE, ErrClosed))
		return
	}
	c.perform(out)
	outputs.Put(out)
}

// deliver ends a call.
func (c *Client) deliver(d routing.Delivery) {
	p := d.Call.Owner.(*pending)
	c.gate.leave(p.bytes)
	if d.Failure == nil {
		p.done(d.Response, nil)
		return
	}
	err := errorOf(d.Failure)
	if d.Failure.Last == routing.CauseNoMap {
		if trouble := c.mapTrouble(); trouble != "" {
			err = fmt.Errorf("%w%s", err, trouble)
		}
	}
	p.done(nil, err)
}

// answer is what a caller who waits gets.
type answer struct {
	response *flotillav1.Response
	err      error
}

// do sends a request and waits for its answer, at most until the context ends.
func (c *Client) do(ctx context.Context, request *flotillav1.Request) (*flotillav1.Response, error) {
	bytes, err := checkRequest(request)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	deadline, given := ctx.Deadline()
	if !given {
		deadline = c.options.Clock().Add(c.options.Timeout) // the router keeps it: no timer for each call
	}
	if err := c.enter(ctx, bytes); err != nil {
		return nil, err
	}
	answers := make(chan answer, 1)
	p := &pending{bytes: bytes, done: func(r *flotillav1.Response, err error) { answers <- answer{r, err} }}
	p.call = routing.Call{Request: request, Deadline: deadline, Owner: p}
	c.begin(p)
	select {
	case a := <-answers:
		return a.response, a.err
	case <-ctx.Done():
	}
	reason := cancelReason(ctx)
	c.step(func(r *routing.Router, now time.Time) { r.Cancel(now, &p.call, reason) })
	a := <-answers
	return a.response, a.err
}

// enter goes in through the gate, at most until the context ends.
func (c *Client) enter(ctx context.Context, bytes int) error {
	if c.gate.try(bytes) {
		return nil
	}
	ctx, cancel := c.bounded(ctx)
	defer cancel()
	return c.gate.wait(ctx, bytes)
}

// checkRequest refuses what no server would take, before it is sent, and
// counts the bytes.
func checkRequest(q *flotillav1.Request) (bytes int, err error) {
	if q.GetOutcome() == nil && len(q.GetOps())+len(q.GetOtherwise())+len(q.GetCompares()) == 0 {
		return 0, fmt.Errorf("%w: it is empty", ErrInvalid)
	}
	for _, cmp := range q.GetCompares() {
		if err := checkSizes(cmp.GetKey(), cmp.GetValue()); err != nil {
			return 0, err
		}
	}
	for _, ops := range [2][]*flotillav1.Op{q.GetOps(), q.GetOtherwise()} {
		for _, op := range ops {
			if err := checkOp(op); err != nil {
				return 0, err
			}
		}
	}
	if bytes = requestBytes(q); bytes > RequestBytesMax {
		return 0, fmt.Errorf("%w: %d bytes, the limit of a request is %d", ErrInvalid, bytes, RequestBytesMax)
	}
	return bytes, nil
}

func checkOp(op *flotillav1.Op) error {
	switch o := op.GetOp().(type) {
	case *flotillav1.Op_Get:
		return checkSizes(o.Get.GetKey(), nil)
	case *flotillav1.Op_Put:
		if err := checkSizes(o.Put.GetKey(), o.Put.GetExpected()); err != nil {
			return err
		}
		return checkSizes(o.Put.GetKey(), o.Put.GetValue())
	case *flotillav1.Op_Delete:
		return checkSizes(o.Delete.GetKey(), nil)
	case *flotillav1.Op_Append:
		return checkSizes(o.Append.GetKey(), o.Append.GetValue())
	case *flotillav1.Op_Incr:
		return checkSizes(o.Incr.GetKey(), nil)
	case *flotillav1.Op_Expire:
		return checkSizes(o.Expire.GetKey(), nil)
	case *flotillav1.Op_Scan, *flotillav1.Op_Clear:
		return nil
	}
	return fmt.Errorf("%w: an operation is missing or unknown", ErrInvalid)
}

func checkSizes(key, value []byte) error {
	switch {
	case len(key) == 0:
		return fmt.Errorf("%w: the key is empty", ErrInvalid)
	case len(key) > KeyBytesMax:
		return fmt.Errorf("%w: the key has %d bytes, the limit is %d", ErrInvalid, len(key), KeyBytesMax)
	case len(value) > ValueBytesMax:
		return fmt.Errorf("%w: the value has %d bytes, the limit is %d", ErrInvalid, len(value), ValueBytesMax)
	}
	return nil
}

// opOverhead is what an op or compare weighs besides its keys and values.
const opOverhead = 32

// requestBytes is the size of a request, nearly.
func requestBytes(q *flotillav1.Request) int {
	sum := opOverhead
	for _, cmp := range q.GetCompares() {
		sum += opOverhead + len(cmp.GetKey()) + len(cmp.GetValue())
	}
	for _, ops := range [2][]*flotillav1.Op{q.GetOps(), q.GetOtherwise()} {
		for _, op := range ops {
			sum += opOverhead + opBytes(op)
		}
	}
	return sum
}

func opBytes(op *flotillav1.Op) int {
	switch o := op.GetOp().(type) {
	case *flotillav1.Op_Get:
		return len(o.Get.GetKey())
	case *flotillav1.Op_Put:
		return len(o.Put.GetKey()) + len(o.Put.GetValue()) + len(o.Put.GetExpected())
	case *flotillav1.Op_Delete:
		return len(o.Delete.GetKey())
	case *flotillav1.Op_Append:
		return len(o.Append.GetKey()) + len(o.Append.GetValue())
	case *flotillav1.Op_Incr:
		return len(o.Incr.GetKey())
	case *flotillav1.Op_Expire:
		return len(o.Expire.GetKey())
	case *flotillav1.Op_Scan:
		return len(o.Scan.GetStart()) + len(o.Scan.GetEnd()) + len(o.Scan.GetPrefix())
	case *flotillav1.Op_Clear:
		return len(o.Clear.GetStart()) + len(o.Clear.GetEnd()) + len(o.Clear.GetPrefix())
	}
	return 0
}
