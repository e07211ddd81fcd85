package sim

import (
	"fmt"
	"hash/fnv"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/client/routing"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// kind is what an operation does.
type kind uint8

const (
	opGet kind = iota
	opPut
	opDelete
	opCAS
	opIncr
	opAppend
	opStale // a read of any age: see checkStale
	opTTL   // a write that expires: only the replicas are compared
)

// outcome is what became of an operation.
type outcome uint8

const (
	outcomeOpen    outcome = iota // under way
	outcomeOK                     // answered
	outcomeUnknown                // it may happen at any time from its beginning on
	outcomeApplied                // it has happened; what it brought is not known
	outcomeFailed                 // it has not happened and never will
)

// op is one operation of a client.
type op struct {
	id     int
	client int
	kind   kind
	key    string
	value  string // put, CAS: the new one; append: the token
	old    string // CAS: what is expected, if hasOld
	hasOld bool
	read   flotillav1.Consistency
	anyone bool // a follower may answer
	lane   bool

	begin, end time.Duration
	outcome    outcome

	// What was heard.
	present bool   // get, delete: the key was there; CAS: it took place
	folded  string // get of a list: the result as the model holds it
	result  string // get: the value; incr: the new value
	version uint64
}

// question asks what became of an operation.
type question = op

// newQuestion is the op that stands for asking about another.
func newQuestion(about *op) *question {
	return &op{id: -about.id, key: about.key, client: about.client}
}

// String is the operation and its outcome in a few words.
func (o *op) String() string {
	what := [...]string{"get", "put " + o.value, "delete", "cas " + o.old + " " + o.value, "incr", "append " + o.value, "stale get", "put ttl"}[o.kind]
	s := fmt.Sprintf("%s %s", o.key, what)
	switch o.outcome {
	case outcomeOK:
		s += fmt.Sprintf(" -> %q version %d present %t", o.result, o.version, o.present)
	case outcomeUnknown:
		s += " -> unknown"
	case outcomeApplied:
		s += " -> applied, as asked later"
	case outcomeFailed:
		s += " -> failed"
	}
	return s
}

// choose draws an operation.
func (c *client) choose() *op {
	w := c.w
	h := &w.history
	h.last++
	o := &op{id: h.last, lane: w.chance(w.profile.lanes)}
	place := w.rng.IntN(w.profile.keys)
	switch n := w.rng.IntN(100); {
	case n < 25:
		o.kind, o.key, o.value = opAppend, fmt.Sprint("l", place), fmt.Sprintf("%d,", o.id)
	case n < 40:
		o.kind, o.key = opIncr, fmt.Sprint("c", place)
	case n < 65:
		o.kind, o.key = opGet, fmt.Sprint(string("rcl"[w.rng.IntN(3)]), place)
		switch w.rng.IntN(5) {
		case 0:
			o.anyone = true
		case 1:
			o.read = flotillav1.Consistency_LEASE
		}
	case n < 75:
		o.kind, o.key, o.value = opPut, fmt.Sprint("r", place), fmt.Sprint(o.id)
	case n < 85:
		o.kind, o.key, o.value = opCAS, fmt.Sprint("r", place), fmt.Sprint(o.id)
		if last := h.seen[o.key]; last != nil {
			o.old, o.hasOld = last.result, last.present
		}
	case n < 90:
		o.kind, o.key = opDelete, fmt.Sprint("r", place)
	case n < 95:
		o.kind, o.key = opStale, fmt.Sprint(string("rl"[w.rng.IntN(2)]), place)
	default:
		o.kind, o.key, o.value = opTTL, fmt.Sprint("t", w.rng.IntN(8)), fmt.Sprint(o.id)
	}
	return o
}

// request is the operation as a client sends it.
func (o *op) request() *flotillav1.Request {
	q := &flotillav1.Request{Consistency: o.read, Follower: o.anyone}
	key, value := []byte(o.key), []byte(o.value)
	put := &flotillav1.Put{Key: key, Value: value}
	add := func(op *flotillav1.Op) { q.Ops = append(q.Ops, op) }
	switch o.kind {
	case opGet:
		add(&flotillav1.Op{Op: &flotillav1.Op_Get{Get: &flotillav1.Get{Key: key}}})
	case opStale:
		q.Consistency, q.StalenessMs = flotillav1.Consistency_STALE, uint32(staleBound.Milliseconds())
		add(&flotillav1.Op{Op: &flotillav1.Op_Get{Get: &flotillav1.Get{Key: key}}})
	case opPut:
		add(&flotillav1.Op{Op: &flotillav1.Op_Put{Put: put}})
	case opTTL:
		put.TtlMs = int64(50 + o.id%700)
		add(&flotillav1.Op{Op: &flotillav1.Op_Put{Put: put}})
	case opCAS:
		put.Condition = flotillav1.Put_IF_ABSENT
		if o.hasOld {
			put.Condition, put.Expected = flotillav1.Put_IF_VALUE, []byte(o.old)
		}
		add(&flotillav1.Op{Op: &flotillav1.Op_Put{Put: put}})
	case opDelete:
		add(&flotillav1.Op{Op: &flotillav1.Op_Delete{Delete: &flotillav1.Delete{Key: key}}})
	case opIncr:
		add(&flotillav1.Op{Op: &flotillav1.Op_Incr{Incr: &flotillav1.Incr{Key: key, By: 1}}})
	case opAppend:
		add(&flotillav1.Op{Op: &flotillav1.Op_Append{Append: &flotillav1.Append{Key: key, Value: value}}})
	}
	return q
}

// hear takes in the answer.
func (o *op) hear(p *flotillav1.Response) {
	r := p.GetResults()[0]
	o.version = r.GetVersion()
	switch o.kind {
	case opGet, opStale:
		o.present, o.result = r.GetStatus() == flotillav1.Result_DONE, string(r.GetValue())
		o.folded = o.result
		if o.key[0] == 'l' {
			o.folded = foldList(o.result)
		}
	case opDelete:
		o.present = r.GetExisted()
	case opCAS:
		o.present = r.GetStatus() == flotillav1.Result_DONE
	case opIncr:
		o.result = strconv.FormatInt(r.GetNumber(), 10)
	}
}

// writes tells whether the operation may change its key.
func (o *op) writes() bool { return o.kind != opGet && o.kind != opStale }

// wrote tells whether the operation, which was answered, gave its key a version.
func (o *op) wrote() bool {
	switch o.kind {
	case opPut, opIncr, opAppend, opTTL:
		return true
	case opCAS:
		return o.present
	}
	return false
}

// history is all that clients did and heard.
type history struct {
	last   int
	ops    []*op
	seen   map[string]*op // the last read of each key
	healed int            // operations begun after the faults
	finals int            // last reads, still to be answered
}

// opsAfterHeal is how many operations show that all is well again.
const opsAfterHeal = 30

func (h *history) full() bool { return h.healed >= opsAfterHeal }

func (h *history) began(o *op) { h.ops = append(h.ops, o) }

// ended takes in how an operation, or a question about one, came out.
func (h *history) ended(now time.Duration, o *op, d routing.Delivery) {
	if o.id < 0 {
		h.learn(now, -o.id, d)
		return
	}
	o.end = now
	switch f := d.Failure; {
	case f == nil:
		o.outcome = outcomeOK
		o.hear(d.Response)
	case f.Possible && o.writes():
		o.outcome = outcomeUnknown
	default:
		o.outcome = outcomeFailed
	}
	if o.kind == opGet && o.outcome == outcomeOK {
		if h.seen == nil {
			h.seen = make(map[string]*op)
		}
		h.seen[o.key] = o
	}
}

// learn takes in the answer to a question.
func (h *history) learn(now time.Duration, id int, d routing.Delivery) {
	if d.Failure != nil {
		return
	}
	for _, o := range h.ops {
		if o.id != id {
			continue
		}
		switch d.Response.GetOutcome() {
		case flotillav1.OutcomeState_APPLIED:
			o.outcome, o.end = outcomeApplied, now
		case flotillav1.OutcomeState_NOT_APPLIED:
			o.outcome = outcomeFailed
		}
	}
}

// fold adds a token to a list as the model holds it: the search for an order
// compares states all the time, and lists are long.
func fold(list, token string) string {
	h := fnv.New64a()
	h.Write([]byte(list))
	h.Write([]byte(token))
	return string(h.Sum(nil))
}

func foldList(value string) (list string) {
	for _, token := range strings.SplitAfter(value, ",") {
		if token != "" {
			list = fold(list, token)
		}
	}
	return list
}

// keyState is one key in the model.
type keyState struct {
	present bool
	value   string // of a list: folded
	version uint64 // of the last write; 0 if nobody has told it
	floor   uint64 // the highest version told: those to come are above it
}

// hash tells states apart: one set of operations leads to many.
func (s keyState) hash() uint64 {
	h := sum([]byte(s.value)) ^ s.version<<1 ^ s.floor<<32
	if s.present {
		h = ^h
	}
	return h
}

func step(s keyState, o *op) (bool, keyState) {
	told := o.outcome == outcomeOK
	switch o.kind {
	case opGet:
		if o.present != s.present || s.present && (o.folded != s.value || s.version != 0 && o.version != s.version || o.version < s.floor) {
			return false, s
		}
		if s.present {
			s.version, s.floor = o.version, o.version
		}
		return true, s
	case opDelete:
		return !told || o.present == s.present, keyState{floor: s.floor}
	case opCAS:
		holds := s.present == o.hasOld && (!s.present || s.value == o.old)
		if told && o.present != holds {
			return false, s
		}
		if !holds {
			return true, s
		}
		return s.write(o.value, o.version, told)
	case opIncr:
		n, _ := strconv.ParseInt(s.value, 10, 64)
		next := strconv.FormatInt(n+1, 10)
		if told && o.result != next {
			return false, s
		}
		return s.write(next, o.version, told)
	case opAppend:
		return s.write(fold(s.value, o.value), o.version, told)
	}
	return s.write(o.value, o.version, told)
}

func (s keyState) write(value string, version uint64, told bool) (bool, keyState) {
	if told && version <= s.floor {
		return false, s
	}
	next := keyState{present: true, value: value, floor: s.floor}
	if told {
		next.version, next.floor = version, version
	}
	return true, next
}

// model counts its steps, and takes none beyond those that are left.
func model(left *int) porcupine.Model {
	return porcupine.Model{
		Init: func() any { return keyState{} },
		Step: func(state, input, _ any) (bool, any) {
			if *left--; *left < 0 {
				return false, state
			}
			ok, next := step(state.(keyState), input.(*op))
			return ok, next
		},
		Hash:              func(state any) uint64 { return state.(keyState).hash() },
		DescribeOperation: func(input, _ any) string { return input.(*op).String() },
		DescribeState:     func(state any) string { return fmt.Sprintf("%+v", state) },
	}
}

// searchSteps bounds the search for an order of one key's operations, which
// grows steeply with those whose outcome is unknown: in steps and not in time,
// so that it ends alike on every machine. A key that needs more counts as
// unchecked; its tokens and counts are checked all the same.
const searchSteps = 1_000_000

// check holds the history against its promises.
func (w *world) checkHistory() {
	h := &w.history
	byKey := make(map[string][]*op)
	var keys []string
	for _, o := range h.ops {
		w.counts.Operations++
		switch o.outcome {
		case outcomeUnknown, outcomeOpen:
			w.counts.Unknown++
		case outcomeFailed:
			w.counts.Failed++
		}
		if byKey[o.key] == nil {
			keys = append(keys, o.key)
		}
		byKey[o.key] = append(byKey[o.key], o)
	}
	slices.Sort(keys)
	w.checkVersions()
	w.checkLanes()
	for _, key := range keys {
		switch key[0] {
		case 't':
			continue
		case 'l':
			w.checkList(key, byKey[key])
		case 'c':
			w.checkCounter(key, byKey[key])
		}
		w.checkOrder(key, byKey[key])
		w.checkStale(key, byKey[key])
	}
}

// checkOrder: some order of the operations explains all that was heard.
func (w *world) checkOrder(key string, ops []*op) {
	var all []porcupine.Operation
	for _, o := range ops {
		if o.kind == opStale || o.outcome == outcomeFailed || o.outcome == outcomeOpen && !o.writes() {
			continue
		}
		end := int64(o.end)
		if o.outcome == outcomeUnknown || o.outcome == outcomeOpen {
			end = math.MaxInt64
		}
		all = append(all, porcupine.Operation{ClientId: len(all), Input: o, Call: int64(o.begin), Output: nil, Return: end})
	}
	left := searchSteps
	switch {
	case porcupine.CheckOperations(model(&left), all):
		return
	case left < 0:
		w.counts.Unchecked++
		return
	}
	var lines []string
	for _, o := range ops {
		lines = append(lines, fmt.Sprintf("  %8d .. %-8d c%d %d  %s", o.begin.Milliseconds(), o.end.Milliseconds(), -o.client, o.id, o))
	}
	w.fail("Linearizability", "no order explains what was heard of key %s:\n%s", key, strings.Join(lines, "\n"))
}

// lastRead is the value that was read last, by a linearizable read.
func lastRead(ops []*op) (last *op) {
	for _, o := range ops {
		if o.kind == opGet && o.outcome == outcomeOK && (last == nil || o.begin > last.begin) {
			last = o
		}
	}
	return last
}

// checkList: every token is there as often as it may be.
func (w *world) checkList(key string, ops []*op) {
	last := lastRead(ops)
	if last == nil {
		return
	}
	times := make(map[string]int)
	for _, token := range strings.SplitAfter(last.result, ",") {
		times[token]++
	}
	for _, o := range ops {
		if o.kind != opAppend || o.begin > last.begin {
			continue
		}
		n := times[o.value]
		acked := o.outcome == outcomeOK || o.outcome == outcomeApplied
		switch {
		case n > 1:
			w.fail("Exactly Once", "token %s of %s is there %d times: %s", o.value, key, n, last.result)
		case acked && n == 0 && o.end < last.begin:
			w.fail("Acknowledged Writes", "token %s of %s was acknowledged and is not there: %s", o.value, key, last.result)
		case o.outcome == outcomeFailed && n != 0:
			w.fail("Exactly Once", "token %s of %s failed for certain and is there: %s", o.value, key, last.result)
		}
	}
}

// checkCounter: the count lies between what was acknowledged and what may have
// happened.
func (w *world) checkCounter(key string, ops []*op) {
	last := lastRead(ops)
	if last == nil {
		return
	}
	n, _ := strconv.Atoi(last.result)
	least, most := 0, 0
	for _, o := range ops {
		if o.kind != opIncr || o.outcome == outcomeFailed {
			continue
		}
		most++
		if (o.outcome == outcomeOK || o.outcome == outcomeApplied) && o.end < last.begin {
			least++
		}
	}
	if n < least || n > most {
		w.fail("Exactly Once", "counter %s stands at %d; %d increments were acknowledged, %d may have happened", key, n, least, most)
	}
}

// staleBound is what stale reads ask for, by the clock of who answers; staleMost
// is that by a clock as slow as a profile makes any.
const (
	staleBound = 2 * time.Second
	staleMost  = 3 * time.Second
)

// checkStale: a stale read finds what the key once was, not what never was, nor
// what is to come.
func (w *world) checkStale(key string, ops []*op) {
	writes := make(map[string]*op) // by the value, or the token, that only they write
	for _, o := range ops {
		if o.kind == opPut || o.kind == opCAS || o.kind == opAppend {
			writes[o.value] = o
		}
	}
	last := lastRead(ops)
	for _, o := range ops {
		if o.kind != opStale || o.outcome != outcomeOK {
			continue
		}
		values := []string{o.result}
		if key[0] == 'l' {
			values = strings.SplitAfter(o.result, ",")
			w.checkStaleList(o, last, ops)
		}
		for _, value := range values {
			if value == "" {
				continue
			}
			switch by := writes[value]; {
			case by == nil:
				w.fail("Stale Reads", "operation %d reads %q of %s, which nobody wrote", o.id, value, key)
			case by.begin > o.end:
				w.fail("Stale Reads", "operation %d reads %q of %s before it is written", o.id, value, key)
			case by.outcome == outcomeFailed:
				w.fail("Stale Reads", "operation %d reads %q of %s, which failed for certain", o.id, value, key)
			case key[0] == 'r' && by.outcome == outcomeOK && by.version != o.version:
				w.fail("Stale Reads", "operation %d reads %q of %s under version %d, it was written under %d", o.id, value, key, o.version, by.version)
			}
		}
	}
}

// checkStaleList: a list only grows, so what it once was is how it begins, and
// lacks only what is new.
func (w *world) checkStaleList(o, last *op, ops []*op) {
	if last != nil && last.begin > o.end && !strings.HasPrefix(last.result, o.result) {
		w.fail("Stale Reads", "operation %d reads %s as %q, which is not how it begins in the end: %q", o.id, o.key, o.result, last.result)
	}
	for _, by := range ops {
		old := by.kind == opAppend && by.outcome == outcomeOK && by.end+staleMost < o.begin
		if old && !strings.Contains(","+o.result, ","+by.value) {
			w.fail("Stale Reads", "operation %d reads %s as %q without %q, acknowledged %v before", o.id, o.key, o.result, by.value, o.begin-by.end)
		}
	}
}

// checkLanes: what a client sends in its lane takes effect in that order, shard
// by shard, and later reads of the lane see it.
func (w *world) checkLanes() {
	type lane struct {
		client int
		shard  shardmap.ShardID
	}
	type laneKey struct {
		lane
		key string
	}
	written := make(map[lane]*op)
	latest := make(map[laneKey]*op)
	for _, o := range w.history.ops { // in the order in which they were begun
		if !o.lane || o.outcome != outcomeOK {
			continue
		}
		l := lane{o.client, shardmap.Shard([]byte(o.key), w.profile.shards)}
		k := laneKey{l, o.key}
		switch {
		case o.wrote():
			if before := written[l]; before != nil && before.version >= o.version {
				w.fail("Lanes", "operation %d of client %d in shard %d has version %d, %d before it in the lane has %d", o.id, -o.client, l.shard, o.version, before.id, before.version)
			}
			written[l], latest[k] = o, o
		case o.kind == opGet && o.present:
			if before := latest[k]; before != nil && before.version > o.version {
				w.fail("Lanes", "operation %d of client %d reads version %d of %s, %d before it in the lane has written %d", o.id, -o.client, o.version, o.key, before.id, before.version)
			}
		}
	}
}

// checkVersions: no two writes of a shard share a version.
func (w *world) checkVersions() {
	type place struct {
		shard   shardmap.ShardID
		version uint64
	}
	owners := make(map[place]*op)
	for _, o := range w.history.ops {
		if o.outcome != outcomeOK || !o.wrote() {
			continue
		}
		p := place{shardmap.Shard([]byte(o.key), w.profile.shards), o.version}
		if other := owners[p]; other != nil {
			w.fail("Versions", "operations %d and %d of shard %d were both given version %d", other.id, o.id, p.shard, p.version)
		}
		owners[p] = o
	}
}
