package shardkv

import (
	"bytes"
	"fmt"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// opsMax bounds the operations and compares of one request.
const opsMax = 16_384

// request is a validated request: a write, a read or an outcome.
type request struct {
	shard shardmap.ShardID
	write *write   // nil: it only reads
	ask   *outcome // set: nothing else is
	read  readRequest
	bytes int // of keys and values
}

// readRequest is what a read looks at.
type readRequest struct {
	compares  []compare
	ops       []op
	otherwise []op
}

// own is the read in memory of its own: it may wait for long, and would keep the
// whole message that it came in.
func (r readRequest) own() readRequest {
	for i := range r.compares {
		c := &r.compares[i]
		c.key, c.value = bytes.Clone(c.key), bytes.Clone(c.value)
	}
	for _, ops := range [][]op{r.ops, r.otherwise} {
		for i := range ops {
			o := &ops[i]
			o.key = bytes.Clone(o.key)
			o.span.start, o.span.end, o.span.prefix = bytes.Clone(o.span.start), bytes.Clone(o.span.end), bytes.Clone(o.span.prefix)
		}
	}
	return r
}

// fromWire checks a request and takes it apart. Its bytes stay shared. Errors
// say what is wrong with it, for the client.
func fromWire(q *flotillav1.Request, shards int) (request, error) {
	if q.Shard >= uint64(shards) {
		return request{}, fmt.Errorf("shard %d: there are %d", q.Shard, shards)
	}
	r := request{shard: shardmap.ShardID(q.Shard)}
	if q.Outcome != nil {
		return outcomeFromWire(q, r)
	}
	if len(q.Ops) == 0 && len(q.Otherwise) == 0 {
		return request{}, fmt.Errorf("the request has no operation")
	}
	if n := len(q.Ops) + len(q.Otherwise) + len(q.Compares); n > opsMax {
		return request{}, fmt.Errorf("%d operations and compares in one request: %d are allowed", n, opsMax)
	}
	c := checker{shard: r.shard, shards: shards}
	compares := c.compares(q.Compares)
	ops, otherwise := c.ops(q.Ops), c.ops(q.Otherwise)
	if c.bytes > RequestBytesMax {
		return request{}, fmt.Errorf("the request has %d bytes: %d are allowed", c.bytes, RequestBytesMax)
	}
	if c.err != nil {
		return request{}, c.err
	}
	r.bytes = c.bytes
	if !c.writes {
		r.read = readRequest{compares: compares, ops: ops, otherwise: otherwise}
		return r, nil
	}
	r.write = &write{shard: r.shard, compares: compares, ops: ops, otherwise: otherwise}
	if s := q.Session; s != nil && s.Seq != 0 {
		if s.Lowest > s.Seq || s.BirthMs <= 0 {
			return request{}, fmt.Errorf("session: number %d with lowest %d, birth %d", s.Seq, s.Lowest, s.BirthMs)
		}
		r.write.session = session{id: sessionID{client: s.ClientId, birth: s.BirthMs}, seq: s.Seq, lowest: s.Lowest}
	}
	return r, nil
}

func outcomeFromWire(q *flotillav1.Request, r request) (request, error) {
	if len(q.Ops)+len(q.Otherwise)+len(q.Compares) != 0 {
		return request{}, fmt.Errorf("an outcome is asked alone")
	}
	if q.Outcome.Seq == 0 || q.Outcome.BirthMs <= 0 {
		return request{}, fmt.Errorf("outcome: number %d, birth %d", q.Outcome.Seq, q.Outcome.BirthMs)
	}
	r.ask = &outcome{shard: r.shard, id: sessionID{client: q.Outcome.ClientId, birth: q.Outcome.BirthMs}, seq: q.Outcome.Seq}
	return r, nil
}

// checker takes operations apart and remembers the first thing wrong.
type checker struct {
	shard  shardmap.ShardID
	shards int
	bytes  int
	writes bool
	err    error
}

func (c *checker) fail(format string, args ...any) {
	if c.err == nil {
		c.err = fmt.Errorf(format, args...)
	}
}

// key checks a key: its size, and that it lies in the shard.
func (c *checker) key(key []byte) []byte {
	c.bytes += len(key)
	switch {
	case len(key) == 0:
		c.fail("the key is empty")
	case len(key) > KeyBytesMax:
		c.fail("the key has %d bytes: %d are allowed", len(key), KeyBytesMax)
	case shardmap.Shard(key, c.shards) != c.shard:
		c.fail("key %q lies in shard %d, not %d", clip(key), shardmap.Shard(key, c.shards), c.shard)
	}
	return key
}

// bounds checks those of a span. One may be a byte longer than a key: it is then
// right behind the longest.
func (c *checker) bounds(bounds ...[]byte) {
	for _, b := range bounds {
		c.bytes += len(b)
		if len(b) > KeyBytesMax+1 {
			c.fail("a bound of the keys has %d bytes: %d are allowed", len(b), KeyBytesMax+1)
		}
	}
}

func (c *checker) value(value []byte) []byte {
	c.bytes += len(value)
	if len(value) > ValueBytesMax {
		c.fail("the value has %d bytes: %d are allowed", len(value), ValueBytesMax)
	}
	return value
}

func clip(key []byte) []byte { return key[:min(len(key), 64)] }

func (c *checker) compares(wire []*flotillav1.Compare) []compare {
	if len(wire) == 0 {
		return nil
	}
	compares := make([]compare, 0, len(wire))
	for _, w := range wire {
		if w.GetTarget() < 0 || w.GetTarget() > flotillav1.Compare_VALUE {
			c.fail("unknown compare %d", w.GetTarget())
			return nil
		}
		compares = append(compares, compare{target: target(w.GetTarget()), key: c.key(w.GetKey()), version: w.GetVersion(), value: c.value(w.GetValue())})
	}
	return compares
}

func (c *checker) ops(wire []*flotillav1.Op) []op {
	if len(wire) == 0 {
		return nil
	}
	ops := make([]op, len(wire))
	for i, w := range wire {
		ops[i] = c.op(w)
	}
	return ops
}

func (c *checker) op(wire *flotillav1.Op) op {
	switch w := wire.GetOp().(type) {
	case *flotillav1.Op_Get:
		return op{kind: opGet, key: c.key(w.Get.GetKey()), noValue: w.Get.GetNoValue()}
	case *flotillav1.Op_Scan:
		s := w.Scan
		c.bounds(s.GetStart(), s.GetEnd(), s.GetPrefix())
		return op{kind: opScan, span: span{start: s.GetStart(), end: s.GetEnd(), prefix: s.GetPrefix(), limit: uint64(s.GetLimit()), keysOnly: s.GetKeysOnly(), countOnly: s.GetCountOnly()}}
	}
	c.writes = true
	switch w := wire.GetOp().(type) {
	case *flotillav1.Op_Put:
		return c.put(w.Put)
	case *flotillav1.Op_Delete:
		return op{kind: opDelete, key: c.key(w.Delete.GetKey()), previous: w.Delete.GetPrevious(), version: w.Delete.GetVersion()}
	case *flotillav1.Op_Append:
		return op{kind: opAppend, key: c.key(w.Append.GetKey()), value: c.value(w.Append.GetValue())}
	case *flotillav1.Op_Incr:
		return op{kind: opIncr, key: c.key(w.Incr.GetKey()), by: w.Incr.GetBy()}
	case *flotillav1.Op_Expire:
		return op{kind: opExpire, key: c.key(w.Expire.GetKey()), ttl: w.Expire.GetTtlMs(), expireAt: c.time(w.Expire.GetExpireAtMs())}
	case *flotillav1.Op_Clear:
		s := w.Clear
		c.bounds(s.GetStart(), s.GetEnd(), s.GetPrefix())
		return op{kind: opClear, span: span{start: s.GetStart(), end: s.GetEnd(), prefix: s.GetPrefix()}}
	}
	c.fail("unknown operation")
	return op{}
}

func (c *checker) put(w *flotillav1.Put) op {
	if w.GetCondition() < 0 || w.GetCondition() > flotillav1.Put_IF_VALUE {
		c.fail("unknown condition %d", w.GetCondition())
	}
	if w.GetTtlMs() < 0 {
		c.fail("a time to live of %d ms", w.GetTtlMs())
	}
	if w.GetTtlMs() != 0 && w.GetExpireAtMs() != 0 {
		c.fail("both a time to live and a time of expiry")
	}
	return op{
		kind:      opPut,
		key:       c.key(w.GetKey()),
		value:     c.value(w.GetValue()),
		condition: condition(w.GetCondition()),
		version:   w.GetVersion(),
		expected:  c.value(w.GetExpected()),
		ttl:       w.GetTtlMs(),
		expireAt:  c.time(w.GetExpireAtMs()),
		keepTTL:   w.GetKeepTtl(),
		previous:  w.GetPrevious(),
	}
}

// time checks a time of expiry. 0 stands for none, so that it is not stored
// for a time long past.
func (c *checker) time(ms int64) int64 {
	if ms < 0 {
		return 1
	}
	return ms
}

// soleResponse is a response with room for the one result that most have.
type soleResponse struct {
	flotillav1.Response
	result  flotillav1.Result
	results [1]*flotillav1.Result
}

// toWire makes the response of an answer.
func (a *answer) toWire(id uint64) *flotillav1.Response {
	var r *flotillav1.Response
	if len(a.results) == 1 {
		sole := new(soleResponse)
		a.results[0].toWire(&sole.result)
		sole.results[0] = &sole.result
		r = &sole.Response
		r.Results = sole.results[:]
	} else {
		r = &flotillav1.Response{Results: make([]*flotillav1.Result, len(a.results))}
		wire := make([]flotillav1.Result, len(a.results))
		for i := range a.results {
			a.results[i].toWire(&wire[i])
			r.Results[i] = &wire[i]
		}
	}
	r.Id, r.Code, r.Message, r.Compared, r.Outcome, r.Replayed = id, a.refused, a.message, a.compared, a.outcome, a.replayed
	r.Group = uint64(a.movedTo)
	return r
}

func (r *result) toWire(w *flotillav1.Result) {
	w.Status = flotillav1.Result_Status(r.status)
	w.Value = r.value
	w.Version = r.version
	w.Existed = r.existed
	w.Number = r.number
	w.ExpireAtMs = r.expires
	w.Count = r.count
	w.Next = r.next
	for _, p := range r.pairs {
		w.Pairs = append(w.Pairs, &flotillav1.KeyValue{Key: p.key, Value: p.value, Version: p.version, ExpireAtMs: p.expires})
	}
}
