//go:build chaos

package chaos

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// round is some faults at once.
type round struct {
	faults []fault // in the order in which they are injected
	heal   []int   // in which they are healed
	hold   time.Duration
}

// schedule draws rounds from a seed. What it draws depends on nothing else, so
// the same seed is the same schedule, on whatever machine; whom "the leader"
// names shows when the fault is injected.
type schedule struct {
	random *rand.Rand
	nodes  int
	unseen []*kind // of which none was drawn yet: they come first, shuffled
}

func newSchedule(seed uint64, nodes int) *schedule {
	s := &schedule{random: rand.New(rand.NewPCG(seed, 0)), nodes: nodes, unseen: slices.Clone(kinds)}
	s.random.Shuffle(len(s.unseen), func(i, j int) { s.unseen[i], s.unseen[j] = s.unseen[j], s.unseen[i] })
	return s
}

// next draws a round: most have one fault, some two or three of different
// classes.
func (s *schedule) next() round {
	count := 1
	for count < 3 && s.random.IntN(5) < 2 {
		count++
	}
	var r round
	taken := make(map[class]bool)
	for range count {
		k := s.draw(taken)
		taken[k.class] = true
		f := fault{kind: k, order: s.random.Perm(s.nodes)}
		if len(k.amounts) > 0 {
			f.amount = k.amounts[s.random.IntN(len(k.amounts))]
		}
		r.faults = append(r.faults, f)
	}
	r.heal = s.random.Perm(count)
	r.hold = time.Duration(500+s.random.IntN(4_000)) * time.Millisecond
	return r
}

// draw is a kind of a class that is not taken: one that has not been seen, or
// else any by its weight. Processes and networks come twice as often as clocks
// and disks.
func (s *schedule) draw(taken map[class]bool) *kind {
	for i, k := range s.unseen {
		if !taken[k.class] {
			s.unseen = slices.Delete(s.unseen, i, i+1)
			return k
		}
	}
	var free []class
	for _, c := range []class{processes, processes, networks, networks, clocks, disks} {
		if !taken[c] {
			free = append(free, c)
		}
	}
	from := free[s.random.IntN(len(free))]
	var all []*kind
	for _, k := range kinds {
		for range max(1, k.weight) {
			if k.class == from {
				all = append(all, k)
			}
		}
	}
	return all[s.random.IntN(len(all))]
}

// TestSchedule: a seed draws the same rounds each time, another one others, and
// every kind comes soon.
func TestSchedule(t *testing.T) {
	const rounds = 40
	draw := func(seed uint64) (names []string) {
		s := newSchedule(seed, 5)
		for range rounds {
			r := s.next()
			taken := make(map[class]bool)
			for _, f := range r.faults {
				if taken[f.class] {
					t.Fatalf("seed %d: two faults of one class in %v", seed, r)
				}
				taken[f.class] = true
				names = append(names, f.name)
			}
		}
		return names
	}
	if a, b := draw(1), draw(1); !slices.Equal(a, b) {
		t.Errorf("seed 1 is\n%v\nand\n%v", a, b)
	}
	if slices.Equal(draw(1), draw(2)) {
		t.Error("seeds 1 and 2 are the same")
	}
	for _, k := range kinds {
		if !slices.Contains(draw(3), k.name) {
			t.Errorf("no %s in %d rounds", k.name, rounds)
		}
	}
}
