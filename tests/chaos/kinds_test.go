//go:build chaos

package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"time"

	"github.com/flotilla-kv/flotilla/internal/chaos"
)

// class is what a fault disturbs. A round draws at most one fault of each, so
// that what heals one cannot undo another.
type class uint8

const (
	processes class = iota
	networks
	clocks
	disks
	classes
)

// kind is a kind of fault.
type kind struct {
	name   string
	class  class
	weight int // of being drawn among those of its class; 0 stands for 1
	// amounts are what the kind can be drawn with, in its own unit.
	amounts []int
	// needs is what the network must be able to do, nil if any will do.
	needs func(network) bool
	// inject does it, and says to whom. It must leave nothing that heal does not
	// mend.
	inject func(*runner, fault) (where string, err error)
	// heal mends it; nil: what mends the class.
	heal func(*runner, fault) error
}

// fault is one that was drawn.
type fault struct {
	*kind
	order  []int // the nodes, shuffled: the victims are the first of them
	amount int
}

// minority of the nodes.
func (f fault) minority() []int { return f.order[:max(1, (len(f.order)-1)/2)] }

// kinds is everything that can happen.
var kinds = []*kind{
	{name: "kill", class: processes, weight: 3, inject: func(r *runner, f fault) (string, error) {
		return r.names(f.minority()), r.kill(f.minority())
	}},
	{name: "kill-leader", class: processes, weight: 2, inject: func(r *runner, f fault) (string, error) {
		victim := []int{r.leader(f.order[0])}
		return r.names(victim), r.kill(victim)
	}},
	{name: "crash-loop", class: processes, amounts: []int{20, 200, 800}, inject: crashLoop},
	{name: "restart-all", class: processes, inject: func(r *runner, f fault) (string, error) {
		return "all", errors.Join(r.kill(f.order), r.startAll(f.order))
	}},
	{name: "terminate", class: processes, weight: 2, inject: terminate},
	{name: "pause", class: processes, weight: 3, amounts: []int{200, 800, 2500}, inject: func(r *runner, f fault) (string, error) {
		return r.names(f.minority()), r.pause(f.minority(), time.Duration(f.amount)*time.Millisecond)
	}},
	{name: "pause-leader", class: processes, weight: 2, amounts: []int{800, 2500}, inject: func(r *runner, f fault) (string, error) {
		victim := []int{r.leader(f.order[0])}
		return r.names(victim), r.pause(victim, time.Duration(f.amount)*time.Millisecond)
	}},
	{name: "pause-all", class: processes, amounts: []int{500, 1500}, inject: func(r *runner, f fault) (string, error) {
		return "all", r.pause(f.order, time.Duration(f.amount)*time.Millisecond)
	}},
	{name: "fsync-error", class: processes, inject: func(r *runner, f fault) (string, error) {
		return r.names(f.order[:1]), r.breakDisk(f.order[0], "input/output error", func(s *chaos.Settings) { s.SyncFails = true })
	}},
	{name: "disk-full", class: processes, inject: func(r *runner, f fault) (string, error) {
		return r.names(f.order[:1]), r.breakDisk(f.order[0], "no space left on device", func(s *chaos.Settings) { s.DiskFull = true })
	}},

	{name: "isolate", class: networks, weight: 2, inject: func(r *runner, f fault) (string, error) {
		return r.names(f.order[:1]), r.split(f.order[:1], f.order[1:])
	}},
	{name: "isolate-leader", class: networks, weight: 2, inject: func(r *runner, f fault) (string, error) {
		victim := []int{r.leader(f.order[0])}
		return r.names(victim), r.split(victim, without1(f.order, victim[0]))
	}},
	{name: "partition", class: networks, weight: 2, inject: func(r *runner, f fault) (string, error) {
		few := f.minority()
		many := f.order[len(few):]
		return r.names(few) + "|" + r.names(many), r.split(few, many)
	}},
	{name: "bridge", class: networks, inject: bridge},
	{name: "ring", class: networks, inject: ring},
	{name: "chain", class: networks, inject: chain},
	{name: "one-way-out", class: networks, weight: 2, inject: func(r *runner, f fault) (string, error) {
		return r.names(f.order[:1]) + " ->x", r.each(f.order[:1], f.order[1:], r.cluster.network.cut)
	}},
	{name: "one-way-in", class: networks, weight: 2, inject: func(r *runner, f fault) (string, error) {
		return "x-> " + r.names(f.order[:1]), r.each(f.order[1:], f.order[:1], r.cluster.network.cut)
	}},
	{name: "swizzle-clog", class: networks, weight: 2, inject: swizzle, heal: unswizzle},
	{name: "half-open", class: networks, needs: func(n network) bool { _, can := n.(forgetter); return can },
		inject: func(r *runner, f fault) (string, error) {
			return r.names(f.order[:1]), r.each(f.order[:1], f.order[1:], r.cluster.network.(forgetter).forget)
		}},
	{name: "bandwidth", class: networks, amounts: []int{16 << 10, 64 << 10, 256 << 10}, inject: func(r *runner, f fault) (string, error) {
		return fmt.Sprintf("%s %d KiB/s", r.names(f.order[:1]), f.amount>>10), r.cluster.network.limit(f.order[0], f.amount)
	}},
	{name: "delay", class: networks, amounts: []int{20, 100, 400}, needs: func(n network) bool { _, can := n.(delayer); return can },
		inject: func(r *runner, f fault) (string, error) {
			return fmt.Sprintf("%s %d ms", r.names(f.order[:1]), f.amount), r.delay(f.order[:1], f.order[1:], time.Duration(f.amount)*time.Millisecond)
		}},

	{name: "clock-jump", class: clocks, weight: 2, amounts: []int{3600, -3600, 5, -5}, inject: func(r *runner, f fault) (string, error) {
		return fmt.Sprintf("%s %+d s", r.names(f.order[:1]), f.amount), r.jump(f.order[0], f.amount)
	}},
	{name: "clock-strobe", class: clocks, amounts: []int{3600, 2}, inject: func(r *runner, f fault) (string, error) {
		var errs []error
		for i := range 10 {
			errs = append(errs, r.jump(f.order[0], f.amount*(1-2*(i%2))))
			r.wait(50 * time.Millisecond)
		}
		return fmt.Sprintf("%s +-%d s", r.names(f.order[:1]), f.amount), errors.Join(errs...)
	}},
	{name: "clock-rate", class: clocks, weight: 2, amounts: []int{93, 107}, inject: func(r *runner, f fault) (string, error) {
		return fmt.Sprintf("%s %d%%", r.names(f.minority()), f.amount), r.setEach(f.minority(), func(s *chaos.Settings) { s.ClockRate = float64(f.amount) / 100 })
	}},

	{name: "slow-disk", class: disks, amounts: []int{20, 100, 500}, inject: func(r *runner, f fault) (string, error) {
		return fmt.Sprintf("%s %d ms", r.names(f.minority()), f.amount), r.slowDisks(f.minority(), f.amount)
	}},
	{name: "slow-disk-leader", class: disks, amounts: []int{100, 500}, inject: func(r *runner, f fault) (string, error) {
		victim := []int{r.leader(f.order[0])}
		return fmt.Sprintf("%s %d ms", r.names(victim), f.amount), r.slowDisks(victim, f.amount)
	}},
}

// kindNamed is a kind by its name.
func kindNamed(name string) *kind {
	for _, k := range kinds {
		if k.name == name {
			return k
		}
	}
	panic("no kind of fault is named " + name)
}

// mend mends all of a class.
func (r *runner) mend(c class, order []int) error {
	switch c {
	case processes:
		return errors.Join(r.setEach(order, func(s *chaos.Settings) { s.SyncFails, s.DiskFull = false, false }),
			r.signal(order, syscall.SIGCONT), r.startAll(order))
	case networks:
		return r.joinAll(order)
	case clocks:
		return r.setEach(order, func(s *chaos.Settings) { s.ClockOffset, s.ClockRate = 0, 1 })
	}
	return r.slowDisks(order, 0)
}

func (r *runner) names(nodes []int) string {
	var names []string
	for _, i := range nodes {
		names = append(names, r.cluster.nodes[i].name)
	}
	return strings.Join(names, ",")
}

// wait lets time pass: a fault lasts.
func (r *runner) wait(d time.Duration) { sleep(context.Background(), d) }

// leader is the node that leads most groups, or the one given if nobody knows.
func (r *runner) leader(or int) int {
	i, err := r.cluster.busiest()
	if err != nil {
		r.note("no status", r.cluster.nodes[or].name, "is taken instead of the leader")
		return or
	}
	return i
}

func without1(nodes []int, one int) (others []int) {
	for _, i := range nodes {
		if i != one {
			others = append(others, i)
		}
	}
	return others
}

func (r *runner) kill(victims []int) (err error) {
	for _, i := range victims {
		r.cluster.nodes[i].life().mayExit.Store(true)
	}
	for _, i := range victims { // all at once: none sees another die for long
		err = errors.Join(err, r.cluster.nodes[i].life().signal(syscall.SIGKILL))
	}
	for _, i := range victims {
		<-r.cluster.nodes[i].life().exited
	}
	return err
}

// startAll starts those that do not run, in this order.
func (r *runner) startAll(nodes []int) (err error) {
	for _, i := range nodes {
		if !r.cluster.nodes[i].life().lives() {
			err = errors.Join(err, r.cluster.start(i))
		}
	}
	return err
}

func (r *runner) signal(nodes []int, s syscall.Signal) (err error) {
	for _, i := range nodes {
		err = errors.Join(err, r.cluster.nodes[i].life().signal(s))
	}
	return err
}

func (r *runner) pause(victims []int, d time.Duration) error {
	err := r.signal(victims, syscall.SIGSTOP)
	r.wait(d)
	return errors.Join(err, r.signal(victims, syscall.SIGCONT))
}

func crashLoop(r *runner, f fault) (string, error) {
	var errs []error
	for range 3 {
		errs = append(errs, r.kill(f.order[:1]), r.startAll(f.order[:1]))
		r.wait(time.Duration(f.amount) * time.Millisecond)
	}
	return fmt.Sprintf("%s 3x %d ms", r.names(f.order[:1]), f.amount), errors.Join(errs...)
}

// stopWithin bounds a graceful stop: the binary's own limit and some.
const stopWithin = 40 * time.Second

func terminate(r *runner, f fault) (string, error) {
	p := r.cluster.nodes[f.order[0]].life()
	p.mayExit.Store(true)
	return r.names(f.order[:1]), errors.Join(p.signal(syscall.SIGTERM), p.waitExit(stopWithin, 0, ""))
}

// breakDisk lets the disk of a node fail: it has to end by itself and to say
// why. One that writes nothing meanwhile, cut off perhaps, goes on.
func (r *runner) breakDisk(i int, says string, fail func(*chaos.Settings)) error {
	p := r.cluster.nodes[i].life()
	p.mayExit.Store(true)
	if err := r.cluster.set(i, fail); err != nil {
		return err
	}
	select {
	case <-p.exited:
		return p.judgeExit(1, says)
	case <-time.After(5 * time.Second):
	}
	if err := r.cluster.set(i, func(s *chaos.Settings) { s.SyncFails, s.DiskFull = false, false }); err != nil {
		return err
	}
	if strings.Contains(string(p.printed()), says) { // at the last moment, or it is still stopping
		return p.waitExit(stopWithin, 1, says)
	}
	r.note("wrote nothing", p.name, "and so lives on")
	p.mayExit.Store(false)
	return nil
}

// each does something from each of some nodes to each of others.
func (r *runner) each(from, to []int, do func(from, to int) error) (err error) {
	for _, a := range from {
		for _, b := range to {
			if a != b {
				err = errors.Join(err, do(a, b))
			}
		}
	}
	return err
}

// split cuts some nodes off from others, both ways.
func (r *runner) split(some, others []int) error {
	return errors.Join(r.each(some, others, r.cluster.network.cut), r.each(others, some, r.cluster.network.cut))
}

// joinAll mends the network.
func (r *runner) joinAll(nodes []int) (err error) {
	for _, i := range nodes {
		err = errors.Join(err, r.cluster.network.limit(i, 0))
	}
	return errors.Join(err, r.delay(nodes, nodes, 0), r.each(nodes, nodes, r.cluster.network.join))
}

func (r *runner) delay(from, to []int, by time.Duration) error {
	d, can := r.cluster.network.(delayer)
	if !can {
		return nil // kinds that need it are not injected
	}
	set := func(a, b int) error { return d.delay(a, b, by) }
	return errors.Join(r.each(from, to, set), r.each(to, from, set))
}

// bridge leaves two halves that only one node sees both of.
func bridge(r *runner, f fault) (string, error) {
	middle, half := f.order[0], (len(f.order)+1)/2
	left, right := f.order[1:half], f.order[half:]
	return r.names(left) + "-" + r.names([]int{middle}) + "-" + r.names(right), r.split(left, right)
}

// ring lets every node see its neighbours only: with five nodes each sees
// another majority. With three a ring is whole, and one edge is cut.
func ring(r *runner, f fault) (string, error) {
	n := len(f.order)
	if n < 5 {
		return r.names(f.order[:1]) + "|" + r.names(f.order[1:2]), r.split(f.order[:1], f.order[1:2])
	}
	var err error
	for i := range n {
		for j := i + 1; j < n; j++ {
			if j != i+1 && !(i == 0 && j == n-1) {
				err = errors.Join(err, r.split(f.order[i:i+1], f.order[j:j+1]))
			}
		}
	}
	return strings.ReplaceAll(r.names(f.order), ",", "-") + "-", err
}

// chain lets every node see the one before and the one behind: A-B, B-C, no A-C.
func chain(r *runner, f fault) (string, error) {
	var err error
	for i := range f.order {
		if i+2 < len(f.order) {
			err = errors.Join(err, r.split(f.order[i:i+1], f.order[i+2:]))
		}
	}
	return strings.ReplaceAll(r.names(f.order), ",", "-"), err
}

// swizzle clogs a subset of the nodes one by one; it is unclogged in another
// order.
func swizzle(r *runner, f fault) (string, error) {
	var errs []error
	victims := f.order[:(len(f.order)+1)/2]
	for _, i := range victims {
		errs = append(errs, r.split([]int{i}, without1(f.order, i)))
		r.wait(300 * time.Millisecond)
	}
	return r.names(victims), errors.Join(errs...)
}

func unswizzle(r *runner, f fault) error {
	var errs []error
	victims := append([]int(nil), f.order[:(len(f.order)+1)/2]...)
	rand.New(rand.NewPCG(uint64(f.order[0]), uint64(len(victims)))).Shuffle(len(victims), func(i, j int) { victims[i], victims[j] = victims[j], victims[i] })
	for _, i := range victims {
		others := without1(f.order, i)
		errs = append(errs, r.each([]int{i}, others, r.cluster.network.join), r.each(others, []int{i}, r.cluster.network.join))
		r.wait(300 * time.Millisecond)
	}
	return errors.Join(errors.Join(errs...), r.joinAll(f.order))
}

func (r *runner) setEach(nodes []int, change func(*chaos.Settings)) (err error) {
	for _, i := range nodes {
		err = errors.Join(err, r.cluster.set(i, change))
	}
	return err
}

func (r *runner) jump(i, seconds int) error {
	return r.cluster.set(i, func(s *chaos.Settings) { s.ClockOffset = time.Duration(seconds) * time.Second })
}

func (r *runner) slowDisks(nodes []int, ms int) error {
	return r.setEach(nodes, func(s *chaos.Settings) { s.SyncDelay = time.Duration(ms) * time.Millisecond })
}
