package resp

import "bytes"

// splitWords splits an inline command into words appended to args. Words may
// be quoted: "..." knows \n \r \t \b \a \xHH and \ before any other byte,
// '...' knows \' only. It is false when a quote does not end, or ends inside a
// word. A NUL ends the line, as it does for Redis.
func splitWords(args [][]byte, line []byte) ([][]byte, bool) {
	if nul := bytes.IndexByte(line, 0); nul >= 0 {
		line = line[:nul]
	}
	for {
		line = bytes.TrimLeft(line, " \t\n\v\f\r")
		if len(line) == 0 {
			return args, true
		}
		word, rest, ok := splitWord(line)
		if !ok {
			return nil, false
		}
		args = append(args, word)
		line = rest
	}
}

// splitWord takes the first word off a line that does not begin with a space.
func splitWord(line []byte) (word, rest []byte, ok bool) {
	end := bytes.IndexAny(line, " \t\n\v\f\r\"'")
	switch {
	case end < 0:
		return line[:len(line):len(line)], nil, true
	case isSpace(line[end]):
		return line[:end:end], line[end:], true
	}
	word = append(make([]byte, 0, len(line)), line[:end]...)
	word, rest, ok = unquote(word, line[end:])
	if !ok || len(rest) > 0 && !isSpace(rest[0]) {
		return nil, nil, false
	}
	return word, rest, true
}

// unquote appends what stands in the quotes that line begins with to word.
func unquote(word, line []byte) (_, rest []byte, ok bool) {
	quote := line[0]
	for i := 1; i < len(line); i++ {
		switch c := line[i]; {
		case c == quote:
			return word, line[i+1:], true
		case c == '\\' && quote == '\'' && i+1 < len(line) && line[i+1] == '\'':
			word = append(word, '\'')
			i++
		case c == '\\' && quote == '"' && i+3 < len(line) && line[i+1] == 'x' && isHex(line[i+2]) && isHex(line[i+3]):
			word = append(word, hexValue(line[i+2])<<4|hexValue(line[i+3]))
			i += 3
		case c == '\\' && quote == '"' && i+1 < len(line):
			i++
			word = append(word, unescape(line[i]))
		default:
			word = append(word, c)
		}
	}
	return nil, nil, false
}

func unescape(c byte) byte {
	switch c {
	case 'n':
		return '\n'
	case 'r':
		return '\r'
	case 't':
		return '\t'
	case 'b':
		return '\b'
	case 'a':
		return '\a'
	}
	return c
}

func isSpace(c byte) bool {
	return c == ' ' || c >= '\t' && c <= '\r'
}

func isHex(c byte) bool {
	return c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'f'
}

func hexValue(c byte) byte {
	if c <= '9' {
		return c - '0'
	}
	return c | 0x20 - 'a' + 10
}
