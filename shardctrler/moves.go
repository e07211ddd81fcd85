package shardctrler

import (
	"fmt"
	"slices"

	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// Move is a move of a shard from one group to another. It is numbered like an
// operation, and the shard's groups refuse what bears a lower number than they
// have seen. The target's leader carries it out, whoever that is; the config
// group decides that it is to be, and records what came of it.
type Move struct {
	ID    OperationID
	Shard shardmap.ShardID
	From  raft.GroupID
	To    raft.GroupID
	// Generation of the shard at its source. The target serves it at the next;
	// if the target refuses it, the source serves it again at the one after.
	Generation shardmap.Generation
	State      MoveState
	Reason     string
	Decision   DecisionID
	Started    int64 // unix milliseconds; likewise below
	Ended      int64 // 0: it has not
	// Begun: it has had its turn. Until then nobody but the config group knows of it.
	Begun bool
	// Cancel: an operator wishes that it ends before the hand-off.
	Cancel bool
	// Pause is how long nobody served the shard, microseconds; 0: not known.
	Pause int64
	Bytes int64 // of the copy; -1: not known
}

// MoveState is how far a move has come, as the config group has recorded it.
type MoveState byte

// The states of a move.
const (
	MoveOrdered   MoveState = iota // the source serves the shard
	MoveServed                     // the target does; the copies are being compared
	MoveDone                       // they are equal, and the source's is deleted
	MoveCancelled                  // before the hand-off
	MoveFailed                     // the target has refused its copy; the source serves again
)

var moveStateNames = [...]string{"ordered", "served", "done", "cancelled", "failed"}

func (s MoveState) String() string {
	if int(s) < len(moveStateNames) {
		return moveStateNames[s]
	}
	return "unknown"
}

// active tells whether the move is under way, so that the shard has no other.
func (m *Move) active() bool { return m.State == MoveOrdered || m.State == MoveServed }

// Bounds of moves.
const (
	movesKept   = 1_000 // that have ended; the oldest is forgotten
	movesMax    = 256   // planned and not ended; the planner goes on when some are done
	ordersMax   = 4_096 // moves not ended; an order past it is refused
	moveAtGroup = 2     // that are under way at once from a group, and likewise into it
	movesUnder  = 32    // that are under way at once in all
)

// OrderMove has a shard moved to a group, and pins it there: an operator asks
// for it. It makes one config. Answer: Ordered.
type OrderMove struct {
	Shard shardmap.ShardID
	To    raft.GroupID
}

// Ordered answers OrderMove.
type Ordered struct {
	Move   OperationID
	Config shardmap.ConfigNum
}

// CancelMove wishes a move ended before its hand-off, and the shard to stay. It
// makes one config. Answer: nil; whether it was in time shows in the move.
type CancelMove struct{ Move OperationID }

// ReportMove records how far a move has come, as the leader of its target has
// it. What is recorded already does nothing. Answer: nil.
type ReportMove struct {
	Move  OperationID
	State MoveState
	Pause int64
	Bytes int64
}

func (OrderMove) isCommand()  {}
func (CancelMove) isCommand() {}
func (ReportMove) isCommand() {}

// StartMove is the planner's: a shard is not where the config wants it. It takes
// effect by being committed, which makes a Move of it.
type StartMove struct {
	Shard      shardmap.ShardID
	From       raft.GroupID
	To         raft.GroupID
	Generation shardmap.Generation
}

func (StartMove) kind() string                  { return "move" }
func (StartMove) onGroup() (raft.GroupID, bool) { return 0, false }

// move finds a move by its number.
func (s *State) move(id OperationID) (Move, bool) {
	i, ok := slices.BinarySearchFunc(s.Moves, id, func(m Move, id OperationID) int { return compare(m.ID, id) })
	if !ok {
		return Move{}, false
	}
	return s.Moves[i], true
}

// movingShards are the moves under way by their shards.
func (s *State) movingShards() map[shardmap.ShardID]Move {
	moving := make(map[shardmap.ShardID]Move)
	for _, m := range s.Moves {
		if m.active() {
			moving[m.Shard] = m
		}
	}
	return moving
}

// toBeMoved counts the shards that are not where the config wants them and have
// no move yet.
func (s *State) toBeMoved() (n int) {
	if len(s.Configs) == 0 {
		return 0
	}
	moving := s.movingShards()
	for i, at := range s.Shards {
		if _, is := moving[shardmap.ShardID(i)]; !is && at.Group != s.config().Owners[i] {
			n++
		}
	}
	return n
}

// underWay are the moves that are worked at, the oldest first.
func (s *State) underWay() []Move {
	var under []Move
	for _, m := range s.Moves {
		if m.active() && m.Begun {
			under = append(under, m)
		}
	}
	return under
}

// beginMoves has the oldest moves begin, as many as each group and the cluster
// may have at once.
func (d *draft) beginMoves() {
	under := d.underWay()
	from, into := make(map[raft.GroupID]int), make(map[raft.GroupID]int)
	for _, m := range under {
		from[m.From]++
		into[m.To]++
	}
	left := movesUnder - len(under)
	for _, m := range d.Moves {
		if left <= 0 {
			return
		}
		if !m.active() || m.Begun || from[m.From] >= moveAtGroup || into[m.To] >= moveAtGroup {
			continue
		}
		from[m.From]++
		into[m.To]++
		left--
		m.Begun = true
		d.putMove(m)
	}
}

func (d *draft) putMove(m Move) {
	d.Moves = own(d, recordMove, d.Moves)
	d.Moves = put(d.Moves, m, func(a, b Move) int { return compare(a.ID, b.ID) })
	d.touched[recordKey{recordMove, uint64(m.ID)}] = true
}

// forgetMoves drops the oldest of those that have ended, past the limit.
func (d *draft) forgetMoves() {
	ended := 0
	for i := range d.Moves {
		if !d.Moves[i].active() {
			ended++
		}
	}
	for ; ended > movesKept; ended-- {
		i := slices.IndexFunc(d.Moves, func(m Move) bool { return !m.active() })
		d.touched[recordKey{recordMove, uint64(d.Moves[i].ID)}] = true
		d.Moves = slices.Delete(own(d, recordMove, d.Moves), i, i+1)
	}
}

func (d *draft) orderMove(c OrderMove) (Ordered, error) {
	if m, moving := d.movingShards()[c.Shard]; moving && m.To == c.To && !m.Cancel && d.config().Owners[c.Shard] == c.To {
		if _, pinned := slices.BinarySearch(d.config().Pinned, c.Shard); pinned {
			return Ordered{Move: m.ID, Config: d.config().Num}, nil // the same order again: its answer may have been lost
		}
	}
	if err := d.checkOrder(c); err != nil {
		return Ordered{}, err
	}
	reason := fmt.Sprintf("an operator wants shard %d at group %d", c.Shard, c.To)
	config := d.config()
	owners := slices.Clone(config.Owners)
	owners[c.Shard] = c.To
	d.addConfig(reason, owners, withPin(config.Pinned, c.Shard))
	ordered := Ordered{Config: d.config().Num}
	if at := d.Shards[c.Shard]; at.Group != c.To {
		ordered.Move = d.startMove(StartMove{Shard: c.Shard, From: at.Group, To: c.To, Generation: at.Generation}, reason)
	} else {
		d.addEvent("move", subjectShard(c.Shard), reason+": it is there, and stays")
	}
	return ordered, nil
}

// checkOrder refuses what cannot be ordered, and names what can.
func (d *draft) checkOrder(c OrderMove) error {
	if len(d.Configs) == 0 {
		return stale("there are no groups yet")
	}
	if uint64(c.Shard) >= uint64(len(d.Shards)) {
		return invalid("there is no shard %d: the shards are 0 to %d", c.Shard, len(d.Shards)-1)
	}
	if err := d.checkTarget(c.To); err != nil {
		return err
	}
	if m, moving := d.movingShards()[c.Shard]; moving {
		if m.State == MoveServed {
			return stale("shard %d came to group %d by move %d and is not verified yet: wait for it with `flotilla move wait %d`", c.Shard, m.To, m.ID, m.ID)
		}
		return stale("shard %d is moving from group %d to group %d: wait for it with `flotilla move wait %d`, or end it with `flotilla move cancel %d`",
			c.Shard, m.From, m.To, m.ID, m.ID)
	}
	if d.Shards[c.Shard].Group == c.To && d.config().Owners[c.Shard] == c.To {
		return invalid("shard %d is at group %d already", c.Shard, c.To)
	}
	active := 0
	for i := range d.Moves {
		if d.Moves[i].active() {
			active++
		}
	}
	if active >= ordersMax {
		return stale("%d moves are under way, which is the limit: wait for some with `flotilla move wait`", active)
	}
	return nil
}

// checkTarget refuses a group that can take no shards.
func (d *draft) checkTarget(id raft.GroupID) error {
	if id == raft.ConfigGroup {
		return invalid("group %d is the config group: it has no shards", id)
	}
	g, ok := d.group(id)
	switch {
	case !ok:
		return invalid("there is no group %d; the groups are %s", id, groupsText(d.replicaGroups()))
	case g.Leaving:
		return stale("group %d is being removed", id)
	case !g.Born:
		return stale("group %d is being made: try again when it has a leader", id)
	}
	return nil
}

// startMove numbers a move.
func (d *draft) startMove(s StartMove, reason string) OperationID {
	m := Move{ID: d.nextOperation(), Shard: s.Shard, From: s.From, To: s.To, Generation: s.Generation,
		Reason: clip(reason), Decision: d.decision, Started: d.Time, Bytes: -1}
	d.putMove(m)
	d.addMoveEvent(m, "move", reason)
	return m.ID
}

func (d *draft) addMoveEvent(m Move, kind, text string) {
	d.appendEvent(Event{Kind: kind, Subject: subjectShard(m.Shard), Operation: m.ID, Decision: m.Decision,
		Reason: fmt.Sprintf("move %d from group %d to group %d: %s", m.ID, m.From, m.To, text)})
}

// commitMove makes a move of what was planned.
func (d *draft) commitMove(o Operation, s StartMove) error {
	if uint64(s.Shard) >= uint64(len(d.Shards)) || len(d.Configs) == 0 {
		return stale("there is no shard %d", s.Shard)
	}
	if at := d.Shards[s.Shard]; at.Group != s.From || at.Generation != s.Generation || d.config().Owners[s.Shard] != s.To || s.From == s.To {
		return stale("shard %d is at group %d in generation %d", s.Shard, at.Group, at.Generation)
	}
	if g, ok := d.group(s.To); !ok || !g.Born {
		return stale("group %d takes no shards", s.To)
	}
	if m, moving := d.movingShards()[s.Shard]; moving {
		return stale("shard %d is in move %d", s.Shard, m.ID)
	}
	d.startMove(s, o.Reason)
	return nil
}

func (d *draft) cancelMove(c CancelMove) error {
	m, ok := d.move(c.Move)
	switch {
	case !ok:
		return invalid("there is no move %d, or it is forgotten", c.Move)
	case m.State == MoveServed:
		return stale("move %d has handed shard %d over to group %d: move it back with `flotilla shard move %d %d` when it is verified", m.ID, m.Shard, m.To, m.Shard, m.From)
	case m.State == MoveCancelled || m.Cancel:
		return nil
	case !m.active():
		return stale("move %d has ended: %v", m.ID, m.State)
	}
	if g, ok := d.group(m.From); !ok || g.Leaving {
		return stale("group %d is being removed: shard %d cannot stay there", m.From, m.Shard)
	}
	m.Cancel = true
	if !m.Begun {
		m.State, m.Ended = MoveCancelled, d.Time // nobody else knows of it
	}
	d.putMove(m)
	reason := fmt.Sprintf("an operator wants move %d cancelled: shard %d stays at group %d", m.ID, m.Shard, m.From)
	config := d.config()
	owners := slices.Clone(config.Owners)
	owners[m.Shard] = m.From
	d.addConfig(reason, owners, config.Pinned)
	d.addEvent("cancel-move", subjectShard(m.Shard), reason)
	return nil
}

// reportMove follows a move.
func (d *draft) reportMove(c ReportMove) error {
	m, ok := d.move(c.Move)
	if !ok || !m.active() || c.State == MoveOrdered || c.State == m.State {
		return nil
	}
	if m.State == MoveServed && c.State != MoveDone {
		return invalid("move %d cannot be %v: it is %v", m.ID, c.State, m.State)
	}
	if c.Pause > 0 {
		m.Pause = c.Pause
	}
	if c.Bytes >= 0 {
		m.Bytes = c.Bytes
	}
	if m.State == MoveOrdered && (c.State == MoveServed || c.State == MoveDone) {
		d.handedOver(m)
	}
	if c.State == MoveFailed {
		d.setOwner(m.Shard, shardmap.Assignment{Group: m.From, Generation: m.Generation + 2})
		d.keepAt(m, m.From, fmt.Sprintf("group %d has refused its copy of shard %d three times: it stays at group %d", m.To, m.Shard, m.From))
	}
	m.State = c.State
	if !m.active() {
		m.Ended = d.Time
	}
	d.putMove(m)
	d.addMoveEvent(m, "move-"+m.State.String(), fmt.Sprintf("pause %d us, %d bytes", m.Pause, m.Bytes))
	d.forgetMoves()
	return nil
}

// handedOver records the new owner.
func (d *draft) handedOver(m Move) {
	d.setOwner(m.Shard, shardmap.Assignment{Group: m.To, Generation: m.Generation + 1})
	if m.Cancel {
		d.keepAt(m, m.To, fmt.Sprintf("the wish to cancel move %d came after the hand-off: shard %d is at group %d", m.ID, m.Shard, m.To))
	}
}

// keepAt makes a config in which a shard stays where it has come to be.
func (d *draft) keepAt(m Move, at raft.GroupID, reason string) {
	config := d.config()
	if g, ok := d.group(at); !ok || g.Leaving || config.Owners[m.Shard] == at {
		return
	}
	owners := slices.Clone(config.Owners)
	owners[m.Shard] = at
	d.addConfig(reason, owners, config.Pinned)
	d.addMoveEvent(m, "keep-shard", reason)
}

// withPin is pinned, ascending, with a shard more.
func withPin(pinned []shardmap.ShardID, shard shardmap.ShardID) []shardmap.ShardID {
	i, found := slices.BinarySearch(pinned, shard)
	if found {
		return pinned
	}
	return slices.Insert(slices.Clone(pinned), i, shard)
}

func subjectShard(id shardmap.ShardID) string { return fmt.Sprintf("shard %d", id) }

func groupsText(groups []Group) string {
	if len(groups) == 0 {
		return "none"
	}
	return fmt.Sprintf("%d to %d", groups[0].ID, groups[len(groups)-1].ID)
}
