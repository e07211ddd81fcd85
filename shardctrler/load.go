package shardctrler

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// ShardLoad is what the requests of a shard cost a second, smoothed.
type ShardLoad struct {
	Shard  shardmap.ShardID
	Reads  uint64
	Writes uint64
	Bytes  uint64 // of keys and values, in and out
}

// bytesPerRequest: so many bytes cost about what a request costs.
const bytesPerRequest = 4 << 10

// weight is all of it, in requests a second.
func (l ShardLoad) weight() uint64 { return l.Reads + l.Writes + l.Bytes/bytesPerRequest }

// weight of all shards of a group, as far as they are told.
func (g ObservedGroup) weight() (sum uint64) {
	for _, l := range g.Loads {
		sum += l.weight()
	}
	return sum
}

// observedGroups are the groups as the leaders of the highest terms report them,
// ascending.
func observedGroups(reports []*flotillav1.NodeReport) []ObservedGroup {
	groups := make(map[raft.GroupID]ObservedGroup)
	for _, rep := range reports {
		loads := make(map[uint64]*flotillav1.GroupLoad, len(rep.GetLoads()))
		for _, l := range rep.GetLoads() {
			loads[l.GetGroup()] = l
		}
		for _, g := range rep.GetGroups() {
			seen := observedGroup(g)
			if before, ok := groups[seen.ID]; !ok || before.Term < seen.Term {
				seen.Measured, seen.Loads = observedLoad(loads[g.Id])
				groups[seen.ID] = seen
			}
		}
	}
	return slices.SortedFunc(maps.Values(groups), func(a, b ObservedGroup) int { return compare(a.ID, b.ID) })
}

// observedLoad is a group's load as it was reported; nil: it was not.
func observedLoad(w *flotillav1.GroupLoad) (measured time.Duration, loads []ShardLoad) {
	for _, s := range w.GetShards() {
		loads = append(loads, ShardLoad{Shard: shardmap.ShardID(s.GetShard()), Reads: s.GetReadsPerS(), Writes: s.GetWritesPerS(), Bytes: s.GetBytesPerS()})
	}
	slices.SortFunc(loads, func(a, b ShardLoad) int { return compare(a.Shard, b.Shard) })
	return time.Duration(max(0, w.GetMeasuredMs())) * time.Millisecond, loads
}

// ownLoads leaves of a group's loads those of the shards that are its own: a
// shard that went is asked for at its former group for a while.
func ownLoads(shards []shardmap.Assignment, group raft.GroupID, loads []ShardLoad) []ShardLoad {
	return slices.DeleteFunc(slices.Clone(loads), func(l ShardLoad) bool {
		return uint64(l.Shard) >= uint64(len(shards)) || shards[l.Shard].Group != group
	})
}

// Reassign gives shards to other groups, because of what their requests cost. It
// makes one config, and takes effect by being committed.
type Reassign struct {
	Config   shardmap.ConfigNum // it was planned for
	Shards   []Reassigned       // ascending
	Expected Expectation
}

// Expectation is what moves for load are to bring.
type Expectation struct {
	Group  raft.GroupID // 0: nothing
	Weight uint64       // that the group is left with, in requests a second
}

// NoteEffect records what moves for load have brought. It takes effect by being
// committed.
type NoteEffect struct {
	Config shardmap.ConfigNum
	Has    uint64 // the group, in requests a second
	Others uint64 // the one of the others that has most
}

// Reassigned is a shard and the group that it should be at.
type Reassigned struct {
	Shard shardmap.ShardID
	To    raft.GroupID
}

func (Reassign) kind() string   { return "balance-load" }
func (NoteEffect) kind() string { return "load-balanced" }

func (Reassign) onGroup() (raft.GroupID, bool)   { return 0, false }
func (NoteEffect) onGroup() (raft.GroupID, bool) { return 0, false }

// Bounds of balancing by load: shards move for it only where it is worth it and
// will stay so.
const (
	loadSettle   = 30 * time.Second // for how long loads are measured, all is quiet, and a group has too much, first
	loadWorth    = 1_000            // a second: below that no group has too much
	loadOver     = 1.25             // times the mean of the groups: a group with more has too much
	loadGain     = 0.10             // of what the busiest group has: by so much the most must become less
	loadLeast    = 0.001            // of the mean: a shard with less is not moved
	loadAlone    = 0.02             // of a hot shard's group: neighbours with less together stay
	reassignsMax = 256              // at once; what is left comes when these have settled
)

// balanceLoad moves shards from groups that have far more to do than others.
func (p *planner) balanceLoad() {
	s := p.state
	if len(s.Configs) == 0 || p.observed.Quiet < loadSettle || len(s.movingShards()) > 0 || len(p.operations) > 0 {
		return
	}
	config, groups := s.config(), s.servingGroups()
	for shard, at := range s.Shards {
		if at.Group != config.Owners[shard] {
			return
		}
	}
	b := &loadBalance{weights: make(map[raft.GroupID]uint64), hottest: make(map[raft.GroupID]placed)}
	for _, id := range groups {
		seen, known := p.group(id)
		if g, _ := s.group(id); !known || !g.Born || seen.Leader == 0 || seen.Measured < loadSettle {
			return
		}
		for _, l := range ownLoads(s.Shards, id, seen.Loads) {
			b.weights[id] += l.weight()
			if _, pinned := slices.BinarySearch(config.Pinned, l.Shard); !pinned {
				b.shards = append(b.shards, placed{l.Shard, id, l.weight()})
			}
			if b.hottest[id].weight < l.weight() {
				b.hottest[id] = placed{l.Shard, id, l.weight()}
			}
		}
	}
	if e := config.Expected; e.Group != 0 && !config.Noted {
		has, others := b.weights[e.Group], uint64(0)
		for g, weight := range b.weights {
			if g != e.Group {
				others = max(others, weight)
			}
		}
		p.add(NoteEffect{config.Num, has, others}, "config %d was to leave group %d %d requests a second: it has %d, and each other at most %d",
			config.Num, e.Group, e.Weight, has, others)
		return
	}
	b.lasting = func(id raft.GroupID) bool { seen, _ := p.group(id); return seen.Over >= loadSettle }
	b.balance(groups)
	if len(b.moved) > 0 {
		expected := Expectation{b.reliefs[0].group, b.weights[b.reliefs[0].group]}
		p.add(Reassign{Config: config.Num, Shards: b.moved, Expected: expected}, "%s", b.reason())
	}
}

// tooMuch are the groups that have far more to do than the others, by what is
// observed.
func tooMuch(s *State, o Observed) map[raft.GroupID]bool {
	type group struct {
		id     raft.GroupID
		weight uint64
	}
	var groups []group
	sum := uint64(0)
	for _, g := range o.Groups {
		if g.Measured > 0 {
			groups = append(groups, group{g.ID, loadAt(s, g)})
			sum += groups[len(groups)-1].weight
		}
	}
	slices.SortStableFunc(groups, func(a, b group) int { return cmp.Compare(b.weight, a.weight) })
	over := make(map[raft.GroupID]bool)
	for i, g := range groups { // those before it do not count
		if g.weight < loadWorth || float64(g.weight)*float64(len(groups)-i) <= loadOver*float64(sum) {
			break
		}
		over[g.id] = true
		sum -= g.weight
	}
	return over
}

// loadBalance is one attempt to even out what groups have to do.
type loadBalance struct {
	weights map[raft.GroupID]uint64
	hottest map[raft.GroupID]placed // of each group, pinned or not
	shards  []placed                // that may be moved
	moved   []Reassigned
	most    int // that may be moved in all
	lasting func(raft.GroupID) bool

	reliefs []relief // the group that had most first
}

// placed is a shard with what it costs, and its group.
type placed struct {
	shard  shardmap.ShardID
	group  raft.GroupID
	weight uint64
}

// relief is what a group had and has, and the others.
type relief struct {
	group               raft.GroupID
	mean, before, after uint64
	hot                 placed // that fills a group alone; weight 0: there is none
	shards              int    // that go
}

// balance relieves the group that has the most to do, then the next: of what
// evens groups out, or, if one of its shards is more than a group should have,
// of that shard's neighbours, which are better off elsewhere. A group that was
// relieved, or cannot be, no longer counts.
func (b *loadBalance) balance(groups []raft.GroupID) {
	open := slices.Clone(groups)
	b.most = reassignsMax
	for len(open) > 1 && len(b.moved) < b.most {
		sum := uint64(0)
		for _, g := range open {
			sum += b.weights[g]
		}
		r := relief{mean: sum / uint64(len(open))}
		r.group = b.extreme(open, func(a, than uint64) bool { return a > than })
		r.before = b.weights[r.group]
		if r.before < loadWorth || float64(r.before) <= loadOver*float64(r.mean) {
			break
		}
		if whole := r; b.lasting(r.group) && b.trial(len(b.shards)).relieve(&whole, open) {
			tried := b.trial(b.most) // what is left comes when these have settled
			tried.relieve(&r, open)
			r.shards = len(tried.moved) - len(b.moved)
			b.weights, b.shards, b.moved = tried.weights, tried.shards, tried.moved
			b.reliefs = append(b.reliefs, r)
		}
		open = slices.DeleteFunc(open, func(g raft.GroupID) bool { return g == r.group })
	}
	slices.SortFunc(b.moved, func(a, b Reassigned) int { return compare(a.Shard, b.Shard) })
}

// trial is a copy that may move so many.
func (b *loadBalance) trial(most int) *loadBalance {
	return &loadBalance{weights: maps.Clone(b.weights), hottest: b.hottest, shards: slices.Clone(b.shards), moved: slices.Clone(b.moved), most: max(most, b.most)}
}

// relieve moves shards of a group to those that have least to do, and tells
// whether that is worth it.
func (b *loadBalance) relieve(r *relief, open []raft.GroupID) bool {
	if hot := b.hottest[r.group]; hot.weight > r.mean && 2*hot.weight > r.before {
		r.hot = hot
		b.isolate(r, open)
		return float64(r.before-b.weights[r.group]) >= loadAlone*float64(r.before)
	}
	b.evenOut(r, open)
	return float64(r.after) <= (1-loadGain)*float64(r.before)
}

// evenOut moves, each time, the shard that evens out most, until the group has
// about the mean.
func (b *loadBalance) evenOut(r *relief, open []raft.GroupID) {
	for len(b.moved) < b.most && b.weights[r.group] > r.mean {
		to := b.idlest(open)
		best, most := -1, b.weights[r.group]
		for i, s := range b.shards {
			if !b.movable(s, r) {
				continue
			}
			if after := max(b.weights[r.group]-s.weight, b.weights[to]+s.weight); after < most {
				best, most = i, after
			}
		}
		if best < 0 {
			break
		}
		b.move(r, best, to)
	}
	r.after = max(r.after, b.weights[r.group])
}

// isolate moves all shards of the group but the hot one, the heaviest first.
func (b *loadBalance) isolate(r *relief, open []raft.GroupID) {
	var neighbours []int
	for i, s := range b.shards {
		if b.movable(s, r) && s.shard != r.hot.shard {
			neighbours = append(neighbours, i)
		}
	}
	slices.SortStableFunc(neighbours, func(i, j int) int { return cmp.Compare(b.shards[j].weight, b.shards[i].weight) })
	for _, i := range neighbours[:min(len(neighbours), b.most-len(b.moved))] {
		b.move(r, i, b.idlest(open))
	}
}

func (b *loadBalance) movable(s placed, r *relief) bool {
	return s.group == r.group && float64(s.weight) >= loadLeast*float64(r.mean)
}

// move gives a shard to a group.
func (b *loadBalance) move(r *relief, i int, to raft.GroupID) {
	s := &b.shards[i]
	b.weights[s.group] -= s.weight
	b.weights[to] += s.weight
	s.group = to
	if i := slices.IndexFunc(b.moved, func(m Reassigned) bool { return m.Shard == s.shard }); i >= 0 {
		b.moved[i].To = to // it came to this group a moment ago
	} else {
		b.moved = append(b.moved, Reassigned{s.shard, to})
	}
	r.after = max(r.after, b.weights[to])
}

func (b *loadBalance) idlest(groups []raft.GroupID) raft.GroupID {
	return b.extreme(groups, func(a, than uint64) bool { return a < than })
}

// extreme is the group that beats all others, the lowest of equals.
func (b *loadBalance) extreme(groups []raft.GroupID, beats func(a, than uint64) bool) raft.GroupID {
	best := groups[0]
	for _, g := range groups[1:] {
		if beats(b.weights[g], b.weights[best]) {
			best = g
		}
	}
	return best
}

// reasonsMax is for how many groups a reason says why they are relieved.
const reasonsMax = 4

func (b *loadBalance) reason() string {
	var texts []string
	for i, r := range b.reliefs {
		if i == reasonsMax {
			texts = append(texts, fmt.Sprintf("and %d groups more", len(b.reliefs)-i))
			break
		}
		text := fmt.Sprintf("group %d has %d requests a second, %.1f times the mean of %d", r.group, r.before, float64(r.before)/float64(max(r.mean, 1)), r.mean)
		if r.hot.weight > 0 {
			text += fmt.Sprintf("; shard %d alone has %d, so its neighbours leave", r.hot.shard, r.hot.weight)
		}
		texts = append(texts, fmt.Sprintf("%s: %d shards go to groups with less to do, and it keeps %d", text, r.shards, b.weights[r.group]))
	}
	return strings.Join(texts, "; ")
}

// reassign makes the config.
func (d *draft) reassign(o Operation, r Reassign) error {
	config := d.config()
	if r.Config != config.Num {
		return stale("it was planned for config %d, and it is %d", r.Config, config.Num)
	}
	if len(r.Shards) == 0 || len(r.Shards) > reassignsMax {
		return invalid("%d shards to be reassigned: it must be 1 to %d", len(r.Shards), reassignsMax)
	}
	owners, serving := slices.Clone(config.Owners), d.servingGroups()
	for _, s := range r.Shards {
		if uint64(s.Shard) >= uint64(len(owners)) || !slices.Contains(serving, s.To) {
			return stale("shard %d cannot go to group %d", s.Shard, s.To)
		}
		if _, pinned := slices.BinarySearch(config.Pinned, s.Shard); pinned {
			return stale("shard %d is pinned", s.Shard)
		}
		owners[s.Shard] = s.To
	}
	d.addConfig(o.Reason, owners, config.Pinned)
	d.Configs[len(d.Configs)-1].Expected = r.Expected
	d.addOperationEvent(d.take(o), r.kind(), "cluster", fmt.Sprintf("config %d: %s", d.config().Num, o.Reason))
	return nil
}

func (d *draft) noteEffect(o Operation, n NoteEffect) error {
	config := d.config()
	if config.Num != n.Config || config.Expected.Group == 0 || config.Noted {
		return stale("config %d waits for no effect", n.Config)
	}
	d.Configs = own(d, recordConfig, d.Configs)
	d.Configs[len(d.Configs)-1].Noted = true
	d.touched[recordKey{recordConfig, uint64(config.Num)}] = true
	d.addOperationEvent(d.take(o), n.kind(), "cluster", o.Reason)
	return nil
}

// loadText is a load as explanations show it.
func loadText(l ShardLoad) string {
	return fmt.Sprintf("%d reads and %d writes a second with %d bytes", l.Reads, l.Writes, l.Bytes)
}

func (e *encoder) reassign(r Reassign) {
	e.uint(uint64(r.Config))
	e.count(len(r.Shards))
	for _, s := range r.Shards {
		e.uint(uint64(s.Shard))
		e.uint(uint64(s.To))
	}
	e.uint(uint64(r.Expected.Group))
	e.uint(r.Expected.Weight)
}

func (d *decoder) reassign() Reassign {
	r := Reassign{Config: shardmap.ConfigNum(d.uint())}
	for range d.count() {
		r.Shards = append(r.Shards, Reassigned{shardmap.ShardID(d.uint()), raft.GroupID(d.uint())})
	}
	r.Expected = Expectation{Group: raft.GroupID(d.uint()), Weight: d.uint()}
	return r
}

// latestLoads are the loads that the leaders of the highest terms counted,
// ascending by group.
func latestLoads(reports []report) []*flotillav1.GroupLoad {
	terms := make(map[uint64]int64)
	loads := make(map[uint64]*flotillav1.GroupLoad)
	for _, r := range reports {
		for _, g := range r.report.GetGroups() {
			if before, known := terms[g.Id]; known && before >= g.Term {
				continue
			}
			terms[g.Id] = g.Term
			delete(loads, g.Id)
			for _, l := range r.report.GetLoads() {
				if l.Group == g.Id {
					loads[g.Id] = l
				}
			}
		}
	}
	return slices.SortedFunc(maps.Values(loads), func(a, b *flotillav1.GroupLoad) int { return cmp.Compare(a.Group, b.Group) })
}
