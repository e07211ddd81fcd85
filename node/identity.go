package node

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/raft/logstore"
	"github.com/flotilla-kv/flotilla/raft/multiraft"
	"github.com/flotilla-kv/flotilla/raft/transport"
	"github.com/flotilla-kv/flotilla/shardctrler"
)

// ownIdentity reads who this data dir is. A new one gets its random id, which
// is durable before the node talks to anybody: a repeated registration then
// finds the same node.
func (n *Node) ownIdentity() (logstore.Identity, error) {
	identity, known := n.log.Identity()
	if known {
		if identity.Name != n.options.Name {
			return identity, fmt.Errorf("data dir %s belongs to node %s, not %s", n.options.DataDir, identity.Name, n.options.Name)
		}
		return identity, nil
	}
	identity = logstore.Identity{RandomID: rand.Text(), Name: n.options.Name}
	return identity, n.log.SetIdentity(identity)
}

// Found makes the node the first of a new cluster; see shardctrler.Home. Both
// it and Adopt may come again after a crash at any line.
func (n *Node) Found(_ context.Context, id shardctrler.Identity) (shardctrler.Host, error) {
	first := raft.Membership{Epoch: 1, Voters: []raft.Member{{Replica: 1, Node: id.Node}}}
	if err := n.log.Create(raft.ReplicaKey{Group: raft.ConfigGroup, Replica: 1}, first); err != nil {
		return nil, err
	}
	return n.adopt(id)
}

// Adopt records the identity that the controller gave the node and opens its
// host.
func (n *Node) Adopt(_ context.Context, id shardctrler.Identity) (shardctrler.Host, error) {
	return n.adopt(id)
}

func (n *Node) adopt(id shardctrler.Identity) (shardctrler.Host, error) {
	identity, err := n.changeIdentity(func(i *logstore.Identity) { i.ClusterID, i.Node = id.ClusterID, id.Node })
	if err != nil {
		return nil, err
	}
	if err := n.gossip.UpdateMeta(n.meta(identity)); err != nil {
		return nil, err
	}
	return n.openHost(id)
}

// changeIdentity changes the durable identity, one change at a time: a map
// that is remembered just now must not write the identity of a moment ago over
// the one that registration gave.
func (n *Node) changeIdentity(change func(*logstore.Identity)) (logstore.Identity, error) {
	n.identityMu.Lock()
	defer n.identityMu.Unlock()
	identity, _ := n.log.Identity()
	change(&identity)
	return identity, n.log.SetIdentity(identity)
}

// saveMap remembers the controller's map, so that a restart needs neither
// gossip nor --join.
func (n *Node) saveMap(encoded []byte) error {
	_, err := n.changeIdentity(func(i *logstore.Identity) { i.LastNodes = encoded })
	return err
}

// openHost opens the host of the node's replicas and starts those that ran
// here before.
func (n *Node) openHost(id shardctrler.Identity) (shardctrler.Host, error) {
	n.hostMu.Lock()
	defer n.hostMu.Unlock()
	if host := n.host.Load(); host != nil {
		return shardctrler.OverMultiraft(host), nil
	}
	host, err := multiraft.Open(multiraft.Options{
		Self:      id.Node,
		Log:       n.log,
		States:    n.states,
		Transport: n.transport,
		Logger:    n.logger,
		Clock:     n.around.clock,
		OnLeader:  n.leaderChanged,
		OnRemoved: n.replicaRemoved,
		OnFatal:   n.fail,
		Observe:   n.metrics.observers(),
	})
	if err != nil {
		return nil, err
	}
	n.host.Store(host)
	n.kv.Attach(host)
	for _, record := range host.Recorded() {
		if record.Lost {
			continue // the log has said so; see groupWaitsFor
		}
		if err := host.Start(n.replicaSpec(record.ID, record.First, 0)); err != nil {
			return nil, err
		}
	}
	boot := transport.Identity{ClusterID: id.ClusterID, Self: id.Node, Boot: uint64(time.Now().UnixNano())}
	if err := n.transport.Start(boot, hostAndConns{host, n}); err != nil {
		return nil, err
	}
	n.note()
	return shardctrler.OverMultiraft(host), nil
}

// hostAndConns is the host as the transport knows it. When a peer is silent the
// controller's connection to it is as dead as the transport's, but has no
// heartbeats that would tell soon.
type hostAndConns struct {
	*multiraft.Host
	node *Node
}

// PeerDown implements transport.Handler.
func (h hostAndConns) PeerDown(id raft.NodeID) {
	h.Host.PeerDown(id)
	if m := h.node.ctrl.Maps().Current(); m != nil {
		if peer, ok := m.Node(id); ok {
			h.node.conns.forget(peer.Addr)
		}
	}
}

// replicaSpec is what the host needs to run a replica: the config group's run
// the controller's state machine, all others keys.
func (n *Node) replicaSpec(key raft.ReplicaKey, first raft.Membership, preferred raft.NodeID) multiraft.ReplicaSpec {
	spec := multiraft.ReplicaSpec{Group: key.Group, Replica: key.Replica, First: first, Preferred: preferred, LeaseReads: n.around.leaseReads}
	if key.Group == raft.ConfigGroup {
		spec.NewStateMachine = n.ctrl.NewStateMachine
	} else {
		spec.NewStateMachine = n.kv.NewStateMachine(key.Group)
	}
	return spec
}
