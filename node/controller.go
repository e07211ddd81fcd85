package node

import (
	"github.com/flotilla-kv/flotilla/raft/logstore"
	"github.com/flotilla-kv/flotilla/shardctrler"
)

// controllerOptions introduce the controller to the rest of the node.
func (n *Node) controllerOptions(identity logstore.Identity) shardctrler.Options {
	return shardctrler.Options{
		Registration: shardctrler.Registration{
			RandomID:   identity.RandomID,
			Name:       n.options.Name,
			Zone:       n.options.Zone,
			Addr:       n.addresses.GRPC,
			GossipAddr: n.addresses.Gossip,
			RespAddr:   n.addresses.RESP,
			HTTPAddr:   n.addresses.HTTP,
			Version:    version(),
		},
		Home:   n,
		Shards: n.kv,
		Peers:  peers{n.gossip},
		Dial:   n.conns.get,
		Alive:  n.transport.Alive,
		Ready: func() (bool, []string) {
			waiting := n.WaitingFor()
			if host := n.host.Load(); host != nil && host.SlowDisk() {
				waiting = append(waiting, "its disk, which is slow: others lead meanwhile")
			}
			return len(waiting) == 0, waiting
		},
		LastMap: identity.LastNodes,
		SaveMap: n.saveMap,
		Logger:  n.logger,
	}
}
