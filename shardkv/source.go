package shardkv

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cespare/xxhash/v2"
	grpcstatus "google.golang.org/grpc/status"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/raft/multiraft"
	"github.com/flotilla-kv/flotilla/raft/statestore"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// Bounds of a page that the target of a move asks for.
const (
	pullBytesDefault = 256 << 10
	pullBytesMax     = 4 << 20 // besides the last item
)

// Pull is the Migration service's.
func (s *Server) Pull(ctx context.Context, q *flotillav1.PullRequest) (*flotillav1.PullResponse, error) {
	next := make(chan func(), 1) // at most one thing is to be done at a time
	var answer *flotillav1.PullResponse
	s.pull(q, func(f func()) { next <- f }, func(r *flotillav1.PullResponse) { next <- func() { answer = r } })
	for answer == nil {
		select {
		case f := <-next:
			f()
		case <-ctx.Done():
			return nil, grpcstatus.FromContextError(ctx.Err()).Err()
		case <-s.ctx.Done():
			return &flotillav1.PullResponse{Code: flotillav1.Code_UNAVAILABLE, Message: "the node is stopping"}, nil
		}
	}
	return answer, nil
}

// PullDirectly is Pull for a server without goroutines: what is to be done is
// done where it comes up. done is called once, or never if the host ends.
func (s *Server) PullDirectly(q *flotillav1.PullRequest, done func(*flotillav1.PullResponse)) {
	s.pull(q, func(f func()) { f() }, done)
}

// pulled is a question of the target of a move.
type pulled struct {
	*flotillav1.PullRequest
	server *Server
	host   Host
	group  *group
	later  func(func()) // has something done that may take long
	done   func(*flotillav1.PullResponse)
}

func (s *Server) pull(q *flotillav1.PullRequest, later func(func()), done func(*flotillav1.PullResponse)) {
	refuse := func(code flotillav1.Code, format string, args ...any) {
		done(&flotillav1.PullResponse{Code: code, Message: fmt.Sprintf(format, args...)})
	}
	host, g := s.host.Load(), s.group(groupID(q.GetGroup()))
	switch {
	case q.GetClusterId() != s.options.ClusterID():
		refuse(flotillav1.Code_INVALID, "this is cluster %q, not %q", s.options.ClusterID(), q.GetClusterId())
		return
	case host == nil || g == nil:
		refuse(flotillav1.Code_UNAVAILABLE, "group %d is not on this node", q.GetGroup())
		return
	case !s.leads(*host, g.id):
		leader, _, _ := (*host).Leader(g.id)
		done(&flotillav1.PullResponse{Code: flotillav1.Code_NOT_LEADER, LeaderNode: uint64(leader.Node)})
		return
	}
	p := &pulled{PullRequest: q, server: s, host: *host, group: g, later: later, done: done}
	ok := func() { done(&flotillav1.PullResponse{}) }
	switch q.GetWant() {
	case flotillav1.PullRequest_WANT_CANCEL:
		p.decide(moveCancelExport, ok)
	case flotillav1.PullRequest_WANT_TAKE_BACK:
		p.decide(moveTakeBack, ok)
	case flotillav1.PullRequest_WANT_DELETE:
		x, _ := g.machine.movesNow().exporting(shardmap.ShardID(q.GetShard()))
		p.decide(moveDeleteCopy, func() {
			s.movers.gaveAway(g.id, x.export.begunAt, s.now())
			ok()
		})
	case flotillav1.PullRequest_WANT_SCAN, flotillav1.PullRequest_WANT_TOUCHED, flotillav1.PullRequest_WANT_HAND_OFF:
		p.page()
	default:
		refuse(flotillav1.Code_INVALID, "nothing that this version knows is asked for")
	}
}

// page answers with a page, after what has to be decided first.
func (p *pulled) page() {
	x, exporting := p.group.machine.movesNow().exporting(shardmap.ShardID(p.GetShard()))
	known := exporting && x.record.move == migrationID(p.GetMigration())
	_, summed := x.export.digest()
	read := func() { p.later(p.read) }
	switch {
	case !known && p.GetWant() != flotillav1.PullRequest_WANT_SCAN:
		// What a new leader has not applied yet is not what never was.
		p.host.ReadIndex(p.group.id, multiraft.ReadOptions{}, func(_ raft.Index, err error) {
			if err != nil {
				p.failed(err)
				return
			}
			read()
		})
	case !known && p.GetWant() == flotillav1.PullRequest_WANT_SCAN:
		if rest := p.server.movers.resting(p.group.id, p.server.now()); rest > 0 {
			p.done(&flotillav1.PullResponse{Code: flotillav1.Code_BUSY, Message: fmt.Sprintf("the group rests for %v since it last moved a shard", rest.Round(time.Millisecond))})
			return
		}
		p.decide(moveBeginExport, read)
	case known && x.export.base != nil && x.export.base.failed.Load():
		p.decide(moveBeginExport, read) // it changes nothing, but as an entry it has the copy added up again
	case known && summed && p.GetWant() == flotillav1.PullRequest_WANT_HAND_OFF && x.record.state == shardExporting:
		p.later(p.handOff)
	default:
		read()
	}
}

// handOff hands the shard over if little is left to be taken in, as of now: a page
// holds it. Otherwise it answers with the page.
func (p *pulled) handOff() {
	r, err := p.readPage()
	if err == nil && r.GetDone() {
		p.decide(moveHandOff, func() { p.later(p.read) })
		return
	}
	p.answer(r, err)
}

// decide has an entry of the move committed and applied.
func (p *pulled) decide(kind moveKind, then func()) {
	c := &move{kind: kind, shard: shardmap.ShardID(p.GetShard()), id: migrationID(p.GetMigration()), generation: p.GetGeneration(), peer: groupID(p.GetToGroup())}
	p.host.ProposeUrgent(p.group.id, encodeCommand(c), func(res multiraft.Result) {
		if res.Err != nil {
			p.failed(res.Err)
			return
		}
		if a := res.Value.(*answer); a.refused != flotillav1.Code_OK {
			p.done(&flotillav1.PullResponse{Code: a.refused, Message: a.message, Ended: a.refused == flotillav1.Code_INVALID})
			return
		}
		then()
	})
}

func (p *pulled) failed(err error) {
	f := p.server.failure(p.host, p.group.id, err)
	p.done(&flotillav1.PullResponse{Code: f.GetCode(), Message: f.GetMessage(), LeaderNode: f.GetLeaderNode()})
}

// read answers with a page of the copy as it is now.
func (p *pulled) read() {
	r, err := p.readPage()
	p.answer(r, err)
}

func (p *pulled) answer(r *flotillav1.PullResponse, err error) {
	switch {
	case errors.Is(err, errNotExporting):
		r = &flotillav1.PullResponse{Code: flotillav1.Code_INVALID, Ended: true, Message: fmt.Sprintf("shard %d is not in migration %d at group %d", p.GetShard(), p.GetMigration(), p.group.id)}
	case err != nil:
		p.server.logger.Error("a page of a moving shard cannot be read", "group", p.group.id, "shard", p.GetShard(), "error", err)
		r = &flotillav1.PullResponse{Code: flotillav1.Code_UNAVAILABLE, Message: err.Error()}
	}
	p.done(r)
}

var errNotExporting = errors.New("not exporting")

func (p *pulled) readPage() (*flotillav1.PullResponse, error) {
	shard := shardmap.ShardID(p.GetShard())
	x, exporting := p.group.machine.movesNow().exporting(shard) // before the view: what it shows is in it
	view, err := p.group.replica.View()
	if err != nil {
		return nil, err
	}
	defer view.Close()
	record, err := shardIn(view, shard)
	if err != nil {
		return nil, err
	}
	if record.move != migrationID(p.GetMigration()) || record.state != shardExporting && record.state != shardHandedOff {
		return nil, errNotExporting
	}
	most := pullBytesDefault
	if n := int(p.GetBytesMax()); n > 0 {
		most = min(n, pullBytesMax)
	}
	var page copyPage
	if p.GetWant() == flotillav1.PullRequest_WANT_SCAN {
		page, err = scanCopy(view, shard, record.incarnation, p.GetFrom(), most)
	} else {
		page, err = touchedSince(view, shard, record.incarnation, p.GetFrom(), most)
	}
	if err != nil {
		return nil, err
	}
	if p.GetWant() != flotillav1.PullRequest_WANT_SCAN && record.state == shardExporting {
		p.group.parking.rounds(p.server.now(), shard, record.move, page.looked, page.done)
	}
	r := &flotillav1.PullResponse{To: page.to, Done: page.done, Begun: position(record.begun, 0), Frozen: record.state == shardHandedOff, Items: itemsToWire(page.items)}
	r.Checksum = itemsChecksum(r.Items)
	if exporting {
		p.state(r, &x)
	}
	return r, nil
}

// shardIn is what a view holds of a shard.
func shardIn(view *statestore.View, shard shardmap.ShardID) (shardRecord, error) {
	b, ok, err := view.Get(shardKey(shard))
	if err != nil || !ok {
		return shardRecord{}, err
	}
	return decodeShardRecord(b)
}

// state fills in what is known of the whole copy, and what was handed off once
// its digest is added up.
func (p *pulled) state(r *flotillav1.PullResponse, x *exportStatus) {
	digest, summed := x.export.digest()
	if r.Summed = summed; !summed {
		return
	}
	r.Total = digest.bytes()
	if x.record.state != shardHandedOff {
		return
	}
	ago := time.Duration(p.host.GroupClock(p.group.id)-x.record.handedTime) * time.Millisecond
	if !x.export.handedAt.IsZero() {
		ago = p.server.now().Sub(x.export.handedAt)
	}
	r.Handed = &flotillav1.HandedOff{
		Index:   uint64(x.record.handed),
		Time:    x.record.handedTime,
		Writes:  x.record.writes,
		Keys:    digest.keys.toWire(),
		Answers: digest.answers.toWire(),
		AgoUs:   max(0, ago).Microseconds(),
	}
}

func (s sum) toWire() *flotillav1.CopyDigest {
	return &flotillav1.CopyDigest{High: s.high, Low: s.low, Count: s.count, Bytes: s.bytes}
}

func sumFromWire(w *flotillav1.CopyDigest) sum {
	return sum{high: w.GetHigh(), low: w.GetLow(), count: w.GetCount(), bytes: w.GetBytes()}
}

func itemsToWire(items []moveItem) []*flotillav1.MoveItem {
	all := make([]*flotillav1.MoveItem, len(items))
	for i, item := range items {
		all[i] = &flotillav1.MoveItem{Kind: uint32(item.kind), Name: item.name, There: item.stored != nil, Stored: item.stored}
	}
	return all
}

func itemsFromWire(items []*flotillav1.MoveItem) []moveItem {
	all := make([]moveItem, len(items))
	for i, w := range items {
		all[i] = moveItem{kind: byte(w.GetKind()), name: w.GetName()}
		if w.GetThere() {
			all[i].stored = append([]byte{}, w.GetStored()...)
		}
	}
	return all
}

// itemsChecksum guards a page on its way.
func itemsChecksum(items []*flotillav1.MoveItem) uint64 {
	var e encoder
	h := xxhash.New()
	for _, w := range items {
		e.b = e.b[:0]
		e.byte(byte(w.GetKind()))
		e.bytes(w.GetName())
		e.bool(w.GetThere())
		e.uint(uint64(len(w.GetStored())))
		_, _ = h.Write(e.b)
		_, _ = h.Write(w.GetStored())
	}
	return h.Sum64()
}
