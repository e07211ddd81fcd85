package logstore

import (
	"encoding/binary"

	"github.com/flotilla-kv/flotilla/raft"
)

// The first letter of a key; the layout is drawn in doc.go.
const (
	kindIdentity   = 'i'
	kindSeq        = 's'
	kindLost       = 'l'
	kindHighest    = 'h'
	kindReplica    = 'r'
	kindHardState  = 'v'
	kindBeginning  = 'b'
	kindMembership = 'm'
	kindEntry      = 'e'
)

const (
	replicaKeyBytes = 1 + 8 + 8
	indexKeyBytes   = replicaKeyBytes + 8
)

func highestKey(group raft.GroupID) []byte {
	return binary.BigEndian.AppendUint64([]byte{kindHighest}, uint64(group))
}

// replicaKey is the key of one record of a replica, and the prefix of its
// indexed ones.
func replicaKey(kind byte, id raft.ReplicaKey) []byte {
	key := make([]byte, 1, indexKeyBytes)
	key[0] = kind
	key = binary.BigEndian.AppendUint64(key, uint64(id.Group))
	return binary.BigEndian.AppendUint64(key, uint64(id.Replica))
}

func indexKey(kind byte, id raft.ReplicaKey, index raft.Index) []byte {
	return binary.BigEndian.AppendUint64(replicaKey(kind, id), uint64(index))
}

func putIndexKey(key []byte, kind byte, id raft.ReplicaKey, index raft.Index) {
	key[0] = kind
	binary.BigEndian.PutUint64(key[1:], uint64(id.Group))
	binary.BigEndian.PutUint64(key[9:], uint64(id.Replica))
	binary.BigEndian.PutUint64(key[17:], uint64(index))
}

// splitReplicaKey reads group and replica out of a key of at least
// replicaKeyBytes.
func splitReplicaKey(key []byte) (raft.ReplicaKey, bool) {
	if len(key) < replicaKeyBytes {
		return raft.ReplicaKey{}, false
	}
	return raft.ReplicaKey{
		Group:   raft.GroupID(binary.BigEndian.Uint64(key[1:])),
		Replica: raft.ReplicaID(binary.BigEndian.Uint64(key[9:])),
	}, true
}

func splitIndex(key []byte) (raft.Index, bool) {
	if len(key) != indexKeyBytes {
		return 0, false
	}
	return raft.Index(binary.BigEndian.Uint64(key[replicaKeyBytes:])), true
}
