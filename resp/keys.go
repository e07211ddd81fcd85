package resp

// keyCommands are the commands on keys whatever their value.
func keyCommands() []*command {
	row := func(name string, arity int, flags string, keys [3]int, since, summary string, run func(*job)) *command {
		return &command{name: name, arity: arity, flags: flags, keys: keys, categories: categoriesOf("keyspace", flags),
			group: "generic", since: since, summary: summary, run: run}
	}
	one, all := [3]int{1, 1, 1}, [3]int{1, -1, 1}
	return []*command{
		row("del", -2, "write", all, "1.0.0", "Delete keys", runDel),
		row("unlink", -2, "write fast", all, "4.0.0", "Delete keys", runDel),
		row("exists", -2, "readonly fast", all, "1.0.0", "Count the keys that are there", runExists),
		row("touch", -2, "readonly fast", all, "3.2.1", "Count the keys that are there", runExists),
		row("type", 2, "readonly fast", one, "1.0.0", "Kind of a key's value", runType),
	}
}

func runType(j *job) { j.read(j.arg(1), shapeType) }

// runDel deletes each key in its shard and counts those that were there. Keys
// of several shards are not deleted at one moment.
func runDel(j *job) {
	if !j.countKeys() {
		return
	}
	for _, key := range j.args[1:] {
		j.write(key, len(key), shapeCount, newDelete(key, false))
	}
}

func runExists(j *job) {
	if !j.countKeys() {
		return
	}
	for _, key := range j.args[1:] {
		j.read(key, shapeCount)
	}
}

// countKeys checks the keys and sets the count to 0.
func (j *job) countKeys() bool {
	for _, key := range j.args[1:] {
		if _, ok := j.shard(key); !ok {
			return false
		}
	}
	j.reply(intReply(0))
	return true
}

// categoriesOf derives ACL categories as Redis does: the data kind, read or
// write, fast or slow.
func categoriesOf(kind, flags string) string {
	access, speed := "@write", "@slow"
	if hasFlag(flags, "readonly") {
		access = "@read"
	}
	if hasFlag(flags, "fast") {
		speed = "@fast"
	}
	if kind == "keyspace" {
		return "@keyspace " + access + " " + speed
	}
	return access + " @" + kind + " " + speed
}
