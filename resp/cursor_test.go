package resp

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// testCursors is a table with a clock that the test moves.
func testCursors() (*cursors, *time.Time) {
	now := time.Unix(1_000_000, 0)
	return newCursors(func() time.Time { return now }), &now
}

func TestCursorIsKept(t *testing.T) {
	table, now := testCursors()
	first := table.keep(0, position{shard: 3, start: []byte("k")})
	if first == 0 || first > 1<<63-1 {
		t.Fatalf("cursor %d", first)
	}
	*now = now.Add(cursorLife - time.Second)
	for range 2 { // a client may ask again
		if p, ok := table.find(first); !ok || p.shard != 3 || string(p.start) != "k" {
			t.Fatalf("%v %v", p, ok)
		}
	}
	*now = now.Add(cursorLife - time.Second) // since its last use
	if _, ok := table.find(first); !ok {
		t.Error("a cursor in use was forgotten")
	}
	*now = now.Add(cursorLife)
	if _, ok := table.find(first); ok {
		t.Error("a cursor lives on ten minutes after its last use")
	}
	if len(table.byID) != 0 || table.bytes != 0 || table.recent.Len() != 0 {
		t.Errorf("%d cursors, %d bytes stay", len(table.byID), table.bytes)
	}
}

// TestCursorBefore checks that a scan holds two cursors at most: the newest,
// and the one before until the newest is used.
func TestCursorBefore(t *testing.T) {
	table, _ := testCursors()
	ids := []uint64{table.keep(0, position{})}
	for range 100 {
		last := ids[len(ids)-1]
		if _, ok := table.find(last); !ok {
			t.Fatal("the newest cursor is gone")
		}
		ids = append(ids, table.keep(last, position{}))
		if _, ok := table.byID[last]; !ok {
			t.Fatal("a cursor is gone before its successor was used")
		}
		if len(table.byID) > 2 {
			t.Fatalf("%d cursors for one scan", len(table.byID))
		}
	}
}

func TestCursorsAreBounded(t *testing.T) {
	table, _ := testCursors()
	oldest := table.keep(0, position{})
	for i := range cursorsMax {
		table.keep(0, position{shard: shardmap.ShardID(i)})
	}
	if len(table.byID) != cursorsMax {
		t.Errorf("%d cursors", len(table.byID))
	}
	if _, ok := table.find(oldest); ok {
		t.Error("the oldest cursor was kept past the limit")
	}
	for range 2 * cursorBytesMax / keyBytesMax {
		table.keep(0, position{start: make([]byte, keyBytesMax)})
	}
	if table.bytes > cursorBytesMax {
		t.Errorf("%d bytes of cursors", table.bytes)
	}
}

// TestScanRepeats asks for each page twice, as a client that lost a reply
// would: both must be the same.
func TestScanRepeats(t *testing.T) {
	s, _ := startModel(t, 16, nil)
	c := dial(t, s.Addr().String())
	for i := range 300 {
		c.send(array("SET", fmt.Sprint("k", i), "v"))
	}
	for range 300 {
		c.reply()
	}
	seen := make(map[string]bool)
	cursor := "0"
	for {
		page := c.do("SCAN", cursor, "COUNT", "20")
		if cursor != "0" {
			again := c.do("SCAN", cursor, "COUNT", "20")
			if pageKeys(again) != pageKeys(page) {
				t.Fatalf("%q the second time, %q before", again, page)
			}
			page = again
		}
		for _, key := range strings.Fields(pageKeys(page)) {
			if seen[key] {
				t.Errorf("%s twice", key)
			}
			seen[key] = true
		}
		if cursor = strings.Split(page, "\r\n")[2]; cursor == "0" {
			break
		}
	}
	if len(seen) != 300 {
		t.Errorf("%d keys", len(seen))
	}
}

// pageKeys is the keys of a SCAN reply, divided by spaces.
func pageKeys(reply string) string {
	var keys []string
	for _, line := range strings.Split(reply, "\r\n")[3:] {
		if strings.HasPrefix(line, "k") {
			keys = append(keys, line)
		}
	}
	return strings.Join(keys, " ")
}
