package routing

import (
	"encoding/binary"
	"fmt"
	"math"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// dice draws what happens from a fuzzer's bytes.
type dice struct{ rest []byte }

func (d *dice) byte() byte {
	if len(d.rest) == 0 {
		return 0
	}
	b := d.rest[0]
	d.rest = d.rest[1:]
	return b
}

// number is mostly small, and sometimes anything.
func (d *dice) number() uint64 {
	if b := d.byte(); b < 250 {
		return uint64(b % 6)
	}
	var raw [8]byte
	d.rest = d.rest[copy(raw[:], d.rest):]
	return binary.BigEndian.Uint64(raw[:])
}

// shardMap is one that came over the wire: as many shards as before or not,
// groups without members, members without nodes.
func (d *dice) shardMap() *shardmap.Map {
	m := &shardmap.Map{ClusterID: "c", Revision: d.number()}
	for range []int{4, 4, 4, 8, 1}[d.byte()%5] {
		m.Shards = append(m.Shards, shardmap.Assignment{Group: raft.GroupID(d.number()), Generation: shardmap.Generation(d.number())})
	}
	for range d.byte() % 4 {
		g := shardmap.Group{ID: raft.GroupID(d.number()), Preferred: raft.NodeID(d.number())}
		for range d.byte() % 4 {
			g.Members = append(g.Members, shardmap.Member{Replica: raft.ReplicaID(d.number()), Node: raft.NodeID(d.number()), Learner: d.byte()%4 == 0})
		}
		m.Groups = append(m.Groups, g)
	}
	for range d.byte() % 5 {
		m.Nodes = append(m.Nodes, shardmap.Node{ID: raft.NodeID(d.number()), Addr: fmt.Sprint("node", d.byte()%5), State: shardmap.NodeState(d.byte() % 5)})
	}
	return m
}

func (d *dice) request() *flotillav1.Request {
	q := new(flotillav1.Request)
	for range d.byte() % 4 {
		key := keyIn(shardmap.ShardID(d.byte() % 4))
		switch d.byte() % 5 {
		case 0:
			q.Ops = append(q.Ops, &flotillav1.Op{Op: &flotillav1.Op_Get{Get: &flotillav1.Get{Key: key}}})
		case 1:
			q.Ops = append(q.Ops, &flotillav1.Op{Op: &flotillav1.Op_Scan{Scan: &flotillav1.Scan{}}})
		case 2:
			q.Outcome = &flotillav1.Outcome{ClientId: d.number(), Seq: d.number()}
		default:
			q.Ops = append(q.Ops, &flotillav1.Op{Op: &flotillav1.Op_Put{Put: &flotillav1.Put{Key: key}}})
		}
	}
	q.Shard = d.number()
	q.Follower = d.byte()%8 == 0
	return q
}

// response is what a node may answer: to whom, with what code, naming whomever,
// with any number of results.
func (d *dice) response(sent []uint64) *flotillav1.Response {
	p := &flotillav1.Response{Code: flotillav1.Code(int32(d.byte()%12) - 1), Message: "m", Group: d.number(), LeaderNode: d.number()}
	if d.byte()%3 == 0 {
		p.Code = flotillav1.Code_OK
	}
	if p.Id = d.number(); len(sent) > 0 && d.byte()%8 != 0 {
		p.Id = sent[int(d.byte())%len(sent)]
	}
	if d.byte()%4 == 0 {
		p.LeaderAddr = fmt.Sprint("node", d.byte()%5)
	}
	for range d.byte() % 6 {
		p.Results = append(p.Results, &flotillav1.Result{})
	}
	return p
}

// FuzzRouter gives the router whatever nodes, networks and clocks may come up
// with. Every call ends once; an answer comes only from an answer; a write that
// may have happened is not called a failure; and nothing is left when all are
// cancelled.
func FuzzRouter(f *testing.F) {
	f.Add([]byte{})
	for seed := range byte(8) {
		b := make([]byte, 600)
		for i := range b {
			b[i] = byte((i*i*7 + i*int(seed+3)*31) >> 2)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		d := &dice{rest: data}
		x := &routed{t: t, now: time.UnixMilli(1_700_000_000_000), open: map[*Call]bool{}, out: map[uint64]*flotillav1.Request{}}
		x.r = New(Options{Rand: d.number, PreferNode: raft.NodeID(d.byte() % 4)})
		lanes := []*Lane{nil, new(Lane), new(Lane)}
		for len(d.rest) > 0 {
			switch d.byte() % 12 {
			case 0:
				x.r.MapChanged(x.now, d.shardMap())
			case 1, 2, 3:
				c := &Call{Request: d.request(), Deadline: x.now.Add(time.Duration(d.byte()) * 20 * time.Millisecond), Lane: lanes[d.byte()%3]}
				x.open[c] = true
				x.r.Submit(x.now, c)
			case 4, 5, 6, 7:
				x.answer(d.response(x.sent()))
			case 8:
				x.now = x.now.Add(time.Duration(d.number()%uint64(time.Hour)) + time.Duration(d.byte())*time.Millisecond)
				x.r.Tick(x.now)
			case 9:
				x.r.LinkDown(x.now, fmt.Sprint("node", d.byte()%5), nil, x.sent()[:min(len(x.sent()), int(d.byte()%3))])
			case 10:
				x.r.LinkUp(x.now, fmt.Sprint("node", d.byte()%5))
			case 11:
				for c := range x.open {
					x.r.Cancel(x.now, c, ReasonCancelled)
					break
				}
			}
			x.take()
		}
		x.r.CancelAll(x.now, ReasonClosed)
		x.take()
		if len(x.open) > 0 || x.r.Calls() > 0 {
			t.Fatalf("%d calls never ended, %d are still counted", len(x.open), x.r.Calls())
		}
	})
}

// routed is a router and what is known of its calls.
type routed struct {
	t    *testing.T
	r    *Router
	now  time.Time
	open map[*Call]bool
	out  map[uint64]*flotillav1.Request // sent, by id
	ids  []uint64
	ok   bool // a node has just answered OK
}

// sent are the ids of the last requests sent, answered or not.
func (x *routed) sent() []uint64 { return x.ids[max(0, len(x.ids)-8):] }

func (x *routed) answer(p *flotillav1.Response) {
	x.ok = ruleFor(Cause(p.GetCode())).next == stepDeliver
	x.r.Response(x.now, p)
	x.take()
	x.ok = false
}

// take carries out what the router wants done, connections aside.
func (x *routed) take() {
	var out Output
	x.r.Take(&out)
	for _, s := range out.Sends {
		id := s.Request.GetId()
		if x.out[id] != nil {
			x.t.Fatalf("the id %d is used twice", id)
		}
		if _, err := proto.Marshal(s.Request); err != nil {
			x.t.Fatal(err)
		}
		x.out[id] = s.Request
		x.ids = append(x.ids, id)
	}
	for _, e := range out.Deliveries {
		if !x.open[e.Call] {
			x.t.Fatalf("a call ended twice: %+v", e)
		}
		delete(x.open, e.Call)
		switch {
		case (e.Response == nil) == (e.Failure == nil):
			x.t.Fatalf("ended with %v and %v", e.Response, e.Failure)
		case e.Response != nil && !x.ok:
			x.t.Fatalf("an answer came from nowhere: %v", e.Response)
		case e.Failure != nil && e.Failure.Possible && kindOf(e.Call.Request) != kindWrite:
			x.t.Fatalf("what only reads may have happened: %+v", e.Failure)
		}
	}
	if !out.Wake.IsZero() && out.Wake.Sub(x.now) > math.MaxInt64/2 {
		x.t.Fatalf("wakes at %v", out.Wake)
	}
}
