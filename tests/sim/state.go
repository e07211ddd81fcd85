package sim

import (
	"cmp"
	"hash/fnv"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/raft/statestore"
	"github.com/flotilla-kv/flotilla/shardctrler"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
	"github.com/flotilla-kv/flotilla/shardkv"
)

// stateChecker compares what replicas hold.
type stateChecker struct {
	w       *world
	digests map[raft.GroupID]map[raft.Index]digest
	owners  map[owned]raft.GroupID
	decided shardctrler.DecisionID // through which decisions were taken again
	// Likewise, explained.
	explained shardctrler.DecisionID
	changes   map[changeID]told
	seen      map[*shardkv.Server]seenChanges // the servers' lives end, and their histories with them
}

// changeID is a write of a shard, under its version.
type changeID struct {
	shard   shardmap.ShardID
	version uint64
}

// seenChanges is how far the history of each replica was compared.
type seenChanges map[raft.ReplicaKey]uint64

// digest is what a replica held at an applied index.
type digest struct {
	sum   uint64
	place int // of the node that was first there
}

// owned is a shard in one generation.
type owned struct{ shard, generation uint64 }

func newStateChecker(w *world) stateChecker {
	return stateChecker{w: w, digests: make(map[raft.GroupID]map[raft.Index]digest), owners: make(map[owned]raft.GroupID),
		changes: make(map[changeID]told), seen: make(map[*shardkv.Server]seenChanges)}
}

// compare holds all replicas of a node against what others held at the same
// applied index.
func (c *stateChecker) compare(n *node) {
	if !n.up() || n.host == nil {
		return
	}
	for _, record := range n.host.Recorded() {
		if record.Lost {
			continue
		}
		key := record.ID
		c.compareChanges(n, key)
		index, sum, err := digestOf(n.data.Replica(key))
		if err != nil {
			c.w.fail("Assertion", "node %d: the state of group %d cannot be read: %v", n.place, key.Group, err)
			return
		}
		if index == 0 {
			continue
		}
		byIndex := c.digests[key.Group]
		if byIndex == nil {
			byIndex = make(map[raft.Index]digest)
			c.digests[key.Group] = byIndex
		}
		first, known := byIndex[index]
		if !known {
			byIndex[index] = digest{sum, n.place}
		} else if first.sum != sum {
			c.w.fail("Equal Replicas", "group %d at index %d: nodes %d and %d hold other bytes", key.Group, index, first.place, n.place)
			return
		}
		c.w.note("digest", n.place, uint64(key.Group)<<32|uint64(index), sum, nil)
	}
}

// compareChanges holds what a replica would tell watches against what others
// would, of whichever group.
func (c *stateChecker) compareChanges(n *node, key raft.ReplicaKey) {
	if c.seen[n.kv] == nil {
		c.seen[n.kv] = make(seenChanges)
	}
	c.seen[n.kv][key] = n.kv.Changes(key, c.seen[n.kv][key], func(shard shardmap.ShardID, version uint64, head, value []byte) {
		at := changeID{shard, version}
		now, first := told{head: sum(head)}, c.changes[at]
		if value != nil {
			now.value = sum(value)
		}
		if !first.agrees(now) {
			c.w.fail("Equal Histories", "shard %d version %d: node %d has another change of group %d than was seen before", shard, version, n.place, key.Group)
		}
		c.changes[at] = told{now.head, cmp.Or(first.value, now.value)}
	})
}

// told is what is known of a change; 0: nothing.
type told struct{ head, value uint64 }

// agrees tells whether both can be of one change: how much a replica takes in at
// once decides of which values it has none.
func (t told) agrees(now told) bool {
	return (t.head == 0 || t.head == now.head) && (t.value == 0 || now.value == 0 || t.value == now.value)
}

func sum(b []byte) uint64 {
	h := fnv.New64a()
	h.Write(b)
	return h.Sum64()
}

func digestOf(r *statestore.Replica) (raft.Index, uint64, error) {
	view, err := r.View()
	if err != nil {
		return 0, 0, err
	}
	defer view.Close()
	index, _, _, err := view.Applied()
	if err != nil {
		return 0, 0, err
	}
	h := fnv.New64a()
	it := view.NewIter(nil, nil)
	for ok := it.First(); ok; ok = it.Next() {
		h.Write([]byte{byte(len(it.Key()))})
		h.Write(it.Key())
		h.Write([]byte{byte(len(it.Value()))})
		h.Write(it.Value())
	}
	return index, h.Sum64(), it.Close()
}

// checkOwners: in one generation a shard has one group.
func (c *stateChecker) checkOwners(n *node) {
	for _, s := range n.host.Statuses() {
		if s.Key.Group == raft.ConfigGroup {
			continue
		}
		for _, sh := range n.kv.ShardStatuses(s.Key.Group) {
			c.owns(s.Key.Group, sh)
		}
	}
}

// checkTable: who the config group says has a shard, has it.
func (c *stateChecker) checkTable() {
	for _, n := range c.w.nodes {
		if n.wiped || !n.governs() {
			continue
		}
		for i, at := range n.control.machine.State().Shards {
			owner, known := c.owners[owned{uint64(i), uint64(at.Generation)}]
			if at.Group != 0 && (!known || owner != at.Group) {
				c.w.fail("One Owner", "shard %d of generation %d is owned by group %d, the config group says %d", i, at.Generation, owner, at.Group)
			}
		}
	}
}

// checkDecisions: from what is kept of it, the controller decides the same again.
func (c *stateChecker) checkDecisions() {
	for _, n := range c.w.nodes {
		if n.wiped || !n.governs() {
			continue
		}
		for _, d := range n.control.machine.State().Decisions {
			if d.ID <= c.decided {
				continue
			}
			c.decided = d.ID
			if differs, err := d.Replay(); err != nil || differs != "" {
				c.w.fail("Replay", "decision %d: %s, %v", d.ID, differs, err)
			}
		}
	}
}

// checkExplained: whatever is asked about at who leads the config group has a true
// answer.
func (c *stateChecker) checkExplained() {
	for _, n := range c.w.nodes {
		if n.wiped || !n.governs() {
			continue
		}
		s := n.control.machine.State()
		var o shardctrler.Observed
		for _, other := range s.Nodes {
			o.Nodes = append(o.Nodes, shardctrler.ObservedNode{ID: other.ID, Alive: n.Alive(other.ID)})
		}
		var err error
		if c.explained, err = shardctrler.CheckExplained(s, o, c.explained); err != nil {
			c.w.fail("Explained", "%v", err)
		}
	}
}

func (c *stateChecker) owns(g raft.GroupID, s *flotillav1.ShardStatus) {
	if s.GetState() != "owned" {
		return
	}
	key := owned{s.GetShard(), s.GetGeneration()}
	if other, known := c.owners[key]; known && other != g {
		c.w.fail("One Owner", "shard %d of generation %d is owned by groups %d and %d", key.shard, key.generation, other, g)
	}
	c.owners[key] = g
}
