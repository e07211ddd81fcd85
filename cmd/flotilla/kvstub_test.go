package main

import (
	"bytes"
	"context"
	"net"
	"strconv"
	"sync"
	"testing"

	"google.golang.org/grpc"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
)

// kvStub is a cluster of one node and one shard, as far as bench and check see
// one.
type kvStub struct {
	flotillav1.UnimplementedKVServer
	flotillav1.UnimplementedClusterServer
	addr string

	mu    sync.Mutex // guards what follows
	items map[string]*flotillav1.Result
	old   map[string]*flotillav1.Result // before the last write
	count uint64
	reads int
	stale bool // every twentieth read sees what was before the last write
	code  flotillav1.Code

	watched []*flotillav1.WatchFrom
}

func newKVStub(t *testing.T, options ...grpc.ServerOption) *kvStub {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &kvStub{addr: listener.Addr().String(), items: make(map[string]*flotillav1.Result), old: make(map[string]*flotillav1.Result)}
	server := grpc.NewServer(options...)
	flotillav1.RegisterKVServer(server, s)
	flotillav1.RegisterClusterServer(server, s)
	served := make(chan struct{})
	go func() {
		defer close(served)
		server.Serve(listener)
	}()
	t.Cleanup(func() {
		server.Stop()
		<-served
	})
	return s
}

func (s *kvStub) WatchMap(_ *flotillav1.WatchMapRequest, stream grpc.ServerStreamingServer[flotillav1.ShardMap]) error {
	err := stream.Send(&flotillav1.ShardMap{
		ClusterId: "stub",
		Revision:  1,
		Shards:    []*flotillav1.Assignment{{Group: 2, Generation: 1}},
		Groups:    []*flotillav1.Group{{Id: 2, Members: []*flotillav1.GroupMember{{ReplicaId: 1, NodeId: 1}}}},
		Nodes:     []*flotillav1.Node{{Id: 1, State: "up", Addr: s.addr}},
	})
	if err == nil {
		<-stream.Context().Done()
	}
	return err
}

func (s *kvStub) GetMap(context.Context, *flotillav1.GetMapRequest) (*flotillav1.ShardMap, error) {
	return &flotillav1.ShardMap{}, nil
}

func (s *kvStub) Batch(stream grpc.BidiStreamingServer[flotillav1.BatchRequest, flotillav1.BatchResponse]) error {
	for {
		m, err := stream.Recv()
		if err != nil {
			return nil
		}
		answer := new(flotillav1.BatchResponse)
		s.mu.Lock()
		for _, q := range m.GetRequests() {
			p := &flotillav1.Response{Id: q.GetId(), Compared: true, Code: s.code}
			for _, op := range q.GetOps() {
				if s.code == flotillav1.Code_OK {
					p.Results = append(p.Results, s.do(op))
				}
			}
			answer.Responses = append(answer.Responses, p)
		}
		s.mu.Unlock()
		if err := stream.Send(answer); err != nil {
			return err
		}
	}
}

func (s *kvStub) do(op *flotillav1.Op) *flotillav1.Result {
	switch o := op.GetOp().(type) {
	case *flotillav1.Op_Get:
		if s.reads++; s.stale && s.reads%20 == 0 {
			return found(s.old, o.Get.GetKey())
		}
		return found(s.items, o.Get.GetKey())
	case *flotillav1.Op_Put:
		was := found(s.items, o.Put.GetKey())
		if c := o.Put.GetCondition(); c == flotillav1.Put_IF_ABSENT && was.GetExisted() || c == flotillav1.Put_IF_VALUE && !bytes.Equal(was.GetValue(), o.Put.GetExpected()) {
			was.Status = flotillav1.Result_CONDITION_FAILED
			return was
		}
		return s.write(o.Put.GetKey(), o.Put.GetValue())
	case *flotillav1.Op_Delete:
		was := found(s.items, o.Delete.GetKey())
		s.old[string(o.Delete.GetKey())] = was
		delete(s.items, string(o.Delete.GetKey()))
		return was
	case *flotillav1.Op_Incr:
		n, _ := strconv.ParseInt(string(found(s.items, o.Incr.GetKey()).GetValue()), 10, 64)
		r := s.write(o.Incr.GetKey(), strconv.AppendInt(nil, n+o.Incr.GetBy(), 10))
		r.Number = n + o.Incr.GetBy()
		return r
	case *flotillav1.Op_Clear:
		for key := range s.items {
			if bytes.HasPrefix([]byte(key), o.Clear.GetPrefix()) {
				delete(s.items, key)
			}
		}
	}
	return new(flotillav1.Result)
}

func (s *kvStub) write(key, value []byte) *flotillav1.Result {
	s.count++
	s.old[string(key)] = found(s.items, key)
	s.items[string(key)] = &flotillav1.Result{Value: value, Version: s.count}
	return &flotillav1.Result{Version: s.count}
}

func found(items map[string]*flotillav1.Result, key []byte) *flotillav1.Result {
	item := items[string(key)]
	if item.GetVersion() == 0 {
		return &flotillav1.Result{Status: flotillav1.Result_ABSENT}
	}
	return &flotillav1.Result{Value: item.GetValue(), Version: item.GetVersion(), Existed: true}
}
