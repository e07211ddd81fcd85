package resp

import "slices"

// parameter is one row of CONFIG. The door has no configuration to change at
// run time: GET tells what tools ask for, and SET takes what means nothing
// here or is so already.
type parameter struct {
	name     string
	value    func(*Server) string
	harmless bool // SET is answered OK, and changes nothing
}

func parameters() []parameter {
	fixed := func(v string) func(*Server) string {
		return func(*Server) string { return v }
	}
	return []parameter{
		{"appendfsync", fixed("always"), true},
		{"appendonly", fixed("yes"), true},
		{"databases", fixed("1"), false},
		{"hz", fixed("10"), true},
		{"latency-monitor-threshold", fixed("0"), true},
		{"lazyfree-lazy-user-del", fixed("no"), true},
		{"lazyfree-lazy-user-flush", fixed("no"), true},
		{"loglevel", fixed("notice"), true},
		{"maxclients", func(s *Server) string { return itoa(int64(s.maxClients)) }, false},
		{"maxmemory", fixed("0"), false},
		{"maxmemory-policy", fixed("noeviction"), false},
		{"notify-keyspace-events", fixed(""), false},
		{"proto-max-bulk-len", fixed(itoa(bulkBytesMax)), false},
		{"save", fixed(""), true},
		{"slowlog-log-slower-than", fixed("10000"), true},
		{"slowlog-max-len", fixed("128"), true},
		{"tcp-keepalive", fixed("15"), false},
		{"timeout", func(s *Server) string { return itoa(int64(s.idleTimeout.Seconds())) }, false},
	}
}

func configCommand() *command {
	sub := func(name string, arity int, summary string, run func(*job)) *command {
		flags, categories := "admin noscript loading stale", "@admin @slow @dangerous"
		if name == "help" {
			flags, categories = "loading stale", "@slow"
		}
		return &command{name: "config|" + name, arity: arity, flags: flags, categories: categories, group: "server", since: "2.0.0", summary: summary, run: run}
	}
	return &command{
		name: "config", arity: -2, categories: "@slow", group: "server", since: "2.0.0", summary: "Read parameters",
		subs: []*command{
			sub("get", -3, "Parameters that match patterns", runConfigGet),
			sub("set", -4, "Accepted where harmless", runConfigSet),
			sub("resetstat", 2, "Set INFO's counters to 0", runConfigResetStat),
			sub("rewrite", 2, "Refused: there is no file", runConfigRewrite),
			sub("help", 2, "Describe CONFIG's subcommands", runConfigHelp),
		},
	}
}

func runConfigHelp(j *job) {
	j.help("CONFIG",
		"GET <pattern>", "    Return parameters matching the glob-like <pattern> and their values.",
		"SET <directive> <value>", "    Accepted where it changes nothing.",
		"RESETSTAT", "    Reset statistics reported by the INFO command.")
}

func runConfigGet(j *job) {
	var elems []reply
	for _, p := range parameters() {
		if slices.ContainsFunc(j.args[2:], func(pattern []byte) bool { return globMatch(lowerOf(pattern), []byte(p.name)) }) {
			elems = append(elems, textReply(p.name), textReply(p.value(j.c.server)))
		}
	}
	j.reply(mapReply(elems...))
}

func lowerOf(b []byte) []byte {
	lower, _ := appendLower(make([]byte, 0, len(b)), b)
	return lower
}

func runConfigSet(j *job) {
	pairs := j.args[2:]
	if len(pairs)%2 != 0 {
		j.fail(wrongArity("config|set"))
		return
	}
	all := parameters()
	for i := 0; i < len(pairs); i += 2 {
		at := slices.IndexFunc(all, func(p parameter) bool { return isWord(pairs[i], p.name) })
		name := clip(pairs[i], unknownBytesMax)
		switch {
		case at < 0:
			j.fail("ERR Unknown option or number of arguments for CONFIG SET - '" + name + "'")
			return
		case !all[at].harmless && all[at].value(j.c.server) != string(pairs[i+1]):
			j.fail("ERR CONFIG SET failed (possibly related to argument '" + name + "') - can't set immutable config")
			return
		}
	}
	j.reply(okReply())
}

func runConfigResetStat(j *job) {
	j.c.server.stats.reset()
	j.reply(okReply())
}

func runConfigRewrite(j *job) { j.fail("ERR The server is running without a config file") }
