package resp

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// feed gives the parser input in pieces of at most n bytes and returns what it
// made of it: each command's arguments quoted, and the error.
func feed(p *parser, input []byte, n int) (commands []string, err error) {
	for {
		args, err := p.next()
		if err != nil {
			return commands, err
		}
		if args != nil {
			commands = append(commands, fmt.Sprintf("%q", args))
			continue
		}
		if len(input) == 0 {
			return commands, nil
		}
		p.release()
		k := copy(p.room(), input[:min(n, len(input))])
		p.received(k)
		input = input[k:]
	}
}

// protocolInputs are inputs with the commands that they are and the error
// that they end with.
var protocolInputs = []struct {
	name  string
	input string
	want  string
	err   string
}{
	{"array", "*2\r\n$3\r\nGET\r\n$1\r\nk\r\n", `["GET" "k"]`, ""},
	{"two commands", "*1\r\n$4\r\nPING\r\n*1\r\n$4\r\nQUIT\r\n", `["PING"] ["QUIT"]`, ""},
	{"binary", "*2\r\n$4\r\n\x00\r\n*\r\n$0\r\n\r\n", `["\x00\r\n*" ""]`, ""},
	{"not complete", "*2\r\n$3\r\nGET\r\n$1\r\nk\r", ``, ""},
	{"count 0 and below are skipped", "*0\r\n*-1\r\n*-5\r\n*1\r\n$4\r\nPING\r\n", `["PING"]`, ""},
	{"inline", "PING\r\n  SET  k\tv \r\n\r\n   \r\nECHO a\n", `["PING"] ["SET" "k" "v"] ["ECHO" "a"]`, ""},
	{"inline quotes", "ECHO \"a\\x41\\n\\r\\t\\b\\a\\\"\\\\\" 'b\\'c\\n' d\"\" e\r\n", `["ECHO" "aA\n\r\t\b\a\"\\" "b'c\\n" "d" "e"]`, ""},
	{"inline after NUL", "PING\x00garbage \"\r\nPING\r\n", `["PING"] ["PING"]`, ""},
	{"inline quote open", "PING\r\nECHO \"abc\r\n", `["PING"]`, "unbalanced quotes in request"},
	{"inline quote ends in a word", "ECHO \"a\"b\r\n", ``, "unbalanced quotes in request"},
	{"inline escape at the end", "ECHO \"a\\\r\n", ``, "unbalanced quotes in request"},
	{"line of 64 KiB", strings.Repeat("x", inlineBytesMax) + "\n", `["` + strings.Repeat("x", inlineBytesMax) + `"]`, ""},
	{"line too long", strings.Repeat("x", inlineBytesMax+1) + "\n", ``, "too big inline request"},
	{"line without end", strings.Repeat("x", inlineBytesMax+1), ``, "too big inline request"},
	{"TLS, with no line end in it", "PING\r\n\x16\x03\x01\x02\x00\x01", `["PING"]`, "this port speaks no TLS"},
	{"array count without end", "*" + strings.Repeat("1", inlineBytesMax), ``, "too big mbulk count string"},
	{"bulk length without end", "*1\r\n$" + strings.Repeat("1", inlineBytesMax), ``, "too big bulk count string"},
	{"array too long", "*1048577\r\n", ``, "invalid multibulk length"},
	{"array far too long", "*99999999\r\n", ``, "invalid multibulk length"},
	{"array past int64", "*99999999999999999999\r\n", ``, "invalid multibulk length"},
	{"array of 2^64+1", "*18446744073709551617\r\n", ``, "invalid multibulk length"},
	{"array count no number", "*abc\r\n", ``, "invalid multibulk length"},
	{"array count empty", "*\r\n", ``, "invalid multibulk length"},
	{"array count with plus", "*+1\r\n", ``, "invalid multibulk length"},
	{"array count with zero", "*01\r\n", ``, "invalid multibulk length"},
	{"array count with space", "* 1\r\n", ``, "invalid multibulk length"},
	{"LF only", "*1\n$4\nPING\n", ``, "invalid multibulk length"},
	{"bulk LF only", "*1\r\n$4\nPING\n", ``, "invalid bulk length"},
	{"bulk -1", "*1\r\n$-1\r\n", ``, "invalid bulk length"},
	{"bulk -2", "*1\r\n$-2\r\n", ``, "invalid bulk length"},
	{"bulk 2^32-1", "*1\r\n$4294967295\r\n", ``, "invalid bulk length"},
	{"bulk past the limit", "*1\r\n$4194305\r\n", ``, "invalid bulk length"},
	{"bulk past int64", "*1\r\n$9223372036854775808\r\n", ``, "invalid bulk length"},
	{"bulk empty length", "*1\r\n$\r\n", ``, "invalid bulk length"},
	{"bulk with zero", "*1\r\n$04\r\nPING\r\n", ``, "invalid bulk length"},
	{"bulk without CRLF", "*1\r\n$4\r\nPINGXX", ``, "expected CRLF after bulk"},
	{"bulk with CR only", "*1\r\n$4\r\nPING\rX", ``, "expected CRLF after bulk"},
	{"no bulk", "*1\r\nfoo\r\n", ``, "expected '$', got 'f'"},
	{"no bulk, control byte", "*1\r\n\r\n", ``, "expected '$', got '?'"},
	{"nested array", "*1\r\n*1\r\n$4\r\nPING\r\n", ``, "expected '$', got '*'"},
	{"request too large", "*3\r\n$4194304\r\n" + strings.Repeat("a", bulkBytesMax) + "\r\n$4194304\r\n", ``, "too big request"},
}

func TestParser(t *testing.T) {
	for _, c := range protocolInputs {
		for _, piece := range []int{1, 7, 1 << 30} {
			if piece == 1 && len(c.input) > 1<<20 {
				continue
			}
			t.Run(fmt.Sprintf("%s by %d", c.name, piece), func(t *testing.T) {
				commands, err := feed(newParser(), []byte(c.input), piece)
				if got := strings.Join(commands, " "); got != c.want {
					t.Errorf("commands %.200s, want %.200s", got, c.want)
				}
				want := ""
				if c.err != "" {
					want = "ERR Protocol error: " + c.err
				}
				if got := errText2(err); got != want {
					t.Errorf("error %q, want %q", got, want)
				}
			})
		}
	}
}

func errText2(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// TestParserBeforeAuth checks the tighter limits of a client that has not
// authenticated.
func TestParserBeforeAuth(t *testing.T) {
	for input, want := range map[string]error{
		"*10\r\n":                     nil,
		"*11\r\n":                     errArrayUnauth,
		"*1\r\n$16384\r\n":            nil,
		"*1\r\n$16385\r\n":            errBulkUnauth,
		"a b c d e f g h i j\r\n":     nil,
		"a b c d e f g h i j k\r\n":   errArrayUnauth,
		"*2\r\n$4\r\nAUTH\r\n$1\r\nx": nil,
	} {
		p := newParser()
		p.limited = true
		if _, err := feed(p, []byte(input), 1<<20); !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", input, err, want)
		}
	}
}

// TestParserMemory sends announcements without what they announce: what the
// parser holds must stay within what it received.
func TestParserMemory(t *testing.T) {
	for _, input := range []string{
		"*1048576\r\n",
		"*1048576\r\n$4194304\r\n",
		"*1\r\n$4194304\r\n" + strings.Repeat("a", 100_000),
		"*1048576\r\n" + strings.Repeat("$0\r\n\r\n", 20_000),
	} {
		p := newParser()
		if _, err := feed(p, []byte(input), 4096); err != nil {
			t.Fatal(err)
		}
		if held, limit := p.holds(), parserHoldsMax(len(input)); held > limit {
			t.Errorf("%.30q: %d bytes held after %d received", input, held, len(input))
		}
	}
}

// holds is the memory that a parser has allocated and keeps.
func (p *parser) holds() int {
	return cap(p.buf) + 8*cap(p.spans) + 24*cap(p.args)
}

// parserHoldsMax is what a parser may hold after n bytes: a chunk, twice the
// bytes, and 8 bytes of table for an argument, which took 6 at least (24 for a
// word of two bytes, whose table append may have doubled).
func parserHoldsMax(n int) int {
	return chunkBytesMax + 2*n + 26*n
}

// TestParserTrickle checks that a command that comes byte by byte is not
// parsed anew with each: the work must grow with its length, not its square.
func TestParserTrickle(t *testing.T) {
	const args = 100_000
	input := []byte(fmt.Sprintf("*%d\r\n", args) + strings.Repeat("$1\r\nx\r\n", args))
	p := newParser()
	for i := range input {
		p.room()[0] = input[i]
		p.received(1)
		got, err := p.next()
		if err != nil {
			t.Fatal(err)
		}
		if done := i == len(input)-1; done != (got != nil) || done && len(got) != args {
			t.Fatalf("after byte %d: %d arguments", i, len(got))
		}
	}
}

// TestParserKeepsArguments checks that the bytes of a command's arguments are
// never overwritten: requests under way hold them.
func TestParserKeepsArguments(t *testing.T) {
	p := newParser()
	var held [][]byte
	const n = 5000
	for i := range n {
		input := array("SET", fmt.Sprint("key", i), strings.Repeat("v", i%300))
		k := copy(p.room(), input)
		p.received(k)
		rest := input[k:]
		args, err := p.next()
		for args == nil && err == nil {
			k = copy(p.room(), rest)
			p.received(k)
			rest = rest[k:]
			args, err = p.next()
		}
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, args[1])
	}
	for i, key := range held {
		if string(key) != fmt.Sprint("key", i) {
			t.Fatalf("key %d is %q now", i, key)
		}
	}
}

// FuzzParser feeds any bytes in pieces of any size. Whatever the pieces, the
// commands and the error must be the same, and memory must stay within what
// was received.
func FuzzParser(f *testing.F) {
	for _, c := range protocolInputs {
		if len(c.input) < 1<<12 {
			f.Add([]byte(c.input), uint8(3))
		}
	}
	f.Add([]byte("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$-1\r\n"), uint8(0))
	f.Add([]byte("POST / HTTP/1.1\r\nHost: x\r\n\r\n"), uint8(200))
	f.Fuzz(func(t *testing.T, input []byte, piece uint8) {
		whole := newParser()
		want, wantErr := feed(whole, input, 1<<30)
		parts := newParser()
		got, gotErr := feed(parts, input, int(piece)+1)
		if strings.Join(got, " ") != strings.Join(want, " ") || errText2(gotErr) != errText2(wantErr) {
			t.Fatalf("in pieces of %d: %q %v\nwhole: %q %v", int(piece)+1, got, gotErr, want, wantErr)
		}
		for _, p := range []*parser{whole, parts} {
			if p.holds() > parserHoldsMax(len(input)) {
				t.Fatalf("%d bytes held after %d received", p.holds(), len(input))
			}
		}
	})
}

// FuzzWords checks the splitting of inline commands by quoting what came out
// and splitting it again.
func FuzzWords(f *testing.F) {
	f.Add([]byte(`ECHO "a\x41\n" 'b\'c' d`))
	f.Add([]byte(`"`))
	f.Fuzz(func(t *testing.T, line []byte) {
		words, ok := splitWords(nil, line)
		if !ok {
			return
		}
		var again bytes.Buffer
		for _, w := range words {
			again.WriteByte('"')
			for _, c := range w {
				fmt.Fprintf(&again, "\\x%02x", c)
			}
			again.WriteString("\" ")
		}
		back, ok := splitWords(nil, again.Bytes())
		if !ok || fmt.Sprintf("%q", back) != fmt.Sprintf("%q", words) {
			t.Fatalf("%q became %q", words, back)
		}
	})
}

func TestParseInt(t *testing.T) {
	for in, want := range map[string]string{
		"0": "0", "1": "1", "-1": "-1", "9223372036854775807": "9223372036854775807", "-9223372036854775808": "-9223372036854775808",
		"9223372036854775808": "no", "-9223372036854775809": "no", "99999999999999999999": "no", "": "no", "-": "no", "-0": "no",
		"+1": "no", "01": "no", " 1": "no", "1 ": "no", "1.0": "no", "0x1": "no", "00": "no", "-01": "no",
	} {
		n, ok := parseInt([]byte(in))
		got := "no"
		if ok {
			got = fmt.Sprint(n)
		}
		if got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}

func TestGlob(t *testing.T) {
	for _, c := range []struct {
		pattern, s string
		want       bool
	}{
		{"*", "", true}, {"*", "abc", true}, {"", "", true}, {"", "a", false}, {"a", "a", true}, {"?", "a", true}, {"?", "", false},
		{"h?llo", "hello", true}, {"h*llo", "heeeello", true}, {"h*llo", "hell", false}, {"h[ae]llo", "hallo", true}, {"h[ae]llo", "hillo", false},
		{"h[^e]llo", "hallo", true}, {"h[^e]llo", "hello", false}, {"h[a-b]llo", "hbllo", true}, {"h[b-a]llo", "hallo", true},
		{`\*`, "*", true}, {`\*`, "a", false}, {"a*b*c", "axxbyyc", true}, {"a*b*c", "axxbyy", false}, {"*a", "bab", false}, {"*ab", "aab", true},
		{`[\]]`, "]", true}, {"[abc", "a", true}, {"[abc", "c", true}, {"[", "[", false}, {`\`, `\`, true}, {"**", "x", true}, {"[^]", "a", true},
	} {
		if got := globMatch([]byte(c.pattern), []byte(c.s)); got != c.want {
			t.Errorf("%q with %q: %v", c.pattern, c.s, got)
		}
	}
	if got := globMatch([]byte(strings.Repeat("a*", 200)+"b"), bytes.Repeat([]byte("a"), 5000)); got {
		t.Error("a pattern with many stars matches what it must not")
	}
}
