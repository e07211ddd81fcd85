package node

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
)

// pullTimeout bounds one question of the target of a move to its source.
const pullTimeout = 3 * time.Second

var errUnknownNode = errors.New("the map has no such node")

// puller asks the leaders of other groups for their part of moves.
type puller struct {
	node *Node

	mu      sync.Mutex                   // guards what follows
	leaders map[raft.GroupID]raft.NodeID // that have answered last
}

func newPuller(n *Node) *puller {
	return &puller{node: n, leaders: make(map[raft.GroupID]raft.NodeID)}
}

// pull asks in a goroutine of its own; the movers ask one question a move at a
// time.
func (p *puller) pull(q *flotillav1.PullRequest, done func(*flotillav1.PullResponse)) {
	n := p.node
	n.running.Go(func() {
		ctx, cancel := context.WithTimeout(n.ctx, pullTimeout)
		defer cancel()
		done(p.ask(ctx, q))
	})
}

// ask tries whom it takes for the leader, and those that are named for it; nil:
// none has answered as the leader.
func (p *puller) ask(ctx context.Context, q *flotillav1.PullRequest) *flotillav1.PullResponse {
	group := raft.GroupID(q.GetGroup())
	order := p.order(group)
	var last *flotillav1.PullResponse
	for asked := 0; asked < len(order) && ctx.Err() == nil; asked++ {
		to := order[asked]
		r, err := p.askOne(ctx, to, q)
		if err != nil {
			continue
		}
		if r.GetCode() != flotillav1.Code_NOT_LEADER {
			p.remember(group, to)
			return r
		}
		last = r
		if named := raft.NodeID(r.GetLeaderNode()); named != 0 && !slices.Contains(order[:asked+1], named) {
			order = slices.Insert(order, asked+1, named)
		}
	}
	p.remember(group, 0)
	return last
}

func (p *puller) askOne(ctx context.Context, to raft.NodeID, q *flotillav1.PullRequest) (*flotillav1.PullResponse, error) {
	n := p.node
	if id, _ := n.ctrl.Identity(); id.Node == to {
		return n.kv.Pull(ctx, q)
	}
	addr := n.address(to)
	if addr == "" {
		return nil, errUnknownNode
	}
	conn, err := n.conns.get(addr)
	if err != nil {
		return nil, err
	}
	return flotillav1.NewMigrationClient(conn).Pull(ctx, q)
}

// order is the nodes that may lead a group, the likeliest first.
func (p *puller) order(group raft.GroupID) []raft.NodeID {
	n := p.node
	var order []raft.NodeID
	add := func(node raft.NodeID) {
		if node != 0 && !slices.Contains(order, node) {
			order = append(order, node)
		}
	}
	if host := n.host.Load(); host != nil {
		if leader, _, known := host.Leader(group); known {
			add(leader.Node)
		}
	}
	p.mu.Lock()
	add(p.leaders[group])
	p.mu.Unlock()
	if m := n.ctrl.Maps().Current(); m != nil {
		if g, ok := m.Group(group); ok {
			add(g.Preferred)
			for _, member := range g.Members {
				if !member.Learner {
					add(member.Node)
				}
			}
		}
	}
	return order
}

func (p *puller) remember(group raft.GroupID, leader raft.NodeID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if leader == 0 {
		delete(p.leaders, group)
		return
	}
	p.leaders[group] = leader
}
