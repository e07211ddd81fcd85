package gossip

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/flotilla-kv/flotilla/raft"
)

// Meta is what a node says of itself.
type Meta struct {
	Boot      uint64 // differs from life to life, and grows
	Node      raft.NodeID
	ClusterID string
	Addr      string // gRPC, host:port
	RespPort  uint16
	HTTPPort  uint16
	Zone      string
	Release   string // of the binary
}

// Hint says who leads a group, as somebody saw it.
type Hint struct {
	Group  raft.GroupID
	Leader raft.NodeID
	Term   raft.Term
}

// Sizes of the meta data.
const (
	metaVersion    = 1
	metaBytesMax   = 200 // memberlist panics beyond 512
	clusterMax     = 48
	addrMax        = 72
	zoneMax        = 32
	releaseMax     = 16
	metaFixedBytes = 1 + 8 + 8 + 2 + 2
)

const (
	kindLeader    = 1
	kindHighWater = 2
)

var errMalformed = errors.New("malformed")

// encode draws the meta data as in the package comment. Zone and release are
// cut to size, what others must have whole is refused.
func (m Meta) encode() ([]byte, error) {
	if len(m.ClusterID) > clusterMax {
		return nil, fmt.Errorf("the cluster id has %d bytes, gossip carries %d", len(m.ClusterID), clusterMax)
	}
	if len(m.Addr) > addrMax {
		return nil, fmt.Errorf("the address %s has %d bytes, gossip carries %d", m.Addr, len(m.Addr), addrMax)
	}
	b := make([]byte, 0, metaBytesMax)
	b = append(b, metaVersion)
	b = binary.BigEndian.AppendUint64(b, m.Boot)
	b = binary.BigEndian.AppendUint64(b, uint64(m.Node))
	b = binary.BigEndian.AppendUint16(b, m.RespPort)
	b = binary.BigEndian.AppendUint16(b, m.HTTPPort)
	for _, field := range []string{m.ClusterID, m.Addr, cut(m.Zone, zoneMax), cut(m.Release, releaseMax)} {
		b = append(b, byte(len(field)))
		b = append(b, field...)
	}
	return b, nil
}

func cut(s string, bytes int) string { return s[:min(len(s), bytes)] }

// decodeMeta reads what encode wrote. A longer record of a newer release is
// read as far as this one knows it.
func decodeMeta(b []byte) (Meta, error) {
	if len(b) < metaFixedBytes || b[0] < metaVersion {
		return Meta{}, errMalformed
	}
	m := Meta{
		Boot:     binary.BigEndian.Uint64(b[1:]),
		Node:     raft.NodeID(binary.BigEndian.Uint64(b[9:])),
		RespPort: binary.BigEndian.Uint16(b[17:]),
		HTTPPort: binary.BigEndian.Uint16(b[19:]),
	}
	rest := b[metaFixedBytes:]
	for _, field := range []struct {
		to  *string
		max int
	}{{&m.ClusterID, clusterMax}, {&m.Addr, addrMax}, {&m.Zone, zoneMax}, {&m.Release, releaseMax}} {
		if len(rest) == 0 || int(rest[0]) > field.max || len(rest) < 1+int(rest[0]) {
			return Meta{}, errMalformed
		}
		*field.to = string(rest[1 : 1+rest[0]])
		rest = rest[1+rest[0]:]
	}
	return m, nil
}

func encodeHint(h Hint) []byte {
	b := append(make([]byte, 0, 25), kindLeader)
	b = binary.BigEndian.AppendUint64(b, uint64(h.Group))
	b = binary.BigEndian.AppendUint64(b, uint64(h.Leader))
	return binary.BigEndian.AppendUint64(b, uint64(h.Term))
}

func encodeHighWater(revision uint64) []byte {
	return binary.BigEndian.AppendUint64(append(make([]byte, 0, 9), kindHighWater), revision)
}

// decodeMessage tells apart what other nodes broadcast.
func decodeMessage(b []byte) (hint Hint, revision uint64, err error) {
	switch {
	case len(b) == 25 && b[0] == kindLeader:
		return Hint{
			Group:  raft.GroupID(binary.BigEndian.Uint64(b[1:])),
			Leader: raft.NodeID(binary.BigEndian.Uint64(b[9:])),
			Term:   raft.Term(binary.BigEndian.Uint64(b[17:])),
		}, 0, nil
	case len(b) == 9 && b[0] == kindHighWater:
		return Hint{}, binary.BigEndian.Uint64(b[1:]), nil
	}
	return Hint{}, 0, errMalformed
}
