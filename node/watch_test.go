package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/client"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardkv"
)

// follower is a copy of keys that a watch keeps, and what it has been told.
type follower struct {
	name string

	mu      sync.Mutex // guards what follows
	keys    map[string]client.Event
	partial map[int]bool // shards whose keys are being told
	resets  int
	events  int
}

// take takes in an event. Counters go up by one with each, none left out.
func (f *follower) take(e client.Event) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.events++
	if e.Kind == client.EventComplete {
		f.partial[e.Shard] = false
		return nil
	}
	if e.Kind == client.EventReset {
		f.resets++
		maps.DeleteFunc(f.keys, func(_ string, old client.Event) bool { return old.Shard == e.Shard })
		f.partial[e.Shard] = true
		return nil
	}
	before, known := f.keys[e.Key]
	if known && e.Version <= before.Version {
		return fmt.Errorf("%s: %s at version %d, behind %d", f.name, e.Key, e.Version, before.Version)
	}
	if known {
		was, _ := strconv.Atoi(string(before.Value))
		if is, _ := strconv.Atoi(string(e.Value)); is != was+1 {
			return fmt.Errorf("%s: %s was told as %d and then as %d", f.name, e.Key, was, is)
		}
	} else if !f.partial[e.Shard] && string(e.Value) != "1" {
		return fmt.Errorf("%s: %s begins with %s", f.name, e.Key, e.Value)
	}
	f.keys[e.Key] = e
	return nil
}

// follow reads a watch until the test ends it.
func follow(t *testing.T, w *client.Watcher, f *follower, into *sync.WaitGroup, done <-chan struct{}) {
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-done; cancel() }()
	into.Go(func() {
		defer w.Close()
		for {
			e, err := w.Next(ctx)
			if ctx.Err() != nil {
				return
			}
			if err == nil {
				err = f.take(e)
			}
			if err != nil {
				t.Errorf("%s: %v", f.name, err)
				return
			}
		}
	})
}

func newFollower(name string) *follower {
	return &follower{name: name, keys: make(map[string]client.Event), partial: make(map[int]bool)}
}

// load is clients that increment keys until they are told to stop.
type load struct {
	keys []string
	done chan struct{}
	wait sync.WaitGroup

	mu    sync.Mutex
	acked map[string]int
}

func increment(t *testing.T, clients []*client.Client, keys []string, callers int) *load {
	l := &load{keys: keys, done: make(chan struct{}), acked: make(map[string]int)}
	for i := range callers {
		c := clients[i%len(clients)]
		l.wait.Go(func() {
			for {
				select {
				case <-l.done:
					return
				default:
				}
				key := keys[rand.IntN(len(keys))]
				if _, err := c.Incr(context.Background(), key, 1); err != nil {
					t.Errorf("an increment failed: %v", err)
					return
				}
				l.mu.Lock()
				l.acked[key]++
				l.mu.Unlock()
			}
		})
	}
	return l
}

func (l *load) stop() {
	close(l.done)
	l.wait.Wait()
}

// TestWatchesGoOnWhereShardsMove: while shards go round the groups and
// leaderships are transferred, under load, watches of a key and of a prefix are
// told every increment, in order and once, without one reset. One that is taken up
// again and again from its token is told so where its shard was handed over in
// between, as the history of its new group begins there, and then what is there.
func TestWatchesGoOnWhereShardsMove(t *testing.T) {
	nodes := cluster(t, t.TempDir())
	ctx := t.Context()
	var keys []string
	for i := range 40 {
		keys = append(keys, fmt.Sprint("n:", i))
	}
	clients := []*client.Client{clientOf(t, nodes[0]), clientOf(t, nodes[1]), clientOf(t, nodes[2])}
	var followers sync.WaitGroup
	done := make(chan struct{})
	one, all, resumed := newFollower("key"), newFollower("prefix"), newFollower("resumed")
	w, err := clients[0].Watch(ctx, keys[0])
	if err != nil {
		t.Fatal(err)
	}
	follow(t, w, one, &followers, done)
	if w, err = clients[1].WatchPrefix(ctx, "n:"); err != nil {
		t.Fatal(err)
	}
	follow(t, w, all, &followers, done)
	if w, err = clients[2].WatchPrefix(ctx, "n:"); err != nil {
		t.Fatal(err)
	}
	followers.Go(func() { followAgain(t, clients, w, resumed, done) })

	l := increment(t, clients, keys, 8)
	ctrl := nodes[1].ctrl
	const moves = 12
	resets := map[*follower]int{resumed: moves}
	for i := range moves {
		shard := uint64(i % 4)
		from := uint64(ctrl.Maps().Current().Shards[shard].Group)
		order, err := ctrl.MoveShard(ctx, &flotillav1.MoveShardRequest{Shard: shard, ToGroup: from%4 + 2})
		if err != nil {
			t.Fatal(err)
		}
		transfer(nodes, raft.GroupID(from%4+2)) // meanwhile
		waitMove(t, nodes[1], order.MoveId)
	}
	l.stop()
	for _, f := range []*follower{one, all, resumed} {
		want := map[string]int{keys[0]: l.acked[keys[0]]}
		if f != one {
			want = l.acked
		}
		awaitTold(t, f, want)
	}
	told := func(f *follower) uint64 {
		f.mu.Lock()
		defer f.mu.Unlock()
		return uint64(f.events)
	}
	heard := told(one) + told(all)
	var sum shardkv.Stats
	for _, n := range nodes {
		s := n.kv.Stats()
		sum.Watches, sum.WatchEvents, sum.ShardsMoved = sum.Watches+s.Watches, sum.WatchEvents+s.WatchEvents, sum.ShardsMoved+s.ShardsMoved
	}
	if sum.Watches == 0 || sum.WatchEvents < heard || sum.ShardsMoved == 0 || sum.ShardsMoved > moves {
		t.Errorf("the nodes have counted %+v", sum)
	}
	if _, page := get(t, nodes[0], "/metrics"); !strings.Contains(page, "flotilla_watch_events_total") || !strings.Contains(page, "flotilla_shard_move_pause_seconds_count") {
		t.Errorf("/metrics lacks series:\n%.2000s", page)
	}
	close(done)
	followers.Wait()
	for _, f := range []*follower{one, all, resumed} {
		t.Logf("%s: %d events", f.name, f.events)
		if most := resets[f]; f.resets > most {
			t.Errorf("%s: %d resets, at most %d", f.name, f.resets, most)
		}
	}
}

// transfer has another member lead a group.
func transfer(nodes []*Node, group raft.GroupID) {
	members, _ := nodes[0].ctrl.Maps().Current().Group(group)
	for _, n := range nodes {
		host := n.host.Load()
		identity, _ := n.ctrl.Identity()
		if leader, _, ok := host.Leader(group); !ok || leader.Node != identity.Node {
			continue
		}
		for _, m := range members.Members {
			if m.Node != identity.Node && host.Transfer(group, m.Replica) == nil {
				return
			}
		}
	}
}

// awaitTold waits until a follower knows what is there.
func awaitTold(t *testing.T, f *follower, want map[string]int) {
	t.Helper()
	why := ""
	for range 600 {
		if why = f.differs(want); why == "" {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Errorf("%s: %s", f.name, why)
}

// differs says how what was told differs from what was acknowledged.
func (f *follower) differs(want map[string]int) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	for key, n := range want {
		if got := string(f.keys[key].Value); got != fmt.Sprint(n) {
			return fmt.Sprintf("%s was told as %q in the end, of %d increments", key, got, n)
		}
	}
	return ""
}

// followAgain takes a watch up from its token, again and again, with one client
// after the other.
func followAgain(t *testing.T, clients []*client.Client, w *client.Watcher, f *follower, done <-chan struct{}) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { <-done; cancel() }()
	for i := 0; ; i++ {
		for range rand.IntN(500) + 1 {
			e, err := w.Next(ctx)
			if ctx.Err() != nil {
				w.Close()
				return
			}
			if err == nil {
				err = f.take(e)
			}
			if err != nil {
				t.Errorf("%s: %v", f.name, err)
				w.Close()
				return
			}
		}
		token := w.Token()
		w.Close()
		if _, err := w.Next(ctx); !errors.Is(err, client.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
		var err error
		if w, err = clients[i%len(clients)].WatchPrefix(ctx, "n:", client.FromToken(token)); err != nil {
			if ctx.Err() == nil {
				t.Errorf("%s: %v", f.name, err)
			}
			return
		}
	}
}

// TestWatchesLeadToTheTruth: nodes are restarted one after the other under load.
// Where a watch is reset, as the history of a replica that was restarted is
// short, it is told so, and what it is told leads to what is there.
func TestWatchesLeadToTheTruth(t *testing.T) {
	dir := t.TempDir()
	nodes := cluster(t, dir)
	var servers, gossip, keys []string
	for _, n := range nodes {
		servers, gossip = append(servers, n.Addresses().GRPC), append(gossip, n.Addresses().Gossip)
	}
	c, err := client.New(client.Options{Servers: servers})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	for i := range 40 {
		keys = append(keys, fmt.Sprint("n:", i))
	}
	var followers sync.WaitGroup
	done := make(chan struct{})
	f := newFollower("prefix")
	l := increment(t, []*client.Client{c}, keys, 8)
	w, err := c.WatchPrefix(t.Context(), "n:", client.WithState())
	if err != nil {
		t.Fatal(err)
	}
	follow(t, w, f, &followers, done)
	for i, n := range nodes {
		stop(t, n)
		name := n.Addresses().Name
		nodes[i] = start(t, name, filepath.Join(dir, name), gossip...)
		gossip = append(gossip, nodes[i].Addresses().Gossip)
		waitReady(t, nodes)
	}
	l.stop()
	awaitTold(t, f, l.acked)
	close(done)
	followers.Wait()
	if f.resets < 16 {
		t.Errorf("%d resets, though each shard's keys were to be told", f.resets)
	}
	t.Logf("%d events, %d resets", f.events, f.resets)
}

// TestAWatchFromAVersionToCome: a watch that is asked to begin behind a version
// which the key's shard has not reached, as an older copy of the cluster may have
// told it, neither waits for it in silence nor skips what comes before it. It is
// told what is there, and then each write once.
func TestAWatchFromAVersionToCome(t *testing.T) {
	nodes := cluster(t, t.TempDir())
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	c := clientOf(t, nodes[0])
	const key = "k"
	write := func(value string) uint64 {
		t.Helper()
		r, err := c.Put(ctx, key, []byte(value))
		if err != nil {
			t.Fatal(err)
		}
		return r.Version
	}
	now := write("there")
	w, err := clientOf(t, nodes[1]).Watch(ctx, key, client.FromVersion(now+3))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	expect := func(want string) {
		t.Helper()
		e, err := w.Next(ctx)
		if err != nil {
			t.Fatalf("instead of %s: %v", want, err)
		}
		if got := fmt.Sprintf("%v %s @%d", e.Kind, e.Value, e.Version); got != want {
			t.Fatalf("told %s, want %s", got, want)
		}
	}
	expect(fmt.Sprintf("reset  @%d", now))
	expect(fmt.Sprintf("put there @%d", now))
	expect(fmt.Sprintf("complete  @%d", now))
	for i := uint64(1); i <= 5; i++ { // through the version that it asked for, and beyond
		value := fmt.Sprint("write ", i)
		if version := write(value); version != now+i {
			t.Fatalf("%s has version %d, want %d", value, version, now+i)
		}
		expect(fmt.Sprintf("put %s @%d", value, now+i))
	}
}
