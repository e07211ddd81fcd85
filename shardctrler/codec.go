package shardctrler

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// errMalformed is what all bytes that this code did not write decode to.
var errMalformed = errors.New("malformed")

// encoder appends the two things that commands and records are made of:
// uvarints and byte strings with their length in front.
type encoder struct{ b []byte }

func (e *encoder) byte(v byte)   { e.b = append(e.b, v) }
func (e *encoder) uint(v uint64) { e.b = binary.AppendUvarint(e.b, v) }
func (e *encoder) int(v int64)   { e.b = binary.AppendVarint(e.b, v) }
func (e *encoder) text(v string) { e.uint(uint64(len(v))); e.b = append(e.b, v...) }
func (e *encoder) bool(v bool)   { e.byte(map[bool]byte{true: 1}[v]) }
func (e *encoder) count(v int)   { e.uint(uint64(v)) }

// decoder takes apart what an encoder made. The first error sticks, and
// everything read after it is zero, so callers check once at the end. It
// allocates only for bytes that are there.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf("%w: %s", errMalformed, fmt.Sprintf(format, args...))
	}
	d.b = nil
}

func (d *decoder) byte() byte {
	if len(d.b) == 0 {
		d.fail("cut off")
		return 0
	}
	v := d.b[0]
	d.b = d.b[1:]
	return v
}

func (d *decoder) uint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail("bad number")
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) int() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.fail("bad number")
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) text() string {
	n := d.uint()
	if n > uint64(len(d.b)) {
		d.fail("a string of %d bytes in %d", n, len(d.b))
		return ""
	}
	v := string(d.b[:n])
	d.b = d.b[n:]
	return v
}

func (d *decoder) bool() bool {
	v := d.byte()
	if v > 1 {
		d.fail("%d is no boolean", v)
	}
	return v == 1
}

// duration is one in nanoseconds.
func (d *decoder) duration() time.Duration { return time.Duration(d.int()) }

// count is the number of elements that follow; each takes a byte at least, so
// no more than the rest can hold.
func (d *decoder) count() int {
	n := d.uint()
	if n > uint64(len(d.b)) {
		d.fail("%d elements in %d bytes", n, len(d.b))
		return 0
	}
	return int(n)
}

// end is the decoder's error; bytes left over are one.
func (d *decoder) end() error {
	if d.err == nil && len(d.b) > 0 {
		d.fail("%d bytes too many", len(d.b))
	}
	return d.err
}

// version reads the format byte in front of every command and record.
func (d *decoder) version(known byte) {
	if v := d.byte(); d.err == nil && v != known {
		d.fail("version %d, known is %d", v, known)
	}
}
