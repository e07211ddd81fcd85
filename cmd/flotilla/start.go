package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/flotilla-kv/flotilla/node"
)

// stopTimeout bounds a graceful stop: hand-over of leaderships, flush, close.
const stopTimeout = 20 * time.Second

// failedStopTimeout bounds the stop of a node that has failed: what is under
// way there gets no answer any more, and its clients had better look elsewhere.
const failedStopTimeout = time.Second

// logFlags say how a server logs.
type logFlags struct {
	level  string
	format string
}

func (l *logFlags) add(flags *pflag.FlagSet, level string) {
	flags.StringVar(&l.level, "log-level", level, "`debug|info|warn|error`")
	flags.StringVar(&l.format, "log-format", "text", "`text|json`")
}

func (l *logFlags) logger(w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(l.level)); err != nil {
		return nil, usagef("--log-level %q: it is debug, info, warn or error", l.level)
	}
	options := &slog.HandlerOptions{Level: level}
	switch l.format {
	case "text":
		return slog.New(slog.NewTextHandler(w, options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, options)), nil
	}
	return nil, usagef("--log-format %q: it is text or json", l.format)
}

func newStartCommand(g *globals) *cobra.Command {
	var (
		options  node.Options
		log      logFlags
		insecure bool
		keyFile  string
	)
	command := &cobra.Command{
		Use:   "start",
		Short: "Run one node of a cluster",
		Long: `Start runs one node in the foreground. It prints "flotilla: ready" once it
serves, or "flotilla: waiting for init" while the cluster has not been made. A
node that was registered finds its cluster again by itself; --join is for the
first time.

Ports that are not given follow --listen: gossip +1, RESP +2, HTTP +3.

With --tls-ca, --tls-cert and --tls-key, gRPC, RESP and HTTP speak TLS 1.3 only.
The certificate has to name the host that others reach this node at (--advertise,
or that of --listen) and be good for servers and clients, and be signed by a CA
in --tls-ca. Nodes and gRPC clients show certificates to each other. RESP clients
need one only if there is no --resp-password; HTTP clients need none. Files that
change are taken without a restart. Gossip is encrypted by --gossip-key-file.

Beyond loopback a port without TLS, or gossip without a key, demands --insecure.`,
		Args: onlyFlags,
		RunE: func(c *cobra.Command, _ []string) error {
			logger, err := log.logger(c.ErrOrStderr())
			if err != nil {
				return err
			}
			options.Logger = logger.With("node", options.Name)
			if err := followListen(&options); err != nil {
				return usageError{err}
			}
			if options.TLS = g.tls; options.TLS.Check() != nil {
				return usageError{options.TLS.Check()}
			}
			if options.GossipKey, err = readKey(keyFile); err != nil {
				return err
			}
			if err := checkExposure(&options, insecure); err != nil {
				return err
			}
			raiseProcs()
			return serve(c.Context(), c.OutOrStdout(), options)
		},
	}
	flags := command.Flags()
	flags.StringVar(&options.Name, "name", "", "the node's `NAME`, unique in the cluster")
	flags.StringVar(&options.DataDir, "data-dir", "", "where it keeps its data")
	flags.StringVar(&options.Listen, "listen", "", "`HOST:PORT` of gRPC: nodes and clients")
	flags.StringVar(&options.GossipListen, "gossip-listen", "", "`HOST:PORT` of gossip (default: --listen's port + 1)")
	flags.StringVar(&options.RespListen, "resp-listen", "", "`HOST:PORT` of the Redis protocol (default: + 2)")
	flags.StringVar(&options.HTTPListen, "http-listen", "", "`HOST:PORT` of metrics and health (default: + 3)")
	flags.StringVar(&options.Advertise, "advertise", "", "`HOST` that others reach this node at (default: --listen's)")
	flags.StringSliceVar(&options.Join, "join", nil, "gossip addresses `HOST:PORT[,...]` of other nodes; unreachable ones are retried")
	flags.StringVar(&options.Zone, "zone", "", "failure zone; replicas of a group are spread over zones")
	flags.StringVar(&keyFile, "gossip-key-file", "", "`FILE` with 16, 24 or 32 bytes that encrypt gossip, the same for all nodes")
	flags.StringVar(&options.RespPassword, "resp-password", "", "what AUTH and HELLO must present")
	flags.BoolVar(&options.Pprof, "pprof", false, "serve /debug/pprof on the HTTP port")
	flags.BoolVar(&insecure, "insecure", false, "listen beyond loopback without TLS, or without a gossip key")
	log.add(flags, "info")
	for _, name := range []string{"name", "data-dir", "listen"} {
		if err := command.MarkFlagRequired(name); err != nil {
			panic(err) // a name above is misspelt
		}
	}
	return command
}

// followListen fills the ports that were not given from --listen's.
func followListen(o *node.Options) error {
	host, text, err := net.SplitHostPort(o.Listen)
	if err != nil {
		return fmt.Errorf("--listen %q: it is HOST:PORT", o.Listen)
	}
	port, err := strconv.Atoi(text)
	if err != nil || port < 0 || port > 65535-3 {
		return fmt.Errorf("--listen %q: the port is 0 to %d", o.Listen, 65535-3)
	}
	for i, listen := range []*string{&o.GossipListen, &o.RespListen, &o.HTTPListen} {
		switch {
		case *listen != "":
			if _, _, err := net.SplitHostPort(*listen); err != nil {
				return fmt.Errorf("%q is not HOST:PORT", *listen)
			}
		case port == 0:
			*listen = net.JoinHostPort(host, "0")
		default:
			*listen = net.JoinHostPort(host, strconv.Itoa(port+1+i))
		}
	}
	return nil
}

func readKey(file string) ([]byte, error) {
	if file == "" {
		return nil, nil
	}
	key, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("--gossip-key-file: %w", err)
	}
	key = []byte(strings.TrimRight(string(key), "\r\n"))
	if n := len(key); n != 16 && n != 24 && n != 32 {
		return nil, fmt.Errorf("--gossip-key-file %s holds %d bytes: a key has 16, 24 or 32", file, n)
	}
	return key, nil
}

// procsMin is what GOMAXPROCS is raised to: a thread in fdatasync keeps its P
// until the runtime takes it back, and two Ps are soon both gone.
const procsMin = 8

// raiseProcs does so unless the environment decides.
func raiseProcs() {
	if os.Getenv("GOMAXPROCS") == "" && runtime.GOMAXPROCS(0) < procsMin {
		runtime.GOMAXPROCS(procsMin)
	}
}

// serve runs one node until it is told to stop or fails.
func serve(ctx context.Context, out io.Writer, options node.Options) error {
	n, err := node.Start(options)
	if err != nil {
		return err
	}
	printAddresses(out, n)
	readyCtx, cancelReady := context.WithCancel(ctx)
	announced := make(chan struct{})
	go func() {
		defer close(announced)
		announce(readyCtx, out, n)
	}()
	var failure error
	select {
	case <-ctx.Done():
	case failure = <-n.Failed():
	}
	cancelReady()
	<-announced
	if failure != nil {
		_ = stopNode(n, failedStopTimeout, false) // that a failed store cannot be closed tidily is nothing new
		return failure
	}
	return stopNode(n, stopTimeout, true)
}

// announce prints what the node waits for until it is ready.
func announce(ctx context.Context, out io.Writer, n *node.Node) {
	err := n.WaitReady(ctx, func(waiting string) {
		fmt.Fprintf(out, "flotilla: waiting for %s\n", waiting)
	})
	if err == nil {
		fmt.Fprintln(out, "flotilla: ready")
	}
}

// stopNode stops a node within a time; with handOver its leaderships go to
// other nodes first, so that no request fails.
func stopNode(n *node.Node, within time.Duration, handOver bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	if handOver {
		n.HandOver(ctx)
	}
	return n.Stop(ctx)
}

func printAddresses(out io.Writer, n *node.Node) {
	a := n.Addresses()
	fmt.Fprintf(out, "%s: grpc %s  gossip %s  resp %s  http %s\n", a.Name, a.GRPC, a.Gossip, a.RESP, a.HTTP)
}
