package shardctrler

import (
	"errors"
	"fmt"
	"slices"

	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// apply is the state machine: the state after the commands of one entry, an
// answer for each (a refusal is an error), and the records that changed. It
// depends on nothing but its arguments and modifies none of them.
func apply(s *State, index raft.Index, stamp int64, commands []Command) (next *State, answers []any, changed []recordKey) {
	d := begin(s, index, stamp)
	answers = make([]any, len(commands))
	for i, c := range commands {
		answers[i] = d.apply(c)
	}
	if d.copied[recordMove] {
		d.beginMoves()
	}
	next, changed = d.finish()
	return next, answers, changed
}

func (d *draft) apply(c Command) any {
	if init, ok := c.(Init); ok {
		return answer(d.init(init))
	}
	if !d.Initialised() {
		return ErrNotInitialised
	}
	switch c := c.(type) {
	case Register:
		return answer(d.register(c))
	case Commit:
		return d.commit(c)
	case Finish:
		return outcome(d.finishOperation(c))
	case Observe:
		return outcome(d.observe(c))
	case Prefer:
		return d.order(c, func() any { return outcome(d.prefer(c)) })
	case ReportMove:
		return outcome(d.reportMove(c))
	case OrderMove:
		return d.order(c, func() any { return answer(d.orderMove(c)) })
	case CancelMove:
		return d.order(c, func() any { return outcome(d.cancelMove(c)) })
	case AddGroups:
		return d.order(c, func() any { return answer(d.addGroups(c)) })
	case RemoveGroup:
		return d.order(c, func() any { return answer(d.removeGroup(c)) })
	case DrainNode:
		return d.order(c, func() any { return outcome(d.drainNode(c)) })
	case RemoveNode:
		return d.order(c, func() any { return outcome(d.removeNode(c)) })
	case RecoverGroup:
		return d.order(c, func() any { return outcome(d.recoverGroup(c)) })
	}
	return invalid("unknown command %T", c)
}

// answer is a result or, if there is one, the refusal instead.
func answer[T any](v T, err error) any {
	if err != nil {
		return err
	}
	return v
}

// outcome is the answer of a command that has none but a refusal.
func outcome(err error) any {
	if err != nil {
		return err
	}
	return nil
}

func (d *draft) init(c Init) (Registered, error) {
	if d.Initialised() {
		return Registered{}, ErrInitialised
	}
	if err := c.check(); err != nil {
		return Registered{}, err
	}
	d.ClusterID = c.ClusterID
	d.Policy = Policy{Replicas: c.Replicas, Groups: c.Groups, ReplaceAfter: c.ReplaceAfter}
	d.resetShards(int(c.Shards))
	d.LastNode, d.LastGroup = 1, raft.ConfigGroup
	d.putNode(Node{Registration: c.First, ID: d.LastNode, State: shardmap.NodeUp, Since: d.Time})
	d.putGroup(Group{
		ID: raft.ConfigGroup, Epoch: 1, LastReplica: 1, Born: true,
		Members: []shardmap.Member{{Replica: 1, Node: d.LastNode, First: true}},
	})
	d.addEvent("init", "cluster", fmt.Sprintf("an operator asked node 1 (%s) for %d shards in %d groups of %d replicas",
		c.First.Name, c.Shards, c.Groups, c.Replicas))
	return Registered{ClusterID: d.ClusterID, Node: d.LastNode}, nil
}

// check refuses what no cluster can be made of.
func (c Init) check() error {
	if c.ClusterID == "" || len(c.ClusterID) > textMax {
		return invalid("the cluster id has %d bytes: it must have 1 to %d", len(c.ClusterID), textMax)
	}
	if c.Shards > shardmap.ShardsMax {
		return invalid("%d shards: at most %d", c.Shards, shardmap.ShardsMax)
	}
	if err := shardmap.CheckShards(int(c.Shards)); err != nil {
		return invalid("%v", err)
	}
	if c.Replicas == 0 || c.Replicas > replicasMax {
		return invalid("%d replicas: it must be 1 to %d", c.Replicas, replicasMax)
	}
	if c.Groups == 0 || c.Groups > c.Shards {
		return invalid("%d groups: it must be 1 to the number of shards (%d)", c.Groups, c.Shards)
	}
	return c.First.check()
}

// check refuses a registration that lacks what others need.
func (r Registration) check() error {
	for _, f := range []struct{ what, text string }{
		{"random id", r.RandomID}, {"name", r.Name}, {"gRPC address", r.Addr},
	} {
		if f.text == "" {
			return invalid("a node must name its %s", f.what)
		}
	}
	for _, text := range []string{r.RandomID, r.Name, r.Zone, r.Addr, r.GossipAddr, r.RespAddr, r.HTTPAddr, r.Version} {
		if len(text) > textMax {
			return invalid("%q...: %d bytes are more than %d", text[:16], len(text), textMax)
		}
	}
	return nil
}

func (d *draft) register(c Register) (Registered, error) {
	known, isKnown, err := d.checkRegister(c)
	switch {
	case err != nil:
		return Registered{}, err
	case isKnown:
		return d.registerAgain(known, c.Registration), nil
	case len(d.Nodes) >= nodesMax:
		return Registered{}, ErrTooManyNodes
	}
	d.LastNode++
	d.putNode(Node{Registration: c.Registration, ID: d.LastNode, State: shardmap.NodeUp, Since: d.Time})
	d.addEvent("register", subjectNode(d.LastNode), fmt.Sprintf("%q at %s joined, zone %q", c.Name, c.Addr, c.Zone))
	return Registered{ClusterID: d.ClusterID, Node: d.LastNode}, nil
}

// checkRegister finds the node that registers, if it is known, or the reason
// to refuse it.
func (s *State) checkRegister(c Register) (known Node, isKnown bool, err error) {
	if err := c.Registration.check(); err != nil {
		return Node{}, false, err
	}
	if c.ClusterID != "" && c.ClusterID != s.ClusterID {
		return Node{}, false, fmt.Errorf("%w: it says %s, this is %s", ErrOtherCluster, c.ClusterID, s.ClusterID)
	}
	known, isKnown = s.byRandomID(c.RandomID)
	switch {
	case isKnown && known.State == shardmap.NodeRemoved:
		return Node{}, false, ErrNodeRemoved
	case isKnown && c.Node != 0 && c.Node != known.ID:
		return Node{}, false, fmt.Errorf("%w: it says node %d, its random id is that of node %d", ErrUnknownNode, c.Node, known.ID)
	case !isKnown && c.Node != 0:
		return Node{}, false, fmt.Errorf("%w: it says node %d", ErrUnknownNode, c.Node)
	}
	if other, taken := s.byName(c.Name); taken && other.RandomID != c.RandomID {
		return Node{}, false, &NameTakenError{Name: c.Name, Node: other.ID}
	}
	return known, isKnown, nil
}

// registerAgain gives a known node its id and takes over what it says now.
func (d *draft) registerAgain(known Node, now Registration) Registered {
	if known.Registration != now {
		before := known.Registration
		known.Registration = now
		d.putNode(known)
		d.addEvent("register", subjectNode(known.ID), fmt.Sprintf("started again with %s, before %s", now, before))
	}
	return Registered{ClusterID: d.ClusterID, Node: known.ID}
}

// String is how events show a registration.
func (r Registration) String() string {
	return fmt.Sprintf("name %q zone %q addr %s gossip %s resp %s http %s version %s",
		r.Name, r.Zone, r.Addr, r.GossipAddr, r.RespAddr, r.HTTPAddr, r.Version)
}

// finishOperation ends an operation that is pending.
func (d *draft) finishOperation(c Finish) error {
	o, ok := d.operation(c.Operation)
	if !ok {
		return nil
	}
	switch body := o.Body.(type) {
	case ChangeMembership:
		if c.Done {
			return invalid("operation %d ends when the membership of group %d is observed", o.ID, body.Group)
		}
		d.unassign(body)
	case Birth:
		if c.Done {
			d.born(body.Group)
		}
	}
	d.end(o, c.Done, c.Detail)
	return nil
}

func (d *draft) born(id raft.GroupID) {
	if g, ok := d.group(id); ok && !g.Born {
		g.Born = true
		d.putGroup(g)
	}
}

// end takes an operation out of the pending ones and says how it ended.
func (d *draft) end(o Operation, done bool, detail string) {
	d.removeOperation(o.ID)
	id, _ := o.group()
	kind := o.Body.kind() + "-done"
	if !done {
		kind = o.Body.kind() + "-refused"
	}
	d.addOperationEvent(o, kind, subjectGroup(id), detail)
}

// observe takes over a membership that the group's own log decided, and ends
// the operation that asked for it or that it overtook.
func (d *draft) observe(c Observe) error {
	g, ok := d.group(c.Group)
	if !ok {
		return stale("group %d does not exist", c.Group)
	}
	if c.Epoch <= g.Epoch {
		return nil
	}
	before := g.Members
	g.Epoch = c.Epoch
	g.Members = sortedMembers(c.Members)
	for i := range g.Members {
		has := func(m shardmap.Member) bool { return m.Replica == g.Members[i].Replica && !m.Gone }
		g.Members[i].First, g.Members[i].Gone = false, !slices.ContainsFunc(before, has)
		g.LastReplica = max(g.LastReplica, g.Members[i].Replica)
	}
	d.putGroup(g)
	o, pending := d.pendingFor(g.ID)
	if b, recovers := o.Body.(Recover); pending && recovers && c.Epoch >= b.Epoch {
		d.end(o, true, fmt.Sprintf("the group is at epoch %d with %s", g.Epoch, membersText(g.Members)))
		return nil
	}
	change, isChange := Body(nil), false
	if pending {
		change, isChange = o.Body.(ChangeMembership)
	}
	if !isChange {
		d.addEvent("membership", subjectGroup(g.ID), fmt.Sprintf("epoch %d: %s", g.Epoch, membersText(g.Members)))
		return nil
	}
	done := sameMembers(change.(ChangeMembership).Members, g.Members)
	d.end(o, done, fmt.Sprintf("the group is at epoch %d with %s", g.Epoch, membersText(g.Members)))
	return nil
}

// prefer records that an operator wants a node to lead.
func (d *draft) prefer(c Prefer) error {
	g, ok := d.group(c.Group)
	if !ok {
		return stale("group %d does not exist", c.Group)
	}
	if !slices.ContainsFunc(g.Members, func(m shardmap.Member) bool { return m.Node == c.Node && !m.Learner }) {
		return invalid("node %d has no voting replica of group %d; it has %s", c.Node, c.Group, membersText(g.Members))
	}
	if g.Preferred != c.Node {
		g.Preferred = c.Node
		d.putGroup(g)
	}
	d.addEvent("prefer-leader", subjectGroup(g.ID), fmt.Sprintf("an operator wants node %d to lead", c.Node))
	return nil
}

func (d *draft) commitOne(o Operation) error {
	if o.Body == nil {
		return errors.New("an operation without a body")
	}
	if id, waits := o.group(); waits {
		if err := d.checkPending(id); err != nil {
			return err
		}
	}
	o.At, o.Reason, o.Decision = d.Time, clip(o.Reason), d.decision
	switch body := o.Body.(type) {
	case CreateGroups:
		return d.createGroups(o, body)
	case SetNodeState:
		return d.setNodeState(o, body)
	case Birth:
		return d.commitBirth(o, body)
	case TransferLeader:
		return d.commitTransfer(o, body)
	case ChangeMembership:
		return d.commitChange(o, body)
	case StartMove:
		return d.commitMove(o, body)
	case DestroyGroup:
		return d.destroyGroup(o, body)
	case SetPreferred:
		return d.setPreferred(o, body)
	case Reassign:
		return d.reassign(o, body)
	case NoteEffect:
		return d.noteEffect(o, body)
	}
	return invalid("unknown operation %T", o.Body)
}

// checkPending refuses a second operation on a group, and more than the table
// holds.
func (d *draft) checkPending(id raft.GroupID) error {
	if o, pending := d.pendingFor(id); pending {
		return stale("operation %d on group %d is still pending", o.ID, id)
	}
	if len(d.Operations) >= operationsMax {
		return stale("%d operations are pending, which is the limit", len(d.Operations))
	}
	return nil
}
