package shardctrler

import (
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// FuzzRestored gives the machine any records to begin with, as a snapshot would.
// They are refused, or make a state that can be asked, planned for and changed.
func FuzzRestored(f *testing.F) {
	good := newMemoryRecords()
	m := NewMachine()
	for i, c := range storyOfAGroup(f) {
		if err := m.applyEntry(good, raft.Index(i+1), 1, [][]byte{EncodeCommand(c)}, make([]any, 1)); err != nil {
			f.Fatal(err)
		}
	}
	var whole []byte
	for ok := good.First(); ok; ok = good.Next() {
		one := append([]byte(nil), good.Key()...)
		one = binary.BigEndian.AppendUint16(one, uint16(len(good.Value())))
		one = append(one, good.Value()...)
		f.Add(one)
		whole = append(whole, one...)
	}
	f.Add(whole)
	f.Fuzz(func(t *testing.T, b []byte) {
		records := newMemoryRecords()
		for len(b) >= recordKeySize+2 {
			n := min(int(binary.BigEndian.Uint16(b[recordKeySize:])), len(b)-recordKeySize-2)
			records.Set(b[:recordKeySize], b[recordKeySize+2:recordKeySize+2+n])
			b = b[recordKeySize+2+n:]
		}
		m := NewMachine()
		if m.restore(records) != nil {
			return
		}
		s := m.State()
		s.Map()
		s.Removed(raft.ReplicaKey{Group: 2, Replica: 1})
		Plan(s, allUp(s))
		for _, c := range []Command{Register{Registration: registrationOf("b")}, Observe{Group: 2, Epoch: 9, Members: []shardmap.Member{{Replica: 1, Node: 1}}}} {
			s, _, _ = apply(s, s.Revision+1, 10, []Command{c})
		}
	})
}

// FuzzWireMap takes maps as they come from another node, or from the data dir.
// One is refused, or can be merged, asked and remembered.
func FuzzWireMap(f *testing.F) {
	r := newRun()
	for _, c := range storyOfAGroup(f) {
		r.apply(c)
	}
	known := r.state.Map()
	b, err := EncodeMap(known)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:len(b)/2])
	small, err := proto.Marshal(&flotillav1.ShardMap{ClusterId: "c", Revision: 1 << 63, Shards: []*flotillav1.Assignment{{Group: 2, Generation: 9}, {}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(small)
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := DecodeMap(b)
		if err != nil {
			if _, refused := errors.AsType[*InvalidError](err); !refused {
				t.Fatalf("refused by %v", err)
			}
			return
		}
		for _, merged := range []*shardmap.Map{m, shardmap.Merge(known, m), shardmap.Merge(m, known)} {
			for id := range raft.GroupID(4) {
				merged.Group(id)
			}
			merged.Assigned(1)
			merged.Owner([]byte("key"))
			merged.Node(1)
		}
		again, err := EncodeMap(m)
		if err != nil {
			return // a text that is no UTF-8 cannot have come over the wire
		}
		if twice, err := DecodeMap(again); err != nil || !slices.Equal(m.Shards, twice.Shards) || len(m.Groups) != len(twice.Groups) {
			t.Fatalf("remembered as another: %v", err)
		}
	})
}

// serviceCall is a handler of the Cluster service.
type serviceCall struct {
	name string
	call func(ctx context.Context, c *Controller, b []byte) error
}

// serviceCalls are the handlers that a request's first byte picks from: all.
var serviceCalls = []serviceCall{
	{"Init", handler((*Controller).Init)},
	{"Register", handler((*Controller).Register)},
	{"GetMap", handler((*Controller).GetMap)},
	{"GetStatus", handler((*Controller).GetStatus)},
	{"GetNodeReport", handler((*Controller).GetNodeReport)},
	{"GetConfig", handler((*Controller).GetConfig)},
	{"ListEvents", handler((*Controller).ListEvents)},
	{"Execute", handler((*Controller).Execute)},
	{"ReplicaState", handler((*Controller).ReplicaState)},
	{"MoveShard", handler((*Controller).MoveShard)},
	{"CancelMove", handler((*Controller).CancelMove)},
	{"ListMoves", handler((*Controller).ListMoves)},
	{"ChangeCluster", handler((*Controller).ChangeCluster)},
	{"Explain", handler((*Controller).Explain)},
	{"WatchMap", watchMap},
}

// TestAllOfTheServiceIsFuzzed: no handler is forgotten.
func TestAllOfTheServiceIsFuzzed(t *testing.T) {
	var served, fuzzed []string
	for _, m := range flotillav1.Cluster_ServiceDesc.Methods {
		served = append(served, m.MethodName)
	}
	for _, s := range flotillav1.Cluster_ServiceDesc.Streams {
		served = append(served, s.StreamName)
	}
	for _, c := range serviceCalls {
		fuzzed = append(fuzzed, c.name)
	}
	slices.Sort(served)
	slices.Sort(fuzzed)
	if !slices.Equal(served, fuzzed) {
		t.Errorf("served are %v, fuzzed %v", served, fuzzed)
	}
}

// watchMap is the handler of the stream.
func watchMap(ctx context.Context, c *Controller, b []byte) error {
	q := new(flotillav1.WatchMapRequest)
	if proto.Unmarshal(b, q) != nil {
		return nil
	}
	return c.WatchMap(q, mapSink{ctx: ctx})
}

// mapSink takes the maps of a stream.
type mapSink struct {
	grpc.ServerStream
	ctx context.Context
}

func (s mapSink) Context() context.Context        { return s.ctx }
func (s mapSink) Send(*flotillav1.ShardMap) error { return nil }

// handler decodes a request as gRPC would, and calls its handler.
func handler[Q any, R any, P interface {
	*Q
	proto.Message
}](call func(*Controller, context.Context, P) (R, error)) func(context.Context, *Controller, []byte) error {
	return func(ctx context.Context, c *Controller, b []byte) error {
		q := P(new(Q))
		if proto.Unmarshal(b, q) != nil {
			return nil
		}
		_, err := call(c, ctx, q)
		return err
	}
}

// FuzzService sends any requests to the handlers of a node that has made a
// cluster. Each is answered, or refused by a code that says why; what was
// decided before stands, and the node goes on.
func FuzzService(f *testing.F) {
	add := func(call byte, q proto.Message) []byte {
		b, err := proto.Marshal(q)
		if err != nil {
			f.Fatal(err)
		}
		one := append(binary.BigEndian.AppendUint16([]byte{call}, uint16(len(b))), b...)
		f.Add(one)
		return one
	}
	register := add(1, &flotillav1.RegisterRequest{RandomId: "r", Name: "b", Zone: "z", Addr: "b:7000"})
	report := add(4, &flotillav1.GetNodeReportRequest{})
	wish := add(7, &flotillav1.ExecuteRequest{Group: 2, Operation: &flotillav1.ExecuteRequest_TransferLeader{TransferLeader: &flotillav1.TransferLeader{ToNode: 1}}})
	add(0, initRequest(4, 3, 1))
	add(2, &flotillav1.GetMapRequest{Linearizable: true})
	add(3, &flotillav1.GetStatusRequest{})
	add(5, &flotillav1.GetConfigRequest{Num: 1})
	add(6, &flotillav1.ListEventsRequest{After: 3, Limit: 2})
	add(8, &flotillav1.ReplicaStateRequest{Group: 1, ReplicaId: 1})
	move := add(9, &flotillav1.MoveShardRequest{Shard: 1, ToGroup: 2})
	add(10, &flotillav1.CancelMoveRequest{})
	add(11, &flotillav1.ListMovesRequest{})
	grow := add(12, &flotillav1.ChangeClusterRequest{Change: &flotillav1.ChangeClusterRequest_AddGroups{AddGroups: 2}})
	add(12, &flotillav1.ChangeClusterRequest{Change: &flotillav1.ChangeClusterRequest_RecoverGroup{RecoverGroup: &flotillav1.RecoverGroup{Group: 2, Node: 1}}})
	add(12, &flotillav1.ChangeClusterRequest{Change: &flotillav1.ChangeClusterRequest_RemoveNode{RemoveNode: 1}})
	add(12, &flotillav1.ChangeClusterRequest{DryRun: true, AddNodes: []string{"z"}, LoseNodes: []uint64{1, 1 << 63}})
	add(13, &flotillav1.ExplainRequest{})
	add(14, &flotillav1.WatchMapRequest{AfterRevision: 1 << 63, Origin: true})
	f.Add(slices.Concat(register, wish, report, register))
	f.Add(slices.Concat(grow, move, grow))
	f.Fuzz(func(t *testing.T, b []byte) {
		synctest.Test(t, func(t *testing.T) {
			cluster := newFakeCluster(t)
			defer cluster.close()
			n := cluster.add("a", "")
			mustInit(t, n, initRequest(4, 1, 1))
			waitSettled(t, cluster, time.Minute, 1, 1, 4, 1)
			made := n.controller().Maps().Current()
			for len(b) >= 3 {
				call, size := serviceCalls[int(b[0])%len(serviceCalls)].call, int(binary.BigEndian.Uint16(b[1:]))
				size = min(size, len(b)-3)
				ctx, cancel := context.WithTimeout(context.Background(), time.Second)
				err := call(ctx, n.controller(), b[3:3+size])
				cancel()
				if code := status.Code(err); code == codes.Unknown || code == codes.Internal {
					t.Fatalf("request % x: %v", b[:3+size], err)
				}
				b = b[3+size:]
			}
			now, err := n.controller().GetMap(context.Background(), &flotillav1.GetMapRequest{Linearizable: true})
			if err != nil || now.ClusterId != made.ClusterID || len(now.Shards) != len(made.Shards) {
				t.Fatalf("the cluster is gone: %v %v", now, err)
			}
		})
	})
}
