package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/flotilla-kv/flotilla/client"
)

// dataTimeoutDefault bounds a data command that is given no --timeout.
const dataTimeoutDefault = 10 * time.Second

// dataFlags are the flags of every data command.
type dataFlags struct {
	*globals
	timeout time.Duration
}

// add gives a command what the data commands share: --timeout, and a client
// that lives as long as the command. The flag -o is up to the caller.
func (d *dataFlags) add(command *cobra.Command, run func(ctx context.Context, c *client.Client, out io.Writer, args []string) error) *cobra.Command {
	command.Flags().DurationVar(&d.timeout, "timeout", dataTimeoutDefault, "how long to try")
	command.RunE = func(cmd *cobra.Command, args []string) error {
		if d.timeout <= 0 {
			return usagef("--timeout %s: it must be positive", d.timeout)
		}
		c, err := d.newClient(client.Options{Timeout: d.timeout})
		if err != nil {
			return err
		}
		defer c.Close()
		ctx, cancel := context.WithTimeout(cmd.Context(), d.timeout)
		defer cancel()
		return explain(d.globals, run(ctx, c, cmd.OutOrStdout(), args))
	}
	return command
}

// explain adds what to do where no node could be asked.
func explain(g *globals, err error) error {
	if !errors.Is(err, client.ErrUnavailable) {
		return err
	}
	if advice := tlsAdvice(err.Error(), g.tls.Given()); advice != "" {
		return fmt.Errorf("%s: %s", g.server, advice)
	}
	return fmt.Errorf("%w; is a node up at %s? (--server)", err, g.server)
}

func newDataCommands(g *globals) []*cobra.Command {
	return []*cobra.Command{
		newGetCommand(g), newPutCommand(g), newDelCommand(g), newCasCommand(g),
		newIncrCommand(g), newScanCommand(g), newTxnCommand(g), newWatchCommand(g),
	}
}

// itemJSON is a key as get and scan print it. A value that is no text is
// written in base64, and encoding says so.
type itemJSON struct {
	Key       string `json:"key"`
	Value     string `json:"value"`
	Encoding  string `json:"encoding"`
	Version   uint64 `json:"version"`
	ExpiresAt string `json:"expires_at"`
}

func toItemJSON(item client.Item) itemJSON {
	j := itemJSON{Key: item.Key, Value: string(item.Value), Encoding: "utf-8", Version: item.Version}
	if !utf8.Valid(item.Value) {
		j.Value, j.Encoding = base64.StdEncoding.EncodeToString(item.Value), "base64"
	}
	if !item.Expires.IsZero() {
		j.ExpiresAt = item.Expires.UTC().Format(time.RFC3339Nano)
	}
	return j
}

// writeValue writes the bytes as they are, and a newline on a terminal.
func writeValue(out io.Writer, value []byte) error {
	if _, err := out.Write(value); err != nil {
		return err
	}
	if file, ok := out.(*os.File); ok && term.IsTerminal(int(file.Fd())) {
		_, err := fmt.Fprintln(out)
		return err
	}
	return nil
}

func newGetCommand(g *globals) *cobra.Command {
	d := &dataFlags{globals: g}
	var (
		lease, follower bool
		stale           time.Duration
	)
	command := d.add(&cobra.Command{
		Use:   "get KEY",
		Short: "Print a key's value as it is",
		Long: `Get prints the value's bytes, and a newline only on a terminal. An absent key
exits with 1. Reads are linearizable unless a flag asks for less by name.`,
		Args: cobra.ExactArgs(1),
	}, func(ctx context.Context, c *client.Client, out io.Writer, args []string) error {
		var options []client.ReadOption
		if lease {
			options = append(options, client.Lease())
		}
		if follower {
			options = append(options, client.Follower())
		}
		if err := notNegative("--stale", stale); err != nil {
			return err
		}
		if stale > 0 {
			options = append(options, client.Stale(stale))
		}
		item, err := c.Get(ctx, args[0], options...)
		if err != nil {
			return err
		}
		if g.output == "json" {
			return writeJSON(out, toItemJSON(item))
		}
		return writeValue(out, item.Value)
	})
	command.Flags().BoolVar(&lease, "lease", false, "let the leader answer by its lease")
	command.Flags().BoolVar(&follower, "follower", false, "let any replica answer (linearizable)")
	command.Flags().DurationVar(&stale, "stale", 0, "let any replica answer that is at most this far behind")
	command.MarkFlagsMutuallyExclusive("lease", "follower", "stale")
	g.addOutputFlag(command)
	return command
}

func newPutCommand(g *globals) *cobra.Command {
	d := &dataFlags{globals: g}
	var (
		ttl               time.Duration
		ifAbsent, ifThere bool
		ifVersion         int64
	)
	command := d.add(&cobra.Command{
		Use:   "put KEY VALUE",
		Short: "Write a key; VALUE - reads standard input",
		Args:  cobra.ExactArgs(2),
	}, func(ctx context.Context, c *client.Client, _ io.Writer, args []string) error {
		value, err := valueOf(args[1])
		if err != nil {
			return err
		}
		var options []client.PutOption
		switch {
		case ifAbsent:
			options = append(options, client.IfAbsent())
		case ifThere:
			options = append(options, client.IfPresent())
		case ifVersion >= 0:
			options = append(options, client.IfVersion(uint64(ifVersion)))
		}
		if err := notNegative("--ttl", ttl); err != nil {
			return err
		}
		if ttl > 0 {
			options = append(options, client.TTL(ttl))
		}
		_, err = c.Put(ctx, args[0], value, options...)
		return err
	})
	command.Flags().DurationVar(&ttl, "ttl", 0, "let the key expire after this")
	command.Flags().BoolVar(&ifAbsent, "if-absent", false, "only if the key is absent")
	command.Flags().BoolVar(&ifThere, "if-present", false, "only if the key is present")
	command.Flags().Int64Var(&ifVersion, "if-version", -1, "only over this `VERSION` (0: absent)")
	command.MarkFlagsMutuallyExclusive("if-absent", "if-present", "if-version")
	return command
}

// notNegative refuses a duration that a flag cannot have; 0 is as if it were not
// given.
func notNegative(flag string, d time.Duration) error {
	if d < 0 {
		return usagef("%s %s: it must not be negative", flag, d)
	}
	return nil
}

// valueOf is the argument, or standard input for "-".
func valueOf(arg string) ([]byte, error) {
	if arg != "-" {
		return []byte(arg), nil
	}
	return io.ReadAll(os.Stdin)
}

func newDelCommand(g *globals) *cobra.Command {
	d := &dataFlags{globals: g}
	return d.add(&cobra.Command{
		Use:   "del KEY...",
		Short: "Delete keys and print how many there were",
		Args:  cobra.MinimumNArgs(1),
	}, func(ctx context.Context, c *client.Client, out io.Writer, args []string) error {
		existed := 0
		for _, key := range args {
			result, err := c.Delete(ctx, key)
			if err != nil {
				return err
			}
			if result.Existed {
				existed++
			}
		}
		_, err := fmt.Fprintln(out, existed)
		return err
	})
}

func newCasCommand(g *globals) *cobra.Command {
	d := &dataFlags{globals: g}
	return d.add(&cobra.Command{
		Use:   "cas KEY OLD NEW",
		Short: "Write a key only if its value is OLD",
		Args:  cobra.ExactArgs(3),
	}, func(ctx context.Context, c *client.Client, _ io.Writer, args []string) error {
		_, err := c.CompareAndSwap(ctx, args[0], []byte(args[1]), []byte(args[2]))
		if errors.Is(err, client.ErrConditionFailed) {
			return fmt.Errorf("%s is not %q: nothing was changed", args[0], args[1])
		}
		return err
	})
}

func newIncrCommand(g *globals) *cobra.Command {
	d := &dataFlags{globals: g}
	return d.add(&cobra.Command{
		Use:   "incr KEY [BY]",
		Short: "Add to an integer and print the result",
		Args:  cobra.RangeArgs(1, 2),
	}, func(ctx context.Context, c *client.Client, out io.Writer, args []string) error {
		by := int64(1)
		if len(args) == 2 {
			var err error
			if by, err = strconv.ParseInt(args[1], 10, 64); err != nil {
				return usagef("BY %q is no 64-bit integer", args[1])
			}
		}
		value, err := c.Incr(ctx, args[0], by)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(out, value)
		return err
	})
}

func newScanCommand(g *globals) *cobra.Command {
	d := &dataFlags{globals: g}
	var (
		prefix, start, end string
		limit              int
		keysOnly           bool
	)
	command := d.add(&cobra.Command{
		Use:   "scan",
		Short: "Stream keys and values in key order over all shards",
		Long: `Scan prints KEY, a tab and the value's bytes, a line each; with -o json one
object a line.`,
		Args: onlyFlags,
	}, func(ctx context.Context, c *client.Client, out io.Writer, _ []string) error {
		options := []client.ScanOption{client.Prefix(prefix), client.Limit(limit)}
		if start != "" || end != "" {
			options = append(options, client.Range(start, end))
		}
		if keysOnly {
			options = append(options, client.KeysOnly())
		}
		print := printItem
		switch {
		case g.output == "json":
			print = printItemJSON
		case keysOnly:
			print = printKey
		}
		for item, err := range c.Scan(ctx, options...) {
			if err != nil {
				return err
			}
			if err := print(out, item); err != nil {
				return err
			}
		}
		return nil
	})
	command.Flags().StringVar(&prefix, "prefix", "", "only keys that begin with it")
	command.Flags().StringVar(&start, "start", "", "from this key on")
	command.Flags().StringVar(&end, "end", "", "up to this key, exclusive")
	command.Flags().IntVar(&limit, "limit", 0, "keys at most (0: all)")
	command.Flags().BoolVar(&keysOnly, "keys-only", false, "leave the values out")
	g.addOutputFlag(command)
	return command
}

func printItem(out io.Writer, item client.Item) error {
	_, err := fmt.Fprintf(out, "%s\t%s\n", item.Key, item.Value)
	return err
}

func printKey(out io.Writer, item client.Item) error {
	_, err := fmt.Fprintln(out, item.Key)
	return err
}

func printItemJSON(out io.Writer, item client.Item) error {
	return writeJSONLine(out, toItemJSON(item))
}
