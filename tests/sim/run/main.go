// Run simulates clusters from seeds: one with its timeline, or as many as are
// asked for.
//
//	run -seed 7              replays seed 7; its last line is the hash of its trace
//	run -first 1 -seeds 1000 runs seeds 1 to 1000
//	run -for 2h              runs seeds until the time is over, or it is stopped
//
// A violation is printed when it is found, as "seed <n>: violation: <name>",
// its timeline is kept in a file, and the exit status is 1 at the end.
package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/flotilla-kv/flotilla/tests/sim"
)

// gcPercent lets garbage grow to several times of what lives, which is little: a
// sixth of the time went into collecting it.
const gcPercent = 800

func main() {
	var o options
	flag.Uint64Var(&o.seed, "seed", 0, "replay this seed with its timeline")
	flag.BoolVar(&o.logs, "logs", false, "with -seed: what the nodes log goes into the timeline too")
	flag.Uint64Var(&o.first, "first", 1, "the first seed")
	flag.Uint64Var(&o.seeds, "seeds", 0, "how many seeds; 0: until the time is over")
	flag.DurationVar(&o.duration, "for", 0, "for how long; 0: until all seeds are run, or it is stopped")
	flag.IntVar(&o.workers, "workers", runtime.NumCPU(), "how many at once")
	flag.StringVar(&o.keep, "keep", "sim-failures", "directory for the timelines of what failed")
	flag.Parse()
	debug.SetGCPercent(gcPercent)
	if flag.NArg() > 0 || o.workers < 1 {
		flag.Usage()
		os.Exit(2)
	}
	if o.seed != 0 {
		os.Exit(replay(o.seed, o.logs))
	}
	os.Exit(o.run())
}

type options struct {
	seed     uint64
	logs     bool
	first    uint64
	seeds    uint64
	duration time.Duration
	workers  int
	keep     string
}

// replay prints the timeline of a seed.
func replay(seed uint64, logs bool) (status int) {
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	r := sim.Run(sim.Options{Seed: seed, Logs: logs, Timeline: func(line string) { fmt.Fprintln(out, line) }})
	fmt.Fprintf(out, "profile: %s\n", r.Profile)
	fmt.Fprintf(out, "counts: %+v\n", r.Counts)
	if r.Violation != nil {
		status = 1
		fmt.Fprintf(out, "seed %d: violation: %v\n", seed, r.Violation)
	}
	fmt.Fprintf(out, "trace hash: %016x\n", r.Hash)
	return status
}

// run runs seeds with all workers until it is done or stopped.
func (o *options) run() (status int) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if o.duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.duration)
		defer cancel()
	}
	began, cpu := time.Now(), cpuTime()
	var (
		next   atomic.Uint64
		total  tally
		worker sync.WaitGroup
	)
	for range o.workers {
		worker.Go(func() {
			for ctx.Err() == nil {
				n := next.Add(1) - 1
				if o.seeds != 0 && n >= o.seeds {
					return
				}
				total.add(sim.Run(sim.Options{Seed: o.first + n}), o.first+n, o.keep)
			}
		})
	}
	worker.Wait()
	spent := cpuTime() - cpu
	fmt.Printf("%d seeds from %d in %v: %d violations\n", total.seeds, o.first, time.Since(began).Round(time.Second), total.violations)
	fmt.Printf("simulated %.1f h in %.2f CPU h: %.0f h a CPU hour\n", total.simulated.Hours(), spent.Hours(), total.simulated.Hours()/spent.Hours())
	fmt.Printf("%+v\n", total.counts)
	if total.violations > 0 {
		return 1
	}
	return 0
}

// cpuTime is what the process has used so far.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// tally is what all runs came to.
type tally struct {
	mu         sync.Mutex // guards all below
	seeds      int
	violations int
	simulated  time.Duration
	counts     sim.Counts
}

// progressEvery is after how many seeds a line says how far it is.
const progressEvery = 1000

func (t *tally) add(r sim.Result, seed uint64, keep string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.seeds++
	t.simulated += r.Took
	t.counts.Add(r.Counts)
	if r.Violation != nil {
		t.violations++
		fmt.Printf("seed %d: violation: %v\nreplay: make sim SEED=%d\n", seed, r.Violation, seed)
		if err := keepTimeline(keep, seed); err != nil {
			fmt.Fprintf(os.Stderr, "the timeline of seed %d was not kept: %v\n", seed, err)
		}
	}
	if t.seeds%progressEvery == 0 {
		fmt.Printf("%d seeds, %d violations, %.1f h simulated\n", t.seeds, t.violations, t.simulated.Hours())
	}
}

// keepTimeline runs the seed again, into a file.
func keepTimeline(dir string, seed uint64) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	path := filepath.Join(dir, fmt.Sprintf("seed-%d.txt", seed))
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	out := bufio.NewWriter(file)
	r := sim.Run(sim.Options{Seed: seed, Logs: true, Timeline: func(line string) { fmt.Fprintln(out, line) }})
	fmt.Fprintf(out, "profile: %s\nviolation: %v\ntrace hash: %016x\n", r.Profile, r.Violation, r.Hash)
	if err := out.Flush(); err != nil {
		return err
	}
	fmt.Printf("timeline: %s\n", path)
	return file.Close()
}
