package shardctrler

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// draft is a State being changed by one entry. What it shares with the state
// it began from is copied before it is touched, and what was touched is noted,
// so that exactly those records are stored.
type draft struct {
	State
	base     *State     // before the entry
	decision DecisionID // that is being taken, 0: none
	copied   map[recordKind]bool
	touched  map[recordKey]bool
}

// begin starts a draft of the entry at index with its stamp.
func begin(s *State, index raft.Index, stamp int64) *draft {
	d := &draft{State: *s, base: s, copied: make(map[recordKind]bool), touched: make(map[recordKey]bool)}
	d.Applied, d.Time = index, max(d.Time, stamp)
	d.touchMeta()
	return d
}

// finish is the state after the entry and the records to store, in order.
func (d *draft) finish() (*State, []recordKey) {
	keys := make([]recordKey, 0, len(d.touched))
	for k := range d.touched {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b recordKey) int {
		return cmp.Or(cmp.Compare(a.kind, b.kind), cmp.Compare(a.id, b.id))
	})
	return &d.State, keys
}

// changed tells whether the entry has changed anything so far.
func (d *draft) changed() bool { return len(d.touched) > 1 }

func (d *draft) touchMeta() { d.touched[recordKey{kind: recordMeta}] = true }

// mapChanged notes that a map made of the state differs from the one before.
func (d *draft) mapChanged() {
	d.Revision = d.Applied
	d.touchMeta()
}

// own copies a slice of the state the first time that this entry changes it.
func own[T any](d *draft, kind recordKind, s []T) []T {
	if d.copied[kind] {
		return s
	}
	d.copied[kind] = true
	return append(make([]T, 0, len(s)+1), s...)
}

func (d *draft) putNode(n Node) {
	d.Nodes = own(d, recordNode, d.Nodes)
	d.Nodes = put(d.Nodes, n, func(a, b Node) int { return compare(a.ID, b.ID) })
	d.touched[recordKey{recordNode, uint64(n.ID)}] = true
	d.mapChanged()
}

func (d *draft) putGroup(g Group) {
	d.Groups = own(d, recordGroup, d.Groups)
	d.Groups = put(d.Groups, g, func(a, b Group) int { return compare(a.ID, b.ID) })
	d.touched[recordKey{recordGroup, uint64(g.ID)}] = true
	d.mapChanged()
}

func (d *draft) deleteGroup(id raft.GroupID) {
	d.Groups = slices.DeleteFunc(own(d, recordGroup, d.Groups), func(g Group) bool { return g.ID == id })
	d.touched[recordKey{recordGroup, uint64(id)}] = true
	d.mapChanged()
}

// resetShards makes n shards that nobody serves.
func (d *draft) resetShards(n int) {
	d.Shards = make([]shardmap.Assignment, n)
	d.copied[recordShards] = true
	for page := 0; page*shardsPerPage < n; page++ {
		d.touched[recordKey{recordShards, uint64(page)}] = true
	}
	d.mapChanged()
}

func (d *draft) setOwner(shard shardmap.ShardID, a shardmap.Assignment) {
	d.Shards = own(d, recordShards, d.Shards)
	d.Shards[shard] = a
	d.touched[recordKey{recordShards, uint64(shard) / shardsPerPage}] = true
	d.mapChanged()
}

// addConfig appends the next config and forgets the oldest past the limit.
func (d *draft) addConfig(reason string, owners []raft.GroupID, pinned []shardmap.ShardID) {
	if before := d.config(); before.Expected.Group != 0 && !before.Noted {
		d.addEvent(NoteEffect{}.kind(), "cluster", fmt.Sprintf("config %d was replaced before it was known what it brought", before.Num))
	}
	c := Config{Num: d.config().Num + 1, Created: d.Time, Reason: clip(reason), Owners: owners, Pinned: pinned}
	for _, g := range d.replicaGroups() {
		cg := ConfigGroup{ID: g.ID}
		for _, m := range g.Members {
			cg.Nodes = append(cg.Nodes, m.Node)
		}
		slices.Sort(cg.Nodes)
		c.Groups = append(c.Groups, cg)
	}
	d.Configs = append(own(d, recordConfig, d.Configs), c)
	d.touched[recordKey{recordConfig, uint64(c.Num)}] = true
	if len(d.Configs) > configsKept(len(owners)) {
		d.touched[recordKey{recordConfig, uint64(d.Configs[0].Num)}] = true
		d.Configs = d.Configs[1:]
	}
	d.mapChanged()
}

// configsKept is how many configs of so many shards are kept.
func configsKept(shards int) int {
	return max(configsMin, min(configsMax, configOwnersMax/max(1, shards)))
}

// nextOperation takes an operation id.
func (d *draft) nextOperation() OperationID {
	d.LastOperation++
	d.touchMeta()
	return d.LastOperation
}

func (d *draft) addOperation(o Operation) {
	d.Operations = append(own(d, recordOperation, d.Operations), o)
	d.touched[recordKey{recordOperation, uint64(o.ID)}] = true
}

func (d *draft) removeOperation(id OperationID) {
	d.Operations = own(d, recordOperation, d.Operations)
	d.Operations = slices.DeleteFunc(d.Operations, func(o Operation) bool { return o.ID == id })
	d.touched[recordKey{recordOperation, uint64(id)}] = true
}

// addEvent notes what is being decided.
func (d *draft) addEvent(kind, subject, reason string) {
	d.appendEvent(Event{Kind: kind, Subject: subject, Reason: reason, Decision: d.decision})
}

// addOperationEvent notes what is decided or has come of an operation.
func (d *draft) addOperationEvent(o Operation, kind, subject, text string) {
	d.appendEvent(Event{Kind: kind, Subject: subject, Reason: fmt.Sprintf("operation %d: %s", o.ID, text), Operation: o.ID, Decision: o.Decision})
}

// take numbers an operation that takes effect by being committed.
func (d *draft) take(o Operation) Operation {
	o.ID = d.nextOperation()
	return o
}

// appendEvent numbers an event and forgets the oldest past the limit.
func (d *draft) appendEvent(e Event) {
	d.LastEvent++
	d.touchMeta()
	e.ID, e.Time, e.Reason = d.LastEvent, d.Time, clip(e.Reason)
	d.Events = append(own(d, recordEvent, d.Events), e)
	d.touched[recordKey{recordEvent, uint64(e.ID)}] = true
	if len(d.Events) > eventsMax {
		d.touched[recordKey{recordEvent, uint64(d.Events[0].ID)}] = true
		d.Events = d.Events[1:]
	}
}

// put replaces the element equal to v in the ascending s, or inserts v.
func put[T any](s []T, v T, order func(a, b T) int) []T {
	i, found := slices.BinarySearchFunc(s, v, order)
	if found {
		s[i] = v
		return s
	}
	return slices.Insert(s, i, v)
}

// clip cuts a reason to what an event carries.
func clip(reason string) string {
	if len(reason) > reasonMax {
		return reason[:reasonMax]
	}
	return reason
}
