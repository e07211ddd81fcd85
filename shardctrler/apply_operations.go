package shardctrler

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// createGroups makes the groups of init and config 1.
func (d *draft) createGroups(o Operation, c CreateGroups) error {
	if err := d.checkCreate(c); err != nil {
		return err
	}
	first := d.LastGroup + 1
	for _, g := range c.Groups {
		d.LastGroup++
		group := Group{ID: d.LastGroup, Epoch: 1, Preferred: g.Preferred, LastReplica: raft.ReplicaID(len(g.Nodes)), Initial: true}
		for i, node := range g.Nodes {
			group.Members = append(group.Members, shardmap.Member{Replica: raft.ReplicaID(i + 1), Node: node, First: true})
		}
		d.putGroup(group)
	}
	owners := make([]raft.GroupID, len(c.Owners))
	for shard, place := range c.Owners {
		owners[shard] = first + raft.GroupID(place)
		d.setOwner(shardmap.ShardID(shard), shardmap.Assignment{Group: owners[shard], Generation: 1})
	}
	d.addConfig(o.Reason, owners, nil)
	d.addOperationEvent(d.take(o), c.kind(), "cluster", o.Reason)
	return nil
}

func (d *draft) checkCreate(c CreateGroups) error {
	if len(d.replicaGroups()) > 0 || len(d.Configs) > 0 {
		return stale("the first groups exist already")
	}
	if uint64(len(c.Groups)) != d.Policy.Groups || len(c.Owners) != len(d.Shards) || len(c.Groups) >= groupsMax {
		return invalid("%d groups for %d shards: the policy is %d for %d", len(c.Groups), len(c.Owners), d.Policy.Groups, len(d.Shards))
	}
	for _, g := range c.Groups {
		if err := d.checkNewGroup(g); err != nil {
			return err
		}
	}
	for shard, place := range c.Owners {
		if place >= uint64(len(c.Groups)) {
			return invalid("shard %d is given to group %d of %d", shard, place, len(c.Groups))
		}
	}
	return nil
}

func (d *draft) checkNewGroup(g NewGroup) error {
	if uint64(len(g.Nodes)) != d.Policy.Replicas {
		return invalid("a group of %d replicas: the policy is %d", len(g.Nodes), d.Policy.Replicas)
	}
	if g.Preferred != 0 && !slices.Contains(g.Nodes, g.Preferred) {
		return invalid("node %d cannot lead a group of nodes %v", g.Preferred, g.Nodes)
	}
	for i, id := range g.Nodes {
		n, ok := d.node(id)
		if !ok || n.State != shardmap.NodeUp {
			return stale("node %d is not up any more", id)
		}
		if slices.Contains(g.Nodes[:i], id) {
			return invalid("node %d twice in one group", id)
		}
	}
	return nil
}

// setNodeState records up and down. That a node is drained, or removed, is a
// decision that a mere observation does not touch.
func (d *draft) setNodeState(o Operation, c SetNodeState) error {
	n, ok := d.node(c.Node)
	goesDown := ok && c.State == shardmap.NodeDown && (n.State == shardmap.NodeUp || n.State == shardmap.NodeDraining)
	comesUp := ok && c.State == shardmap.NodeUp && n.State == shardmap.NodeDown
	if !goesDown && !comesUp {
		return stale("node %d cannot become %v: it is %v", c.Node, c.State, n.State)
	}
	n.State, n.Since = c.State, d.Time
	if comesUp && n.Drain {
		n.State = shardmap.NodeDraining
	}
	d.putNode(n)
	d.addOperationEvent(d.take(o), c.kind(), subjectNode(n.ID), fmt.Sprintf("%v: %s", c.State, o.Reason))
	return nil
}

func (d *draft) commitBirth(o Operation, b Birth) error {
	g, ok := d.group(b.Group)
	if !ok || g.Born {
		return stale("group %d is not waiting to be born", b.Group)
	}
	d.pend(o)
	return nil
}

func (d *draft) commitTransfer(o Operation, t TransferLeader) error {
	g, ok := d.group(t.Group)
	if !ok || g.Epoch != t.Epoch {
		return stale("group %d is not at epoch %d any more", t.Group, t.Epoch)
	}
	if !slices.ContainsFunc(g.Members, func(m shardmap.Member) bool { return m.Node == t.To && !m.Learner }) {
		return stale("node %d has no voting replica of group %d", t.To, t.Group)
	}
	d.pend(o)
	return nil
}

// commitChange numbers the new replicas and assigns them to their nodes: from
// then on the map names them, as learners, and the nodes start them.
func (d *draft) commitChange(o Operation, c ChangeMembership) error {
	g, ok := d.group(c.Group)
	if !ok || g.Epoch != c.Epoch {
		return stale("group %d is not at epoch %d any more", c.Group, c.Epoch)
	}
	if err := d.checkMembers(g, c.Members); err != nil {
		return err
	}
	assigned := slices.Clone(g.Members)
	c.Added = 0
	members := slices.Clone(c.Members)
	for i := range members {
		if members[i].Replica != 0 {
			continue
		}
		g.LastReplica++
		members[i].Replica = g.LastReplica
		assigned = append(assigned, members[i])
		c.Added++
	}
	g.Members = sortedMembers(assigned)
	d.putGroup(g)
	c.Members = sortedMembers(members)
	o.Body = c
	d.pend(o)
	return nil
}

// unassign takes back the replicas that a change would have added: nodes need
// not run them. If the change goes through after all it is observed, and they
// are members that are gone.
func (d *draft) unassign(c ChangeMembership) {
	g, ok := d.group(c.Group)
	if !ok || c.Added == 0 || g.Epoch != c.Epoch || c.Added > len(c.Members) {
		return
	}
	added := c.Members[len(c.Members)-c.Added:]
	g.Members = slices.DeleteFunc(slices.Clone(g.Members), func(m shardmap.Member) bool {
		return slices.ContainsFunc(added, func(a shardmap.Member) bool { return a.Replica == m.Replica })
	})
	d.putGroup(g)
}

// checkMembers refuses a membership that names unknown replicas or nodes, a
// node twice, a new replica that is to vote before it has the log, or none
// that votes.
func (d *draft) checkMembers(g Group, members []shardmap.Member) error {
	if len(members) > replicasMax {
		return invalid("%d members of group %d: at most %d", len(members), g.ID, replicasMax)
	}
	voters := 0
	for i, m := range members {
		if n, ok := d.node(m.Node); !ok || m.Replica == 0 && n.State != shardmap.NodeUp {
			return stale("node %d takes no replicas: it is %v", m.Node, n.State)
		}
		if slices.ContainsFunc(members[:i], func(o shardmap.Member) bool { return o.Node == m.Node }) {
			return invalid("node %d twice in group %d", m.Node, g.ID)
		}
		if m.Replica == 0 && !m.Learner {
			return invalid("the new replica at node %d must learn before it votes", m.Node)
		}
		has := func(o shardmap.Member) bool { return o.Replica == m.Replica && o.Node == m.Node }
		if m.Replica != 0 && !slices.ContainsFunc(g.Members, has) {
			return stale("group %d has no replica %d at node %d", g.ID, m.Replica, m.Node)
		}
		if m.Replica == 0 && slices.ContainsFunc(g.Members, func(o shardmap.Member) bool { return o.Node == m.Node }) {
			return stale("node %d has a replica of group %d", m.Node, g.ID)
		}
		if !m.Learner {
			voters++
		}
	}
	if voters == 0 {
		return invalid("a membership of group %d without voters", g.ID)
	}
	return nil
}

// pend numbers an operation and leaves it for the reconciler to send.
func (d *draft) pend(o Operation) {
	o = d.take(o)
	d.addOperation(o)
	id, _ := o.group()
	d.addOperationEvent(o, o.Body.kind(), subjectGroup(id), o.Reason)
}

// sortedMembers is members ascending by replica.
func sortedMembers(members []shardmap.Member) []shardmap.Member {
	sorted := slices.Clone(members)
	slices.SortFunc(sorted, func(a, b shardmap.Member) int { return cmp.Compare(a.Replica, b.Replica) })
	return sorted
}

// sameMembers compares who is in and who votes; both are ascending.
func sameMembers(a, b []shardmap.Member) bool {
	return slices.EqualFunc(a, b, func(a, b shardmap.Member) bool {
		return a.Replica == b.Replica && a.Node == b.Node && a.Learner == b.Learner
	})
}

func subjectNode(id raft.NodeID) string   { return fmt.Sprintf("node %d", id) }
func subjectGroup(id raft.GroupID) string { return fmt.Sprintf("group %d", id) }

// membersText shows members as replica@node, learners marked.
func membersText(members []shardmap.Member) string {
	var b strings.Builder
	for i, m := range members {
		if i > 0 {
			b.WriteByte(' ')
		}
		fmt.Fprintf(&b, "%d@%d", m.Replica, m.Node)
		if m.Learner {
			b.WriteString("(learner)")
		}
		if m.Gone {
			b.WriteString("(gone)")
		}
	}
	return b.String()
}
