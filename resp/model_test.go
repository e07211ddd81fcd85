package resp

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"strconv"
	"sync"
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// model is a backend in memory: what kv.proto says, as plainly as possible.
// Several workers answer, so requests under way at the same time take effect
// in any order, as in a cluster.
type model struct {
	shards []modelShard
	work   chan func()
	wait   sync.WaitGroup
	noMap  bool

	mu       sync.Mutex
	requests int // answered
	ops      int
	fail     func(*flotillav1.Request) (*flotillav1.Response, error) // if it returns something, that is the answer
	hold     chan struct{}                                           // if set, answers wait until it is closed
}

type modelShard struct {
	mu   sync.Mutex
	last uint64 // version
	keys map[string]modelEntry
}

type modelEntry struct {
	value   []byte
	version uint64
	expire  int64
}

const modelResponseMax = 64 << 20

func newModel(shards, workers int) *model {
	m := &model{shards: make([]modelShard, shards), work: make(chan func(), 1<<16)}
	for i := range m.shards {
		m.shards[i].keys = make(map[string]modelEntry)
	}
	for range workers {
		m.wait.Add(1)
		go func() {
			defer m.wait.Done()
			for f := range m.work {
				f()
			}
		}()
	}
	return m
}

func (m *model) close() {
	close(m.work)
	m.wait.Wait()
}

func (m *model) Map() *shardmap.Map {
	if m.noMap {
		return nil
	}
	return &shardmap.Map{Revision: 1, Shards: make([]shardmap.Assignment, len(m.shards)), Groups: []shardmap.Group{{ID: raft.GroupID(2)}}}
}

func (m *model) Info() Info {
	keys := int64(0)
	for i := range m.shards {
		s := &m.shards[i]
		s.mu.Lock()
		keys += int64(len(s.keys))
		s.mu.Unlock()
	}
	return Info{ClusterID: "0b5cf2a4-1ee2-4b92-a5c5-9b7c9e3f3a10", NodeID: 1, NodeName: "model", Keys: keys}
}

func (m *model) NewLane() Lane { return m }

func (m *model) Submit(req *flotillav1.Request, done func(*flotillav1.Response, error)) {
	m.work <- func() {
		m.mu.Lock()
		m.requests++
		m.ops += len(req.Ops)
		fail, hold := m.fail, m.hold
		m.mu.Unlock()
		if hold != nil {
			<-hold
		}
		if fail != nil {
			if resp, err := fail(req); resp != nil || err != nil {
				done(resp, err)
				return
			}
		}
		done(m.do(req), nil)
	}
}

func (m *model) do(req *flotillav1.Request) *flotillav1.Response {
	if err := m.check(req); err != nil {
		return &flotillav1.Response{Code: flotillav1.Code_INVALID, Message: err.Error()}
	}
	s := &m.shards[req.Shard]
	s.mu.Lock()
	defer s.mu.Unlock()
	resp := &flotillav1.Response{Compared: true}
	for _, c := range req.Compares {
		if !s.holds(c) {
			resp.Compared = false
			return resp
		}
	}
	size := 0
	for _, op := range req.Ops {
		r := s.apply(op)
		size += len(r.Value)
		resp.Results = append(resp.Results, r)
	}
	if size > modelResponseMax {
		return &flotillav1.Response{Code: flotillav1.Code_INVALID, Message: "the answer is too large"}
	}
	return resp
}

// check refuses keys of another shard: a client that routes wrongly.
func (m *model) check(req *flotillav1.Request) error {
	if req.Shard >= uint64(len(m.shards)) {
		return fmt.Errorf("no shard %d", req.Shard)
	}
	if len(req.Ops) == 0 {
		return fmt.Errorf("no ops")
	}
	for _, key := range requestKeys(req) {
		if len(key) == 0 || len(key) > keyBytesMax {
			return fmt.Errorf("key of %d bytes", len(key))
		}
		if s := shardmap.Shard(key, len(m.shards)); uint64(s) != req.Shard {
			return fmt.Errorf("key %q is of shard %d, not %d", key, s, req.Shard)
		}
	}
	return nil
}

func requestKeys(req *flotillav1.Request) [][]byte {
	var keys [][]byte
	for _, c := range req.Compares {
		keys = append(keys, c.Key)
	}
	for _, op := range req.Ops {
		switch o := op.Op.(type) {
		case *flotillav1.Op_Get:
			keys = append(keys, o.Get.Key)
		case *flotillav1.Op_Put:
			keys = append(keys, o.Put.Key)
		case *flotillav1.Op_Delete:
			keys = append(keys, o.Delete.Key)
		case *flotillav1.Op_Append:
			keys = append(keys, o.Append.Key)
		case *flotillav1.Op_Incr:
			keys = append(keys, o.Incr.Key)
		case *flotillav1.Op_Expire:
			keys = append(keys, o.Expire.Key)
		}
	}
	return keys
}

func (s *modelShard) find(key []byte) (modelEntry, bool) {
	e, ok := s.keys[string(key)]
	if ok && e.expire != 0 && e.expire <= time.Now().UnixMilli() {
		delete(s.keys, string(key))
		return modelEntry{}, false
	}
	return e, ok
}

func (s *modelShard) holds(c *flotillav1.Compare) bool {
	e, ok := s.find(c.Key)
	switch c.Target {
	case flotillav1.Compare_EXISTS:
		return ok
	case flotillav1.Compare_ABSENT:
		return !ok
	case flotillav1.Compare_VERSION:
		return e.version == c.Version
	}
	return ok && bytes.Equal(e.value, c.Value)
}

func (s *modelShard) apply(op *flotillav1.Op) *flotillav1.Result {
	switch o := op.Op.(type) {
	case *flotillav1.Op_Get:
		return s.get(o.Get)
	case *flotillav1.Op_Put:
		return s.put(o.Put)
	case *flotillav1.Op_Delete:
		return s.delete(o.Delete)
	case *flotillav1.Op_Append:
		return s.append(o.Append)
	case *flotillav1.Op_Incr:
		return s.incr(o.Incr)
	case *flotillav1.Op_Expire:
		return s.expire(o.Expire)
	case *flotillav1.Op_Scan:
		return s.scan(o.Scan)
	case *flotillav1.Op_Clear:
		n := len(s.keys)
		clear(s.keys)
		s.last++
		return &flotillav1.Result{Count: uint64(n)}
	}
	return &flotillav1.Result{}
}

func (s *modelShard) get(g *flotillav1.Get) *flotillav1.Result {
	e, ok := s.find(g.Key)
	if !ok {
		return &flotillav1.Result{Status: flotillav1.Result_ABSENT}
	}
	r := &flotillav1.Result{Version: e.version, Existed: true, ExpireAtMs: e.expire}
	if g.NoValue {
		r.Number = int64(len(e.value))
	} else {
		r.Value = slices.Clone(e.value)
	}
	return r
}

// store writes an entry under a new version.
func (s *modelShard) store(key, value []byte, expire int64) uint64 {
	s.last++
	s.keys[string(key)] = modelEntry{value: slices.Clone(value), version: s.last, expire: expire}
	return s.last
}

func (s *modelShard) put(p *flotillav1.Put) *flotillav1.Result {
	e, ok := s.find(p.Key)
	met := true
	switch p.Condition {
	case flotillav1.Put_IF_ABSENT:
		met = !ok
	case flotillav1.Put_IF_PRESENT:
		met = ok
	}
	if !met {
		r := &flotillav1.Result{Status: flotillav1.Result_CONDITION_FAILED, Version: e.version, Existed: ok}
		if p.Previous {
			r.Value = e.value
		}
		return r
	}
	if len(p.Value) > bulkBytesMax {
		return &flotillav1.Result{Status: flotillav1.Result_TOO_LARGE}
	}
	expire := p.ExpireAtMs
	if p.TtlMs != 0 {
		expire = time.Now().UnixMilli() + p.TtlMs
	}
	if p.KeepTtl {
		expire = e.expire
	}
	r := &flotillav1.Result{Existed: ok, ExpireAtMs: expire}
	if p.Previous {
		r.Value = e.value
	}
	r.Version = s.store(p.Key, p.Value, expire)
	return r
}

func (s *modelShard) delete(d *flotillav1.Delete) *flotillav1.Result {
	e, ok := s.find(d.Key)
	if !ok {
		return &flotillav1.Result{Status: flotillav1.Result_ABSENT}
	}
	delete(s.keys, string(d.Key))
	s.last++
	r := &flotillav1.Result{Existed: true, Version: s.last}
	if d.Previous {
		r.Value = e.value
	}
	return r
}

func (s *modelShard) append(a *flotillav1.Append) *flotillav1.Result {
	e, ok := s.find(a.Key)
	if len(e.value)+len(a.Value) > bulkBytesMax {
		return &flotillav1.Result{Status: flotillav1.Result_TOO_LARGE, Existed: ok}
	}
	value := append(slices.Clone(e.value), a.Value...)
	return &flotillav1.Result{Existed: ok, Version: s.store(a.Key, value, e.expire), Number: int64(len(value))}
}

func (s *modelShard) incr(i *flotillav1.Incr) *flotillav1.Result {
	e, ok := s.find(i.Key)
	n := int64(0)
	if ok {
		var valid bool
		if n, valid = parseInt(e.value); !valid {
			return &flotillav1.Result{Status: flotillav1.Result_NOT_AN_INTEGER}
		}
	}
	if i.By > 0 && n > math.MaxInt64-i.By || i.By < 0 && n < math.MinInt64-i.By {
		return &flotillav1.Result{Status: flotillav1.Result_OVERFLOW}
	}
	n += i.By
	return &flotillav1.Result{Existed: ok, Version: s.store(i.Key, strconv.AppendInt(nil, n, 10), e.expire), Number: n}
}

func (s *modelShard) expire(x *flotillav1.Expire) *flotillav1.Result {
	e, ok := s.find(x.Key)
	if !ok {
		return &flotillav1.Result{Status: flotillav1.Result_ABSENT}
	}
	expire := x.ExpireAtMs
	if x.TtlMs != 0 {
		expire = time.Now().UnixMilli() + x.TtlMs
	}
	return &flotillav1.Result{Existed: true, Version: s.store(x.Key, e.value, expire), ExpireAtMs: expire}
}

func (s *modelShard) scan(x *flotillav1.Scan) *flotillav1.Result {
	var keys []string
	for key := range s.keys {
		if _, ok := s.find([]byte(key)); ok && key >= string(x.Start) && bytes.HasPrefix([]byte(key), x.Prefix) {
			keys = append(keys, key)
		}
	}
	if x.CountOnly {
		return &flotillav1.Result{Count: uint64(len(keys))}
	}
	slices.Sort(keys)
	limit := int(x.Limit)
	if limit == 0 || limit > 1000 {
		limit = 1000
	}
	r := &flotillav1.Result{}
	for i, key := range keys {
		if i == limit {
			r.Next = []byte(key)
			break
		}
		r.Pairs = append(r.Pairs, &flotillav1.KeyValue{Key: []byte(key)})
	}
	r.Count = uint64(len(r.Pairs))
	return r
}
