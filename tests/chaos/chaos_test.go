//go:build chaos

package chaos

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// roundsPerEpoch is after how many rounds the load is checked and begun anew on
// fresh keys.
const roundsPerEpoch = 3

// TestChaos draws rounds of faults from a seed until its time is up.
func TestChaos(t *testing.T) {
	s := *seed
	if s == 0 {
		s = uint64(time.Now().UnixNano())%1_000_000 + 1
	}
	if *nodes != 3 && *nodes != 5 {
		t.Fatalf("-nodes %d: 3 or 5", *nodes)
	}
	replay := fmt.Sprintf("make chaos DURATION=%v NODES=%d SEED=%d NETWORK=%s", *duration, *nodes, s, *networkKind)
	// Leases are an option of a group that the product does not set yet; half
	// of the seeds do.
	leases := rand.New(rand.NewPCG(s, 1)).IntN(2) == 0
	r := newRunner(t, clusterOptions{nodes: *nodes, leases: leases}, replay)
	o := r.operate(s)
	rounds := r.chaos(newSchedule(s, *nodes), *duration)
	o.end()
	if !r.failed() {
		r.finish()
	}
	r.summary(t, fmt.Sprintf("%d nodes on %s, seed %d, leases %v, %s: %d rounds in %d epochs",
		*nodes, r.cluster.network, s, leases, time.Since(r.began).Round(time.Second), rounds, len(r.epochs)))
}

// chaos runs rounds, an epoch for every few, until the time is up or a promise
// was broken.
func (r *runner) chaos(s *schedule, d time.Duration) (rounds int) {
	for end := time.Now().Add(d); time.Now().Before(end) && !r.failed(); rounds++ {
		if r.epoch == nil {
			r.load()
		}
		r.round(rounds+1, s.next())
		if (rounds+1)%roundsPerEpoch == 0 {
			r.judge()
		}
	}
	if r.epoch != nil {
		r.judge()
	}
	return rounds
}

// round injects the faults of a round, holds them, heals them and requires that
// all serves again.
func (r *runner) round(number int, drawn round) {
	var names []string
	drawn.heal = slices.Clone(drawn.heal)
	var done []int
	for i, f := range drawn.faults {
		if f.needs != nil && !f.needs(r.cluster.network) {
			r.skipped[f.name] = "not possible on " + r.cluster.network.String()
			continue
		}
		r.inject(f)
		names, done = append(names, f.name), append(done, i)
	}
	if len(done) == 0 {
		return
	}
	r.wait(drawn.hold)
	for _, i := range drawn.heal {
		if slices.Contains(done, i) {
			r.heal(drawn.faults[i])
		}
	}
	healed := time.Now()
	what := fmt.Sprintf("round %d: %s", number, strings.Join(names, "+"))
	r.note("healed", "", fmt.Sprintf("%s, held %s", what, drawn.hold))
	r.recovered(healed, what)
}

func (r *runner) inject(f fault) {
	where, err := f.inject(r, f)
	r.must(err)
	r.note(f.name, where, "")
	r.injured[f.name]++
}

func (r *runner) heal(f fault) {
	if f.heal == nil {
		r.must(r.mend(f.class, f.order))
		return
	}
	r.must(f.heal(r, f))
}
