package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"sync"
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/client"
	"github.com/flotilla-kv/flotilla/cmd/flotilla/internal/load"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// movesResult is what bench --during-moves measures; the field names are those
// of the JSON.
type movesResult struct {
	Moves      int   `json:"moves"`
	Verified   int   `json:"verified"`
	Ops        int64 `json:"ops"` // on the moving shard
	Failed     int64 `json:"failed"`
	Duplicated int64 `json:"duplicated"` // increments that counted though they were not acknowledged
	Lost       int64 `json:"lost"`       // and the other way round
	// The pause of a move as it says itself, from HandOff at the source to
	// Activate at the target, and as all clients of the shard together see it:
	// the longest time without an answer.
	PauseP50us int64 `json:"pause_p50_us"`
	PauseMaxUs int64 `json:"pause_max_us"`
	GapP50us   int64 `json:"gap_p50_us"`
	GapMaxUs   int64 `json:"gap_max_us"`
	// That time in spans of gapSpan before the moves: so long nobody is answered
	// anyhow.
	GapBeforeP50us int64 `json:"gap_before_p50_us"`
	GapBeforeMaxUs int64 `json:"gap_before_max_us"`
	// Requests per second before the moves, while they go on, and after them: a
	// store that fills becomes slower by itself.
	ShardBefore  float64 `json:"shard_ops_per_s_before"`
	ShardDuring  float64 `json:"shard_ops_per_s_during"`
	ShardAfter   float64 `json:"shard_ops_per_s_after"`
	OthersBefore float64 `json:"others_ops_per_s_before"`
	OthersDuring float64 `json:"others_ops_per_s_during"`
	OthersAfter  float64 `json:"others_ops_per_s_after"`
	Seconds      float64 `json:"seconds"` // that the moves took
	MoveP50ms    int64   `json:"move_p50_ms"`
	MoveMaxMs    int64   `json:"move_max_ms"`
	Bytes        int64   `json:"bytes"` // of the shard as it was moved last
}

// movingKeys is how many keys of the moving shard are counted in.
const movingKeys = 256

// gapSpan is about as long as a move takes.
const gapSpan = 200 * time.Millisecond

// duringMoves moves a shard to and fro while half of the clients write to it
// alone, and the others to all others.
func (o *benchOptions) duringMoves(ctx context.Context, out, progress io.Writer) error {
	c, err := o.newClient(client.Options{CallsMax: 2*o.Clients*o.Pipeline + fillRoom})
	if err != nil {
		return err
	}
	defer c.Close()
	m, err := c.WaitMap(ctx)
	if err != nil {
		return explain(o.globals, err)
	}
	groups := servingGroups(m)
	if len(groups) < 2 {
		return errors.New("a shard moves between two groups, and there is one: flotilla group add")
	}
	if err := load.Prepare(ctx, c, o.Workload); err != nil {
		return explain(o.globals, err)
	}
	b := &moveBench{benchOptions: o, client: c, progress: progress, shard: shardmap.Shard([]byte("bench-moving"), len(m.Shards)), shards: len(m.Shards)}
	result, err := b.run(ctx, groups)
	if err != nil {
		return err
	}
	if o.output == "json" {
		return writeJSON(out, result)
	}
	return printMovesResult(out, result)
}

func servingGroups(m *shardmap.Map) []uint64 {
	var groups []uint64
	for _, a := range m.Shards {
		if a.Group != 0 && !slices.Contains(groups, uint64(a.Group)) {
			groups = append(groups, uint64(a.Group))
		}
	}
	slices.Sort(groups)
	return groups
}

// moveBench is one run.
type moveBench struct {
	*benchOptions
	client   *client.Client
	progress io.Writer
	shard    shardmap.ShardID
	shards   int

	counters *load.Counters
	others   *load.Meter
	ops      int64 // of the counters when they were last asked
	asked    time.Time
}

func (b *moveBench) run(ctx context.Context, groups []uint64) (r movesResult, err error) {
	keys := b.keys()
	before := make([]int64, len(keys))
	for i, key := range keys {
		item, err := b.client.Get(ctx, key)
		if err != nil && !errors.Is(err, client.ErrNotFound) {
			return r, explain(b.globals, err)
		}
		before[i], _ = strconv.ParseInt(string(item.Value), 10, 64)
	}
	half := b.Workload
	half.Clients, half.Duration = max(1, b.Clients/2), time.Hour
	half.Skip = func(key []byte) bool { return shardmap.Shard(key, b.shards) == b.shard }
	b.counters, b.others = load.NewCounters(b.client, keys), load.NewMeter(half.Clients)
	loading, stop := context.WithCancel(ctx)
	var loads sync.WaitGroup
	loads.Go(func() { b.counters.Run(loading, half.Clients*b.Pipeline) })
	loads.Go(func() { _, _ = load.Run(loading, b.client, half, b.others) })
	defer loads.Wait()
	defer stop()

	b.rates() // from here on
	if err := b.beforeMoves(ctx, &r); err != nil {
		return r, err
	}
	began := time.Now()
	if err := b.moves(ctx, groups, &r); err != nil {
		return r, err
	}
	r.Seconds = time.Since(began).Seconds()
	r.ShardDuring, r.OthersDuring = b.rates()
	if err := pause(ctx, b.Duration); err != nil {
		return r, err
	}
	r.ShardAfter, r.OthersAfter = b.rates()
	stop()
	loads.Wait()
	var failure error
	r.Ops = b.counters.Ops()
	if r.Failed, failure = b.counters.Failed(); failure != nil {
		fmt.Fprintf(b.progress, "flotilla: %d increments failed, one of them: %s\n", r.Failed, oneLine(failure))
	}
	read := func(ctx context.Context, key string) ([]byte, error) {
		item, err := b.client.Get(ctx, key)
		if errors.Is(err, client.ErrNotFound) {
			err = nil
		}
		return item.Value, err
	}
	r.Duplicated, r.Lost, err = b.counters.Check(ctx, read, before)
	return r, err
}

// beforeMoves measures the load without any.
func (b *moveBench) beforeMoves(ctx context.Context, r *movesResult) error {
	var gaps []int64
	for began := time.Now(); time.Since(began) < b.Duration; {
		b.counters.Gap()
		if err := pause(ctx, min(b.Duration, gapSpan)); err != nil {
			return err
		}
		gaps = append(gaps, b.counters.Gap().Microseconds())
	}
	r.GapBeforeP50us, r.GapBeforeMaxUs = medianAndMost(gaps)
	r.ShardBefore, r.OthersBefore = b.rates()
	return nil
}

// keys of the shard that moves.
func (b *moveBench) keys() (keys []string) {
	for i := range movingKeys {
		keys = append(keys, fmt.Sprintf("{bench-moving}%d", i))
	}
	return keys
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return errors.New("stopped")
	}
}

// rates are the requests per second since it was last asked.
func (b *moveBench) rates() (shard, others float64) {
	now := time.Now()
	seconds := now.Sub(b.asked).Seconds()
	ops := b.counters.Ops()
	shard, others = float64(ops-b.ops)/seconds, b.others.Recent(seconds).OpsPerS
	b.ops, b.asked = ops, now
	return shard, others
}

func (b *moveBench) moves(ctx context.Context, groups []uint64, r *movesResult) error {
	var pauses, gaps, took []int64
	for i := range b.duringMovesN {
		m, err := b.client.WaitMap(ctx)
		if err != nil {
			return explain(b.globals, err)
		}
		at := uint64(m.Shards[b.shard].Group)
		to := groups[0]
		if to == at {
			to = groups[1]
		}
		b.counters.Gap()
		began := time.Now()
		move, err := b.move(ctx, to)
		if err != nil {
			return err
		}
		gaps = append(gaps, b.counters.Gap().Microseconds())
		took = append(took, time.Since(began).Milliseconds())
		pauses = append(pauses, move.PauseUs)
		r.Moves++
		r.Bytes = move.BytesTotal
		if move.Verified {
			r.Verified++
		}
		fmt.Fprintf(b.progress, "move %d of %d: %d ms, pause %v, clients %v, %d bytes\n", i+1, b.duringMovesN, took[i],
			time.Duration(move.PauseUs)*time.Microsecond, time.Duration(gaps[i])*time.Microsecond, move.BytesTotal)
	}
	r.PauseP50us, r.PauseMaxUs = medianAndMost(pauses)
	r.GapP50us, r.GapMaxUs = medianAndMost(gaps)
	r.MoveP50ms, r.MoveMaxMs = medianAndMost(took)
	return nil
}

// move has the shard moved and waits until that has ended.
func (b *moveBench) move(ctx context.Context, to uint64) (*flotillav1.Move, error) {
	order, err := ask(ctx, b.globals, func(ctx context.Context, cluster flotillav1.ClusterClient) (*flotillav1.MoveShardResponse, error) {
		return cluster.MoveShard(ctx, &flotillav1.MoveShardRequest{Shard: uint64(b.shard), ToGroup: to})
	})
	if err != nil {
		return nil, err
	}
	for {
		moves, _, err := getMoves(ctx, b.globals, true)
		if err != nil {
			return nil, err
		}
		i := slices.IndexFunc(moves, func(m *flotillav1.Move) bool { return m.Id == order.MoveId })
		if i >= 0 && moves[i].Ended != "" {
			return moves[i], nil
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return nil, err
		}
	}
}

func medianAndMost(values []int64) (median, most int64) {
	if len(values) == 0 {
		return -1, -1
	}
	slices.Sort(values)
	return values[len(values)/2], values[len(values)-1]
}

func printMovesResult(out io.Writer, r movesResult) error {
	t := newTable(out, "", "p50", "max")
	t.row("pause as moves say", micros(r.PauseP50us), micros(r.PauseMaxUs))
	t.row("longest wait of clients", micros(r.GapP50us), micros(r.GapMaxUs))
	t.row("the same without a move", micros(r.GapBeforeP50us), micros(r.GapBeforeMaxUs))
	t.row("a move took", time.Duration(r.MoveP50ms)*time.Millisecond, time.Duration(r.MoveMaxMs)*time.Millisecond)
	if err := t.flush(); err != nil {
		return err
	}
	fmt.Fprintln(out)
	t = newTable(out, "requests per second", "before", "during", "after", "part")
	rates := func(what string, before, during, after float64) {
		t.row(what, fmt.Sprintf("%.0f", before), fmt.Sprintf("%.0f", during), fmt.Sprintf("%.0f", after), fmt.Sprintf("%.2f", 2*during/(before+after)))
	}
	rates("on the moving shard", r.ShardBefore, r.ShardDuring, r.ShardAfter)
	rates("on the other shards", r.OthersBefore, r.OthersDuring, r.OthersAfter)
	if err := t.flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(out, "\n%d moves, %d verified, of %s each; %d increments acknowledged, %d failed, %d lost, %d duplicated\n",
		r.Moves, r.Verified, sizeText(max(0, r.Bytes)), r.Ops, r.Failed, r.Lost, r.Duplicated)
	return err
}
