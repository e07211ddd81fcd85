package load

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
)

// Workload says what to do.
type Workload struct {
	Clients   int           // that send at the same time
	Pipeline  int           // requests each of them keeps under way
	ValueSize int           // bytes of a value
	Keys      int           // keys to choose from, each as likely
	Reads     int           // percent of the requests that read
	Duration  time.Duration // for how long requests are sent
	Rate      int           // requests per second in all; 0: as many as go
	Seed      uint64
	// Skip leaves keys out; nil: none. It must not leave out nearly all.
	Skip func(key []byte) bool
}

// Limits of a workload.
const (
	ClientsMax  = 100_000
	InFlightMax = 1_000_000
	ValueMax    = 4 << 20
)

// Check refuses what makes no sense.
func (w Workload) Check() error {
	switch {
	case w.Clients < 1 || w.Clients > ClientsMax:
		return fmt.Errorf("%d clients: from 1 to %d", w.Clients, ClientsMax)
	case w.Pipeline < 1 || w.Clients*w.Pipeline > InFlightMax:
		return fmt.Errorf("%d clients with a pipeline of %d: at least 1, and at most %d requests in all", w.Clients, w.Pipeline, InFlightMax)
	case w.ValueSize < 0 || w.ValueSize > ValueMax:
		return fmt.Errorf("values of %d bytes: from 0 to %d", w.ValueSize, ValueMax)
	case w.Keys < 1:
		return fmt.Errorf("%d keys: at least 1", w.Keys)
	case w.Reads < 0 || w.Reads > 100:
		return fmt.Errorf("%d percent reads: from 0 to 100", w.Reads)
	case w.Duration <= 0:
		return fmt.Errorf("a duration of %v: it must be positive", w.Duration)
	case w.Rate < 0:
		return fmt.Errorf("a rate of %d: it must not be negative", w.Rate)
	}
	return nil
}

// Store is what is driven; client.Client is one.
type Store interface {
	// Submit sends a request; done is called once, from any goroutine, and does
	// not block.
	Submit(request *flotillav1.Request, done func(*flotillav1.Response, error))
}

// skipTries is how often a key that is left out is drawn again.
const skipTries = 100

// windowMax is how many requests Prepare has under way.
const windowMax = 256

// Prepare does what must not count. If there are to be reads every key is
// written, so that they find something. Otherwise some are, so that the
// connections are made and the leaders known, and a failure is left to Run.
func Prepare(ctx context.Context, s Store, w Workload) error {
	keys := w.Keys
	if w.Reads == 0 {
		keys = min(keys, windowMax)
	}
	slots := make(chan error, windowMax) // no answer ever waits, not even after a return
	values := newValues(w)
	sent, under := 0, 0
	for sent < keys || under > 0 {
		if sent < keys && under < windowMax && ctx.Err() == nil {
			s.Submit(putRequest(sent, values.next()), func(p *flotillav1.Response, err error) { slots <- outcome(p, err) })
			sent++
			under++
			continue
		}
		if under == 0 {
			return ctx.Err()
		}
		if err := <-slots; err != nil && w.Reads > 0 {
			return fmt.Errorf("writing the keys: %w", err)
		}
		under--
	}
	return nil
}

// Run drives s until the workload's time is up or ctx ends, and waits for what
// is under way then. The error is the last of a request that failed; the
// result stands beside it.
func Run(ctx context.Context, s Store, w Workload, m *Meter) (Result, error) {
	ctx, cancel := context.WithTimeout(ctx, w.Duration)
	defer cancel()
	start := time.Now()
	due := &schedule{start: start, rate: w.Rate}
	var wait sync.WaitGroup
	for i := range w.Clients {
		wait.Go(func() { newSender(s, w, m, due, i).run(ctx) })
	}
	wait.Wait()
	return m.result(time.Since(start)), m.lastError()
}

// schedule says when requests are due at a rate. All clients take from it: a
// request waits only while every client has its pipeline full. Had each client
// a schedule of its own, one slow answer would make all that are due at that
// client late, with others idle beside it, and be counted for each of them.
type schedule struct {
	start time.Time
	rate  int // per second
	taken atomic.Int64
}

func (s *schedule) next() time.Time {
	n := s.taken.Add(1) - 1
	return s.start.Add(time.Duration(float64(n) / float64(s.rate) * float64(time.Second)))
}

// sender is one client of the workload.
type sender struct {
	store    Store
	workload Workload
	meter    *meterPart
	random   *rand.Rand
	values   *values
	answers  chan time.Duration // one for each request under way
	due      *schedule          // at a rate
}

func newSender(s Store, w Workload, m *Meter, due *schedule, i int) *sender {
	return &sender{
		store:    s,
		workload: w,
		meter:    m.part(i),
		random:   rand.New(rand.NewPCG(w.Seed, uint64(i))),
		values:   newValues(w),
		answers:  make(chan time.Duration, w.Pipeline),
		due:      due,
	}
}

// run keeps the pipeline full until ctx ends, then empties it.
func (c *sender) run(ctx context.Context) {
	under := 0
	for {
		for under == c.workload.Pipeline {
			<-c.answers
			under--
		}
		from, ok := c.next(ctx)
		if !ok {
			break
		}
		under++
		c.send(from)
	}
	for ; under > 0; under-- {
		<-c.answers
	}
}

// next waits until the next request may be sent; from is when its latency
// begins.
func (c *sender) next(ctx context.Context) (from time.Time, ok bool) {
	if c.workload.Rate == 0 {
		return time.Now(), ctx.Err() == nil
	}
	from = c.due.next()
	if early := time.Until(from); early > 0 {
		timer := time.NewTimer(early)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	return from, ctx.Err() == nil
}

func (c *sender) send(from time.Time) {
	key := c.random.IntN(c.workload.Keys)
	for n := 0; n < skipTries && c.workload.Skip != nil && c.workload.Skip(keyName(key)); n++ {
		key = c.random.IntN(c.workload.Keys)
	}
	request := putRequest(key, nil)
	if c.random.IntN(100) < c.workload.Reads {
		request = getRequest(key)
	} else {
		request.Ops[0].GetPut().Value = c.values.next()
	}
	c.store.Submit(request, func(p *flotillav1.Response, err error) {
		took := time.Since(from)
		c.meter.record(took, outcome(p, err))
		c.answers <- took
	})
}

// outcome is the error of an answer. An absent key is a good answer to a read.
func outcome(p *flotillav1.Response, err error) error {
	if err != nil {
		return err
	}
	for _, r := range p.GetResults() {
		if s := r.GetStatus(); s != flotillav1.Result_DONE && s != flotillav1.Result_ABSENT {
			return fmt.Errorf("result %v", s)
		}
	}
	return nil
}

func keyName(i int) []byte { return fmt.Appendf(nil, "bench-%08d", i) }

func getRequest(key int) *flotillav1.Request {
	return &flotillav1.Request{Ops: []*flotillav1.Op{{Op: &flotillav1.Op_Get{Get: &flotillav1.Get{Key: keyName(key)}}}}}
}

func putRequest(key int, value []byte) *flotillav1.Request {
	return &flotillav1.Request{Ops: []*flotillav1.Op{{Op: &flotillav1.Op_Put{Put: &flotillav1.Put{Key: keyName(key), Value: value}}}}}
}

// values are slices of one random buffer that does not compress.
type values struct {
	buffer []byte
	size   int
	at     int
}

func newValues(w Workload) *values {
	const spread = 4096 // values begin at as many places
	random := rand.NewChaCha8([32]byte{byte(w.Seed), 1})
	v := &values{buffer: make([]byte, w.ValueSize+spread), size: w.ValueSize}
	random.Read(v.buffer)
	return v
}

func (v *values) next() []byte {
	v.at = (v.at + 61) % (len(v.buffer) - v.size)
	return v.buffer[v.at : v.at+v.size : v.at+v.size]
}
