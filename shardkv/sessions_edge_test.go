package shardkv

import (
	"context"
	"math"
	"sync"
	"testing"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
)

// numberedIncr is an increment under a number of a session.
func numberedIncr(key string, seq, lowest uint64) *flotillav1.Request {
	q := ask(wireIncr(key))
	q.Session = &flotillav1.Session{ClientId: 7, BirthMs: epochNow, Seq: seq, Lowest: lowest}
	return q
}

// TestOneSessionOverTwoConnections: both use the same numbers, at once; each
// counts once, and both are told the same.
func TestOneSessionOverTwoConnections(t *testing.T) {
	const numbers = 50
	serve(t, func(t *testing.T, b *bench) {
		key := keyIn(0)
		var told [2][numbers + 1]int64
		var connections sync.WaitGroup
		for c := range told {
			connections.Go(func() {
				for seq := uint64(1); seq <= numbers; seq++ {
					n := seq
					if c == 1 && seq%2 == 0 { // not in the same order either
						n = numbers + 2 - seq
					}
					r, err := b.server.Do(context.Background(), numberedIncr(key, n, 1))
					if err != nil || r.Code != flotillav1.Code_OK {
						t.Errorf("number %d over connection %d: %v, %v", n, c, r, err)
						return
					}
					told[c][n] = r.Results[0].Number
				}
			})
		}
		connections.Wait()
		if told[0] != told[1] {
			t.Errorf("one was told\n%v, the other\n%v", told[0], told[1])
		}
		if r := b.do(ask(wireIncr(key))); r.Results[0].Number != numbers+1 {
			t.Errorf("%d numbers have counted to %d", numbers, r.Results[0].Number-1)
		}
	})
}

// TestTheLastNumbers: nothing wraps at the end of the numbers, or of a
// session's birth.
func TestTheLastNumbers(t *testing.T) {
	const last = math.MaxUint64
	serve(t, func(t *testing.T, b *bench) {
		key := keyIn(0)
		count := func(q *flotillav1.Request, want int64) {
			t.Helper()
			if r := b.want(b.do(q), flotillav1.Code_OK); r.Results[0].Number != want {
				t.Errorf("number %d counts to %d, not %d", q.Session.Seq, r.Results[0].Number, want)
			}
		}
		count(numberedIncr(key, last-1, last-1), 1)
		count(numberedIncr(key, last, last-1), 2)
		count(numberedIncr(key, last-1, last-1), 1) // again
		count(numberedIncr(key, last, last), 2)
		for _, past := range []uint64{1, last - 1} { // its answer need not be kept any more
			if r := b.do(numberedIncr(key, past, 1)); r.Code == flotillav1.Code_OK && !r.Replayed {
				t.Errorf("number %d has counted behind the last: %v", past, r)
			}
		}
		born := numberedIncr(key, 1, 1)
		born.Session.ClientId, born.Session.BirthMs = last, math.MaxInt64
		if r := b.do(born); r.Code != flotillav1.Code_SESSION_EXPIRED {
			t.Errorf("a session born at the end of time: %v %s", r.Code, r.Message)
		}
		born.Session.Seq, born.Session.Lowest = 0, last // no number: the write is not repeated
		if r := b.do(born); r.Code != flotillav1.Code_OK && r.Code != flotillav1.Code_INVALID {
			t.Errorf("without a number: %v %s", r.Code, r.Message)
		}
		if r := b.do(ask(wireGet(key))); string(r.Results[0].Value) != "2" && string(r.Results[0].Value) != "3" {
			t.Errorf("in the end it stands at %s", r.Results[0].Value)
		}
	})
}
