package history

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flotilla-kv/flotilla/client"
)

// Plan says what to record.
type Plan struct {
	Clients   int                 // that work at the same time
	Keys      int                 // that they share
	Duration  time.Duration       // for how long they begin operations
	OpTimeout time.Duration       // of one operation
	Pause     time.Duration       // of a client between two operations
	Prefix    string              // of the keys; nobody else may use it
	Reads     []client.ReadOption // kinds of reads besides linearizable ones, each as likely
	Seed      uint64
}

// Limits of a plan. The search for an order grows with the operations of a key
// and steeply with those that overlap.
const (
	ClientsMax = 64
	KeysMax    = 10_000
	OpsMax     = 1_000_000 // recorded; the recording ends early at it
	// opsPerKeyMax and opensPerKeyMax bound the search for an order: a key that
	// had as many operations, or as many whose outcome is not known, gives way
	// to a fresh one. Open ones are the dear ones: each may still take effect
	// anywhere behind its beginning, and the orders double with each.
	opsPerKeyMax   = 4_000
	opensPerKeyMax = 5
)

// Check refuses what makes no sense.
func (p Plan) Check() error {
	switch {
	case p.Clients < 1 || p.Clients > ClientsMax:
		return fmt.Errorf("%d clients: from 1 to %d", p.Clients, ClientsMax)
	case p.Keys < 1 || p.Keys > KeysMax:
		return fmt.Errorf("%d keys: from 1 to %d", p.Keys, KeysMax)
	case p.Duration <= 0 || p.OpTimeout <= 0:
		return fmt.Errorf("a duration of %v, timeout %v: both must be positive", p.Duration, p.OpTimeout)
	case p.Pause < 0:
		return fmt.Errorf("a pause of %v: it must not be negative", p.Pause)
	}
	return nil
}

// Untold is the Version of an answer that tells none, as a Redis door's.
const Untold = math.MaxUint64

// Store is what is recorded; client.Client is one.
type Store interface {
	Get(ctx context.Context, key string, options ...client.ReadOption) (client.Item, error)
	Put(ctx context.Context, key string, value []byte, options ...client.PutOption) (client.PutResult, error)
	Delete(ctx context.Context, key string, options ...client.DeleteOption) (client.DeleteResult, error)
	Incr(ctx context.Context, key string, by int64) (int64, error)
	CompareAndSwap(ctx context.Context, key string, old, value []byte, options ...client.PutOption) (client.PutResult, error)
}

// Kind is what an operation does.
type Kind uint8

// The kinds.
const (
	Get Kind = iota
	Put
	Delete
	Incr
	CAS
)

// Op is one operation of the history. Values are decimal integers, so that
// every operation makes sense on every key.
type Op struct {
	Client int
	Key    string
	Kind   Kind
	Value  int64 // Put, CAS: the new one; Incr: what is added
	Old    int64 // CAS: the value expected, if HasOld
	HasOld bool  // CAS: false expects an absent key

	Begin, End time.Duration // since the recording began; End is Open if the outcome is not known

	// What was heard, unless it is open.
	Present bool   // Get, Delete: the key was there; CAS: the condition held
	Result  int64  // Get: the value; Incr: the new value
	Version uint64 // Get, Put, CAS that held: of the key, or Untold
}

// Open is the End of an operation whose outcome is not known.
const Open = time.Duration(math.MaxInt64)

// History is what was recorded.
type History struct {
	Ops    []Op
	Failed int   // operations that failed for certain, and so are left out
	Error  error // of the last that failed or is open
	Took   time.Duration
}

// Unknown counts the operations that are open.
func (h *History) Unknown() int {
	n := 0
	for _, op := range h.Ops {
		if op.End == Open {
			n++
		}
	}
	return n
}

// Record lets the plan's clients work until its time is up or ctx ends.
func Record(ctx context.Context, s Store, p Plan) *History {
	r := newRecorder(s, p)
	begin, cancel := context.WithTimeout(ctx, p.Duration)
	defer cancel()
	var wait sync.WaitGroup
	for i := range p.Clients {
		wait.Go(func() { r.work(begin, i) })
	}
	wait.Wait()
	r.history.Took = time.Since(r.start)
	return &r.history
}

// recorder is a recording under way.
type recorder struct {
	store Store
	plan  Plan
	start time.Time
	begun []atomic.Int64 // operations by place of the key, open ones counted as many

	mu      sync.Mutex // guards what follows
	history History
	names   int // of clients given so far
}

func newRecorder(s Store, p Plan) *recorder {
	return &recorder{store: s, plan: p, start: time.Now(), names: p.Clients, begun: make([]atomic.Int64, p.Keys)}
}

// work is one client: it begins an operation when the one before has ended.
// After one that stays open it takes a new name, as that one goes on.
func (r *recorder) work(ctx context.Context, name int) {
	random := rand.New(rand.NewPCG(r.plan.Seed, uint64(name)))
	seen := make(map[string]Op) // the last read of each key: what a CAS may expect
	for ctx.Err() == nil {
		place := random.IntN(r.plan.Keys)
		op := r.choose(random, r.key(place), seen)
		op.Client = name
		op, err := r.do(op, random)
		if op.Kind == Get && err == nil {
			seen[op.Key] = op
		}
		if errors.Is(err, client.ErrUnknownOutcome) {
			r.wear(place)
		}
		var full bool
		if name, full = r.note(op, err, name); full {
			return
		}
		pause(ctx, r.plan.Pause)
	}
}

func (r *recorder) choose(random *rand.Rand, key string, seen map[string]Op) Op {
	op := Op{Key: key}
	switch n := random.IntN(100); {
	case n < 40:
		op.Kind = Get
	case n < 60:
		op.Kind, op.Value = Put, random.Int64N(1_000_000)
	case n < 75:
		op.Kind, op.Value = Incr, 1+random.Int64N(9)
	case n < 95:
		last := seen[op.Key]
		op.Kind, op.Value, op.Old, op.HasOld = CAS, random.Int64N(1_000_000), last.Result, last.Present
	default:
		op.Kind = Delete
	}
	return op
}

// key is the key that stands at a place now.
func (r *recorder) key(place int) string {
	fresh := (r.begun[place].Add(1) - 1) / opsPerKeyMax
	return fmt.Sprintf("%s%d-%d", r.plan.Prefix, place, fresh)
}

// wear lets the key at a place age by an operation that stays open.
func (r *recorder) wear(place int) { r.begun[place].Add(opsPerKeyMax / opensPerKeyMax) }

// do carries an operation out and fills in what was heard.
func (r *recorder) do(op Op, random *rand.Rand) (Op, error) {
	// An operation that has begun is heard out, so its context is its own.
	ctx, cancel := context.WithTimeout(context.Background(), r.plan.OpTimeout)
	defer cancel()
	op.Begin = time.Since(r.start)
	err := op.carryOut(ctx, r.store, r.readOptions(random))
	op.End = time.Since(r.start)
	return op, err
}

func (r *recorder) readOptions(random *rand.Rand) []client.ReadOption {
	if n := random.IntN(len(r.plan.Reads) + 1); n > 0 {
		return r.plan.Reads[n-1 : n]
	}
	return nil
}

func (op *Op) carryOut(ctx context.Context, s Store, reads []client.ReadOption) (err error) {
	switch op.Kind {
	case Get:
		item, err := s.Get(ctx, op.Key, reads...)
		if errors.Is(err, client.ErrNotFound) {
			return nil
		}
		op.Present, op.Version = true, item.Version
		if err == nil {
			op.Result, err = strconv.ParseInt(string(item.Value), 10, 64)
		}
		return err
	case Put:
		put, err := s.Put(ctx, op.Key, decimal(op.Value))
		op.Version = put.Version
		return err
	case Delete:
		deleted, err := s.Delete(ctx, op.Key)
		op.Present = deleted.Existed
		return err
	case Incr:
		op.Result, err = s.Incr(ctx, op.Key, op.Value)
		return err
	}
	var old []byte
	if op.HasOld {
		old = decimal(op.Old)
	}
	put, err := s.CompareAndSwap(ctx, op.Key, old, decimal(op.Value))
	op.Present, op.Version = err == nil, put.Version
	if errors.Is(err, client.ErrConditionFailed) {
		return nil
	}
	return err
}

// pause waits, but no longer than ctx lasts.
func pause(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

func decimal(n int64) []byte { return strconv.AppendInt(nil, n, 10) }

// note adds an operation to the history. It returns the client's name from now
// on, and whether the history is full.
func (r *recorder) note(op Op, err error, name int) (next int, full bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.history.Error = err
	}
	switch {
	case errors.Is(err, client.ErrUnknownOutcome):
		op.End = Open
		r.history.Ops = append(r.history.Ops, op)
		name = r.names
		r.names++
	case err != nil:
		r.history.Failed++
	default:
		r.history.Ops = append(r.history.Ops, op)
	}
	return name, len(r.history.Ops) >= OpsMax
}
