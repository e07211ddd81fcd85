package routing

import (
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// Call is one request on its way. The exported fields are set before Submit
// and left alone after it; the router reads Request and never changes it, and
// sends copies that share its ops.
type Call struct {
	Request *flotillav1.Request
	// Deadline is when the caller no longer waits. It must be set.
	Deadline time.Time
	// Lane orders the call among others; nil: unordered.
	Lane *Lane
	// Owner is the driver's; the router carries it.
	Owner any

	kind  kind
	state state
	shard shardmap.ShardID

	number   number // of a write, from its first send on
	numbered bool
	renewals int // times it was numbered anew after "expired"

	id       uint64    // of the attempt under way
	link     *link     // that it waits for or was sent over
	sent     time.Time // when the attempt under way was
	group    raft.GroupID
	attempts int
	possible bool // an earlier attempt may have had an effect
	last     Cause
	message  string

	redirects int // quick tries since the last wait
	failures  int // waits after failures
	busies    int // waits after "busy" in a row
	silences  int // attempts that got no answer in time

	parked   bool // is in Router.parked
	parts    []*Call
	internal bool  // the router's own: delivered to nobody
	whole    *Call // that it was merged into
	alone    bool  // not to be merged (again)

	wake  time.Time // when Tick has to look at it
	place int       // in the timers' heap, from 1; 0: not in it
}

// kind is what a request does, which decides how failures are taken.
type kind uint8

const (
	kindRead    kind = iota
	kindWrite        // numbered; may have happened when its answer is lost
	kindOutcome      // closes a number: a log entry, but harmless to repeat
)

// state is where a call stands.
type state uint8

const (
	stateNew      state = iota
	stateParked         // no map yet
	stateHeld           // behind another of its lane
	stateMerged         // a part of another call
	stateWaiting        // until its wake time
	stateLinking        // for a connection
	stateInFlight       // handed to a connection
	stateDone           // delivered
)

// kindOf tells reads from writes.
func kindOf(q *flotillav1.Request) kind {
	if q.GetOutcome() != nil {
		return kindOutcome
	}
	if onlyReads(q.GetOps()) && onlyReads(q.GetOtherwise()) {
		return kindRead
	}
	return kindWrite
}

func onlyReads(ops []*flotillav1.Op) bool {
	for _, op := range ops {
		switch op.GetOp().(type) {
		case *flotillav1.Op_Get, *flotillav1.Op_Scan:
		default:
			return false
		}
	}
	return true
}

// opKey is the key that an op names; ok is false for those that name none.
func opKey(op *flotillav1.Op) (key []byte, ok bool) {
	switch o := op.GetOp().(type) {
	case *flotillav1.Op_Get:
		return o.Get.GetKey(), true
	case *flotillav1.Op_Put:
		return o.Put.GetKey(), true
	case *flotillav1.Op_Delete:
		return o.Delete.GetKey(), true
	case *flotillav1.Op_Append:
		return o.Append.GetKey(), true
	case *flotillav1.Op_Incr:
		return o.Incr.GetKey(), true
	case *flotillav1.Op_Expire:
		return o.Expire.GetKey(), true
	}
	return nil, false
}

// shardOf is the shard of every key that a request names, or the one it says
// itself if it names none. ok is false if the keys lie in different shards or
// the shard does not exist.
func shardOf(q *flotillav1.Request, shards int) (id shardmap.ShardID, ok bool) {
	var found, split bool
	see := func(key []byte) {
		s := shardmap.Shard(key, shards)
		if found && s != id {
			split = true
		}
		id, found = s, true
	}
	for _, c := range q.GetCompares() {
		see(c.GetKey())
	}
	for _, ops := range [2][]*flotillav1.Op{q.GetOps(), q.GetOtherwise()} {
		for _, op := range ops {
			if key, ok := opKey(op); ok {
				see(key)
			}
		}
	}
	if !found {
		id = shardmap.ShardID(q.GetShard())
	}
	return id, !split && uint64(id) < uint64(shards)
}

// anyReplica reports whether a follower may answer.
func (c *Call) anyReplica() bool {
	return c.kind == kindRead && (c.Request.GetFollower() || c.Request.GetConsistency() == flotillav1.Consistency_STALE)
}
