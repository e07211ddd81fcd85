package multiraft

import "github.com/flotilla-kv/flotilla/raft"

// Recover makes the replica that is here the only voter of its group: see
// raft.Raft.Recover. It returns when that is on its way to the disk; OnLeader
// tells when the replica leads.
func (h *Host) Recover(key raft.ReplicaKey, epoch uint64, floor raft.ReplicaID) error {
	r, ok := h.find(key.Group)
	if !ok || r.key != key {
		return ErrNoGroup
	}
	err := ErrStopped
	r.worker.do(func() {
		switch {
		case r.gone:
		case r.frozen:
			err = raft.ErrMembershipPending
		default:
			r.idle = 0
			if err = r.core.Recover(epoch, floor); err == nil {
				r.worker.h.log.Warn("the group is recovered from this replica alone", "group", key.Group, "replica", key.Replica, "epoch", epoch)
			}
			r.worker.touch(r)
		}
	})
	return err
}
