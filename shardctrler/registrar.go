package shardctrler

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
)

// Times of registration.
const (
	registerTimeout    = 3 * time.Second
	registerBackoffMin = 20 * time.Millisecond
	registerBackoffMax = time.Second
	registerSilence    = 5 * time.Second // between two lines about attempts that fail
)

// registrar decides whom to ask for registration, and when. It is stepped.
type registrar struct {
	next    int // which address is asked next
	failed  int // in a row
	refusal string
}

// nextAddr is whom to ask now; "" if nobody is known.
func (r *registrar) nextAddr(addrs []string) string {
	if len(addrs) == 0 {
		return ""
	}
	return addrs[r.next%len(addrs)]
}

// failure notes how an attempt failed and says how long to wait before the
// next. A definite refusal is repeated, seldom: an operator may lift it.
func (r *registrar) failure(err error, addrs int) time.Duration {
	r.next++
	r.failed++
	r.refusal = ""
	if definite(err) {
		r.refusal = status.Convert(err).Message()
		return registerBackoffMax
	}
	if addrs > 0 && r.failed%addrs != 0 {
		return 0
	}
	rounds := r.failed
	if addrs > 0 {
		rounds = r.failed / addrs
	}
	return min(registerBackoffMin<<min(rounds, 10), registerBackoffMax)
}

// definite tells a refusal from what may succeed elsewhere or later.
func definite(err error) bool {
	switch status.Code(err) {
	case codes.InvalidArgument, codes.AlreadyExists, codes.FailedPrecondition, codes.ResourceExhausted, codes.NotFound:
		return true
	}
	return false
}

// register is the loop around the registrar: it ends when the node is
// registered with what it says of itself now.
func (c *Controller) register(ctx context.Context) {
	r := new(registrar)
	told := time.Now() // a bring-up may take a moment
	for ctx.Err() == nil {
		news := c.News()
		addrs := c.registerAddrs()
		addr := r.nextAddr(addrs)
		err := c.registerOnce(ctx, addr)
		if err == nil {
			return
		}
		wait := freshCheck
		if !errors.Is(err, errNobody) {
			wait = r.failure(err, len(addrs))
		}
		if r.refusal != "" && c.setRefusal(r.refusal) {
			c.logger.Warn("registration refused", "reason", r.refusal)
		} else if r.refusal == "" && !errors.Is(err, errNobody) && time.Since(told) > registerSilence {
			told = time.Now()
			c.logger.Warn("still not registered", "addr", addr, "error", err)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-news:
		case <-timer.C:
		}
		timer.Stop()
	}
}

var errNobody = errors.New("no node of a cluster is known")

// registerAddrs are the nodes that could take a registration.
func (c *Controller) registerAddrs() []string {
	if c.identity().Node != 0 {
		return nil
	}
	return c.peerAddrs()
}

// registerOnce registers at addr; a node that has its identity takes its own
// way to the config group's leader. Whoever holds the founding token may
// change the identity: registration and Init exclude each other.
func (c *Controller) registerOnce(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, registerTimeout)
	defer cancel()
	select {
	case c.founding <- struct{}{}:
		defer func() { <-c.founding }()
	case <-ctx.Done():
		return ctx.Err()
	}
	id := c.identity()
	request := registrationToWire(id, c.options.Registration)
	if id.Node != 0 {
		answer, err := c.Register(ctx, request)
		if err != nil {
			return err
		}
		return c.registered(ctx, id, answer)
	}
	if addr == "" {
		return errNobody
	}
	conn, err := c.options.Dial(addr)
	if err != nil {
		return err
	}
	answer, err := flotillav1.NewClusterClient(conn).Register(ctx, request)
	if err != nil {
		return err
	}
	return c.registered(ctx, id, answer)
}

// registered adopts the identity that a registration gave.
func (c *Controller) registered(ctx context.Context, before Identity, answer *flotillav1.RegisterResponse) error {
	now := identityOf(answer)
	if now.ClusterID == "" || now.Node == 0 {
		return fmt.Errorf("a registration without an identity: cluster %q node %d", now.ClusterID, now.Node)
	}
	if before.Node != 0 && before != now {
		return status.Errorf(codes.FailedPrecondition, "registered as node %d of %s, but this data dir is node %d of %s",
			now.Node, now.ClusterID, before.Node, before.ClusterID)
	}
	if before.Node == 0 {
		// The identity must not be lost half-way because the caller hurries.
		host, err := c.options.Home.Adopt(context.WithoutCancel(ctx), now)
		if err != nil {
			return fmt.Errorf("adopting the identity of node %d: %w", now.Node, err)
		}
		c.Attach(now, host)
		c.logger.Info("registered", "node", now.Node, "cluster", now.ClusterID)
	}
	if m, err := mapFromWire(answer.Map); err == nil {
		c.maps.offer(m)
	}
	c.setRefusal("")
	return nil
}
