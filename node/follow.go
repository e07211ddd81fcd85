package node

import (
	"context"
	"errors"
	"slices"
	"time"

	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/gossip"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/raft/logstore"
	"github.com/flotilla-kv/flotilla/raft/multiraft"
	"github.com/flotilla-kv/flotilla/shardctrler"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// followRetry is how long the node waits before it tries again what failed:
// starting a replica, or asking whether one was removed.
const followRetry = 500 * time.Millisecond

// followMap does what the map says: it tells the transport where nodes are,
// starts the replicas assigned to this node and removes those that the config
// group says were removed.
func (n *Node) followMap(ctx context.Context) {
	for {
		changed := n.ctrl.Maps().Changed()
		var retry <-chan time.Time
		if again := n.followOnce(ctx, n.ctrl.Maps().Current()); again {
			retry = time.After(followRetry)
		}
		select {
		case <-changed:
		case <-n.changed:
		case <-retry:
		case <-ctx.Done():
			return
		}
	}
}

// followOnce brings the node in line with m; again: something failed that may
// succeed later.
func (n *Node) followOnce(ctx context.Context, m *shardmap.Map) (again bool) {
	host := n.host.Load()
	id, known := n.ctrl.Identity()
	if m == nil || host == nil || !known {
		return false
	}
	n.gossip.SetHighWater(m.Revision)
	if _, listed := m.Node(id.Node); !listed {
		return !n.failIfRemoved(ctx, id.Node)
	}
	n.deleteRemoved(host)
	again = n.followAddresses(m, id)
	assigned := make(map[raft.ReplicaKey]bool)
	for _, a := range m.Assigned(id.Node) {
		assigned[a.Key] = true
		if n.startAssigned(host, m, a) != nil {
			again = true
		}
	}
	for _, key := range present(host) {
		if !assigned[key] && n.removeUnassigned(ctx, host, key) != nil {
			again = true
		}
	}
	return again
}

// present are the replicas that run here, and those that are lost.
func present(host *multiraft.Host) (keys []raft.ReplicaKey) {
	for _, s := range host.Statuses() {
		keys = append(keys, s.Key)
	}
	for _, record := range host.Recorded() {
		if record.Lost {
			keys = append(keys, record.ID)
		}
	}
	return keys
}

// followAddresses tells the transport where the other nodes are. A node that
// gossip hears of is where it says it is: after a restart of all under new
// addresses the map knows only the old ones, and cannot change before the
// config group has a leader again. An address proves nothing: the transport
// checks who answers there.
func (n *Node) followAddresses(m *shardmap.Map, id shardctrler.Identity) (again bool) {
	heard := make(map[raft.NodeID]string)
	for _, member := range n.gossip.Members() {
		if member.Node != 0 && member.ClusterID == id.ClusterID {
			heard[member.Node] = member.Addr
		}
	}
	for _, node := range m.Nodes {
		if node.ID == id.Node {
			continue
		}
		addr := node.Addr
		if at, ok := heard[node.ID]; ok {
			addr = at
		}
		if err := n.transport.SetAddr(node.ID, addr); err != nil {
			n.logger.Warn("a node's address cannot be used", "peer", node.ID, "addr", addr, "error", err)
			again = true
		}
	}
	for _, peer := range n.transport.Peers() {
		if _, listed := m.Node(peer.Node); !listed {
			n.transport.RemovePeer(peer.Node)
		}
	}
	return again
}

// failIfRemoved ends a node that the cluster knows no more: a map without it may
// be old, so the config group is asked.
func (n *Node) failIfRemoved(ctx context.Context, self raft.NodeID) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	w, err := n.ctrl.GetMap(ctx, &flotillav1.GetMapRequest{Linearizable: true})
	if err != nil || slices.ContainsFunc(w.Nodes, func(node *flotillav1.Node) bool { return raft.NodeID(node.Id) == self }) {
		return false
	}
	n.fail(shardctrler.ErrNodeRemoved)
	return true
}

// startAssigned starts a replica that the map assigns to this node. One that
// is not above all that the node ever had of its group stays away.
func (n *Node) startAssigned(host *multiraft.Host, m *shardmap.Map, a shardmap.Assigned) error {
	if s, running := host.Status(a.Key.Group); running && s.Key == a.Key {
		return nil
	}
	preferred := raft.NodeID(0)
	if group, ok := m.Group(a.Key.Group); ok {
		preferred = group.Preferred
	}
	err := host.Start(n.replicaSpec(a.Key, a.First, preferred))
	if err == nil {
		delete(n.startErrors, a.Key)
	} else if errors.Is(err, logstore.ErrOldReplica) {
		n.logger.Debug("the map is behind: a replica was removed here", "group", a.Key.Group, "replica", a.Key.Replica)
	} else if n.startErrors[a.Key] != err.Error() {
		n.startErrors[a.Key] = err.Error() // it is tried again, and told once
		n.logger.Warn("a replica could not be started", "group", a.Key.Group, "replica", a.Key.Replica, "error", err)
	}
	return err
}

// removeUnassigned removes a replica that the map does not name, if the config
// group, asked linearizably, says that it was removed: a map may be old.
func (n *Node) removeUnassigned(ctx context.Context, host *multiraft.Host, key raft.ReplicaKey) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	answer, err := n.ctrl.ReplicaState(ctx, &flotillav1.ReplicaStateRequest{Group: uint64(key.Group), ReplicaId: uint64(key.Replica)})
	if err != nil || !answer.Removed {
		return err
	}
	return n.remove(host, key)
}

// remove deletes a replica that is no member of its group any more.
func (n *Node) remove(host *multiraft.Host, key raft.ReplicaKey) error {
	if err := host.Remove(key); err != nil {
		return err
	}
	n.kv.RemoveGroup(key)
	return nil
}

// replicaRemoved hears from the host that a replica's own log removed it;
// followMap deletes it.
func (n *Node) replicaRemoved(key raft.ReplicaKey) {
	n.removedMu.Lock()
	n.removed = append(n.removed, key)
	n.removedMu.Unlock()
	n.note()
}

// deleteRemoved deletes the replicas that their own logs removed.
func (n *Node) deleteRemoved(host *multiraft.Host) {
	n.removedMu.Lock()
	removed := n.removed
	n.removed = nil
	n.removedMu.Unlock()
	for _, key := range removed {
		if err := n.remove(host, key); err != nil {
			n.logger.Warn("a removed replica could not be deleted", "group", key.Group, "replica", key.Replica, "error", err)
		}
	}
}

// leaderChanged hears from the host who leads a group now.
func (n *Node) leaderChanged(c multiraft.LeaderChange) {
	n.ctrl.LeaderChanged(c.Group, c.Leader.Node)
	if c.Role == raft.Leader {
		n.gossip.BroadcastHint(gossip.Hint{Group: c.Group, Leader: c.Leader.Node, Term: c.Term})
	}
	n.note()
}

// followHealth keeps the gRPC health service in line with readiness.
func (n *Node) followHealth(ctx context.Context) {
	if err := n.WaitReady(ctx, func(string) {}); err == nil {
		n.health.SetServingStatus("", healthv1.HealthCheckResponse_SERVING)
	}
}
