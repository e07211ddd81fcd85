package shardkv

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// BenchmarkApply applies entries of 64 commands over Pebble; one operation is
// one command. go test -bench Apply ./shardkv
func BenchmarkApply(b *testing.B) {
	value := string(make([]byte, 256))
	for name, make := range map[string]func(i int) *write{
		"put": func(i int) *write { return plain(0, put(fmt.Sprint("key", i%10_000), value)) },
		"put-numbered": func(i int) *write {
			return numbered(0, alice, uint64(i+1), uint64(max(1, i-64)), put(fmt.Sprint("key", i%10_000), value))
		},
		"incr": func(i int) *write { return plain(0, incr(fmt.Sprint("n", i%10_000), 1)) },
	} {
		b.Run(name, func(b *testing.B) {
			r := newPebbleRig(b)
			r.born(b, epoch, 1)
			const join = 64
			b.ReportAllocs()
			for i := 0; i < b.N; i += join {
				b.StopTimer()
				e := entry{stamp: epoch}
				for j := range join {
					e.commands = append(e.commands, encodeCommand(make(i+j)))
				}
				b.StartTimer()
				r.apply(b, e)
			}
		})
	}
}

// BenchmarkApplyPut applies numbered puts of 256 bytes as 256 closed-loop
// clients send them: each acknowledges its last write with its next. Entries
// join 64 commands, and a batch has four. One operation is one put, its
// encoding included; cpu-ns is the processor's time, flushes, compactions and
// garbage collection included, which a busy machine changes less than ns.
// go test -bench ApplyPut ./shardkv
func BenchmarkApplyPut(b *testing.B) {
	b.Run("pebble", func(b *testing.B) { benchmarkApplyPut(b, newPebbleRig(b)) })
	b.Run("model", func(b *testing.B) { benchmarkApplyPut(b, newRig(b)) })
}

func benchmarkApplyPut(b *testing.B, r *rig) {
	const shards, clients, join, batch = 64, 256, 64, 4
	r.born(b, epoch, shards)
	puts := newPutSource(shards, clients)
	entries := make([]entry, batch)
	b.ReportAllocs()
	b.ResetTimer()
	from := processorTime(b)
	for i := 0; i < b.N; i += join * batch {
		puts.arena.b = puts.arena.b[:0]
		for e := range entries {
			entries[e].stamp = epoch + int64(i)/1000
			entries[e].commands = entries[e].commands[:0]
			for range join {
				entries[e].commands = append(entries[e].commands, puts.next())
			}
		}
		r.applyOnly(b, entries)
		if r.model != nil {
			r.model.Flush()
		}
	}
	b.ReportMetric(float64(processorTime(b)-from)/float64(b.N), "cpu-ns/op")
}

func processorTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// putSource encodes numbered puts into memory that it uses again.
type putSource struct {
	arena encoder
	write write
	seqs  []uint64 // by client and shard
	noise []byte   // values are cut from it, so that they do not compress
	n     int

	shards, clients int
}

func newPutSource(shards, clients int) *putSource {
	p := &putSource{shards: shards, clients: clients, seqs: make([]uint64, shards*clients)}
	p.arena.b = make([]byte, 0, 1<<20)
	p.noise = make([]byte, 1<<20)
	rand.NewChaCha8([32]byte{}).Read(p.noise)
	p.write.ops = []op{{kind: opPut, key: make([]byte, 16)}}
	return p
}

func (p *putSource) next() []byte {
	client := p.n % p.clients
	shard := p.n * 31 % p.shards
	seq := &p.seqs[client*p.shards+shard]
	*seq++
	p.write.shard = shardmap.ShardID(shard)
	p.write.session = session{id: sessionID{client: uint64(client + 1), birth: epoch}, seq: *seq, lowest: *seq}
	binary.BigEndian.PutUint64(p.write.ops[0].key, uint64(p.n*7919%1_000_000))
	at := p.n * 104_729 % (len(p.noise) - 256)
	p.write.ops[0].value = p.noise[at : at+256]
	p.n++
	from := len(p.arena.b)
	p.arena.byte(commandVersion)
	p.arena.byte(commandWrite)
	p.write.encode(&p.arena)
	return p.arena.b[from:len(p.arena.b):len(p.arena.b)]
}

// BenchmarkHistory is what the history costs a write, beside all else: events of
// 256 bytes in batches of 16, in a ring that is full.
func BenchmarkHistory(b *testing.B) {
	h := new(history)
	sh := &heldShard{shardRecord: shardRecord{state: shardOwned, incarnation: 1}}
	h.restart(0, []*heldShard{sh})
	key, value := []byte("user:1234567890"), make([]byte, 256)
	b.ReportAllocs()
	for i := range b.N {
		sh.writes++
		h.add(sh, flotillav1.WatchEvent_PUT, key, value, 0)
		if i%16 == 15 {
			h.publish(raft.Index(i), nil)
		}
	}
}
