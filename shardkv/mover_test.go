package shardkv

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/raft/multiraft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

const otherGroup = rigGroup + 1

// twoGroups are the servers of two groups that reach each other.
type twoGroups struct {
	*testing.T
	byID  map[raft.GroupID]*bench
	pulls sync.WaitGroup

	mu    sync.Mutex                                                          // guards what follows
	spoil func(*flotillav1.PullRequest, *flotillav1.PullResponse) (lost bool) // what befalls an answer
}

func serveTwo(t *testing.T, test func(w *twoGroups, a, b *bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &twoGroups{T: t}
		a, b := newBench(t, rigGroup, w.pull), newBench(t, otherGroup, w.pull)
		w.byID = map[raft.GroupID]*bench{rigGroup: a, otherGroup: b}
		defer w.pulls.Wait()
		defer a.server.Close()
		defer b.server.Close()
		a.born(0, 1)
		b.born()
		test(w, a, b)
	})
}

// pull asks the other group, some milliseconds away.
func (w *twoGroups) pull(q *flotillav1.PullRequest, done func(*flotillav1.PullResponse)) {
	w.pulls.Go(func() {
		time.Sleep(time.Millisecond)
		r, err := w.byID[raft.GroupID(q.GetGroup())].server.Pull(context.Background(), q)
		w.mu.Lock()
		spoil := w.spoil
		w.mu.Unlock()
		if err != nil || spoil != nil && spoil(q, r) {
			r = nil
		}
		time.Sleep(time.Millisecond)
		done(r)
	})
}

func (w *twoGroups) spoils(how func(*flotillav1.PullRequest, *flotillav1.PullResponse) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.spoil = how
}

// begin has a shard move to a group.
func (w *twoGroups) begin(to *bench, from raft.GroupID, shard shardmap.ShardID, id migrationID, generation uint64) {
	w.Helper()
	c := &move{kind: moveBeginImport, shard: shard, id: id, generation: generation, attempt: 1, peer: from}
	if res, _ := to.host.commit(encodeCommand(c)); res.Err != nil || res.Value.(*answer).refused != flotillav1.Code_OK {
		w.Fatalf("the import was refused: %+v", res)
	}
}

func (b *bench) shard(id shardmap.ShardID) shardRecord {
	b.host.mu.Lock()
	defer b.host.mu.Unlock()
	if sh := b.host.rig.machine.shards[id]; sh != nil {
		return sh.shardRecord
	}
	return shardRecord{}
}

// importing tells whether something is left of an import.
func (b *bench) importing(id shardmap.ShardID) bool {
	_, is := b.host.rig.machine.movesNow().importing(id)
	return is
}

func (w *twoGroups) until(what string, done func() bool) {
	w.Helper()
	for range 3000 {
		if done() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	w.Fatalf("never: %s", what)
}

// caller increments a key wherever its shard is, retrying under the same number.
func (w *twoGroups) caller(client uint64, key string, stop <-chan struct{}) (acked int) {
	at := rigGroup
	for seq := uint64(1); ; seq++ {
		for {
			select {
			case <-stop:
				return acked
			default:
			}
			q := &flotillav1.Request{Id: seq, Group: uint64(at), TimeoutMs: 1000, Session: &flotillav1.Session{ClientId: client, BirthMs: epochNow, Seq: seq, Lowest: seq}, Ops: []*flotillav1.Op{wireIncr(key)}}
			r, err := w.byID[at].server.Do(context.Background(), q)
			time.Sleep(time.Duration(rand.IntN(3)) * time.Millisecond)
			switch {
			case err == nil && r.GetCode() == flotillav1.Code_MOVED && r.GetGroup() != uint64(rigGroup+otherGroup-at):
				w.Errorf("group %d says that the shard is at group %d", at, r.GetGroup())
				return acked
			case err != nil || r.GetCode() == flotillav1.Code_MOVED:
				at = rigGroup + otherGroup - at
				continue
			case r.GetCode() == flotillav1.Code_BUSY:
				continue
			}
			if r.GetCode() != flotillav1.Code_OK {
				w.Errorf("an increment was answered %v %s", r.GetCode(), r.GetMessage())
				return acked
			}
			acked++
			break
		}
	}
}

func wireIncr(key string) *flotillav1.Op {
	return &flotillav1.Op{Op: &flotillav1.Op_Incr{Incr: &flotillav1.Incr{Key: []byte(key), By: 1}}}
}

// epochNow is when a bubble begins.
var epochNow = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).UnixMilli()

// TestAShardMovesUnderItsWriters: back and forth while clients count; no
// increment is lost, none counts twice.
func TestAShardMovesUnderItsWriters(t *testing.T) {
	for _, x := range []struct {
		name  string
		spoil func(*flotillav1.PullRequest, *flotillav1.PullResponse) bool
	}{
		{"quiet", nil},
		{"answers are lost", func(*flotillav1.PullRequest, *flotillav1.PullResponse) bool { return rand.IntN(3) == 0 }},
		{"a byte is flipped", func(_ *flotillav1.PullRequest, r *flotillav1.PullResponse) bool {
			if len(r.GetItems()) > 0 && len(r.Items[0].Stored) > 0 && rand.IntN(2) == 0 {
				r.Items[0].Stored[0] ^= 1
			}
			return false
		}},
	} {
		t.Run(x.name, func(t *testing.T) {
			serveTwo(t, func(w *twoGroups, a, b *bench) {
				key := keyIn(0)
				for i := range 300 {
					if k := fmt.Sprint("fill", i); shardmap.Shard([]byte(k), 4) == 0 {
						a.want(a.do(ask(wirePut(k, "v"))), flotillav1.Code_OK)
					}
				}
				w.spoils(x.spoil)
				stop := make(chan struct{})
				acked := make(chan int)
				const callers = 5
				for i := range callers {
					go func() { acked <- w.caller(uint64(i+1), key, stop) }()
				}
				for id := migrationID(1); id <= 4; id++ {
					from, to := a, b
					if id%2 == 0 {
						from, to = b, a
					}
					w.begin(to, from.id, 0, id, uint64(id))
					w.until("it is served at the target, and gone at the source", func() bool {
						return to.shard(0).state == shardOwned && !to.importing(0) && from.shard(0).state == shardAbsent
					})
				}
				close(stop)
				sum := 0
				for range callers {
					sum += <-acked
				}
				n := a.want(a.do(ask(wireIncr(key))), flotillav1.Code_OK).Results[0].Number
				if int(n) != sum+1 || sum == 0 {
					t.Fatalf("%d increments were acknowledged, the key counts %d before the last", sum, n-1)
				}
			})
		})
	}
}

// TestADamageThatPassesTheChecksumIsNotServed: the copy is made anew, and after
// the third time the source serves again.
func TestADamageThatPassesTheChecksumIsNotServed(t *testing.T) {
	for _, x := range []struct {
		name    string
		damaged int // attempts
		serves  raft.GroupID
	}{{"once", 1, otherGroup}, {"always", attemptsMax, rigGroup}} {
		t.Run(x.name, func(t *testing.T) {
			serveTwo(t, func(w *twoGroups, a, b *bench) {
				a.want(a.do(ask(wirePut(keyIn(0), "v"))), flotillav1.Code_OK)
				left := x.damaged
				w.spoils(func(q *flotillav1.PullRequest, r *flotillav1.PullResponse) bool {
					if q.Want == flotillav1.PullRequest_WANT_SCAN && len(r.GetItems()) > 0 && left > 0 {
						left--
						r.Items[0].Stored[recordHead] ^= 1
						r.Checksum = itemsChecksum(r.Items)
					}
					return false
				})
				w.begin(b, rigGroup, 0, 1, 1)
				w.until("one of them serves", func() bool {
					return w.byID[x.serves].shard(0).state == shardOwned && w.byID[rigGroup+otherGroup-x.serves].shard(0).state != shardImporting
				})
				q := ask(wireGet(keyIn(0)))
				q.Group = uint64(x.serves)
				bench := w.byID[x.serves]
				if r := bench.want(bench.do(q), flotillav1.Code_OK); string(r.Results[0].Value) != "v" {
					t.Fatalf("served %q", r.Results[0].Value)
				}
				if g := bench.shard(0).generation; g != uint64(map[raft.GroupID]int{otherGroup: 2, rigGroup: 3}[x.serves]) {
					t.Fatalf("served at generation %d", g)
				}
			})
		})
	}
}

// TestACancelledMoveStays: the wish wins if it comes before the hand-off.
func TestACancelledMoveStays(t *testing.T) {
	serveTwo(t, func(w *twoGroups, a, b *bench) {
		a.want(a.do(ask(wirePut(keyIn(0), "v"))), flotillav1.Code_OK)
		w.spoils(func(q *flotillav1.PullRequest, _ *flotillav1.PullResponse) bool {
			return q.Want == flotillav1.PullRequest_WANT_HAND_OFF || q.Want == flotillav1.PullRequest_WANT_TOUCHED
		})
		w.begin(b, rigGroup, 0, 1, 1)
		time.Sleep(100 * time.Millisecond)
		cancel := &move{kind: moveCancelImport, shard: 0, id: 1, generation: 1, attempt: 1}
		b.host.commit(encodeCommand(cancel))
		w.until("the import is gone", func() bool { return b.shard(0).state == shardAbsent })
		if r := a.shard(0); r.state != shardOwned || r.generation != 1 {
			t.Fatalf("the source is %+v", r)
		}
		a.want(a.do(ask(wirePut(keyIn(0), "w"))), flotillav1.Code_OK)
	})
}

// TestWhoComesEarlyWaits: a request that comes to the target before it serves is
// answered when it does, and told to come again if that takes too long.
func TestWhoComesEarlyWaits(t *testing.T) {
	for _, x := range []struct {
		name   string
		closed time.Duration // for how long the source hands nothing off
		code   flotillav1.Code
	}{{"soon", parkFor / 2, flotillav1.Code_OK}, {"late", 3 * parkFor, flotillav1.Code_BUSY}} {
		t.Run(x.name, func(t *testing.T) {
			serveTwo(t, func(w *twoGroups, a, b *bench) {
				a.want(a.do(ask(wirePut(keyIn(0), "v"))), flotillav1.Code_OK)
				open := time.Now().Add(x.closed)
				w.spoils(func(q *flotillav1.PullRequest, _ *flotillav1.PullResponse) bool {
					return q.Want == flotillav1.PullRequest_WANT_TOUCHED && time.Now().Before(open)
				})
				w.begin(b, rigGroup, 0, 1, 1)
				for _, op := range []*flotillav1.Op{wireGet(keyIn(0)), wirePut(keyIn(0), "w")} {
					q := ask(op)
					q.Group, q.TimeoutMs = uint64(otherGroup), 5000
					b.want(b.do(q), x.code)
				}
			})
		})
	}
}

// gateHost keeps Activate, and all that is proposed behind it.
type gateHost struct {
	Host
	early func()
	mu    sync.Mutex // guards what follows
	kept  []func(lost error)
}

func (h *gateHost) Propose(g raft.GroupID, command []byte, done func(multiraft.Result)) {
	h.propose(command, done, func() { h.Host.Propose(g, command, done) })
}

func (h *gateHost) ProposeUrgent(g raft.GroupID, command []byte, done func(multiraft.Result)) {
	h.propose(command, done, func() { h.Host.ProposeUrgent(g, command, done) })
}

func (h *gateHost) propose(command []byte, done func(multiraft.Result), pass func()) {
	c, err := decodeCommand(command, nil)
	if err != nil {
		panic(err)
	}
	h.mu.Lock()
	m, is := c.(*move)
	keep := is && m.kind == moveActivate || len(h.kept) > 0
	if is && m.kind == moveActivate && h.early != nil {
		h.mu.Unlock()
		h.early() // a request that comes while Activate is on its way into the log
		h.mu.Lock()
	}
	if keep {
		h.kept = append(h.kept, func(lost error) {
			if lost != nil {
				done(multiraft.Result{Err: lost})
				return
			}
			pass()
		})
	}
	h.mu.Unlock()
	if !keep {
		pass()
	}
}

func (h *gateHost) waiting() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.kept)
}

// open lets pass what was kept, but for the first if that is lost.
func (h *gateHost) open(lost error) {
	h.mu.Lock()
	kept := h.kept
	h.kept = nil
	h.mu.Unlock()
	for i, f := range kept {
		if i > 0 {
			lost = nil
		}
		f(lost)
	}
}

// TestWritesFollowActivate: who waits to write is in the log right behind it, and
// so is who comes then; who waits to read is answered when it is applied. Where it
// is lost they change nothing.
func TestWritesFollowActivate(t *testing.T) {
	serveTwo(t, func(w *twoGroups, a, b *bench) {
		gate := &gateHost{Host: b.host}
		b.server.Attach(gate)
		var hold atomic.Bool
		w.spoils(func(q *flotillav1.PullRequest, _ *flotillav1.PullResponse) bool {
			return q.Want == flotillav1.PullRequest_WANT_TOUCHED && hold.Load()
		})
		hold.Store(true)
		w.begin(b, rigGroup, 0, 1, 1)
		answers := make(map[string]*flotillav1.Response)
		var mu sync.Mutex
		var calls sync.WaitGroup
		call := func(name string, seq uint64, op *flotillav1.Op) {
			q := ask(op)
			q.Group, q.TimeoutMs = uint64(otherGroup), 5000
			if seq != 0 {
				q.Session = &flotillav1.Session{ClientId: 7, BirthMs: epochNow, Seq: seq, Lowest: 1}
			}
			calls.Go(func() {
				r := b.do(q)
				mu.Lock()
				defer mu.Unlock()
				answers[name] = r
			})
			synctest.Wait()
		}
		want := func(when string, all map[string]flotillav1.Code) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			for name, r := range answers {
				if code, is := all[name]; !is || r.GetCode() != code {
					t.Fatalf("%s, %s was answered %v %s", when, name, r.GetCode(), r.GetMessage())
				}
			}
			if len(answers) != len(all) {
				t.Fatalf("%s, %d are answered", when, len(answers))
			}
			clear(answers)
		}
		call("early", 1, wireIncr(keyIn(0)))
		call("read", 0, wireGet(keyIn(0)))
		want("before", nil)
		gate.early = func() {
			gate.early = nil
			q := ask(wireIncr(keyIn(0)))
			q.Group, q.TimeoutMs, q.Session = uint64(otherGroup), 5000, &flotillav1.Session{ClientId: 7, BirthMs: epochNow, Seq: 3, Lowest: 1}
			b.server.Submit(t.Context(), []*flotillav1.Request{q}, func(*flotillav1.Response) {})
			if n := gate.waiting(); n != 0 {
				t.Errorf("%d entries are proposed before Activate", n)
			}
		}
		hold.Store(false)
		w.until("Activate is proposed", func() bool { return gate.waiting() > 0 })
		synctest.Wait()
		if n := gate.waiting(); n != 3 {
			t.Fatalf("%d entries wait, not Activate and two writes", n)
		}
		call("behind", 2, wireIncr(keyIn(0)))
		if n := gate.waiting(); n != 4 {
			t.Fatalf("%d entries wait, not Activate and three writes", n)
		}
		want("while it is not decided", nil)
		gate.open(multiraft.ErrNotLeader)
		want("when it is lost", map[string]flotillav1.Code{"early": flotillav1.Code_MOVED, "behind": flotillav1.Code_MOVED})

		call("again", 1, wireIncr(keyIn(0)))
		call("again too", 2, wireIncr(keyIn(0)))
		w.until("Activate is proposed again", func() bool { return gate.waiting() > 0 })
		want("while it is not decided again", nil)
		gate.open(nil)
		want("then", map[string]flotillav1.Code{"read": flotillav1.Code_OK, "again": flotillav1.Code_OK, "again too": flotillav1.Code_OK})
		q := ask(wireGet(keyIn(0)))
		q.Group = uint64(otherGroup)
		if r := b.want(b.do(q), flotillav1.Code_OK); string(r.Results[0].Value) != "2" {
			t.Errorf("two increments make %q", r.Results[0].Value)
		}
		calls.Wait()
	})
}

// TestTheSourceRestsToo: a group that has just moved a shard under load does not
// begin to give another away.
func TestTheSourceRestsToo(t *testing.T) {
	serveTwo(t, func(w *twoGroups, a, b *bench) {
		a.server.movers.gaveAway(rigGroup, time.Now().Add(-restAfter-30*time.Millisecond), time.Now())
		began := time.Now()
		w.begin(b, rigGroup, 0, 1, 1)
		w.until("it is served", func() bool { return b.shard(0).state == shardOwned })
		if took := time.Since(began); took < restTimes*30*time.Millisecond {
			t.Errorf("it was moved after %v", took)
		}
		if m := b.server.movers; m.resting(otherGroup, time.Now()) > restMax/2 {
			t.Errorf("the target rests for %v: the rest of the source counts as a move", m.resting(otherGroup, time.Now()))
		}
	})
}

// TestWhatIsStoredIsReadBack: a value that was replaced behind the store's back,
// or one that nobody wrote, is found before the source's copy is deleted.
func TestWhatIsStoredIsReadBack(t *testing.T) {
	for _, x := range []struct {
		name   string
		damage func(sh *heldShard) (key, value []byte)
		alarm  bool
	}{
		{"as it was", nil, false},
		{"a value is replaced", func(sh *heldShard) (key, value []byte) {
			return valueKey(0, sh.incarnation, []byte(keyIn(0))), record{version: 1, value: []byte("x")}.appendHead(nil)
		}, true},
		{"a key is there that nobody wrote", func(sh *heldShard) (key, value []byte) {
			return valueKey(0, sh.incarnation, []byte("nobody's")), record{version: 1}.appendHead(nil)
		}, true},
	} {
		t.Run(x.name, func(t *testing.T) {
			serveTwo(t, func(w *twoGroups, a, b *bench) {
				a.want(a.do(ask(wirePut(keyIn(0), "v"), wirePut(keyIn(0)+"{"+keyIn(0)+"}", "w"))), flotillav1.Code_OK)
				w.spoils(func(*flotillav1.PullRequest, *flotillav1.PullResponse) bool { return b.shard(0).state == shardOwned })
				w.begin(b, rigGroup, 0, 1, 1)
				w.until("it is served", func() bool { return b.shard(0).state == shardOwned })
				q := ask(wirePut(keyIn(0)+"{"+keyIn(0)+"}", "written since"))
				q.Group = uint64(otherGroup)
				b.want(b.do(q), flotillav1.Code_OK)
				if x.damage != nil {
					b.host.set(func() {
						batch := b.host.rig.replica.NewBatch()
						batch.Set(x.damage(b.host.rig.machine.shards[0]))
						batch.SetApplied(b.host.rig.index, 1, raft.Membership{})
						if err := batch.Commit(); err != nil {
							t.Error(err)
						}
					})
				}
				w.spoils(nil)
				time.Sleep(10 * time.Second)
				if gone := a.shard(0).state == shardAbsent; gone == x.alarm {
					t.Fatalf("the source's copy is deleted: %v", gone)
				}
				if m, importing := b.host.rig.machine.movesNow().importing(0); importing != x.alarm || m.in.unequal != x.alarm {
					t.Fatalf("the move goes on: %v, %+v", importing, m.in)
				}
			})
		})
	}
}

// TestOnlyAFrozenCopyIsComparedWith: a new leader of the source may not have
// applied HandOff yet, and shows what was changed before it.
func TestOnlyAFrozenCopyIsComparedWith(t *testing.T) {
	x := &importStatus{record: shardRecord{state: shardOwned, unverified: true}}
	for _, frozen := range []bool{true, false} {
		var v mover
		now := time.Now()
		act := v.turn(now, x)
		if act.ask.GetWant() != flotillav1.PullRequest_WANT_SCAN {
			t.Fatalf("turned to %+v", act)
		}
		v.answered(now, act.ask, &flotillav1.PullResponse{Frozen: frozen, Checksum: itemsChecksum(nil)})
		if act = v.turn(now.Add(time.Minute), x); (act.compare != nil) != frozen || (act.ask != nil) == frozen {
			t.Fatalf("frozen %v: turned to %+v", frozen, act)
		}
	}
}

// TestOnlyTheSourcesLogEndsAMove: a refusal by somebody else, or of another kind,
// must not make the target drop a shard that may be handed off already.
func TestOnlyTheSourcesLogEndsAMove(t *testing.T) {
	x := &importStatus{record: shardRecord{state: shardImporting}}
	for _, ended := range []bool{true, false} {
		var v mover
		now := time.Now()
		act := v.turn(now, x)
		v.answered(now, act.ask, &flotillav1.PullResponse{Code: flotillav1.Code_INVALID, Ended: ended})
		act = v.turn(now.Add(time.Minute), x)
		if drops := len(act.entries) == 1 && act.entries[0].kind == moveDropImport; drops != ended {
			t.Fatalf("ended %v: turned to %+v", ended, act)
		}
	}
}

// TestAPageThatNobodyUnderstandsIsNotCommitted: applied, it would stop every
// replica of the target.
func TestAPageThatNobodyUnderstandsIsNotCommitted(t *testing.T) {
	good := record{version: 1}.appendHead(nil)
	for name, item := range map[string]*flotillav1.MoveItem{
		"no such kind":     {Kind: 'Z', Name: []byte("k")},
		"key":              {Kind: kindValue, There: true, Stored: good},
		"record":           {Kind: kindValue, Name: []byte("k"), There: true, Stored: good[:3]},
		"name of answer":   {Kind: kindAnswer, Name: []byte("k"), There: true, Stored: []byte{0, 0, 0}},
		"answer":           {Kind: kindAnswer, Name: answerName(alice, 1), There: true, Stored: []byte{1, 0, 9}},
		"answer not there": {Kind: kindAnswer, Name: answerName(alice, 1)},
		"lowest":           {Kind: kindAnswer, Name: answerName(alice, 1), There: true, Stored: []byte{2, 0, 0}},
		"session":          {Kind: itemSession, Name: []byte("k")},
		"span":             {Kind: itemSpan, There: true, Stored: []byte{9}},
	} {
		page := &flotillav1.PullResponse{Items: []*flotillav1.MoveItem{item}, To: []byte{kindValue}, Done: true}
		page.Checksum = itemsChecksum(page.Items)
		var v mover
		x := &importStatus{record: shardRecord{state: shardImporting}}
		now := time.Now()
		act := v.turn(now, x)
		v.answered(now, act.ask, page)
		if act = v.turn(now.Add(time.Minute), x); act.entries != nil {
			t.Errorf("%s: a page with it was proposed", name)
		}
	}
}

// TestWhoWaitsForAShardIsAnsweredAtTheEnd of the server.
func TestWhoWaitsForAShardIsAnsweredAtTheEnd(t *testing.T) {
	serveTwo(t, func(w *twoGroups, a, b *bench) {
		w.spoils(func(*flotillav1.PullRequest, *flotillav1.PullResponse) bool { return true })
		w.begin(b, rigGroup, 0, 1, 1)
		answered := make(chan *flotillav1.Response, 1)
		q := ask(wireGet(keyIn(0)))
		q.Group = uint64(otherGroup)
		b.server.Submit(w.Context(), []*flotillav1.Request{q}, func(r *flotillav1.Response) { answered <- r })
		b.server.Close()
		b.want(<-answered, flotillav1.Code_UNAVAILABLE)
	})
}
