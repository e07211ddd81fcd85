package shardctrler

import (
	"context"
	"errors"
	"strconv"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
)

// Bounds of forwarding. The node that was asked first tries until the deadline;
// those it asks pass the call on at most once each.
const (
	hopsMax           = 3
	hopsKey           = "flotilla-hops"
	callTimeout       = 5 * time.Second // of a call that has no deadline
	forwardTimeout    = 2 * time.Second // of one attempt elsewhere
	forwardBackoffMin = 20 * time.Millisecond
	forwardBackoffMax = 200 * time.Millisecond
)

var (
	errNoMap    = errors.New("this node knows no shard map yet")
	errNoLeader = errors.New("the config group's leader is not known here")
	errHops     = errors.New("the config group's leader was not found within 3 hops")
)

// hopsOf is how often a call has been forwarded.
func hopsOf(ctx context.Context) int {
	md, _ := metadata.FromIncomingContext(ctx)
	values := md.Get(hopsKey)
	if len(values) == 0 {
		return 0
	}
	hops, err := strconv.Atoi(values[0])
	if err != nil || hops < 0 {
		return hopsMax
	}
	return hops
}

// oneMoreHop is the context for forwarding a call.
func oneMoreHop(ctx context.Context) context.Context {
	return metadata.NewOutgoingContext(ctx, metadata.Pairs(hopsKey, strconv.Itoa(hopsOf(ctx)+1)))
}

// errElsewhere is what the local part of a forwarded call answers if another
// node has to do it.
var errElsewhere = errors.New("another node has to do this")

// forward carries out a call here if this node can (local does not answer
// errElsewhere), and otherwise at a node that can.
func forward[T any](ctx context.Context, c *Controller, local func(context.Context) (T, error),
	remote func(context.Context, flotillav1.ClusterClient) (T, error)) (T, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, callTimeout)
		defer cancel()
	}
	var zero T
	backoff := forwardBackoffMin
	for {
		news := c.news()
		v, err := forwardOnce(ctx, c, local, remote)
		if err == nil || final(err) || hopsOf(ctx) > 0 {
			return v, toStatus(err)
		}
		c.sleep(ctx, backoff, news)
		if ctx.Err() != nil || c.ctx.Err() != nil {
			return zero, status.Error(codes.Unavailable, "nobody could answer in time: "+status.Convert(toStatus(err)).Message())
		}
		backoff = min(backoff*3/2, forwardBackoffMax)
	}
}

// final tells an answer from what another attempt may mend.
func final(err error) bool {
	if errors.Is(err, ErrNotInitialised) {
		return true
	}
	switch status.Code(toStatus(err)) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.Unknown:
		return false
	}
	return true
}

// forwardOnce tries here and then each node that may know better.
func forwardOnce[T any](ctx context.Context, c *Controller, local func(context.Context) (T, error),
	remote func(context.Context, flotillav1.ClusterClient) (T, error)) (T, error) {
	v, err := local(ctx)
	if err == nil || !errors.Is(err, errElsewhere) {
		return v, err
	}
	if hopsOf(ctx) >= hopsMax {
		return v, errHops
	}
	last := error(errNoLeader)
	if c.identity().Node == 0 {
		last = ErrNotInitialised
	}
	for _, node := range c.configLeaders() {
		for _, client := range c.clients(node) {
			attempt, cancel := context.WithTimeout(oneMoreHop(ctx), forwardTimeout)
			v, err = remote(attempt, client)
			cancel()
			if err == nil || final(err) || ctx.Err() != nil {
				return v, err
			}
			last = err
		}
	}
	return v, last
}

// configLeaders are the nodes that may lead the config group, the likeliest
// first, without this one.
func (c *Controller) configLeaders() []raft.NodeID {
	id, host, _ := c.parts()
	var nodes []raft.NodeID
	add := func(n raft.NodeID) {
		for _, have := range nodes {
			if have == n {
				return
			}
		}
		if n != 0 && n != id.Node {
			nodes = append(nodes, n)
		}
	}
	if host != nil {
		if leader, _, known := host.Leader(raft.ConfigGroup); known {
			add(leader.Node)
		}
	}
	c.mu.Lock()
	hint := c.hints[raft.ConfigGroup]
	c.mu.Unlock()
	add(hint)
	for _, n := range configNodes(c.maps.Current()) {
		add(n)
	}
	return nodes
}

// propose has the config group decide a command. It is for the leader; any
// other answers errElsewhere.
func (c *Controller) propose(ctx context.Context, command Command) (any, error) {
	at, leads := c.leads()
	if !leads {
		return nil, errElsewhere
	}
	select {
	case c.proposals <- struct{}{}:
		defer func() { <-c.proposals }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	answer, err := at.host.Propose(ctx, EncodeCommand(command))
	var notLeader *NotLeaderError
	if errors.As(err, &notLeader) || errors.Is(err, ErrNoReplica) {
		return nil, errElsewhere
	}
	if err != nil {
		return nil, err
	}
	if refusal, ok := answer.(error); ok {
		return nil, refusal
	}
	return answer, nil
}

// current is the config group's state as of now: linearizable. It is for nodes
// with a replica of the config group; any other answers errElsewhere.
func (c *Controller) current(ctx context.Context) (*State, error) {
	_, host, machine := c.parts()
	if host == nil || machine == nil {
		return nil, errElsewhere
	}
	if _, _, known := host.Leader(raft.ConfigGroup); !known {
		return nil, errElsewhere
	}
	ctx, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	if err := host.Barrier(ctx); err != nil {
		if hopsOf(ctx) == 0 {
			return nil, errElsewhere
		}
		return nil, err
	}
	s := machine.State()
	if !s.Initialised() {
		return nil, errElsewhere
	}
	return s, nil
}
