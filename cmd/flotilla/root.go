package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"github.com/flotilla-kv/flotilla/internal/tlsfiles"
)

// Exit codes of the binary.
const (
	exitOK     = 0
	exitFailed = 1 // it failed: one line on stderr says what, and what to do
	exitUsage  = 2 // the command line is wrong
)

// usageError marks errors of the command line.
type usageError struct{ error }

// usagef makes a usage error.
func usagef(format string, args ...any) error {
	return usageError{fmt.Errorf(format, args...)}
}

// errSilent fails with exit code 1 when the output has said everything.
var errSilent = errors.New("failed")

// run executes one command line and returns its exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRootCommand()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	var usage usageError
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errSilent):
		return exitFailed
	case errors.As(err, &usage), isCobraUsage(err):
		fmt.Fprintf(stderr, "flotilla: %s (see flotilla --help)\n", oneLine(err))
		return exitUsage
	default:
		fmt.Fprintf(stderr, "flotilla: %s\n", oneLine(err))
		return exitFailed
	}
}

// isCobraUsage recognises the errors that cobra itself makes of a command
// line; they carry no type.
func isCobraUsage(err error) bool {
	text := err.Error()
	for _, prefix := range []string{"unknown command", "required flag", "accepts ", "requires at least", "invalid argument", "if any flags in the group", "at least one of the flags"} {
		if strings.HasPrefix(text, prefix) {
			return true
		}
	}
	return false
}

func oneLine(err error) string {
	return strings.Join(strings.Fields(err.Error()), " ")
}

// globals are the flags that every command has.
type globals struct {
	server string
	tls    tlsfiles.Paths
	output string
}

// serverDefault is where a command looks for a cluster: the environment, or
// the first node of a development cluster.
func serverDefault() string {
	if server := os.Getenv("FLOTILLA_SERVER"); server != "" {
		return server
	}
	return "127.0.0.1:7000"
}

func newRootCommand() *cobra.Command {
	g := new(globals)
	root := &cobra.Command{
		Use:   "flotilla",
		Short: "A linearizable, horizontally scaled key-value store",
		Long: `Flotilla is a linearizable, horizontally scaled key-value store: a
configuration Raft group assigns hash shards of the key space to many replica
Raft groups.

  flotilla dev      runs a whole cluster on this machine
  flotilla start    runs one node of a cluster
  flotilla status   shows what is there`,
		Version:       version(),
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.PersistentFlags().StringVar(&g.server, "server", serverDefault(), "`HOST:PORT[,...]` of nodes to ask (or FLOTILLA_SERVER)")
	addTLSFlags(root.PersistentFlags(), &g.tls)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(
		newDevCommand(),
		newStartCommand(g),
		newInitCommand(g),
		newStatusCommand(g),
		newNodeCommand(g),
		newGroupCommand(g),
		newShardCommand(g),
		newConfigCommand(g),
		newMoveCommand(g),
		newPlanCommand(g),
		newExplainCommand(g),
		newEventsCommand(g),
		newBenchCommand(g),
		newCheckCommand(g),
	)
	root.AddCommand(newDataCommands(g)...)
	return root
}

// addOutputFlag adds the flag of every reading command.
func (g *globals) addOutputFlag(command *cobra.Command) {
	command.Flags().StringVarP(&g.output, "output", "o", "table", "how to print: `table|json`")
	inner := command.RunE
	command.RunE = func(c *cobra.Command, args []string) error {
		if g.output != "table" && g.output != "json" {
			return usagef("-o %q: it is table or json", g.output)
		}
		return inner(c, args)
	}
}

// servers is the list behind --server.
func (g *globals) servers() ([]string, error) {
	var list []string
	for s := range strings.SplitSeq(g.server, ",") {
		if s = strings.TrimSpace(s); s != "" {
			list = append(list, s)
		}
	}
	if len(list) == 0 {
		return nil, usagef("--server is empty: give HOST:PORT of a node")
	}
	return list, nil
}

// version is the module's, as Go stamped it.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "devel"
	}
	return strings.Trim(info.Main.Version, "()")
}
