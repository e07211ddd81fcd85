package node

import (
	"time"

	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardkv"
)

// kvOptions introduce the replica groups' server to the rest of the node. The
// controller is opened after it, so it is asked for each time.
func (n *Node) kvOptions() shardkv.Options {
	return shardkv.Options{
		ClusterID: func() string {
			id, _ := n.ctrl.Identity()
			return id.ClusterID
		},
		Self: func() raft.NodeID {
			id, _ := n.ctrl.Identity()
			return id.Node
		},
		Shards: func() int {
			if m := n.ctrl.Maps().Current(); m != nil {
				return len(m.Shards)
			}
			return 0
		},
		Address:    n.address,
		HasQuorum:  n.hasQuorum,
		Pull:       newPuller(n).pull,
		MovePaused: func(d time.Duration) { n.metrics.pause.Observe(d.Seconds()) },
		Logger:     n.logger,
	}
}

// address is a node's gRPC address, "" if it is not known.
func (n *Node) address(id raft.NodeID) string {
	if m := n.ctrl.Maps().Current(); m != nil {
		if node, ok := m.Node(id); ok {
			return node.Addr
		}
	}
	return ""
}

// hasQuorum tells whether a majority of a group's voters is on nodes that are
// heard of, this one included. It may be called from the host's callbacks, so
// it asks the map and the transport, not the host.
func (n *Node) hasQuorum(id raft.GroupID) bool {
	m := n.ctrl.Maps().Current()
	if m == nil {
		return true // not known to be lost
	}
	group, ok := m.Group(id)
	if !ok {
		return true
	}
	self, _ := n.ctrl.Identity()
	voters, alive := 0, 0
	for _, member := range group.Members {
		if member.Learner {
			continue
		}
		voters++
		if member.Node == self.Node || n.transport.Alive(member.Node) {
			alive++
		}
	}
	return voters == 0 || alive > voters/2
}
