package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
)

func newRecoverCommand(g *globals) *cobra.Command {
	command := &cobra.Command{
		Use:   "recover GROUP",
		Short: "Have a group go on that has lost its majority for good; writes may be lost",
		Long: `Recover is for a group of whose replicas so many are lost for good that the rest
can never decide again. It goes on from one replica that is left, by default the
one with the longest log, and gets new ones. The others are no members any more: nodes
that come back with them delete them.

Without --accept-loss nothing is changed: it says what there is and what may be
lost. If one of the lost nodes can be brought back, do that instead.`,
		Args: cobra.ExactArgs(1),
	}
	from := command.Flags().String("from", "", "the `NODE` (id or name) whose replica it goes on from (default: that with the longest log)")
	accept := command.Flags().Bool("accept-loss", false, "do it")
	command.RunE = func(c *cobra.Command, args []string) error {
		group, err := number("GROUP", args[0])
		if err != nil {
			return err
		}
		r := &flotillav1.RecoverGroup{Group: group}
		if *from != "" {
			node, err := nodeOf(c.Context(), g, *from)
			if err != nil {
				return err
			}
			r.Node = node.GetId()
		}
		found, err := askRecovery(c.Context(), g, r, true)
		if err != nil {
			return err
		}
		if err := printRecovery(c.OutOrStdout(), found); err != nil {
			return err
		}
		if !*accept {
			return fmt.Errorf("nothing is changed: with --accept-loss group %d goes on from node %d alone", group, found.GetNode())
		}
		r.Node = found.GetNode()
		if _, err := askRecovery(c.Context(), g, r, false); err != nil {
			return err
		}
		_, err = fmt.Fprintf(c.OutOrStdout(), "\ngroup %d is being recovered; flotilla explain group %d shows how that goes\n", group, group)
		return err
	}
	return command
}

func askRecovery(ctx context.Context, g *globals, r *flotillav1.RecoverGroup, dry bool) (*flotillav1.Recovery, error) {
	answer, err := ask(ctx, g, func(ctx context.Context, cluster flotillav1.ClusterClient) (*flotillav1.ChangeClusterResponse, error) {
		return cluster.ChangeCluster(ctx, &flotillav1.ChangeClusterRequest{DryRun: dry, Change: &flotillav1.ChangeClusterRequest_RecoverGroup{RecoverGroup: r}})
	})
	return answer.GetRecovery(), err
}

// printRecovery says what is left of a group and what may be lost of it.
func printRecovery(out io.Writer, r *flotillav1.Recovery) error {
	fmt.Fprintf(out, "what is left of group %d:\n", r.GetGroup())
	t := newTable(out, "node", "replica", "last entry", "of term", "known committed", "log")
	var chosen *flotillav1.LocalReplica
	for _, l := range r.GetReplicas() {
		log := "whole"
		if l.GetSuspect() {
			log = "cut"
		}
		if l.GetNodeId() == r.GetNode() {
			chosen = l
		}
		t.row(l.GetNodeId(), l.GetReplicaId(), l.GetLastIndex(), l.GetLastTerm(), l.GetCommit(), log)
	}
	if err := t.flush(); err != nil {
		return err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "\nit would go on from node %d alone:\n", r.GetNode())
	fmt.Fprintf(&b, "- what was acknowledged and did not reach node %d is lost; nobody can tell how much that is\n", r.GetNode())
	if chosen.GetLastIndex() > chosen.GetCommit() {
		fmt.Fprintf(&b, "- its entries %d to %d, of which it is not known whether they were committed, take effect\n", chosen.GetCommit()+1, chosen.GetLastIndex())
	}
	if chosen.GetSuspect() {
		fmt.Fprintf(&b, "- its own log was cut: entries in its midst or at its end are lost\n")
	}
	if len(r.GetMoving()) > 0 {
		fmt.Fprintf(&b, "- shards %s are moving to or from the group\n", idsText(r.GetMoving()))
	}
	fmt.Fprintf(&b, "- a shard that has come to the group, or left it, in what is lost may then be served by nobody, or by two: look at flotilla shard list\n")
	if len(r.GetLostNodes()) > 0 {
		fmt.Fprintf(&b, "- nodes %s are down: if they run apart from all others, they may answer clients from what they have\n", idsText(r.GetLostNodes()))
	}
	_, err := io.WriteString(out, b.String())
	return err
}
