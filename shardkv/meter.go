package shardkv

import (
	"cmp"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// Times and sizes of what is counted.
const (
	meterSmooth  = 10 * time.Second // an average reaches back about so far
	meterStep    = 500 * time.Millisecond
	meterPage    = 256 // shards: pointers of so many are made together
	hotFrom      = 100 // requests a second from which on a shard's keys are looked at
	hotUntil     = 10  // and below which no more
	hotKeysKept  = 16  // of a shard
	hotKeysShown = 5
	hotKeyBytes  = 128 // of a key
	hotSample    = 8   // one request in so many is looked at
)

// meter counts the requests that come to a node for the shards of a group.
// Counting is a few additions; averages are made when somebody asks, and a shard
// that nobody asks anything of has no meter.
type meter struct {
	pages atomic.Pointer[[]atomic.Pointer[meterPages]]

	mu    sync.Mutex // guards all below, and what is averaged
	all   []*shardMeter
	term  raft.Term // of the leader that counts
	since time.Time // it leads since then
	at    time.Time // as of when the averages are
}

type meterPages [meterPage]atomic.Pointer[shardMeter]

// shardMeter is one shard's: what was counted since the node began, and averages
// of it.
type shardMeter struct {
	shard                shardmap.ShardID
	reads, writes, bytes atomic.Uint64
	keys                 atomic.Pointer[hotKeys] // nil: nobody looks at its keys

	averages [3]average // guarded by meter.mu: of reads, writes, bytes
}

// average is exponentially smoothed. What was before the leader began to count
// weighs nothing; see meter.part.
type average struct {
	seen uint64 // the count at the last step
	sum  float64
}

// step takes in the count after some seconds that have a weight.
func (a *average) step(count uint64, seconds, weight float64) {
	a.sum += weight * (float64(count-a.seen)/seconds - a.sum)
	a.seen = count
}

// faded is what is left of an average's weight after a while.
func faded(d time.Duration) float64 { return math.Exp(-float64(d) / float64(meterSmooth)) }

// part is what all steps since the leader began weigh together: divided by it, an
// average is right from the first step on.
func (m *meter) part() float64 { return max(1-faded(m.at.Sub(m.since)), 1e-9) }

// count notes a request with what it brings or, answered, takes away; key is the
// first that it names.
func (m *meter) count(r *request, shards int) {
	s := m.shard(r.shard, shards)
	if s == nil {
		return
	}
	n := uint64(0)
	if r.write != nil || r.ask != nil {
		n = s.writes.Add(1)
	} else {
		n = s.reads.Add(1)
	}
	s.bytes.Add(uint64(r.bytes))
	if k := s.keys.Load(); k != nil && scattered(n)%hotSample == 0 {
		if key := r.firstKey(); key != nil {
			k.note(key)
		}
	}
}

// answered notes the size of what was read.
func (m *meter) answered(shard shardmap.ShardID, bytes int) {
	if pages := m.pages.Load(); pages != nil && int(shard)/meterPage < len(*pages) {
		if p := (*pages)[shard/meterPage].Load(); p != nil {
			if s := p[shard%meterPage].Load(); s != nil {
				s.bytes.Add(uint64(bytes))
			}
		}
	}
}

// scattered is an even spread of the numbers of requests, so that clients who
// take turns at some keys are sampled fairly (SplitMix64's finaliser).
func scattered(n uint64) uint64 {
	n = (n ^ n>>30) * 0xbf58476d1ce4e5b9
	n = (n ^ n>>27) * 0x94d049bb133111eb
	return n ^ n>>31
}

// firstKey is a key that the request names, nil if it only names spans.
func (r *request) firstKey() []byte {
	compares, ops := r.read.compares, r.read.ops
	if r.write != nil {
		compares, ops = r.write.compares, r.write.ops
	}
	for _, c := range compares {
		return c.key
	}
	for i := range ops {
		if len(ops[i].key) > 0 {
			return ops[i].key
		}
	}
	return nil
}

// shard is a shard's meter, made if it is the first request.
func (m *meter) shard(shard shardmap.ShardID, shards int) *shardMeter {
	pages := m.pages.Load()
	if pages == nil {
		made := make([]atomic.Pointer[meterPages], (shards+meterPage-1)/meterPage)
		if !m.pages.CompareAndSwap(nil, &made) {
			return m.shard(shard, shards)
		}
		pages = &made
	}
	if int(shard)/meterPage >= len(*pages) {
		return nil
	}
	page := &(*pages)[shard/meterPage]
	p := page.Load()
	if p == nil {
		page.CompareAndSwap(nil, new(meterPages))
		p = page.Load()
	}
	at := &p[shard%meterPage]
	if s := at.Load(); s != nil {
		return s
	}
	made := &shardMeter{shard: shard}
	if !at.CompareAndSwap(nil, made) {
		return at.Load()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.all = withMeter(m.all, made)
	return made
}

// withMeter keeps meters ascending by shard.
func withMeter(all []*shardMeter, s *shardMeter) []*shardMeter {
	i, _ := slices.BinarySearchFunc(all, s.shard, func(s *shardMeter, id shardmap.ShardID) int { return cmp.Compare(s.shard, id) })
	return slices.Insert(all, i, s)
}

// load is what was carried out lately by the leader of a term, which this node
// is; nil: nothing is known yet.
func (m *meter) load(group raft.GroupID, term raft.Term, now time.Time, keys bool) *flotillav1.GroupLoad {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.term != term || now.Before(m.at) {
		m.begin(term, now)
		return nil
	}
	if passed := now.Sub(m.at); passed >= meterStep {
		m.at = now
		left, part := faded(passed), m.part()
		for _, s := range m.all {
			s.step(passed, left, part)
		}
	}
	w := &flotillav1.GroupLoad{Group: uint64(group), MeasuredMs: m.at.Sub(m.since).Milliseconds()}
	part := m.part()
	for _, s := range m.all {
		reads, writes := s.averages[0].sum/part, s.averages[1].sum/part
		if reads+writes < 0.5 {
			continue
		}
		line := &flotillav1.ShardLoad{Shard: uint64(s.shard), ReadsPerS: rounded(reads), WritesPerS: rounded(writes), BytesPerS: rounded(s.averages[2].sum / part)}
		if k := s.keys.Load(); keys && k != nil {
			line.HotKeys = k.hottest()
		}
		w.Shards = append(w.Shards, line)
	}
	return w
}

func rounded(rate float64) uint64 { return uint64(math.Round(rate)) }

// begin forgets the averages: another leader counted, and what it saw is not
// known here.
func (m *meter) begin(term raft.Term, now time.Time) {
	m.term, m.since, m.at = term, now, now
	for _, s := range m.all {
		for i, count := range s.counts() {
			s.averages[i] = average{seen: count}
		}
	}
}

func (s *shardMeter) counts() [3]uint64 {
	return [3]uint64{s.reads.Load(), s.writes.Load(), s.bytes.Load()}
}

func (s *shardMeter) step(passed time.Duration, left, part float64) {
	for i, count := range s.counts() {
		s.averages[i].step(count, passed.Seconds(), 1-left)
	}
	rate := (s.averages[0].sum + s.averages[1].sum) / part
	switch k := s.keys.Load(); {
	case k == nil && rate >= hotFrom:
		s.keys.Store(newHotKeys())
	case k != nil && rate < hotUntil:
		s.keys.Store(nil)
	case k != nil:
		k.fade(left)
	}
}

// Load is what was asked of a group lately while this node led it in a term; nil:
// not known yet. keys: with the keys that were asked for most.
func (s *Server) Load(id raft.GroupID, term raft.Term, keys bool) *flotillav1.GroupLoad {
	g := s.group(id)
	if g == nil {
		return nil
	}
	return g.meter.load(id, term, s.now(), keys)
}

// hotKeys estimates which keys of a shard are asked for most (Space-Saving,
// Metwally and others 2005): a new key takes the place of the rarest and its
// count, so that no count is too low, and none too high by more than the least.
type hotKeys struct {
	mu    sync.Mutex // guards all below
	kept  []hotKey
	total float64
}

type hotKey struct {
	key   string
	count float64
	over  float64 // at most so much of count is another key's
}

func newHotKeys() *hotKeys { return &hotKeys{kept: make([]hotKey, 0, hotKeysKept)} }

func (h *hotKeys) note(key []byte) {
	key = key[:min(len(key), hotKeyBytes)]
	h.mu.Lock()
	defer h.mu.Unlock()
	h.total++
	least := 0
	for i := range h.kept {
		k := &h.kept[i]
		if k.key == string(key) {
			k.count++
			return
		}
		if k.count < h.kept[least].count {
			least = i
		}
	}
	if len(h.kept) < hotKeysKept {
		h.kept = append(h.kept, hotKey{key: string(key), count: 1})
		return
	}
	count := h.kept[least].count
	h.kept[least] = hotKey{key: string(key), count: count + 1, over: count}
}

// fade makes what is long ago count less.
func (h *hotKeys) fade(left float64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.total *= left
	for i := range h.kept {
		h.kept[i].count *= left
		h.kept[i].over *= left
	}
}

// hottest are the keys that certainly have a share worth naming, the hottest
// first.
func (h *hotKeys) hottest() []*flotillav1.HotKey {
	h.mu.Lock()
	defer h.mu.Unlock()
	kept := slices.Clone(h.kept)
	slices.SortFunc(kept, func(a, b hotKey) int {
		return cmp.Or(cmp.Compare(b.count-b.over, a.count-a.over), cmp.Compare(a.key, b.key))
	})
	var all []*flotillav1.HotKey
	for _, k := range kept[:min(len(kept), hotKeysShown)] {
		if share := (k.count - k.over) / max(h.total, 1); share >= hotShareMin {
			all = append(all, &flotillav1.HotKey{Key: []byte(k.key), Share: min(share, 1)})
		}
	}
	return all
}

// hotShareMin: what is asked for less is not named.
const hotShareMin = 0.01
