package client

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
)

// filled is a cluster with keys in all its shards, and the keys in order.
func filled(t *testing.T, n int) (*fakeCluster, *Client, []string) {
	f := newFakeCluster(t, 2)
	c := f.client(Options{})
	var ops []Op
	var keys []string
	for i := range n {
		key := fmt.Sprintf("key-%04d", i)
		keys = append(keys, key)
		ops = append(ops, PutOp(key, []byte(key)))
	}
	results, err := c.Batch(within(t, 10*time.Second), ops...)
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range results {
		if r.Err != nil || r.Item.Key != keys[i] {
			t.Fatalf("put %d: %+v", i, r)
		}
	}
	return f, c, keys
}

func scanned(t *testing.T, c *Client, options ...ScanOption) []string {
	t.Helper()
	var keys []string
	for item, err := range c.Scan(within(t, 10*time.Second), options...) {
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, item.Key)
	}
	return keys
}

func TestScanMergesAllShardsInOrder(t *testing.T) {
	_, c, keys := filled(t, 3000)
	if got := scanned(t, c); !slices.Equal(got, keys) {
		t.Fatalf("%d keys of %d, in order: %v", len(got), len(keys), slices.IsSorted(got))
	}
	if got := scanned(t, c, Prefix("key-01")); !slices.Equal(got, keys[100:200]) {
		t.Fatalf("by prefix: %d keys from %v", len(got), got[:1])
	}
	if got := scanned(t, c, Range("key-0500", "key-0510"), KeysOnly()); !slices.Equal(got, keys[500:510]) {
		t.Fatalf("by range: %v", got)
	}
	if got := scanned(t, c, Limit(7)); !slices.Equal(got, keys[:7]) {
		t.Fatalf("with a limit: %v", got)
	}
	if got := scanned(t, c, Prefix("no such")); len(got) != 0 {
		t.Fatalf("of nothing: %v", got)
	}
	for i, item := range []string{"key-0000", "key-0001"} {
		n := 0
		for got, err := range c.Scan(within(t, 5*time.Second)) {
			if n++; n <= i {
				continue
			}
			if err != nil || got.Key != item || string(got.Value) != item {
				t.Fatalf("%+v, %v", got, err)
			}
			break // and nothing is left running; the goroutine check of Close sees it
		}
	}
	if n, err := c.Count(within(t, 10*time.Second)); err != nil || n != 3000 {
		t.Fatalf("count: %d, %v", n, err)
	}
}

func TestClearDeletesWhatAScanCovers(t *testing.T) {
	_, c, keys := filled(t, 300)
	if n, err := c.Clear(within(t, 5*time.Second), Prefix("key-01")); err != nil || n != 100 {
		t.Fatalf("%d, %v", n, err)
	}
	if got := scanned(t, c); !slices.Equal(got, slices.Concat(keys[:100], keys[200:])) {
		t.Fatalf("%d keys are left", len(got))
	}
}

func TestScanOfARoutingKeyAsksOneShard(t *testing.T) {
	f, c, _ := filled(t, 10)
	for i := range 5 {
		if _, err := c.Put(within(t, 5*time.Second), fmt.Sprintf("user:{7}:%d", i), nil); err != nil {
			t.Fatal(err)
		}
	}
	before := 0
	f.change(func() { before = f.requests })
	if got := scanned(t, c, Prefix("user:{7}")); len(got) != 5 {
		t.Fatalf("got %v", got)
	}
	f.change(func() {
		if f.requests != before+1 {
			t.Errorf("%d requests", f.requests-before)
		}
	})
	for prefix, want := range map[string]bool{"a{b}": true, "a{b": false, "{}x": false, "a{}{b}": false, "ab": false, "{x}{y": true} {
		if namesRoutingKey([]byte(prefix)) != want {
			t.Errorf("prefix %q: %v", prefix, !want)
		}
	}
}

func TestScanGoesOnWhileShardsMove(t *testing.T) {
	f, c, keys := filled(t, 2000)
	n := 0
	f.change(func() {
		f.intercept = func(uint64, *flotillav1.Request) (*flotillav1.Response, bool) {
			if n++; n%5 == 0 {
				s := f.shards[n%fakeShards]
				s.group, s.generation = 5-s.group, s.generation+1
			}
			return nil, false
		}
	})
	if got := scanned(t, c); !slices.Equal(got, keys) {
		t.Fatalf("%d keys of %d", len(got), len(keys))
	}
}

func TestScanEndsWithItsError(t *testing.T) {
	f, c, _ := filled(t, 100)
	f.change(func() {
		f.intercept = func(uint64, *flotillav1.Request) (*flotillav1.Response, bool) {
			return &flotillav1.Response{Code: flotillav1.Code_NO_QUORUM}, false
		}
	})
	yields := 0
	for _, err := range c.Scan(within(t, 100*time.Millisecond)) {
		yields++
		if !errors.Is(err, ErrNoQuorum) {
			t.Fatalf("got %v", err)
		}
	}
	if yields != 1 {
		t.Fatalf("yielded %d times", yields)
	}
	for _, err := range c.Scan(within(t, time.Second), InShard(fakeShards)) {
		if !errors.Is(err, ErrInvalid) {
			t.Fatalf("a shard that is not: %v", err)
		}
	}
}

func TestMultiGetFansOut(t *testing.T) {
	f, c, keys := filled(t, 500)
	before, messages := 0, 0
	f.change(func() { before, messages = f.requests, f.messages })
	asked := append(slices.Clone(keys), "absent")
	results, err := c.MultiGet(within(t, 5*time.Second), asked, Follower())
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range results {
		if i < len(keys) && (r.Err != nil || string(r.Item.Value) != keys[i]) {
			t.Fatalf("key %d: %+v", i, r)
		}
	}
	if !errors.Is(results[len(keys)].Err, ErrNotFound) {
		t.Fatalf("the absent one: %+v", results[len(keys)])
	}
	f.change(func() {
		if n := f.requests - before; n > len(keys)/4 {
			t.Errorf("%d requests for %d keys", n, len(keys))
		}
		t.Logf("%d requests in %d messages", f.requests-before, f.messages-messages)
	})
}

func TestABatchKeepsTheOrderOfAShardAndTellsWhatFailed(t *testing.T) {
	f, c, _ := filled(t, 0)
	var ops []Op
	want := ""
	for i := range 400 {
		ops = append(ops, AppendOp("log", fmt.Appendf(nil, "%d,", i)))
		want += fmt.Sprintf("%d,", i)
	}
	ops = append(ops, GetOp("log"))
	results, err := c.Batch(within(t, 5*time.Second), ops...)
	if err != nil || string(results[400].Item.Value) != want {
		t.Fatalf("%v, %+v", err, results[400])
	}
	good, bad := keyOf(0, "a"), keyOf(1, "a")
	f.change(func() {
		f.intercept = func(_ uint64, q *flotillav1.Request) (*flotillav1.Response, bool) {
			if q.GetShard() == 1 {
				return &flotillav1.Response{Code: flotillav1.Code_INVALID}, false
			}
			return nil, false
		}
	})
	results, err = c.Batch(within(t, 5*time.Second), PutOp(bad, nil), PutOp(good, nil), IncrOp(good+"", 1))
	if !errors.Is(err, ErrInvalid) || !errors.Is(results[0].Err, ErrInvalid) || results[1].Err != nil || !errors.Is(results[2].Err, ErrNotAnInteger) {
		t.Fatalf("%v, %+v", err, results)
	}
}

func TestARequestOfABatchStaysWithinItsLimits(t *testing.T) {
	var ops []Op
	for range 40 {
		ops = append(ops, GetOp("k"))
	}
	for range 300 {
		ops = append(ops, IncrOp("k", 1))
	}
	for range 10 {
		ops = append(ops, PutOp("k", make([]byte, 100<<10)))
	}
	next := 0
	for _, part := range splitBatch(ops, fakeShards) {
		values, bytes := 0, 0
		for i, op := range part.wire {
			values += returnsValue(op)
			bytes += opBytes(op)
			if part.at[i] != next {
				t.Fatalf("op %d stands where op %d should", part.at[i], next)
			}
			next++
		}
		if len(part.wire) > batchOpsMax || values > batchValuesMax || bytes > batchBytesMax {
			t.Errorf("a request of %d ops, %d values, %d bytes", len(part.wire), values, bytes)
		}
	}
	if next != len(ops) {
		t.Fatalf("%d ops of %d", next, len(ops))
	}
}

func TestAScanThatIsLeftEarlyWaitsForNothing(t *testing.T) {
	f, c, _ := filled(t, 2000)
	f.change(func() {
		f.intercept = func(_ uint64, q *flotillav1.Request) (*flotillav1.Response, bool) {
			return nil, q.GetOps()[0].GetScan().GetLimit() > 4*scanFirstPage // the third pages never come
		}
	})
	start, n := time.Now(), 0
	for _, err := range c.Scan(within(t, 30*time.Second)) {
		if err != nil {
			t.Fatal(err)
		}
		if n++; n == 20*fakeShards {
			break
		}
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Fatalf("left after %v", took)
	}
}

// A server that says to go on where the page began must not keep the scan busy
// for ever.
func TestAScanThatDoesNotAdvanceEnds(t *testing.T) {
	for _, c := range []struct {
		start, next string
		refused     bool
	}{{"", "", false}, {"", "a", false}, {"k", "k", true}, {"k", "a", true}, {"k", "k\x00", false}} {
		p := pageOf(&flotillav1.Result{Next: []byte(c.next)}, []byte(c.start))
		if (p.err != nil) != c.refused || c.refused && !errors.Is(p.err, ErrInternal) {
			t.Errorf("from %q on at %q: %v", c.start, c.next, p.err)
		}
	}
}
