package shardkv

import (
	"fmt"
	"slices"

	"github.com/flotilla-kv/flotilla/shardctrler/shardmap"
)

// commandVersion is the newest version of commands that this code writes and
// applies. An older replica that meets a newer one stops: it must not skip.
const commandVersion = 1

// The commands.
const (
	commandWrite   byte = 1
	commandBirth   byte = 2
	commandTime    byte = 3
	commandOutcome byte = 4
)

// command is one committed command of a group.
type command interface{ isCommand() }

// write is a request that may change keys of one shard.
type write struct {
	shard     shardmap.ShardID
	session   session // zero: at most once, not numbered
	compares  []compare
	ops       []op
	otherwise []op
}

// session numbers a write (RIFL).
type session struct {
	id     sessionID
	seq    uint64
	lowest uint64
}

// birth gives a group its first shards.
type birth struct {
	generation uint64
	shards     []shardmap.ShardID
}

// timeOnly has no effect but that of its entry's stamp: the group's time goes
// on, and what is due is done.
type timeOnly struct{}

// outcome asks what became of a numbered write, and closes the number.
type outcome struct {
	shard shardmap.ShardID
	id    sessionID
	seq   uint64
}

func (*write) isCommand()   {}
func (*birth) isCommand()   {}
func (timeOnly) isCommand() {}
func (*outcome) isCommand() {}

// target of a compare.
type target byte

const (
	compareExists target = iota
	compareAbsent
	compareVersion
	compareValue
)

type compare struct {
	target  target
	key     []byte
	version uint64
	value   []byte
}

// opKind tells the operations apart.
type opKind byte

const (
	opGet opKind = 1 + iota
	opPut
	opDelete
	opAppend
	opIncr
	opExpire
	opScan
	opClear
)

// condition of a put.
type condition byte

const (
	putAlways condition = iota
	putIfAbsent
	putIfPresent
	putIfVersion
	putIfValue
)

// op is one operation. Which fields count depends on the kind: the operations
// share most of them, and the codec writes only those that count.
type op struct {
	kind      opKind
	key       []byte // get, put, delete, append, incr, expire
	value     []byte // put, append
	condition condition
	version   uint64 // put if version; delete: 0 is any
	expected  []byte // put if value
	ttl       int64  // put, expire: ms from the group's time, 0: none
	expireAt  int64  // put, expire: unix ms, 0: none
	keepTTL   bool   // put
	previous  bool   // put, delete: answer with the value before
	noValue   bool   // get: answer with the length only
	by        int64  // incr
	span      span   // scan, clear
}

// span of keys, for scan and clear.
type span struct {
	start, end, prefix  []byte
	limit               uint64
	keysOnly, countOnly bool
}

// encodeCommand draws a command as in the package comment.
func encodeCommand(c command) []byte {
	size := 64
	switch c := c.(type) {
	case *write:
		size = c.size()
	case *move:
		size = c.size()
	}
	e := encoder{b: make([]byte, 0, size)}
	e.byte(commandVersion)
	switch c := c.(type) {
	case *write:
		e.byte(commandWrite)
		c.encode(&e)
	case *birth:
		e.byte(commandBirth)
		e.uint(c.generation)
		e.uint(uint64(len(c.shards)))
		for _, shard := range c.shards {
			e.uint(uint64(shard))
		}
	case timeOnly:
		e.byte(commandTime)
	case *outcome:
		e.byte(commandOutcome)
		e.uint(uint64(c.shard))
		c.id.encode(&e)
		e.uint(c.seq)
	case *move:
		e.byte(byte(c.kind))
		c.encode(&e)
	}
	return e.b
}

// size is about what the encoding takes, so that it is allocated once.
func (w *write) size() int {
	size := 64
	for _, c := range w.compares {
		size += 24 + len(c.key) + len(c.value)
	}
	for _, ops := range [][]op{w.ops, w.otherwise} {
		for i := range ops {
			o := &ops[i]
			size += 48 + len(o.key) + len(o.value) + len(o.expected) + len(o.span.start) + len(o.span.end) + len(o.span.prefix)
		}
	}
	return size
}

func (w *write) encode(e *encoder) {
	e.uint(uint64(w.shard))
	w.session.id.encode(e)
	e.uint(w.session.seq)
	e.uint(w.session.lowest)
	e.uint(uint64(len(w.compares)))
	for _, c := range w.compares {
		e.byte(byte(c.target))
		e.bytes(c.key)
		switch c.target {
		case compareVersion:
			e.uint(c.version)
		case compareValue:
			e.bytes(c.value)
		}
	}
	for _, ops := range [][]op{w.ops, w.otherwise} {
		e.uint(uint64(len(ops)))
		for i := range ops {
			ops[i].encode(e)
		}
	}
}

// Flags of an encoded op.
const (
	flagKeepTTL  = 1
	flagPrevious = 2
	flagNoValue  = 4
	flagKeysOnly = 8
	flagCount    = 16
)

func (o *op) encode(e *encoder) {
	e.byte(byte(o.kind))
	switch o.kind {
	case opGet:
		e.bytes(o.key)
		e.byte(flag(o.noValue, flagNoValue))
	case opPut:
		e.bytes(o.key)
		e.bytes(o.value)
		e.byte(flag(o.keepTTL, flagKeepTTL) | flag(o.previous, flagPrevious))
		e.byte(byte(o.condition))
		switch o.condition {
		case putIfVersion:
			e.uint(o.version)
		case putIfValue:
			e.bytes(o.expected)
		}
		e.int(o.ttl)
		e.int(o.expireAt)
	case opDelete:
		e.bytes(o.key)
		e.byte(flag(o.previous, flagPrevious))
		e.uint(o.version)
	case opAppend:
		e.bytes(o.key)
		e.bytes(o.value)
	case opIncr:
		e.bytes(o.key)
		e.int(o.by)
	case opExpire:
		e.bytes(o.key)
		e.int(o.ttl)
		e.int(o.expireAt)
	case opScan, opClear:
		e.bytes(o.span.start)
		e.bytes(o.span.end)
		e.bytes(o.span.prefix)
		e.uint(o.span.limit)
		e.byte(flag(o.span.keysOnly, flagKeysOnly) | flag(o.span.countOnly, flagCount))
	}
}

// decodeCommand reads a command; its bytes are shared with b. A write is put
// into w, whose memory is used again; nil: into one of its own.
func decodeCommand(b []byte, w *write) (command, error) {
	d := decoder{b: b}
	if version := d.byte(); d.err == nil && version != commandVersion {
		return nil, fmt.Errorf("command of version %d, this release knows %d", version, commandVersion)
	}
	var c command
	switch kind := d.byte(); kind {
	case commandWrite:
		if w == nil {
			w = new(write)
		}
		decodeWrite(&d, w)
		c = w
	case commandBirth:
		c = decodeBirth(&d)
	case commandTime:
		c = timeOnly{}
	case commandOutcome:
		c = &outcome{shard: shardmap.ShardID(d.uint()), id: decodeSessionID(&d), seq: d.uint()}
	default:
		if moveKind(kind) < moveBeginExport || moveKind(kind) > moveDiffers {
			return nil, fmt.Errorf("unknown command %d", kind)
		}
		c = decodeMove(&d, moveKind(kind))
	}
	return c, d.end()
}

func decodeBirth(d *decoder) *birth {
	c := &birth{generation: d.uint()}
	for range d.count() {
		c.shards = append(c.shards, shardmap.ShardID(d.uint()))
	}
	return c
}

func decodeWrite(d *decoder, w *write) {
	*w = write{shard: shardmap.ShardID(d.uint()), compares: w.compares[:0], ops: w.ops[:0], otherwise: w.otherwise[:0]}
	w.session.id = decodeSessionID(d)
	w.session.seq = d.uint()
	w.session.lowest = d.uint()
	for range d.count() {
		c := compare{target: target(d.byte()), key: d.bytes()}
		switch c.target {
		case compareExists, compareAbsent:
		case compareVersion:
			c.version = d.uint()
		case compareValue:
			c.value = d.bytes()
		default:
			d.fail()
		}
		w.compares = append(w.compares, c)
	}
	w.ops = decodeOps(d, w.ops)
	w.otherwise = decodeOps(d, w.otherwise)
}

func decodeOps(d *decoder, ops []op) []op {
	n := d.count()
	ops = slices.Grow(ops, min(n, 64))
	for range n {
		if d.err != nil {
			return nil
		}
		ops = append(ops, decodeOp(d))
	}
	return ops
}

func decodeOp(d *decoder) op {
	o := op{kind: opKind(d.byte())}
	switch o.kind {
	case opGet:
		o.key = d.bytes()
		o.noValue = d.byte()&flagNoValue != 0
	case opPut:
		decodePut(d, &o)
	case opDelete:
		o.key = d.bytes()
		o.previous = d.byte()&flagPrevious != 0
		o.version = d.uint()
	case opAppend:
		o.key, o.value = d.bytes(), d.bytes()
	case opIncr:
		o.key, o.by = d.bytes(), d.int()
	case opExpire:
		o.key, o.ttl, o.expireAt = d.bytes(), d.int(), d.int()
	case opScan, opClear:
		o.span = span{start: d.bytes(), end: d.bytes(), prefix: d.bytes(), limit: d.uint()}
		flags := d.byte()
		o.span.keysOnly, o.span.countOnly = flags&flagKeysOnly != 0, flags&flagCount != 0
	default:
		d.fail()
	}
	return o
}

func decodePut(d *decoder, o *op) {
	o.key, o.value = d.bytes(), d.bytes()
	flags := d.byte()
	o.keepTTL, o.previous = flags&flagKeepTTL != 0, flags&flagPrevious != 0
	switch o.condition = condition(d.byte()); o.condition {
	case putAlways, putIfAbsent, putIfPresent:
	case putIfVersion:
		o.version = d.uint()
	case putIfValue:
		o.expected = d.bytes()
	default:
		d.fail()
	}
	o.ttl, o.expireAt = d.int(), d.int()
}
