package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// system is one of the two under measurement.
type system interface {
	put(ctx context.Context, key string, value []byte) error
	get(ctx context.Context, key string) error // linearizable
	stop()
}

// workload is what is measured.
type workload struct {
	name    string
	clients int
	read    bool
}

var workloads = []workload{
	{"put 256 B, 1 client", 1, false},
	{"put 256 B, 64 clients", 64, false},
	{"put 256 B, 256 clients", 256, false},
	{"linearizable get, 64 clients", 64, true},
	{"linearizable get, 256 clients", 256, true},
}

// measureAll runs the workloads in order against one running system.
func measureAll(ctx context.Context, o options, s system, name string, results *results) error {
	if err := fill(ctx, o, s); err != nil {
		return err
	}
	for _, w := range workloads {
		m, err := measure(ctx, o, s, w)
		if err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
		fmt.Printf("%-9s %-30s %9.0f ops/s  p50 %7.2f ms  p99 %7.2f ms\n", name, w.name, m.rate, m.p50, m.p99)
		results.add(w.name, name, m)
	}
	return nil
}

// fill writes part of the key space, which also warms the system up.
func fill(ctx context.Context, o options, s system) error {
	value := make([]byte, o.valueSize)
	var group sync.WaitGroup
	errs := make(chan error, 64)
	for c := range 64 {
		group.Go(func() {
			for i := c; i < min(o.keys, 10_000); i += 64 {
				if err := s.put(ctx, keyName(i), value); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	group.Wait()
	close(errs)
	return <-errs
}

func keyName(i int) string { return fmt.Sprintf("key-%08d", i) }

// measurement is one workload against one system, once.
type measurement struct {
	rate     float64 // operations a second
	p50, p99 float64 // milliseconds
}

// measure runs the clients, closed loop, for the duration.
func measure(ctx context.Context, o options, s system, w workload) (measurement, error) {
	parts := make([][]time.Duration, w.clients)
	errs := make([]error, w.clients)
	begin := time.Now()
	end := begin.Add(o.duration)
	var group sync.WaitGroup
	for c := range w.clients {
		group.Go(func() { parts[c], errs[c] = runClient(ctx, o, s, w, c, end) })
	}
	group.Wait()
	took := time.Since(begin)
	total := hdrhistogram.New(1, int64(time.Minute/time.Microsecond), 3)
	for c, latencies := range parts {
		if errs[c] != nil {
			return measurement{}, errs[c]
		}
		for _, took := range latencies {
			if err := total.RecordValue(max(1, took.Microseconds())); err != nil {
				return measurement{}, err
			}
		}
	}
	return measurement{
		rate: float64(total.TotalCount()) / took.Seconds(),
		p50:  float64(total.ValueAtQuantile(50)) / 1000,
		p99:  float64(total.ValueAtQuantile(99)) / 1000,
	}, nil
}

// runClient is one client's loop until end, and the latency of each request. It
// keeps a list: a histogram for each of 256 clients is 50 MB that the load
// generator would drag through the caches the servers want.
func runClient(ctx context.Context, o options, s system, w workload, seed int, end time.Time) ([]time.Duration, error) {
	var latencies []time.Duration
	random := rand.New(rand.NewPCG(uint64(seed), 1))
	value := make([]byte, o.valueSize)
	for time.Now().Before(end) {
		begin := time.Now()
		var err error
		if w.read {
			err = s.get(ctx, keyName(random.IntN(min(o.keys, 10_000))))
		} else {
			err = s.put(ctx, keyName(random.IntN(o.keys)), value)
		}
		if err != nil {
			return nil, err
		}
		latencies = append(latencies, time.Since(begin))
	}
	return latencies, nil
}

// results collects the rounds.
type results struct {
	all map[string]map[string][]measurement // workload -> system
}

func newResults() *results { return &results{all: make(map[string]map[string][]measurement)} }

func (r *results) add(workload, system string, m measurement) {
	if r.all[workload] == nil {
		r.all[workload] = make(map[string][]measurement)
	}
	r.all[workload][system] = append(r.all[workload][system], m)
}

// median of the rounds by rate.
func median(rounds []measurement) measurement {
	if len(rounds) == 0 {
		return measurement{}
	}
	sorted := slices.Clone(rounds)
	slices.SortFunc(sorted, func(a, b measurement) int {
		switch {
		case a.rate < b.rate:
			return -1
		case a.rate > b.rate:
			return 1
		}
		return 0
	})
	return sorted[len(sorted)/2]
}

func (r *results) print(out io.Writer, o options) {
	fmt.Fprintf(out, "\nmedians of %d rounds of %s, values of %d bytes\n", o.rounds, o.duration, o.valueSize)
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "work\tetcd ops/s\tp50 / p99 ms\tflotilla ops/s\tp50 / p99 ms\tratio")
	for _, w := range workloads {
		etcd, ours := median(r.all[w.name]["etcd"]), median(r.all[w.name]["flotilla"])
		ratio := 0.0
		if etcd.rate > 0 {
			ratio = ours.rate / etcd.rate
		}
		fmt.Fprintf(t, "%s\t%.0f\t%.2f / %.2f\t%.0f\t%.2f / %.2f\t%.1fx\n", w.name, etcd.rate, etcd.p50, etcd.p99, ours.rate, ours.p50, ours.p99, ratio)
	}
	t.Flush()
}
