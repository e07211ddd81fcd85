//go:build process

package process

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// newest is the last of the files that match in a node's data dir: Pebble
// numbers them.
func newest(t *testing.T, dataDir string, pattern ...string) string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(append([]string{dataDir}, pattern...)...))
	if err != nil || len(names) == 0 {
		t.Fatalf("no %v in %s: %v", pattern, dataDir, err)
	}
	return slices.Max(names)
}

// change rewrites a file in place, as a disk does that goes bad, and returns
// what it held.
func change(t *testing.T, path string, damage func(text []byte) []byte) (before []byte) {
	t.Helper()
	before, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path, damage(slices.Clone(before)), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return before
}

// logEnd is the file that a node's log ends in, and where its frames begin; the
// last number is where they end. raft/logstore/doc.go draws them.
func logEnd(t *testing.T, dataDir string) (path string, frames []int64) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dataDir, "log", "segments", "*.log"))
	if err != nil {
		t.Fatal(err)
	}
	newest, text := uint64(0), []byte(nil)
	for _, p := range paths {
		file, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		if len(file) < 64 || string(file[:4]) != "FLSG" {
			continue
		}
		if number := binary.BigEndian.Uint64(file[4:]); number > newest {
			path, newest, text = p, number, file
		}
	}
	if path == "" {
		t.Fatalf("no log in %s", dataDir)
	}
	at := int64(64)
	for number := binary.BigEndian.Uint64(text[28:]); at+16 <= int64(len(text)); number++ {
		length := int64(binary.BigEndian.Uint32(text[at:]))
		if length == 0 || at+16+length > int64(len(text)) || binary.BigEndian.Uint64(text[at+8:]) != number {
			break
		}
		frames = append(frames, at)
		at += 16 + length
	}
	if len(frames) < 2 {
		t.Fatalf("%s has %d frames", path, len(frames))
	}
	return path, append(frames, at)
}

// remembered waits, when nothing is written any more, until a node's evidence
// file covers all of its log, so that any loss is noticed. That takes a second
// at most; it is written behind a sync, unless it knows of that already.
func remembered(t *testing.T, c *cluster, node int) {
	t.Helper()
	quiet := time.Now()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for time.Since(quiet) < 3*time.Second {
		info, err := os.Stat(filepath.Join(c.dataDir(node), "log", "evidence"))
		if err != nil {
			t.Fatal(err)
		}
		if info.ModTime().After(quiet) {
			return
		}
		<-tick.C
	}
}

// TestCutLog takes the end of a node's log away behind its back, when that node
// is one of two that have the last acknowledged writes and the other is down.
// The node notices and counts for nothing, so that the third, which has not
// seen these writes, cannot become leader with it. When all are back, every
// acknowledged write is there.
func TestCutLog(t *testing.T) {
	c := startCluster(t, 3)
	const keeper, behind, cut = 0, 1, 2
	r := rows{count: 2_000}
	for _, d := range []struct {
		name   string
		stop   func(*process)
		damage func(text []byte, frames []int64) []byte
	}{
		{"half of its last file after kill -9", (*process).kill, func(text []byte, frames []int64) []byte {
			return text[:frames[len(frames)/2]]
		}},
		{"a bit of its last frame after SIGTERM", func(p *process) { p.terminate(30 * time.Second) }, func(text []byte, frames []int64) []byte {
			text[frames[len(frames)-1]-1] ^= 1
			return text
		}},
	} {
		t.Log(d.name)
		c.nodes[behind].kill()
		r.seed++
		r.load(t, c.resp(keeper)) // on the disks of keeper and cut
		remembered(t, c, cut)
		d.stop(c.nodes[cut])
		c.nodes[keeper].kill()
		path, frames := logEnd(t, c.dataDir(cut))
		change(t, path, func(text []byte) []byte { return d.damage(text, frames) })

		c.start(behind)
		c.start(cut)
		c.nodes[cut].waitLine("the log was cut: all replicas are suspect", 20*time.Second)
		c.nodes[behind].waitLine("flotilla: waiting for a leader of group", 20*time.Second)
		for _, args := range [][]string{{"put", "k", "v", "--server", c.grpc(behind)}, {"get", rowKey(0), "--server", c.grpc(cut)}} {
			if stdout, stderr, code := flotilla(t, append(args, "--timeout", "2s")...); code != 1 {
				t.Errorf("%v: exit %d: %.100q %s; a node with a cut log was counted", args, code, stdout, stderr)
			}
		}

		c.start(keeper)
		for i := range c.nodes {
			c.waitReady(i)
		}
		for i := range c.nodes {
			r.check(t, c.resp(i))
		}
		caughtUp(t, c, cut)
		if keys := sameReplicas(t, c); keys < r.count {
			t.Errorf("the replicas have %d keys, want %d", keys, r.count)
		}
		// It counts again.
		c.nodes[behind].kill()
		r.seed++
		r.load(t, c.resp(keeper))
		c.start(behind)
		c.waitReady(behind)
	}
}

// TestDamagedFiles: a log that is gone, data that cannot be opened, and data
// that is damaged stop the node with exit code 1 and one clear line; the others
// go on. With the files as they were it serves again; where they cannot be had
// it is taken out and joins anew, and nothing is lost.
func TestDamagedFiles(t *testing.T) {
	c := startCluster(t, 3)
	const victim = 2
	r := rows{count: 20_000, seed: 1}
	r.load(t, c.resp(0))

	t.Log("a log that is gone")
	c.nodes[victim].kill()
	segments := filepath.Join(c.dataDir(victim), "log", "segments")
	if err := os.Rename(segments, segments+".away"); err != nil {
		t.Fatal(err)
	}
	c.start(victim)
	stopsWith(t, c.nodes[victim], "the node's log is lost", c.dataDir(victim))
	if err := errors.Join(os.RemoveAll(segments), os.Rename(segments+".away", segments)); err != nil {
		t.Fatal(err)
	}
	t.Log("data that Pebble refuses")
	manifest := newest(t, c.dataDir(victim), "state", "pebble", "MANIFEST-*")
	whole := change(t, manifest, func(text []byte) []byte {
		text[len(text)/2] ^= 1
		return text
	})
	c.start(victim)
	stopsWith(t, c.nodes[victim], "cannot be opened", filepath.Join(c.dataDir(victim), "state"))
	r.seed++
	r.load(t, c.resp(0)) // the others go on
	change(t, manifest, func([]byte) []byte { return whole })
	c.start(victim)
	c.waitReady(victim)
	caughtUp(t, c, victim)
	sameReplicas(t, c)

	t.Log("damaged data")
	c.nodes[victim].terminate(30 * time.Second)
	tables, err := filepath.Glob(filepath.Join(c.dataDir(victim), "state", "pebble", "*.sst"))
	if err != nil || len(tables) == 0 {
		t.Fatalf("no tables after SIGTERM: %v", err)
	}
	for _, table := range tables {
		change(t, table, func(text []byte) []byte {
			for at := 1000; at < len(text)*9/10; at += 1000 { // the keys, not the index behind them
				text[at] ^= 1
			}
			return text
		})
	}
	c.start(victim)
	go readReplica(t.Context(), kvAt(t, c.grpc(victim)), shardsAt(t, c.grpc(0)))
	stopsWith(t, c.nodes[victim], "damaged", c.dataDir(victim))
	r.check(t, c.resp(0))

	t.Log("the node is taken out, its data dir emptied, and it joins again")
	before := nodeID(t, c, statusAt(t, c.grpc(0)), victim)
	eventually(t, 30*time.Second, func() error { // until it counts as down
		if _, stderr, code := flotilla(t, "--server", c.grpc(0), "node", "remove", c.nodes[victim].name); code != 0 {
			return fmt.Errorf("node remove: exit %d: %s", code, stderr)
		}
		return nil
	})
	if err := os.RemoveAll(c.dataDir(victim)); err != nil {
		t.Fatal(err)
	}
	c.start(victim)
	c.waitReady(victim)
	eventually(t, 60*time.Second, func() error { return wholeGroups(t, c) })
	if id := nodeID(t, c, statusAt(t, c.grpc(0)), victim); id == before {
		t.Errorf("it came back as node %d, whose replicas may have promised what it does not know", id)
	}
	r.check(t, c.resp(victim))
	if keys := sameReplicas(t, c); keys != r.count {
		t.Errorf("the replicas have %d keys, want %d", keys, r.count)
	}
}

// wholeGroups says what the groups lack: each has a replica on every node, which votes
// and has all of the log.
func wholeGroups(t *testing.T, c *cluster) error {
	t.Helper()
	for _, g := range statusAt(t, c.grpc(0)).Groups {
		if len(g.Replicas) != len(c.nodes) {
			return fmt.Errorf("group %d has replicas %+v", g.ID, g.Replicas)
		}
		for _, r := range g.Replicas {
			if r.MatchLag != 0 || r.Role == "learner" {
				return fmt.Errorf("group %d is not whole: %+v", g.ID, g.Replicas)
			}
		}
	}
	return nil
}

// stopsWith requires that a process ends with exit code 1 and one last line,
// beside its log, that has all the words.
func stopsWith(t *testing.T, p *process, words ...string) {
	t.Helper()
	if code := p.waitExit(time.Minute); code != 1 {
		t.Errorf("%s exits with %d, want 1", p.name, code)
	}
	last := ""
	for _, line := range lines(p.tail(100)) {
		if strings.HasPrefix(line, "flotilla: ") {
			last = line
		}
	}
	for _, word := range words {
		if !strings.Contains(last, word) {
			t.Errorf("%s says last %q; want a word about %q", p.name, last, word)
		}
	}
	t.Log(last)
}
