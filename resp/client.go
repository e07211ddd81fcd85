package resp

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

const errClientName = "ERR Client names cannot contain spaces, newlines or special characters."

// clientBytesMax bounds what a client calls itself.
const clientBytesMax = 1 << 10

// clientCommand is the CLIENT container.
func clientCommand() *command {
	sub := func(name string, arity int, flags, summary string, mode commandMode, run func(*job)) *command {
		categories := "@slow @connection"
		if hasFlag(flags, "admin") {
			categories = "@admin @slow @dangerous @connection"
		}
		return &command{name: "client|" + name, arity: arity, flags: flags, categories: categories, group: "connection",
			since: "2.4.0", summary: summary, mode: mode, run: run}
	}
	const plain, admin = "noscript loading stale", "admin noscript loading stale"
	return &command{
		name: "client", arity: -2, categories: "@slow", group: "connection", since: "2.4.0",
		summary: "Commands on client connections",
		subs: []*command{
			sub("id", 2, plain, "Number of this connection", 0, runClientID),
			sub("getname", 2, plain, "Name of this connection", 0, runClientGetName),
			sub("setname", 3, plain, "Name this connection", 0, runClientSetName),
			sub("setinfo", 4, plain, "Tell the client library", 0, runClientSetInfo),
			sub("info", 2, plain, "Describe this connection", 0, runClientInfo),
			sub("list", -2, admin, "Describe all connections of this node", 0, runClientList),
			sub("reply", 3, plain, "Mute or unmute replies", notInMulti, runClientReply),
			sub("no-evict", 3, admin, "Accepted; connections are never evicted", 0, runClientSwitch),
			sub("no-touch", 3, plain, "Accepted; keys have no access times", 0, runClientSwitch),
			sub("help", 2, "loading stale", "Describe CLIENT's subcommands", 0, runClientHelp),
		},
	}
}

func runClientHelp(j *job) {
	j.help("CLIENT",
		"GETNAME", "    Return the name of the current connection.",
		"ID", "    Return the ID of the current connection.",
		"INFO", "    Return information about the current client connection.",
		"LIST [options ...]", "    Return information about client connections. Options:",
		"    * TYPE (NORMAL|MASTER|REPLICA|PUBSUB)", "      Return clients of specified type.",
		"REPLY (ON|OFF|SKIP)", "    Control the replies sent to the current connection.",
		"SETNAME <name>", "    Assign the name <name> to the current connection.",
		"SETINFO <option> <value>", "    Set client meta attr: LIB-NAME or LIB-VER.",
		"NO-EVICT (ON|OFF)", "    Accepted and without effect.")
}

// help answers a container's HELP.
func (j *job) help(name string, lines ...string) {
	elems := []reply{statusReply(name + " <subcommand> [<arg> [value] [opt] ...]. Subcommands are:")}
	for _, l := range lines {
		elems = append(elems, statusReply(l))
	}
	j.reply(arrayReply(append(elems, statusReply("HELP"), statusReply("    Prints this help."))...))
}

func runClientID(j *job) { j.reply(intReply(int64(j.c.id))) }

func runClientGetName(j *job) {
	if j.c.session.name == "" {
		j.reply(nullReply())
		return
	}
	j.reply(textReply(j.c.session.name))
}

// isClientName says whether all bytes are printable and none is a space; a
// name appears in CLIENT LIST, whose fields spaces divide.
func isClientName(name []byte) bool {
	for _, c := range name {
		if c < '!' || c > '~' {
			return false
		}
	}
	return len(name) <= clientBytesMax
}

func runClientSetName(j *job) {
	if !isClientName(j.arg(2)) {
		j.fail(errClientName)
		return
	}
	j.c.session.name = string(j.arg(2))
	j.reply(okReply())
}

func runClientSetInfo(j *job) {
	option, value := j.arg(2), j.arg(3)
	if !isClientName(value) {
		j.fail("ERR " + strings.ToLower(clip(option, unknownBytesMax)) + " cannot contain spaces, newlines or special characters.")
		return
	}
	switch {
	case isWord(option, "lib-name"):
		j.c.session.library = string(value)
	case isWord(option, "lib-ver"):
		j.c.session.libraryVer = string(value)
	default:
		j.fail("ERR Unrecognized option '" + clip(option, unknownBytesMax) + "'")
		return
	}
	j.reply(okReply())
}

func runClientReply(j *job) {
	c := j.c
	switch mode := j.arg(2); {
	case isWord(mode, "on"):
		c.session.mute = muteNot
		j.slot.silent = false
		j.reply(okReply())
	case isWord(mode, "off"):
		c.session.mute = muteOff
		j.slot.silent = true
	case isWord(mode, "skip"):
		j.slot.silent = true
		if c.session.mute != muteOff {
			c.session.mute = muteNext
		}
	default:
		j.fail(errSyntax)
	}
}

func runClientSwitch(j *job) {
	if !isWord(j.arg(2), "on") && !isWord(j.arg(2), "off") {
		j.fail(errSyntax)
		return
	}
	j.reply(okReply())
}

// seen is what CLIENT LIST tells of a connection, as of its last read.
type seen struct {
	at      time.Time
	command *command
	queued  int // in MULTI; -1: none
	resp3   bool
	name    string
	library string
	version string
}

// note brings what CLIENT LIST shows up to date.
func (c *conn) note(last *command) {
	now := seen{
		at: time.Now(), command: last, queued: -1, resp3: c.session.resp3,
		name: c.session.name, library: c.session.library, version: c.session.libraryVer,
	}
	if c.tx != nil {
		now.queued = len(c.tx.queued)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen = now
}

// describe is the connection's line of CLIENT LIST.
func (c *conn) describe(now time.Time) string {
	c.mu.Lock()
	s := c.seen
	c.mu.Unlock()
	name, version := "NULL", 2
	if s.command != nil {
		name = s.command.name
	}
	if s.resp3 {
		version = 3
	}
	flags := "N"
	if s.queued >= 0 {
		flags = "x"
	}
	return fmt.Sprintf("id=%d addr=%s laddr=%s fd=0 name=%s age=%d idle=%d flags=%s db=0 sub=0 psub=0 ssub=0 multi=%d "+
		"qbuf=0 qbuf-free=0 argv-mem=0 multi-mem=0 rbs=0 rbp=0 obl=0 oll=0 omem=0 tot-mem=0 events=r cmd=%s user=default redir=-1 resp=%d lib-name=%s lib-ver=%s",
		c.id, c.nc.RemoteAddr(), c.nc.LocalAddr(), s.name, int(now.Sub(c.since).Seconds()), int(now.Sub(s.at).Seconds()),
		flags, s.queued, name, version, s.library, s.version)
}

func runClientInfo(j *job) {
	j.c.note(j.cmd)
	j.reply(reply{kind: kindVerbatim, text: j.c.describe(time.Now()) + "\n"})
}

func runClientList(j *job) {
	keep, ok := j.clientFilter(j.args[2:])
	if !ok {
		return
	}
	j.c.note(j.cmd)
	all := j.c.server.open()
	slices.SortFunc(all, func(a, b *conn) int { return int(int64(a.id) - int64(b.id)) })
	var b strings.Builder
	now := time.Now()
	for _, c := range all {
		if keep(c) {
			b.WriteString(c.describe(now))
			b.WriteByte('\n')
		}
	}
	j.reply(reply{kind: kindVerbatim, text: b.String()})
}

// clientFilter understands CLIENT LIST's TYPE and ID.
func (j *job) clientFilter(args [][]byte) (keep func(*conn) bool, ok bool) {
	switch {
	case len(args) == 0:
		return func(*conn) bool { return true }, true
	case len(args) == 2 && isWord(args[0], "type"):
		normal := isWord(args[1], "normal")
		if !normal && !slices.ContainsFunc([]string{"master", "replica", "slave", "pubsub"}, func(w string) bool { return isWord(args[1], w) }) {
			return nil, j.failed("ERR Unknown client type '" + clip(args[1], unknownBytesMax) + "'")
		}
		return func(*conn) bool { return normal }, true
	case len(args) > 1 && isWord(args[0], "id"):
		ids := make(map[uint64]bool)
		for _, a := range args[1:] {
			id, ok := parseInt(a)
			if !ok || id <= 0 {
				return nil, j.failed("ERR Invalid client ID")
			}
			ids[uint64(id)] = true
		}
		return func(c *conn) bool { return ids[c.id] }, true
	}
	return nil, j.failed(errSyntax)
}
