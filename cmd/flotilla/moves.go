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
)

func newShardMoveCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "move SHARD GROUP",
		Short: "Move a shard to a group while both serve, and pin it there",
		Long: `Move returns when the order is recorded, and prints the number of the move;
see flotilla move list and flotilla move wait. The shard stays at the group
until an operator moves it again, or the group is removed.`,
		Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			shard, err := number("SHARD", args[0])
			if err != nil {
				return err
			}
			group, err := number("GROUP", args[1])
			if err != nil {
				return err
			}
			answer, err := ask(c.Context(), g, func(ctx context.Context, cluster flotillav1.ClusterClient) (*flotillav1.MoveShardResponse, error) {
				return cluster.MoveShard(ctx, &flotillav1.MoveShardRequest{Shard: shard, ToGroup: group})
			})
			if err != nil {
				return err
			}
			if answer.MoveId == 0 {
				fmt.Fprintf(c.OutOrStdout(), "shard %d is at group %d and stays there (config %d)\n", shard, group, answer.ConfigNum)
				return nil
			}
			fmt.Fprintf(c.OutOrStdout(), "move %d (config %d)\n", answer.MoveId, answer.ConfigNum)
			return nil
		},
	}
}

func number(what, text string) (uint64, error) {
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, usagef("%s %q is not a number", what, text)
	}
	return n, nil
}

func newMoveCommand(g *globals) *cobra.Command {
	move := &cobra.Command{Use: "move", Short: "Moves of shards between groups", Args: cobra.NoArgs, RunE: needSubcommand}
	move.AddCommand(newMoveListCommand(g), newMoveWaitCommand(g), newMoveCancelCommand(g))
	return move
}

func getMoves(ctx context.Context, g *globals, brief bool) (moves []*flotillav1.Move, planned uint64, err error) {
	answer, err := ask(ctx, g, func(ctx context.Context, cluster flotillav1.ClusterClient) (*flotillav1.ListMovesResponse, error) {
		return cluster.ListMoves(ctx, &flotillav1.ListMovesRequest{Brief: brief})
	})
	return answer.GetMoves(), answer.GetPlanned(), err
}

func newMoveListCommand(g *globals) *cobra.Command {
	list := &cobra.Command{
		Use:   "list",
		Short: "List the moves under way and the last that have ended, newest last",
		Args:  onlyFlags,
		RunE: func(c *cobra.Command, _ []string) error {
			moves, _, err := getMoves(c.Context(), g, false)
			if err != nil {
				return err
			}
			if g.output == "json" {
				return writeJSON(c.OutOrStdout(), each(moves, toMoveJSON))
			}
			return printMoves(c.OutOrStdout(), moves)
		},
	}
	g.addOutputFlag(list)
	return list
}

func printMoves(out io.Writer, moves []*flotillav1.Move) error {
	t := newTable(out, "move", "shard", "from", "to", "phase", "bytes", "pause", "verified", "waiting for")
	for _, m := range moves {
		pause, waiting := "-", m.WaitingFor
		if m.PauseUs > 0 {
			pause = (time.Duration(m.PauseUs) * time.Microsecond).Round(10 * time.Microsecond).String()
		}
		if waiting == "" {
			waiting = "-"
		}
		t.row(m.Id, m.Shard, m.From, m.To, m.Phase, progress(m), pause, m.Verified, waiting)
	}
	return t.flush()
}

// progress is how many of a move's bytes have come, as far as known.
func progress(m *flotillav1.Move) string {
	switch {
	case m.BytesDone < 0 && m.BytesTotal < 0:
		return "-"
	case m.BytesTotal < 0:
		return sizeText(m.BytesDone)
	case m.BytesDone < 0 || m.BytesDone >= m.BytesTotal:
		return sizeText(m.BytesTotal)
	}
	return fmt.Sprintf("%s of %s", sizeText(m.BytesDone), sizeText(m.BytesTotal))
}

func sizeText(bytes int64) string {
	switch {
	case bytes >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(bytes)/(1<<30))
	case bytes >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20))
	case bytes >= 1<<10:
		return fmt.Sprintf("%.1f KiB", float64(bytes)/(1<<10))
	}
	return fmt.Sprintf("%d B", bytes)
}

// movesLook is how often a command that waits for moves asks how they stand.
const movesLook = 200 * time.Millisecond

func newMoveWaitCommand(g *globals) *cobra.Command {
	var timeout time.Duration
	wait := &cobra.Command{
		Use:   "wait [ID...]",
		Short: "Wait until these moves, or all, are verified",
		Long: `Wait exits 1 if one of the moves was cancelled or has failed. Without IDs it
waits for all that are under way, those that are planned meanwhile included.`,
		RunE: func(c *cobra.Command, args []string) error {
			var ids []uint64
			for _, arg := range args {
				id, err := number("move", arg)
				if err != nil {
					return err
				}
				ids = append(ids, id)
			}
			ctx := c.Context()
			if err := notNegative("--timeout", timeout); err != nil {
				return err
			}
			if timeout > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, timeout)
				defer cancel()
			}
			return waitMoves(ctx, g, ids, newBar(c.ErrOrStderr()))
		},
	}
	wait.Flags().DurationVar(&timeout, "timeout", 0, "give up after so long; 0: never")
	return wait
}

// waitMoves waits for moves, or, without ids, until none is under way.
func waitMoves(ctx context.Context, g *globals, ids []uint64, bar *bar) error {
	defer bar.clear()
	for {
		moves, planned, err := getMoves(ctx, g, false)
		if err != nil {
			return err
		}
		left, err := movesLeft(moves, ids)
		if err != nil || len(left) == 0 && (planned == 0 || len(ids) > 0) {
			return err
		}
		bar.show(left)
		select {
		case <-ctx.Done():
			if len(left) == 0 {
				return fmt.Errorf("%d shards are to be moved and have no move yet: see flotilla status", planned)
			}
			return fmt.Errorf("%d moves are not verified yet; the first: %s", len(left), describeMove(left[0]))
		case <-time.After(movesLook):
		}
	}
}

// movesLeft are those of the moves that are to be waited for.
func movesLeft(moves []*flotillav1.Move, ids []uint64) (left []*flotillav1.Move, err error) {
	known := make(map[uint64]*flotillav1.Move, len(moves))
	for _, m := range moves {
		known[m.Id] = m
		if len(ids) == 0 && m.Ended == "" {
			left = append(left, m)
		}
	}
	for _, id := range ids {
		m := known[id]
		switch {
		case m == nil:
			return nil, fmt.Errorf("there is no move %d, or it is forgotten: see flotilla move list", id)
		case m.Ended == "":
			left = append(left, m)
		case !m.Verified:
			return nil, fmt.Errorf("move %d was not carried out: it is %s", id, m.Phase)
		}
	}
	return left, nil
}

func describeMove(m *flotillav1.Move) string {
	text := fmt.Sprintf("move %d (shard %d, group %d to %d) is %s", m.Id, m.Shard, m.From, m.To, m.Phase)
	if m.WaitingFor != "" {
		text += ", waiting for " + m.WaitingFor
	}
	return text
}

func newMoveCancelCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "cancel ID",
		Short: "End a move before its hand-off; the shard stays where it is",
		Long: `Cancel returns when it is decided whether it was in time. A shard that was
handed over is moved back with flotilla shard move.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			id, err := number("move", args[0])
			if err != nil {
				return err
			}
			_, err = ask(c.Context(), g, func(ctx context.Context, cluster flotillav1.ClusterClient) (*flotillav1.CancelMoveResponse, error) {
				return cluster.CancelMove(ctx, &flotillav1.CancelMoveRequest{MoveId: id})
			})
			if err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "move %d is cancelled\n", id)
			return nil
		},
	}
}

// bar shows on a terminal how moves go on; anywhere else it shows nothing.
type bar struct {
	out   io.Writer
	lines int
}

func newBar(out io.Writer) *bar {
	if !isTerminal(out) {
		return &bar{}
	}
	return &bar{out: out}
}

// barLines is how many moves are shown at once.
const barLines = 8

func (b *bar) show(moves []*flotillav1.Move) {
	if b.out == nil {
		return
	}
	b.clear()
	for _, m := range moves[:min(len(moves), barLines)] {
		fmt.Fprintf(b.out, "%s\n", barLine(m))
		b.lines++
	}
	if len(moves) > barLines {
		fmt.Fprintf(b.out, "and %d more\n", len(moves)-barLines)
		b.lines++
	}
}

// clear takes away what was shown.
func (b *bar) clear() {
	for ; b.lines > 0; b.lines-- {
		fmt.Fprint(b.out, "\x1b[1A\x1b[2K")
	}
}

const barWidth = 24

func barLine(m *flotillav1.Move) string {
	full := 0
	if m.BytesTotal > 0 {
		full = int(min(m.BytesDone, m.BytesTotal) * barWidth / m.BytesTotal)
	}
	full = max(0, min(full, barWidth))
	text := fmt.Sprintf("shard %-5d %3d > %-3d [%s%s] %-12s %s", m.Shard, m.From, m.To, strings.Repeat("=", full), strings.Repeat(" ", barWidth-full), m.Phase, progress(m))
	if m.WaitingFor != "" {
		text += "  waiting for " + m.WaitingFor
	}
	return text
}
