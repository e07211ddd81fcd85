//go:build chaos

package chaos

import (
	"time"
	"unsafe"
)

// clock is a pair of clocks, monotonic and wall, that run from a moment on at a
// rate. It is a value that does not change: a new rate is a new clock.
type clock struct {
	real  time.Time // when it began
	began time.Time // what it showed then, offset aside
	rate  float64
	shift time.Duration // of the wall clock
}

// at is what the clock shows.
func (c clock) at(real time.Time) time.Time {
	return shiftWall(c.unshifted(real), c.shift)
}

func (c clock) unshifted(real time.Time) time.Time {
	return c.began.Add(time.Duration(float64(real.Sub(c.real)) * c.rate))
}

// turned is the clock that goes on from here at another rate and offset; its
// monotonic part does not jump.
func (c clock) turned(real time.Time, rate float64, shift time.Duration) clock {
	return clock{real: real, began: c.unshifted(real), rate: rate, shift: shift.Truncate(time.Second)}
}

// timeWords is a time.Time as package time lays it out: with a monotonic
// reading, wall holds one bit that says so, 33 bits of seconds since 1885 and 30
// bits of nanoseconds, and ext the monotonic reading.
type timeWords struct {
	wall uint64
	ext  int64
	loc  *time.Location
}

const (
	hasMonotonic = 1 << 63
	secondsShift = 30
)

// shiftWall moves the wall part of t by whole seconds and leaves its monotonic
// part, for which package time offers no way. TestClock fails if the layout
// ever changes.
func shiftWall(t time.Time, by time.Duration) time.Time {
	words := (*timeWords)(unsafe.Pointer(&t))
	if words.wall&hasMonotonic == 0 {
		panic("a time without its monotonic part")
	}
	words.wall += uint64(by/time.Second) << secondsShift
	return t
}
