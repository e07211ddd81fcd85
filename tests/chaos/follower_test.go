//go:build chaos

package chaos

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"

	"github.com/flotilla-kv/flotilla/client"
)

// follower watches counters: it must hear each value of each once, in order,
// unless it is told that it cannot. It goes on from where it stood again and
// again, as a program would that is restarted.
type follower struct {
	prefix string // of the counters

	mu       sync.Mutex // guards what follows
	keys     map[string]followed
	shards   map[int]followedShard
	resets   int
	heard    int
	problems []string
}

// followed is what is known of a counter.
type followed struct {
	value int64
	shard int
	told  bool // since its shard was reset
}

type followedShard struct {
	version uint64 // through which it was told
	reset   bool   // its keys are being told
}

// followedAtOnce is how many events are heard before the watch is taken up anew.
const followedAtOnce = 150

func newFollower(prefix string) *follower {
	return &follower{prefix: prefix, keys: make(map[string]followed), shards: make(map[int]followedShard)}
}

// work watches until ctx ends.
func (f *follower) work(ctx context.Context, c *client.Client) {
	from := client.WithState()
	for ctx.Err() == nil {
		w, err := c.WatchPrefix(ctx, f.prefix, from)
		if err == nil {
			err = f.follow(ctx, w)
			from = client.FromToken(w.Token())
			err = errors.Join(err, w.Close())
		}
		if err != nil && ctx.Err() == nil {
			f.mu.Lock()
			f.problems = append(f.problems, fmt.Sprintf("the watch of %s* has ended: %v", f.prefix, err))
			f.mu.Unlock()
			return
		}
	}
}

func (f *follower) follow(ctx context.Context, w *client.Watcher) error {
	for range followedAtOnce {
		e, err := w.Next(ctx)
		if err != nil {
			return err
		}
		f.mu.Lock()
		if problem := f.hear(&e); problem != "" {
			f.problems = append(f.problems, fmt.Sprintf("the watch of %s* was told %v %q = %q, shard %d version %d: %s", f.prefix, e.Kind, e.Key, e.Value, e.Shard, e.Version, problem))
		}
		f.mu.Unlock()
	}
	return nil
}

// hear takes an event in, and tells what is wrong with it.
func (f *follower) hear(e *client.Event) (problem string) {
	f.heard++
	s := f.shards[e.Shard]
	switch e.Kind {
	case client.EventReset:
		if e.Version < s.version {
			problem = fmt.Sprintf("before that it was told through version %d", s.version)
		}
		f.resets++
		f.shards[e.Shard] = followedShard{version: e.Version, reset: true}
		for name, k := range f.keys {
			if k.shard == e.Shard {
				k.told = false
				f.keys[name] = k
			}
		}
		return problem
	case client.EventComplete:
		for name, k := range f.keys {
			if k.shard == e.Shard && !k.told {
				problem = fmt.Sprintf("%s is not among the keys, which was %d", name, k.value)
			}
		}
		f.shards[e.Shard] = followedShard{version: s.version}
		return problem
	case client.EventPut:
	default:
		return "nobody deletes counters"
	}
	value, err := strconv.ParseInt(string(e.Value), 10, 64)
	before := f.keys[e.Key]
	f.keys[e.Key] = followed{value, e.Shard, true}
	switch {
	case err != nil:
		return err.Error()
	case s.reset && (value < before.value || e.Version > s.version):
		return fmt.Sprintf("before that it was %d, and the keys are those of version %d", before.value, s.version)
	case s.reset:
		return ""
	case e.Version <= s.version:
		problem = fmt.Sprintf("before that it was told through version %d", s.version)
	case value != before.value+1:
		problem = fmt.Sprintf("before that it was %d", before.value)
	}
	f.shards[e.Shard] = followedShard{version: e.Version}
	return problem
}

// check requires that it hears of what is stored, and returns what was wrong.
func (f *follower) check(ctx context.Context, get getter, keys []string) []string {
	for _, key := range keys {
		for {
			text, err := get(ctx, key)
			f.mu.Lock()
			last := f.keys[key].value
			broken := len(f.problems) > 0
			f.mu.Unlock()
			value, parseErr := strconv.ParseInt("0"+text, 10, 64)
			if err == nil && parseErr == nil && value == last || broken {
				break
			}
			if !sleep(ctx, think) {
				return []string{fmt.Sprintf("%s is %q (%v), and its watch was told %d last", key, text, err, last)}
			}
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.problems
}

// TestFollowerNotices what no watch may tell, and nothing else.
func TestFollowerNotices(t *testing.T) {
	put := func(key string, version uint64, value string) client.Event {
		return client.Event{Kind: client.EventPut, Shard: 3, Version: version, Key: key, Value: []byte(value)}
	}
	reset := func(version uint64) client.Event {
		return client.Event{Kind: client.EventReset, Shard: 3, Version: version}
	}
	complete := func(version uint64) client.Event {
		return client.Event{Kind: client.EventComplete, Shard: 3, Version: version}
	}
	begin := []client.Event{reset(4), put("a", 4, "7"), complete(4), put("a", 9, "8"), put("b", 10, "1")}
	for _, x := range []struct {
		name string
		then []client.Event
		well bool
	}{
		{"goes on", []client.Event{put("b", 12, "2"), put("a", 13, "9")}, true},
		{"is reset", []client.Event{reset(20), put("b", 11, "2"), put("a", 15, "11"), complete(20), put("a", 21, "12")}, true},
		{"is reset in the midst of a reset", []client.Event{reset(20), put("b", 11, "2"), reset(22), put("b", 21, "3"), put("a", 15, "11"), complete(22)}, true},
		{"a change is missing", []client.Event{put("a", 12, "10")}, false},
		{"a change comes twice", []client.Event{put("b", 10, "1")}, false},
		{"a value comes twice", []client.Event{put("b", 12, "1")}, false},
		{"an older version", []client.Event{put("b", 9, "2")}, false},
		{"a reset into the past", []client.Event{reset(8)}, false},
		{"an older value after a reset", []client.Event{reset(20), put("a", 4, "7")}, false},
		{"a key is gone after a reset", []client.Event{reset(20), put("a", 9, "8"), complete(20)}, false},
		{"a key of the future in a reset", []client.Event{reset(20), put("a", 21, "9")}, false},
		{"a deletion", []client.Event{{Kind: client.EventDelete, Shard: 3, Version: 12, Key: "a"}}, false},
	} {
		f := newFollower("")
		problems := ""
		for _, e := range append(begin[:len(begin):len(begin)], x.then...) {
			problems += f.hear(&e)
		}
		if (problems == "") != x.well {
			t.Errorf("%s: %q", x.name, problems)
		}
	}
}
