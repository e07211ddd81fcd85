package resp

import "strings"

// command is one row of the command table. What COMMAND tells clients and what
// the door itself needs to know stand together.
type command struct {
	name       string
	arity      int    // arguments with the name; negative: at least that many
	flags      string // as COMMAND INFO tells them
	keys       [3]int // first and last key argument and the step between keys
	categories string
	group      string
	since      string
	summary    string
	run        func(*job)
	mode       commandMode
	subs       []*command // of a container; it then has no run of its own
}

// commandMode is what the door does with a command before it runs.
type commandMode uint8

const (
	beforeAuth commandMode = 1 << iota // allowed before AUTH
	inMulti                            // runs at once inside MULTI, too
	notInMulti                         // refused inside MULTI
	settled                            // runs only when all commands before it are answered
)

func (c *command) is(m commandMode) bool { return c.mode&m != 0 }

// takes says whether a command may have n arguments, its name included.
func (c *command) takes(n int) bool {
	if c.arity < 0 {
		return n >= -c.arity
	}
	return n == c.arity
}

// commandTable holds the commands by lower-case name.
type commandTable struct {
	byName map[string]*command
	all    []*command // in the order of the table
}

func newCommandTable() *commandTable {
	t := &commandTable{byName: make(map[string]*command)}
	for _, rows := range [][]*command{
		stringCommands(), keyCommands(), expiryCommands(), spaceCommands(),
		transactionCommands(), connectionCommands(), serverCommands(),
	} {
		for _, c := range rows {
			t.all = append(t.all, c)
			t.byName[c.name] = c
		}
	}
	return t
}

// nameBytesMax is longer than any command's name.
const nameBytesMax = 32

// find looks a command up by its name in any case; nil if there is none.
func (t *commandTable) find(name []byte) *command {
	var space [nameBytesMax]byte
	lower, ok := appendLower(space[:0], name)
	if !ok {
		return nil
	}
	return t.byName[string(lower)]
}

// sub finds a container's subcommand.
func (c *command) sub(name []byte) *command {
	var space [nameBytesMax]byte
	lower, ok := appendLower(space[:0], name)
	if !ok {
		return nil
	}
	for _, s := range c.subs {
		if s.name[len(c.name)+1:] == string(lower) {
			return s
		}
	}
	return nil
}

// appendLower appends name in lower case if it fits into dst.
func appendLower(dst, name []byte) ([]byte, bool) {
	if len(name) > cap(dst) {
		return nil, false
	}
	for _, c := range name {
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		dst = append(dst, c)
	}
	return dst, true
}

// isWord says whether an argument is word, which is in lower case, in any
// case.
func isWord(arg []byte, word string) bool {
	if len(arg) != len(word) {
		return false
	}
	for i, c := range arg {
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != word[i] {
			return false
		}
	}
	return true
}

// lookup finds the command that args call, or the error line to answer.
func (t *commandTable) lookup(args [][]byte) (*command, string) {
	c := t.find(args[0])
	if c == nil {
		return nil, unknownCommand(args)
	}
	if len(c.subs) > 0 && len(args) > 1 {
		s := c.sub(args[1])
		if s == nil {
			return nil, "ERR unknown subcommand '" + clip(args[1], unknownBytesMax) + "'. Try " + strings.ToUpper(c.name) + " HELP."
		}
		c = s
	}
	if !c.takes(len(args)) || c.run == nil {
		return nil, wrongArity(c.name)
	}
	return c, ""
}

func wrongArity(name string) string {
	return "ERR wrong number of arguments for '" + name + "' command"
}

// unknownBytesMax bounds how much of what a client sent comes back in an
// error.
const unknownBytesMax = 128

// unknownCommand is the error for a name that is no command, with the
// beginning of its arguments, as Redis words it.
func unknownCommand(args [][]byte) string {
	var b strings.Builder
	b.WriteString("ERR unknown command '")
	b.WriteString(clip(args[0], unknownBytesMax))
	b.WriteString("', with args beginning with: ")
	left := unknownBytesMax
	for _, a := range args[1:] {
		if left <= 0 {
			break
		}
		word := "'" + clip(a, left) + "' "
		left -= len(word)
		b.WriteString(word)
	}
	return b.String()
}

// clip is at most n bytes of b, up to a NUL, as text for an error line.
func clip(b []byte, n int) string {
	s := string(b[:min(len(b), n)])
	if nul := strings.IndexByte(s, 0); nul >= 0 {
		s = s[:nul]
	}
	return s
}
