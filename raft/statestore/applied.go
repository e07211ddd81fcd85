package statestore

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/flotilla-kv/flotilla/raft"
)

// appliedRecord says which entries a replica's state contains.
type appliedRecord struct {
	raft.SnapshotMark
	// installed: the state is that of an installed snapshot, nothing was
	// applied on top.
	installed bool
}

const installedFlag = 1

func encodeApplied(a appliedRecord) []byte {
	membership := a.Membership.Encode()
	value := make([]byte, 0, 17+len(membership))
	value = binary.BigEndian.AppendUint64(value, uint64(a.Index))
	value = binary.BigEndian.AppendUint64(value, uint64(a.Term))
	var flags byte
	if a.installed {
		flags |= installedFlag
	}
	return append(append(value, flags), membership...)
}

func decodeApplied(value []byte) (appliedRecord, error) {
	if len(value) < 17 {
		return appliedRecord{}, errors.New("stored applied record is too short")
	}
	membership, err := raft.DecodeMembership(value[17:])
	if err != nil {
		return appliedRecord{}, fmt.Errorf("stored applied record: %w", err)
	}
	return appliedRecord{
		SnapshotMark: raft.SnapshotMark{
			Index:      raft.Index(binary.BigEndian.Uint64(value)),
			Term:       raft.Term(binary.BigEndian.Uint64(value[8:])),
			Membership: membership,
		},
		installed: value[16]&installedFlag != 0,
	}, nil
}
