package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/flotilla-kv/flotilla/client"
)

// changeJSON is a line of watch. What an event does not have is empty.
type changeJSON struct {
	Kind      string `json:"kind"`
	Shard     int    `json:"shard"`
	Version   uint64 `json:"version"`
	Key       string `json:"key"`
	Value     string `json:"value"`
	Encoding  string `json:"encoding"`
	ExpiresAt string `json:"expires_at"`
	End       string `json:"end"`    // of clear: before this key
	Prefix    string `json:"prefix"` // of clear: only keys with it
	Token     string `json:"token"`  // with --tokens: --from goes on behind this event
}

func toChangeJSON(e client.Event) changeJSON {
	j := changeJSON{Kind: e.Kind.String(), Shard: e.Shard, Version: e.Version, Key: e.Key, Value: string(e.Value), Encoding: "utf-8", End: e.End, Prefix: e.Prefix}
	if !utf8.Valid(e.Value) {
		j.Value, j.Encoding = base64.StdEncoding.EncodeToString(e.Value), "base64"
	}
	if !e.Expires.IsZero() {
		j.ExpiresAt = e.Expires.UTC().Format(time.RFC3339Nano)
	}
	return j
}

// printEvent prints kind, version, key and, of a put, the value's bytes; of a
// clear its bounds.
func printEvent(out io.Writer, e client.Event) error {
	var err error
	switch e.Kind {
	case client.EventPut:
		_, err = fmt.Fprintf(out, "%v\t%d\t%s\t%s\n", e.Kind, e.Version, e.Key, e.Value)
	case client.EventDelete, client.EventExpired:
		_, err = fmt.Fprintf(out, "%v\t%d\t%s\n", e.Kind, e.Version, e.Key)
	case client.EventClear:
		_, err = fmt.Fprintf(out, "%v\t%d\tfrom %q to %q, prefix %q\n", e.Kind, e.Version, e.Key, e.End, e.Prefix)
	default:
		_, err = fmt.Fprintf(out, "%v\t%d\tshard %d\n", e.Kind, e.Version, e.Shard)
	}
	return err
}

// watchFlags are those of watch.
type watchFlags struct {
	*globals
	prefix  string
	from    string
	state   bool
	tokens  bool
	timeout time.Duration
}

func newWatchCommand(g *globals) *cobra.Command {
	f := &watchFlags{globals: g}
	command := &cobra.Command{
		Use:   "watch KEY | --prefix PREFIX",
		Short: "Stream what happens to a key, or to the keys with a prefix",
		Long: `Watch prints a line an event until it is interrupted: kind, version, key and
value; with -o json one object a line. Events of a shard come in order, each
once, through moves of shards and changes of leaders. Where the cluster does not
keep the past any more a reset is printed, then the keys that are there, then
complete. When it ends it says on stderr how to go on.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if (len(args) == 1) == cmd.Flags().Changed("prefix") {
				return usagef("give either KEY or --prefix")
			}
			return explain(g, f.run(cmd, args))
		},
	}
	command.Flags().StringVar(&f.prefix, "prefix", "", "the keys that begin with it (\"\": all)")
	command.Flags().StringVar(&f.from, "from", "", "go on behind this `TOKEN|VERSION` (a version: of KEY)")
	command.Flags().BoolVar(&f.state, "state", false, "begin with the keys that are there")
	command.Flags().BoolVar(&f.tokens, "tokens", false, "with -o json: a token with each event")
	command.Flags().DurationVar(&f.timeout, "timeout", dataTimeoutDefault, "how long to try to begin")
	command.MarkFlagsMutuallyExclusive("from", "state")
	g.addOutputFlag(command)
	return command
}

// options are where the watch begins.
func (f *watchFlags) options(oneKey bool) ([]client.WatchOption, error) {
	if f.state {
		return []client.WatchOption{client.WithState()}, nil
	}
	if f.from == "" {
		return nil, nil
	}
	if version, err := strconv.ParseUint(f.from, 10, 64); err == nil {
		if !oneKey {
			return nil, usagef("--from %s: a prefix is watched from a token, a version is that of one key", f.from)
		}
		return []client.WatchOption{client.FromVersion(version)}, nil
	}
	token, err := base64.RawURLEncoding.DecodeString(f.from)
	if err != nil {
		return nil, usagef("--from %q is neither a version nor a token", f.from)
	}
	return []client.WatchOption{client.FromToken(token)}, nil
}

func (f *watchFlags) run(cmd *cobra.Command, args []string) error {
	if f.timeout <= 0 {
		return usagef("--timeout %s: it must be positive", f.timeout)
	}
	options, err := f.options(len(args) == 1)
	if err != nil {
		return err
	}
	c, err := f.newClient(client.Options{Timeout: f.timeout})
	if err != nil {
		return err
	}
	defer c.Close()
	ctx := cmd.Context()
	var w *client.Watcher
	if len(args) == 1 {
		w, err = c.Watch(ctx, args[0], options...)
	} else {
		w, err = c.WatchPrefix(ctx, f.prefix, options...)
	}
	if err != nil {
		return err
	}
	defer w.Close()
	token, err := f.print(ctx, w, cmd.OutOrStdout())
	fmt.Fprintf(cmd.ErrOrStderr(), "to go on: --from %s\n", base64.RawURLEncoding.EncodeToString(token))
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return nil // it was interrupted: that is how it ends
	}
	return err
}

// print prints events until one cannot be had or printed, and returns the token
// behind the last one that was.
func (f *watchFlags) print(ctx context.Context, w *client.Watcher, out io.Writer) (token []byte, err error) {
	for {
		token = w.Token() // an event that is not printed comes again
		e, err := w.Next(ctx)
		if err != nil {
			return w.Token(), err
		}
		if f.output != "json" {
			err = printEvent(out, e)
		} else {
			line := toChangeJSON(e)
			if f.tokens {
				line.Token = base64.RawURLEncoding.EncodeToString(w.Token())
			}
			err = writeJSONLine(out, line)
		}
		if err != nil {
			return token, err
		}
	}
}
