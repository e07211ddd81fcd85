package shardctrler

import (
	"encoding/binary"
	"fmt"

	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// recordVersion is the first byte of every stored record.
const recordVersion = 3

// recordKind is the first byte of a record's key.
type recordKind byte

// The kinds of records. Shards are stored in pages.
const (
	recordMeta      recordKind = 'm'
	recordNode      recordKind = 'n'
	recordGroup     recordKind = 'g'
	recordShards    recordKind = 's'
	recordConfig    recordKind = 'c'
	recordOperation recordKind = 'o'
	recordMove      recordKind = 'v'
	recordEvent     recordKind = 'e'
	recordDecision  recordKind = 'd'
)

// shardsPerPage: one moved shard rewrites a record of about a kilobyte.
const shardsPerPage = 256

// recordKey names a record; id is 0 for the meta record and the page's number
// for shards.
type recordKey struct {
	kind recordKind
	id   uint64
}

const recordKeySize = 9

func (k recordKey) encode() []byte {
	return binary.BigEndian.AppendUint64([]byte{byte(k.kind)}, k.id)
}

func decodeRecordKey(b []byte) (recordKey, error) {
	if len(b) != recordKeySize {
		return recordKey{}, fmt.Errorf("%w: a key of %d bytes", errMalformed, len(b))
	}
	return recordKey{recordKind(b[0]), binary.BigEndian.Uint64(b[1:])}, nil
}

// record is the stored form of what k names; false: there is none (any more).
func (s *State) record(k recordKey) ([]byte, bool) {
	e := &encoder{b: []byte{recordVersion}}
	ok := false
	switch k.kind {
	case recordMeta:
		e.meta(s)
		ok = true
	case recordNode:
		var n Node
		if n, ok = s.node(raft.NodeID(k.id)); ok {
			e.node(n)
		}
	case recordGroup:
		var g Group
		if g, ok = s.group(raft.GroupID(k.id)); ok {
			e.group(g)
		}
	case recordShards:
		if ok = k.id*shardsPerPage < uint64(len(s.Shards)); ok {
			e.shards(s.page(k.id))
		}
	case recordConfig:
		if ok = len(s.Configs) > 0 && k.id >= uint64(s.Configs[0].Num); ok {
			e.config(s.Configs[k.id-uint64(s.Configs[0].Num)])
		}
	case recordOperation:
		var o Operation
		if o, ok = s.operation(OperationID(k.id)); ok {
			e.operation(o)
		}
	case recordMove:
		var m Move
		if m, ok = s.move(OperationID(k.id)); ok {
			e.move(m)
		}
	case recordEvent:
		if ok = len(s.Events) > 0 && k.id >= uint64(s.Events[0].ID); ok {
			e.event(s.Events[k.id-uint64(s.Events[0].ID)])
		}
	case recordDecision:
		var v Decision
		if v, ok = s.decisionOf(DecisionID(k.id)); ok {
			e.decision(v)
		}
	}
	return e.b, ok
}

// page is the shards of one stored page.
func (s *State) page(number uint64) []shardmap.Assignment {
	from := int(number) * shardsPerPage
	return s.Shards[from:min(from+shardsPerPage, len(s.Shards))]
}

// load adds a stored record to a state that is being rebuilt. Records must
// come in the order of their keys.
func (s *State) load(key, value []byte) error {
	k, err := decodeRecordKey(key)
	if err != nil {
		return err
	}
	d := &decoder{b: value}
	d.version(recordVersion)
	switch k.kind {
	case recordMeta:
		d.meta(s)
	case recordNode:
		s.Nodes = append(s.Nodes, d.node())
	case recordGroup:
		s.Groups = append(s.Groups, d.group())
	case recordShards:
		s.Shards = append(s.Shards, d.shards()...)
	case recordConfig:
		s.Configs = append(s.Configs, d.config())
	case recordOperation:
		s.Operations = append(s.Operations, d.operation())
	case recordMove:
		s.Moves = append(s.Moves, d.move())
	case recordEvent:
		s.Events = append(s.Events, d.event())
	case recordDecision:
		s.Decisions = append(s.Decisions, d.decision())
	default:
		d.fail("kind %q", k.kind)
	}
	if err := d.end(); err != nil {
		return fmt.Errorf("record %q %d: %w", k.kind, k.id, err)
	}
	return nil
}

// check refuses a state whose parts do not belong together.
func (s *State) check() error {
	for _, c := range s.Configs {
		if len(c.Owners) != len(s.Shards) || len(c.Pinned) > 0 && uint64(c.Pinned[len(c.Pinned)-1]) >= uint64(len(s.Shards)) {
			return fmt.Errorf("%w: config %d of %d shards, there are %d", errMalformed, c.Num, len(c.Owners), len(s.Shards))
		}
	}
	for _, m := range s.Moves {
		if uint64(m.Shard) >= uint64(len(s.Shards)) || len(s.Configs) == 0 {
			return fmt.Errorf("%w: move %d of shard %d of %d", errMalformed, m.ID, m.Shard, len(s.Shards))
		}
	}
	return nil
}

func (e *encoder) meta(s *State) {
	e.text(s.ClusterID)
	e.uint(s.Policy.Replicas)
	e.uint(s.Policy.Groups)
	e.uint(s.Policy.ReplaceAfter)
	e.int(s.Time)
	e.uint(uint64(s.Applied))
	e.uint(uint64(s.Revision))
	e.uint(uint64(s.LastNode))
	e.uint(uint64(s.LastGroup))
	e.uint(uint64(s.LastOperation))
	e.uint(uint64(s.LastEvent))
	e.uint(uint64(s.LastDecision))
}

func (d *decoder) meta(s *State) {
	s.ClusterID = d.text()
	s.Policy = Policy{Replicas: d.uint(), Groups: d.uint(), ReplaceAfter: d.uint()}
	s.Time = d.int()
	s.Applied = raft.Index(d.uint())
	s.Revision = raft.Index(d.uint())
	s.LastNode = raft.NodeID(d.uint())
	s.LastGroup = raft.GroupID(d.uint())
	s.LastOperation = OperationID(d.uint())
	s.LastEvent = EventID(d.uint())
	s.LastDecision = DecisionID(d.uint())
}

func (e *encoder) node(n Node) {
	e.uint(uint64(n.ID))
	e.registration(n.Registration)
	e.byte(byte(n.State))
	e.bool(n.Drain)
	e.int(n.Since)
}

func (d *decoder) node() Node {
	return Node{ID: raft.NodeID(d.uint()), Registration: d.registration(), State: d.nodeState(), Drain: d.bool(), Since: d.int()}
}

func (e *encoder) group(g Group) {
	e.uint(uint64(g.ID))
	e.members(g.Members)
	e.uint(g.Epoch)
	e.uint(uint64(g.Preferred))
	e.uint(uint64(g.LastReplica))
	e.bool(g.Initial)
	e.bool(g.Born)
	e.bool(g.Leaving)
}

func (d *decoder) group() Group {
	return Group{ID: raft.GroupID(d.uint()), Members: d.members(), Epoch: d.uint(), Preferred: raft.NodeID(d.uint()),
		LastReplica: raft.ReplicaID(d.uint()), Initial: d.bool(), Born: d.bool(), Leaving: d.bool()}
}

func (e *encoder) shards(page []shardmap.Assignment) {
	e.count(len(page))
	for _, a := range page {
		e.uint(uint64(a.Group))
		e.uint(uint64(a.Generation))
	}
}

func (d *decoder) shards() []shardmap.Assignment {
	var page []shardmap.Assignment
	for range d.count() {
		page = append(page, shardmap.Assignment{Group: raft.GroupID(d.uint()), Generation: shardmap.Generation(d.uint())})
	}
	return page
}

func (e *encoder) config(c Config) {
	e.uint(uint64(c.Num))
	e.int(c.Created)
	e.text(c.Reason)
	e.count(len(c.Groups))
	for _, g := range c.Groups {
		e.uint(uint64(g.ID))
		e.nodes(g.Nodes)
	}
	e.count(len(c.Owners))
	for _, g := range c.Owners {
		e.uint(uint64(g))
	}
	e.count(len(c.Pinned))
	for _, shard := range c.Pinned {
		e.uint(uint64(shard))
	}
	e.uint(uint64(c.Expected.Group))
	e.uint(c.Expected.Weight)
	e.bool(c.Noted)
}

func (d *decoder) config() Config {
	c := Config{Num: shardmap.ConfigNum(d.uint()), Created: d.int(), Reason: d.text()}
	for range d.count() {
		c.Groups = append(c.Groups, ConfigGroup{ID: raft.GroupID(d.uint()), Nodes: d.nodes()})
	}
	for range d.count() {
		c.Owners = append(c.Owners, raft.GroupID(d.uint()))
	}
	for range d.count() {
		c.Pinned = append(c.Pinned, shardmap.ShardID(d.uint()))
	}
	c.Expected = Expectation{Group: raft.GroupID(d.uint()), Weight: d.uint()}
	c.Noted = d.bool()
	return c
}

func (e *encoder) move(m Move) {
	e.uint(uint64(m.ID))
	e.uint(uint64(m.Shard))
	e.uint(uint64(m.From))
	e.uint(uint64(m.To))
	e.uint(uint64(m.Generation))
	e.byte(byte(m.State))
	e.text(m.Reason)
	e.uint(uint64(m.Decision))
	e.int(m.Started)
	e.int(m.Ended)
	e.bool(m.Begun)
	e.bool(m.Cancel)
	e.int(m.Pause)
	e.int(m.Bytes)
}

func (d *decoder) move() Move {
	return Move{ID: OperationID(d.uint()), Shard: shardmap.ShardID(d.uint()), From: raft.GroupID(d.uint()), To: raft.GroupID(d.uint()),
		Generation: shardmap.Generation(d.uint()), State: d.moveState(), Reason: d.text(), Decision: DecisionID(d.uint()), Started: d.int(), Ended: d.int(),
		Begun: d.bool(), Cancel: d.bool(), Pause: d.int(), Bytes: d.int()}
}

func (d *decoder) moveState() MoveState {
	v := MoveState(d.byte())
	if v > MoveFailed {
		d.fail("move state %d", v)
	}
	return v
}

func (e *encoder) event(v Event) {
	e.uint(uint64(v.ID))
	e.int(v.Time)
	e.text(v.Kind)
	e.text(v.Subject)
	e.text(v.Reason)
	e.uint(uint64(v.Operation))
	e.uint(uint64(v.Decision))
}

func (d *decoder) event() Event {
	return Event{ID: EventID(d.uint()), Time: d.int(), Kind: d.text(), Subject: d.text(), Reason: d.text(),
		Operation: OperationID(d.uint()), Decision: DecisionID(d.uint())}
}
