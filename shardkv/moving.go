package shardkv

import (
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// moving is what a machine shows of the moves that its group is part of, as
// committed. It is immutable.
type moving struct {
	applied raft.Index     // as of which it is
	exports []exportStatus // ascending by shard
	imports []importStatus // likewise
}

// exportStatus is a shard that is being exported or was handed off.
type exportStatus struct {
	shard  shardmap.ShardID
	record shardRecord
	export export // a copy
}

// importStatus is a shard that is being imported or is not verified yet.
type importStatus struct {
	shard  shardmap.ShardID
	record shardRecord
	in     imported // a copy; its slices are never changed
}

// showMoves publishes the group's moves.
func (m *Machine) showMoves(applied raft.Index) {
	now := moving{applied: applied}
	for _, sh := range m.order {
		if sh.export != nil {
			now.exports = append(now.exports, exportStatus{sh.id, sh.shardRecord, *sh.export})
		}
		if sh.in != nil {
			now.imports = append(now.imports, importStatus{sh.id, sh.shardRecord, *sh.in})
		}
	}
	before := m.moves.Swap(&now)
	m.moved()
	if before != nil && len(before.exports)+len(before.imports)+len(now.exports)+len(now.imports) == 0 {
		m.inMoves = false
	}
}

// Moves are those of the group, as committed.
func (m *Machine) movesNow() *moving { return m.moves.Load() }

// exporting finds a shard's export.
func (v *moving) exporting(shard shardmap.ShardID) (exportStatus, bool) {
	for _, x := range v.exports {
		if x.shard == shard {
			return x, true
		}
	}
	return exportStatus{}, false
}

// importing finds a shard's import.
func (v *moving) importing(shard shardmap.ShardID) (importStatus, bool) {
	for _, x := range v.imports {
		if x.shard == shard {
			return x, true
		}
	}
	return importStatus{}, false
}

// step is an entry of the import.
func (x *importStatus) step(kind moveKind) *move {
	return &move{kind: kind, shard: x.shard, id: x.record.move, generation: x.in.generation, attempt: x.in.attempt, peer: x.record.peer}
}

// source is the group that the shard comes from.
func (x *importStatus) source() raft.GroupID { return x.record.peer }
