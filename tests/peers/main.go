// Peers measures Flotilla and etcd side by side, in turn, in one run on one
// machine: three members each, every member a process of its own, default
// durability (every acknowledged write is fsynced by a majority), the same
// clients, keys and values, loopback.
//
//	make bench-peers              # builds the binary first
//	cd tests/peers && go run . -duration 10s -rounds 3
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// options of a run.
type options struct {
	binary    string
	duration  time.Duration
	rounds    int
	valueSize int
	keys      int
	systems   string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(os.Args) > 1 && os.Args[1] == "etcd-member" {
		exit(runEtcdMember(ctx, os.Args[2:]))
	}
	var o options
	flag.StringVar(&o.binary, "flotilla", "../../bin/flotilla", "the binary to measure")
	flag.DurationVar(&o.duration, "duration", 8*time.Second, "of each measurement")
	flag.IntVar(&o.rounds, "rounds", 3, "how often each is repeated; the median counts")
	flag.IntVar(&o.valueSize, "value-size", 256, "bytes of a value")
	flag.IntVar(&o.keys, "keys", 100_000, "size of the key space")
	flag.StringVar(&o.systems, "systems", "etcd,flotilla", "the systems to measure")
	flag.Parse()
	exit(compare(ctx, o))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "peers:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// compare runs every workload against both systems in turn, round by round.
func compare(ctx context.Context, o options) error {
	dir, err := os.MkdirTemp("", "flotilla-peers-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	binary, err := filepath.Abs(o.binary)
	if err != nil {
		return err
	}
	o.binary = binary
	results := newResults()
	for round := range o.rounds {
		for _, system := range []struct {
			name  string
			start func(context.Context, options, string) (system, error)
		}{{"etcd", startEtcd}, {"flotilla", startFlotilla}} {
			if !slices.Contains(strings.Split(o.systems, ","), system.name) {
				continue
			}
			s, err := system.start(ctx, o, filepath.Join(dir, fmt.Sprintf("%s-%d", system.name, round)))
			if err != nil {
				return fmt.Errorf("%s: %w", system.name, err)
			}
			err = measureAll(ctx, o, s, system.name, results)
			s.stop()
			if err != nil {
				return fmt.Errorf("%s: %w", system.name, err)
			}
		}
	}
	results.print(os.Stdout, o)
	return ctx.Err()
}
