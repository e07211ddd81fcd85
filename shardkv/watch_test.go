package shardkv

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// watchStream is a client's end of a watch.
type watchStream struct {
	grpc.ServerStream
	t     *testing.T
	ctx   context.Context
	stop  context.CancelFunc
	sent  chan *flotillav1.WatchResponse
	ended chan error // what Watch returned
	seen  map[uint64]uint64
}

func (s *watchStream) Context() context.Context { return s.ctx }

// Send blocks until the response is taken, as a stream does whose windows are
// full.
func (s *watchStream) Send(p *flotillav1.WatchResponse) error {
	select {
	case s.sent <- p:
		return nil
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
}

func (b *bench) watch(q *flotillav1.WatchRequest) *watchStream {
	ctx, stop := context.WithCancel(context.Background())
	s := &watchStream{t: b.T, ctx: ctx, stop: stop, sent: make(chan *flotillav1.WatchResponse), ended: make(chan error, 1), seen: make(map[uint64]uint64)}
	q.Group = uint64(b.id)
	go func() {
		s.ended <- b.server.Watch(q, s)
		stop() // as gRPC does
	}()
	return s
}

func from(start flotillav1.WatchFrom_Start, version uint64, shards ...shardmap.ShardID) *flotillav1.WatchRequest {
	q := new(flotillav1.WatchRequest)
	for _, id := range shards {
		q.Shards = append(q.Shards, &flotillav1.WatchFrom{Shard: uint64(id), Start: start, Version: version})
	}
	return q
}

// next is what is said next: responses that say nothing are passed by.
func (s *watchStream) next() (said []string) {
	s.t.Helper()
	late := time.After(10 * time.Second)
	for len(said) == 0 {
		select {
		case p := <-s.sent:
			said = s.read(p)
		case err := <-s.ended:
			return []string{fmt.Sprint("ended: ", err)}
		case <-late:
			return []string{"nothing"}
		}
	}
	return said
}

// read writes a response as short as it can be, and requires that each part
// goes on where the one before it ended.
func (s *watchStream) read(p *flotillav1.WatchResponse) (said []string) {
	s.t.Helper()
	if p.Code != flotillav1.Code_OK {
		return []string{fmt.Sprint(p.Code, " ", p.LeaderNode)}
	}
	for _, part := range p.Parts {
		line := fmt.Sprintf("%d %v @%d", part.Shard, part.Kind, part.Version)
		switch part.Kind {
		case flotillav1.WatchPart_CHANGES:
			if part.After != s.seen[part.Shard] {
				s.t.Errorf("shard %d: changes behind %d, though it was told through %d", part.Shard, part.After, s.seen[part.Shard])
			}
		case flotillav1.WatchPart_MOVED:
			line += fmt.Sprint(" to ", part.Group)
			if part.Version != 0 && part.Version != s.seen[part.Shard] {
				s.t.Errorf("shard %d moved at %d, though it was told through %d", part.Shard, part.Version, s.seen[part.Shard])
			}
		}
		s.seen[part.Shard] = part.Version
		for _, e := range part.Events {
			value := string(e.Value)
			if len(value) > 10 {
				value = fmt.Sprint(len(value), " bytes")
			}
			line += fmt.Sprintf(" %v %s=%s@%d", e.Kind, e.Key, value, e.Version)
		}
		said = append(said, line)
	}
	return said
}

func (s *watchStream) expect(want ...string) {
	s.t.Helper()
	for len(want) > 0 {
		for _, got := range s.next() {
			if len(want) == 0 || got != want[0] {
				s.t.Fatalf("the watch says %q, not %q", got, want)
			}
			want = want[1:]
		}
	}
}

// commit applies commands as one entry.
func (b *bench) commit(commands ...command) []*answer {
	b.host.mu.Lock()
	defer b.host.mu.Unlock()
	return b.host.rig.apply(panics{}, newEntry(time.Now().UnixMilli(), commands...))
}

func TestAWatchTellsWhatMatches(t *testing.T) {
	serve(t, func(t *testing.T, b *bench) {
		b.commit(plain(0, put("x1", "a")), plain(0, put("y", "b")))
		all := b.watch(from(flotillav1.WatchFrom_AFTER, 0, 0))
		all.expect("0 BEGIN @0", "0 CHANGES @2 PUT x1=a@1 PUT y=b@2")
		q := from(flotillav1.WatchFrom_NOW, 0, 0, 1)
		q.Prefix = []byte("x")
		prefix := b.watch(q)
		prefix.expect("0 BEGIN @2", "1 BEGIN @0")
		synctest.Wait()
		b.commit(plain(0, put("x2", "c"), put("y", "d")), plain(0, del("x1"), del("nobody")))
		all.expect("0 CHANGES @5 PUT x2=c@3 PUT y=d@4 DELETE x1=@5")
		prefix.expect("0 CHANGES @5 PUT x2=c@3 DELETE x1=@5")
		b.commit(plain(1, put("y", "e")))
		prefix.expect("1 CHANGES @1") // nothing matched, but it has come so far
		b.commit(plain(0, op{kind: opClear, span: span{prefix: []byte("x2")}}), plain(0, op{kind: opClear, span: span{prefix: []byte("y")}}))
		prefix.expect("0 CHANGES @7 CLEAR =@6")
		b.commit(plain(1, put("x3", "f"), op{kind: opExpire, key: []byte("x3"), expireAt: time.Now().UnixMilli() + 10}))
		prefix.expect("1 CHANGES @3 PUT x3=f@2 PUT x3=f@3")
		prefix.expect("1 CHANGES @4 EXPIRED x3=@4")
		all.stop()
		prefix.stop()
	})
}

func TestAWatchOfOneKey(t *testing.T) {
	serve(t, func(t *testing.T, b *bench) {
		shard := shardmap.Shard([]byte("key3"), 4)
		for shard > 1 {
			t.Fatalf("the key is in shard %d", shard)
		}
		q := from(flotillav1.WatchFrom_NOW, 0, shard)
		q.Key = []byte("key3")
		w := b.watch(q)
		w.expect(fmt.Sprintf("%d BEGIN @0", shard))
		b.commit(plain(shard, put("key33", "a"), put("key3", "b"), op{kind: opClear, span: span{start: []byte("key4")}}, op{kind: opClear}))
		w.expect(fmt.Sprintf("%d CHANGES @4 PUT key3=b@2 CLEAR =@4", shard))
		w.stop()
	})
}

// What history does not reach back to, or has not come to, is told.
func TestAWatchFromElsewhereIsCompacted(t *testing.T) {
	serve(t, func(t *testing.T, b *bench) {
		b.commit(plain(0, put("k", "a"), put("k", "b")))
		b.host.rig.restartKeeping(t)
		b.commit(plain(0, put("k", "c")))
		for version, want := range []string{"0 COMPACTED @2", "0 COMPACTED @2", "0 BEGIN @2 0 CHANGES @3 PUT k=c@3", "0 BEGIN @3", "0 COMPACTED @2"} {
			w := b.watch(from(flotillav1.WatchFrom_AFTER, uint64(version), 0))
			var got []string
			for len(strings.Join(got, " ")) < len(want) {
				got = append(got, w.next()...)
			}
			if strings.Join(got, " ") != want {
				t.Errorf("from version %d: %q, not %q", version, got, want)
			}
			w.stop()
		}
	})
}

// A replica that is started anew takes the place of the one before it, whose
// watches end and whose history gives its memory back.
func TestAReplicaTakesThePlaceOfTheOneBefore(t *testing.T) {
	serve(t, func(t *testing.T, b *bench) {
		for range 3 {
			b.commit(plain(0, put("k", strings.Repeat("x", 50_000))))
		}
		w := b.watch(from(flotillav1.WatchFrom_NOW, 0, 0))
		w.expect("0 BEGIN @3")
		if b.server.history.Load() == historyNodeBytes {
			t.Fatal("the history has taken nothing")
		}
		before := b.server.group(rigGroup)
		b.server.NewStateMachine(rigGroup)(b.host.rig.replica)
		w.expect("NOT_LEADER 0")
		if left := b.server.history.Load(); left != historyNodeBytes {
			t.Errorf("%d bytes did not come back", historyNodeBytes-left)
		}
		// What the old one still applies takes nothing.
		b.commit(plain(0, put("k", strings.Repeat("x", 50_000))))
		if left := b.server.history.Load(); left != historyNodeBytes || !before.machine.history.closed {
			t.Errorf("the old one took %d bytes", historyNodeBytes-left)
		}
	})
}

// restartKeeping is restart of a machine that stays the server's.
func (r *rig) restartKeeping(t fataler) {
	if err := r.machine.Restored(r.replica); err != nil {
		t.Fatalf("restored: %v", err)
	}
}

// A watch that is not read falls off the ring and is told so, its shards that
// have missed nothing go on.
func TestASlowWatchIsCompacted(t *testing.T) {
	serve(t, func(t *testing.T, b *bench) {
		w := b.watch(from(flotillav1.WatchFrom_NOW, 0, 0, 1))
		w.expect("0 BEGIN @0", "1 BEGIN @0")
		large := strings.Repeat("x", 50_000)
		for range 40 {
			b.commit(plain(0, put("k", large)))
			synctest.Wait()
		}
		// One was on its way; of the rest those are there that the ring holds.
		w.expect("0 CHANGES @1 PUT k=50000 bytes@1", "0 COMPACTED @20")
		b.commit(plain(1, put("k", "a")))
		w.expect("1 CHANGES @1 PUT k=a@1")
		w.stop()
	})
}

// A change that is missing is no silence.
func TestAGapOfTheHistoryIsTold(t *testing.T) {
	serve(t, func(t *testing.T, b *bench) {
		w := b.watch(from(flotillav1.WatchFrom_NOW, 0, 0))
		w.expect("0 BEGIN @0")
		b.host.set(func() { b.host.rig.machine.shards[0].writes++ })
		b.commit(plain(0, put("k", "a")))
		w.expect("INTERNAL 0")
		if err := <-w.ended; err != nil {
			t.Errorf("the stream ended with %v", err)
		}
		b.host.set(func() { b.host.err = errors.New("who knows") })
		b.watch(from(flotillav1.WatchFrom_NOW, 0, 0)).expect("UNAVAILABLE 0")
	})
}

// A value that is too large for the history is told while it is the key's.
func TestALargeValueIsWatched(t *testing.T) {
	serve(t, func(t *testing.T, b *bench) {
		w := b.watch(from(flotillav1.WatchFrom_NOW, 0, 0, 1))
		w.expect("0 BEGIN @0", "1 BEGIN @0")
		large := strings.Repeat("x", historyValueMax+1)
		b.commit(plain(0, put("k", large)))
		w.expect("0 CHANGES @1 PUT k=65537 bytes@1")
		b.commit(plain(0, put("l", "a"), put("k", large), put("k", large)))
		w.expect("0 CHANGES @2 PUT l=a@2", "0 COMPACTED @3")
		b.commit(plain(1, put("k", "a")))
		w.expect("1 CHANGES @1 PUT k=a@1")
		w.stop()
	})
}

// Values that the history does not hold are sent some at a time.
func TestManyLargeValuesAreNotOneResponse(t *testing.T) {
	serve(t, func(t *testing.T, b *bench) {
		w := b.watch(from(flotillav1.WatchFrom_NOW, 0, 0))
		w.expect("0 BEGIN @0")
		synctest.Wait()
		var ops []op
		for i := range 10 {
			ops = append(ops, put(fmt.Sprint("k", i), strings.Repeat("x", watchPageBytes+1)))
		}
		b.commit(plain(0, ops...))
		for v := range 10 {
			w.expect(fmt.Sprintf("0 CHANGES @%d PUT k%d=262145 bytes@%d", v+1, v, v+1))
		}
		w.stop()
	})
}

// A span that is too large for the history ends the shard's watch, and no other.
func TestALargeClearIsCompacted(t *testing.T) {
	serve(t, func(t *testing.T, b *bench) {
		w := b.watch(from(flotillav1.WatchFrom_NOW, 0, 0, 1))
		w.expect("0 BEGIN @0", "1 BEGIN @0")
		b.commit(plain(0, put("k", "a"), op{kind: opClear, span: span{start: make([]byte, historyValueMax)}}))
		w.expect("0 CHANGES @1 PUT k=a@1", "0 COMPACTED @2")
		b.commit(plain(1, put("k", "a")))
		w.expect("1 CHANGES @1 PUT k=a@1")
		w.stop()
	})
}

// A watch that begins with the keys tells them as of a version, and misses
// nothing behind it.
func TestAWatchBeginsWithTheKeys(t *testing.T) {
	serve(t, func(t *testing.T, b *bench) {
		soon := op{kind: opPut, key: []byte("x2"), value: []byte("b"), ttl: 50}
		b.commit(plain(0, put("x1", "a"), put("y", "c"), soon, put("x3", "d")))
		b.host.rig.restartKeeping(t)
		q := from(flotillav1.WatchFrom_STATE, 0, 0)
		q.Prefix = []byte("x")
		w := b.watch(q)
		synctest.Wait()
		b.commit(plain(0, put("x1", "e")))
		w.expect("0 BEGIN @4", "0 STATE_END @4 PUT x1=a@1 PUT x2=b@3 PUT x3=d@4", "0 CHANGES @5 PUT x1=e@5")
		w.expect("0 CHANGES @6 EXPIRED x2=@6")
		w.stop()
		large := strings.Repeat("x", watchPageBytes)
		b.commit(plain(0, put("x1", large), put("x4", large)))
		w = b.watch(from(flotillav1.WatchFrom_STATE, 0, 0))
		w.expect("0 BEGIN @8", "0 STATE @8 PUT x1=262144 bytes@7", "0 STATE @8 PUT x3=d@4 PUT x4=262144 bytes@8", "0 STATE_END @8 PUT y=c@2")
		w.stop()
	})
}

// While the keys of one shard are read the others fall behind: they are told
// before those of the next are.
func TestShardsBeginWithTheirKeysOneByOne(t *testing.T) {
	serve(t, func(t *testing.T, b *bench) {
		b.commit(plain(0, put("k", "a")), plain(1, put("k", "b")))
		w := b.watch(from(flotillav1.WatchFrom_STATE, 0, 0, 1))
		synctest.Wait() // the first response is not taken
		b.commit(plain(0, put("k", "c")))
		w.expect("0 BEGIN @1", "0 STATE_END @1 PUT k=a@1", "0 CHANGES @2 PUT k=c@2", "1 BEGIN @1", "1 STATE_END @1 PUT k=b@1")
		b.commit(plain(1, put("k", "d")))
		w.expect("1 CHANGES @2 PUT k=d@2")
		w.stop()
	})
}

// Who does not take the keys loses the stream and not the node its memory.
func TestAWatchThatDoesNotTakeTheKeysEnds(t *testing.T) {
	serve(t, func(t *testing.T, b *bench) {
		w := b.watch(from(flotillav1.WatchFrom_STATE, 0, 0))
		time.Sleep(watchViewTimeout + time.Second)
		if err := <-w.ended; err == nil || !strings.Contains(err.Error(), "in time") {
			t.Errorf("the stream ended with %v", err)
		}
	})
}

func TestAWatchEndsAtADeposedLeader(t *testing.T) {
	serve(t, func(t *testing.T, b *bench) {
		w := b.watch(from(flotillav1.WatchFrom_NOW, 0, 0))
		w.expect("0 BEGIN @0")
		b.host.set(func() { b.host.leader = 9 })
		began := time.Now()
		w.expect("NOT_LEADER 9")
		if waited := time.Since(began); waited > 2*watchLeaderCheck {
			t.Errorf("it took %v", waited)
		}
		if err := <-w.ended; err != nil {
			t.Errorf("the stream ended with %v", err)
		}
		b.host.set(func() { b.host.leader = self })
		if w = b.watch(from(flotillav1.WatchFrom_NOW, 0, 0)); w.next()[0] != "0 BEGIN @0" {
			t.Error("it does not begin anew")
		}
		key := raft.ReplicaKey{Group: rigGroup, Replica: 1}
		b.server.RemoveGroup(key)
		w.expect("NOT_LEADER 0")
	})
}

// A leader that sleeps does not notice that it is cut off from the others.
func TestAWatchEndsWhereTheQuorumIsLost(t *testing.T) {
	serve(t, func(t *testing.T, b *bench) {
		w := b.watch(from(flotillav1.WatchFrom_NOW, 0, 0))
		w.expect("0 BEGIN @0")
		b.lost.Store(true)
		began := time.Now()
		w.expect("NO_QUORUM 0")
		if waited := time.Since(began); waited > 2*watchLeaderCheck {
			t.Errorf("it took %v", waited)
		}
		b.watch(from(flotillav1.WatchFrom_NOW, 0, 0)).expect("NO_QUORUM 0")
		b.lost.Store(false)
		b.watch(from(flotillav1.WatchFrom_NOW, 0, 0)).expect("0 BEGIN @0")
	})
}

func TestClosingEndsWatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, rigGroup, nil)
		b.born(0, 1)
		quiet, stuck := b.watch(from(flotillav1.WatchFrom_NOW, 0, 0)), b.watch(from(flotillav1.WatchFrom_NOW, 0, 0))
		quiet.expect("0 BEGIN @0")
		synctest.Wait() // the other one's first response is not taken
		b.server.Close()
		for _, w := range []*watchStream{quiet, stuck} {
			if err := <-w.ended; err == nil || !strings.Contains(err.Error(), "stopping") {
				t.Errorf("a watch ended with %v", err)
			}
		}
		if got := b.watch(from(flotillav1.WatchFrom_NOW, 0, 0)).next()[0]; got != "UNAVAILABLE 0" {
			t.Errorf("a watch of a closed server: %s", got)
		}
	})
}

func TestWrongWatchesAreRefused(t *testing.T) {
	serve(t, func(t *testing.T, b *bench) {
		key := func(key, prefix string, shards ...shardmap.ShardID) *flotillav1.WatchRequest {
			q := from(flotillav1.WatchFrom_NOW, 0, shards...)
			q.Key, q.Prefix = []byte(key), []byte(prefix)
			return q
		}
		for name, q := range map[string]*flotillav1.WatchRequest{
			"no shard":            from(flotillav1.WatchFrom_NOW, 0),
			"no such shard":       from(flotillav1.WatchFrom_NOW, 0, 4),
			"too many":            from(flotillav1.WatchFrom_NOW, 0, 0, 1, 2, 3, 0),
			"twice":               from(flotillav1.WatchFrom_NOW, 0, 1, 1),
			"key elsewhere":       key("key3", "", 1-shardmap.Shard([]byte("key3"), 4)),
			"key in two shards":   key("key3", "", 0, 1),
			"key and prefix":      key("key3", "k", shardmap.Shard([]byte("key3"), 4)),
			"a prefix too long":   key("", strings.Repeat("x", KeyBytesMax+1), 0),
			"a key that is large": key(strings.Repeat("x", KeyBytesMax+1), "", 0),
		} {
			if got := b.watch(q).next()[0]; got != "INVALID 0" {
				t.Errorf("%s: %s", name, got)
			}
		}
		b.server.watches.all = make(map[*watch]struct{})
		for range watchesMax {
			b.server.watches.all[&watch{server: b.server, host: b.host, group: b.server.group(rigGroup)}] = struct{}{}
		}
		if got := b.watch(from(flotillav1.WatchFrom_NOW, 0, 0)).next()[0]; got != "BUSY 0" {
			t.Errorf("one watch more than there may be: %s", got)
		}
	})
}

// A watch ends where the shard leaves, when everything was told, and goes on
// where it arrives from there on, and from nowhere before.
func TestAWatchGoesOnWhereTheShardMoves(t *testing.T) {
	serveTwo(t, func(w *twoGroups, a, b *bench) {
		a.commit(plain(0, put("k", "a")), plain(0, put("k", "b")))
		at := a.watch(from(flotillav1.WatchFrom_AFTER, 0, 0, 1))
		at.expect("0 BEGIN @0", "1 BEGIN @0", "0 CHANGES @2 PUT k=a@1 PUT k=b@2")
		w.begin(b, rigGroup, 0, 1, 1)
		waiting := b.watch(from(flotillav1.WatchFrom_NOW, 0, 0)) // until the shard is there
		at.expect("0 MOVED @2 to 8")
		waiting.expect("0 BEGIN @2")
		a.commit(plain(1, put("k", "c")))
		at.expect("1 CHANGES @1 PUT k=c@1")
		w.until("the move is done", func() bool { return !b.importing(0) })
		b.commit(plain(0, put("k", "d")))
		waiting.expect("0 CHANGES @3 PUT k=d@3")
		b.watch(from(flotillav1.WatchFrom_AFTER, 2, 0)).expect("0 BEGIN @2", "0 CHANGES @3 PUT k=d@3")
		b.watch(from(flotillav1.WatchFrom_AFTER, 1, 0)).expect("0 COMPACTED @2")
		a.watch(from(flotillav1.WatchFrom_AFTER, 2, 0)).expect("0 MOVED @0 to 8")
		b.watch(from(flotillav1.WatchFrom_NOW, 0, 1)).expect("1 MOVED @0 to 0")

		// Back: what A has kept of its earlier ownership does not reach here.
		w.begin(a, otherGroup, 0, 2, 2)
		waiting.expect("0 MOVED @3 to 7")
		w.until("the move is done", func() bool { return !a.importing(0) })
		a.commit(plain(0, put("k", "e")))
		a.watch(from(flotillav1.WatchFrom_AFTER, 2, 0)).expect("0 COMPACTED @3")
		a.watch(from(flotillav1.WatchFrom_AFTER, 3, 0)).expect("0 BEGIN @3", "0 CHANGES @4 PUT k=e@4")
		at.stop()
	})
}

// A shard that does not arrive is not waited for without end, and one whose
// import is refused not at all.
func TestAWatchOfAShardThatDoesNotArriveEnds(t *testing.T) {
	serveTwo(t, func(w *twoGroups, a, b *bench) {
		w.spoils(func(*flotillav1.PullRequest, *flotillav1.PullResponse) bool { return true })
		w.begin(b, rigGroup, 0, 1, 1)
		w.begin(b, rigGroup, 1, 2, 1)
		began := time.Now()
		at := b.watch(from(flotillav1.WatchFrom_NOW, 0, 0, 1))
		time.Sleep(watchImportMax / 2)
		in := b.shard(1)
		b.commit(&move{kind: moveRefuse, shard: 1, id: in.move, generation: 1, attempt: 1, peer: rigGroup})
		at.expect("1 MOVED @0 to 7")
		if took := time.Since(began); took > watchImportMax*3/4 {
			t.Errorf("a refused import is waited for %v", took)
		}
		at.expect("0 MOVED @0 to 7")
		if took := time.Since(began); took < watchImportMax || took > watchImportMax+2*watchBeat {
			t.Errorf("it took %v", took)
		}
		if err := <-at.ended; err != nil {
			t.Errorf("the stream ended with %v", err)
		}
	})
}

// A watch that lags when its shard leaves is told everything before it ends.
func TestALateWatchIsToldAllOfAShardThatLeft(t *testing.T) {
	serveTwo(t, func(w *twoGroups, a, b *bench) {
		late := a.watch(from(flotillav1.WatchFrom_NOW, 0, 0))
		late.expect("0 BEGIN @0")
		synctest.Wait()
		large := strings.Repeat("x", watchPieceBytes/2)
		for range 10 {
			a.commit(plain(0, put("k", large)))
		}
		w.begin(b, rigGroup, 0, 1, 1)
		w.until("the move is done", func() bool { return !b.importing(0) })
		last := ""
		for last != "0 MOVED @10 to 8" {
			said := late.next()
			if last = said[len(said)-1]; !strings.HasPrefix(last, "0 CHANGES") && last != "0 MOVED @10 to 8" {
				t.Fatalf("the watch says %q", said)
			}
		}
	})
}
