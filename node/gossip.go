package node

import (
	"net"
	"strconv"
	"time"

	"github.com/flotilla-kv/flotilla/gossip"
	"github.com/flotilla-kv/flotilla/raft/logstore"
	"github.com/flotilla-kv/flotilla/shardctrler"
)

// openGossip opens the gossip port and begins to look for others.
func (n *Node) openGossip(identity logstore.Identity) error {
	meta := n.meta(identity)
	meta.Boot = uint64(time.Now().UnixNano())
	var err error
	n.gossip, err = gossip.Start(gossip.Options{
		RandomID:  identity.RandomID,
		Listen:    n.options.GossipListen,
		Advertise: n.options.Advertise,
		Join:      n.options.Join,
		Key:       n.options.GossipKey,
		Meta:      meta,
		Logger:    n.logger,
		OnChange: func() {
			n.note()
			n.ctrlNews(func(c *shardctrler.Controller) { c.PeersChanged() })
		},
		OnHint: func(h gossip.Hint) {
			n.ctrlNews(func(c *shardctrler.Controller) { c.LeaderChanged(h.Group, h.Leader) })
		},
		OnHighWater: func(revision uint64) { n.ctrlNews(func(c *shardctrler.Controller) { c.Maps().Refresh(revision - 1) }) },
	})
	if err != nil {
		return err
	}
	n.addresses.Gossip = n.gossip.Addr()
	return nil
}

// ctrlNews passes on what gossip heard, once there is somebody to hear it:
// gossip is opened before the controller.
func (n *Node) ctrlNews(tell func(*shardctrler.Controller)) {
	if ctrl := n.ctrlRef.Load(); ctrl != nil {
		tell(ctrl)
	}
}

// meta is what gossip says of this node.
func (n *Node) meta(identity logstore.Identity) gossip.Meta {
	return gossip.Meta{
		Node:      identity.Node,
		ClusterID: identity.ClusterID,
		Addr:      n.addresses.GRPC,
		RespPort:  portOf(n.addresses.RESP),
		HTTPPort:  portOf(n.addresses.HTTP),
		Zone:      n.options.Zone,
		Release:   version(),
	}
}

func portOf(addr string) uint16 {
	_, text, err := net.SplitHostPort(addr)
	if err != nil {
		return 0
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return 0
	}
	return uint16(port)
}

// peers shows the controller whom gossip has heard of.
type peers struct{ gossip *gossip.Gossip }

// Peers lists them; see shardctrler.Peers.
func (p peers) Peers() []shardctrler.Peer {
	var all []shardctrler.Peer
	for _, m := range p.gossip.Members() {
		all = append(all, shardctrler.Peer{Addr: m.Addr, ClusterID: m.ClusterID, Node: m.Node})
	}
	return all
}
