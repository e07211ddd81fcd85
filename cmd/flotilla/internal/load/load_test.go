package load

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
)

// stub answers after a delay.
type stub struct {
	delay  func(n int64) time.Duration
	fail   func(n int64) error
	mu     sync.Mutex // guards what follows
	n      int64
	under  int
	most   int
	reads  int
	keys   map[string]bool
	values map[int]bool // their sizes
	wait   sync.WaitGroup
}

func (s *stub) Submit(q *flotillav1.Request, done func(*flotillav1.Response, error)) {
	s.mu.Lock()
	s.n++
	n := s.n
	s.under++
	s.most = max(s.most, s.under)
	if s.keys == nil {
		s.keys, s.values = make(map[string]bool), make(map[int]bool)
	}
	if get := q.GetOps()[0].GetGet(); get != nil {
		s.reads++
		s.keys[string(get.GetKey())] = true
	} else {
		s.keys[string(q.GetOps()[0].GetPut().GetKey())] = true
		s.values[len(q.GetOps()[0].GetPut().GetValue())] = true
	}
	s.mu.Unlock()
	s.wait.Go(func() {
		if s.delay != nil {
			time.Sleep(s.delay(n))
		}
		s.mu.Lock()
		s.under--
		s.mu.Unlock()
		if s.fail != nil && s.fail(n) != nil {
			done(nil, s.fail(n))
			return
		}
		done(&flotillav1.Response{Results: []*flotillav1.Result{{}}}, nil)
	})
}

func TestTheWorkloadIsWhatWasAskedFor(t *testing.T) {
	s := &stub{delay: func(int64) time.Duration { return time.Millisecond }}
	w := Workload{Clients: 3, Pipeline: 4, ValueSize: 100, Keys: 7, Reads: 30, Duration: 300 * time.Millisecond}
	r, err := Run(t.Context(), s, w, NewMeter(w.Clients))
	s.wait.Wait()
	if err != nil || r.Ops != s.n || r.Failed != 0 {
		t.Fatalf("%+v of %d, %v", r, s.n, err)
	}
	if s.most != 12 {
		t.Errorf("%d requests under way at most, want 12", s.most)
	}
	if share := 100 * s.reads / int(s.n); share < 15 || share > 45 {
		t.Errorf("%d %% reads of %d", share, s.n)
	}
	if len(s.keys) != 7 || len(s.values) != 1 || !s.values[100] {
		t.Errorf("%d keys, values of sizes %v", len(s.keys), s.values)
	}
	if r.P50us < 1000 || r.P99us < r.P50us || r.MaxUs < r.P99us || r.Seconds < 0.29 || r.OpsPerS < 1 {
		t.Errorf("measured %+v", r)
	}
}

// runInBubble runs a workload in virtual time; delay is what request n takes.
func runInBubble(t *testing.T, w Workload, delay func(n int64) time.Duration) (r Result) {
	synctest.Test(t, func(t *testing.T) {
		var err error
		if r, err = Run(t.Context(), &stub{delay: delay}, w, NewMeter(w.Clients)); err != nil {
			t.Fatal(err)
		}
	})
	return r
}

func TestARateIsKeptAndAStallIsCountedForAllThatItHeldUp(t *testing.T) {
	const stall = 200 * time.Millisecond
	for _, clients := range []int{1, 20} {
		var until atomic.Int64 // unix nanoseconds
		w := Workload{Clients: clients, Pipeline: 1, Keys: 1, Duration: 500 * time.Millisecond, Rate: 1000}
		r := runInBubble(t, w, func(n int64) time.Duration {
			if n == 50 {
				until.Store(time.Now().Add(stall).UnixNano())
			}
			return time.Until(time.Unix(0, until.Load()))
		})
		if r.Ops < 500 || r.Ops > 501 {
			t.Errorf("%d clients: %d requests in half a second at 1,000 a second", clients, r.Ops)
		}
		// Two hundred of the five hundred were due meanwhile, and waited for
		// the longer the earlier that was.
		if r.P50us > 1000 || r.P99us < stall.Microseconds()*9/10 {
			t.Errorf("%d clients: %+v: a stall of %v was hidden", clients, r, stall)
		}
	}
}

// TestOneSlowAnswerHoldsUpNothingElse: the clients share one schedule, so what
// is due goes to one that is free.
func TestOneSlowAnswerHoldsUpNothingElse(t *testing.T) {
	w := Workload{Clients: 10, Pipeline: 1, Keys: 1, Duration: 500 * time.Millisecond, Rate: 1000}
	r := runInBubble(t, w, func(n int64) time.Duration {
		if n == 50 {
			return 200 * time.Millisecond
		}
		return time.Millisecond
	})
	if r.Ops < 500 || r.P99us > 1010 || r.MaxUs < 199_000 {
		t.Errorf("%+v: one answer of five hundred took 200 ms, all others 1 ms", r)
	}
}

func TestFailuresAreCountedApart(t *testing.T) {
	broken := errors.New("broken")
	s := &stub{
		delay: func(int64) time.Duration { return time.Millisecond },
		fail: func(n int64) error {
			if n%2 == 0 {
				return broken
			}
			return nil
		},
	}
	w := Workload{Clients: 1, Pipeline: 1, Keys: 1, Duration: 100 * time.Millisecond}
	m := NewMeter(1)
	r, err := Run(t.Context(), s, w, m)
	if !errors.Is(err, broken) || r.Failed != s.n/2 || r.Ops != s.n-s.n/2 {
		t.Fatalf("%+v of %d, %v", r, s.n, err)
	}
	if recent := m.Recent(1); recent.Ops != r.Ops || recent.Failed != r.Failed {
		t.Errorf("recently %+v", recent)
	}
	if again := m.Recent(1); again.Ops != 0 || again.Failed != 0 || again.P50us != -1 {
		t.Errorf("and then %+v", again)
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := Run(ctx, &stub{}, Workload{Clients: 2, Pipeline: 1, Keys: 1, Duration: time.Hour, Rate: 1}, NewMeter(2)); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Fatalf("after %v", took)
	}
}

func TestPrepareWritesWhatReadsWillFind(t *testing.T) {
	broken := errors.New("broken")
	for _, test := range []struct {
		reads, keys int
		fail        error
	}{{1, 1000, nil}, {0, windowMax, nil}, {1, windowMax, broken}, {0, windowMax, broken}} {
		s := &stub{fail: func(int64) error { return test.fail }}
		err := Prepare(t.Context(), s, Workload{Keys: 1000, ValueSize: 10, Reads: test.reads})
		s.wait.Wait()
		if wrong := test.reads > 0 && test.fail != nil; wrong != errors.Is(err, broken) || !wrong && err != nil {
			t.Errorf("%+v: %v", test, err)
		}
		if len(s.keys) < test.keys || test.fail == nil && len(s.keys) > test.keys {
			t.Errorf("%+v: %d keys", test, len(s.keys))
		}
	}
}

func TestWorkloadsAreChecked(t *testing.T) {
	good := Workload{Clients: 1, Pipeline: 1, Keys: 1, Duration: 1}
	if err := good.Check(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Workload){
		"clients":  func(w *Workload) { w.Clients = 0 },
		"pipeline": func(w *Workload) { w.Pipeline = 0 },
		"product":  func(w *Workload) { w.Clients, w.Pipeline = 100_000, 11 },
		"value":    func(w *Workload) { w.ValueSize = ValueMax + 1 },
		"keys":     func(w *Workload) { w.Keys = 0 },
		"reads":    func(w *Workload) { w.Reads = 101 },
		"duration": func(w *Workload) { w.Duration = 0 },
		"rate":     func(w *Workload) { w.Rate = -1 },
	} {
		w := good
		spoil(&w)
		if w.Check() == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
