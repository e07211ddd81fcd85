package shardctrler

import (
	"slices"

	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// OperationID numbers what the controller has decided, in the order in which
// it was committed; never reused.
type OperationID uint64

// EventID numbers the event log.
type EventID uint64

// Limits of the state. Each keeps a record that grows with time or with the
// cluster within what a snapshot and a map can carry.
const (
	eventsMax  = 2_048 // the oldest is forgotten
	configsMax = 1_024 // likewise; asking for it says so
	configsMin = 16    // are kept however many shards each names
	// configOwnersMax bounds the owners that all kept configs name.
	configOwnersMax = 4 << 20
	nodesMax        = 4_096 // a Register past it is refused
	operationsMax   = 8_192 // pending at once; the planner goes on when some are done
	groupsMax       = 65_536
	replicasMax     = 9     // of one group
	textMax         = 255   // bytes of a name, zone, address or version
	reasonMax       = 1_024 // bytes of a reason; what is longer is cut
)

// State is the config group's replicated state as of one applied entry. A
// published State is never modified: applying an entry makes a new one that
// shares what did not change, so readers need no lock.
type State struct {
	ClusterID string // "" until Init
	Policy    Policy
	// Time is the largest stamp applied, unix milliseconds.
	Time int64
	// Applied is the index of the last entry applied.
	Applied raft.Index
	// Revision is the index of the last entry that changed what a map shows.
	Revision raft.Index

	Nodes      []Node                // ascending by ID; removed ones stay, so that they can be told
	Groups     []Group               // ascending by ID; the config group is the first
	Shards     []shardmap.Assignment // who serves each shard now, indexed by ShardID
	Configs    []Config              // ascending by Num, without gaps; the last is what is wished now
	Operations []Operation           // committed and not yet finished, ascending by ID
	Moves      []Move                // those under way and the last that have ended, ascending by ID
	Events     []Event               // ascending by ID, without gaps
	Decisions  []Decision            // the last, ascending by ID, without gaps

	LastNode      raft.NodeID // the highest ever given; likewise below
	LastGroup     raft.GroupID
	LastOperation OperationID
	LastEvent     EventID
	LastDecision  DecisionID
}

// Policy is what init asked for.
type Policy struct {
	Replicas uint64 // of each group
	Groups   uint64 // to begin with
	// ReplaceAfter is for how long a node must have been silent before its
	// replicas are made anew elsewhere, milliseconds; 0: the usual time.
	ReplaceAfter uint64
}

// Node is a registered node.
type Node struct {
	Registration
	ID    raft.NodeID
	State shardmap.NodeState
	// Drain: an operator wants it empty. Its State shows that while it is up.
	Drain bool
	// Since is when State was last changed, unix milliseconds.
	Since int64
}

// Registration is what a node says of itself.
type Registration struct {
	RandomID   string // written into the data dir before the first Register
	Name       string
	Zone       string
	Addr       string // gRPC, host:port
	GossipAddr string
	RespAddr   string
	HTTPAddr   string
	Version    string
}

// Group is a Raft group. What it holds of members is what nodes start from;
// the group's own log decides who votes.
type Group struct {
	ID raft.GroupID
	// Members are the replicas that exist as far as known and those that were
	// assigned to come to exist, ascending by replica.
	Members []shardmap.Member
	// Epoch of the latest membership heard of; 1 until the first change.
	Epoch uint64
	// Preferred is the node that should lead, 0 if that does not matter.
	Preferred raft.NodeID
	// LastReplica is the highest ReplicaID ever given in this group.
	LastReplica raft.ReplicaID
	// Initial groups come from init and get their first shards by a Birth.
	Initial bool
	// Born: the group knows which shards it has.
	Born bool
	// Leaving: an operator removes it. Its shards go to the others, and then it
	// ceases to be.
	Leaving bool
}

// gone tells whether a member was given up before the group made it one.
func (g Group) gone(id raft.ReplicaID) bool {
	return slices.ContainsFunc(g.Members, func(m shardmap.Member) bool { return m.Replica == id && m.Gone })
}

// Config is a numbered assignment that was wished for.
type Config struct {
	Num     shardmap.ConfigNum
	Created int64 // unix milliseconds
	Reason  string
	Groups  []ConfigGroup  // ascending by ID
	Owners  []raft.GroupID // indexed by shard
	// Pinned shards, ascending, were put where they are by an operator: they
	// stay while their group does.
	Pinned []shardmap.ShardID
	// Expected is what the config was to bring, if it was made for that, and Noted
	// that it is known what it brought.
	Expected Expectation
	Noted    bool
}

// ConfigGroup is a group as a config names it.
type ConfigGroup struct {
	ID    raft.GroupID
	Nodes []raft.NodeID // ascending
}

// Event is one line of the record of what was decided, and why.
type Event struct {
	ID      EventID
	Time    int64 // unix milliseconds
	Kind    string
	Subject string
	Reason  string
	// Operation or move, and decision, that it is of; 0: of none.
	Operation OperationID
	Decision  DecisionID
}

// Initialised tells whether Init was applied.
func (s *State) Initialised() bool { return s.ClusterID != "" }

// node finds a node by id.
func (s *State) node(id raft.NodeID) (Node, bool) {
	i, ok := slices.BinarySearchFunc(s.Nodes, id, func(n Node, id raft.NodeID) int { return compare(n.ID, id) })
	if !ok {
		return Node{}, false
	}
	return s.Nodes[i], true
}

// group finds a group by id.
func (s *State) group(id raft.GroupID) (Group, bool) {
	i, ok := slices.BinarySearchFunc(s.Groups, id, func(g Group, id raft.GroupID) int { return compare(g.ID, id) })
	if !ok {
		return Group{}, false
	}
	return s.Groups[i], true
}

// operation finds a pending operation by id.
func (s *State) operation(id OperationID) (Operation, bool) {
	i, ok := slices.BinarySearchFunc(s.Operations, id, func(o Operation, id OperationID) int { return compare(o.ID, id) })
	if !ok {
		return Operation{}, false
	}
	return s.Operations[i], true
}

// pendingFor finds the pending operation on a group; there is at most one.
func (s *State) pendingFor(id raft.GroupID) (Operation, bool) {
	for _, o := range s.Operations {
		if group, ok := o.group(); ok && group == id {
			return o, true
		}
	}
	return Operation{}, false
}

// groupsWithPending is the set of groups that have an operation pending.
func (s *State) groupsWithPending() map[raft.GroupID]bool {
	pending := make(map[raft.GroupID]bool, len(s.Operations))
	for _, o := range s.Operations {
		if group, ok := o.group(); ok {
			pending[group] = true
		}
	}
	return pending
}

// changing tells whether the membership of some group is being changed.
func (s *State) changing() bool {
	return slices.ContainsFunc(s.Operations, func(o Operation) bool {
		_, is := o.Body.(ChangeMembership)
		_, recovers := o.Body.(Recover)
		return is || recovers
	}) ||
		slices.ContainsFunc(s.Groups, func(g Group) bool {
			return slices.ContainsFunc(g.Members, func(m shardmap.Member) bool { return m.Learner })
		})
}

// byRandomID finds the node that registered under id.
func (s *State) byRandomID(id string) (Node, bool) {
	i := slices.IndexFunc(s.Nodes, func(n Node) bool { return n.RandomID == id })
	if i < 0 {
		return Node{}, false
	}
	return s.Nodes[i], true
}

// byName finds the node that has the name now. A removed node has none.
func (s *State) byName(name string) (Node, bool) {
	i := slices.IndexFunc(s.Nodes, func(n Node) bool { return n.Name == name && n.State != shardmap.NodeRemoved })
	if i < 0 {
		return Node{}, false
	}
	return s.Nodes[i], true
}

// config is the config that is wished now; Num 0 before the first.
func (s *State) config() Config {
	if len(s.Configs) == 0 {
		return Config{}
	}
	return s.Configs[len(s.Configs)-1]
}

// shardsOf lists the shards that a group serves now.
func (s *State) shardsOf(group raft.GroupID) []shardmap.ShardID {
	var shards []shardmap.ShardID
	for i, a := range s.Shards {
		if a.Group == group {
			shards = append(shards, shardmap.ShardID(i))
		}
	}
	return shards
}

// replicaGroups is Groups without the config group.
func (s *State) replicaGroups() []Group {
	if len(s.Groups) > 0 && s.Groups[0].ID == raft.ConfigGroup {
		return s.Groups[1:]
	}
	return s.Groups
}

// Removed tells what became of a replica. Known is false for one that was
// never assigned as of this state; only a known one can be removed.
func (s *State) Removed(key raft.ReplicaKey) (removed, known bool) {
	g, ok := s.group(key.Group)
	switch {
	case !ok:
		return key.Group <= s.LastGroup && key.Group != 0, key.Group <= s.LastGroup && key.Group != 0
	case key.Replica == 0 || key.Replica > g.LastReplica:
		return false, false
	}
	return !slices.ContainsFunc(g.Members, func(m shardmap.Member) bool { return m.Replica == key.Replica }), true
}

// Map is what everybody may know of the state. Its shards are shared with s.
func (s *State) Map() *shardmap.Map {
	m := &shardmap.Map{
		ClusterID: s.ClusterID,
		Revision:  uint64(s.Revision),
		Config:    s.config().Num,
		Shards:    s.Shards,
		Groups:    make([]shardmap.Group, 0, len(s.Groups)),
		Nodes:     make([]shardmap.Node, 0, len(s.Nodes)),
	}
	for _, g := range s.Groups {
		m.Groups = append(m.Groups, shardmap.Group{ID: g.ID, Members: g.Members, Preferred: g.Preferred, Epoch: g.Epoch})
	}
	for _, n := range s.Nodes {
		if n.State != shardmap.NodeRemoved {
			m.Nodes = append(m.Nodes, shardmap.Node{ID: n.ID, Name: n.Name, Zone: n.Zone, State: n.State,
				Addr: n.Addr, GossipAddr: n.GossipAddr, RespAddr: n.RespAddr, HTTPAddr: n.HTTPAddr})
		}
	}
	return m
}

// compare orders ids.
func compare[T ~uint64](a, b T) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}
