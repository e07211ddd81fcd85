package sim

import (
	"flag"
	"fmt"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/raft/multiraft"
	"github.com/flotilla-kv/flotilla/shardctrler"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// lookEvery is how close together looks are: no step takes less.
const lookEvery = 300 * time.Microsecond

// allSteps has TestEachStepOfAMove leave nothing out.
var allSteps = flag.Bool("all-steps", false, "TestEachStepOfAMove leaves out nothing")

// moveStep is how far a move has come.
type moveStep int

const (
	stepNone moveStep = iota
	stepOrdered
	stepImporting // the target has committed BeginImport
	stepExporting // the source has committed BeginExport
	stepHandedOff // the source has committed HandOff
	stepServed    // the target has committed Activate
	stepDeleted   // the source has deleted its copy
	stepDone      // the config group has recorded it
	moveSteps
)

func (s moveStep) String() string {
	return [...]string{"none", "ordered", "importing", "exporting", "handed-off", "served", "deleted", "done"}[s]
}

// script moves a shard in a calm world and does one thing to one node when the
// move has come so far.
type script struct {
	*testing.T
	w      *world
	step   moveStep
	victim string // source, target or config: whose leader
	fault  string // kill, pause or cut
	twice  bool

	from, to raft.GroupID
	ordered  time.Duration // 0: not yet
	looked   time.Duration
	injected int
	reached  moveStep
}

// TestEachStepOfAMove: the leader of the source, of the target (who drives the
// move) or of the config group is killed, paused or cut off when the move has
// just come to a step, once or twice. The move ends, no write is lost or counts
// twice, and one group serves.
func TestEachStepOfAMove(t *testing.T) {
	seed := uint64(0)
	for step := stepOrdered; step < moveSteps; step++ {
		for _, victim := range []string{"source", "target", "config"} {
			for _, fault := range []string{"kill", "pause", "cut"} {
				for _, twice := range []bool{false, true} {
					seed++
					if !*allSteps && (seed%2 == 1 || testing.Short() && seed%18 != 0) {
						continue
					}
					name := fmt.Sprintf("%v/%s/%s", step, victim, fault)
					if twice {
						name += "/twice"
					}
					t.Run(name, func(t *testing.T) {
						s := &script{T: t, step: step, victim: victim, fault: fault, twice: twice}
						s.play(seed)
					})
				}
			}
		}
	}
}

func (s *script) play(seed uint64) {
	w := newWorld(Options{Seed: seed})
	p := &w.profile
	p.nodes, p.replicas, p.groups, p.shards, p.clients, p.window, p.keys = 5, 3, 2, 4, 3, 3, 2
	p.drop, p.repeat, p.late, p.flip, p.drift, p.mortal = 0, 0, 0, 0, 0, 0
	p.delay, p.sync, p.flush = 2*time.Millisecond, 2*time.Millisecond, 50*time.Millisecond
	p.leases, p.smallSend, p.damage, p.replace = false, false, damageNone, 0
	p.moveEvery, p.faultEvery = 0, 1000*time.Hour
	p.opEvery, p.duration = 5*time.Millisecond, 4*time.Second
	s.w = w
	w.watch = s.look
	r := w.run()
	defer func() {
		if s.Failed() {
			s.Logf("replay: go test ./tests/sim -all-steps -run '^%s$'", s.Name())
		}
	}()
	switch {
	case r.Violation != nil:
		s.Fatalf("seed %d: %v", seed, r.Violation)
	case s.injected == 0:
		s.Fatalf("the move came to %v, never to %v", s.reached, s.step)
	case s.reached != stepDone:
		s.Fatalf("the move came to %v", s.reached)
	}
}

// look is called behind each event.
func (s *script) look() {
	w := s.w
	if w.phase == phaseFaulty && s.ordered == 0 {
		s.order()
	}
	if s.ordered == 0 || s.reached == stepDone || w.now-s.looked < lookEvery {
		return
	}
	s.looked = w.now
	s.reached = max(s.reached, s.now())
	if s.injected == 0 && s.reached >= s.step {
		s.inject()
	}
}

// order has the shard of a key that is written moved to the other group.
func (s *script) order() {
	n := s.leader(raft.ConfigGroup)
	if n == nil {
		return
	}
	state := n.control.machine.State()
	shard := shardmap.Shard([]byte("c0"), s.w.profile.shards)
	s.from = state.Shards[shard].Group
	s.to = 2 + (s.from-2+1)%2
	s.ordered = s.w.now
	var propose func()
	propose = func() {
		if n := s.leader(raft.ConfigGroup); n != nil {
			n.host.ProposeUrgent(raft.ConfigGroup, shardctrler.EncodeCommand(shardctrler.OrderMove{Shard: shard, To: s.to}), func(multiraft.Result) {})
			n.settle()
		}
		s.w.after(300*time.Millisecond, func() {
			if s.reached == stepNone {
				propose()
			}
		})
	}
	s.w.after(0, propose)
}

// leader is the node that leads a group, as it says itself, of the highest term.
func (s *script) leader(g raft.GroupID) (best *node) {
	var term raft.Term
	for _, n := range s.w.upNodes() {
		if n.host == nil {
			continue
		}
		if st, ok := n.host.Status(g); ok && st.Role == raft.Leader && st.Term > term {
			best, term = n, st.Term
		}
	}
	return best
}

// now is how far the move has come, by what leaders show.
func (s *script) now() moveStep {
	step := stepNone
	if n := s.leader(raft.ConfigGroup); n != nil {
		for _, m := range n.control.machine.State().Moves {
			step = stepOrdered
			if m.State == shardctrler.MoveDone {
				return stepDone
			}
		}
	}
	if n := s.leader(s.to); n != nil {
		for _, m := range n.kv.MoveReports(s.to) {
			step = max(step, stepImporting)
			if m.GetPhase() == "verifying" {
				step = stepServed
			}
		}
	}
	n := s.leader(s.from)
	if n == nil || step < stepImporting && s.reached < stepImporting {
		return step
	}
	for _, sh := range n.kv.ShardStatuses(s.from) {
		if sh.GetShard() != uint64(shardmap.Shard([]byte("c0"), s.w.profile.shards)) {
			continue
		}
		switch sh.GetState() {
		case "exporting":
			step = max(step, stepExporting)
		case "handed-off":
			step = max(step, stepHandedOff)
		case "absent":
			step = max(step, stepDeleted)
		}
	}
	return step
}

// inject does it, and again when it is over.
func (s *script) inject() {
	group := map[string]raft.GroupID{"source": s.from, "target": s.to, "config": raft.ConfigGroup}[s.victim]
	n := s.leader(group)
	if n == nil {
		return // with the next event
	}
	s.injected++
	w := s.w
	over := 600 * time.Millisecond
	w.note("script", n.place, uint64(s.reached), 0, func() string { return s.fault })
	w.after(0, func() {
		switch s.fault {
		case "kill":
			n.crash()
			w.after(over, n.revive)
		case "pause":
			n.pause(over)
		default:
			w.network.split([]party{party(n.place)}, w.parties(), true)
			w.after(over, w.network.heal)
		}
	})
	if s.twice && s.injected == 1 {
		w.after(over+50*time.Millisecond, s.inject)
	}
}
