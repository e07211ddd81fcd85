package sim

import (
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"time"

	"github.com/flotilla-kv/flotilla/internal/assert"
	"github.com/flotilla-kv/flotilla/raft"
)

// Options say what to simulate. Everything else is drawn from the seed.
type Options struct {
	Seed uint64
	// Faulty is how long faults last, in the world's time. 0: as the seed says,
	// 3 to 8 s.
	Faulty time.Duration
	// Timeline, if set, gets a line an event.
	Timeline func(line string)
	// Logs puts what the nodes log into the timeline too.
	Logs bool
}

// Result is what a run came to.
type Result struct {
	Hash      uint64 // of the trace
	Violation error  // nil: everything held
	Took      time.Duration
	Profile   string
	Counts    Counts
}

// Counts are what happened in a run.
type Counts struct {
	Events, Operations, Unknown, Failed int
	Leaders, Crashes, Restarts, Cuts    int
	Snapshots, Wiped, FullDisks, Pauses int
	Partitions, Jumps, Transfers        int
	Moves, Moved, Cancels               int // ordered, carried out, and wished to be cancelled
	Joins, Leaves, Drains               int // of groups, and of nodes; also those that end a drain
	Stops, Damaged                      int // graceful ends; snapshots that lost a bit on their way
	Watched, Resets                     int // events that the watch was told of; shards of which it was told anew
	Unchecked                           int // keys whose operations nobody could put into an order in time
}

// Add adds another run's.
func (c *Counts) Add(o Counts) {
	c.Events += o.Events
	c.Operations += o.Operations
	c.Unknown += o.Unknown
	c.Failed += o.Failed
	c.Leaders += o.Leaders
	c.Crashes += o.Crashes
	c.Restarts += o.Restarts
	c.Cuts += o.Cuts
	c.Snapshots += o.Snapshots
	c.Wiped += o.Wiped
	c.FullDisks += o.FullDisks
	c.Pauses += o.Pauses
	c.Partitions += o.Partitions
	c.Jumps += o.Jumps
	c.Transfers += o.Transfers
	c.Moves += o.Moves
	c.Moved += o.Moved
	c.Cancels += o.Cancels
	c.Joins += o.Joins
	c.Leaves += o.Leaves
	c.Drains += o.Drains
	c.Stops += o.Stops
	c.Damaged += o.Damaged
	c.Watched += o.Watched
	c.Resets += o.Resets
	c.Unchecked += o.Unchecked
}

// Violation says which property did not hold.
type Violation struct {
	Property string
	Detail   string
}

// Error names the property first.
func (v *Violation) Error() string { return v.Property + ": " + v.Detail }

// epoch is the world's beginning on every right clock.
var epoch = time.UnixMilli(1_700_000_000_000).UTC()

// phase is a part of a run.
type phase uint8

const (
	phaseFound phase = iota
	phaseFaulty
	phaseHealed
)

// world is everything, in one goroutine.
type world struct {
	options Options
	profile profile
	rng     *rand.Rand
	now     time.Duration
	events  eventQueue
	trace   trace
	counts  Counts

	phase    phase
	healedAt time.Duration
	done     bool
	err      error

	network network
	nodes   []*node // those that were wiped too: they never come back
	clients []*client
	leap    time.Duration // by how much all right clocks have leapt

	raft    raftChecker
	states  stateChecker
	history history
	watcher *watcher

	watch   func()  // is called behind each event; nil: nobody watches
	tasks   []*task // that wait in the middle, to be ended with the world
	running *task
}

// Run simulates the cluster of a seed.
func Run(o Options) Result { return newWorld(o).run() }

func newWorld(o Options) *world {
	rng := rand.New(rand.NewPCG(o.Seed, 0x666c6f7469))
	w := &world{options: o, rng: rng, profile: drawProfile(rng)}
	w.trace = trace{line: o.Timeline}
	w.network = newNetwork(w)
	w.raft = newRaftChecker(w)
	w.states = newStateChecker(w)
	return w
}

func (w *world) run() Result {
	w.found()
	w.live()
	w.end()
	return Result{Hash: w.trace.hash, Violation: w.err, Took: w.now, Profile: w.profile.String(), Counts: w.counts}
}

// live runs events until the run is done or something did not hold.
func (w *world) live() {
	defer func() {
		if p := recover(); p != nil {
			w.fail("Assertion", "%v\n%s", p, debug.Stack())
		}
	}()
	for w.err == nil && !w.done {
		e, ok := w.events.pop()
		assert.That(ok, "the world has nothing left to do")
		w.now = e.at
		w.counts.Events++
		e.do()
		if w.watch != nil {
			w.watch()
		}
	}
}

// end lets what waits in the middle of something go.
func (w *world) end() {
	for _, t := range w.tasks {
		t.stop()
	}
}

func (w *world) fail(property, format string, args ...any) {
	if w.err == nil {
		w.err = &Violation{Property: property, Detail: fmt.Sprintf("at %d ms: ", w.now.Milliseconds()) + fmt.Sprintf(format, args...)}
	}
}

// after has do happen in d.
func (w *world) after(d time.Duration, do func()) { w.events.push(w.now+max(d, 0), do) }

// every has do happen again and again.
func (w *world) every(interval func() time.Duration, do func()) {
	w.after(interval(), func() {
		do()
		w.every(interval, do)
	})
}

// clock is the right time.
func (w *world) clock() time.Time { return epoch.Add(w.now + w.leap) }

// upTo draws from [0, d).
func (w *world) upTo(d time.Duration) time.Duration {
	return time.Duration(w.rng.Int64N(int64(max(d, 1))))
}

// between draws from [lo, hi).
func (w *world) between(lo, hi time.Duration) time.Duration { return lo + w.upTo(hi-lo) }

// chance is true in percent of a hundred draws.
func (w *world) chance(percent int) bool { return w.rng.IntN(100) < percent }

// find is the node that is registered under an id, nil if none is.
func (w *world) find(id raft.NodeID) *node {
	for _, n := range w.nodes {
		if n.id == id && id != 0 && !n.wiped {
			return n
		}
	}
	return nil
}

// upNodes are the nodes that run.
func (w *world) upNodes() (up []*node) {
	for _, n := range w.nodes {
		if n.up() {
			up = append(up, n)
		}
	}
	return up
}

func (w *world) anyUp() *node {
	if up := w.upNodes(); len(up) > 0 {
		return up[w.rng.IntN(len(up))]
	}
	return nil
}
