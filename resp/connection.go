package resp

import (
	"crypto/sha256"
	"crypto/subtle"
)

// redisVersion is the Redis whose behaviour the door follows; clients choose
// what they send by it.
const redisVersion = "7.0.15"

// connectionCommands are those about the connection itself.
func connectionCommands() []*command {
	row := func(name string, arity int, flags string, mode commandMode, since, summary string, run func(*job)) *command {
		speed := "@slow"
		if hasFlag(flags, "fast") {
			speed = "@fast"
		}
		return &command{name: name, arity: arity, flags: flags, categories: speed + " @connection",
			group: "connection", since: since, summary: summary, run: run, mode: mode}
	}
	const early = "noscript loading stale fast no_auth allow_busy"
	return []*command{
		row("ping", -1, "fast", 0, "1.0.0", "Answer PONG or what is given", runPing),
		row("echo", 2, "loading stale fast", 0, "1.0.0", "Answer what is given", runEcho),
		row("hello", -1, early, beforeAuth|notInMulti, "6.0.0", "Choose the protocol version and authenticate", runHello),
		row("auth", -2, early, beforeAuth|notInMulti, "1.0.0", "Authenticate", runAuth),
		row("quit", -1, early, beforeAuth|inMulti, "1.0.0", "Close the connection", runQuit),
		row("reset", 1, early, beforeAuth|inMulti, "6.2.0", "Begin anew as on a new connection", runReset),
		row("select", 2, "loading stale fast", 0, "1.0.0", "Choose database 0", runSelect),
		clientCommand(),
	}
}

func runPing(j *job) {
	switch len(j.args) {
	case 1:
		j.reply(statusReply("PONG"))
	case 2:
		j.reply(bulkReply(j.arg(1)))
	default:
		j.fail(wrongArity("ping"))
	}
}

func runEcho(j *job) { j.reply(bulkReply(j.arg(1))) }

func runQuit(j *job) {
	j.c.quits = true
	j.reply(okReply())
}

// runReset also shows the client again what was muted.
func runReset(j *job) {
	j.c.resetSession()
	j.slot.silent = false
	j.reply(statusReply("RESET"))
}

func runSelect(j *job) {
	n, ok := j.integer(j.arg(1))
	switch {
	case !ok:
	case n != 0:
		j.fail("ERR DB index is out of range")
	default:
		j.reply(okReply())
	}
}

// Errors of authentication.
const (
	errWrongPass  = "WRONGPASS invalid username-password pair or user is disabled."
	errNoPassword = "ERR AUTH <password> called without any password configured for the default user. Are you sure your configuration is correct?"
	errHelloAuth  = "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH <user> <pass> option can be used to authenticate the client and select the RESP protocol version at the same time"
)

func runAuth(j *job) {
	user, password := "default", j.arg(1)
	switch len(j.args) {
	case 2:
		if j.c.server.password == "" {
			j.fail(errNoPassword)
			return
		}
	case 3:
		user, password = string(j.arg(1)), j.arg(2)
	default:
		j.fail(errSyntax)
		return
	}
	if j.authenticate(user, password) {
		j.reply(okReply())
	}
}

// authenticate checks a user, of which there is only the default one, or
// answers the error. Hashes are compared, so that the time taken tells nothing
// of the password, its length included.
func (j *job) authenticate(user string, password []byte) bool {
	want := j.c.server.password
	given, wanted := sha256.Sum256(password), sha256.Sum256([]byte(want))
	if user != "default" || want != "" && subtle.ConstantTimeCompare(given[:], wanted[:]) != 1 {
		return j.failed(errWrongPass)
	}
	j.c.session.authenticated = true
	j.c.parser.limited = false
	return true
}

// runHello switches the protocol version, authenticates and names the
// connection, all or nothing.
func runHello(j *job) {
	version := int64(2)
	if j.c.session.resp3 {
		version = 3
	}
	if len(j.args) > 1 {
		n, ok := parseInt(j.arg(1))
		if !ok {
			j.fail("ERR Protocol version is not an integer or out of range")
			return
		}
		if n != 2 && n != 3 {
			j.fail("NOPROTO unsupported protocol version")
			return
		}
		version = n
	}
	name, named, ok := j.helloOptions(j.args[min(2, len(j.args)):])
	if !ok {
		return
	}
	if !j.c.session.authenticated {
		j.fail(errHelloAuth)
		return
	}
	if named {
		j.c.session.name = name
	}
	j.c.session.resp3 = version == 3
	j.reply(mapReply(
		textReply("server"), textReply("redis"),
		textReply("version"), textReply(redisVersion),
		textReply("proto"), intReply(version),
		textReply("id"), intReply(int64(j.c.id)),
		textReply("mode"), textReply("standalone"),
		textReply("role"), textReply("master"),
		textReply("modules"), arrayReply(),
	))
}

// helloOptions carries out AUTH and checks SETNAME.
func (j *job) helloOptions(args [][]byte) (name string, named, ok bool) {
	for i := 0; i < len(args); i++ {
		switch {
		case isWord(args[i], "auth") && i+2 < len(args):
			if !j.authenticate(string(args[i+1]), args[i+2]) {
				return "", false, false
			}
			i += 2
		case isWord(args[i], "setname") && i+1 < len(args):
			if !isClientName(args[i+1]) {
				return "", false, j.failed(errClientName)
			}
			name, named = string(args[i+1]), true
			i++
		default:
			return "", false, j.failed("ERR Syntax error in HELLO option '" + clip(args[i], unknownBytesMax) + "'")
		}
	}
	return name, named, true
}
