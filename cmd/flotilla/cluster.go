package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

func newInitCommand(g *globals) *cobra.Command {
	request := new(flotillav1.InitRequest)
	command := &cobra.Command{
		Use:   "init",
		Short: "Make a cluster of the nodes that were started (once per cluster)",
		Long: `Init makes the node asked the cluster's first and the config group's first
replica. The groups are created as soon as as many nodes as --replicas are
registered. A second init fails and changes nothing.`,
		Args: onlyFlags,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := checkInit(request); err != nil {
				return usageError{err}
			}
			answer, err := ask(c.Context(), g, func(ctx context.Context, cluster flotillav1.ClusterClient) (*flotillav1.InitResponse, error) {
				return cluster.Init(ctx, request)
			})
			if err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "cluster %s\n", answer.ClusterId)
			if answer.Warning != "" {
				fmt.Fprintf(c.ErrOrStderr(), "flotilla: warning: %s\n", answer.Warning)
			}
			return nil
		},
	}
	command.Flags().Uint32Var(&request.Shards, "shards", shardmap.ShardsDefault, "shards of the key space: a power of two, fixed for ever")
	command.Flags().Uint32Var(&request.Replicas, "replicas", 3, "replicas of each group")
	command.Flags().Uint32Var(&request.Groups, "groups", 4, "replica groups to begin with")
	replaceAfter := command.Flags().Duration("replace-after", 5*time.Minute, "a node silent for so long has its replicas made anew elsewhere")
	inner := command.RunE
	command.RunE = func(c *cobra.Command, args []string) error {
		if *replaceAfter < time.Second {
			return usagef("--replace-after %v: it is at least 1s", *replaceAfter)
		}
		request.ReplaceAfterMs = uint64(replaceAfter.Milliseconds())
		return inner(c, args)
	}
	return command
}

func checkInit(r *flotillav1.InitRequest) error {
	if err := shardmap.CheckShards(int(r.Shards)); err != nil {
		return fmt.Errorf("--shards: %w", err)
	}
	if r.Replicas == 0 || r.Replicas > 9 {
		return fmt.Errorf("--replicas %d: it must be 1 to 9", r.Replicas)
	}
	if r.Groups == 0 || r.Groups > r.Shards {
		return fmt.Errorf("--groups %d: it must be 1 to the number of shards (%d)", r.Groups, r.Shards)
	}
	return nil
}

// getStatus asks for the cluster's status.
func getStatus(ctx context.Context, g *globals, shards bool) (*flotillav1.ClusterStatus, error) {
	return getStatusWith(ctx, g, &flotillav1.GetStatusRequest{Shards: shards})
}

func getStatusWith(ctx context.Context, g *globals, r *flotillav1.GetStatusRequest) (*flotillav1.ClusterStatus, error) {
	return ask(ctx, g, func(ctx context.Context, cluster flotillav1.ClusterClient) (*flotillav1.ClusterStatus, error) {
		return cluster.GetStatus(ctx, r)
	})
}

func newStatusCommand(g *globals) *cobra.Command {
	command := &cobra.Command{
		Use:   "status",
		Short: "Show nodes, groups and what the cluster waits for",
		Args:  onlyFlags,
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := getStatus(c.Context(), g, false)
			if err != nil {
				return err
			}
			if g.output == "json" {
				return writeJSON(c.OutOrStdout(), toStatusJSON(s))
			}
			return printStatus(c.OutOrStdout(), s)
		},
	}
	g.addOutputFlag(command)
	return command
}

func printStatus(out io.Writer, s *flotillav1.ClusterStatus) error {
	fmt.Fprintf(out, "cluster %s  config %d  shards %d\n\n", s.ClusterId, s.ConfigNum, s.ShardsTotal)
	if err := printNodes(out, s.Nodes); err != nil {
		return err
	}
	fmt.Fprintln(out)
	if err := printGroups(out, s.Groups); err != nil {
		return err
	}
	if len(s.Moves) > 0 {
		fmt.Fprintln(out)
		if err := printMoves(out, s.Moves); err != nil {
			return err
		}
	}
	for _, what := range s.WaitingFor {
		fmt.Fprintf(out, "\nwaiting for: %s\n", what)
	}
	return nil
}

func printNodes(out io.Writer, nodes []*flotillav1.NodeStatus) error {
	t := newTable(out, "node", "name", "state", "zone", "addr", "resp", "http", "leaders", "replicas")
	for _, n := range nodes {
		zone := n.Node.GetZone()
		if zone == "" {
			zone = "-"
		}
		t.row(n.Node.GetId(), n.Node.GetName(), n.Node.GetState(), zone, n.Node.GetAddr(), n.Node.GetRespAddr(), n.Node.GetHttpAddr(), known(n.Leaders), known(n.Replicas))
	}
	return t.flush()
}

func printGroups(out io.Writer, groups []*flotillav1.GroupStatus) error {
	t := newTable(out, "group", "leader", "term", "shards", "replicas (node:role, lag)")
	for _, group := range groups {
		var replicas []string
		for _, r := range group.Replicas {
			replicas = append(replicas, fmt.Sprintf("%d:%s,%s", r.NodeId, r.Role, known(r.MatchLag)))
		}
		t.row(group.Id, named(group.LeaderNode), known(group.Term), group.Shards, strings.Join(replicas, " "))
	}
	return t.flush()
}

// newListCommand shows one part of the status, as JSON or as a table.
func newListCommand(g *globals, short string, shards bool, part func(*flotillav1.ClusterStatus) any, print func(io.Writer, *flotillav1.ClusterStatus) error) *cobra.Command {
	list := &cobra.Command{
		Use:   "list",
		Short: short,
		Args:  onlyFlags,
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := getStatus(c.Context(), g, shards)
			if err != nil {
				return err
			}
			if g.output == "json" {
				return writeJSON(c.OutOrStdout(), part(s))
			}
			return print(c.OutOrStdout(), s)
		},
	}
	g.addOutputFlag(list)
	return list
}

func printShards(out io.Writer, s *flotillav1.ClusterStatus) error {
	t := newTable(out, "shard", "group", "generation", "state", "keys", "bytes")
	for _, s := range s.Shards {
		t.row(s.Shard, named(s.Group), s.Generation, s.State, known(s.Keys), known(s.Bytes))
	}
	return t.flush()
}

func newNodeCommand(g *globals) *cobra.Command {
	node := &cobra.Command{Use: "node", Short: "The nodes of the cluster", Args: cobra.NoArgs, RunE: needSubcommand}
	list := newListCommand(g, "List the nodes", false,
		func(s *flotillav1.ClusterStatus) any { return each(s.Nodes, toNodeJSON) },
		func(out io.Writer, s *flotillav1.ClusterStatus) error { return printNodes(out, s.Nodes) })
	node.AddCommand(list, newDrainCommand(g), newRemoveNodeCommand(g))
	return node
}

func newGroupCommand(g *globals) *cobra.Command {
	group := &cobra.Command{Use: "group", Short: "The Raft groups of the cluster", Args: cobra.NoArgs, RunE: needSubcommand}
	list := newListCommand(g, "List the groups, their leaders and replicas", false,
		func(s *flotillav1.ClusterStatus) any { return each(s.Groups, toGroupJSON) },
		func(out io.Writer, s *flotillav1.ClusterStatus) error { return printGroups(out, s.Groups) })
	group.AddCommand(list, newAddGroupCommand(g), newRemoveGroupCommand(g), newTransferCommand(g), newRecoverCommand(g))
	return group
}

func newShardCommand(g *globals) *cobra.Command {
	shard := &cobra.Command{Use: "shard", Short: "The shards of the key space", Args: cobra.NoArgs, RunE: needSubcommand}
	list := newListCommand(g, "List the shards, who serves them and roughly what is in them", true,
		func(s *flotillav1.ClusterStatus) any { return each(s.Shards, toShardJSON) },
		printShards)
	addHotFlag(g, list)
	locate := &cobra.Command{
		Use:   "locate KEY",
		Short: "Show the shard, group and leader of a key",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if args[0] == "" {
				return usagef("the key is empty")
			}
			s, err := getStatus(c.Context(), g, true)
			if err != nil {
				return err
			}
			where, err := locate(s, args[0])
			if err != nil {
				return err
			}
			if g.output == "json" {
				return writeJSON(c.OutOrStdout(), where)
			}
			t := newTable(c.OutOrStdout(), "key", "shard", "group", "leader node")
			t.row(where.Key, where.Shard, named(where.Group), named(where.LeaderNode))
			return t.flush()
		},
	}
	g.addOutputFlag(locate)
	shard.AddCommand(list, locate, newShardMoveCommand(g))
	return shard
}

// locate routes a key by the status as a client does by the map.
func locate(s *flotillav1.ClusterStatus, key string) (locateJSON, error) {
	if s.ShardsTotal == 0 {
		return locateJSON{}, fmt.Errorf("the cluster has no shards yet: run flotilla init")
	}
	where := locateJSON{Key: key, Shard: uint64(shardmap.Shard([]byte(key), int(s.ShardsTotal)))}
	for _, shard := range s.Shards {
		if shard.Shard == where.Shard {
			where.Group = shard.Group
		}
	}
	for _, group := range s.Groups {
		if group.Id == where.Group {
			where.LeaderNode = group.LeaderNode
		}
	}
	return where, nil
}

func newConfigCommand(g *globals) *cobra.Command {
	config := &cobra.Command{Use: "config", Short: "The numbered configs: which group was to serve which shard", Args: cobra.NoArgs, RunE: needSubcommand}
	show := &cobra.Command{
		Use:   "show [NUM]",
		Short: "Show a config, the latest without NUM",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			request := new(flotillav1.GetConfigRequest)
			if len(args) == 1 {
				num, err := strconv.ParseUint(args[0], 10, 64)
				if err != nil || num == 0 {
					return usagef("config %q: NUM is a number from 1", args[0])
				}
				request.Num = num
			}
			config, err := ask(c.Context(), g, func(ctx context.Context, cluster flotillav1.ClusterClient) (*flotillav1.Config, error) {
				return cluster.GetConfig(ctx, request)
			})
			if err != nil {
				return err
			}
			if g.output == "json" {
				return writeJSON(c.OutOrStdout(), toConfigJSON(config))
			}
			return printConfig(c.OutOrStdout(), config)
		},
	}
	g.addOutputFlag(show)
	config.AddCommand(show)
	return config
}

func printConfig(out io.Writer, config *flotillav1.Config) error {
	fmt.Fprintf(out, "config %d  %s  %s\n\n", config.Num, config.Created, config.Reason)
	counts := make(map[uint64]int)
	for _, group := range config.Shards {
		counts[group]++
	}
	t := newTable(out, "group", "shards", "nodes")
	for _, group := range config.Groups {
		var nodes []string
		for _, m := range group.Members {
			nodes = append(nodes, fmt.Sprint(m.NodeId))
		}
		t.row(group.Id, counts[group.Id], strings.Join(nodes, " "))
	}
	return t.flush()
}

func newEventsCommand(g *globals) *cobra.Command {
	request := new(flotillav1.ListEventsRequest)
	command := &cobra.Command{
		Use:   "events",
		Short: "List the controller's decisions with their reasons, newest last",
		Args:  onlyFlags,
		RunE: func(c *cobra.Command, _ []string) error {
			answer, err := ask(c.Context(), g, func(ctx context.Context, cluster flotillav1.ClusterClient) (*flotillav1.ListEventsResponse, error) {
				return cluster.ListEvents(ctx, request)
			})
			if err != nil {
				return err
			}
			if g.output == "json" {
				return writeJSON(c.OutOrStdout(), each(answer.Events, toEventJSON))
			}
			t := newTable(c.OutOrStdout(), "id", "time", "decision", "kind", "subject", "reason")
			for _, e := range answer.Events {
				t.row(e.Id, e.Time, named(e.Decision), e.Kind, e.Subject, e.Reason)
			}
			return t.flush()
		},
	}
	command.Flags().Uint64Var(&request.After, "after", 0, "only events with a greater `ID`")
	command.Flags().Uint32Var(&request.Limit, "limit", 100, "how many, the newest")
	g.addOutputFlag(command)
	return command
}

// onlyFlags refuses arguments. cobra.NoArgs calls them unknown commands, which is
// right only for a command that has some.
func onlyFlags(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("%s takes no argument, and %q is one", strings.TrimPrefix(c.CommandPath(), c.Root().Name()+" "), args[0])
	}
	return nil
}

// needSubcommand is what a command that only groups others does by itself.
func needSubcommand(c *cobra.Command, _ []string) error {
	return usagef("flotilla %s needs a subcommand", c.Name())
}
