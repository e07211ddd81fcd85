package shardctrler

import (
	"fmt"
	"slices"
	"time"

	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// AddGroups makes groups (Join): an operator asks for them. It makes one config,
// which gives them their share of the shards. Answer: Added.
type AddGroups struct {
	Groups []NewGroup
	// Config is the number that the order was made for; another by now refuses
	// it, so that an order whose answer was lost is not carried out twice. 0: any.
	Config shardmap.ConfigNum
}

// Added answers AddGroups.
type Added struct {
	Groups []raft.GroupID
	Config shardmap.ConfigNum
}

// RemoveGroup removes a group (Leave): its shards go to the others, and then it
// ceases to be. It makes one config. Answer: Left.
type RemoveGroup struct{ Group raft.GroupID }

// Left answers RemoveGroup.
type Left struct{ Config shardmap.ConfigNum }

// DrainNode has a node emptied: its replicas go to others, it leads nothing and
// gets nothing new; or, with Back, it takes part again. Answer: nil.
type DrainNode struct {
	Node raft.NodeID
	Back bool
}

// RemoveNode takes a node out for good: one that is drained, or one that is
// lost, whose replicas are then made anew elsewhere. Answer: nil.
type RemoveNode struct{ Node raft.NodeID }

func (AddGroups) isCommand()   {}
func (RemoveGroup) isCommand() {}
func (DrainNode) isCommand()   {}
func (RemoveNode) isCommand()  {}

// DestroyGroup ends a group that is being removed and has no shards any more. It
// takes effect by being committed.
type DestroyGroup struct{ Group raft.GroupID }

// SetPreferred says which node should lead a group. It takes effect by being
// committed.
type SetPreferred struct {
	Group raft.GroupID
	Node  raft.NodeID
}

func (DestroyGroup) kind() string { return "destroy-group" }
func (SetPreferred) kind() string { return "prefer-leader" }

func (DestroyGroup) onGroup() (raft.GroupID, bool) { return 0, false }
func (SetPreferred) onGroup() (raft.GroupID, bool) { return 0, false }

// servingGroups are those that are to have shards, ascending.
func (s *State) servingGroups() []raft.GroupID {
	var groups []raft.GroupID
	for _, g := range s.replicaGroups() {
		if !g.Leaving {
			groups = append(groups, g.ID)
		}
	}
	return groups
}

// groupsAddedMax bounds what one AddGroups makes.
const groupsAddedMax = 256

func (d *draft) addGroups(c AddGroups) (Added, error) {
	if len(d.Configs) == 0 {
		return Added{}, stale("the first groups do not exist yet")
	}
	if now := d.config().Num; c.Config != 0 && c.Config != now {
		return Added{}, stale("the order was made for config %d and it is %d by now: it may have been carried out already, see `flotilla config show` and `flotilla group list`", c.Config, now)
	}
	if len(c.Groups) == 0 || len(c.Groups) > groupsAddedMax {
		return Added{}, invalid("%d groups: it must be 1 to %d at once", len(c.Groups), groupsAddedMax)
	}
	if serving := len(d.servingGroups()); serving+len(c.Groups) > len(d.Shards) || len(d.Groups)+len(c.Groups) > groupsMax {
		return Added{}, invalid("%d groups and %d more: there are only %d shards", serving, len(c.Groups), len(d.Shards))
	}
	for _, g := range c.Groups {
		if err := d.checkNewGroup(g); err != nil {
			return Added{}, err
		}
	}
	var added Added
	for _, g := range c.Groups {
		d.LastGroup++
		group := Group{ID: d.LastGroup, Epoch: 1, Preferred: g.Preferred, LastReplica: raft.ReplicaID(len(g.Nodes))}
		for i, node := range g.Nodes {
			group.Members = append(group.Members, shardmap.Member{Replica: raft.ReplicaID(i + 1), Node: node, First: true})
		}
		d.putGroup(group)
		added.Groups = append(added.Groups, group.ID)
	}
	reason := fmt.Sprintf("an operator adds %d groups", len(c.Groups))
	d.rebalance(reason)
	added.Config = d.config().Num
	for _, id := range added.Groups {
		g, _ := d.group(id)
		d.addEvent("add-group", subjectGroup(id), fmt.Sprintf("%s: replicas %s", reason, membersText(g.Members)))
	}
	return added, nil
}

func (d *draft) removeGroup(c RemoveGroup) (Left, error) {
	g, ok := d.group(c.Group)
	switch {
	case c.Group == raft.ConfigGroup:
		return Left{}, invalid("group %d is the config group: without it there is no cluster", c.Group)
	case !ok:
		return Left{}, invalid("there is no group %d; the groups are %s", c.Group, groupsText(d.replicaGroups()))
	case g.Leaving: // the same order again: its answer may have been lost
		return Left{Config: d.config().Num}, nil
	case len(d.servingGroups()) == 1:
		return Left{}, invalid("group %d is the last that has shards: add another first with `flotilla group add`", c.Group)
	}
	g.Leaving = true
	d.putGroup(g)
	reason := fmt.Sprintf("an operator removes group %d", c.Group)
	d.rebalance(reason)
	d.addEvent("remove-group", subjectGroup(c.Group), fmt.Sprintf("%s: its %d shards go to others", reason, len(d.shardsOf(c.Group))))
	return Left{Config: d.config().Num}, nil
}

// rebalance makes a config in which the serving groups have their shares, with
// the fewest moves from what is wished now. Pins on groups that leave end.
func (d *draft) rebalance(reason string) {
	config, groups := d.config(), d.servingGroups()
	pinned := slices.DeleteFunc(slices.Clone(config.Pinned), func(s shardmap.ShardID) bool {
		return !slices.Contains(groups, config.Owners[s])
	})
	d.addConfig(reason, balanceShards(config.Owners, pinned, groups), pinned)
}

// destroyGroup ends a group.
func (d *draft) destroyGroup(o Operation, b DestroyGroup) error {
	g, ok := d.group(b.Group)
	if !ok || !g.Leaving {
		return stale("group %d is not being removed", b.Group)
	}
	if n := len(d.shardsOf(b.Group)); n > 0 {
		return stale("group %d has %d shards", b.Group, n)
	}
	for _, m := range d.Moves {
		if m.active() && (m.From == b.Group || m.To == b.Group) {
			return stale("move %d is with group %d", m.ID, b.Group)
		}
	}
	if p, pending := d.pendingFor(b.Group); pending {
		d.end(p, false, "the group is removed")
	}
	d.deleteGroup(b.Group)
	d.addOperationEvent(d.take(o), b.kind(), subjectGroup(b.Group), o.Reason)
	return nil
}

func (d *draft) setPreferred(o Operation, b SetPreferred) error {
	g, ok := d.group(b.Group)
	if !ok || !slices.ContainsFunc(g.Members, func(m shardmap.Member) bool { return m.Node == b.Node && !m.Learner }) {
		return stale("node %d has no voting replica of group %d", b.Node, b.Group)
	}
	g.Preferred = b.Node
	d.putGroup(g)
	d.addOperationEvent(d.take(o), b.kind(), subjectGroup(b.Group), fmt.Sprintf("node %d: %s", b.Node, o.Reason))
	return nil
}

func (d *draft) drainNode(c DrainNode) error {
	n, ok := d.node(c.Node)
	switch {
	case !ok || n.State == shardmap.NodeRemoved:
		return invalid("there is no node %d", c.Node)
	case c.Back && !n.Drain:
		return invalid("node %d is not being drained: it is %v", c.Node, n.State)
	case !c.Back && n.Drain: // the same order again: its answer may have been lost
		return nil
	case !c.Back && n.State == shardmap.NodeDown:
		return stale("node %d is down: if it is gone for good, take it out with `flotilla node remove %s`", c.Node, n.Name)
	}
	if !c.Back {
		if err := d.canDoWithout(n); err != nil {
			return err
		}
	}
	what := "drained: its replicas go to other nodes"
	n.Drain = !c.Back
	if c.Back {
		what = "back: it takes part again"
	}
	if n.State != shardmap.NodeDown {
		n.State, n.Since = shardmap.NodeDraining, d.Time
		if c.Back {
			n.State = shardmap.NodeUp
		}
	}
	d.putNode(n)
	d.addEvent("drain-node", subjectNode(n.ID), "an operator wants it "+what)
	return nil
}

// canDoWithout refuses to lose a node if what is left could not hold the
// replicas that the policy wants.
func (d *draft) canDoWithout(n Node) error {
	left := uint64(0)
	for _, other := range d.Nodes {
		if other.ID != n.ID && other.State == shardmap.NodeUp {
			left++
		}
	}
	has := d.replicasAt(n.ID)
	if has > 0 && len(d.replicaGroups()) > 0 && left < d.Policy.Replicas {
		return stale("node %d has %d replicas, and without it %d nodes are up, too few for groups of %d: add a node first", n.ID, has, left, d.Policy.Replicas)
	}
	return nil
}

// replicasAt counts the replicas that a node has or is to have.
func (s *State) replicasAt(node raft.NodeID) (n int) {
	for _, g := range s.Groups {
		if slices.ContainsFunc(g.Members, func(m shardmap.Member) bool { return m.Node == node }) {
			n++
		}
	}
	return n
}

func (d *draft) removeNode(c RemoveNode) error {
	n, ok := d.node(c.Node)
	if !ok || n.State == shardmap.NodeRemoved {
		return invalid("there is no node %d, or it is removed already", c.Node)
	}
	has := d.replicasAt(n.ID)
	if has > 0 && n.State != shardmap.NodeDown {
		return stale("node %d is %v and has %d replicas: drain it first with `flotilla node drain %s`, and remove it when it has none", n.ID, n.State, has, n.Name)
	}
	if has > 0 {
		if err := d.quorumsWithout(n); err != nil {
			return err
		}
	}
	n.State, n.Since = shardmap.NodeRemoved, d.Time
	d.putNode(n)
	d.addEvent("remove-node", subjectNode(n.ID), fmt.Sprintf("an operator removes %q; its %d replicas are made anew elsewhere", n.Name, has))
	return nil
}

// quorumsWithout refuses to give up a node that some group cannot do without: the
// voters elsewhere that are up are no majority.
func (d *draft) quorumsWithout(n Node) error {
	for _, g := range d.Groups {
		voters, up, concerned := 0, 0, false
		for _, m := range g.Members {
			if m.Learner {
				continue
			}
			voters++
			if m.Node == n.ID {
				concerned = true
				continue
			}
			if at, ok := d.node(m.Node); ok && (at.State == shardmap.NodeUp || at.State == shardmap.NodeDraining) {
				up++
			}
		}
		if concerned && up <= voters/2 && !(g.Leaving && len(d.shardsOf(g.ID)) == 0) {
			return stale("group %d has %d of %d voters up without node %d, no majority: bring the node back, or another", g.ID, up, voters, n.ID)
		}
	}
	return nil
}

// replaceAfter is for how long a node must have been silent before its replicas
// are made anew elsewhere, unless the policy says otherwise.
const replaceAfter = 5 * time.Minute

// replaceAfter is the policy's time, or the usual one.
func (p Policy) replaceAfter() time.Duration {
	if p.ReplaceAfter == 0 {
		return replaceAfter
	}
	return time.Duration(p.ReplaceAfter) * time.Millisecond
}
