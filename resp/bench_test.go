package resp

import (
	"io"
	"net"
	"strings"
	"testing"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// instant is a backend that answers at once, so that what is measured is the
// door.
type instant struct{ shardMap *shardmap.Map }

func newInstant(shards int) *instant {
	return &instant{&shardmap.Map{Shards: make([]shardmap.Assignment, shards)}}
}

func (b *instant) Map() *shardmap.Map { return b.shardMap }
func (b *instant) Info() Info         { return Info{} }
func (b *instant) NewLane() Lane      { return b }

func (b *instant) Submit(req *flotillav1.Request, done func(*flotillav1.Response, error)) {
	resp := &flotillav1.Response{Compared: true, Results: make([]*flotillav1.Result, len(req.Ops))}
	results := make([]flotillav1.Result, len(req.Ops))
	for i := range results {
		resp.Results[i] = &results[i]
	}
	done(resp, nil)
}

// pipelineOf is n commands of the kind that redis-benchmark sends.
func pipelineOf(n int) []byte {
	var b strings.Builder
	for range n {
		b.WriteString(array("SET", "key:000000000123", strings.Repeat("x", 64)))
	}
	return []byte(b.String())
}

// parseAll feeds the input to the parser and counts its commands.
func parseAll(p *parser, input []byte) int {
	n := 0
	for len(input) > 0 {
		k := copy(p.room(), input)
		p.received(k)
		input = input[k:]
		for {
			args, err := p.next()
			if err != nil {
				panic(err)
			}
			if args == nil {
				break
			}
			n++
		}
	}
	return n
}

func BenchmarkParser(b *testing.B) {
	const n = 1000
	input, p := pipelineOf(n), newParser()
	b.ReportAllocs()
	b.SetBytes(int64(len(input)) / n)
	for i := 0; i < b.N; i += n {
		parseAll(p, input)
	}
}

func BenchmarkWriter(b *testing.B) {
	w := &writer{out: io.Discard}
	value := bulkReply(make([]byte, 64))
	ok := okReply()
	b.ReportAllocs()
	for b.Loop() {
		w.reply(&value, false)
		w.reply(&ok, false)
	}
}

// BenchmarkDoor is commands through a connection's whole path, sixteen to a
// write.
func BenchmarkDoor(b *testing.B) {
	for _, bench := range []struct{ name, command string }{
		{"GET", array("GET", "key:000000000123")},
		{"SET", array("SET", "key:000000000123", strings.Repeat("x", 64))},
		{"PING", array("PING")},
	} {
		b.Run(bench.name, func(b *testing.B) {
			s := start(b, newInstant(1024), nil)
			nc, err := net.Dial("tcp", s.Addr().String())
			if err != nil {
				b.Fatal(err)
			}
			defer nc.Close()
			const depth = 16
			in := []byte(strings.Repeat(bench.command, depth))
			io.ReadFull(nc, nil)
			one := map[string]int{"GET": 5, "SET": 5, "PING": 7}[bench.name]
			if bench.name == "GET" {
				one = len("$0\r\n\r\n")
			}
			out := make([]byte, depth*one)
			b.ReportAllocs()
			for i := 0; i < b.N; i += depth {
				if _, err := nc.Write(in); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(nc, out); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestAllocations bounds what a command costs: the parser only its share of a
// chunk, the writer nothing.
func TestAllocations(t *testing.T) {
	const n = 1000
	input, p := pipelineOf(n), newParser()
	if got := testing.AllocsPerRun(20, func() { parseAll(p, input) }) / n; got > 0.01 {
		t.Errorf("the parser allocates %.3f times a command", got)
	}
	w := &writer{out: io.Discard}
	replies := []reply{bulkReply(make([]byte, 64)), okReply(), intReply(12345), nullReply(), errorReply("ERR x"), bulksReply([][]byte{nil, {}})}
	if got := testing.AllocsPerRun(1000, func() {
		for i := range replies {
			w.reply(&replies[i], i%2 == 0)
		}
	}); got > 0.01 {
		t.Errorf("the writer allocates %.3f times for %d replies", got, len(replies))
	}
}
