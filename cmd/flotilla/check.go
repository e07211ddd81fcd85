package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/flotilla-kv/flotilla/client"
	"github.com/flotilla-kv/flotilla/internal/history"
)

// checkOptions are the flags of flotilla check.
type checkOptions struct {
	*globals
	history.Plan
	lease, follower bool
	searchMax       time.Duration
	page            string
}

// checkJSON is what flotilla check found.
type checkJSON struct {
	Verdict string  `json:"verdict"` // linearizable, not linearizable, undecided
	Ops     int     `json:"ops"`
	Unknown int     `json:"unknown"` // of these: with an unknown outcome
	Failed  int     `json:"failed"`  // besides: without effect
	Keys    int     `json:"keys"`
	Seconds float64 `json:"seconds"`
	Key     string  `json:"key"` // that offends; "" if none does
}

func newCheckCommand(g *globals) *cobra.Command {
	o := &checkOptions{globals: g}
	command := &cobra.Command{
		Use:   "check",
		Short: "Record a concurrent history and check that it is linearizable",
		Long: `Check lets --clients read, write, increment, compare-and-swap and delete the same
few keys for --duration, and then looks, key by key, for an order of the
operations that explains every answer. An operation whose outcome stayed unknown
may take effect at any later time or never. Disturb the cluster meanwhile.

If there is no such order it prints the operations of the offending key up to
the first answer without explanation, and exits with 1; so it does if the
search takes longer than --search. The keys are its own and are deleted.`,
		Args: onlyFlags,
		RunE: func(c *cobra.Command, _ []string) error {
			return o.run(c.Context(), c.OutOrStdout(), c.ErrOrStderr())
		},
	}
	flags := command.Flags()
	flags.IntVar(&o.Clients, "clients", 16, "clients that work at the same time")
	flags.IntVar(&o.Keys, "keys", 8, "keys that they share")
	flags.DurationVar(&o.Duration, "duration", 10*time.Second, "for how long to record")
	flags.DurationVar(&o.OpTimeout, "timeout", 5*time.Second, "how long to try one operation")
	flags.BoolVar(&o.lease, "lease", false, "let some reads be answered by leases")
	flags.BoolVar(&o.follower, "follower", false, "let some reads be answered by followers")
	flags.DurationVar(&o.searchMax, "search", time.Minute, "how long to look for an order")
	flags.StringVar(&o.page, "html", "", "draw the offending operations into `FILE`")
	g.addOutputFlag(command)
	return command
}

func (o *checkOptions) run(ctx context.Context, out, notes io.Writer) error {
	if err := o.complete(); err != nil {
		return err
	}
	c, err := o.newClient(client.Options{})
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.WaitMap(ctx); err != nil {
		return explain(o.globals, err)
	}
	h := history.Record(ctx, c, o.Plan)
	if len(h.Ops) == h.Unknown() {
		return explain(o.globals, fmt.Errorf("nothing was answered: %w", orStopped(h.Error)))
	}
	o.cleanUp(c, notes)
	return o.report(out, notes, h, history.Check(h, o.searchMax))
}

func (o *checkOptions) complete() error {
	if err := o.Check(); err != nil {
		return usageError{err}
	}
	if o.searchMax <= 0 {
		return usagef("--search %v: it must be positive", o.searchMax)
	}
	if o.lease {
		o.Reads = append(o.Reads, client.Lease())
	}
	if o.follower {
		o.Reads = append(o.Reads, client.Follower())
	}
	var id [4]byte
	rand.Read(id[:])
	o.Prefix = "check-" + hex.EncodeToString(id[:]) + "-"
	o.Seed = uint64(time.Now().UnixNano())
	return nil
}

var errStopped = errors.New("stopped")

func orStopped(err error) error {
	if err == nil {
		return errStopped
	}
	return err
}

// cleanUp deletes the keys. That it could not is worth a note and no more.
func (o *checkOptions) cleanUp(c *client.Client, notes io.Writer) {
	ctx, cancel := context.WithTimeout(context.Background(), o.OpTimeout)
	defer cancel()
	if _, err := c.Clear(ctx, client.Prefix(o.Prefix)); err != nil {
		fmt.Fprintf(notes, "flotilla: the keys %s* stay: %s\n", o.Prefix, oneLine(err))
	}
}

// report prints what was found; only a linearizable history is no failure.
func (o *checkOptions) report(out, notes io.Writer, h *history.History, f history.Finding) error {
	if err := o.print(out, h, f); err != nil {
		return err
	}
	if h.Error != nil {
		fmt.Fprintf(notes, "flotilla: %d operations failed and %d have an unknown outcome, one of them: %s\n", h.Failed, h.Unknown(), oneLine(h.Error))
	}
	switch f.Verdict {
	case history.Linearizable:
		return nil
	case history.Undecided:
		return fmt.Errorf("undecided after %v: record for a shorter time or give --search more", o.searchMax)
	}
	if o.page != "" {
		if err := o.draw(f); err != nil {
			return fmt.Errorf("not linearizable, and its picture could not be written: %w", err)
		}
	}
	return errors.New("not linearizable: this is a bug of the cluster; please report it with the operations printed")
}

func (o *checkOptions) print(out io.Writer, h *history.History, f history.Finding) error {
	found := checkJSON{
		Verdict: string(f.Verdict),
		Ops:     len(h.Ops),
		Unknown: h.Unknown(),
		Failed:  h.Failed,
		Keys:    countKeys(h),
		Seconds: h.Took.Seconds(),
		Key:     f.Key,
	}
	if o.output == "json" {
		return writeJSON(out, found)
	}
	t := newTable(out, "verdict", "ops", "unknown", "failed", "keys", "seconds")
	t.row(found.Verdict, found.Ops, found.Unknown, found.Failed, found.Keys, fmt.Sprintf("%.1f", found.Seconds))
	if err := t.flush(); err != nil || f.Verdict != history.NotLinearizable {
		return err
	}
	return printOps(out, f)
}

func countKeys(h *history.History) int {
	keys := make(map[string]bool)
	for _, op := range h.Ops {
		keys[op.Key] = true
	}
	return len(keys)
}

// opsShownMax bounds what is printed of an offending key: the last ones, among
// which the trouble is.
const opsShownMax = 40

// printOps prints the operations in the order in which they ended.
func printOps(out io.Writer, f history.Finding) error {
	ops := slices.Clone(f.Ops)
	slices.SortStableFunc(ops, func(a, b history.Op) int { return cmp.Compare(a.End, b.End) })
	fmt.Fprintf(out, "\nkey %s: no order of its operations explains the last answer\n", f.Key)
	if more := len(ops) - opsShownMax; more > 0 {
		fmt.Fprintf(out, "(%d operations before these, or with an unknown outcome and begun before them, are left out; --html has all)\n", more)
		ops = lastOps(ops)
	}
	t := newTable(out, "client", "began ms", "ended ms", "operation", "answer")
	for _, op := range ops {
		t.row(op.Client, millis(op.Begin), millis(op.End), op.Call(), op.Answer())
	}
	return t.flush()
}

// lastOps are the last that were answered, and the open ones that began among
// them. ops are in the order in which they ended, the open ones last.
func lastOps(ops []history.Op) []history.Op {
	answered := slices.IndexFunc(ops, func(op history.Op) bool { return op.End == history.Open })
	if answered < 0 {
		answered = len(ops)
	}
	shown := slices.Clone(ops[max(0, answered-opsShownMax):answered])
	for _, op := range ops[answered:] {
		if len(shown) > 0 && op.Begin >= shown[0].Begin {
			shown = append(shown, op)
		}
	}
	return shown
}

func millis(d time.Duration) string {
	if d == history.Open {
		return "never"
	}
	return fmt.Sprintf("%.3f", float64(d.Microseconds())/1000)
}

func (o *checkOptions) draw(f history.Finding) error {
	file, err := os.Create(o.page)
	if err != nil {
		return err
	}
	return errors.Join(f.Draw(file, o.searchMax), file.Close())
}
