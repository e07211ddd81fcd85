package shardctrler

import (
	"reflect"
	"strings"
	"testing"

	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// facts are an explanation's, a line each.
func facts(x *Explanation) string { return strings.Join(x.Facts, "\n") }

// TestADecisionIsKeptWithItsInputs: from the load that was seen to what came of it.
func TestADecisionIsKeptWithItsInputs(t *testing.T) {
	w := &loadWorld{run: *afterBringUp(t), loads: make(map[shardmap.ShardID]ShardLoad)}
	for i := range w.state.Shards {
		w.loads[shardmap.ShardID(i)] = ShardLoad{Shard: shardmap.ShardID(i), Writes: 20}
	}
	w.loads[5] = ShardLoad{Shard: 5, Writes: 9_000}
	home := w.state.Shards[5].Group
	step := func() int {
		seen := w.observe()
		planned, moving := Plan(w.state, seen), len(w.state.movingShards())
		if len(planned) > 0 {
			w.must(t, CommitPlan(w.state, seen, planned))
		}
		for _, m := range w.state.underWay() {
			w.must(t, ReportMove{Move: m.ID, State: MoveDone, Pause: 4_000})
		}
		return len(planned) + moving
	}
	for range 200 {
		if step() == 0 {
			break
		}
	}
	s := w.state
	if len(s.Decisions) != 3 || s.LastDecision != 3 {
		t.Fatalf("%d decisions, the last %d", len(s.Decisions), s.LastDecision)
	}
	explained := func(id DecisionID) *Explanation {
		x, err := ExplainDecision(s, id)
		if err != nil {
			t.Fatal(err)
		}
		return x
	}
	balance, moves, effect := explained(1), explained(2), explained(3)
	for _, want := range []string{"the planner took it", "from: nodes 1 up, 2 up, 3 up, 4 up; 5 groups", "from loads", "group 3 11540", "balance-load: group 3 has 11540",
		"shard 5 alone has 9000", "in effect at once", "it is the same"} {
		if !strings.Contains(facts(balance), want) {
			t.Errorf("it does not say %q:\n%s", want, facts(balance))
		}
	}
	if len(balance.Parts) != explainedParts || len(balance.Parts[0].Candidates) != 4 {
		t.Errorf("parts %+v", balance.Parts)
	}
	for _, want := range []string{"127 operations", "from group 3 to group", "done in", "with a pause of 4ms", "and 63 operations more"} {
		if !strings.Contains(facts(moves), want) {
			t.Errorf("it does not say %q:\n%s", want, facts(moves))
		}
	}
	if want := "config 2 was to leave group 3 9000 requests a second: it has 9000, and each other at most"; !strings.Contains(facts(effect), want) {
		t.Errorf("it does not say %q:\n%s", want, facts(effect))
	}
	if x, _ := ExplainShard(s, w.observe(), s.shardsOf(home)[0]); !strings.Contains(facts(x), "9000 writes a second") {
		t.Errorf("the shard's load is not told:\n%s", facts(x))
	}
	for _, e := range s.Events {
		if (e.Kind == "move" || e.Kind == "move-done") && e.Decision != 2 {
			t.Fatalf("%+v", e)
		}
	}
	if _, err := ExplainDecision(s, 9); err == nil || !strings.Contains(err.Error(), "1 to 3") {
		t.Errorf("a decision that is none: %v", err)
	}
}

// TestReplayNoticesADifference: a record that is not what would be decided is told.
func TestReplayNoticesADifference(t *testing.T) {
	r := afterBringUp(t)
	seen := allUp(r.state)
	seen.Nodes[3] = ObservedNode{ID: 4, Silent: downAfter}
	planned := Plan(r.state, seen)
	if len(planned) == 0 {
		t.Fatal("nothing is planned")
	}
	r.must(t, CommitPlan(r.state, seen, planned))
	d := r.state.Decisions[0]
	if differs, err := d.Replay(); differs != "" || err != nil {
		t.Fatalf("%s, %v", differs, err)
	}
	d.Planned = clipped(d.Planned)
	d.Planned[0].Reason = "because"
	if differs, _ := d.Replay(); !strings.Contains(differs, "because") {
		t.Errorf("another reason: %q", differs)
	}
	d.Planned = d.Planned[:len(d.Planned)-1]
	if differs, _ := d.Replay(); differs == "" {
		t.Error("an operation is missing, and nobody says so")
	}
	d.Scene = nil
	if _, err := d.Replay(); err == nil {
		t.Error("it is decided again from nothing")
	}
	r.must(t, OrderMove{Shard: 7, To: r.state.Shards[8].Group})
	order := r.state.Decisions[1]
	if differs, err := order.Replay(); differs != "" || err != nil {
		t.Fatalf("%s, %v", differs, err)
	}
	r.must(t, CancelMove{Move: r.state.Moves[0].ID})
	r.must(t, ReportMove{Move: r.state.Moves[0].ID, State: MoveCancelled})
	r.must(t, CancelMove{Move: r.state.Moves[0].ID})
	if n := len(r.state.Decisions); n != 3 {
		t.Errorf("%d decisions after an order that is carried out already", n)
	}
	order.Digest++
	if differs, _ := order.Replay(); differs == "" {
		t.Error("an order led to another state, and nobody says so")
	}
}

// TestALatePlanIsKeptAsItWasMade: with what it was planned from, though the state
// has gone on, and with what of it was refused.
func TestALatePlanIsKeptAsItWasMade(t *testing.T) {
	r := afterBringUp(t)
	r.must(t, AddGroups{Groups: []NewGroup{{Nodes: []raft.NodeID{1, 2, 3}}, {Nodes: []raft.NodeID{2, 3, 4}}}})
	seen := allUp(r.state)
	planned := Plan(r.state, seen)
	plan := CommitPlan(r.state, seen, planned)
	r.must(t, Commit{Operations: planned[:1]})
	r.apply(Register{Registration: registrationOf("e")})
	refused := r.apply(plan).(Committed).Refused
	if len(refused) < 2 || refused[0] == nil || refused[1] != nil {
		t.Fatalf("answered %v", refused)
	}
	order, err := ExplainDecision(r.state, r.state.Decisions[0].ID)
	if err != nil || len(order.Parts) != 1 || len(order.Parts[0].Candidates) != 4 || !strings.Contains(order.Parts[0].Candidates[1].For[0], "gets 2") {
		t.Errorf("the order is explained by %+v, %v", order, err)
	}
	d := r.state.Decisions[1] // behind the order
	if d.Made[0] != 0 || d.Made[1] == 0 {
		t.Errorf("made %v", d.Made)
	}
	if differs, err := d.Replay(); differs != "" || err != nil {
		t.Errorf("%s, %v", differs, err)
	}
	if x, _ := ExplainDecision(r.state, d.ID); !strings.Contains(facts(x), "refused, as the state no longer was so") {
		t.Errorf("%s", facts(x))
	}
	all := r.apply(plan).(Committed).Refused
	for _, err := range all {
		if err == nil && len(r.state.Decisions) == 2 {
			t.Errorf("answered %v", all)
		}
	}
}

// TestDecisionsAreBounded in number and bytes.
func TestDecisionsAreBounded(t *testing.T) {
	d := begin(new(State), 1, 1)
	for i := range decisionsMax + 10 {
		d.addDecision(Decision{ID: DecisionID(i + 1)})
	}
	if n := len(d.Decisions); n != decisionsMax || d.Decisions[0].ID != 11 {
		t.Errorf("%d decisions from %d on", n, d.Decisions[0].ID)
	}
	for i := range 20 {
		d.addDecision(Decision{ID: DecisionID(decisionsMax + 11 + i), Scene: make([]byte, sceneMax)})
	}
	if n := len(d.Decisions); n > decisionBytesMax/sceneMax {
		t.Errorf("%d decisions of %d bytes", n, sceneMax)
	}
	if !d.touched[recordKey{recordDecision, 11}] {
		t.Error("one that is forgotten stays stored")
	}
}

// TestScenesRoundTrip, packed and plain; damage is an error.
func TestScenesRoundTrip(t *testing.T) {
	r := afterBringUp(t)
	w := &loadWorld{run: *r, loads: map[shardmap.ShardID]ShardLoad{3: {Shard: 3, Reads: 1, Writes: 1 << 40, Bytes: 7}}}
	seen := w.observe()
	seen.Groups[2].Members[1].Stalled, seen.Groups[2].Members[1].Lag = true, -1
	for _, b := range [][]byte{encodeScene(r.state, seen), packScene(r.state, seen)} {
		got, err := decodeScene(b)
		if err != nil || !reflect.DeepEqual(got.observed, seen) || !reflect.DeepEqual(got.state.Shards, r.state.Shards) ||
			!reflect.DeepEqual(got.state.Groups, r.state.Groups) || !reflect.DeepEqual(got.state.Nodes, r.state.Nodes) {
			t.Fatalf("%v: %+v", err, got)
		}
		for cut := range len(b) {
			if _, err := decodeScene(b[:cut]); err == nil {
				t.Fatalf("%d bytes of %d are a scene", cut, len(b))
			}
		}
	}
	if plain, packed := len(encodeScene(r.state, seen)), len(packScene(r.state, seen)); packed*2 > plain {
		t.Errorf("%d bytes packed are %d", plain, packed)
	}
}
