//go:build chaos

package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"strings"
	"time"
)

// groupsMost bounds the groups that the operator lets there be.
const groupsMost = 6

// operator moves shards, adds and removes groups and drains nodes, as someone
// does who does not know that it is a bad moment.
type operator struct {
	r       *runner
	random  *rand.Rand
	ordered map[string]int // by kind, those that were taken
	last    string         // the number of the last move
	done    chan struct{}
	stop    context.CancelFunc
}

func (r *runner) operate(seed uint64) *operator {
	ctx, stop := context.WithCancel(context.Background())
	o := &operator{r: r, random: rand.New(rand.NewPCG(seed, 77)), ordered: make(map[string]int), done: make(chan struct{}), stop: stop}
	go func() {
		defer close(o.done)
		for sleep(ctx, time.Duration(100+o.random.IntN(900))*time.Millisecond) && !r.failed() {
			o.order()
		}
	}()
	return o
}

// order draws one order. What is refused, or finds nobody, is part of the game.
func (o *operator) order() {
	group := fmt.Sprint(2 + o.random.IntN(groupsMost+2))
	switch draw := o.random.IntN(100); {
	case draw < 70:
		if out := o.say("move", "shard", "move", fmt.Sprint(o.random.IntN(shards)), group); strings.HasPrefix(out, "move ") {
			o.last = strings.Fields(out)[1]
		}
	case draw < 80 && o.last != "":
		o.say("cancel", "move", "cancel", o.last)
	case draw < 86:
		if s, err := o.r.cluster.status(); err == nil && len(s.Groups)-1 < groupsMost {
			o.say("group-add", "group", "add")
		}
	case draw < 92:
		o.say("group-remove", "group", "remove", group)
	case len(o.r.cluster.nodes) > 3:
		node := o.r.cluster.nodes[o.random.IntN(len(o.r.cluster.nodes))].name
		if o.random.IntN(2) == 0 {
			o.say("drain", "node", "drain", node)
		} else {
			o.say("drain-back", "node", "drain", node, "--back")
		}
	}
}

// say runs a command. It may be refused, and it may find no leader; it must not
// be wrong.
func (o *operator) say(kind string, args ...string) string {
	out, err := o.r.cluster.flotilla(5*time.Second, append(args, "--server", strings.Join(o.r.cluster.servers(), ","))...)
	if err == nil {
		o.ordered[kind]++
		return string(out)
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 2 {
		o.r.problem("%v", err)
	}
	return ""
}

// end stops ordering and requires that all that was ordered comes to an end.
func (o *operator) end() {
	o.stop()
	<-o.done
	for _, n := range o.r.cluster.nodes {
		o.say("drain-back", "node", "drain", n.name, "--back")
	}
	servers := strings.Join(o.r.cluster.servers(), ",")
	if _, err := o.r.cluster.flotilla(convergeIn+10*time.Second, "move", "wait", "--timeout", convergeIn.String(), "--server", servers); err != nil {
		o.r.problem("%v", err)
	}
	out, err := o.r.cluster.flotilla(10*time.Second, "move", "list", "-o", "json", "--server", servers)
	var moves []struct {
		ID      uint64 `json:"id"`
		Phase   string `json:"phase"`
		PauseUs int64  `json:"pause_us"`
	}
	if err == nil {
		err = json.Unmarshal(out, &moves)
	}
	o.r.must(err)
	phases := make(map[string]int)
	for _, m := range moves {
		phases[m.Phase]++
		if m.Phase == "failed" {
			o.r.problem("move %d has failed", m.ID)
		}
	}
	o.r.note("operator", "", fmt.Sprintf("ordered %v; the last moves: %v", o.ordered, phases))
}
