package history

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/client"
)

// cell is a store in memory that is linearizable, but for the fault it is told
// to have.
type cell struct {
	fault fault
	mu    sync.Mutex // guards what follows
	count uint64
	items map[string]client.Item
	old   map[string]client.Item // before the last write
	n     map[Kind]int
}

type fault int

const (
	faultNone      fault = iota
	faultUnknown         // some outcomes are unknown: half of them happened. No fault at all.
	faultRefused         // some writes fail for certain and do nothing. No fault at all.
	faultStaleRead       // some reads see what was before the last write
	faultLostWrite       // some writes are acknowledged and do nothing
	faultTwice           // some increments happen twice
	faultGhost           // some writes fail for certain and happen
	faultVersion         // versions repeat
	faultDelete          // some deletes say that there was nothing
)

var errRefused = errors.New("refused")

// enter takes the lock after a moment, so that operations overlap, and tells
// whether this one is to go wrong.
func (c *cell) enter(kind Kind) (faulty bool, leave func()) {
	pause := func() { time.Sleep(time.Duration(rand.IntN(50)) * time.Microsecond) }
	pause()
	c.mu.Lock()
	c.n[kind]++
	return c.n[kind]%10 == 0, func() {
		c.mu.Unlock()
		pause()
	}
}

func (c *cell) Get(_ context.Context, key string, _ ...client.ReadOption) (client.Item, error) {
	faulty, leave := c.enter(Get)
	defer leave()
	item, ok := c.items[key]
	if faulty && c.fault == faultStaleRead {
		item, ok = c.old[key]
	}
	if !ok {
		return client.Item{}, client.ErrNotFound
	}
	return item, nil
}

// write carries out a write under the lock.
func (c *cell) write(faulty bool, key string, value []byte) (client.PutResult, error) {
	doIt, err := true, error(nil)
	if faulty {
		switch c.fault {
		case faultUnknown:
			doIt, err = rand.IntN(2) == 0, &client.UnknownOutcomeError{Cause: context.DeadlineExceeded}
		case faultRefused:
			doIt, err = false, errRefused
		case faultGhost:
			err = errRefused
		case faultLostWrite:
			doIt = false
		}
	}
	if !faulty || c.fault != faultVersion {
		c.count++
	}
	if doIt {
		if before, ok := c.items[key]; ok {
			c.old[key] = before
		} else {
			delete(c.old, key)
		}
		c.items[key] = client.Item{Value: value, Version: c.count}
	}
	return client.PutResult{Version: c.count}, err
}

func (c *cell) Put(_ context.Context, key string, value []byte, _ ...client.PutOption) (client.PutResult, error) {
	faulty, leave := c.enter(Put)
	defer leave()
	return c.write(faulty, key, value)
}

func (c *cell) Delete(_ context.Context, key string, _ ...client.DeleteOption) (client.DeleteResult, error) {
	faulty, leave := c.enter(Delete)
	defer leave()
	_, existed := c.items[key]
	if faulty && c.fault == faultDelete {
		existed = !existed
	}
	c.old[key] = c.items[key]
	delete(c.items, key)
	return client.DeleteResult{Existed: existed}, nil
}

func (c *cell) Incr(_ context.Context, key string, by int64) (int64, error) {
	faulty, leave := c.enter(Incr)
	defer leave()
	n, _ := strconv.ParseInt(string(c.items[key].Value), 10, 64)
	value := n + by
	if faulty && c.fault == faultTwice {
		c.write(false, key, decimal(value+by))
		return value, nil
	}
	_, err := c.write(faulty, key, decimal(value))
	return value, err
}

func (c *cell) CompareAndSwap(_ context.Context, key string, old, value []byte, _ ...client.PutOption) (client.PutResult, error) {
	faulty, leave := c.enter(CAS)
	defer leave()
	if item, ok := c.items[key]; ok != (old != nil) || !bytes.Equal(item.Value, old) {
		return client.PutResult{}, &client.ConditionError{}
	}
	return c.write(faulty, key, value)
}

func recorded(t *testing.T, f fault) *History {
	t.Helper()
	p := Plan{Clients: 6, Keys: 3, OpTimeout: time.Second, Prefix: "k", Reads: []client.ReadOption{client.Follower()}}
	for p.Duration = 150 * time.Millisecond; ; p.Duration *= 2 { // a busy machine takes longer for as many
		if err := p.Check(); err != nil {
			t.Fatal(err)
		}
		store := &cell{fault: f, n: make(map[Kind]int), items: make(map[string]client.Item), old: make(map[string]client.Item)}
		h := Record(t.Context(), store, p)
		if len(h.Ops) >= 200 {
			return h
		}
		if p.Duration > 10*time.Second {
			t.Fatalf("only %d operations: the test tests nothing", len(h.Ops))
		}
	}
}

func TestWhatIsLinearizableIsFoundSo(t *testing.T) {
	for name, f := range map[string]fault{"sound": faultNone, "unknown": faultUnknown, "refused": faultRefused} {
		t.Run(name, func(t *testing.T) {
			h := recorded(t, f)
			if f == faultUnknown && (h.Unknown() == 0 || h.Error == nil) {
				t.Fatal("no outcome is unknown")
			}
			if f == faultRefused && h.Failed == 0 {
				t.Fatal("nothing was refused")
			}
			if got := Check(h, time.Minute); got.Verdict != Linearizable {
				t.Fatalf("%s: key %s\n%v", got.Verdict, got.Key, got.Ops)
			}
		})
	}
}

func TestWhatIsNotIsFoundAndShown(t *testing.T) {
	for name, f := range map[string]fault{
		"stale read": faultStaleRead, "lost write": faultLostWrite, "twice": faultTwice,
		"ghost": faultGhost, "version": faultVersion, "delete": faultDelete,
	} {
		t.Run(name, func(t *testing.T) {
			h := recorded(t, f)
			got := Check(h, time.Minute)
			if got.Verdict != NotLinearizable {
				t.Fatalf("%s after %d operations", got.Verdict, len(h.Ops))
			}
			if check(got.Ops, time.Minute) == "Ok" {
				t.Fatal("what is shown has an order")
			}
			end := len(got.Ops) - 1
			for i, op := range got.Ops {
				if op.End != Open && (got.Ops[end].End == Open || op.End > got.Ops[end].End) {
					end = i
				}
			}
			without := append(append([]Op(nil), got.Ops[:end]...), got.Ops[end+1:]...)
			if got.Ops[end].Kind != Get {
				op := got.Ops[end]
				op.End = Open
				without = append(without, op)
			}
			if check(without, time.Minute) != "Ok" {
				t.Fatalf("the last answer is not the one that breaks it: %v", got.Ops[end])
			}
			var page bytes.Buffer
			if err := got.Draw(&page, time.Minute); err != nil || !strings.Contains(page.String(), "<html") {
				t.Fatalf("drawn: %d bytes, %v", page.Len(), err)
			}
		})
	}
}

func TestNoTimeIsUndecided(t *testing.T) {
	if got := Check(recorded(t, faultNone), time.Nanosecond); got.Verdict != Undecided {
		t.Fatal(got.Verdict)
	}
}

func TestAKeyGivesWayBeforeItsHistoryIsTooLong(t *testing.T) {
	p := Plan{Clients: 1, Keys: 2, Duration: 1, OpTimeout: 1}
	r := newRecorder(nil, p)
	first := r.key(0)
	for range opsPerKeyMax - 1 {
		if got := r.key(0); got != first {
			t.Fatalf("%s already", got)
		}
	}
	if r.key(0) == first {
		t.Fatal("never")
	}
	second := r.key(1)
	for range opensPerKeyMax {
		r.wear(1)
	}
	if r.key(1) == second {
		t.Fatalf("%d operations are open, and the key is still used", opensPerKeyMax)
	}
}

// TestVersionsThatAreNotTold: a door that tells no versions can be recorded
// beside one that does.
func TestVersionsThatAreNotTold(t *testing.T) {
	write := Op{Key: "k", Kind: Put, Value: 1, Begin: 1, End: 2, Version: Untold}
	read := Op{Key: "k", Kind: Get, Present: true, Result: 1, Begin: 3, End: 4, Version: Untold}
	told := Op{Key: "k", Kind: Get, Present: true, Result: 1, Begin: 5, End: 6, Version: 9}
	other := Op{Key: "k", Kind: Get, Present: true, Result: 1, Begin: 7, End: 8, Version: 8}
	if got := Check(&History{Ops: []Op{write, read, told}}, time.Minute); got.Verdict != Linearizable {
		t.Errorf("%s", got.Verdict)
	}
	if got := Check(&History{Ops: []Op{write, read, told, other}}, time.Minute); got.Verdict != NotLinearizable {
		t.Errorf("one write has two versions: %s", got.Verdict)
	}
}

func TestPlansAreChecked(t *testing.T) {
	good := Plan{Clients: 1, Keys: 1, Duration: 1, OpTimeout: 1}
	if err := good.Check(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Plan){
		"clients":  func(p *Plan) { p.Clients = ClientsMax + 1 },
		"keys":     func(p *Plan) { p.Keys = 0 },
		"duration": func(p *Plan) { p.Duration = -1 },
		"timeout":  func(p *Plan) { p.OpTimeout = 0 },
		"pause":    func(p *Plan) { p.Pause = -1 },
	} {
		p := good
		spoil(&p)
		if p.Check() == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
