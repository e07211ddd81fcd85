//go:build chaos

package chaos

import (
	"testing"
	"time"
)

// TestClock: a jump moves the wall part alone, a rate both, and neither makes
// the monotonic part jump.
func TestClock(t *testing.T) {
	start := time.Now()
	c := clock{real: start, began: start, rate: 1}
	for _, jump := range []time.Duration{time.Hour, -time.Hour, 0} {
		c = c.turned(start, 1, jump)
		got := c.at(start.Add(time.Second))
		if mono := got.Sub(start); mono != time.Second {
			t.Errorf("a jump of %v: the monotonic part moves by %v in a second", jump, mono)
		}
		if wall := got.Round(0).Sub(start.Round(0)); wall != jump+time.Second {
			t.Errorf("a jump of %v: the wall part moves by %v in a second", jump, wall)
		}
	}
	c = c.turned(start.Add(time.Second), 0.5, 0).turned(start.Add(3*time.Second), 1, 0)
	if got := c.at(start.Add(4 * time.Second)).Sub(start); got != 3*time.Second {
		t.Errorf("a second, two at half speed and a third are %v, want 3 s", got)
	}
}

func TestSettingsSurviveTheirFile(t *testing.T) {
	path := t.TempDir() + "/settings"
	want := Settings{Number: 7, ClockOffset: time.Hour, SyncDelay: time.Second, DiskFull: true}
	if err := want.Write(path); err != nil {
		t.Fatal(err)
	}
	got, err := Read(path)
	if err != nil || got.Number != 7 || got.ClockOffset != time.Hour || got.ClockRate != 1 || !got.DiskFull || got.SyncFails {
		t.Fatalf("%+v, %v", got, err)
	}
	if Taken(path) != 0 {
		t.Fatal("taken by nobody")
	}
}
