package shardkv

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// spec is what a group promises, written as plainly as possible: maps, no
// store, no limits.
type spec struct {
	time   int64
	shards map[shardmap.ShardID]*specShard // nil: not born
}

type specShard struct {
	writes   uint64
	events   []event // one for each write
	keys     map[string]record
	sessions map[sessionID]*specSession
}

// specSession remembers everything it ever answered.
type specSession struct {
	lowest  uint64
	answers map[uint64]*answer
}

// apply is one entry.
func (s *spec) apply(stamp int64, commands []command) (answers []*answer) {
	s.time = max(s.time, stamp)
	s.expire()
	for _, c := range commands {
		answers = append(answers, s.command(c))
	}
	return answers
}

// expire removes what has expired by the last full step, each a write of its
// own, in the order of time.
func (s *spec) expire() {
	reached := s.time - s.time%expiryStep
	for _, id := range slices.Sorted(maps.Keys(s.shards)) {
		sh := s.shards[id]
		var due []string
		for key, r := range sh.keys {
			if r.expires != 0 && r.expires <= reached {
				due = append(due, key)
			}
		}
		slices.SortFunc(due, func(a, b string) int {
			return cmp.Or(cmp.Compare(sh.keys[a].expires, sh.keys[b].expires), cmp.Compare(a, b))
		})
		for _, key := range due {
			sh.remove([]byte(key), flotillav1.WatchEvent_EXPIRED)
		}
	}
}

func (s *spec) command(c command) *answer {
	switch c := c.(type) {
	case *birth:
		if s.shards == nil {
			s.shards = make(map[shardmap.ShardID]*specShard)
			for _, shard := range c.shards {
				s.shards[shard] = &specShard{keys: make(map[string]record), sessions: make(map[sessionID]*specSession)}
			}
		}
	case *write:
		return s.write(c)
	case *outcome:
		return s.outcome(c)
	}
	return new(answer)
}

// shard finds a shard, or says why the group does not serve it.
func (s *spec) shard(id shardmap.ShardID) (*specShard, *answer) {
	switch sh := s.shards[id]; {
	case s.shards == nil:
		return nil, refusal(flotillav1.Code_UNAVAILABLE, "")
	case sh == nil:
		return nil, refusal(flotillav1.Code_MOVED, "")
	default:
		return sh, nil
	}
}

// session finds the session of a number and its earlier answer, or says why
// the number is refused.
func (s *spec) session(sh *specShard, id sessionID, seq uint64) (session *specSession, earlier, refused *answer) {
	hour, minute := int64(3_600_000), int64(60_000)
	if s.time >= id.birth+hour || id.birth > s.time+minute {
		return nil, nil, refusal(flotillav1.Code_SESSION_EXPIRED, "")
	}
	session = sh.sessions[id]
	if session == nil {
		session = &specSession{answers: make(map[uint64]*answer)}
		sh.sessions[id] = session
	}
	if seq < session.lowest {
		return nil, nil, refusal(flotillav1.Code_INVALID, "")
	}
	return session, session.answers[seq], nil
}

func (s *spec) write(w *write) *answer {
	sh, refused := s.shard(w.shard)
	if refused != nil {
		return refused
	}
	if w.session.seq == 0 {
		return s.branch(sh, w)
	}
	session, earlier, refused := s.session(sh, w.session.id, w.session.seq)
	switch {
	case refused != nil:
		return refused
	case earlier != nil && earlier.outcome == flotillav1.OutcomeState_NOT_APPLIED:
		return &answer{refused: flotillav1.Code_INVALID, replayed: true}
	case earlier != nil:
		again := *earlier
		again.replayed = true
		return &again
	}
	a := s.branch(sh, w)
	session.lowest = max(session.lowest, min(w.session.lowest, w.session.seq))
	session.answers[w.session.seq] = a
	return a
}

func (s *spec) outcome(c *outcome) *answer {
	sh, refused := s.shard(c.shard)
	if refused != nil {
		return refused
	}
	if s.time >= c.id.birth+3_600_000 {
		return &answer{outcome: flotillav1.OutcomeState_EXPIRED}
	}
	session, earlier, refused := s.session(sh, c.id, c.seq)
	switch {
	case refused != nil:
		return refused
	case earlier != nil && earlier.outcome == flotillav1.OutcomeState_NOT_APPLIED:
		return earlier
	case earlier != nil:
		again := *earlier
		again.outcome = flotillav1.OutcomeState_APPLIED
		return &again
	}
	session.answers[c.seq] = &answer{outcome: flotillav1.OutcomeState_NOT_APPLIED}
	return session.answers[c.seq]
}

// there is a key as the group's time shows it.
func (s *spec) there(sh *specShard, key []byte) (record, bool) {
	r, ok := sh.keys[string(key)]
	if !ok || r.expires != 0 && r.expires <= s.time {
		return record{}, false
	}
	return r, true
}

func (s *spec) branch(sh *specShard, w *write) *answer {
	a := &answer{compared: true}
	for _, c := range w.compares {
		r, there := s.there(sh, c.key)
		var holds bool
		switch c.target {
		case compareExists:
			holds = there
		case compareAbsent:
			holds = !there
		case compareVersion:
			holds = r.version == c.version
		case compareValue:
			holds = there && string(r.value) == string(c.value)
		}
		if !holds {
			a.compared = false
		}
	}
	ops := w.ops
	if !a.compared {
		ops = w.otherwise
	}
	for i := range ops {
		a.results = append(a.results, s.op(sh, &ops[i]))
	}
	return a
}

// write gives a key its next version.
func (sh *specShard) write(key, value []byte, expires int64) uint64 {
	version := sh.tell(event{kind: flotillav1.WatchEvent_PUT, key: key, value: value, expires: expires})
	sh.keys[string(key)] = record{version: version, expires: expires, value: value}
	return version
}

func (sh *specShard) remove(key []byte, kind flotillav1.WatchEvent_Kind) uint64 {
	delete(sh.keys, string(key))
	return sh.tell(event{kind: kind, key: key})
}

// tell counts a write, and what watches are told of it.
func (sh *specShard) tell(e event) uint64 {
	sh.writes++
	e.version = sh.writes
	sh.events = append(sh.events, e)
	return sh.writes
}

// expiry is when a put or expire of now ends.
func (s *spec) expiry(o *op) int64 {
	switch {
	case o.expireAt != 0:
		return o.expireAt
	case o.ttl != 0:
		return max(1, s.time+o.ttl)
	}
	return 0
}

func (s *spec) op(sh *specShard, o *op) result {
	r, there := s.there(sh, o.key)
	switch o.kind {
	case opGet:
		if !there {
			return result{status: statusAbsent}
		}
		if o.noValue {
			return result{existed: true, version: r.version, expires: r.expires, number: int64(len(r.value))}
		}
		return result{existed: true, version: r.version, expires: r.expires, value: r.value}
	case opPut:
		return s.put(sh, o, r, there)
	case opDelete:
		switch {
		case !there:
			return result{status: statusAbsent}
		case o.version != 0 && o.version != r.version:
			return result{status: statusConditionFailed, existed: true, version: r.version, value: r.value}
		case o.previous:
			return result{existed: true, version: sh.remove(o.key, flotillav1.WatchEvent_DELETE), value: r.value}
		}
		return result{existed: true, version: sh.remove(o.key, flotillav1.WatchEvent_DELETE)}
	case opAppend:
		value := slices.Concat(r.value, o.value)
		return result{existed: there, version: sh.write(o.key, value, r.expires), number: int64(len(value)), expires: r.expires}
	case opIncr:
		return s.incr(sh, o, r, there)
	case opExpire:
		expires := s.expiry(o)
		switch {
		case !there:
			return result{status: statusAbsent}
		case expires != 0 && expires <= s.time:
			return result{existed: true, version: sh.remove(o.key, flotillav1.WatchEvent_DELETE)}
		}
		return result{existed: true, version: sh.write(o.key, r.value, expires), expires: expires}
	case opScan:
		return s.scan(sh, o.span)
	default:
		for key := range sh.keys {
			if o.span.has(key) {
				delete(sh.keys, key)
			}
		}
		var span encoder
		o.span.encode(&span)
		return result{version: sh.tell(event{kind: flotillav1.WatchEvent_CLEAR, value: span.b})}
	}
}

func (s *spec) put(sh *specShard, o *op, r record, there bool) result {
	met := map[condition]bool{
		putAlways:    true,
		putIfAbsent:  !there,
		putIfPresent: there,
		putIfVersion: r.version == o.version,
		putIfValue:   there && string(r.value) == string(o.expected),
	}[o.condition]
	if !met {
		res := result{status: statusConditionFailed, existed: there, version: r.version, expires: r.expires}
		if o.previous || o.condition == putIfVersion || o.condition == putIfValue {
			res.value = r.value
		}
		return res
	}
	expires := s.expiry(o)
	if o.keepTTL && there {
		expires = r.expires
	}
	res := result{expires: expires, version: sh.write(o.key, o.value, expires)}
	if o.condition == putAlways && !o.keepTTL && !o.previous {
		return res // the old value is not read
	}
	res.existed = there
	if o.previous {
		res.value = r.value
	}
	return res
}

func (s *spec) incr(sh *specShard, o *op, r record, there bool) result {
	n := int64(0)
	if there {
		var err error
		n, err = strconv.ParseInt(string(r.value), 10, 64)
		if err != nil || fmt.Sprint(n) != string(r.value) {
			return result{status: statusNotAnInteger, existed: true, version: r.version}
		}
	}
	sum := n + o.by
	if (sum > n) != (o.by > 0) && o.by != 0 {
		return result{status: statusOverflow, existed: there, version: r.version}
	}
	return result{existed: there, number: sum, expires: r.expires, version: sh.write(o.key, []byte(fmt.Sprint(sum)), r.expires)}
}

func (s span) has(key string) bool {
	return key >= string(s.start) && (len(s.end) == 0 || key < string(s.end)) && strings.HasPrefix(key, string(s.prefix))
}

func (s *spec) scan(sh *specShard, span span) (res result) {
	var keys []string
	for key := range sh.keys {
		if _, there := s.there(sh, []byte(key)); there && span.has(key) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	limit := uint64(math.MaxUint64)
	if span.limit != 0 {
		limit = span.limit
	}
	for _, key := range keys {
		if res.count == limit {
			res.next = []byte(key)
			break
		}
		res.count++
		r := sh.keys[key]
		if span.keysOnly {
			r.value = nil
		}
		if !span.countOnly {
			res.pairs = append(res.pairs, pair{key: []byte(key), record: r})
		}
	}
	return res
}

// show renders an answer for comparison: all of it but the words.
func show(a *answer) string {
	if a == nil {
		return "no answer"
	}
	var s strings.Builder
	fmt.Fprintf(&s, "refused=%v compared=%v outcome=%v replayed=%v", a.refused, a.compared, a.outcome, a.replayed)
	for _, r := range a.results {
		fmt.Fprintf(&s, "\n    %v existed=%v value=%q version=%d number=%d expires=%d count=%d next=%q",
			flotillav1.Result_Status(r.status), r.existed, r.value, r.version, r.number, r.expires, r.count, r.next)
		for _, p := range r.pairs {
			fmt.Fprintf(&s, " %q=%q@%d/%d", p.key, p.value, p.version, p.expires)
		}
	}
	return s.String()
}
