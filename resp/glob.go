package resp

import "bytes"

// globMatch says whether s matches a pattern as Redis understands it: * ? [...]
// [^...] with ranges, and \ before a byte to take it as it is. It goes back to
// the last * only, so its time is bounded by len(pattern)*len(s).
func globMatch(pattern, s []byte) bool {
	p, i := 0, 0
	star, mark := -1, 0
	for i < len(s) {
		if p < len(pattern) && pattern[p] == '*' {
			star, mark = p, i
			p++
			continue
		}
		if p < len(pattern) {
			if next, ok := globOne(pattern, p, s[i]); ok {
				p = next
				i++
				continue
			}
		}
		if star < 0 {
			return false
		}
		mark++
		p, i = star+1, mark
	}
	return len(bytes.Trim(pattern[p:], "*")) == 0
}

// globOne matches the pattern's element at p with one byte; next is where the
// following element begins.
func globOne(pattern []byte, p int, c byte) (next int, ok bool) {
	switch pattern[p] {
	case '?':
		return p + 1, true
	case '[':
		return globClass(pattern, p+1, c)
	case '\\':
		if p+1 < len(pattern) {
			p++
		}
	}
	return p + 1, pattern[p] == c
}

// globClass matches a byte with the class whose first byte is at p. A class
// that does not end goes to the end of the pattern.
func globClass(pattern []byte, p int, c byte) (next int, ok bool) {
	not := p < len(pattern) && pattern[p] == '^'
	if not {
		p++
	}
	found := false
	for ; p < len(pattern) && pattern[p] != ']'; p++ {
		switch {
		case pattern[p] == '\\' && p+1 < len(pattern):
			p++
			found = found || pattern[p] == c
		case p+2 < len(pattern) && pattern[p+1] == '-':
			low, high := min(pattern[p], pattern[p+2]), max(pattern[p], pattern[p+2])
			found = found || low <= c && c <= high
			p += 2
		default:
			found = found || pattern[p] == c
		}
	}
	return min(p+1, len(pattern)), found != not
}

// globPrefix is the literal beginning that every match of a pattern has.
func globPrefix(pattern []byte) []byte {
	if end := bytes.IndexAny(pattern, `*?[\`); end >= 0 {
		return pattern[:end]
	}
	return pattern
}
