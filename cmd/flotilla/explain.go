package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
)

func newExplainCommand(g *globals) *cobra.Command {
	explain := &cobra.Command{
		Use:   "explain shard|group|node|decision ID",
		Short: "Say why a shard or a replica is where it is, and why not elsewhere",
		Long: `Explain says what is, since when and why, what is under way, and what speaks for
and against each other place. Of a decision, whose number the events show, it
says from what it was taken, what came of each of its operations, and whether it
would be taken again from the same.`,
		Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			r, err := explainRequest(c.Context(), g, args[0], args[1])
			if err != nil {
				return err
			}
			x, err := ask(c.Context(), g, func(ctx context.Context, cluster flotillav1.ClusterClient) (*flotillav1.Explanation, error) {
				return cluster.Explain(ctx, r)
			})
			if err != nil {
				return err
			}
			if g.output == "json" {
				return writeJSON(c.OutOrStdout(), toExplanationJSON(x))
			}
			return printExplanation(c.OutOrStdout(), x)
		},
	}
	g.addOutputFlag(explain)
	return explain
}

func explainRequest(ctx context.Context, g *globals, kind, id string) (*flotillav1.ExplainRequest, error) {
	if kind == "node" {
		node, err := nodeOf(ctx, g, id)
		if err != nil {
			return nil, err
		}
		return &flotillav1.ExplainRequest{What: &flotillav1.ExplainRequest_Node{Node: node.GetId()}}, nil
	}
	n, err := number("ID", id)
	switch {
	case err != nil:
		return nil, err
	case kind == "shard":
		return &flotillav1.ExplainRequest{What: &flotillav1.ExplainRequest_Shard{Shard: n}}, nil
	case kind == "group":
		return &flotillav1.ExplainRequest{What: &flotillav1.ExplainRequest_Group{Group: n}}, nil
	case kind == "decision":
		return &flotillav1.ExplainRequest{What: &flotillav1.ExplainRequest_Decision{Decision: n}}, nil
	}
	return nil, usagef("explain %q: it is shard, group, node or decision", kind)
}

type explanationJSON struct {
	Subject    string          `json:"subject"`
	Facts      []string        `json:"facts"`
	Candidates []candidateJSON `json:"candidates"`
	Events     []eventJSON     `json:"events"`
	// Parts are, of a decision, of what it was about, as of then.
	Parts []explanationJSON `json:"parts"`
}

type candidateJSON struct {
	ID      uint64   `json:"id"`
	Name    string   `json:"name"`
	Chosen  bool     `json:"chosen"`
	For     []string `json:"for"`
	Against []string `json:"against"`
}

func toExplanationJSON(x *flotillav1.Explanation) explanationJSON {
	same := func(text string) string { return text }
	return explanationJSON{
		Subject: x.Subject,
		Facts:   each(x.Facts, same),
		Candidates: each(x.Candidates, func(c *flotillav1.Candidate) candidateJSON {
			return candidateJSON{ID: c.Id, Name: c.Name, Chosen: c.Chosen, For: each(c.For, same), Against: each(c.Against, same)}
		}),
		Events: each(x.Events, toEventJSON),
		Parts:  each(x.Parts, toExplanationJSON),
	}
}

func printExplanation(out io.Writer, x *flotillav1.Explanation) error {
	fmt.Fprintln(out, x.Subject)
	for _, fact := range x.Facts {
		fmt.Fprintf(out, "  %s\n", fact)
	}
	if len(x.Candidates) > 0 {
		fmt.Fprintln(out)
		t := newTable(out, "candidate", "chosen", "for", "against")
		for _, c := range x.Candidates {
			name := fmt.Sprint(c.Id)
			if c.Name != "" {
				name += " (" + c.Name + ")"
			}
			chosen := "-"
			if c.Chosen {
				chosen = "yes"
			}
			t.row(name, chosen, reasons(c.For), reasons(c.Against))
		}
		if err := t.flush(); err != nil {
			return err
		}
	}
	if len(x.Events) > 0 {
		fmt.Fprintln(out)
		t := newTable(out, "event", "time", "decision", "kind", "reason")
		for _, e := range x.Events {
			t.row(e.Id, e.Time, named(e.Decision), e.Kind, e.Reason)
		}
		if err := t.flush(); err != nil {
			return err
		}
	}
	for _, part := range x.Parts {
		fmt.Fprint(out, "\nas of then, ")
		if err := printExplanation(out, part); err != nil {
			return err
		}
	}
	return nil
}

func reasons(all []string) string {
	if len(all) == 0 {
		return "-"
	}
	return strings.Join(all, "; ")
}
