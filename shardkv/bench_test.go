package shardkv

import (
	"fmt"
	"testing"
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
