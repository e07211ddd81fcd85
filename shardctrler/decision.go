package shardctrler

import (
	"bytes"
	"compress/flate"
	"fmt"
	"hash/fnv"
	"io"
	"reflect"
	"slices"

	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// DecisionID numbers decisions in the order in which they were taken.
type DecisionID uint64

// Decision is what was decided at once, with all that it was decided from: by the
// planner, or by an operator's order, which says what is wanted and leaves it to
// the controller how. It is never changed; what became of it is in the events and
// moves that name it.
type Decision struct {
	ID   DecisionID
	Time int64 // unix milliseconds

	// Of the planner: the operations as they were planned, and under which numbers
	// they were committed; 0: the state refused it.
	Planned []Operation
	Made    []OperationID
	// Of an order: the command, and a digest of the state that it led to.
	Order  []byte
	Digest uint64

	// Scene is what it was decided from; empty: it was too large to be kept.
	Scene []byte
}

// Bounds of what is kept of decisions.
const (
	decisionsMax     = 1_024
	decisionBytesMax = 8 << 20 // of all; the oldest are forgotten
	sceneMax         = 1 << 20
	sceneUnpackedMax = 64 << 20
)

// size is about what it takes.
func (d *Decision) size() int {
	size := len(d.Scene) + len(d.Order) + 64
	for _, o := range d.Planned {
		size += len(o.Reason) + 64
		switch b := o.Body.(type) {
		case CreateGroups:
			size += 8*len(b.Owners) + 64*len(b.Groups)
		case ChangeMembership:
			size += 32 * len(b.Members)
		case Reassign:
			size += 16 * len(b.Shards)
		}
	}
	return size
}

// scene is what a plan depends on.
type scene struct {
	state    *State
	observed Observed
}

// The first byte of a scene says how it is written.
const (
	scenePlain byte = iota
	scenePacked
)

// encodeScene writes what a decision depends on of a state and of what was
// observed: neither history nor what has ended.
func encodeScene(s *State, o Observed) []byte {
	e := &encoder{b: []byte{scenePlain, recordVersion}}
	e.meta(s)
	e.count(len(s.Nodes))
	for _, n := range s.Nodes {
		e.node(n)
	}
	e.count(len(s.Groups))
	for _, g := range s.Groups {
		e.group(g)
	}
	e.shards(s.Shards)
	e.bool(len(s.Configs) > 0)
	if len(s.Configs) > 0 {
		e.config(s.config())
	}
	e.count(len(s.Operations))
	for _, op := range s.Operations {
		e.operation(op)
	}
	active := slices.DeleteFunc(slices.Clone(s.Moves), func(m Move) bool { return !m.active() })
	e.count(len(active))
	for _, m := range active {
		e.move(m)
	}
	e.observed(o)
	return e.b
}

// packScene is encodeScene's, compressed; nil: it is too large to be kept.
func packScene(s *State, o Observed) []byte {
	plain := encodeScene(s, o)
	var packed bytes.Buffer
	packed.WriteByte(scenePacked)
	w, err := flate.NewWriter(&packed, flate.BestSpeed)
	if err != nil {
		return nil
	}
	if _, err = w.Write(plain[1:]); err == nil {
		err = w.Close()
	}
	if err != nil || packed.Len() > sceneMax {
		return nil
	}
	return packed.Bytes()
}

func decodeScene(b []byte) (scene, error) {
	if len(b) == 0 {
		return scene{}, fmt.Errorf("what it was decided from was too large to be kept")
	}
	d := &decoder{b: b[1:]}
	if b[0] == scenePacked {
		plain, err := io.ReadAll(io.LimitReader(flate.NewReader(bytes.NewReader(b[1:])), sceneUnpackedMax))
		if err != nil {
			return scene{}, fmt.Errorf("%w: %w", errMalformed, err)
		}
		d.b = plain
	}
	d.version(recordVersion)
	s := new(State)
	d.meta(s)
	for range d.count() {
		s.Nodes = append(s.Nodes, d.node())
	}
	for range d.count() {
		s.Groups = append(s.Groups, d.group())
	}
	s.Shards = d.shards()
	if d.bool() {
		s.Configs = []Config{d.config()}
	}
	for range d.count() {
		s.Operations = append(s.Operations, d.operation())
	}
	for range d.count() {
		s.Moves = append(s.Moves, d.move())
	}
	o := d.observed()
	if err := d.end(); err != nil {
		return scene{}, err
	}
	return scene{s, o}, s.check()
}

// needed leaves out of what was observed what the operations do not depend on:
// loads matter only where they are balanced.
func (o Observed) needed(planned []Operation) Observed {
	if slices.ContainsFunc(planned, func(op Operation) bool { return byLoad(op.Body) }) {
		return o
	}
	o.Quiet = 0
	o.Groups = slices.Clone(o.Groups)
	for i := range o.Groups {
		o.Groups[i].Measured, o.Groups[i].Over, o.Groups[i].Loads = 0, 0, nil
	}
	return o
}

func byLoad(b Body) bool {
	switch b.(type) {
	case Reassign, NoteEffect:
		return true
	}
	return false
}

// CommitPlan is the command that commits a plan, with what it was made from.
func CommitPlan(s *State, o Observed, planned []Operation) Commit {
	return Commit{Operations: planned, Applied: s.Applied, Scene: packScene(s, o.needed(planned))}
}

// Replay decides again from what was known then, and tells what differs; "": it
// is the same.
func (d *Decision) Replay() (differs string, err error) {
	then, err := decodeScene(d.Scene)
	if err != nil {
		return "", err
	}
	if d.Order != nil {
		return d.replayOrder(then)
	}
	planned := Plan(then.state, then.observed)
	for i := range max(len(planned), len(d.Planned)) {
		switch {
		case i >= len(planned):
			return fmt.Sprintf("operation %d of %d is not planned any more: %s: %s", i+1, len(d.Planned), d.Planned[i].Body.kind(), d.Planned[i].Reason), nil
		case i >= len(d.Planned):
			return fmt.Sprintf("one more is planned: %s: %s", planned[i].Body.kind(), planned[i].Reason), nil
		case !reflect.DeepEqual(planned[i].Body, d.Planned[i].Body) || clip(planned[i].Reason) != d.Planned[i].Reason:
			return fmt.Sprintf("operation %d of %d was %s (%s) and is %s (%s)", i+1, len(d.Planned),
				d.Planned[i].Body.kind(), d.Planned[i].Reason, planned[i].Body.kind(), planned[i].Reason), nil
		}
	}
	return "", nil
}

func (d *Decision) replayOrder(then scene) (differs string, err error) {
	c, err := DecodeCommand(d.Order)
	if err != nil {
		return "", err
	}
	after, answers, _ := apply(then.state, then.state.Applied+1, d.Time, []Command{c})
	if refused, is := answers[0].(error); is {
		return fmt.Sprintf("the order would be refused: %v", refused), nil
	}
	if digestOf(after) != d.Digest {
		return "the order would lead to another state", nil
	}
	return "", nil
}

// digestOf is a digest of what a state says, but for when and by which entries.
func digestOf(s *State) uint64 {
	plain := *s
	plain.Applied, plain.Revision, plain.Time, plain.LastEvent, plain.LastDecision = 0, 0, 0, 0, 0
	h := fnv.New64a()
	h.Write(encodeScene(&plain, Observed{}))
	return h.Sum64()
}

// order applies what an operator ordered, and keeps it as a decision.
func (d *draft) order(c Command, apply func() any) any {
	var before []byte
	if d.changed() { // by the entry's other commands: then the state before it is not what this one finds
		before = encodeScene(&d.State, Observed{})
	}
	last := d.LastEvent
	d.decision = d.LastDecision + 1
	answer := apply()
	decision := Decision{ID: d.decision, Time: d.Time, Order: EncodeCommand(c)}
	d.decision = 0
	if _, refused := answer.(error); refused || d.LastEvent == last {
		return answer // nothing was decided
	}
	d.beginMoves()
	decision.Digest = digestOf(&d.State)
	if before == nil {
		before = encodeScene(d.base, Observed{})
	}
	if len(before) <= sceneMax {
		decision.Scene = before
	}
	d.addDecision(decision)
	return answer
}

// commit makes operations of those that still fit, and keeps them as a decision,
// if it is said what they were planned from.
func (d *draft) commit(c Commit) Committed {
	refused := make([]error, len(c.Operations))
	if c.Applied != 0 {
		d.decision = d.LastDecision + 1
	}
	decision := Decision{ID: d.decision, Time: d.Time, Planned: clipped(c.Operations), Made: make([]OperationID, len(c.Operations)), Scene: c.Scene}
	took := false
	for i, o := range c.Operations {
		last := d.LastOperation
		if refused[i] = d.commitOne(o); refused[i] == nil {
			took = true
			if d.LastOperation > last {
				decision.Made[i] = d.LastOperation
			}
		}
	}
	d.decision = 0
	if c.Applied != 0 && took {
		d.addDecision(decision)
	}
	return Committed{Refused: refused}
}

// clipped are operations with their reasons as they are kept.
func clipped(operations []Operation) []Operation {
	kept := slices.Clone(operations)
	for i := range kept {
		kept[i].Reason = clip(kept[i].Reason)
	}
	return kept
}

// addDecision keeps a decision, and forgets the oldest past the limits.
func (d *draft) addDecision(decision Decision) {
	d.LastDecision = decision.ID
	d.touchMeta()
	d.Decisions = append(own(d, recordDecision, d.Decisions), decision)
	d.touched[recordKey{recordDecision, uint64(decision.ID)}] = true
	bytes := 0
	for i := range d.Decisions {
		bytes += d.Decisions[i].size()
	}
	for len(d.Decisions) > decisionsMax || bytes > decisionBytesMax && len(d.Decisions) > 1 {
		bytes -= d.Decisions[0].size()
		d.touched[recordKey{recordDecision, uint64(d.Decisions[0].ID)}] = true
		d.Decisions = d.Decisions[1:]
	}
}

// decisionOf finds a decision by its number.
func (s *State) decisionOf(id DecisionID) (Decision, bool) {
	i, ok := slices.BinarySearchFunc(s.Decisions, id, func(d Decision, id DecisionID) int { return compare(d.ID, id) })
	if !ok {
		return Decision{}, false
	}
	return s.Decisions[i], true
}

func (e *encoder) decision(d Decision) {
	e.uint(uint64(d.ID))
	e.int(d.Time)
	e.count(len(d.Planned))
	for i, o := range d.Planned {
		e.operation(o)
		e.uint(uint64(d.Made[i]))
	}
	e.text(string(d.Order))
	e.uint(d.Digest)
	e.text(string(d.Scene))
}

func (d *decoder) decision() Decision {
	v := Decision{ID: DecisionID(d.uint()), Time: d.int()}
	for range d.count() {
		v.Planned = append(v.Planned, d.operation())
		v.Made = append(v.Made, OperationID(d.uint()))
	}
	v.Order = d.bytes()
	v.Digest = d.uint()
	v.Scene = d.bytes()
	return v
}

// bytes is a text of its own memory; nil if it is empty.
func (d *decoder) bytes() []byte {
	if text := d.text(); text != "" {
		return []byte(text)
	}
	return nil
}

func (e *encoder) observed(o Observed) {
	e.count(len(o.Nodes))
	for _, n := range o.Nodes {
		e.uint(uint64(n.ID))
		e.bool(n.Alive)
		e.bool(n.Ready)
		e.int(int64(n.Silent))
	}
	e.count(len(o.Groups))
	for _, g := range o.Groups {
		e.observedGroup(g)
	}
	e.int(int64(o.Quiet))
}

func (d *decoder) observed() Observed {
	var o Observed
	for range d.count() {
		o.Nodes = append(o.Nodes, ObservedNode{ID: raft.NodeID(d.uint()), Alive: d.bool(), Ready: d.bool(), Silent: d.duration()})
	}
	for range d.count() {
		o.Groups = append(o.Groups, d.observedGroup())
	}
	o.Quiet = d.duration()
	return o
}

func (e *encoder) observedGroup(g ObservedGroup) {
	e.uint(uint64(g.ID))
	e.uint(uint64(g.Leader))
	e.uint(uint64(g.Term))
	e.uint(g.Epoch)
	e.bool(g.Joint)
	e.bool(g.Hold)
	e.count(len(g.Members))
	for _, m := range g.Members {
		e.members([]shardmap.Member{m.Member})
		e.int(m.Lag)
		e.bool(m.Stalled)
	}
	e.int(int64(g.Measured))
	e.int(int64(g.Over))
	e.count(len(g.Loads))
	for _, l := range g.Loads {
		e.uint(uint64(l.Shard))
		e.uint(l.Reads)
		e.uint(l.Writes)
		e.uint(l.Bytes)
	}
}

func (d *decoder) observedGroup() ObservedGroup {
	g := ObservedGroup{ID: raft.GroupID(d.uint()), Leader: raft.NodeID(d.uint()), Term: raft.Term(d.uint()), Epoch: d.uint(), Joint: d.bool(), Hold: d.bool()}
	for range d.count() {
		var m ObservedMember
		if one := d.members(); len(one) == 1 {
			m.Member = one[0]
		} else {
			d.fail("%d members where one is", len(one))
		}
		m.Lag, m.Stalled = d.int(), d.bool()
		g.Members = append(g.Members, m)
	}
	g.Measured, g.Over = d.duration(), d.duration()
	for range d.count() {
		g.Loads = append(g.Loads, ShardLoad{Shard: shardmap.ShardID(d.uint()), Reads: d.uint(), Writes: d.uint(), Bytes: d.uint()})
	}
	return g
}
