package statestore

import (
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/flotilla-kv/flotilla/raft"
)

// BenchmarkApply applies batches of commands of two writes each, of which some
// read first. One operation is one command.
func BenchmarkApply(b *testing.B) {
	for _, reads := range []int{0, 10, 100} {
		for _, batch := range []int{10, 1000} {
			b.Run(fmt.Sprintf("reads=%d%%/batch=%d", reads, batch), func(b *testing.B) {
				o := testOptions(b, vfs.NewMem())
				o.MemTableBytes = 64 << 20
				s := openTest(b, o)
				defer closeTest(b, s)
				r := s.Replica(key(2, 1))
				value := make([]byte, 100)
				k, session := make([]byte, 24), make([]byte, 24)
				session[0] = 1
				b.ReportAllocs()
				for n := 0; n < b.N; {
					batchOf := r.NewBatch()
					for i := 0; i < batch && n < b.N; i++ {
						binary.BigEndian.PutUint64(k[8:], uint64(n*7919%100_000))
						binary.BigEndian.PutUint64(session[8:], uint64(n%100))
						if n%100 < reads {
							if _, _, err := batchOf.Get(k); err != nil {
								b.Fatal(err)
							}
						}
						batchOf.Set(k, value)
						batchOf.Set(session, value[:16])
						n++
					}
					batchOf.SetApplied(raft.Index(n), 1, membership())
					if err := batchOf.Commit(); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkViewGet(b *testing.B) {
	s := openTest(b, testOptions(b, vfs.NewMem()))
	defer closeTest(b, s)
	r := s.Replica(key(2, 1))
	var pairs []string
	for i := range 10_000 {
		pairs = append(pairs, fmt.Sprintf("key%06d=value", i))
	}
	put(b, r, 1, pairs...)
	if err := s.Flush(); err != nil {
		b.Fatal(err)
	}
	for _, gets := range []int{1, 10} {
		b.Run(fmt.Sprintf("gets=%d", gets), func(b *testing.B) {
			b.ReportAllocs()
			for n := 0; n < b.N; n++ {
				v, err := r.View()
				if err != nil {
					b.Fatal(err)
				}
				for i := range gets {
					if _, ok, err := v.Get(fmt.Appendf(nil, "key%06d", (n+i)%10_000)); err != nil || !ok {
						b.Fatal(ok, err)
					}
				}
				if err := v.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("no view", func(b *testing.B) {
		b.ReportAllocs()
		for n := 0; n < b.N; n++ {
			if _, ok, err := r.Get(fmt.Appendf(nil, "key%06d", n%10_000)); err != nil || !ok {
				b.Fatal(ok, err)
			}
		}
	})
}
