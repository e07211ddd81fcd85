package shardctrler

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// initWarning goes with the answer to Init.
const initWarning = "the config group has one replica until three nodes are registered: until then the loss of this node's data is the loss of the cluster"

// Init makes a cluster of which this node is the first. It is refused by a
// node that has an identity or has heard of a cluster; an Init that was cut
// off before it was durable can be repeated at the same node.
func (c *Controller) Init(ctx context.Context, r *flotillav1.InitRequest) (*flotillav1.InitResponse, error) {
	command := Init{ClusterID: newClusterID(), Shards: uint64(r.Shards), Replicas: uint64(r.Replicas), Groups: uint64(r.Groups), ReplaceAfter: r.ReplaceAfterMs, First: c.options.Registration}
	if err := command.check(); err != nil {
		return nil, toStatus(err)
	}
	select {
	case c.founding <- struct{}{}:
		defer func() { <-c.founding }()
	case <-ctx.Done():
		return nil, toStatus(ctx.Err())
	}
	id, err := c.found(ctx, command.ClusterID)
	if err != nil {
		return nil, toStatus(err)
	}
	command.ClusterID = id.ClusterID
	_, err = forward(ctx, c, func(ctx context.Context) (any, error) { return c.propose(ctx, command) },
		func(context.Context, flotillav1.ClusterClient) (any, error) { return nil, errNoLeader })
	if err != nil {
		return nil, err
	}
	c.logger.Info("cluster made", "cluster", id.ClusterID, "shards", r.Shards, "replicas", r.Replicas, "groups", r.Groups)
	return &flotillav1.InitResponse{ClusterId: id.ClusterID, Warning: initWarning}, nil
}

// found makes this node node 1 of a new cluster, or finds that it has been
// made so by an Init that went no further.
func (c *Controller) found(ctx context.Context, cluster string) (Identity, error) {
	id, _, machine := c.parts()
	if id.Node != 0 {
		if id.Node == 1 && machine != nil && !machine.State().Initialised() && c.maps.Current() == nil {
			return id, nil
		}
		return Identity{}, ErrInitialised
	}
	if peers := c.peerAddrs(); len(peers) > 0 {
		return Identity{}, fmt.Errorf("%w (from %s)", ErrHeardOfCluster, peers[0])
	}
	id = Identity{ClusterID: cluster, Node: 1}
	host, err := c.options.Home.Found(context.WithoutCancel(ctx), id)
	if err != nil {
		return Identity{}, fmt.Errorf("making this node the first: %w", err)
	}
	c.Attach(id, host)
	return id, nil
}

// newClusterID is a random UUID (version 4).
func newClusterID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// Register gives a node its id; see the command of the same name.
func (c *Controller) Register(ctx context.Context, r *flotillav1.RegisterRequest) (*flotillav1.RegisterResponse, error) {
	command := registrationFromWire(r)
	if err := command.check(); err != nil {
		return nil, toStatus(err)
	}
	return forward(ctx, c, func(ctx context.Context) (*flotillav1.RegisterResponse, error) {
		return c.registerHere(ctx, command)
	}, func(ctx context.Context, client flotillav1.ClusterClient) (*flotillav1.RegisterResponse, error) {
		return client.Register(ctx, r)
	})
}

// registerHere takes a registration at the leader. One that changes nothing
// is answered without a log entry.
func (c *Controller) registerHere(ctx context.Context, command Register) (*flotillav1.RegisterResponse, error) {
	at, leads := c.leads()
	if !leads {
		return nil, errElsewhere
	}
	s := at.machine.State()
	if n, known, err := s.checkRegister(command); err == nil && known && n.Registration == command.Registration {
		return registerResponse(s, n.ID), nil
	}
	answer, err := c.propose(ctx, command)
	if err != nil {
		return nil, err
	}
	registered, ok := answer.(Registered)
	if !ok {
		return nil, fmt.Errorf("register was answered %T", answer)
	}
	return registerResponse(at.machine.State(), registered.Node), nil
}

func registerResponse(s *State, node raft.NodeID) *flotillav1.RegisterResponse {
	return &flotillav1.RegisterResponse{ClusterId: s.ClusterID, NodeId: uint64(node), Map: mapToWire(s.Map())}
}

func identityOf(r *flotillav1.RegisterResponse) Identity {
	return Identity{ClusterID: r.GetClusterId(), Node: raft.NodeID(r.GetNodeId())}
}

// GetMap returns this node's map, or the config group's as of now.
func (c *Controller) GetMap(ctx context.Context, r *flotillav1.GetMapRequest) (*flotillav1.ShardMap, error) {
	if !r.Linearizable {
		m, err := c.currentMap()
		if err != nil {
			return nil, toStatus(err)
		}
		return mapToWire(m), nil
	}
	return forward(ctx, c, func(ctx context.Context) (*flotillav1.ShardMap, error) {
		s, err := c.current(ctx)
		if err != nil {
			return nil, err
		}
		return mapToWire(s.Map()), nil
	}, func(ctx context.Context, client flotillav1.ClusterClient) (*flotillav1.ShardMap, error) {
		return client.GetMap(ctx, r)
	})
}

// WatchMap sends this node's map, if it is newer than asked for, and every
// later one. Maps that come faster than they can be sent are skipped: each is
// whole. A watch of another node's map source (origin) ends when this node is
// no source itself: two nodes that watch each other would both wait for ever.
func (c *Controller) WatchMap(r *flotillav1.WatchMapRequest, stream grpc.ServerStreamingServer[flotillav1.ShardMap]) error {
	sent, after := (*shardmap.Map)(nil), r.AfterRevision
	for {
		changed, news := c.maps.Changed(), (<-chan struct{})(nil)
		if m := c.maps.Current(); m != nil && m != sent && (m.Revision > after || sent != nil) {
			if err := stream.Send(mapToWire(m)); err != nil {
				return err
			}
			sent = m
		}
		if r.Origin {
			news = c.news()
			if _, fresh := c.local(); !fresh {
				return status.Error(codes.Unavailable, "this node has no up-to-date replica of the config group")
			}
		}
		if err := c.watchPause(stream.Context(), r.Origin, changed, news); err != nil {
			return err
		}
	}
}

// watchPause waits for a reason to look again.
func (c *Controller) watchPause(ctx context.Context, origin bool, changed, news <-chan struct{}) error {
	var look <-chan time.Time
	if origin {
		timer := time.NewTimer(freshCheck)
		defer timer.Stop()
		look = timer.C
	}
	select {
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	case <-c.ctx.Done():
		return status.Error(codes.Unavailable, ErrStopped.Error())
	case <-changed:
	case <-news:
	case <-look:
	}
	return nil
}

// GetConfig returns a numbered config, linearizably if it is the latest.
func (c *Controller) GetConfig(ctx context.Context, r *flotillav1.GetConfigRequest) (*flotillav1.Config, error) {
	return forward(ctx, c, func(ctx context.Context) (*flotillav1.Config, error) {
		s, err := c.current(ctx)
		if err != nil {
			return nil, err
		}
		config, err := s.Query(shardmap.ConfigNum(r.Num))
		if err != nil {
			return nil, err
		}
		return configToWire(config), nil
	}, func(ctx context.Context, client flotillav1.ClusterClient) (*flotillav1.Config, error) {
		return client.GetConfig(ctx, r)
	})
}

// Query finds a config by its number; 0 is the latest.
func (s *State) Query(num shardmap.ConfigNum) (Config, error) {
	latest := s.config()
	switch {
	case latest.Num == 0 || num > latest.Num:
		return Config{}, fmt.Errorf("%w: %d; the latest is %d", ErrNoConfig, num, latest.Num)
	case num == 0:
		return latest, nil
	case num < s.Configs[0].Num:
		return Config{}, &ForgottenConfigError{Num: num, Oldest: s.Configs[0].Num}
	}
	return s.Configs[num-s.Configs[0].Num], nil
}

// eventsLimit is how many events one answer carries.
const eventsLimit = 1_000

// ListEvents returns the newest events with an id greater than asked for.
func (c *Controller) ListEvents(ctx context.Context, r *flotillav1.ListEventsRequest) (*flotillav1.ListEventsResponse, error) {
	return forward(ctx, c, func(ctx context.Context) (*flotillav1.ListEventsResponse, error) {
		s, err := c.current(ctx)
		if err != nil {
			return nil, err
		}
		return &flotillav1.ListEventsResponse{Events: eventsAfter(s.Events, EventID(r.After), int(r.Limit))}, nil
	}, func(ctx context.Context, client flotillav1.ClusterClient) (*flotillav1.ListEventsResponse, error) {
		return client.ListEvents(ctx, r)
	})
}

// eventsAfter is the newest limit of those events whose id is greater.
func eventsAfter(events []Event, after EventID, limit int) []*flotillav1.Event {
	if limit <= 0 || limit > eventsLimit {
		limit = eventsLimit
	}
	var out []*flotillav1.Event
	for _, e := range events[max(0, len(events)-limit):] {
		if e.ID > after {
			out = append(out, eventToWire(e))
		}
	}
	return out
}

// ReplicaState answers, linearizably, whether a replica was removed.
func (c *Controller) ReplicaState(ctx context.Context, r *flotillav1.ReplicaStateRequest) (*flotillav1.ReplicaStateResponse, error) {
	return forward(ctx, c, func(ctx context.Context) (*flotillav1.ReplicaStateResponse, error) {
		s, err := c.current(ctx)
		if err != nil {
			return nil, err
		}
		removed, known := s.Removed(raft.ReplicaKey{Group: raft.GroupID(r.Group), Replica: raft.ReplicaID(r.ReplicaId)})
		return &flotillav1.ReplicaStateResponse{Removed: removed, Known: known}, nil
	}, func(ctx context.Context, client flotillav1.ClusterClient) (*flotillav1.ReplicaStateResponse, error) {
		return client.ReplicaState(ctx, r)
	})
}
