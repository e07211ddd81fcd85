package resp

import (
	"bytes"
	"fmt"
)

// Limits of what one client may send. A length is checked against them before
// anything is allocated for it; past them the client gets a protocol error and
// the connection ends, because nothing after that point can be understood.
const (
	inlineBytesMax  = 64 << 10 // one line: an inline command or a length
	argsMax         = 1 << 20  // arguments of one command, its name included
	bulkBytesMax    = 4 << 20  // one argument; the largest value there is
	requestBytesMax = 8 << 20  // one command as it comes in, framing included

	// Before AUTH a client gets just enough to authenticate.
	argsBeforeAuthMax = 10
	bulkBeforeAuthMax = 16 << 10
)

// Sizes of the chunks that input is read into. A connection begins small, so
// that many idle ones cost little, and doubles while its reads fill the chunk.
const (
	chunkBytesMin = 4 << 10
	chunkBytesMax = 64 << 10
	readBytesMin  = 1 << 10 // less room than this and a new chunk is taken
	spansKept     = 1 << 10 // a larger argument table is given back after use
)

// protocolError is input after which the connection cannot go on. Its text is
// what the client is told, as Redis words it.
type protocolError string

func (e protocolError) Error() string { return "ERR Protocol error: " + string(e) }

// The protocol errors, in Redis' words where Redis has the case.
const (
	errArrayLength  = protocolError("invalid multibulk length")
	errBulkLength   = protocolError("invalid bulk length")
	errArrayUnauth  = protocolError("unauthenticated multibulk length")
	errBulkUnauth   = protocolError("unauthenticated bulk length")
	errInlineLong   = protocolError("too big inline request")
	errArrayLong    = protocolError("too big mbulk count string")
	errBulkLong     = protocolError("too big bulk count string")
	errQuotes       = protocolError("unbalanced quotes in request")
	errBulkEnd      = protocolError("expected CRLF after bulk")
	errRequestBytes = protocolError("too big request")

	errTLS = protocolError("this port speaks no TLS")
)

// tlsHandshake is how a client that speaks TLS begins, and no command does. It
// is answered at once: there may never be an end of the line.
const tlsHandshake = 0x16

// span is one argument's place, counted from the command's first byte, so that
// it stays right when the bytes move to another chunk.
type span struct{ from, to uint32 }

// parser turns received bytes into commands. It remembers how far it came, so
// a command that trickles in byte by byte costs no more than one that comes
// whole, and it never allocates more than a constant factor of what was
// received. The bytes of a chunk are never overwritten once received: the
// arguments of a command alias them and live as long as anyone holds them.
type parser struct {
	buf   []byte // what was received; its capacity beyond is room to read into
	start int    // first byte of the command being parsed
	pos   int    // next byte to parse
	seen  int    // no line end lies in buf[pos:seen]

	left    int // arguments still to come; 0: between commands
	bulk    int // length of the argument whose bytes are awaited; -1: its header is
	spans   []span
	args    [][]byte
	chunk   int  // size of the next chunk
	limited bool // not authenticated yet
}

func newParser() *parser {
	return &parser{bulk: -1, chunk: chunkBytesMin}
}

// room is where the next bytes go; never empty. A large chunk is let go once
// its command is done.
func (p *parser) room() []byte {
	if cap(p.buf)-len(p.buf) < readBytesMin || p.start == len(p.buf) && cap(p.buf) > chunkBytesMax {
		p.renew()
	}
	return p.buf[len(p.buf):cap(p.buf)]
}

// renew takes a new chunk and moves the unfinished command there. The chunk is
// at most twice what the command has sent so far, so its size is always
// covered by bytes received, whatever lengths were announced.
func (p *parser) renew() {
	tail := p.buf[p.start:]
	next := make([]byte, len(tail), max(p.chunk, 2*len(tail)))
	copy(next, tail)
	p.buf = next
	p.pos -= p.start
	p.seen -= p.start
	p.start = 0
}

// received says that n bytes of room have been filled.
func (p *parser) received(n int) {
	switch {
	case n == cap(p.buf)-len(p.buf):
		p.chunk = min(2*p.chunk, chunkBytesMax)
	case n < p.chunk/8:
		p.chunk = max(p.chunk/2, chunkBytesMin)
	}
	p.buf = p.buf[:len(p.buf)+n]
}

// next is the next command, its name first, or nil when more bytes are needed.
// The slice is good until the following call; the arguments in it alias the
// received bytes and stay good. After an error the parser is of no more use.
func (p *parser) next() ([][]byte, error) {
	for {
		if p.left > 0 {
			return p.array()
		}
		if p.pos == len(p.buf) {
			return nil, nil
		}
		var args [][]byte
		var more bool
		var err error
		switch p.buf[p.pos] {
		case '*':
			more, err = p.header()
		case tlsHandshake:
			return nil, errTLS
		default:
			args, more, err = p.inline()
		}
		if more || err != nil || len(args) > 0 {
			return args, err
		}
	}
}

// size is the bytes that the command being parsed has taken so far.
func (p *parser) size() int { return p.pos - p.start }

// line is the next line without its LF, nil when it is not all there.
func (p *parser) line(tooLong protocolError) ([]byte, error) {
	p.seen = max(p.seen, p.pos)
	end := bytes.IndexByte(p.buf[p.seen:], '\n')
	if end < 0 {
		p.seen = len(p.buf)
		if p.seen-p.pos > inlineBytesMax {
			return nil, tooLong
		}
		return nil, nil
	}
	line := p.buf[p.pos : p.seen+end : p.seen+end]
	if len(line) > inlineBytesMax {
		return nil, tooLong
	}
	p.pos = p.seen + end + 1
	p.seen = p.pos
	return line, nil
}

// inline parses a command typed as words on a line. An empty line is none.
func (p *parser) inline() (args [][]byte, more bool, err error) {
	line, err := p.line(errInlineLong)
	if err != nil || line == nil {
		return nil, true, err
	}
	args, ok := splitWords(p.args[:0], bytes.TrimSuffix(line, []byte("\r")))
	if !ok {
		return nil, false, errQuotes
	}
	if p.limited && len(args) > argsBeforeAuthMax {
		return nil, false, errArrayUnauth
	}
	p.args = args
	p.start = p.pos
	return args, false, nil
}

// header parses "*COUNT\r\n". A count of 0 or less is skipped, as Redis does.
func (p *parser) header() (more bool, err error) {
	line, err := p.line(errArrayLong)
	if err != nil || line == nil {
		return true, err
	}
	n, ok := parseLength(line)
	switch {
	case !ok || n > argsMax:
		return false, errArrayLength
	case p.limited && n > argsBeforeAuthMax:
		return false, errArrayUnauth
	case n <= 0:
		p.start = p.pos
		return false, nil
	}
	p.left = int(n)
	p.spans = p.spans[:0]
	return false, nil
}

// array goes on with the arguments of the array that has begun.
func (p *parser) array() ([][]byte, error) {
	for p.left > 0 {
		if p.bulk < 0 {
			if more, err := p.bulkHeader(); err != nil || more {
				return nil, err
			}
		}
		end := p.pos + p.bulk
		if len(p.buf) < end+2 {
			return nil, p.checkBulkEnd(end)
		}
		if p.buf[end] != '\r' || p.buf[end+1] != '\n' {
			return nil, errBulkEnd
		}
		p.spans = append(p.spans, span{uint32(p.pos - p.start), uint32(end - p.start)})
		p.pos, p.seen = end+2, end+2
		p.bulk = -1
		p.left--
	}
	return p.take(), nil
}

// checkBulkEnd refuses a wrong end as soon as its first byte is there.
func (p *parser) checkBulkEnd(end int) error {
	if len(p.buf) > end && p.buf[end] != '\r' {
		return errBulkEnd
	}
	return nil
}

// bulkHeader parses "$LENGTH\r\n".
func (p *parser) bulkHeader() (more bool, err error) {
	if p.pos == len(p.buf) {
		return true, nil
	}
	if c := p.buf[p.pos]; c != '$' {
		return false, protocolError(fmt.Sprintf("expected '$', got '%c'", printable(c)))
	}
	line, err := p.line(errBulkLong)
	if err != nil || line == nil {
		return true, err
	}
	n, ok := parseLength(line)
	switch {
	case !ok || n < 0 || n > bulkBytesMax:
		return false, errBulkLength
	case p.limited && n > bulkBeforeAuthMax:
		return false, errBulkUnauth
	case p.size()+int(n)+2 > requestBytesMax:
		return false, errRequestBytes
	}
	p.bulk = int(n)
	return false, nil
}

// take makes the arguments of the finished command from their spans.
func (p *parser) take() [][]byte {
	args := p.args[:0]
	for _, s := range p.spans {
		from, to := p.start+int(s.from), p.start+int(s.to)
		args = append(args, p.buf[from:to:to])
	}
	p.args = args
	p.start = p.pos
	if cap(p.spans) > spansKept {
		p.spans = nil
	}
	return args
}

// release forgets the arguments of the last command, so that an idle
// connection keeps none alive.
func (p *parser) release() {
	clear(p.args)
	p.args = p.args[:0]
	if cap(p.args) > spansKept {
		p.args = nil
	}
}

// parseLength parses what follows the type byte of a header line up to "\r".
func parseLength(line []byte) (int64, bool) {
	if len(line) < 3 || line[len(line)-1] != '\r' {
		return 0, false
	}
	return parseInt(line[1 : len(line)-1])
}

// parseInt parses a decimal int64 as strictly as Redis: no spaces, no plus, no
// leading zeros, no "-0".
func parseInt(b []byte) (int64, bool) {
	negative := len(b) > 0 && b[0] == '-'
	digits := b
	if negative {
		digits = b[1:]
	}
	if len(digits) == 0 || len(digits) > 19 {
		return 0, false
	}
	if digits[0] == '0' {
		return 0, len(b) == 1
	}
	var n uint64 // 19 digits fit
	for _, d := range digits {
		if d < '0' || d > '9' {
			return 0, false
		}
		n = n*10 + uint64(d-'0')
	}
	if negative {
		return -int64(n), n <= 1<<63
	}
	return int64(n), n < 1<<63
}

// printable keeps control bytes out of an error line, where they would break
// the protocol in our direction.
func printable(c byte) byte {
	if c < ' ' || c > '~' {
		return '?'
	}
	return c
}
