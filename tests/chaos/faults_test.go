//go:build chaos

package chaos

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/internal/chaos"
)

// serveWithin bounds how long shards may be without a leader while a fault lasts
// that leaves a majority. Elections take a second or two; the rest is for a
// machine that does other things.
const serveWithin = 15 * time.Second

// scenarios are the faults that docs/testing.md names, one by one, each under
// the whole load and with its own check.
var scenarios = []struct {
	name string
	play func(*runner)
}{
	{"paused-leader", pausedLeader},
	{"leased-leader", leasedLeader},
	{"clock-jump", clockJump},
	{"clock-rate", clockRate},
	{"isolated-follower", isolatedFollower},
	{"one-way", oneWay},
	{"chain", leaderAtTheEnd},
	{"swizzle-clog", func(r *runner) { r.play("swizzle-clog", 0) }},
	{"transfer", transferToTheDead},
	{"restart-all", func(r *runner) { r.play("restart-all", 0) }},
	{"stalled-peer", stalledPeer},
	{"fsync-error", func(r *runner) { r.diskFails("input/output error", func(s *chaos.Settings) { s.SyncFails = true }) }},
	{"disk-full", func(r *runner) {
		r.diskFails("no space left on device", func(s *chaos.Settings) { s.DiskFull = true })
	}},
	{"slow-disk", slowDisk},
	{"half-open", halfOpen},
}

// TestFaults runs the scenarios, in turn on one cluster of three nodes.
func TestFaults(t *testing.T) {
	r := newRunner(t, clusterOptions{nodes: 3, leases: true}, "go test -tags chaos ./tests/chaos -count=1 -v -run TestFaults -chaos.network "+*networkKind)
	for _, s := range scenarios {
		r.part(t, s.name, func() {
			r.load()
			s.play(r)
			r.judge()
		})
		if t.Failed() {
			break // the cluster is not what the next expects
		}
	}
	if !t.Failed() {
		r.finish()
	}
	r.summary(t, fmt.Sprintf("each fault by itself: 3 nodes on %s, %s", r.cluster.network, time.Since(r.began).Round(time.Second)))
}

// TestMajoritiesRing: of five nodes each sees another majority. Each group's
// three members are then a chain at the worst, and serve.
func TestMajoritiesRing(t *testing.T) {
	r := newRunner(t, clusterOptions{nodes: 5}, "go test -tags chaos ./tests/chaos -count=1 -v -run TestMajoritiesRing -chaos.network "+*networkKind)
	r.load()
	r.play("ring", 0)
	r.judge()
	if !t.Failed() {
		r.finish()
	}
}

// order is the nodes with one of them first.
func (r *runner) order(first int) []int {
	order := []int{first}
	for i := range r.cluster.nodes {
		if i != first {
			order = append(order, i)
		}
	}
	return order
}

// during injects a fault, does something while it lasts, heals it and requires
// that all serves again.
func (r *runner) during(f fault, do func()) {
	r.inject(f)
	do()
	r.heal(f)
	healed := time.Now()
	r.note("healed", "", f.name)
	r.recovered(healed, f.name)
}

// play is during with nothing to do, for a while.
func (r *runner) play(name string, amount int) {
	f := fault{kind: kindNamed(name), order: r.order(r.leader(0)), amount: amount}
	r.during(f, func() { r.wait(2 * time.Second) })
}

// leaderOf is the node that leads a shard's group, and the group.
func (r *runner) leaderOf(shard int) (leader int, group uint64, err error) {
	err = eventually(serveWithin, func() error {
		all, err := r.cluster.shards()
		if err != nil {
			return err
		}
		s, err := r.cluster.status()
		if err != nil {
			return err
		}
		for _, g := range s.Groups {
			if g.ID == all[shard].Group {
				group, leader = g.ID, r.cluster.node(s, g.LeaderNode)
			}
		}
		if leader < 0 {
			return fmt.Errorf("shard %d has no leader", shard)
		}
		return nil
	})
	return leader, group, err
}

// put writes a key through a node's Redis door until it succeeds.
func (r *runner) put(i int, key, value string) error {
	return eventually(serveWithin, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), opTimeout)
		defer cancel()
		return r.clients.redis[i].Set(ctx, key, value, 0).Err()
	})
}

// pausedLeader: a leader that stood still while another was elected and
// overwrote a key does not answer with the old value when it goes on, not to a
// read that was waiting for it. The pause is longer than any lease.
func pausedLeader(r *runner) {
	key := r.probes[0]
	leader, _, err := r.leaderOf(0)
	if !r.must(err) {
		return
	}
	other := r.order(leader)[1]
	conn, err := net.Dial("tcp", r.cluster.nodes[leader].resp())
	if !r.must(err) {
		return
	}
	defer conn.Close()
	answers := bufio.NewReader(conn)
	ask := func() string {
		conn.SetDeadline(time.Now().Add(serveWithin))
		head, err := answers.ReadString('\n')
		if err != nil || !strings.HasPrefix(head, "$") {
			return head
		}
		body, _ := answers.ReadString('\n')
		return strings.TrimSpace(body)
	}
	r.must(r.put(other, key, "old"))
	fmt.Fprintf(conn, "GET %s\r\n", key)
	if got := ask(); got != "old" {
		r.problem("GET %s at its leader: %q", key, got)
		return
	}
	r.must(r.signal([]int{leader}, syscall.SIGSTOP))
	err = r.put(other, key, "new")
	fmt.Fprintf(conn, "GET %s\r\n", key) // its kernel takes it
	r.must(errors.Join(err, r.signal([]int{leader}, syscall.SIGCONT)))
	resumed := time.Now()
	if got := ask(); got == "old" {
		r.problem("the leader that had stood still answered with the value that was overwritten meanwhile")
	}
	r.injured["pause-leader"]++
	r.recovered(resumed, "a pause of the leader")
}

// leasedLeader: a leader with a lease that is cut off from its followers, and
// not from its clients, answers no read with a value that was overwritten.
func leasedLeader(r *runner) {
	leader, group, err := r.leaderOf(0)
	if !r.must(err) {
		return
	}
	key, others := r.probes[0], r.order(leader)[1:]
	kv, disconnect, err := r.cluster.nodes[leader].kv()
	if !r.must(err) {
		return
	}
	defer disconnect()
	read := func() (value int64, ok bool) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		answer, err := kv.Do(ctx, &flotillav1.Request{Shard: 0, Group: group, Consistency: flotillav1.Consistency_LEASE,
			Ops: []*flotillav1.Op{{Op: &flotillav1.Op_Get{Get: &flotillav1.Get{Key: []byte(key)}}}}})
		if err != nil || answer.GetCode() != flotillav1.Code_OK || len(answer.GetResults()) != 1 {
			return 0, false
		}
		value, err = strconv.ParseInt(string(answer.GetResults()[0].GetValue()), 10, 64)
		return value, err == nil
	}
	r.must(r.put(others[0], key, "1"))
	if value, ok := read(); !ok || value != 1 {
		r.problem("a lease read at the leader answers %d, %v", value, ok)
		return
	}

	var acked atomic.Int64
	acked.Store(1)
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		for n := int64(2); ctx.Err() == nil; n++ {
			opCtx, cancel := context.WithTimeout(context.Background(), opTimeout)
			if r.clients.redis[others[int(n)%len(others)]].Set(opCtx, key, n, 0).Err() == nil {
				acked.Store(n)
			}
			cancel()
			sleep(ctx, time.Millisecond)
		}
	})
	answered := 0
	r.during(fault{kind: kindNamed("isolate"), order: r.order(leader)}, func() {
		for end := time.Now().Add(4 * time.Second); time.Now().Before(end); {
			least := acked.Load()
			value, ok := read()
			if !ok {
				r.wait(time.Millisecond)
				continue
			}
			answered++
			if value < least {
				r.problem("a leader that is cut off answered %d from its lease after %d was acknowledged", value, least)
				break
			}
		}
	})
	stop()
	running.Wait()
	r.note("lease reads", r.cluster.nodes[leader].name, fmt.Sprintf("%d answered while it was cut off, %d writes acknowledged", answered, acked.Load()))
	if acked.Load() < 2 {
		r.problem("nothing was written while the leader was cut off: the test tests nothing")
	}
}

// clockJump: clocks that are an hour off, at one node after the other, let
// nothing expire that must not, and stop nobody.
func clockJump(r *runner) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	const key = "expires-in-ten-minutes"
	r.must(r.clients.redis[0].Set(ctx, key, "v", 10*time.Minute).Err())
	for i := range r.cluster.nodes {
		for _, name := range []string{"clock-jump", "clock-strobe"} {
			f := fault{kind: kindNamed(name), order: r.order(i), amount: 3600}
			r.during(f, func() {
				r.serves(serveWithin)
				r.must(r.doorsServe(time.Now().Add(serveWithin)))
			})
		}
		ttl, err := r.clients.redis[i].TTL(ctx, key).Result()
		if err != nil || ttl < 8*time.Minute || ttl > 10*time.Minute {
			r.problem("the clock of one node of three was an hour off, and a key of ten minutes has %v left (%v)", ttl, err)
		}
	}
}

// clockRate: clocks at speeds that differ by 14 % keep what leases promise: the
// load reads by leases, too.
func clockRate(r *runner) {
	slow := fault{kind: kindNamed("clock-rate"), order: r.order(r.leader(0)), amount: 93}
	fast := fault{kind: slow.kind, order: slow.order[1:], amount: 107}
	r.inject(fast)
	r.during(slow, func() {
		r.wait(time.Second)
		r.play("isolate-leader", 0)
	})
}

// isolatedFollower: a node that was alone for ten election timeouts comes back
// and changes no leader that it had not been itself. If the others lose each
// other meanwhile, because the machine stood still, nothing can be said.
func isolatedFollower(r *runner) {
	const tries = 3
	for range tries {
		victim := r.order(r.leader(0))[1]
		others := r.order(victim)[1:]
		lost := r.lostEachOther(others)
		before, after := r.isolated(victim)
		if r.lostEachOther(others) > lost {
			r.note("again", "", "the machine stood still: the others lost each other")
			continue
		}
		r.keptLeaders(victim, before, after)
		return
	}
	r.note("SKIPPED", "", "an isolated follower that changes no leader: the machine stood still each time")
}

// isolated lets a node be alone, and tells how the groups were at its end and
// after it came back: for several election timeouts, and for less than makes the
// controller take it for down and share its leaderships out.
func (r *runner) isolated(victim int) (before, after status) {
	var err error
	r.during(fault{kind: kindNamed("isolate"), order: r.order(victim)}, func() {
		r.wait(2500 * time.Millisecond)
		before, err = r.cluster.status()
		r.must(err)
	})
	after, err = r.cluster.status()
	r.must(err)
	return before, after
}

// handedOver are the groups whose leader was told to hand over lately.
func (r *runner) handedOver() map[string]bool {
	out, err := r.cluster.flotilla(10*time.Second, "events", "-o", "json", "--limit", "40", "--server", strings.Join(r.cluster.servers(), ","))
	var events []struct {
		Kind    string    `json:"kind"`
		Subject string    `json:"subject"`
		Time    time.Time `json:"time"`
	}
	if err == nil {
		err = json.Unmarshal(out, &events)
	}
	r.must(err)
	handed := make(map[string]bool)
	for _, e := range events {
		if e.Kind == "transfer-leader" && time.Since(e.Time) < 15*time.Second {
			handed[e.Subject] = true
		}
	}
	return handed
}

// keptLeaders requires that the groups that a node did not lead have the same
// leader as before it came back.
func (r *runner) keptLeaders(victim int, before, after status) {
	kept, handed := 0, r.handedOver()
	for i, g := range before.Groups {
		if handed[fmt.Sprintf("group %d", g.ID)] {
			continue // the controller had its leader hand over, to the preferred node
		}
		if r.cluster.node(before, g.LeaderNode) == victim || g.LeaderNode == 0 {
			continue // not known to others for the while
		}
		now := after.Groups[i]
		if now.LeaderNode != g.LeaderNode && r.cluster.node(after, now.LeaderNode) == victim {
			continue // it took back what it is the preferred leader of
		}
		if kept++; now.LeaderNode != g.LeaderNode || now.Term != g.Term {
			r.problem("group %d: a node that came back made node %d the leader of term %d; before it was node %d of term %d",
				g.ID, now.LeaderNode, now.Term, g.LeaderNode, g.Term)
		}
	}
	if kept == 0 {
		r.problem("no group kept its leader: %+v and then %+v", before.Groups, after.Groups)
	}
}

// lostEachOther counts how often some nodes took one another for dead, as their
// logs tell.
func (r *runner) lostEachOther(some []int) (times int) {
	s, err := r.cluster.status()
	r.must(err)
	for _, i := range some {
		for _, n := range s.Nodes {
			if slices.Contains(some, r.cluster.node(s, n.ID)) {
				times += strings.Count(string(r.cluster.nodes[i].life().printed()), fmt.Sprintf(`msg="node is down" node=%s node=%d`, r.cluster.nodes[i].name, n.ID))
			}
		}
	}
	return times
}

// oneWay: the busiest node can no longer send, then no longer receive.
func oneWay(r *runner) {
	for _, name := range []string{"one-way-out", "one-way-in"} {
		f := fault{kind: kindNamed(name), order: r.order(r.leader(0))}
		r.during(f, func() { r.serves(serveWithin) })
	}
}

// leaderAtTheEnd: the busiest node sees one of the other two.
func leaderAtTheEnd(r *runner) {
	f := fault{kind: kindNamed("chain"), order: r.order(r.leader(0))}
	r.during(f, func() {
		r.serves(serveWithin)
		r.wait(time.Second)
		r.serves(serveWithin)
	})
}

// transferToTheDead: the busiest node stops and hands over while one of those
// that could take over stands still.
func transferToTheDead(r *runner) {
	order := r.order(r.leader(0))
	r.must(r.signal(order[1:2], syscall.SIGSTOP))
	r.note("stopped", r.names(order[1:2]), "")
	f := fault{kind: kindNamed("terminate"), order: order}
	r.inject(f)
	r.must(r.signal(order[1:2], syscall.SIGCONT))
	r.serves(serveWithin)
	r.heal(f)
	r.recovered(time.Now(), "a hand-over beside a node that stood still")
}

// stalledPeer: a follower takes nothing while the others are written to at full
// speed: they go on, and their memory stays bounded.
func stalledPeer(r *runner) {
	f := fault{kind: kindNamed("isolate"), order: r.order(r.order(r.leader(0))[2])}
	r.during(f, func() {
		r.must(r.flood(512, 128<<10))
		r.serves(serveWithin)
		for _, i := range f.order[1:] {
			held := r.cluster.nodes[i].life().resident()
			r.note("memory", r.cluster.nodes[i].name, fmt.Sprintf("%d MiB", held>>20))
			if held > residentMax {
				r.problem("%s holds %d MiB beside a peer that takes nothing", r.cluster.nodes[i].name, held>>20)
			}
		}
	})
}

// flood writes values to all shards, many at a time.
func (r *runner) flood(values, size int) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	value := make([]byte, size)
	errs := make([]error, 8)
	var running sync.WaitGroup
	for w := range errs {
		running.Go(func() {
			for i := w; i < values && errs[w] == nil; i += len(errs) {
				_, errs[w] = r.clients.store.Put(ctx, fmt.Sprintf("flood-%d", i%64), value)
			}
		})
	}
	running.Wait()
	return errors.Join(errs...)
}

// diskFails: a node whose disk fails ends by itself and says why; the others go
// on; it comes back when the disk is well.
func (r *runner) diskFails(says string, fail func(*chaos.Settings)) {
	victim := r.leader(0)
	p := r.cluster.nodes[victim].life()
	p.mayExit.Store(true)
	begin := time.Now()
	r.must(r.cluster.set(victim, fail))
	r.note("disk fails", r.cluster.nodes[victim].name, says)
	r.injured["disk fails: "+says]++
	r.serves(serveWithin)
	if !r.must(p.waitExit(serveWithin, 1, says)) {
		return
	}
	r.note("ended", r.cluster.nodes[victim].name, "by itself, after "+time.Since(begin).Round(time.Millisecond).String())
	r.serves(serveWithin)
	r.must(r.mend(processes, r.order(victim)))
	r.recovered(time.Now(), "a disk that failed")
}

// slowDisk: the busiest node's disk takes half a second for each sync. Shards
// that others lead do not feel it.
func slowDisk(r *runner) {
	f := fault{kind: kindNamed("slow-disk-leader"), order: r.order(r.leader(0)), amount: 500}
	const others = 3 * time.Second
	r.during(f, func() {
		r.serves(serveWithin)
		s, err := r.cluster.status()
		all, shardsErr := r.cluster.shards()
		if !r.must(errors.Join(err, shardsErr)) {
			return
		}
		led := make(map[uint64]int)
		for _, g := range s.Groups {
			led[g.ID] = r.cluster.node(s, g.LeaderNode)
		}
		longest, asked := time.Duration(0), 0
		for i, key := range r.probes {
			if led[all[i].Group] == f.order[0] {
				continue
			}
			ctx, cancel := context.WithTimeout(context.Background(), serveWithin)
			begin := time.Now()
			r.must(probe(ctx, r.clients.store, key))
			longest, asked = max(longest, time.Since(begin)), asked+1
			cancel()
		}
		r.note("others", "", fmt.Sprintf("%d shards led by others: %s at the longest", asked, longest.Round(time.Millisecond)))
		if longest > others {
			r.problem("a write and a read of a shard led by another node took %s beside a slow disk; want less than %s", longest, others)
		}
	})
}

// halfOpen: connections whose other end is gone without a word. Where no proxy
// can forget them the peer dies unheard, behind a cut network.
func halfOpen(r *runner) {
	victim := r.leader(0)
	if _, can := r.cluster.network.(forgetter); can {
		r.during(fault{kind: kindNamed("half-open"), order: r.order(victim)}, func() { r.serves(serveWithin) })
		return
	}
	f := fault{kind: kindNamed("isolate"), order: r.order(victim)}
	r.during(f, func() {
		r.must(r.kill([]int{victim}))
		r.must(r.startAll([]int{victim}))
		r.serves(serveWithin)
	})
	r.injured["half-open"]++
}
