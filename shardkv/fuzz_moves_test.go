package shardkv

import (
	"context"
	"encoding/binary"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
)

// pieces cuts a fuzzer's bytes into messages: a flag and two bytes of length
// stand before each.
func pieces(b []byte, most int) (all []piece) {
	for len(b) >= 3 && len(all) < most {
		n := min(int(binary.BigEndian.Uint16(b[1:])), len(b)-3)
		all = append(all, piece{b[0], b[3 : 3+n]})
		b = b[3+n:]
	}
	return all
}

type piece struct {
	flag byte
	b    []byte
}

// pieceOf is the reverse, of messages with their flags.
func pieceOf(f *testing.F, flag byte, m proto.Message) []byte {
	b, err := proto.Marshal(m)
	if err != nil {
		f.Fatal(err)
	}
	return append(binary.BigEndian.AppendUint16([]byte{flag}, uint16(len(b))), b...)
}

// FuzzPullAnswers gives the target of a move whatever a source may answer, one
// answer after the other. What it commits of that every replica understands and
// takes, and a shard is served only if it holds what its digest says.
func FuzzPullAnswers(f *testing.F) {
	item := &flotillav1.MoveItem{Kind: uint32(kindValue), Name: []byte(keyIn(0)), There: true, Stored: append(record{version: 1}.appendHead(nil), 'v')}
	scan := pieceOf(f, 1, &flotillav1.PullResponse{Done: true, Begun: position(1, 0), To: []byte{1}, Items: []*flotillav1.MoveItem{item}})
	nothing := pieceOf(f, 1, &flotillav1.PullResponse{Done: true, To: position(1, 0)})
	handed := pieceOf(f, 1, &flotillav1.PullResponse{Done: true, Frozen: true, Summed: true, To: position(1, 0), Handed: &flotillav1.HandedOff{Index: 3, Time: epoch, Writes: 1}})
	f.Add(append(append(scan, nothing...), handed...))
	f.Add(append(scan, pieceOf(f, 1, &flotillav1.PullResponse{Ended: true, Code: flotillav1.Code_INVALID})...))
	f.Add(pieceOf(f, 0, &flotillav1.PullResponse{Items: []*flotillav1.MoveItem{{Kind: 99}}}))
	f.Add(pieceOf(f, 1, &flotillav1.PullResponse{Items: []*flotillav1.MoveItem{{Kind: uint32(kindAnswer), Name: make([]byte, 24), There: true}}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := newRig(t)
		r.born(t, epoch, 0)
		r.one(t, epoch, &move{kind: moveBeginImport, shard: movedShard, id: 1, generation: 1, attempt: 1, peer: otherGroup})
		var v mover
		now := time.Unix(0, 0)
		for _, p := range pieces(b, 20) {
			answer := new(flotillav1.PullResponse)
			if proto.Unmarshal(p.b, answer) != nil {
				return
			}
			if p.flag&1 != 0 { // a fuzzer finds no checksums
				answer.Checksum = itemsChecksum(answer.Items)
			}
			now = now.Add(time.Minute)
			x, importing := r.machine.movesNow().importing(movedShard)
			if !importing {
				return
			}
			act := v.turn(now, &x)
			if act.ask != nil {
				v.answered(now, act.ask, answer)
				act = v.turn(now.Add(time.Hour), &x)
			}
			for _, c := range act.entries {
				mustSurvive(t, c)
				a := r.one(t, epoch, c)
				if sh := r.machine.shards[movedShard]; c.kind == moveActivate && sh.state == shardOwned && a.refused == flotillav1.Code_OK && sh.in != nil && sh.in.digest != c.digest {
					t.Fatalf("it is served with the digest %v, and is to have %v", sh.in.digest, c.digest)
				}
				v.proposed(now, true)
			}
			if act.compare != nil || act.addUp {
				v.compares(now, act.compare, "", nil)
			}
		}
	})
}

// FuzzPullRequests asks the source of a move anything. It answers, and goes on
// serving the shard, or has handed it over to the move that was asked for.
func FuzzPullRequests(f *testing.F) {
	question := func(q *flotillav1.PullRequest) []byte {
		q.ClusterId, q.Group, q.ToGroup = "cluster", uint64(rigGroup), uint64(otherGroup)
		return pieceOf(f, 0, q)
	}
	scan := question(&flotillav1.PullRequest{Migration: 1, Generation: 1})
	hand := question(&flotillav1.PullRequest{Migration: 1, Generation: 1, Want: flotillav1.PullRequest_WANT_HAND_OFF, From: position(1, 0)})
	f.Add(append(scan, hand...))
	f.Add(append(append(scan, hand...), question(&flotillav1.PullRequest{Migration: 1, Generation: 1, Want: flotillav1.PullRequest_WANT_DELETE})...))
	f.Add(append(scan, question(&flotillav1.PullRequest{Migration: 1, Generation: 1, Want: flotillav1.PullRequest_WANT_CANCEL})...))
	f.Add(question(&flotillav1.PullRequest{Shard: 1 << 63, Migration: 1 << 63, Generation: 1 << 63, Want: 77, BytesMax: 1 << 31}))
	f.Add(pieceOf(f, 0, &flotillav1.PullRequest{}))
	f.Fuzz(func(t *testing.T, b []byte) {
		serve(t, func(t *testing.T, host *bench) {
			key := keyIn(0)
			host.want(host.do(ask(wirePut(key, "v"))), flotillav1.Code_OK)
			given := false
			for _, p := range pieces(b, 20) {
				q := new(flotillav1.PullRequest)
				if proto.Unmarshal(p.b, q) != nil {
					return
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				answer, err := host.server.Pull(ctx, q)
				cancel()
				if err != nil || answer == nil {
					t.Fatalf("%v: %v, %v", q, answer, err)
				}
				given = given || q.Want == flotillav1.PullRequest_WANT_HAND_OFF && answer.Code == flotillav1.Code_OK && answer.Frozen
				synctest.Wait()
			}
			r := host.do(ask(wireGet(key)))
			if served := r.GetCode() == flotillav1.Code_OK; !served && (!given || r.GetCode() != flotillav1.Code_MOVED) || served && string(r.GetResults()[0].GetValue()) != "v" {
				t.Fatalf("handed off %t, the key reads as %v", given, r)
			}
		})
	})
}

// FuzzWatchRequests begins any watch. It is refused, or told of all shards that
// it asks for as they are.
func FuzzWatchRequests(f *testing.F) {
	for _, q := range []*flotillav1.WatchRequest{
		from(flotillav1.WatchFrom_NOW, 0, 0, 1),
		from(flotillav1.WatchFrom_AFTER, 1, 0),
		from(flotillav1.WatchFrom_AFTER, 1<<63, 0),
		from(flotillav1.WatchFrom_STATE, 0, 1),
		from(99, 0, 3),
		{Key: []byte("k"), Prefix: []byte("p")},
		{},
	} {
		q.Group = uint64(rigGroup)
		b, err := proto.Marshal(q)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		q := new(flotillav1.WatchRequest)
		if proto.Unmarshal(b, q) != nil {
			return
		}
		serve(t, func(t *testing.T, host *bench) {
			host.want(host.do(ask(wirePut(keyIn(0), "v"))), flotillav1.Code_OK)
			asked := make(map[uint64]bool)
			for _, sh := range q.GetShards() {
				asked[sh.GetShard()] = true
			}
			d := host.server.WatchDirectly(q, func(p *flotillav1.WatchResponse) error {
				for _, part := range p.GetParts() {
					if !asked[part.GetShard()] || part.GetVersion() < part.GetAfter() {
						t.Fatalf("%v is told %v", q, part)
					}
				}
				return nil
			})
			for range 3 {
				synctest.Wait()
				host.do(ask(wirePut(keyIn(0), "w")))
				time.Sleep(watchBeat)
				d.Turn(time.Now())
			}
			d.End()
		})
	})
}
