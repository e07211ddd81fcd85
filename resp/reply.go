package resp

import (
	"io"
	"strconv"
	"strings"
)

// replyKind is how a reply is written.
type replyKind uint8

const (
	kindStatus    replyKind = iota // +text
	kindError                      // -text
	kindInt                        // :n
	kindBulk                       // data
	kindText                       // text as a bulk string
	kindVerbatim                   // text; in RESP 3 a verbatim string "txt:"
	kindNull                       // $-1, in RESP 3 _
	kindNullArray                  // *-1, in RESP 3 _
	kindBulks                      // array of list; a nil element is a null
	kindArray                      // array of elems
	kindMap                        // elems are keys and values in turn; in RESP 2 a flat array
	kindSet                        // elems; in RESP 2 an array
)

// reply is one answer, or a part of one. It is a plain value: which protocol
// version it is written in is decided when it is written.
type reply struct {
	kind  replyKind
	n     int64
	text  string
	data  []byte
	list  [][]byte
	elems []reply
}

func statusReply(s string) reply     { return reply{kind: kindStatus, text: s} }
func errorReply(s string) reply      { return reply{kind: kindError, text: s} }
func intReply(n int64) reply         { return reply{kind: kindInt, n: n} }
func textReply(s string) reply       { return reply{kind: kindText, text: s} }
func bulkReply(b []byte) reply       { return reply{kind: kindBulk, data: b} }
func nullReply() reply               { return reply{kind: kindNull} }
func nullArrayReply() reply          { return reply{kind: kindNullArray} }
func bulksReply(list [][]byte) reply { return reply{kind: kindBulks, list: list} }
func arrayReply(e ...reply) reply    { return reply{kind: kindArray, elems: e} }
func mapReply(e ...reply) reply      { return reply{kind: kindMap, elems: e} }

func boolReply(b bool) reply {
	if b {
		return intReply(1)
	}
	return intReply(0)
}

func okReply() reply { return statusReply("OK") }

// Sizes of the writer.
const (
	writeBytesMax  = 64 << 10 // collected before a write
	writeDirectMin = 16 << 10 // a value from this size on is not copied
)

// writer writes replies to out, many to a write. The first error stays and
// makes all else do nothing.
type writer struct {
	out io.Writer
	buf []byte
	err error
}

// flush writes what was collected.
func (w *writer) flush() {
	if len(w.buf) > 0 {
		w.write(w.buf)
		w.buf = w.buf[:0]
	}
}

func (w *writer) write(b []byte) {
	if w.err == nil {
		_, w.err = w.out.Write(b)
	}
}

// reply writes r in RESP 2 or 3.
func (w *writer) reply(r *reply, resp3 bool) {
	switch r.kind {
	case kindStatus:
		w.line('+', r.text)
	case kindError:
		w.line('-', r.text)
	case kindInt:
		w.number(':', r.n)
	case kindBulk:
		w.bulk(r.data)
	case kindText:
		w.text("", r.text)
	case kindVerbatim:
		w.verbatim(r.text, resp3)
	case kindNull:
		w.null("$-1\r\n", resp3)
	case kindNullArray:
		w.null("*-1\r\n", resp3)
	case kindBulks:
		w.bulks(r.list, resp3)
	default:
		w.aggregate(r, resp3)
	}
	if len(w.buf) >= writeBytesMax {
		w.flush()
	}
}

func (w *writer) null(resp2 string, resp3 bool) {
	if resp3 {
		resp2 = "_\r\n"
	}
	w.buf = append(w.buf, resp2...)
}

// line writes a status or an error. A line end inside would let a client's
// own bytes forge replies, so it becomes a space.
func (w *writer) line(mark byte, text string) {
	w.buf = append(w.buf, mark)
	if strings.ContainsAny(text, "\r\n") {
		text = strings.NewReplacer("\r", " ", "\n", " ").Replace(text)
	}
	w.buf = append(w.buf, text...)
	w.buf = append(w.buf, '\r', '\n')
}

func (w *writer) number(mark byte, n int64) {
	w.buf = append(w.buf, mark)
	w.buf = strconv.AppendInt(w.buf, n, 10)
	w.buf = append(w.buf, '\r', '\n')
}

func (w *writer) bulk(b []byte) {
	w.number('$', int64(len(b)))
	if len(b) >= writeDirectMin {
		w.flush()
		w.write(b)
	} else {
		w.buf = append(w.buf, b...)
	}
	w.buf = append(w.buf, '\r', '\n')
}

// text writes a bulk string, of the given format ("txt:") if it is verbatim.
func (w *writer) text(format, s string) {
	mark := byte('$')
	if format != "" {
		mark = '='
	}
	w.number(mark, int64(len(format)+len(s)))
	w.buf = append(w.buf, format...)
	w.buf = append(w.buf, s...)
	w.buf = append(w.buf, '\r', '\n')
}

func (w *writer) verbatim(s string, resp3 bool) {
	if resp3 {
		w.text("txt:", s)
		return
	}
	w.text("", s)
}

func (w *writer) bulks(list [][]byte, resp3 bool) {
	w.number('*', int64(len(list)))
	for _, b := range list {
		if b == nil {
			w.null("$-1\r\n", resp3)
		} else {
			w.bulk(b)
		}
		if len(w.buf) >= writeBytesMax {
			w.flush()
		}
	}
}

func (w *writer) aggregate(r *reply, resp3 bool) {
	mark, n := byte('*'), len(r.elems)
	switch {
	case resp3 && r.kind == kindMap:
		mark, n = '%', n/2
	case resp3 && r.kind == kindSet:
		mark = '~'
	}
	w.number(mark, int64(n))
	for i := range r.elems {
		w.reply(&r.elems[i], resp3)
	}
}
