package shardctrler

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

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
