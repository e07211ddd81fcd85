package resp

import flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"

// stringCommands are the commands on values.
func stringCommands() []*command {
	row := func(name string, arity int, flags string, keys [3]int, since, summary string, run func(*job)) *command {
		return &command{name: name, arity: arity, flags: flags, keys: keys, categories: categoriesOf("string", flags),
			group: "string", since: since, summary: summary, run: run}
	}
	one, all, pairs := [3]int{1, 1, 1}, [3]int{1, -1, 1}, [3]int{1, -1, 2}
	return []*command{
		row("get", 2, "readonly fast", one, "1.0.0", "Read a key's value", runGet),
		row("set", -3, "write denyoom", one, "1.0.0", "Write a key's value", runSet),
		row("getset", 3, "write denyoom fast", one, "1.0.0", "Write a key and return the value before", runGetSet),
		row("getdel", 2, "write fast", one, "6.2.0", "Return a key's value and delete the key", runGetDel),
		row("getex", -2, "write fast", one, "6.2.0", "Return a key's value and set its expiry", runGetEx),
		row("mget", -2, "readonly fast", all, "1.0.0", "Read several keys", runMGet),
		row("mset", -3, "write denyoom", pairs, "1.0.1", "Write several keys of one shard together", runMSet),
		row("setnx", 3, "write denyoom fast", one, "1.0.0", "Write a key if it is absent", runSetNX),
		row("setex", 4, "write denyoom", one, "2.0.0", "Write a key that lives some seconds", runSetEx),
		row("psetex", 4, "write denyoom", one, "2.6.0", "Write a key that lives some milliseconds", runSetEx),
		row("append", 3, "write denyoom fast", one, "2.0.0", "Append to a key's value", runAppend),
		row("strlen", 2, "readonly fast", one, "2.2.0", "Length of a key's value", runStrlen),
		row("incr", 2, "write denyoom fast", one, "1.0.0", "Add one to a key's integer", runIncr),
		row("decr", 2, "write denyoom fast", one, "1.0.0", "Take one from a key's integer", runDecr),
		row("incrby", 3, "write denyoom fast", one, "1.0.0", "Add to a key's integer", runIncrBy),
		row("decrby", 3, "write denyoom fast", one, "1.0.0", "Take from a key's integer", runDecrBy),
	}
}

func runGet(j *job) { j.read(j.arg(1), shapeValue) }

func runStrlen(j *job) { j.read(j.arg(1), shapeLength) }

func runGetSet(j *job) {
	op, put := newPut(j.arg(1), j.arg(2))
	put.Previous = true
	j.write(j.arg(1), len(j.arg(1))+len(j.arg(2)), shapePrevious, op)
}

func runGetDel(j *job) {
	j.write(j.arg(1), len(j.arg(1)), shapePrevious, newDelete(j.arg(1), true))
}

func runSetNX(j *job) {
	op, put := newPut(j.arg(1), j.arg(2))
	put.Condition = flotillav1.Put_IF_ABSENT
	j.write(j.arg(1), len(j.arg(1))+len(j.arg(2)), shapeApplied, op)
}

func runSetEx(j *job) {
	unit := int64(1)
	if j.is("setex") {
		unit = 1000
	}
	e, ok := j.ttl(j.arg(2), unit)
	if !ok {
		return
	}
	op, put := newPut(j.arg(1), j.arg(3))
	put.TtlMs = e.ttlMS
	j.write(j.arg(1), len(j.arg(1))+len(j.arg(3)), shapeOK, op)
}

func runAppend(j *job) {
	j.write(j.arg(1), len(j.arg(1))+len(j.arg(2)), shapeNumber, newAppend(j.arg(1), j.arg(2)))
}

func runIncr(j *job) { j.incr(1) }
func runDecr(j *job) { j.incr(-1) }

func runIncrBy(j *job) {
	if by, ok := j.integer(j.arg(2)); ok {
		j.incr(by)
	}
}

func runDecrBy(j *job) {
	by, ok := j.integer(j.arg(2))
	if !ok {
		return
	}
	if by == -1<<63 {
		j.fail("ERR decrement would overflow")
		return
	}
	j.incr(-by)
}

func (j *job) incr(by int64) {
	j.write(j.arg(1), len(j.arg(1)), shapeNumber, newIncr(j.arg(1), by))
}

// runMGet reads each key in its shard; the reads meet in one list.
func runMGet(j *job) {
	keys := j.args[1:]
	for _, key := range keys {
		if _, ok := j.shard(key); !ok {
			return
		}
	}
	j.reply(bulksReply(make([][]byte, len(keys))))
	for i, key := range keys {
		shard, _ := j.shard(key)
		j.add(part{shard: shard, bytes: len(key) + opBytes, op: newGet(key, false), item: item{shape: shapeElement, index: int32(i)}})
	}
}

// runMSet writes all keys in one request, so they must share a shard.
func runMSet(j *job) {
	pairs := j.args[1:]
	if len(pairs)%2 != 0 {
		j.fail(wrongArity(j.cmd.name))
		return
	}
	shard, ok := j.shard(pairs[0])
	if !ok {
		return
	}
	ops, size := make([]*flotillav1.Op, 0, len(pairs)/2), 0
	for i := 0; i < len(pairs); i += 2 {
		s, ok := j.shard(pairs[i])
		if !ok {
			return
		}
		if s != shard {
			j.fail(errCrossSlot)
			return
		}
		op, _ := newPut(pairs[i], pairs[i+1])
		ops = append(ops, op)
		size += len(pairs[i]) + len(pairs[i+1]) + opBytes
	}
	if size > requestBytesMax {
		j.fail(errTooBig)
		return
	}
	j.add(part{shard: shard, write: true, bytes: size, op: ops[0], more: ops[1:], item: item{shape: shapeOK}})
}

// setOptions is what stands behind SET's value or GETEX's key.
type setOptions struct {
	condition flotillav1.Put_Condition
	get       bool
	keepTTL   bool
	persist   bool
	timed     bool
	unit      int64 // milliseconds of the time's unit
	absolute  bool
	time      []byte
}

// parse reads the options that the command allows; it answers a syntax error.
func (o *setOptions) parse(j *job, args [][]byte, getex bool) bool {
	for i := 0; i < len(args); i++ {
		switch a := args[i]; {
		case !getex && isWord(a, "nx") && o.condition != flotillav1.Put_IF_PRESENT:
			o.condition = flotillav1.Put_IF_ABSENT
		case !getex && isWord(a, "xx") && o.condition != flotillav1.Put_IF_ABSENT:
			o.condition = flotillav1.Put_IF_PRESENT
		case !getex && isWord(a, "get"):
			o.get = true
		case !getex && isWord(a, "keepttl") && !o.timed:
			o.keepTTL = true
		case getex && isWord(a, "persist") && !o.timed:
			o.persist = true
		case o.timeWord(a) && !o.timed && !o.keepTTL && !o.persist && i+1 < len(args):
			o.timed = true
			i++
			o.time = args[i]
		default:
			return j.failed(errSyntax)
		}
	}
	return true
}

// timeWord recognises EX, PX, EXAT and PXAT.
func (o *setOptions) timeWord(a []byte) bool {
	o2 := *o
	switch {
	case isWord(a, "ex"):
		o2.unit, o2.absolute = 1000, false
	case isWord(a, "px"):
		o2.unit, o2.absolute = 1, false
	case isWord(a, "exat"):
		o2.unit, o2.absolute = 1000, true
	case isWord(a, "pxat"):
		o2.unit, o2.absolute = 1, true
	default:
		return false
	}
	if !o.timed {
		*o = o2
	}
	return true
}

// expiry is the time given, checked.
func (o *setOptions) expiry(j *job) (expiry, bool) {
	switch {
	case !o.timed:
		return expiry{}, true
	case o.absolute:
		return j.expireAt(o.time, o.unit)
	}
	return j.ttl(o.time, o.unit)
}

func runSet(j *job) {
	key, value := j.arg(1), j.arg(2)
	var o setOptions
	if len(j.args) > 3 && !o.parse(j, j.args[3:], false) {
		return
	}
	e, ok := o.expiry(j)
	if !ok {
		return
	}
	op, put := newPut(key, value)
	put.Condition = o.condition
	put.KeepTtl, put.Previous = o.keepTTL, o.get
	put.TtlMs, put.ExpireAtMs = e.ttlMS, e.atMS
	s := shapeOK
	if o.get {
		s = shapePrevious
	}
	j.write(key, len(key)+len(value), s, op)
}

func runGetEx(j *job) {
	key := j.arg(1)
	var o setOptions
	if !o.parse(j, j.args[2:], true) {
		return
	}
	if !o.timed && !o.persist {
		j.read(key, shapeValue)
		return
	}
	e, ok := o.expiry(j)
	if !ok {
		return
	}
	j.write(key, 2*len(key), shapeValue, newGet(key, false), newExpire(key, e))
}
