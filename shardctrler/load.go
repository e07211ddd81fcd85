package shardctrler

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// ShardLoad is what the requests of a shard cost a second, smoothed.
type ShardLoad struct {
	Shard  shardmap.ShardID
	Reads  uint64
	Writes uint64
	Bytes  uint64 // of keys and values, in and out
}

// bytesPerRequest: so many bytes cost about what a request costs.
const bytesPerRequest = 4 << 10

// weight is all of it, in requests a second.
func (l ShardLoad) weight() uint64 { return l.Reads + l.Writes + l.Bytes/bytesPerRequest }

// weight of all shards of a group, as far as they are told.
func (g ObservedGroup) weight() (sum uint64) {
	for _, l := range g.Loads {
		sum += l.weight()
	}
	return sum
}

// observedGroups are the groups as the leaders of the highest terms report them,
// ascending.
func observedGroups(reports []*flotillav1.NodeReport) []ObservedGroup {
	groups := make(map[raft.GroupID]ObservedGroup)
	for _, rep := range reports {
		loads := make(map[uint64]*flotillav1.GroupLoad, len(rep.GetLoads()))
		for _, l := range rep.GetLoads() {
			loads[l.GetGroup()] = l
		}
		for _, g := range rep.GetGroups() {
			seen := observedGroup(g)
			if before, ok := groups[seen.ID]; !ok || before.Term < seen.Term {
				seen.Measured, seen.Loads = observedLoad(loads[g.Id])
				groups[seen.ID] = seen
			}
		}
	}
	return slices.SortedFunc(maps.Values(groups), func(a, b ObservedGroup) int { return compare(a.ID, b.ID) })
}

// observedLoad is a group's load as it was reported; nil: it was not.
func observedLoad(w *flotillav1.GroupLoad) (measured time.Duration, loads []ShardLoad) {
	for _, s := range w.GetShards() {
		loads = append(loads, ShardLoad{Shard: shardmap.ShardID(s.GetShard()), Reads: s.GetReadsPerS(), Writes: s.GetWritesPerS(), Bytes: s.GetBytesPerS()})
	}
	slices.SortFunc(loads, func(a, b ShardLoad) int { return compare(a.Shard, b.Shard) })
	return time.Duration(max(0, w.GetMeasuredMs())) * time.Millisecond, loads
}

// ownLoads leaves of a group's loads those of the shards that are its own: a
// shard that went is asked for at its former group for a while.
func ownLoads(shards []shardmap.Assignment, group raft.GroupID, loads []ShardLoad) []ShardLoad {
	return slices.DeleteFunc(slices.Clone(loads), func(l ShardLoad) bool {
		return uint64(l.Shard) >= uint64(len(shards)) || shards[l.Shard].Group != group
	})
}

// Reassign gives shards to other groups, because of what their requests cost. It
// makes one config, and takes effect by being committed.
type Reassign struct {
	Config   shardmap.ConfigNum // it was planned for
	Shards   []Reassigned       // ascending
	Expected Expectation
}

// Expectation is what moves for load are to bring.
type Expectation struct {
	Group  raft.GroupID // 0: nothing
	Weight uint64       // that the group is left with, in requests a second
}

// NoteEffect records what moves for load have brought. It takes effect by being
// committed.
type NoteEffect struct {
	Config shardmap.ConfigNum
	Has    uint64 // the group, in requests a second
	Others uint64 // the one of the others that has most
}

// Reassigned is a shard and the group that it should be at.
type Reassigned struct {
	Shard shardmap.ShardID
	To    raft.GroupID
}

func (Reassign) kind() string   { return "balance-load" }
func (NoteEffect) kind() string { return "load-balanced" }

func (Reassign) onGroup() (raft.GroupID, bool)   { return 0, false }
func (NoteEffect) onGroup() (raft.GroupID, bool) { return 0, false }

// reassign makes the config.
func (d *draft) reassign(o Operation, r Reassign) error {
	config := d.config()
	if r.Config != config.Num {
		return stale("it was planned for config %d, and it is %d", r.Config, config.Num)
	}
	if len(r.Shards) == 0 || len(r.Shards) > reassignsMax {
		return invalid("%d shards to be reassigned: it must be 1 to %d", len(r.Shards), reassignsMax)
	}
	owners, serving := slices.Clone(config.Owners), d.servingGroups()
	for _, s := range r.Shards {
		if uint64(s.Shard) >= uint64(len(owners)) || !slices.Contains(serving, s.To) {
			return stale("shard %d cannot go to group %d", s.Shard, s.To)
		}
		if _, pinned := slices.BinarySearch(config.Pinned, s.Shard); pinned {
			return stale("shard %d is pinned", s.Shard)
		}
		owners[s.Shard] = s.To
	}
	d.addConfig(o.Reason, owners, config.Pinned)
	d.Configs[len(d.Configs)-1].Expected = r.Expected
	d.addOperationEvent(d.take(o), r.kind(), "cluster", fmt.Sprintf("config %d: %s", d.config().Num, o.Reason))
	return nil
}

func (d *draft) noteEffect(o Operation, n NoteEffect) error {
	config := d.config()
	if config.Num != n.Config || config.Expected.Group == 0 || config.Noted {
		return stale("config %d waits for no effect", n.Config)
	}
	d.Configs = own(d, recordConfig, d.Configs)
	d.Configs[len(d.Configs)-1].Noted = true
	d.touched[recordKey{recordConfig, uint64(config.Num)}] = true
	d.addOperationEvent(d.take(o), n.kind(), "cluster", o.Reason)
	return nil
}

// loadText is a load as explanations show it.
func loadText(l ShardLoad) string {
	return fmt.Sprintf("%d reads and %d writes a second with %d bytes", l.Reads, l.Writes, l.Bytes)
}

func (e *encoder) reassign(r Reassign) {
	e.uint(uint64(r.Config))
	e.count(len(r.Shards))
	for _, s := range r.Shards {
		e.uint(uint64(s.Shard))
		e.uint(uint64(s.To))
	}
	e.uint(uint64(r.Expected.Group))
	e.uint(r.Expected.Weight)
}

func (d *decoder) reassign() Reassign {
	r := Reassign{Config: shardmap.ConfigNum(d.uint())}
	for range d.count() {
		r.Shards = append(r.Shards, Reassigned{shardmap.ShardID(d.uint()), raft.GroupID(d.uint())})
	}
	r.Expected = Expectation{Group: raft.GroupID(d.uint()), Weight: d.uint()}
	return r
}

// latestLoads are the loads that the leaders of the highest terms counted,
// ascending by group.
func latestLoads(reports []report) []*flotillav1.GroupLoad {
	terms := make(map[uint64]int64)
	loads := make(map[uint64]*flotillav1.GroupLoad)
	for _, r := range reports {
		for _, g := range r.report.GetGroups() {
			if before, known := terms[g.Id]; known && before >= g.Term {
				continue
			}
			terms[g.Id] = g.Term
			delete(loads, g.Id)
			for _, l := range r.report.GetLoads() {
				if l.Group == g.Id {
					loads[g.Id] = l
				}
			}
		}
	}
	return slices.SortedFunc(maps.Values(loads), func(a, b *flotillav1.GroupLoad) int { return cmp.Compare(a.Group, b.Group) })
}
