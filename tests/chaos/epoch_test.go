//go:build chaos

package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/flotilla-kv/flotilla/client"
	"github.com/flotilla-kv/flotilla/internal/history"
)

// clients are what the load goes through: one Go client that knows all nodes,
// and one of each node's Redis door.
type clients struct {
	store *client.Client
	redis []*redis.Client
}

func newClients(c *cluster) (*clients, error) {
	store, err := c.goClient()
	if err != nil {
		return nil, err
	}
	cs := &clients{store: store}
	for _, n := range c.nodes {
		cs.redis = append(cs.redis, n.redis())
	}
	return cs, nil
}

func (cs *clients) close() {
	cs.store.Close()
	for _, r := range cs.redis {
		r.Close()
	}
}

// An epoch is a load on keys of its own, from its beginning to its check: short
// enough for the search through its history.
type epoch struct {
	name    string
	clients *clients
	stop    context.CancelFunc
	running sync.WaitGroup
	deafen  context.CancelFunc // ends the follower
	hearing sync.WaitGroup

	history  *history.History // when the load has stopped
	counters []*counter
	lists    []*list
	bank     *bank
	follower *follower // of the counters
}

// Shape of an epoch.
const (
	registers       = 6
	registerClients = 6
	epochMax        = 10 * time.Minute // of load; it is stopped before
	searchMax       = 2 * time.Minute
	readBackWithin  = time.Minute
)

// beginEpoch starts the load.
func beginEpoch(cs *clients, name string, seed uint64) *epoch {
	ctx, stop := context.WithCancel(context.Background())
	watching, deafen := context.WithCancel(context.Background())
	e := &epoch{name: name, clients: cs, stop: stop, deafen: deafen, bank: &bank{prefix: name + "-bank"}, follower: newFollower(name + "-counter-")}
	e.hearing.Go(func() { e.follower.work(watching, cs.store) })
	doors := anyDoor{cs.store}
	writers := []writer{goWriter{cs.store}}
	for _, r := range cs.redis {
		doors = append(doors, redisStore{r})
		writers = append(writers, redisWriter{r})
	}
	plan := history.Plan{
		Clients: registerClients, Keys: registers, Duration: epochMax, OpTimeout: opTimeout, Pause: think,
		Prefix: name + "-register-", Reads: []client.ReadOption{client.Follower(), client.Lease()}, Seed: seed,
	}
	e.running.Go(func() { e.history = history.Record(ctx, doors, plan) })
	for i := range 2 {
		c := &counter{key: fmt.Sprintf("%s-counter-%d", name, i), heard: make(map[int64]bool)}
		l := &list{prefix: fmt.Sprintf("%s-list-%d-", name, i), tokens: make(map[token]effect)}
		e.counters, e.lists = append(e.counters, c), append(e.lists, l)
		for j, w := range []writer{writers[0], writers[1+i%len(cs.redis)], writers[1+(i+1)%len(cs.redis)]} {
			e.running.Go(func() { c.work(ctx, w) })
			e.running.Go(func() { l.work(ctx, w, j) })
		}
		e.running.Go(func() { e.bank.work(ctx, cs.store, i) })
	}
	return e
}

// halt stops the load and waits until every operation has ended.
func (e *epoch) halt() {
	e.stop()
	e.running.Wait()
}

// watched compares what the watch of the counters was told with what is stored,
// and ends it.
func (e *epoch) watched() (problems []string) {
	ctx, cancel := context.WithTimeout(context.Background(), readBackWithin)
	defer cancel()
	var keys []string
	for _, c := range e.counters {
		keys = append(keys, c.key)
	}
	problems = e.follower.check(ctx, readPatiently(e.clients.store), keys)
	e.deafen()
	e.hearing.Wait()
	return problems
}

// tally counts the operations of a load that has stopped.
func (e *epoch) tally() (sum tally) {
	unknown := int64(e.history.Unknown())
	sum = tally{ok: int64(len(e.history.Ops)) - unknown, failed: int64(e.history.Failed), unknown: unknown}
	for i := range e.counters {
		sum.plus(e.counters[i].done)
		sum.plus(e.lists[i].done)
	}
	sum.plus(e.bank.done)
	return sum
}

// readBack compares what is stored with what the clients of the counters, lists
// and accounts were told.
func (e *epoch) readBack() (problems []string) {
	ctx, cancel := context.WithTimeout(context.Background(), readBackWithin)
	defer cancel()
	get := readPatiently(e.clients.store)
	for i := range e.counters {
		problems = append(problems, e.counters[i].check(ctx, get)...)
		problems = append(problems, e.lists[i].check(ctx, get)...)
	}
	return append(problems, e.bank.check(ctx, e.clients.store)...)
}

// trouble is one of the errors that the clients of the registers met.
func (e *epoch) trouble() string {
	if e.history.Error == nil {
		return ""
	}
	return ", one of them: " + strings.SplitN(e.history.Error.Error(), "\n", 2)[0]
}

// linearizable checks the history; of one that is not it keeps a page and the
// operations.
func (e *epoch) linearizable(dir string) error {
	finding := history.Check(e.history, searchMax)
	if finding.Verdict == history.Linearizable {
		return nil
	}
	page, ops := filepath.Join(dir, e.name+".html"), filepath.Join(dir, e.name+".json")
	err := fmt.Errorf("%s: the history of %d operations is %s", e.name, len(e.history.Ops), finding.Verdict)
	kept := e.history.Ops
	if finding.Verdict == history.NotLinearizable {
		kept = finding.Ops
		err = fmt.Errorf("%w: no order of the operations of %s explains the last answer\n%s\npage: %s", err, finding.Key, lastOps(finding.Ops), page)
		file, fileErr := os.Create(page)
		if fileErr == nil {
			fileErr = errors.Join(finding.Draw(file, searchMax), file.Close())
		}
		err = errors.Join(err, fileErr)
	}
	encoded, jsonErr := json.Marshal(kept)
	if jsonErr == nil {
		jsonErr = os.WriteFile(ops, encoded, 0o644)
	}
	return errors.Join(fmt.Errorf("%w\noperations: %s", err, ops), jsonErr)
}

// lastOps are the last operations of a history, in the order in which they
// began.
func lastOps(ops []history.Op) string {
	const most = 20
	var b strings.Builder
	for _, op := range ops[max(0, len(ops)-most):] {
		end := "never"
		if op.End != history.Open {
			end = op.End.Round(time.Microsecond).String()
		}
		fmt.Fprintf(&b, "  client %-3d %14v .. %-14s %s\n", op.Client, op.Begin.Round(time.Microsecond), end, op)
	}
	return b.String()
}
