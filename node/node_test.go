package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
	"github.com/flotilla-kv/flotilla/client"
	"github.com/flotilla-kv/flotilla/internal/tlsfiles"
	"github.com/flotilla-kv/flotilla/raft/logstore"
)

// start starts a node on free ports; it is stopped when the test ends.
func start(t *testing.T, name, dir string, join ...string) *Node {
	t.Helper()
	return startWith(t, Options{Name: name, DataDir: dir, Join: join})
}

// startWith is start for options that are not the usual ones.
func startWith(t *testing.T, o Options) *Node {
	t.Helper()
	for _, listen := range []*string{&o.Listen, &o.GossipListen, &o.RespListen, &o.HTTPListen} {
		*listen = "127.0.0.1:0"
	}
	o.Logger = slog.New(slog.NewTextHandler(t.Output(), nil)).With("node", o.Name)
	n, err := Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, n) })
	return n
}

// stop stops a node that the test may have stopped already.
func stop(t *testing.T, n *Node) {
	t.Helper()
	if n.stopped() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := n.Stop(ctx); err != nil {
		t.Errorf("stop %s: %v", n.Addresses().Name, err)
	}
}

// stopped tells whether the node's goroutines have been told to end.
func (n *Node) stopped() bool {
	select {
	case <-n.ended:
		return true
	default:
		return false
	}
}

// cluster starts three nodes and makes a cluster of them.
func cluster(t *testing.T, dir string) []*Node {
	t.Helper()
	var nodes []*Node
	var join []string
	for i := range 3 {
		name := fmt.Sprintf("n%d", i+1)
		n := start(t, name, filepath.Join(dir, name), join...)
		nodes = append(nodes, n)
		join = append(join, n.Addresses().Gossip)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := nodes[0].Init(ctx, 16, 3, 4); err != nil {
		t.Fatal(err)
	}
	waitReady(t, nodes)
	return nodes
}

func waitReady(t *testing.T, nodes []*Node) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for _, n := range nodes {
		last := ""
		if err := n.WaitReady(ctx, func(what string) { last = what }); err != nil {
			t.Fatalf("%s waits for %s: %v", n.Addresses().Name, last, err)
		}
	}
}

func clientOf(t *testing.T, n *Node) *client.Client {
	t.Helper()
	c, err := client.New(client.Options{Servers: []string{n.Addresses().GRPC}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// What was written at one node is read at another, also after all have been
// stopped and started under other addresses, knowing nobody's.
func TestWriteRestartRead(t *testing.T) {
	dir := t.TempDir()
	nodes := cluster(t, dir)
	c := clientOf(t, nodes[0])
	const keys = 200
	for i := range keys {
		if _, err := c.Put(t.Context(), fmt.Sprint("key-", i), []byte(fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range nodes {
		stop(t, n)
	}
	var again []*Node
	var join []string
	for i, n := range nodes {
		// A node that is started under a new address has to be found by somebody.
		again = append(again, start(t, n.Addresses().Name, filepath.Join(dir, fmt.Sprintf("n%d", i+1)), join...))
		join = append(join, again[i].Addresses().Gossip)
	}
	waitReady(t, again)
	c = clientOf(t, again[2])
	for i := range keys {
		item, err := c.Get(t.Context(), fmt.Sprint("key-", i))
		if err != nil || string(item.Value) != fmt.Sprint(i) {
			t.Fatalf("key-%d is %q (%v) after the restart", i, item.Value, err)
		}
	}
}

// A node whose log was cut, with damage in the second copy of its votes, keeps
// its replicas down and says so; it goes on as a door to the others.
func TestANodeThatLostItsVotesIsADoor(t *testing.T) {
	dir := t.TempDir()
	nodes := cluster(t, dir)
	c := clientOf(t, nodes[0])
	for i := range 50 {
		if _, err := c.Put(t.Context(), fmt.Sprint("key-", i), []byte("before")); err != nil {
			t.Fatal(err)
		}
	}
	stop(t, nodes[2])
	damage(t, filepath.Join(dir, "n3", "log", "votes"), func(text []byte) []byte { text[len(text)-1] ^= 1; return text })
	file, err := logstore.ActiveFile(filepath.Join(dir, "n3", "log"))
	if err != nil {
		t.Fatal(err)
	}
	damage(t, file, func(text []byte) []byte { return text[:len(bytes.TrimRight(text, "\x00"))/2] })

	door := start(t, "n3", filepath.Join(dir, "n3"), nodes[0].Addresses().Gossip)
	eventually(t, "it says what it waits for", func() bool {
		return slices.ContainsFunc(door.WaitingFor(), func(what string) bool { return strings.Contains(what, "to be replaced") })
	})
	if status, body := get(t, door, "/readyz"); status != http.StatusServiceUnavailable || !strings.Contains(body, "votes are lost") {
		t.Errorf("/readyz: %d %q", status, body)
	}
	if running := door.host.Load().Statuses(); len(running) != 0 {
		t.Errorf("replicas run: %+v", running)
	}
	c = clientOf(t, door)
	if _, err := c.Put(t.Context(), "key-0", []byte("after")); err != nil {
		t.Error(err)
	}
	if item, err := c.Get(t.Context(), "key-1"); err != nil || string(item.Value) != "before" {
		t.Errorf("%q, %v", item.Value, err)
	}
	eventually(t, "the cluster's status says so too", func() bool {
		s, err := nodes[0].ctrl.GetStatus(t.Context(), &flotillav1.GetStatusRequest{})
		return err == nil && slices.ContainsFunc(s.WaitingFor, func(what string) bool { return strings.Contains(what, "to be replaced") })
	})
}

// A map that does not name a replica may be old: what runs here goes on unless
// the config group, asked, says that it was removed.
func TestAnOldMapRemovesNothing(t *testing.T) {
	nodes := cluster(t, t.TempDir())
	n := nodes[2]
	host := n.host.Load()
	before := len(host.Statuses())
	if before == 0 {
		t.Fatal("the node has no replicas: the test tests nothing")
	}
	old := *n.ctrl.Maps().Current()
	old.Groups = nil
	if again := n.followOnce(t.Context(), &old); again {
		t.Error("the config group could not be asked")
	}
	if after := len(host.Statuses()); after != before {
		t.Errorf("%d replicas are left of %d", after, before)
	}
}

// damage rewrites a file.
func damage(t *testing.T, name string, change func([]byte) []byte) {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, change(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := until(ctx, holds); err != nil {
		t.Fatalf("not in time: %s", what)
	}
}

func TestDoorsSayWhetherTheNodeServes(t *testing.T) {
	alone := start(t, "alone", t.TempDir())
	if status, body := get(t, alone, "/readyz"); status != http.StatusServiceUnavailable || !strings.Contains(body, "init") {
		t.Errorf("/readyz before init: %d %q", status, body)
	}
	if waiting := alone.WaitingFor(); !slices.Equal(waiting, []string{"init"}) {
		t.Errorf("before init the node waits for %v", waiting)
	}
	nodes := cluster(t, t.TempDir())
	for _, path := range []string{"/healthz", "/readyz", "/metrics", "/"} {
		if status, body := get(t, nodes[1], path); status != http.StatusOK || body == "" {
			t.Errorf("%s of a node that serves: %d %q", path, status, body)
		}
	}
	if _, body := get(t, nodes[1], "/metrics"); !strings.Contains(body, "flotilla_log_sync_seconds_count") || !strings.Contains(body, "flotilla_groups 5") {
		t.Errorf("/metrics lacks series:\n%.2000s", body)
	}
	if status, _ := get(t, nodes[1], "/debug/pprof/"); status != http.StatusNotFound {
		t.Errorf("/debug/pprof/ without the flag: %d", status)
	}
	conn, err := grpc.NewClient("passthrough:///"+nodes[1].Addresses().GRPC, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	deadline := time.Now().Add(10 * time.Second)
	for {
		answer, err := healthv1.NewHealthClient(conn).Check(t.Context(), &healthv1.HealthCheckRequest{})
		if err == nil && answer.Status == healthv1.HealthCheckResponse_SERVING {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("gRPC health of a node that serves: %v %v", answer, err)
		}
	}
}

func get(t *testing.T, n *Node, path string) (status int, body string) {
	t.Helper()
	response, err := http.Get("http://" + n.Addresses().HTTP + path)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(content)
}

// A node whose leaderships were handed over goes without a failed request.
func TestHandOver(t *testing.T) {
	nodes := cluster(t, t.TempDir())
	c := clientOf(t, nodes[0])
	ctx, cancel := context.WithCancel(t.Context())
	written := make(chan error, 1)
	go func() {
		for i := 0; ; i++ {
			if _, err := c.Put(t.Context(), fmt.Sprint("key-", i), nil); err != nil || ctx.Err() != nil {
				written <- err
				return
			}
		}
	}()
	nodes[2].HandOver(t.Context())
	stop(t, nodes[2])
	cancel()
	if err := <-written; err != nil {
		t.Errorf("a write failed: %v", err)
	}
}

func TestStartRefuses(t *testing.T) {
	good := Options{Name: "n", DataDir: t.TempDir(), Listen: "127.0.0.1:0", GossipListen: "127.0.0.1:0", RespListen: "127.0.0.1:0", HTTPListen: "127.0.0.1:0"}
	for what, change := range map[string]func(*Options){
		"no name":        func(o *Options) { o.Name = "" },
		"long name":      func(o *Options) { o.Name = strings.Repeat("n", 65) },
		"name and blank": func(o *Options) { o.Name = "a b" },
		"no data dir":    func(o *Options) { o.DataDir = "" },
		"bad address":    func(o *Options) { o.RespListen = "nowhere" },
		"bad key":        func(o *Options) { o.GossipKey = []byte("short") },
		"half of TLS":    func(o *Options) { o.TLS.CA = "ca.crt" },
		"no TLS files":   func(o *Options) { o.TLS = tlsfiles.Paths{CA: "no.crt", Cert: "no.crt", Key: "no.key"} },
	} {
		o := good
		change(&o)
		if n, err := Start(o); err == nil {
			n.Stop(t.Context())
			t.Errorf("%s: the node started", what)
		}
	}
	// Nothing of the refusals is left behind: the same data dir and ports do.
	n, err := Start(good)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Start(good); err == nil {
		t.Error("the data dir was opened twice")
	}
	if err := n.Stop(t.Context()); err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// Gossip carries how new the newest map is; every node comes to hear of it.
func TestGossipTellsOfTheNewestMap(t *testing.T) {
	nodes := cluster(t, t.TempDir())
	deadline := time.Now().Add(15 * time.Second)
	for {
		newest, behind := uint64(0), ""
		for _, n := range nodes {
			newest = max(newest, n.ctrl.Maps().Current().Revision)
		}
		for _, n := range nodes {
			if heard := n.gossip.HighWater(); heard < newest {
				behind = fmt.Sprintf("%s has heard of revision %d, the newest is %d", n.Addresses().Name, heard, newest)
			}
		}
		if behind == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(behind)
		}
		time.Sleep(readyCheck)
	}
}
