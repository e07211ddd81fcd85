package client

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
)

func TestTheMethods(t *testing.T) {
	c := newFakeCluster(t, 3).client(Options{})
	ctx := within(t, 10*time.Second)

	if _, err := c.Get(ctx, "k"); !errors.Is(err, ErrNotFound) {
		t.Fatalf("get of an absent key: %v", err)
	}
	put, err := c.Put(ctx, "k", []byte("one"))
	if err != nil || put.Version == 0 || put.Existed {
		t.Fatalf("put: %+v, %v", put, err)
	}
	item, err := c.Get(ctx, "k")
	if err != nil || string(item.Value) != "one" || item.Version != put.Version || item.Key != "k" {
		t.Fatalf("get: %+v, %v", item, err)
	}
	if put, err = c.Put(ctx, "k", []byte("two"), Previous(), TTL(1500*time.Microsecond)); err != nil || string(put.Previous) != "one" {
		t.Fatalf("put with previous: %+v, %v", put, err)
	}
	if item, _ = c.Get(ctx, "k"); item.Expires.UnixMilli() != 2 {
		t.Fatalf("a TTL of 1.5 ms became %v", item.Expires)
	}
	if n, err := c.Incr(ctx, "n", 5); err != nil || n != 5 {
		t.Fatalf("incr: %d, %v", n, err)
	}
	if _, err := c.Incr(ctx, "k", 5); !errors.Is(err, ErrNotAnInteger) {
		t.Fatalf("incr of a word: %v", err)
	}
	if n, err := c.Append(ctx, "k", []byte("!")); err != nil || n != 4 {
		t.Fatalf("append: %d, %v", n, err)
	}
	if err := c.Expire(ctx, "nobody", time.Second); !errors.Is(err, ErrNotFound) {
		t.Fatalf("expire of an absent key: %v", err)
	}
	if d, err := c.Delete(ctx, "k"); err != nil || !d.Existed {
		t.Fatalf("delete: %+v, %v", d, err)
	}
	if d, err := c.Delete(ctx, "k"); err != nil || d.Existed {
		t.Fatalf("delete again: %+v, %v", d, err)
	}
}

func TestConditions(t *testing.T) {
	c := newFakeCluster(t, 1).client(Options{})
	ctx := within(t, 10*time.Second)
	if _, err := c.CompareAndSwap(ctx, "k", nil, []byte("a")); err != nil {
		t.Fatal(err)
	}
	_, err := c.CompareAndSwap(ctx, "k", []byte("x"), []byte("b"))
	var unmet *ConditionError
	if !errors.Is(err, ErrConditionFailed) || !errors.As(err, &unmet) || !unmet.Present || string(unmet.Found.Value) != "a" {
		t.Fatalf("cas over another value: %v", err)
	}
	if _, err := c.CompareAndSwap(ctx, "k", []byte("a"), []byte("b")); err != nil {
		t.Fatal(err)
	}
	_, err = c.Put(ctx, "absent", nil, IfPresent())
	if !errors.As(err, &unmet) || unmet.Present {
		t.Fatalf("put if present of an absent key: %v", err)
	}
	if _, err := c.Put(ctx, "k", nil, IfVersion(unmet.Found.Version+99)); !errors.Is(err, ErrConditionFailed) {
		t.Fatalf("put over another version: %v", err)
	}
}

func TestTxn(t *testing.T) {
	c := newFakeCluster(t, 1).client(Options{})
	ctx := within(t, 10*time.Second)
	move := func() (TxnResult, error) {
		return c.Txn().If(Absent("a{7}")).
			Then(PutOp("a{7}", []byte("x")), IncrOp("n{7}", 1)).
			Else(GetOp("a{7}"), GetOp("b{7}")).Commit(ctx)
	}
	r, err := move()
	if err != nil || !r.Succeeded || len(r.Results) != 2 || r.Results[1].Number != 1 {
		t.Fatalf("first: %+v, %v", r, err)
	}
	r, err = move()
	if err != nil || r.Succeeded || string(r.Results[0].Item.Value) != "x" || !errors.Is(r.Results[1].Err, ErrNotFound) {
		t.Fatalf("second: %+v, %v", r, err)
	}
	_, err = c.Txn().Then(PutOp(keyOf(0, "a"), nil), PutOp(keyOf(1, "a"), nil)).Commit(ctx)
	if !errors.Is(err, ErrCrossShard) {
		t.Fatalf("across shards: %v", err)
	}
}

func TestBadInputIsRefusedBeforeItIsSent(t *testing.T) {
	f := newFakeCluster(t, 1)
	c := f.client(Options{})
	ctx := within(t, 10*time.Second)
	for name, do := range map[string]func() error{
		"empty key":   func() error { _, err := c.Get(ctx, ""); return err },
		"long key":    func() error { _, err := c.Get(ctx, strings.Repeat("k", KeyBytesMax+1)); return err },
		"large value": func() error { _, err := c.Put(ctx, "k", make([]byte, ValueBytesMax+1)); return err },
		"large request": func() error {
			v := make([]byte, ValueBytesMax)
			_, err := c.Txn().Then(PutOp("{k}1", v), PutOp("{k}2", v)).Commit(ctx)
			return err
		},
		"nothing": func() error { _, err := c.Txn().Commit(ctx); return err },
		"no ttl":  func() error { return c.Expire(ctx, "k", 0) },
	} {
		if err := do(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if f.requests != 0 {
		t.Errorf("%d requests reached the server", f.requests)
	}
	if _, err := c.Put(ctx, strings.Repeat("k", KeyBytesMax), make([]byte, ValueBytesMax)); err != nil {
		t.Errorf("at the limits: %v", err)
	}
}

// load runs increments of one counter for each worker and returns how many of
// each were acknowledged and how many may have happened besides.
type load struct {
	stop   chan struct{}
	wait   sync.WaitGroup
	acked  []atomic.Int64
	open   []atomic.Int64
	failed atomic.Int64
	err    atomic.Value
}

func startLoad(c *Client, workers int) *load {
	l := &load{stop: make(chan struct{}), acked: make([]atomic.Int64, workers), open: make([]atomic.Int64, workers)}
	for i := range workers {
		l.wait.Go(func() {
			for {
				select {
				case <-l.stop:
					return
				default:
				}
				_, err := c.Incr(context.Background(), fmt.Sprintf("counter-%d", i), 1)
				switch {
				case err == nil:
					l.acked[i].Add(1)
				case errors.Is(err, ErrUnknownOutcome):
					l.open[i].Add(1)
				default:
					l.failed.Add(1)
					l.err.Store(err)
				}
			}
		})
	}
	return l
}

func (l *load) total() (n int64) {
	for i := range l.acked {
		n += l.acked[i].Load()
	}
	return n
}

// progress waits until the load has done more.
func (l *load) progress(t *testing.T) {
	t.Helper()
	before := l.total()
	eventually(t, "progress under load", func() bool { return l.total() > before+int64(2*len(l.acked)) })
}

// end stops the load and checks that each counter holds what was acknowledged:
// nothing lost, nothing twice, nothing failed.
func (l *load) end(t *testing.T, c *Client) {
	t.Helper()
	close(l.stop)
	l.wait.Wait()
	if n := l.failed.Load(); n > 0 {
		t.Errorf("%d increments failed, the last: %v", n, l.err.Load())
	}
	for i := range l.acked {
		item, err := c.Get(within(t, 5*time.Second), fmt.Sprintf("counter-%d", i))
		if err != nil {
			t.Fatal(err)
		}
		acked, open := l.acked[i].Load(), l.open[i].Load()
		var value int64
		fmt.Sscan(string(item.Value), &value)
		if value < acked || value > acked+open {
			t.Errorf("counter %d is %d after %d acknowledged and %d unknown increments", i, value, acked, open)
		}
	}
}

func TestLeadersMoveUnderLoad(t *testing.T) {
	f := newFakeCluster(t, 3)
	c := f.client(Options{})
	l := startLoad(c, 20)
	for i := range 12 {
		l.progress(t)
		f.change(func() { f.leaders[uint64(2+i%2)] = uint64(1 + i%3) })
	}
	f.change(func() { f.leaders[2] = 0 }) // an election
	time.AfterFunc(100*time.Millisecond, func() { f.change(func() { f.leaders[2] = 3 }) })
	l.progress(t)
	l.end(t, c)
}

func TestShardsMoveUnderLoad(t *testing.T) {
	f := newFakeCluster(t, 3)
	c := f.client(Options{})
	l := startLoad(c, 20)
	for i := range 30 {
		l.progress(t)
		f.change(func() {
			s := f.shards[i%fakeShards]
			s.group, s.generation = 5-s.group, s.generation+1
			if i%3 == 0 {
				f.publish()
			}
		})
	}
	l.end(t, c)
}

func TestANodeDiesUnderLoad(t *testing.T) {
	f := newFakeCluster(t, 3)
	c := f.client(Options{})
	l := startLoad(c, 20)
	l.progress(t)
	f.nodes[0].server.Stop() // with requests on its streams
	f.change(func() { f.leaders[2], f.leaders[3] = 0, 0 })
	time.AfterFunc(100*time.Millisecond, func() { f.change(func() { f.leaders[2], f.leaders[3] = 3, 2 }) })
	l.progress(t)
	l.progress(t)
	l.end(t, c)
}

func TestLostAnswersAndBusyStormsUnderLoad(t *testing.T) {
	f := newFakeCluster(t, 3)
	n := 0
	f.intercept = func(_ uint64, q *flotillav1.Request) (*flotillav1.Response, bool) {
		n++
		switch {
		case q.GetSession() == nil:
			return nil, false
		case n%3 == 0:
			return &flotillav1.Response{Code: flotillav1.Code_BUSY}, false
		case n%7 == 0: // applied, and the answer is not conclusive
			if s := f.shards[q.GetShard()]; s.group == q.GetGroup() {
				f.apply(s, q)
			}
			return &flotillav1.Response{Code: flotillav1.Code_UNKNOWN}, false
		}
		return nil, false
	}
	c := f.client(Options{})
	l := startLoad(c, 10)
	for range 5 {
		l.progress(t)
	}
	l.end(t, c)
}

func TestBusyUntilTheDeadline(t *testing.T) {
	f := newFakeCluster(t, 1)
	f.intercept = func(uint64, *flotillav1.Request) (*flotillav1.Response, bool) {
		return &flotillav1.Response{Code: flotillav1.Code_BUSY, Message: "queue full"}, false
	}
	c := f.client(Options{})
	for range 20 {
		_, err := c.Put(within(t, 100*time.Millisecond), "k", nil)
		if !errors.Is(err, ErrBusy) || !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("got %v", err)
		}
		if !errors.Is(err, ErrUnknownOutcome) {
			return
		}
		// The deadline met an attempt that was under way, as it may.
	}
	t.Fatal("a write that waits is never known to have had no effect")
}

func TestAWriteThatWasSentAndNotAnswered(t *testing.T) {
	for _, applied := range []bool{true, false} {
		f := newFakeCluster(t, 1)
		f.intercept = func(_ uint64, q *flotillav1.Request) (*flotillav1.Response, bool) {
			if q.GetSession() == nil {
				return nil, false
			}
			if applied {
				f.apply(f.shards[q.GetShard()], q)
			}
			return nil, true
		}
		c := f.client(Options{})
		_, err := c.Put(within(t, 100*time.Millisecond), "k", []byte("v"))
		var unknown *UnknownOutcomeError
		if !errors.Is(err, ErrUnknownOutcome) || !errors.Is(err, context.DeadlineExceeded) || !errors.As(err, &unknown) {
			t.Fatalf("got %v", err)
		}
		got, err := c.Outcome(within(t, 5*time.Second), unknown.Write)
		want := NotApplied
		if applied {
			want = Applied
		}
		if err != nil || got != want {
			t.Fatalf("outcome is %v (%v), want %v", got, err, want)
		}
	}
}

func TestAReadThatWasNotAnsweredIsNoUnknownOutcome(t *testing.T) {
	f := newFakeCluster(t, 1)
	f.intercept = func(uint64, *flotillav1.Request) (*flotillav1.Response, bool) { return nil, true }
	c := f.client(Options{})
	_, err := c.Get(within(t, 50*time.Millisecond), "k")
	if errors.Is(err, ErrUnknownOutcome) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v", err)
	}
}

func TestACallerWhoCancels(t *testing.T) {
	f := newFakeCluster(t, 1)
	arrived := make(chan struct{}, 16)
	f.intercept = func(uint64, *flotillav1.Request) (*flotillav1.Response, bool) {
		arrived <- struct{}{}
		return nil, true
	}
	c := f.client(Options{})
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		<-arrived
		cancel()
	}()
	_, err := c.Put(ctx, "k", nil)
	if !errors.Is(err, context.Canceled) || !errors.Is(err, ErrUnknownOutcome) {
		t.Fatalf("got %v", err)
	}
	if _, err := c.Put(ctx, "k", nil); !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnknownOutcome) {
		t.Fatalf("with a context that had ended: %v", err)
	}
}

func TestNobodyThere(t *testing.T) {
	f := newFakeCluster(t, 1)
	c := f.client(Options{})
	if _, err := c.Put(within(t, 5*time.Second), "k", nil); err != nil {
		t.Fatal(err)
	}
	f.nodes[0].server.Stop()
	eventually(t, "the client notices", func() bool {
		_, err := c.Put(within(t, 100*time.Millisecond), "k", nil)
		return errors.Is(err, ErrUnavailable) && !errors.Is(err, ErrUnknownOutcome)
	})
	lost, err := New(Options{Servers: []string{f.nodes[0].addr}})
	if err != nil {
		t.Fatal(err)
	}
	defer lost.Close()
	_, err = lost.Put(within(t, 200*time.Millisecond), "k", nil)
	if !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrUnknownOutcome) || !strings.Contains(err.Error(), f.nodes[0].addr) {
		t.Fatalf("without a map: %v", err)
	}
}

func TestEveryErrorOfSubmitHasACode(t *testing.T) {
	f := newFakeCluster(t, 1)
	c := f.client(Options{})
	askFor := func(q *flotillav1.Request, timeout time.Duration) flotillav1.Code {
		t.Helper()
		q.TimeoutMs = uint32(timeout.Milliseconds())
		errs := make(chan error, 1)
		c.Submit(q, func(_ *flotillav1.Response, err error) { errs <- err })
		var coded interface{ Code() flotillav1.Code }
		if err := <-errs; !errors.As(err, &coded) {
			t.Fatalf("no code: %v", err)
		}
		return coded.Code()
	}
	ask := func(q *flotillav1.Request) flotillav1.Code { return askFor(q, 50*time.Millisecond) }
	for _, code := range []flotillav1.Code{flotillav1.Code_BUSY, flotillav1.Code_NO_QUORUM, flotillav1.Code_UNAVAILABLE, flotillav1.Code_MOVED, flotillav1.Code_INVALID, flotillav1.Code_NOT_LEADER} {
		f.change(func() {
			f.intercept = func(uint64, *flotillav1.Request) (*flotillav1.Response, bool) {
				return &flotillav1.Response{Code: code}, false
			}
		})
		// The code is that of the last answer heard in time: on a starved machine
		// none may be, which is UNAVAILABLE.
		var got flotillav1.Code
		for timeout := 50 * time.Millisecond; timeout < 5*time.Second && got != code; timeout *= 2 {
			got = askFor(readRequest(nil, getOp([]byte("k"))), timeout)
		}
		if got != code {
			t.Errorf("%v became %v", code, got)
		}
	}
	f.change(func() {
		f.intercept = func(uint64, *flotillav1.Request) (*flotillav1.Response, bool) { return nil, true }
	})
	if got := ask(writeRequest(incrOp("k", 1))); got != flotillav1.Code_UNKNOWN {
		t.Errorf("a lost answer became %v", got)
	}
	if got := ask(readRequest(nil, getOp([]byte("k")))); got != flotillav1.Code_UNAVAILABLE {
		t.Errorf("a lost answer to a read became %v", got)
	}
	if got := ask(&flotillav1.Request{}); got != flotillav1.Code_INVALID {
		t.Errorf("an empty request became %v", got)
	}
	c.Close()
	if got := ask(readRequest(nil, getOp([]byte("k")))); got != flotillav1.Code_UNAVAILABLE {
		t.Errorf("a closed client says %v", got)
	}
}

func TestNoQuorumIsNamed(t *testing.T) {
	f := newFakeCluster(t, 1)
	f.intercept = func(uint64, *flotillav1.Request) (*flotillav1.Response, bool) {
		return &flotillav1.Response{Code: flotillav1.Code_NO_QUORUM, Message: "group 2 has 1 of 3"}, false
	}
	c := f.client(Options{})
	_, err := c.Get(within(t, 100*time.Millisecond), "k")
	if !errors.Is(err, ErrNoQuorum) || !strings.Contains(err.Error(), "group 2 has 1 of 3") {
		t.Fatalf("got %v", err)
	}
}

func TestAClusterThatIsNotYetMade(t *testing.T) {
	f := newFakeCluster(t, 1)
	f.noMap = true
	c := f.client(Options{})
	eventually(t, "the error says why", func() bool {
		_, err := c.Get(within(t, 50*time.Millisecond), "k")
		return errors.Is(err, ErrUnavailable) && strings.Contains(err.Error(), "not initialised")
	})
	f.change(func() { f.noMap = false })
	if _, err := c.Put(within(t, 5*time.Second), "k", nil); err != nil {
		t.Fatalf("after init: %v", err)
	}
}

func TestManyCallersShareMessages(t *testing.T) {
	f := newFakeCluster(t, 1)
	c := f.client(Options{})
	if _, err := c.Put(within(t, 5*time.Second), "warm", nil); err != nil {
		t.Fatal(err)
	}
	const calls = 4000
	var done sync.WaitGroup
	done.Add(calls)
	var failed atomic.Int64
	f.mu.Lock() // the server holds still, the stream fills up
	for i := range calls {
		q := writeRequest(incrOp(fmt.Sprintf("k%d", i), 1))
		c.Submit(q, func(_ *flotillav1.Response, err error) {
			if err != nil {
				failed.Add(1)
			}
			done.Done()
		})
	}
	goroutines := runtime.NumGoroutine()
	f.mu.Unlock()
	done.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	if failed.Load() > 0 || f.requests < calls {
		t.Fatalf("%d failed, %d arrived", failed.Load(), f.requests)
	}
	if f.messages > calls/4 {
		t.Errorf("%d calls took %d messages", calls, f.messages)
	}
	if goroutines > 100 {
		t.Errorf("%d goroutines for %d calls", goroutines, calls)
	}
}

func TestALaneKeepsItsOrder(t *testing.T) {
	f := newFakeCluster(t, 3)
	n := 0
	f.intercept = func(_ uint64, q *flotillav1.Request) (*flotillav1.Response, bool) {
		n++
		if n%3 == 0 {
			return &flotillav1.Response{Code: flotillav1.Code_BUSY}, false
		}
		if n%10 == 0 {
			f.leaders[q.GetGroup()] = uint64(1 + n%3)
		}
		return nil, false
	}
	c := f.client(Options{})
	lane := c.NewLane()
	var done sync.WaitGroup
	var mu sync.Mutex
	var order []string
	want := ""
	for i := range 300 {
		done.Add(1)
		want += fmt.Sprintf("%d,", i)
		lane.Submit(writeRequest(appendOp("log", fmt.Appendf(nil, "%d,", i))), func(_ *flotillav1.Response, err error) {
			defer done.Done()
			mu.Lock()
			defer mu.Unlock()
			order = append(order, fmt.Sprint(i))
			if err != nil {
				t.Error(err)
			}
		})
	}
	done.Wait()
	item, err := c.Get(within(t, 5*time.Second), "log")
	if err != nil || string(item.Value) != want {
		t.Fatalf("%v, the log is %q", err, item.Value)
	}
	if !slices.IsSortedFunc(order, func(a, b string) int { return len(a) - len(b) }) {
		t.Fatalf("answered in the order %v", order)
	}
}

func TestClosingEndsEverything(t *testing.T) {
	f := newFakeCluster(t, 2)
	before := runtime.NumGoroutine()
	c, err := New(Options{Servers: f.addrs()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Put(within(t, 5*time.Second), "k", nil); err != nil {
		t.Fatal(err)
	}
	f.change(func() {
		f.intercept = func(uint64, *flotillav1.Request) (*flotillav1.Response, bool) { return nil, true }
	})
	errs := make(chan error, 2)
	go func() { _, err := c.Put(context.Background(), "k", nil); errs <- err }()
	go func() { _, err := c.Get(context.Background(), "k"); errs <- err }()
	eventually(t, "both are under way", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.requests >= 3
	})
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := <-errs; !errors.Is(err, ErrClosed) {
			t.Errorf("ended with %v", err)
		}
	}
	if _, err := c.Get(context.Background(), "k"); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Errorf("a second Close: %v", err)
	}
	for _, n := range f.nodes {
		n.server.Stop()
	}
	eventually(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= before })
}

func TestOptionsAreChecked(t *testing.T) {
	for name, o := range map[string]Options{
		"no servers":     {},
		"empty address":  {Servers: []string{""}},
		"negative limit": {Servers: []string{"x:1"}, CallsMax: -1},
	} {
		if c, err := New(o); err == nil {
			c.Close()
			t.Errorf("%s: no error", name)
		}
	}
}

// TestTheClientPullsInNoServer lists what the client is built of.
func TestTheClientPullsInNoServer(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Skipf("go list: %v", err)
	}
	for _, dep := range strings.Fields(string(out)) {
		for _, server := range []string{"multiraft", "logstore", "statestore", "raft/transport", "cockroachdb/pebble", "hashicorp/memberlist", "shardkv", "prometheus"} {
			if strings.Contains(dep, server) {
				t.Errorf("the client is built with %s", dep)
			}
		}
	}
}
