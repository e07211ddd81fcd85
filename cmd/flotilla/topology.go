package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
)

// changeCluster sends a change, or asks what would come of it, and prints that.
func changeCluster(c *cobra.Command, g *globals, r *flotillav1.ChangeClusterRequest, say func(*flotillav1.ChangeClusterResponse) string) error {
	answer, err := ask(c.Context(), g, func(ctx context.Context, cluster flotillav1.ClusterClient) (*flotillav1.ChangeClusterResponse, error) {
		return cluster.ChangeCluster(ctx, r)
	})
	if err != nil {
		return err
	}
	if r.DryRun {
		answer.GetForesight().Steps = nil
		return printForesight(c.OutOrStdout(), answer.Foresight)
	}
	fmt.Fprintln(c.OutOrStdout(), say(answer))
	return nil
}

func dryRunFlag(c *cobra.Command) *bool {
	return c.Flags().Bool("dry-run", false, "change nothing, and print what would move")
}

func newAddGroupCommand(g *globals) *cobra.Command {
	add := &cobra.Command{
		Use:   "add [N]",
		Short: "Add a group, or N; the shards are shared out anew while all serve",
		Args:  cobra.MaximumNArgs(1),
	}
	dry := dryRunFlag(add)
	add.RunE = func(c *cobra.Command, args []string) error {
		n := uint64(1)
		if len(args) == 1 {
			var err error
			if n, err = number("N", args[0]); err != nil {
				return err
			}
		}
		if n == 0 || n > 256 {
			return usagef("%d groups: it is 1 to 256 at once", n)
		}
		m, err := getMap(c.Context(), g)
		if err != nil {
			return err
		}
		r := &flotillav1.ChangeClusterRequest{Change: &flotillav1.ChangeClusterRequest_AddGroups{AddGroups: uint32(n)}, DryRun: *dry, Config: m.ConfigNum}
		return changeCluster(c, g, r, func(a *flotillav1.ChangeClusterResponse) string {
			return fmt.Sprintf("groups %s (config %d); see flotilla move list", idsText(a.Groups), a.ConfigNum)
		})
	}
	return add
}

func newRemoveGroupCommand(g *globals) *cobra.Command {
	remove := &cobra.Command{
		Use:   "remove GROUP",
		Short: "Move a group's shards to the others, and end it when it has none",
		Args:  cobra.ExactArgs(1),
	}
	dry := dryRunFlag(remove)
	remove.RunE = func(c *cobra.Command, args []string) error {
		id, err := number("GROUP", args[0])
		if err != nil {
			return err
		}
		r := &flotillav1.ChangeClusterRequest{Change: &flotillav1.ChangeClusterRequest_RemoveGroup{RemoveGroup: id}, DryRun: *dry}
		return changeCluster(c, g, r, func(a *flotillav1.ChangeClusterResponse) string {
			return fmt.Sprintf("group %d is being removed (config %d); see flotilla move list", id, a.ConfigNum)
		})
	}
	return remove
}

func newTransferCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "transfer-leader GROUP NODE",
		Short: "Have a node lead a group, as long as leaders stay even",
		Args:  cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			group, err := number("GROUP", args[0])
			if err != nil {
				return err
			}
			node, err := nodeOf(c.Context(), g, args[1])
			if err != nil {
				return err
			}
			_, err = ask(c.Context(), g, func(ctx context.Context, cluster flotillav1.ClusterClient) (*flotillav1.ExecuteResponse, error) {
				return cluster.Execute(ctx, &flotillav1.ExecuteRequest{Group: group,
					Operation: &flotillav1.ExecuteRequest_TransferLeader{TransferLeader: &flotillav1.TransferLeader{ToNode: node.GetId()}}})
			})
			if err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "node %d is to lead group %d\n", node.GetId(), group)
			return nil
		},
	}
}

func newDrainCommand(g *globals) *cobra.Command {
	drain := &cobra.Command{
		Use:   "drain NODE",
		Short: "Move a node's replicas and leaderships to others; it goes on serving meanwhile",
		Long: `Drain returns when the order is recorded. flotilla node list shows how many
replicas are left; a node without any can be stopped and removed.`,
		Args: cobra.ExactArgs(1),
	}
	dry := dryRunFlag(drain)
	back := drain.Flags().Bool("back", false, "end the drain: the node takes part again")
	drain.RunE = func(c *cobra.Command, args []string) error {
		node, err := nodeOf(c.Context(), g, args[0])
		if err != nil {
			return err
		}
		r := &flotillav1.ChangeClusterRequest{Change: &flotillav1.ChangeClusterRequest_DrainNode{DrainNode: node.GetId()}, DryRun: *dry}
		if *back {
			r.Change = &flotillav1.ChangeClusterRequest_UndrainNode{UndrainNode: node.GetId()}
		}
		return changeCluster(c, g, r, func(*flotillav1.ChangeClusterResponse) string {
			if *back {
				return fmt.Sprintf("node %d (%s) takes part again", node.GetId(), node.GetName())
			}
			return fmt.Sprintf("node %d (%s) is being drained", node.GetId(), node.GetName())
		})
	}
	return drain
}

func newRemoveNodeCommand(g *globals) *cobra.Command {
	remove := &cobra.Command{
		Use:   "remove NODE",
		Short: "Take a drained or a lost node out of the cluster for good",
		Long: `Remove takes out a node that has no replicas (drain it first), or one that is
down: then its replicas are made anew elsewhere at once. Its name is free for
another node; it can itself come back only with an empty data dir.`,
		Args: cobra.ExactArgs(1),
	}
	dry := dryRunFlag(remove)
	remove.RunE = func(c *cobra.Command, args []string) error {
		node, err := nodeOf(c.Context(), g, args[0])
		if err != nil {
			return err
		}
		r := &flotillav1.ChangeClusterRequest{Change: &flotillav1.ChangeClusterRequest_RemoveNode{RemoveNode: node.GetId()}, DryRun: *dry}
		return changeCluster(c, g, r, func(*flotillav1.ChangeClusterResponse) string {
			return fmt.Sprintf("node %d (%s) is removed", node.GetId(), node.GetName())
		})
	}
	return remove
}

// getMap asks for the map as it is now.
func getMap(ctx context.Context, g *globals) (*flotillav1.ShardMap, error) {
	return ask(ctx, g, func(ctx context.Context, cluster flotillav1.ClusterClient) (*flotillav1.ShardMap, error) {
		return cluster.GetMap(ctx, &flotillav1.GetMapRequest{Linearizable: true})
	})
}

// nodeOf finds a node by id or name.
func nodeOf(ctx context.Context, g *globals, what string) (*flotillav1.Node, error) {
	m, err := getMap(ctx, g)
	if err != nil {
		return nil, err
	}
	id, numberErr := strconv.ParseUint(what, 10, 64)
	var names []string
	var found *flotillav1.Node
	for _, n := range m.Nodes {
		if n.Name == what || numberErr == nil && n.Id == id {
			if found != nil {
				return nil, fmt.Errorf("%s is the name of one node and the id of another: stop giving nodes numbers for names, or say the other of the two", what)
			}
			found = n
		}
		names = append(names, fmt.Sprintf("%d (%s)", n.Id, n.Name))
	}
	if found != nil {
		return found, nil
	}
	return nil, fmt.Errorf("there is no node %s; the nodes are %s", what, strings.Join(names, ", "))
}

func newPlanCommand(g *globals) *cobra.Command {
	var addZones []string
	var lose []string
	var addNodes, addGroups int
	var removeGroup uint64
	var drain string
	plan := &cobra.Command{
		Use:   "plan --what-if ...",
		Short: "Show what a change would move, and change nothing",
		Long: `Plan shows which shards, replicas and leaders would move if nodes joined or
died, a node were drained, or groups were added or removed. Several nodes may
join and die in one question, beside one other change.`,
		Example: "  flotilla plan --what-if --add-nodes 1\n  flotilla plan --what-if --drain n3\n  flotilla plan --what-if --lose 2 --steps",
		Args:    onlyFlags,
	}
	flags := plan.Flags()
	whatIf := flags.Bool("what-if", false, "what would be if ...")
	flags.IntVar(&addNodes, "add-nodes", 0, "so many nodes joined")
	flags.StringSliceVar(&addZones, "zone", nil, "their zones, one after the other")
	flags.StringSliceVar(&lose, "lose", nil, "these nodes (id or name) died for good")
	flags.StringVar(&drain, "drain", "", "this `NODE` (id or name) were drained")
	flags.IntVar(&addGroups, "add-groups", 0, "so many groups were added")
	flags.Uint64Var(&removeGroup, "remove-group", 0, "this `GROUP` were removed")
	steps := flags.Bool("steps", false, "print each step with its reason, too")
	plan.RunE = func(c *cobra.Command, _ []string) error {
		r := &flotillav1.ChangeClusterRequest{DryRun: true}
		changes := 0
		if addGroups > 0 {
			changes++
			r.Change = &flotillav1.ChangeClusterRequest_AddGroups{AddGroups: uint32(addGroups)}
		}
		if removeGroup > 0 {
			changes++
			r.Change = &flotillav1.ChangeClusterRequest_RemoveGroup{RemoveGroup: removeGroup}
		}
		if drain != "" {
			changes++
			node, err := nodeOf(c.Context(), g, drain)
			if err != nil {
				return err
			}
			r.Change = &flotillav1.ChangeClusterRequest_DrainNode{DrainNode: node.GetId()}
		}
		for _, what := range lose {
			node, err := nodeOf(c.Context(), g, what)
			if err != nil {
				return err
			}
			r.LoseNodes = append(r.LoseNodes, node.GetId())
		}
		for i := range addNodes {
			zone := ""
			if len(addZones) > 0 {
				zone = addZones[min(i, len(addZones)-1)]
			}
			r.AddNodes = append(r.AddNodes, zone)
		}
		switch {
		case !*whatIf:
			return usagef("plan needs --what-if: what the planner does now shows in flotilla events")
		case changes > 1:
			return usagef("one of --drain, --add-groups and --remove-group at a time")
		case changes == 0 && len(r.LoseNodes)+len(r.AddNodes) == 0:
			return usagef("--what-if needs --add-nodes, --lose, --drain, --add-groups or --remove-group")
		}
		answer, err := ask(c.Context(), g, func(ctx context.Context, cluster flotillav1.ClusterClient) (*flotillav1.ChangeClusterResponse, error) {
			return cluster.ChangeCluster(ctx, r)
		})
		if err != nil {
			return err
		}
		if answer.Foresight == nil {
			return errors.New("the node asked is of a version that cannot foresee")
		}
		if !*steps {
			answer.Foresight.Steps = nil
		}
		if g.output == "json" {
			return writeJSON(c.OutOrStdout(), toForesightJSON(answer.Foresight))
		}
		return printForesight(c.OutOrStdout(), answer.Foresight)
	}
	g.addOutputFlag(plan)
	return plan
}

type foresightJSON struct {
	Shards     []shardChangeJSON   `json:"shards"`
	Replicas   []replicaChangeJSON `json:"replicas"`
	Leaders    []leaderChangeJSON  `json:"leaders"`
	WaitingFor []string            `json:"waiting_for"`
	Steps      []string            `json:"steps"`
}

type shardChangeJSON struct {
	Shard uint64 `json:"shard"`
	From  uint64 `json:"from"`
	To    uint64 `json:"to"`
}

type replicaChangeJSON struct {
	Group  uint64   `json:"group"`
	Before []uint64 `json:"before"`
	After  []uint64 `json:"after"`
}

type leaderChangeJSON struct {
	Group uint64 `json:"group"`
	From  uint64 `json:"from"`
	To    uint64 `json:"to"`
}

func toForesightJSON(f *flotillav1.Foresight) foresightJSON {
	same := func(text string) string { return text }
	id := func(n uint64) uint64 { return n }
	return foresightJSON{
		Shards: each(f.Shards, func(s *flotillav1.ShardChange) shardChangeJSON { return shardChangeJSON{s.Shard, s.From, s.To} }),
		Replicas: each(f.Replicas, func(r *flotillav1.ReplicaChange) replicaChangeJSON {
			return replicaChangeJSON{r.Group, each(r.Before, id), each(r.After, id)}
		}),
		Leaders:    each(f.Leaders, func(l *flotillav1.LeaderChange) leaderChangeJSON { return leaderChangeJSON{l.Group, l.From, l.To} }),
		WaitingFor: each(f.WaitingFor, same),
		Steps:      each(f.Steps, same),
	}
}

// printForesight says what would move, shards by where they come from and go to.
func printForesight(out io.Writer, f *flotillav1.Foresight) error {
	replicas := 0
	for _, r := range f.Replicas {
		for _, n := range r.After {
			if !slices.Contains(r.Before, n) {
				replicas++
			}
		}
	}
	fmt.Fprintf(out, "%d shards, %d replicas and %d leaders would move\n", len(f.Shards), replicas, len(f.Leaders))
	if len(f.Shards) > 0 {
		fmt.Fprintln(out)
		if err := printShardChanges(out, f.Shards); err != nil {
			return err
		}
	}
	if len(f.Replicas) > 0 {
		fmt.Fprintln(out)
		t := newTable(out, "group", "nodes now", "nodes then")
		for _, r := range f.Replicas {
			t.row(r.Group, idsText(r.Before), idsText(r.After))
		}
		if err := t.flush(); err != nil {
			return err
		}
	}
	for _, step := range f.Steps {
		fmt.Fprintf(out, "step: %s\n", step)
	}
	for _, what := range f.WaitingFor {
		fmt.Fprintf(out, "\nwaiting for: %s\n", what)
	}
	return nil
}

func printShardChanges(out io.Writer, shards []*flotillav1.ShardChange) error {
	type way struct{ from, to uint64 }
	byWay := make(map[way][]uint64)
	var ways []way
	for _, s := range shards {
		w := way{s.From, s.To}
		if byWay[w] == nil {
			ways = append(ways, w)
		}
		byWay[w] = append(byWay[w], s.Shard)
	}
	t := newTable(out, "from group", "to group", "shards")
	for _, w := range ways {
		t.row(w.from, w.to, idsText(byWay[w]))
	}
	return t.flush()
}

// idsText lists ids, runs of them as first-last.
func idsText(ids []uint64) string {
	if len(ids) == 0 {
		return "-"
	}
	var parts []string
	for i := 0; i < len(ids); {
		j := i
		for j+1 < len(ids) && ids[j+1] == ids[j]+1 {
			j++
		}
		if j > i+1 {
			parts = append(parts, fmt.Sprintf("%d-%d", ids[i], ids[j]))
		} else {
			for _, id := range ids[i : j+1] {
				parts = append(parts, fmt.Sprint(id))
			}
		}
		i = j + 1
	}
	return strings.Join(parts, " ")
}
