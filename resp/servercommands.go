package resp

import (
	"strings"
	"time"
)

// serverCommands are those about the server.
func serverCommands() []*command {
	row := func(name string, arity int, flags, categories string, mode commandMode, group, since, summary string, run func(*job)) *command {
		return &command{name: name, arity: arity, flags: flags, categories: categories,
			group: group, since: since, summary: summary, run: run, mode: mode}
	}
	return []*command{
		row("info", -1, "loading stale", "@slow @dangerous", 0, "server", "1.0.0", "Describe the server", runInfo),
		row("time", 1, "loading stale fast", "@fast", 0, "server", "2.6.0", "This node's clock", runTime),
		row("debug", -2, "admin noscript loading stale", "@admin @slow @dangerous", notInMulti, "server", "1.0.0", "Refused", runDebug),
		row("cluster", -2, "", "@slow", 0, "cluster", "3.0.0", "Refused: to clients this is a single node", runNoCluster),
		row("readonly", 1, "loading stale fast", "@fast @connection", 0, "cluster", "3.0.0", "Refused: to clients this is a single node", runNoCluster),
		row("readwrite", 1, "loading stale fast", "@fast @connection", 0, "cluster", "3.0.0", "Refused: to clients this is a single node", runNoCluster),
		row("asking", 1, "fast", "@fast @connection", 0, "cluster", "3.0.0", "Refused: to clients this is a single node", runNoCluster),
		configCommand(),
		commandCommand(),
	}
}

func runTime(j *job) {
	now := time.Now()
	j.reply(arrayReply(textReply(itoa(now.Unix())), textReply(itoa(int64(now.Nanosecond()/1000)))))
}

func runDebug(j *job) {
	j.fail(`ERR DEBUG command not allowed. If the enable-debug-command option is set to "local", you can run it from a local connection, otherwise you need to set this option in the configuration file, and then restart the server.`)
}

// runNoCluster makes clients treat the node as a single one: any node serves
// any key.
func runNoCluster(j *job) { j.fail("ERR This instance has cluster support disabled") }

// commandCommand is the COMMAND container, which is also a command by itself.
func commandCommand() *command {
	sub := func(name string, arity int, summary string, run func(*job)) *command {
		return &command{name: "command|" + name, arity: arity, flags: "loading stale", categories: "@slow @connection",
			group: "server", since: "2.8.13", summary: summary, run: run}
	}
	return &command{
		name: "command", arity: -1, flags: "loading stale", categories: "@slow @connection",
		group: "server", since: "2.8.13", summary: "Describe commands", run: runCommand,
		subs: []*command{
			sub("count", 2, "Count the commands", runCommandCount),
			sub("info", -2, "Describe commands for clients", runCommandInfo),
			sub("docs", -2, "Describe commands for people", runCommandDocs),
			sub("list", -2, "Names of the commands", runCommandList),
			sub("getkeys", -4, "Keys in a command", runCommandGetKeys),
			sub("help", 2, "Describe COMMAND's subcommands", runCommandHelp),
		},
	}
}

func runCommandHelp(j *job) {
	j.help("COMMAND",
		"(no subcommand)", "    Return details about all commands.",
		"COUNT", "    Return the total number of commands.",
		"LIST", "    Return a list of all commands.",
		"INFO [<command-name> ...]", "    Return details about multiple commands.",
		"DOCS [<command-name> ...]", "    Return documentation details about multiple commands.",
		"GETKEYS <full-command>", "    Return the keys from a full command.")
}

func runCommand(j *job) { j.infoOf(nil) }

func runCommandCount(j *job) { j.reply(intReply(int64(len(j.c.server.commands.all)))) }

func runCommandInfo(j *job) { j.infoOf(j.args[2:]) }

// infoOf describes the named commands, all if none is named.
func (j *job) infoOf(names [][]byte) {
	table := j.c.server.commands
	if len(names) == 0 {
		elems := make([]reply, len(table.all))
		for i, c := range table.all {
			elems[i] = c.info()
		}
		j.reply(arrayReply(elems...))
		return
	}
	elems := make([]reply, len(names))
	for i, name := range names {
		elems[i] = nullReply()
		if c := table.findFull(name); c != nil {
			elems[i] = c.info()
		}
	}
	j.reply(arrayReply(elems...))
}

// findFull finds a command by a name that may be "container|sub".
func (t *commandTable) findFull(name []byte) *command {
	container, sub, found := strings.Cut(string(name), "|")
	c := t.find([]byte(container))
	if c == nil || !found {
		return c
	}
	return c.sub([]byte(sub))
}

// info is the command's element of COMMAND INFO, as Redis 7 shapes it.
func (c *command) info() reply {
	subs := make([]reply, len(c.subs))
	for i, s := range c.subs {
		subs[i] = s.info()
	}
	return arrayReply(
		textReply(c.name), intReply(int64(c.arity)), wordsReply(c.flags),
		intReply(int64(c.keys[0])), intReply(int64(c.keys[1])), intReply(int64(c.keys[2])),
		wordsReply(c.categories), arrayReply(), arrayReply(), arrayReply(subs...),
	)
}

// wordsReply is a set of statuses.
func wordsReply(words string) reply {
	r := reply{kind: kindSet}
	for _, w := range strings.Fields(words) {
		r.elems = append(r.elems, statusReply(w))
	}
	return r
}

func hasFlag(flags, flag string) bool {
	for rest := flags; rest != ""; {
		var word string
		word, rest, _ = strings.Cut(rest, " ")
		if word == flag {
			return true
		}
	}
	return false
}

func runCommandDocs(j *job) {
	table := j.c.server.commands
	var elems []reply
	if len(j.args) == 2 {
		for _, c := range table.all {
			elems = append(elems, textReply(c.name), c.docs())
		}
	}
	for _, name := range j.args[2:] {
		if c := table.findFull(name); c != nil {
			elems = append(elems, textReply(c.name), c.docs())
		}
	}
	j.reply(mapReply(elems...))
}

func (c *command) docs() reply {
	elems := []reply{
		textReply("summary"), textReply(c.summary),
		textReply("since"), textReply(c.since),
		textReply("group"), textReply(c.group),
	}
	if len(c.subs) > 0 {
		var subs []reply
		for _, s := range c.subs {
			subs = append(subs, textReply(s.name), s.docs())
		}
		elems = append(elems, textReply("subcommands"), mapReply(subs...))
	}
	return mapReply(elems...)
}

func runCommandList(j *job) {
	keep := func(*command) bool { return true }
	if args := j.args[2:]; len(args) > 0 {
		if len(args) != 3 || !isWord(args[0], "filterby") {
			j.fail(errSyntax)
			return
		}
		switch value := args[2]; {
		case isWord(args[1], "module"):
			keep = func(*command) bool { return false }
		case isWord(args[1], "aclcat"):
			keep = func(c *command) bool { return hasFlag(c.categories, "@"+strings.ToLower(string(value))) }
		case isWord(args[1], "pattern"):
			keep = func(c *command) bool { return globMatch(value, []byte(c.name)) }
		default:
			j.fail(errSyntax)
			return
		}
	}
	r := reply{kind: kindBulks, list: [][]byte{}}
	for _, c := range j.c.server.commands.all {
		if keep(c) {
			r.list = append(r.list, []byte(c.name))
		}
		for _, s := range c.subs {
			if len(j.args) > 2 && keep(s) {
				r.list = append(r.list, []byte(s.name))
			}
		}
	}
	j.reply(r)
}

func runCommandGetKeys(j *job) {
	args := j.args[2:]
	c, _ := j.c.server.commands.lookup(args)
	switch {
	case j.c.server.commands.find(args[0]) == nil:
		j.fail("ERR Invalid command specified")
	case c == nil:
		j.fail("ERR Invalid number of arguments specified for command")
	case c.keys[0] == 0:
		j.fail("ERR The command has no key arguments")
	default:
		last := c.keys[1]
		if last < 0 {
			last += len(args)
		}
		r := reply{kind: kindBulks}
		for i := c.keys[0]; i <= last; i += c.keys[2] {
			r.list = append(r.list, args[i])
		}
		j.reply(r)
	}
}
