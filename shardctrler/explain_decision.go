package shardctrler

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// Bounds of the explanation of a decision.
const (
	explainedOperations = 64
	explainedParts      = 4 // whose candidates are shown
)

// ExplainDecision says what was decided, from what, what speaks for and against
// it, what has come of it, and whether it would be decided again.
func ExplainDecision(s *State, id DecisionID) (*Explanation, error) {
	d, known := s.decisionOf(id)
	switch {
	case !known && id != 0 && id <= s.LastDecision:
		return nil, invalid("decision %d is forgotten: the last that are kept are %s", id, keptText(s))
	case !known:
		return nil, invalid("there is no decision %d; there are %s", id, keptText(s))
	}
	x := &Explanation{Subject: fmt.Sprintf("decision %d", id)}
	if d.Order != nil {
		x.fact("an operator ordered it at %s: %s", timeText(d.Time), orderText(d.Order))
	} else {
		x.fact("the planner took it at %s: %d operations", timeText(d.Time), len(d.Planned))
	}
	then, err := decodeScene(d.Scene)
	if err == nil {
		x.inputs(then)
	}
	for i, o := range d.Planned {
		if i == explainedOperations {
			x.fact("and %d operations more", len(d.Planned)-i)
			break
		}
		x.fact("%s", outcomeText(s, o, d.Made[i]))
	}
	x.moved(s, id)
	switch differs, err := d.Replay(); {
	case err != nil:
		x.fact("it cannot be decided again: %v", err)
	case differs != "":
		x.fact("decided again from the same, it would be another: %s", differs)
	default:
		x.fact("decided again from the same, it is the same")
	}
	if err == nil {
		x.parts(then, &d)
	}
	for _, e := range s.Events {
		if e.Decision == id {
			x.Events = append(x.Events, e)
		}
	}
	x.Events = x.Events[max(0, len(x.Events)-explainedEvents):]
	return x, nil
}

func keptText(s *State) string {
	if len(s.Decisions) == 0 {
		return "none"
	}
	return fmt.Sprintf("%d to %d", s.Decisions[0].ID, s.LastDecision)
}

// orderText is an order as an operator would give it.
func orderText(order []byte) string {
	c, err := DecodeCommand(order)
	if err != nil {
		return err.Error()
	}
	switch c := c.(type) {
	case OrderMove:
		return fmt.Sprintf("shard move %d %d", c.Shard, c.To)
	case CancelMove:
		return fmt.Sprintf("move cancel %d", c.Move)
	case AddGroups:
		return fmt.Sprintf("group add %d", len(c.Groups))
	case RemoveGroup:
		return fmt.Sprintf("group remove %d", c.Group)
	case DrainNode:
		if c.Back {
			return fmt.Sprintf("node drain %d --back", c.Node)
		}
		return fmt.Sprintf("node drain %d", c.Node)
	case Prefer:
		return fmt.Sprintf("group transfer-leader %d %d", c.Group, c.Node)
	case RemoveNode:
		return fmt.Sprintf("node remove %d", c.Node)
	case RecoverGroup:
		return fmt.Sprintf("group recover %d --from %d", c.Group, c.Node)
	}
	return fmt.Sprintf("%T", c)
}

// inputs says what it was decided from.
func (x *Explanation) inputs(then scene) {
	var nodes []string
	for _, n := range then.state.Nodes {
		if n.State == shardmap.NodeRemoved {
			continue
		}
		text := fmt.Sprintf("%d %v", n.ID, n.State)
		if heard := (&planner{observed: then.observed}).heard(n.ID); heard.Silent > 0 {
			text += fmt.Sprintf(" (silent for %v)", heard.Silent.Round(time.Second))
		}
		nodes = append(nodes, text)
	}
	groups := fmt.Sprintf("%d groups", len(then.state.Groups))
	if len(then.observed.Nodes) > 0 {
		groups += fmt.Sprintf(", %d of them heard of", len(then.observed.Groups))
	}
	x.fact("from: nodes %s; %s; config %d; %d moves and %d operations under way", strings.Join(nodes, ", "), groups,
		then.state.config().Num, len(then.state.movingShards()), len(then.state.Operations))
	if then.observed.Quiet == 0 {
		return
	}
	var loads []string
	for _, g := range then.observed.Groups {
		if g.Measured > 0 {
			loads = append(loads, fmt.Sprintf("group %d %d", g.ID, loadAt(then.state, g)))
		}
	}
	x.fact("from loads, in requests a second: %s", strings.Join(loads, ", "))
}

// outcomeText says what became of an operation.
func outcomeText(s *State, o Operation, id OperationID) string {
	what := o.Body.kind()
	if g, on := o.Body.onGroup(); on {
		what += " of " + subjectGroup(g)
	}
	switch b := o.Body.(type) {
	case StartMove:
		what = fmt.Sprintf("move of shard %d from group %d to group %d", b.Shard, b.From, b.To)
	case SetNodeState:
		what = fmt.Sprintf("node %d is %v", b.Node, b.State)
	case SetPreferred:
		what = fmt.Sprintf("node %d should lead group %d", b.Node, b.Group)
	case DestroyGroup:
		what = fmt.Sprintf("the end of group %d", b.Group)
	}
	if id == 0 {
		return fmt.Sprintf("%s: %s: refused, as the state no longer was so", what, o.Reason)
	}
	return fmt.Sprintf("operation %d: %s: %s: %s", id, what, o.Reason, endText(s, o, id))
}

// endText says how an operation ended.
func endText(s *State, o Operation, id OperationID) string {
	if m, is := s.move(id); is {
		return moveText(m)
	}
	if _, pending := s.operation(id); pending {
		return "under way"
	}
	i := slices.IndexFunc(s.Events, func(e Event) bool {
		return e.Operation == id && (e.Kind == o.Body.kind()+"-done" || e.Kind == o.Body.kind()+"-refused")
	})
	_, isMove := o.Body.(StartMove)
	if _, waits := o.Body.onGroup(); !waits && !isMove {
		return "in effect at once"
	} else if i < 0 {
		return "over, and how is forgotten"
	}
	word := "done"
	if strings.HasSuffix(s.Events[i].Kind, "-refused") {
		word = "not done"
	}
	return fmt.Sprintf("%s at %s (%s)", word, timeText(s.Events[i].Time), strings.TrimPrefix(s.Events[i].Reason, fmt.Sprintf("operation %d: ", id)))
}

func moveText(m Move) string {
	switch {
	case m.State == MoveDone && m.Pause == 0:
		return fmt.Sprintf("done in %v", time.Duration(m.Ended-m.Started)*time.Millisecond)
	case m.State == MoveDone:
		return fmt.Sprintf("done in %v, with a pause of %v", time.Duration(m.Ended-m.Started)*time.Millisecond, time.Duration(m.Pause)*time.Microsecond)
	case m.active():
		return fmt.Sprintf("under way (%v)", m.State)
	}
	return m.State.String()
}

// moved says what the moves brought that an order began.
func (x *Explanation) moved(s *State, id DecisionID) {
	d, _ := s.decisionOf(id)
	for _, m := range s.Moves {
		if m.Decision == id && d.Order != nil {
			x.fact("move %d of shard %d from group %d to group %d: %s", m.ID, m.Shard, m.From, m.To, moveText(m))
		}
	}
}

// parts explain, as of then, where the first of what was decided about could be.
func (x *Explanation) parts(then scene, d *Decision) {
	add := func(part *Explanation, err error) {
		same := func(p *Explanation) bool { return p.Subject == part.Subject }
		if err == nil && len(x.Parts) < explainedParts && !slices.ContainsFunc(x.Parts, same) {
			part.Events = nil
			x.Parts = append(x.Parts, part)
		}
	}
	for _, o := range d.Planned {
		switch b := o.Body.(type) {
		case StartMove:
			add(ExplainShard(then.state, then.observed, b.Shard))
		case Reassign:
			for _, moved := range b.Shards[:min(len(b.Shards), explainedParts)] {
				add(ExplainShard(then.state, then.observed, moved.Shard))
			}
		case ChangeMembership, TransferLeader, SetPreferred:
			g := groupOf(b)
			add(ExplainGroup(then.state, then.observed, g))
		}
	}
	switch order, _ := DecodeCommand(d.Order); order := order.(type) {
	case OrderMove:
		add(ExplainShard(then.state, then.observed, order.Shard))
	case AddGroups:
		add(placesOf(then.state, order), nil)
	}
}

// placesOf says where groups that an operator adds are put, and why not elsewhere.
func placesOf(then *State, order AddGroups) *Explanation {
	x := &Explanation{Subject: "the nodes of the new groups"}
	x.fact("groups go to the nodes that carry the least, each to as many zones as there are")
	has := make(map[raft.NodeID]int)
	for _, g := range order.Groups {
		x.fact("a group is put on nodes %v", g.Nodes)
		for _, id := range g.Nodes {
			has[id]++
		}
	}
	for _, n := range then.Nodes {
		c := Candidate{ID: uint64(n.ID), Name: n.Name, Chosen: has[n.ID] > 0}
		carries := fmt.Sprintf("it had %d replicas, in zone %q", then.replicasAt(n.ID), n.Zone)
		switch {
		case n.State == shardmap.NodeRemoved:
			continue
		case c.Chosen:
			c.For = append(c.For, fmt.Sprintf("%s, and gets %d", carries, has[n.ID]))
		case n.State != shardmap.NodeUp:
			c.Against = append(c.Against, fmt.Sprintf("it was %v", n.State))
		default:
			c.Against = append(c.Against, carries)
		}
		x.Candidates = append(x.Candidates, c)
	}
	return x
}

// groupOf is the group that an operation is about.
func groupOf(b Body) raft.GroupID {
	if p, is := b.(SetPreferred); is {
		return p.Group
	}
	id, _ := b.onGroup()
	return id
}
