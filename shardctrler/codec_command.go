package shardctrler

import (
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// commandVersion is the first byte of every command.
const commandVersion = 2

// The tag behind the version says which command it is.
const (
	tagInit byte = iota + 1
	tagRegister
	tagCommit
	tagFinish
	tagObserve
	tagPrefer
	tagOrderMove
	tagCancelMove
	tagReportMove
	tagAddGroups
	tagRemoveGroup
	tagDrainNode
	tagRemoveNode
	tagRecoverGroup
)

// Likewise for the body of an operation.
const (
	tagCreateGroups byte = iota + 1
	tagSetNodeState
	tagBirth
	tagTransferLeader
	tagChangeMembership
	tagStartMove
	tagDestroyGroup
	tagSetPreferred
	tagReassign
	tagNoteEffect
	tagRecover
)

// EncodeCommand is what is proposed for c.
func EncodeCommand(c Command) []byte {
	e := &encoder{b: []byte{commandVersion}}
	switch c := c.(type) {
	case Init:
		e.byte(tagInit)
		e.text(c.ClusterID)
		e.uint(c.Shards)
		e.uint(c.Replicas)
		e.uint(c.Groups)
		e.uint(c.ReplaceAfter)
		e.registration(c.First)
	case Register:
		e.byte(tagRegister)
		e.text(c.ClusterID)
		e.uint(uint64(c.Node))
		e.registration(c.Registration)
	case Commit:
		e.byte(tagCommit)
		e.count(len(c.Operations))
		for _, o := range c.Operations {
			e.operation(o)
		}
		e.uint(uint64(c.Applied))
		e.text(string(c.Scene))
	case Finish:
		e.byte(tagFinish)
		e.uint(uint64(c.Operation))
		e.bool(c.Done)
		e.text(clip(c.Detail))
	case Observe:
		e.byte(tagObserve)
		e.uint(uint64(c.Group))
		e.uint(c.Epoch)
		e.members(c.Members)
	case Prefer:
		e.byte(tagPrefer)
		e.uint(uint64(c.Group))
		e.uint(uint64(c.Node))
	case OrderMove:
		e.byte(tagOrderMove)
		e.uint(uint64(c.Shard))
		e.uint(uint64(c.To))
	case CancelMove:
		e.byte(tagCancelMove)
		e.uint(uint64(c.Move))
	case ReportMove:
		e.byte(tagReportMove)
		e.uint(uint64(c.Move))
		e.byte(byte(c.State))
		e.int(c.Pause)
		e.int(c.Bytes)
	case AddGroups:
		e.byte(tagAddGroups)
		e.newGroups(c.Groups)
		e.uint(uint64(c.Config))
	case RemoveGroup:
		e.byte(tagRemoveGroup)
		e.uint(uint64(c.Group))
	case DrainNode:
		e.byte(tagDrainNode)
		e.uint(uint64(c.Node))
		e.bool(c.Back)
	case RemoveNode:
		e.byte(tagRemoveNode)
		e.uint(uint64(c.Node))
	case RecoverGroup:
		e.byte(tagRecoverGroup)
		e.uint(uint64(c.Group))
		e.uint(uint64(c.Node))
		e.uint(uint64(c.Replica))
	}
	return e.b
}

// DecodeCommand takes apart what EncodeCommand made; all else is an error.
func DecodeCommand(b []byte) (Command, error) {
	d := &decoder{b: b}
	d.version(commandVersion)
	c := d.command(d.byte())
	if err := d.end(); err != nil {
		return nil, err
	}
	return c, nil
}

func (d *decoder) command(tag byte) Command {
	switch tag {
	case tagInit:
		return Init{ClusterID: d.text(), Shards: d.uint(), Replicas: d.uint(), Groups: d.uint(), ReplaceAfter: d.uint(), First: d.registration()}
	case tagRegister:
		return Register{ClusterID: d.text(), Node: raft.NodeID(d.uint()), Registration: d.registration()}
	case tagCommit:
		var c Commit
		for range d.count() {
			c.Operations = append(c.Operations, d.operation())
		}
		c.Applied, c.Scene = raft.Index(d.uint()), d.bytes()
		return c
	case tagFinish:
		return Finish{Operation: OperationID(d.uint()), Done: d.bool(), Detail: d.text()}
	case tagObserve:
		return Observe{Group: raft.GroupID(d.uint()), Epoch: d.uint(), Members: d.members()}
	case tagPrefer:
		return Prefer{Group: raft.GroupID(d.uint()), Node: raft.NodeID(d.uint())}
	case tagOrderMove:
		return OrderMove{Shard: shardmap.ShardID(d.uint()), To: raft.GroupID(d.uint())}
	case tagCancelMove:
		return CancelMove{Move: OperationID(d.uint())}
	case tagReportMove:
		return ReportMove{Move: OperationID(d.uint()), State: d.moveState(), Pause: d.int(), Bytes: d.int()}
	case tagAddGroups:
		return AddGroups{Groups: d.newGroups(), Config: shardmap.ConfigNum(d.uint())}
	case tagRemoveGroup:
		return RemoveGroup{Group: raft.GroupID(d.uint())}
	case tagDrainNode:
		return DrainNode{Node: raft.NodeID(d.uint()), Back: d.bool()}
	case tagRemoveNode:
		return RemoveNode{Node: raft.NodeID(d.uint())}
	case tagRecoverGroup:
		return RecoverGroup{Group: raft.GroupID(d.uint()), Node: raft.NodeID(d.uint()), Replica: raft.ReplicaID(d.uint())}
	}
	d.fail("command %d is not known", tag)
	return nil
}

func (e *encoder) registration(r Registration) {
	for _, text := range []string{r.RandomID, r.Name, r.Zone, r.Addr, r.GossipAddr, r.RespAddr, r.HTTPAddr, r.Version} {
		e.text(text)
	}
}

func (d *decoder) registration() Registration {
	return Registration{RandomID: d.text(), Name: d.text(), Zone: d.text(), Addr: d.text(),
		GossipAddr: d.text(), RespAddr: d.text(), HTTPAddr: d.text(), Version: d.text()}
}

func (e *encoder) operation(o Operation) {
	e.uint(uint64(o.ID))
	e.int(o.At)
	e.uint(uint64(o.Decision))
	e.text(clip(o.Reason))
	switch b := o.Body.(type) {
	case CreateGroups:
		e.byte(tagCreateGroups)
		e.newGroups(b.Groups)
		e.count(len(b.Owners))
		for _, place := range b.Owners {
			e.uint(place)
		}
	case SetNodeState:
		e.byte(tagSetNodeState)
		e.uint(uint64(b.Node))
		e.byte(byte(b.State))
	case Birth:
		e.byte(tagBirth)
		e.uint(uint64(b.Group))
		e.uint(uint64(b.Generation))
	case TransferLeader:
		e.byte(tagTransferLeader)
		e.uint(uint64(b.Group))
		e.uint(b.Epoch)
		e.uint(uint64(b.To))
	case ChangeMembership:
		e.byte(tagChangeMembership)
		e.uint(uint64(b.Group))
		e.uint(b.Epoch)
		e.members(b.Members)
		e.count(b.Added)
	case StartMove:
		e.byte(tagStartMove)
		e.uint(uint64(b.Shard))
		e.uint(uint64(b.From))
		e.uint(uint64(b.To))
		e.uint(uint64(b.Generation))
	case DestroyGroup:
		e.byte(tagDestroyGroup)
		e.uint(uint64(b.Group))
	case SetPreferred:
		e.byte(tagSetPreferred)
		e.uint(uint64(b.Group))
		e.uint(uint64(b.Node))
	case Reassign:
		e.byte(tagReassign)
		e.reassign(b)
	case NoteEffect:
		e.byte(tagNoteEffect)
		e.uint(uint64(b.Config))
		e.uint(b.Has)
		e.uint(b.Others)
	case Recover:
		e.byte(tagRecover)
		e.uint(uint64(b.Group))
		e.uint(uint64(b.Node))
		e.uint(uint64(b.Replica))
		e.uint(b.Epoch)
		e.uint(uint64(b.Floor))
	default:
		e.byte(0)
	}
}

func (d *decoder) operation() Operation {
	return Operation{ID: OperationID(d.uint()), At: d.int(), Decision: DecisionID(d.uint()), Reason: d.text(), Body: d.body(d.byte())}
}

func (d *decoder) body(tag byte) Body {
	switch tag {
	case tagCreateGroups:
		var b CreateGroups
		b.Groups = d.newGroups()
		for range d.count() {
			b.Owners = append(b.Owners, d.uint())
		}
		return b
	case tagSetNodeState:
		return SetNodeState{Node: raft.NodeID(d.uint()), State: d.nodeState()}
	case tagBirth:
		return Birth{Group: raft.GroupID(d.uint()), Generation: shardmap.Generation(d.uint())}
	case tagTransferLeader:
		return TransferLeader{Group: raft.GroupID(d.uint()), Epoch: d.uint(), To: raft.NodeID(d.uint())}
	case tagChangeMembership:
		return ChangeMembership{Group: raft.GroupID(d.uint()), Epoch: d.uint(), Members: d.members(), Added: int(d.uint() & 0xffff)}
	case tagStartMove:
		return StartMove{Shard: shardmap.ShardID(d.uint()), From: raft.GroupID(d.uint()), To: raft.GroupID(d.uint()), Generation: shardmap.Generation(d.uint())}
	case tagDestroyGroup:
		return DestroyGroup{Group: raft.GroupID(d.uint())}
	case tagSetPreferred:
		return SetPreferred{Group: raft.GroupID(d.uint()), Node: raft.NodeID(d.uint())}
	case tagReassign:
		return d.reassign()
	case tagNoteEffect:
		return NoteEffect{Config: shardmap.ConfigNum(d.uint()), Has: d.uint(), Others: d.uint()}
	case tagRecover:
		return Recover{Group: raft.GroupID(d.uint()), Node: raft.NodeID(d.uint()), Replica: raft.ReplicaID(d.uint()), Epoch: d.uint(), Floor: raft.ReplicaID(d.uint())}
	}
	d.fail("operation %d is not known", tag)
	return nil
}

func (e *encoder) newGroups(groups []NewGroup) {
	e.count(len(groups))
	for _, g := range groups {
		e.nodes(g.Nodes)
		e.uint(uint64(g.Preferred))
	}
}

func (d *decoder) newGroups() []NewGroup {
	var groups []NewGroup
	for range d.count() {
		groups = append(groups, NewGroup{Nodes: d.nodes(), Preferred: raft.NodeID(d.uint())})
	}
	return groups
}

func (e *encoder) nodes(nodes []raft.NodeID) {
	e.count(len(nodes))
	for _, n := range nodes {
		e.uint(uint64(n))
	}
}

func (d *decoder) nodes() []raft.NodeID {
	var nodes []raft.NodeID
	for range d.count() {
		nodes = append(nodes, raft.NodeID(d.uint()))
	}
	return nodes
}

// A member's flags.
const (
	flagLearner byte = 1 << iota
	flagFirst
	flagGone
)

func (e *encoder) members(members []shardmap.Member) {
	e.count(len(members))
	for _, m := range members {
		e.uint(uint64(m.Replica))
		e.uint(uint64(m.Node))
		var flags byte
		if m.Learner {
			flags |= flagLearner
		}
		if m.First {
			flags |= flagFirst
		}
		if m.Gone {
			flags |= flagGone
		}
		e.byte(flags)
	}
}

func (d *decoder) members() []shardmap.Member {
	var members []shardmap.Member
	for range d.count() {
		m := shardmap.Member{Replica: raft.ReplicaID(d.uint()), Node: raft.NodeID(d.uint())}
		flags := d.byte()
		if flags&^(flagLearner|flagFirst|flagGone) != 0 {
			d.fail("member flags %#x", flags)
		}
		m.Learner, m.First, m.Gone = flags&flagLearner != 0, flags&flagFirst != 0, flags&flagGone != 0
		members = append(members, m)
	}
	return members
}

func (d *decoder) nodeState() shardmap.NodeState {
	v := shardmap.NodeState(d.byte())
	if v > shardmap.NodeRemoved {
		d.fail("node state %d", v)
	}
	return v
}
