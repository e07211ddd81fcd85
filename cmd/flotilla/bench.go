package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/flotilla-kv/flotilla/client"
	"github.com/flotilla-kv/flotilla/cmd/flotilla/internal/load"
)

// benchOptions are the flags of flotilla bench.
type benchOptions struct {
	*globals
	load.Workload
	duringMovesN int
}

func newBenchCommand(g *globals) *cobra.Command {
	o := &benchOptions{globals: g}
	command := &cobra.Command{
		Use:   "bench",
		Short: "Put a load on the cluster and measure it",
		Long: `Bench reads and writes random keys for --duration and prints how many requests
succeeded, at what rate and with what latency. Each of --clients keeps
--pipeline requests under way. With --rate the requests have a schedule and a
latency counts from when a request was due, so that a stall shows in all that it
held up; without it a client sends when it is answered. The keys are named
"bench-NUMBER" and stay; some are written first, with reads all of them, which
does not count. Progress goes to stderr.

With --during-moves half of the clients increment keys of one shard, which is
moved to and fro so many times; the others load all other shards. For
--duration both are measured without moves first. It prints how long nobody
served the shard, by the moves' own account and as its clients saw it, and
whether an increment failed, was lost or counted twice.`,
		Args: onlyFlags,
		RunE: func(c *cobra.Command, _ []string) error {
			return o.run(c.Context(), c.OutOrStdout(), c.ErrOrStderr())
		},
	}
	flags := command.Flags()
	flags.IntVar(&o.Clients, "clients", 64, "clients that send at the same time")
	flags.IntVar(&o.Pipeline, "pipeline", 1, "requests that each client keeps under way")
	flags.IntVar(&o.ValueSize, "value-size", 128, "`BYTES` of a value")
	flags.IntVar(&o.Keys, "keys", 10_000, "keys to choose from")
	flags.IntVar(&o.Reads, "reads", 50, "`PERCENT` of the requests that read")
	flags.DurationVar(&o.Duration, "duration", 10*time.Second, "for how long")
	flags.IntVar(&o.duringMovesN, "during-moves", 0, "move a shard so many times meanwhile")
	flags.IntVar(&o.Rate, "rate", 0, "requests per second in all; 0: as many as go")
	g.addOutputFlag(command)
	return command
}

func (o *benchOptions) run(ctx context.Context, out, progress io.Writer) error {
	if err := o.Check(); err != nil {
		return usageError{err}
	}
	o.Seed = uint64(time.Now().UnixNano())
	switch {
	case o.duringMovesN < 0:
		return usagef("--during-moves %d: it must not be negative", o.duringMovesN)
	case o.duringMovesN > 0 && o.Rate > 0:
		return usagef("--during-moves goes as fast as it can: --rate does not go with it")
	case o.duringMovesN > 0:
		return o.duringMoves(ctx, out, progress)
	}
	c, err := o.newClient(client.Options{CallsMax: o.Clients*o.Pipeline + fillRoom})
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.WaitMap(ctx); err != nil {
		return explain(o.globals, err)
	}
	if err := load.Prepare(ctx, c, o.Workload); err != nil {
		return explain(o.globals, err)
	}
	result, err := o.measure(ctx, c, progress)
	switch {
	case result.Ops == 0 && err != nil:
		return explain(o.globals, fmt.Errorf("no request succeeded: %w", err))
	case result.Ops == 0:
		return errors.New("stopped before a request was answered")
	case err != nil:
		fmt.Fprintf(progress, "flotilla: %d requests failed, one of them: %s\n", result.Failed, oneLine(err))
	}
	return o.print(out, result)
}

// fillRoom is what the client admits besides the workload's own requests.
const fillRoom = 1024

// measure runs the workload and shows how it goes.
func (o *benchOptions) measure(ctx context.Context, c *client.Client, progress io.Writer) (load.Result, error) {
	meter := load.NewMeter(o.Clients)
	ended := make(chan struct{})
	var shown sync.WaitGroup
	shown.Go(func() { showProgress(progress, meter, ended) })
	result, err := load.Run(ctx, c, o.Workload, meter)
	close(ended)
	shown.Wait()
	return result, err
}

// showProgress prints a line each second: on a terminal over the one before.
func showProgress(w io.Writer, meter *load.Meter, ended <-chan struct{}) {
	live := isTerminal(w)
	begin, last := time.Now(), time.Now()
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ended:
			if live {
				fmt.Fprint(w, "\r\x1b[K")
			}
			return
		case <-ticker.C:
		}
		r := meter.Recent(time.Since(last).Seconds())
		last = time.Now()
		line := fmt.Sprintf("%4.0fs %9.0f ops/s  p50 %s  p99 %s  max %s  failed %d",
			time.Since(begin).Seconds(), r.OpsPerS, micros(r.P50us), micros(r.P99us), micros(r.MaxUs), r.Failed)
		if live {
			fmt.Fprintf(w, "\r\x1b[K%s", line)
		} else {
			fmt.Fprintln(w, line)
		}
	}
}

func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

// micros prints a latency, or a dash where there is none (-1).
func micros(us int64) string {
	if us < 0 {
		return "-"
	}
	return (time.Duration(us) * time.Microsecond).String()
}

func (o *benchOptions) print(out io.Writer, r load.Result) error {
	if o.output == "json" {
		return writeJSON(out, r)
	}
	t := newTable(out, "ops", "failed", "seconds", "ops/s", "p50", "p99", "max")
	t.row(r.Ops, r.Failed, fmt.Sprintf("%.1f", r.Seconds), fmt.Sprintf("%.0f", r.OpsPerS), micros(r.P50us), micros(r.P99us), micros(r.MaxUs))
	return t.flush()
}
