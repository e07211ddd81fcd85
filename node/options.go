package node

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/cockroachdb/pebble/v2"

	"github.com/flotilla-kv/flotilla/internal/tlsfiles"
	"github.com/flotilla-kv/flotilla/raft/statestore"
)

// Options say how a node runs. Name, DataDir and the four addresses to listen
// at are required; port 0 takes a free one.
type Options struct {
	Name    string // unique in the cluster; kept for life
	DataDir string

	Listen       string // gRPC: nodes and clients
	GossipListen string
	RespListen   string // the Redis protocol
	HTTPListen   string // metrics, health, console

	// Advertise is the host that others reach this node at; empty: the host of
	// Listen.
	Advertise string
	// Join names gossip addresses of other nodes. Those that cannot be reached
	// are retried for ever.
	Join []string
	Zone string // failure zone, "" for none

	// TLS names the files that protect gRPC, RESP and HTTP; none: plain text.
	// The certificate has to name the host that others reach this node at.
	TLS tlsfiles.Paths

	GossipKey    []byte // encrypts gossip: 16, 24 or 32 bytes; nil: plain
	RespPassword string // that AUTH must present; "" for none
	Pprof        bool   // serve /debug/pprof

	// Cache is the block cache that the stores share; nil: one of its own of
	// CacheBytesDefault. Nodes of one process share one.
	Cache  *pebble.Cache
	Logger *slog.Logger // nil: discard
}

// CacheBytesDefault is the room for blocks in the cache of a node that is given
// none.
const CacheBytesDefault = 256 << 20

// nameBytesMax keeps a name printable in a table and in gossip.
const nameBytesMax = 64

// NewCache makes a block cache to share among the nodes of a process, with room
// for bytes of blocks beside what the nodes' memtables take of it. The caller
// gives it back with Unref when the nodes have been started.
func NewCache(bytes int64, nodes int) *pebble.Cache {
	return pebble.NewCache(bytes + int64(nodes)*statestore.MemTablesBytes)
}

func (o *Options) check() error {
	switch {
	case o.Name == "":
		return errors.New("the node has no name")
	case len(o.Name) > nameBytesMax:
		return fmt.Errorf("the name %.16q... has %d bytes, %d are allowed", o.Name, len(o.Name), nameBytesMax)
	case o.DataDir == "":
		return errors.New("the node has no data dir")
	}
	for _, c := range o.Name {
		if c <= ' ' || c == 0x7f || c == ',' {
			return fmt.Errorf("the name %q holds a blank, a comma or a control character", o.Name)
		}
	}
	return o.TLS.Check()
}
