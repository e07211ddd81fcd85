package node

import (
	"context"
	"fmt"
	"html"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/raft"
	"github.com/flotilla-kv/flotilla/raft/multiraft"
	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// readyCheck is how often WaitReady looks: what it waits for changes in many
// places, and looking is cheap.
const readyCheck = 20 * time.Millisecond

// Initialized reports whether the node belongs to a cluster.
func (n *Node) Initialized() bool {
	_, known := n.ctrl.Identity()
	return known
}

// Init makes a cluster with this node as its first; see flotilla init.
func (n *Node) Init(ctx context.Context, shards, replicas, groups int) error {
	_, err := n.ctrl.Init(ctx, &flotillav1.InitRequest{Shards: uint32(shards), Replicas: uint32(replicas), Groups: uint32(groups)})
	return err
}

// WaitingFor lists what the node still waits for before it serves; empty when
// it is ready: it is registered, has the map, the first groups exist, and
// every group it hosts has a known leader, has replayed the log that it was
// started with, and knows its shards.
func (n *Node) WaitingFor() []string {
	if waiting := n.ctrl.WaitingFor(); len(waiting) > 0 {
		return waiting
	}
	host, m := n.host.Load(), n.ctrl.Maps().Current()
	if host == nil || m == nil {
		return []string{"the shard map"}
	}
	if !slices.ContainsFunc(m.Shards, func(a shardmap.Assignment) bool { return a.Group != 0 }) {
		return []string{"the first groups: more nodes must join"}
	}
	var waiting []string
	id, _ := n.ctrl.Identity()
	for _, a := range m.Assigned(id.Node) {
		if what := n.groupWaitsFor(a.Key); what != "" {
			waiting = append(waiting, what)
		}
	}
	return waiting
}

// groupWaitsFor is what a replica assigned to this node waits for, "" if it
// serves or could.
func (n *Node) groupWaitsFor(key raft.ReplicaKey) string {
	status, running := n.host.Load().Status(key.Group)
	switch {
	case !running && n.log.Lost():
		return fmt.Sprintf("replica %d of group %d to be replaced: the node's log was cut and its votes are lost", key.Replica, key.Group)
	case !running:
		return fmt.Sprintf("the replica of group %d to start", key.Group)
	case status.Leader.Node == 0:
		return fmt.Sprintf("a leader of group %d", key.Group)
	case !n.replays.done(status):
		return fmt.Sprintf("the log of group %d to be replayed", key.Group)
	case key.Group != raft.ConfigGroup && !n.kv.Born(key.Group):
		return fmt.Sprintf("the shards of group %d", key.Group)
	}
	return ""
}

// replays remembers how long the log of each replica was when it was first
// looked at: once the replica has applied as much, it is replayed for good, and
// what it lags behind a loaded leader is another matter.
type replays struct {
	mu  sync.Mutex                     // guards end
	end map[raft.ReplicaKey]raft.Index // 0: replayed
}

func (r *replays) done(s multiraft.GroupStatus) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	end, seen := r.end[s.Key]
	if !seen {
		end = s.Last
	}
	if s.Applied >= min(end, s.Last) { // a leader may have replaced the rest by less
		end = 0
	}
	r.end[s.Key] = end
	return end == 0
}

// WaitReady returns when the node serves, or with ctx's error. report is told,
// each time it changes, what is waited for.
func (n *Node) WaitReady(ctx context.Context, report func(waiting string)) error {
	last := ""
	return until(ctx, func() bool {
		waiting := n.WaitingFor()
		if len(waiting) > 0 && waiting[0] != last {
			last = waiting[0]
			report(last)
		}
		return len(waiting) == 0
	})
}

// WaitConfigReplicas returns when the config group has at least count voters,
// or with ctx's error.
func (n *Node) WaitConfigReplicas(ctx context.Context, count int) error {
	err := until(ctx, func() bool {
		m := n.ctrl.Maps().Current()
		if m == nil {
			return false
		}
		voters := 0
		if g, ok := m.Group(raft.ConfigGroup); ok {
			for _, member := range g.Members {
				if !member.Learner {
					voters++
				}
			}
		}
		return voters >= count
	})
	if err != nil {
		return fmt.Errorf("the config group has not grown to %d replicas: %w", count, err)
	}
	return nil
}

// WaitRegistered returns when the node belongs to a cluster, or with ctx's
// error.
func (n *Node) WaitRegistered(ctx context.Context) error {
	if err := until(ctx, n.Initialized); err != nil {
		return fmt.Errorf("the node was not registered: %w", err)
	}
	return nil
}

// until looks, every readyCheck, whether done holds.
func until(ctx context.Context, done func() bool) error {
	tick := time.NewTicker(readyCheck)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// Console writes the page for people who point a browser at the HTTP port.
func (n *Node) Console(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second)
	defer cancel()
	var page strings.Builder
	fmt.Fprintf(&page, consoleHead, html.EscapeString(n.options.Name))
	status, err := n.ctrl.GetStatus(ctx, &flotillav1.GetStatusRequest{})
	if err != nil {
		fmt.Fprintf(&page, "<p>no status: %s</p>", html.EscapeString(err.Error()))
	} else {
		writeConsole(&page, status)
	}
	page.WriteString(consoleTail)
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	fmt.Fprint(w, page.String())
}

const (
	consoleHead = `<!doctype html><meta charset="utf-8"><title>flotilla %[1]s</title>
<style>body{font:14px system-ui;margin:2em}table{border-collapse:collapse;margin:1em 0}td,th{padding:.2em .8em;text-align:left;border-bottom:1px solid #ddd}</style>
<h1>flotilla: %[1]s</h1>`
	consoleTail = `<p><a href="/metrics">metrics</a> <a href="/readyz">readyz</a> <a href="/healthz">healthz</a></p>`
)

func writeConsole(page *strings.Builder, s *flotillav1.ClusterStatus) {
	fmt.Fprintf(page, "<p>cluster %s, config %d, %d shards</p>", html.EscapeString(s.ClusterId), s.ConfigNum, s.ShardsTotal)
	page.WriteString("<table><tr><th>node<th>name<th>state<th>zone<th>gRPC<th>RESP<th>leaders<th>replicas")
	for _, node := range s.Nodes {
		fmt.Fprintf(page, "<tr><td>%d<td>%s<td>%s<td>%s<td>%s<td>%s<td>%d<td>%d", node.Node.GetId(), html.EscapeString(node.Node.GetName()),
			html.EscapeString(node.Node.GetState()), html.EscapeString(node.Node.GetZone()), html.EscapeString(node.Node.GetAddr()),
			html.EscapeString(node.Node.GetRespAddr()), node.Leaders, node.Replicas)
	}
	page.WriteString("</table><table><tr><th>group<th>leader node<th>term<th>shards<th>replicas")
	for _, group := range s.Groups {
		fmt.Fprintf(page, "<tr><td>%d<td>%d<td>%d<td>%d<td>", group.Id, group.LeaderNode, group.Term, group.Shards)
		for _, r := range group.Replicas {
			fmt.Fprintf(page, "node %d %s (lag %d) ", r.NodeId, html.EscapeString(r.Role), r.MatchLag)
		}
	}
	page.WriteString("</table>")
	for _, what := range s.WaitingFor {
		fmt.Fprintf(page, "<p>waiting for: %s</p>", html.EscapeString(what))
	}
}
