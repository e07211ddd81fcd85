package shardkv

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/raft/multiraft"
	"github.com/flotilla-kv/flotilla/raft/statestore"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// fakeHost is a group of one replica that commits at once, as long as it is
// told to; its clock is the test's.
type fakeHost struct {
	mu       sync.Mutex // guards all below
	rig      *rig
	leader   raft.NodeID
	err      error // what every proposal and read ends with
	stalled  bool  // proposals and reads are not answered
	entries  int
	commands []command // as proposed
	asked    []multiraft.ReadOptions
}

const self raft.NodeID = 4

func (h *fakeHost) Propose(_ raft.GroupID, encoded []byte, done func(multiraft.Result)) {
	result, answered := h.commit(encoded)
	if answered {
		done(result)
	}
}

func (h *fakeHost) ProposeUrgent(g raft.GroupID, encoded []byte, done func(multiraft.Result)) {
	h.Propose(g, encoded, done)
}

func (h *fakeHost) commit(encoded []byte) (_ multiraft.Result, answered bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	c, err := decodeCommand(encoded, nil)
	if err != nil {
		panic(err)
	}
	h.commands = append(h.commands, c)
	if h.err != nil || h.stalled {
		return multiraft.Result{Err: h.err}, !h.stalled
	}
	h.entries++
	e := entry{stamp: time.Now().UnixMilli(), commands: [][]byte{encoded}}
	return multiraft.Result{Value: h.rig.apply(panics{}, e)[0], Index: h.rig.index, Term: 1}, true
}

func (h *fakeHost) ReadIndex(_ raft.GroupID, options multiraft.ReadOptions, done func(raft.Index, error)) {
	h.mu.Lock()
	h.asked = append(h.asked, options)
	index, err, stalled := h.rig.index, h.err, h.stalled
	h.mu.Unlock()
	if !stalled {
		done(index, err)
	}
}

func (h *fakeHost) Leader(raft.GroupID) (raft.Member, raft.Term, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return raft.Member{Replica: 1, Node: h.leader}, 1, h.leader != 0
}

func (h *fakeHost) GroupClock(raft.GroupID) int64 { return time.Now().UnixMilli() }

func (h *fakeHost) set(change func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	change()
}

func (h *fakeHost) committed() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.entries
}

// panics lets a rig be used where there is no test.
type panics struct{}

func (panics) Helper() {}
func (panics) Fatalf(format string, args ...any) {
	panic(fmt.Sprintf(format, args...))
}

// bench is a server over a fake host, whose group has been born with shards 0
// and 1 of 4.
type bench struct {
	*testing.T
	id     raft.GroupID
	host   *fakeHost
	server *Server
	lost   atomic.Bool // its quorum
}

// serve runs test in a bubble with a server.
func serve(t *testing.T, test func(t *testing.T, b *bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, rigGroup, nil)
		defer b.server.Close()
		b.born(0, 1)
		test(t, b)
	})
}

// newBench is a server whose group does not know its shards yet.
func newBench(t *testing.T, id raft.GroupID, pull func(*flotillav1.PullRequest, func(*flotillav1.PullResponse))) *bench {
	t.Helper()
	b := &bench{T: t, id: id}
	b.server = NewServer(Options{
		Pull:      pull,
		ClusterID: func() string { return "cluster" },
		Self:      func() raft.NodeID { return self },
		Shards:    func() int { return 4 },
		Address:   func(id raft.NodeID) string { return fmt.Sprintf("node%d:7000", id) },
		HasQuorum: func(raft.GroupID) bool { return !b.lost.Load() },
	})
	store := statestore.OpenModel(statestore.NewModel(), nil)
	r := &rig{store: store, replica: store.Replica(raft.ReplicaKey{Group: rigGroup, Replica: 1})}
	r.machine = b.server.NewStateMachine(id)(r.replica).(*Machine)
	if err := r.machine.Restored(r.replica); err != nil {
		t.Fatal(err)
	}
	b.host = &fakeHost{rig: r, leader: self}
	b.server.Attach(b.host)
	return b
}

// born gives the group its shards.
func (b *bench) born(shards ...shardmap.ShardID) {
	b.Helper()
	b.server.Birth(b.id, shards, 1, func(err error) {
		if err != nil {
			b.Fatal(err)
		}
	})
}

// keyIn is a key of that shard.
func keyIn(shard shardmap.ShardID) string {
	for i := 0; ; i++ {
		if key := fmt.Sprint("key", i); shardmap.Shard([]byte(key), 4) == shard {
			return key
		}
	}
}

// ask makes a request to the group's shard 0.
func ask(ops ...*flotillav1.Op) *flotillav1.Request {
	return &flotillav1.Request{Id: 9, Group: uint64(rigGroup), Ops: ops}
}

func (b *bench) do(q *flotillav1.Request) *flotillav1.Response {
	b.Helper()
	r, err := b.server.Do(b.Context(), q)
	if err != nil || r.Id != q.Id {
		b.Fatalf("answered %v, %v", r, err)
	}
	return r
}

func (b *bench) want(r *flotillav1.Response, code flotillav1.Code) *flotillav1.Response {
	b.Helper()
	if r.Code != code {
		b.Fatalf("answered %v %q, want %v", r.Code, r.Message, code)
	}
	return r
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	serve(t, func(t *testing.T, b *bench) {
		key := keyIn(0)
		w := b.want(b.do(ask(wirePut(key, "v"), wireGet(key))), flotillav1.Code_OK)
		if !w.Compared || len(w.Results) != 2 || string(w.Results[1].Value) != "v" || w.Results[0].Version != 1 {
			t.Fatalf("answered %v", w)
		}
		entries := b.host.committed()
		r := b.want(b.do(ask(wireGet(key))), flotillav1.Code_OK)
		if string(r.Results[0].Value) != "v" || r.Results[0].Version != 1 || !r.Results[0].Existed {
			t.Fatalf("answered %v", r)
		}
		if b.host.committed() != entries {
			t.Fatal("a read went through the log")
		}
	})
}

func TestReadsAskAsTheyAreToldTo(t *testing.T) {
	serve(t, func(t *testing.T, b *bench) {
		for _, c := range []struct {
			q    *flotillav1.Request
			want multiraft.ReadOptions
		}{
			{&flotillav1.Request{}, multiraft.ReadOptions{}},
			{&flotillav1.Request{Consistency: flotillav1.Consistency_LEASE}, multiraft.ReadOptions{Lease: true}},
			{&flotillav1.Request{Follower: true}, multiraft.ReadOptions{Follower: true}},
			{&flotillav1.Request{Consistency: flotillav1.Consistency_STALE, StalenessMs: 10}, multiraft.ReadOptions{Follower: true, Stale: 10 * time.Millisecond}},
		} {
			c.q.Group, c.q.Ops = uint64(rigGroup), []*flotillav1.Op{wireGet(keyIn(0))}
			b.want(b.do(c.q), flotillav1.Code_OK)
			if got := b.host.asked[len(b.host.asked)-1]; got != c.want {
				t.Errorf("%v asked with %+v", c.q, got)
			}
		}
	})
}

// TestWrongRequestsDoNotReachTheLog nor change anything.
func TestWrongRequestsDoNotReachTheLog(t *testing.T) {
	key := []byte(keyIn(0))
	with := func(change func(*flotillav1.Request)) *flotillav1.Request {
		q := ask(wirePut(string(key), "v"))
		change(q)
		return q
	}
	putOf := func(change func(*flotillav1.Put)) *flotillav1.Request {
		p := &flotillav1.Put{Key: key}
		change(p)
		return ask(&flotillav1.Op{Op: &flotillav1.Op_Put{Put: p}})
	}
	large := make([]byte, ValueBytesMax)
	wrong := map[string]*flotillav1.Request{
		"empty key":            ask(wirePut("", "v")),
		"long key":             ask(wirePut(strings.Repeat("k", KeyBytesMax+1), "v")),
		"long value":           putOf(func(p *flotillav1.Put) { p.Value = append(large, 0) }),
		"long expected value":  putOf(func(p *flotillav1.Put) { p.Expected = append(large, 0) }),
		"large request":        ask(wirePut(string(key), string(large)), wirePut(string(key), string(large))),
		"key of another shard": ask(wirePut(keyIn(1), "v")),
		"read of another":      ask(wireGet(keyIn(1))),
		"compare of another":   with(func(q *flotillav1.Request) { q.Compares = []*flotillav1.Compare{{Key: []byte(keyIn(1))}} }),
		"otherwise of another": with(func(q *flotillav1.Request) { q.Otherwise = []*flotillav1.Op{wirePut(keyIn(1), "v")} }),
		"no such shard":        with(func(q *flotillav1.Request) { q.Shard = 4 }),
		"far shard":            with(func(q *flotillav1.Request) { q.Shard = 1 << 63 }),
		"nothing":              ask(),
		"empty op":             ask(&flotillav1.Op{}),
		"nil op":               ask(nil),
		"unknown condition":    putOf(func(p *flotillav1.Put) { p.Condition = 99 }),
		"unknown compare":      with(func(q *flotillav1.Request) { q.Compares = []*flotillav1.Compare{{Target: 9, Key: key}} }),
		"negative ttl":         putOf(func(p *flotillav1.Put) { p.TtlMs = -1 }),
		"two expiries":         putOf(func(p *flotillav1.Put) { p.TtlMs, p.ExpireAtMs = 1, 1 }),
		"lowest above seq":     with(func(q *flotillav1.Request) { q.Session = &flotillav1.Session{BirthMs: 1, Seq: 1, Lowest: 2} }),
		"outcome with ops":     with(func(q *flotillav1.Request) { q.Outcome = &flotillav1.Outcome{BirthMs: 1, Seq: 1} }),
		"outcome of nothing":   {Group: uint64(rigGroup), Outcome: &flotillav1.Outcome{}},
		"long clear":           ask(&flotillav1.Op{Op: &flotillav1.Op_Clear{Clear: &flotillav1.Clear{Start: large[:KeyBytesMax+2]}}}),
		"long scan":            ask(&flotillav1.Op{Op: &flotillav1.Op_Scan{Scan: &flotillav1.Scan{End: large[:KeyBytesMax+2]}}}),
		"too many ops":         with(func(q *flotillav1.Request) { q.Ops = make([]*flotillav1.Op, opsMax+1) }),
	}
	serve(t, func(t *testing.T, b *bench) {
		proposed := len(b.host.commands)
		for name, q := range wrong {
			r := b.do(q)
			if r.Code != flotillav1.Code_INVALID || r.Message == "" {
				t.Errorf("%s: answered %v %q", name, r.Code, r.Message)
			}
		}
		if n := len(b.host.commands); n != proposed {
			t.Fatalf("%d commands were proposed: %#v", n-proposed, b.host.commands[proposed:])
		}
		longest := keyIn(0) + strings.Repeat("\x00", KeyBytesMax)
		for i := byte(0); shardmap.Shard([]byte(longest[:KeyBytesMax]), 4) != 0; i++ {
			longest = string(i) + longest
		}
		b.want(b.do(ask(wirePut(longest[:KeyBytesMax], string(large)))), flotillav1.Code_OK)
	})
}

func TestWhereToGoInstead(t *testing.T) {
	key := keyIn(0)
	for _, c := range []struct {
		name   string
		err    error
		leader raft.NodeID
		lost   bool // quorum
		want   *flotillav1.Response
	}{
		{name: "another leads", err: &multiraft.NotLeaderError{Leader: raft.Member{Replica: 2, Node: 5}},
			want: &flotillav1.Response{Code: flotillav1.Code_NOT_LEADER, LeaderNode: 5, LeaderAddr: "node5:7000"}},
		{name: "nobody leads", err: &multiraft.NotLeaderError{}, want: &flotillav1.Response{Code: flotillav1.Code_NOT_LEADER}},
		{name: "this node led", err: &multiraft.NotLeaderError{Leader: raft.Member{Replica: 1, Node: self}}, want: &flotillav1.Response{Code: flotillav1.Code_NOT_LEADER}},
		{name: "nobody can lead", err: &multiraft.NotLeaderError{}, lost: true, want: &flotillav1.Response{Code: flotillav1.Code_NO_QUORUM}},
		{name: "overload", err: multiraft.ErrBusy, want: &flotillav1.Response{Code: flotillav1.Code_BUSY}},
		{name: "gone", err: multiraft.ErrNoGroup, want: &flotillav1.Response{Code: flotillav1.Code_UNAVAILABLE}},
		{name: "stopped", err: multiraft.ErrStopped, want: &flotillav1.Response{Code: flotillav1.Code_UNAVAILABLE}},
		{name: "unknown", err: fmt.Errorf("group: %w", multiraft.ErrUnknown), want: &flotillav1.Response{Code: flotillav1.Code_UNKNOWN}},
		{name: "not confirmed", err: multiraft.ErrNoQuorum, want: &flotillav1.Response{Code: flotillav1.Code_NO_QUORUM}},
	} {
		t.Run(c.name, func(t *testing.T) {
			serve(t, func(t *testing.T, b *bench) {
				b.host.set(func() { b.host.err = c.err })
				b.lost.Store(c.lost)
				for _, q := range []*flotillav1.Request{ask(wirePut(key, "v")), ask(wireGet(key))} {
					r := b.do(q)
					r.Id, r.Message = 0, ""
					if !proto.Equal(r, c.want) {
						t.Errorf("answered %v, want %v", r, c.want)
					}
				}
			})
		})
	}
}

func TestWhatThisNodeDoesNotServe(t *testing.T) {
	serve(t, func(t *testing.T, b *bench) {
		elsewhere := ask(wireGet(keyIn(0)))
		elsewhere.Group = 99
		b.want(b.do(elsewhere), flotillav1.Code_UNAVAILABLE)
		for _, op := range []*flotillav1.Op{wireGet(keyIn(3)), wirePut(keyIn(3), "v")} {
			q := ask(op)
			q.Shard = 3
			b.want(b.do(q), flotillav1.Code_MOVED)
		}
		b.server.RemoveGroup(raft.ReplicaKey{Group: rigGroup, Replica: 2})
		b.want(b.do(ask(wireGet(keyIn(0)))), flotillav1.Code_OK)
		b.server.RemoveGroup(raft.ReplicaKey{Group: rigGroup, Replica: 1})
		b.want(b.do(ask(wireGet(keyIn(0)))), flotillav1.Code_UNAVAILABLE)
	})
}

// TestAReadChecksOwnershipInItsOwnState: the shard goes between the read's
// index and its answer.
func TestAReadChecksOwnershipInItsOwnState(t *testing.T) {
	serve(t, func(t *testing.T, b *bench) {
		key := keyIn(0)
		b.do(ask(wirePut(key, "v")))
		r := b.host.rig
		r.machine.shards[0].state = shardHandedOff
		r.apply(t, newEntry(0, plain(0, get("k")))) // refused; but store the state with it
		batch := r.replica.NewBatch()
		batch.Set(shardKey(0), r.machine.shards[0].encode())
		batch.SetApplied(r.index, 1, raft.Membership{})
		if err := batch.Commit(); err != nil {
			t.Fatal(err)
		}
		b.want(b.do(ask(wireGet(key))), flotillav1.Code_MOVED)
	})
}

func TestTimeoutsSayWhatIsKnown(t *testing.T) {
	for _, c := range []struct {
		name   string
		op     *flotillav1.Op
		quorum bool
		want   flotillav1.Code
	}{
		{"a write that was proposed", wirePut(keyIn(0), "v"), true, flotillav1.Code_UNKNOWN},
		{"a write without a quorum", wirePut(keyIn(0), "v"), false, flotillav1.Code_UNKNOWN},
		{"a read", wireGet(keyIn(0)), true, flotillav1.Code_UNAVAILABLE},
		{"a read without a quorum", wireGet(keyIn(0)), false, flotillav1.Code_NO_QUORUM},
	} {
		t.Run(c.name, func(t *testing.T) {
			serve(t, func(t *testing.T, b *bench) {
				b.host.set(func() { b.host.stalled = true })
				b.lost.Store(!c.quorum)
				for _, timeout := range []uint32{1, 50, 2000, 20_000, 0} {
					q := ask(c.op)
					q.TimeoutMs = timeout
					begin := time.Now()
					r := b.want(b.do(q), c.want)
					limit := max(time.Duration(timeout)*time.Millisecond, 2*wheelTick)
					if timeout == 0 {
						limit = timeoutDefault
					}
					if took := time.Since(begin); took > limit || took < limit/2 {
						t.Errorf("a timeout of %d ms took %v", timeout, took)
					}
					if strings.Contains(r.Message, "no quorum") == c.quorum {
						t.Errorf("the message says %q", r.Message)
					}
				}
			})
		})
	}
}

// TestALateAnswerIsDropped: each request is answered once.
func TestALateAnswerIsDropped(t *testing.T) {
	serve(t, func(t *testing.T, b *bench) {
		late := &lateHost{Host: b.host}
		b.server.Attach(late)
		q := ask(wirePut(keyIn(0), "v"))
		q.TimeoutMs = 100
		answers := 0
		b.server.Submit(t.Context(), []*flotillav1.Request{q}, func(r *flotillav1.Response) {
			answers++
			b.want(r, flotillav1.Code_UNKNOWN)
		})
		time.Sleep(time.Second) // the bubble's clock
		synctest.Wait()
		late.release()
		synctest.Wait()
		if answers != 1 {
			t.Fatalf("%d answers", answers)
		}
		if r := b.do(ask(wireGet(keyIn(0)))); string(r.Results[0].Value) != "v" {
			t.Fatal("the write did not happen after all")
		}
	})
}

// lateHost keeps proposals until release.
type lateHost struct {
	Host
	kept []func()
}

func (h *lateHost) Propose(g raft.GroupID, command []byte, done func(multiraft.Result)) {
	h.kept = append(h.kept, func() { h.Host.Propose(g, command, done) })
}

func (h *lateHost) release() {
	for _, propose := range h.kept {
		propose()
	}
}

// TestALeaderCommitsItsTimeFirst: it does not answer with a key that has
// expired by its clock; and a follower does not move time.
func TestALeaderCommitsItsTimeFirst(t *testing.T) {
	serve(t, func(t *testing.T, b *bench) {
		key := keyIn(0)
		b.do(ask(&flotillav1.Op{Op: &flotillav1.Op_Put{Put: &flotillav1.Put{Key: []byte(key), Value: []byte("v"), TtlMs: 55}}}))
		time.Sleep(54 * time.Millisecond)
		entries := b.host.committed()
		if r := b.do(ask(wireGet(key))); r.Results[0].Status != flotillav1.Result_DONE {
			t.Fatal("the key went too early")
		}
		if b.host.committed() != entries {
			t.Fatal("time was committed for a key that lives")
		}
		time.Sleep(2 * time.Millisecond)
		if r := b.do(ask(wireGet(key))); r.Results[0].Status != flotillav1.Result_ABSENT {
			t.Fatalf("answered %v", r.Results[0])
		}
		if b.host.committed() != entries+1 {
			t.Fatalf("%d entries", b.host.committed()-entries)
		}
	})
}

// TestTimeGoesOnByItself when something is due, and not otherwise.
func TestTimeGoesOnByItself(t *testing.T) {
	serve(t, func(t *testing.T, b *bench) {
		for i := range 3*expiredAtOnce + 1 {
			key := fmt.Sprintf("{%s}%d", keyIn(0), i)
			b.do(ask(&flotillav1.Op{Op: &flotillav1.Op_Put{Put: &flotillav1.Put{Key: []byte(key), TtlMs: 1000}}}))
		}
		entries := b.host.committed()
		b.host.set(func() { b.host.leader = 5 })
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if n := b.host.committed(); n != entries {
			t.Fatalf("a follower committed %d entries", n-entries)
		}
		b.host.set(func() { b.host.leader = self })
		time.Sleep(2 * dueCheck)
		synctest.Wait()
		if n := b.host.committed(); n != entries+4 {
			t.Fatalf("%d entries", n-entries)
		}
		if d, err := Digest(b.host.rig.replica, 0); err != nil || d.Keys != 0 {
			t.Fatalf("%+v are left, %v", d, err)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := b.host.committed(); n != entries+4 {
			t.Fatalf("an idle group committed %d entries", n-entries-4)
		}
	})
}

// TestASessionsEndIsDue: an idle group forgets it in time.
func TestASessionsEndIsDue(t *testing.T) {
	serve(t, func(t *testing.T, b *bench) {
		q := ask(wirePut(keyIn(0), "v"))
		q.Session = &flotillav1.Session{ClientId: 1, BirthMs: time.Now().UnixMilli(), Seq: 1, Lowest: 1}
		b.want(b.do(q), flotillav1.Code_OK)
		if r := b.want(b.do(q), flotillav1.Code_OK); !r.Replayed {
			t.Fatal("not replayed")
		}
		time.Sleep(sessionLife + 2*dueCheck)
		synctest.Wait()
		if d, err := Digest(b.host.rig.replica, 0); err != nil || d.Answers != 0 || d.Keys != 1 {
			t.Fatalf("%+v are left, %v", d, err)
		}
		b.want(b.do(q), flotillav1.Code_SESSION_EXPIRED)
	})
}

func TestLargeAnswersAreRefused(t *testing.T) {
	serve(t, func(t *testing.T, b *bench) {
		key := keyIn(0)
		b.do(ask(wirePut(key, strings.Repeat("x", ValueBytesMax))))
		var gets, lengths []*flotillav1.Op
		for range 9 {
			gets = append(gets, wireGet(key))
		}
		b.want(b.do(ask(gets...)), flotillav1.Code_INVALID)
		b.want(b.do(ask(gets[:8]...)), flotillav1.Code_OK)
		for range 80 {
			lengths = append(lengths, &flotillav1.Op{Op: &flotillav1.Op_Get{Get: &flotillav1.Get{Key: []byte(key), NoValue: true}}})
		}
		b.want(b.do(ask(lengths...)), flotillav1.Code_INVALID)
		counts := make([]*flotillav1.Op, 80)
		for i := range counts {
			counts[i] = &flotillav1.Op{Op: &flotillav1.Op_Scan{Scan: &flotillav1.Scan{CountOnly: true}}}
		}
		b.want(b.do(ask(counts...)), flotillav1.Code_INVALID)
		b.want(b.do(ask(counts[:9]...)), flotillav1.Code_OK)
		r := b.want(b.do(ask(lengths[:9]...)), flotillav1.Code_OK)
		if r.Results[0].Number != ValueBytesMax || len(r.Results[0].Value) != 0 {
			t.Fatalf("length %d", r.Results[0].Number)
		}
	})
}

func TestCloseAnswersWhatWaits(t *testing.T) {
	serve(t, func(t *testing.T, b *bench) {
		b.server.Close()
		b.want(b.do(ask(wireGet(keyIn(0)))), flotillav1.Code_UNAVAILABLE)
		c := &call{id: 1, done: func(r *flotillav1.Response) { b.want(r, flotillav1.Code_UNAVAILABLE) }}
		b.server.queueRead(&readyRead{call: c, group: b.server.group(rigGroup)})
		if !c.answered.Load() {
			t.Fatal("the read was not answered")
		}
	})
}

func TestShardStatuses(t *testing.T) {
	serve(t, func(t *testing.T, b *bench) {
		key := keyIn(0)
		b.do(ask(wirePut(key, "12345")))
		all := b.server.ShardStatuses(rigGroup)
		if len(all) != 2 || all[0].Shard != 0 || all[0].Keys != 1 || all[0].Bytes != int64(len(key)+5) || all[0].State != "owned" ||
			all[0].Generation != 1 || all[1].Keys != 0 || all[1].Group != uint64(rigGroup) {
			t.Fatalf("%v", all)
		}
		b.do(ask(&flotillav1.Op{Op: &flotillav1.Op_Clear{Clear: &flotillav1.Clear{}}}))
		if all := b.server.ShardStatuses(rigGroup); all[0].Keys != 0 {
			t.Fatalf("%v", all)
		}
		if b.server.ShardStatuses(99) != nil {
			t.Fatal("an unknown group has shards")
		}
	})
}

// fakeStream is the server's end of a Batch call.
type fakeStream struct {
	grpcServerStream
	requests chan *flotillav1.BatchRequest
	sent     chan *flotillav1.BatchResponse
}

func (s *fakeStream) Recv() (*flotillav1.BatchRequest, error) {
	select {
	case q, ok := <-s.requests:
		if !ok {
			return nil, io.EOF
		}
		return q, nil
	case <-s.Context().Done():
		return nil, s.Context().Err()
	}
}

func (s *fakeStream) Send(r *flotillav1.BatchResponse) error {
	select {
	case s.sent <- proto.Clone(r).(*flotillav1.BatchResponse):
		return nil
	case <-s.Context().Done():
		return s.Context().Err()
	}
}

func TestAStreamCarriesManyInFew(t *testing.T) {
	serve(t, func(t *testing.T, b *bench) {
		s := newFakeStream(t.Context(), 1)
		ended := make(chan error, 1)
		go func() { ended <- b.server.Batch(s) }()
		key := keyIn(0)
		q := &flotillav1.BatchRequest{ClusterId: "cluster"}
		for i := range 1000 {
			r := ask(wirePut(key, "v"))
			if i%2 == 1 {
				r = ask(wireGet(key))
			}
			r.Id = uint64(i)
			q.Requests = append(q.Requests, r)
		}
		s.requests <- q
		synctest.Wait()
		seen := make(map[uint64]bool)
		messages := 0
		for len(seen) < 1000 {
			m := <-s.sent
			messages++
			for _, r := range m.Responses {
				if b.want(r, flotillav1.Code_OK); seen[r.Id] {
					t.Fatalf("answer %d came twice", r.Id)
				}
				seen[r.Id] = true
			}
		}
		if messages > 10 {
			t.Errorf("%d messages", messages)
		}
		close(s.requests)
		if err := <-ended; err != nil {
			t.Fatalf("ended with %v", err)
		}
	})
}

// TestAFullStreamGoesOn: what was answered makes room for more.
func TestAFullStreamGoesOn(t *testing.T) {
	serve(t, func(t *testing.T, b *bench) {
		s := newFakeStream(t.Context(), 0)
		go b.server.Batch(s)
		q := new(flotillav1.BatchRequest)
		for range streamRequestsMax {
			q.Requests = append(q.Requests, &flotillav1.Request{})
		}
		answers := 0
		for range 2 {
			s.requests <- q
			for end := answers + streamRequestsMax; answers < end; {
				answers += len((<-s.sent).Responses)
			}
		}
	})
}

// TestAStreamNobodyReads holds a bounded number of bytes: reads are answered
// "busy", and nothing more is taken in.
func TestAStreamNobodyReads(t *testing.T) {
	serve(t, func(t *testing.T, b *bench) {
		key := keyIn(0)
		b.do(ask(wirePut(key, strings.Repeat("x", ValueBytesMax))))
		s := newFakeStream(t.Context(), 0)
		ended := make(chan error, 1)
		go func() { ended <- b.server.Batch(s) }()
		q := new(flotillav1.BatchRequest)
		for range 100 {
			q.Requests = append(q.Requests, ask(wireGet(key)))
		}
		s.requests <- q
		synctest.Wait()
		s.requests <- &flotillav1.BatchRequest{Requests: []*flotillav1.Request{ask(wireGet(key))}}
		synctest.Wait()
		select {
		case s.requests <- new(flotillav1.BatchRequest):
			t.Fatal("the stream is read on")
		default:
		}
		busy, bytes, answers := 0, 0, 0
		for answers < 101 {
			for _, r := range (<-s.sent).Responses {
				answers++
				if r.Code == flotillav1.Code_BUSY {
					busy++
				} else {
					bytes += len(r.Results[0].Value)
				}
			}
		}
		if bytes > streamBytesMax+(readers+1)*ValueBytesMax || busy < 70 {
			t.Fatalf("%d bytes were held, %d answers were busy", bytes, busy)
		}
		s.requests <- &flotillav1.BatchRequest{Requests: []*flotillav1.Request{ask(wireGet(key))}}
		for _, r := range (<-s.sent).Responses { // there is room again
			b.want(r, flotillav1.Code_OK)
		}
		b.server.Close()
		if err := <-ended; err == nil {
			t.Fatal("the stream outlived the server")
		}
	})
}

func TestAStreamOfAnotherCluster(t *testing.T) {
	serve(t, func(t *testing.T, b *bench) {
		s := newFakeStream(t.Context(), 1)
		s.requests <- &flotillav1.BatchRequest{ClusterId: "another", Requests: []*flotillav1.Request{ask(wirePut(keyIn(0), "v"))}}
		entries := b.host.committed()
		if err := b.server.Batch(s); err == nil || b.host.committed() != entries {
			t.Fatalf("served another cluster's client: %v", err)
		}
	})
}

func newFakeStream(ctx context.Context, buffered int) *fakeStream {
	return &fakeStream{
		grpcServerStream: grpcServerStream{ctx: ctx},
		requests:         make(chan *flotillav1.BatchRequest, buffered),
		sent:             make(chan *flotillav1.BatchResponse),
	}
}
