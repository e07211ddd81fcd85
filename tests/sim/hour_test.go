package sim

import (
	"flag"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/shardctrler"
)

var ordersFlag = flag.Duration("orders", 0, "how long an operator is at work in TestAnOperatorsHour, in the world's time; 0: as long as fits into a test run")

// TestAnOperatorsHour: somebody orders something each second, at random, while
// faults come and go. Once a second everything is asked about, and each decision is
// taken again.
func TestAnOperatorsHour(t *testing.T) {
	at := *ordersFlag
	switch {
	case at == 0 && testing.Short():
		at = 30 * time.Second
	case at == 0:
		at = 2 * time.Minute
	}
	w := newWorld(Options{Seed: *firstFlag})
	p := &w.profile
	p.nodes, p.replicas, p.groups, p.shards, p.clients, p.window, p.keys = 5, 3, 3, 8, 2, 2, 2
	p.damage, p.smallSend, p.mortal, p.leases, p.replace = damageNone, false, 0, false, 4*time.Second
	p.drop, p.delay, p.sync, p.drift = 10, 3*time.Millisecond, 3*time.Millisecond, 10
	p.moveEvery, p.faultEvery, p.opEvery, p.duration = time.Second, 3*time.Second, 500*time.Millisecond, at
	asked, moment := 0, time.Duration(0)
	w.watch = func() {
		if w.now-moment >= time.Second {
			moment = w.now
			asked++
			w.states.checkDecisions()
			w.states.checkExplained()
		}
	}
	r := w.run()
	if r.Violation != nil {
		t.Fatalf("seed %d: %v\nreplay: go test ./tests/sim -run TestAnOperatorsHour -first %d -orders %v", *firstFlag, r.Violation, *firstFlag, at)
	}
	decisions, events := shardctrler.DecisionID(0), uint64(0)
	for _, n := range w.nodes {
		if m := n.control.machine; m != nil {
			decisions, events = max(decisions, m.State().LastDecision), max(events, uint64(m.State().LastEvent))
		}
	}
	t.Logf("in %v of the world's time: %d times everything was asked about, %d decisions, %d events, %+v", r.Took, asked, decisions, events, r.Counts)
	// Half of what is ordered is refused, and little is decided while a leader is away.
	if c := r.Counts; decisions < shardctrler.DecisionID(at/(6*time.Second)) || c.Moves+c.Drains+c.Joins+c.Leaves < int(at/(15*time.Second)) {
		t.Error("hardly anything was ordered: the test tests nothing")
	}
}
