package logstore

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/flotilla-kv/flotilla/raft"
)

type syncCounter struct{ syncs, requests atomic.Int64 }

func (c *syncCounter) Synced(requests, _ int, _ time.Duration) {
	c.syncs.Add(1)
	c.requests.Add(int64(requests))
}

// BenchmarkAppend has as many groups append, each one entry of 1 KiB after the
// other, on a real disk.
func BenchmarkAppend(b *testing.B) {
	for _, groups := range []int{1, 16, 256} {
		b.Run(fmt.Sprintf("groups=%d", groups), func(b *testing.B) {
			var counter syncCounter
			o := testOptions(b, vfs.Default)
			o.Dir, o.SegmentBytes, o.Metrics = b.TempDir()+"/log", 64<<20, &counter
			s := openTest(b, o)
			defer closeTest(b, s)
			for g := range groups {
				createTest(b, s, key(uint64(2+g), 1))
			}
			counter.syncs.Store(0)
			counter.requests.Store(0)
			data := make([]byte, 1024)
			b.ReportAllocs()
			b.ResetTimer()
			var wg sync.WaitGroup
			for g := range groups {
				wg.Add(1)
				go func() {
					defer wg.Done()
					id, done := key(uint64(2+g), 1), make(chan error, 1)
					for i := 1; i <= b.N/groups+1; i++ {
						e := raft.Entry{Index: raft.Index(i), Term: 1, Data: data}
						s.Append([]Write{{ID: id, Write: raft.Write{Entries: []raft.Entry{e}}}}, func(err error) { done <- err })
						if err := <-done; err != nil {
							b.Error(err)
							return
						}
					}
				}()
			}
			wg.Wait()
			b.StopTimer()
			b.ReportMetric(float64(counter.requests.Load())/float64(counter.syncs.Load()), "appends/sync")
		})
	}
}
