package resp

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// lingerTime is how long a connection that we end is read on, its input thrown
// away: closing with input unread would reset it and could take the last reply
// along.
const lingerTime = 500 * time.Millisecond

// mute is what CLIENT REPLY has set.
type mute uint8

const (
	muteNot  mute = iota
	muteOff       // no replies until ON
	muteNext      // none to the next command
)

// conn is one client. Its reader owns all fields but those below mu; its
// writer sees only the pipe.
type conn struct {
	server *Server
	nc     net.Conn
	id     uint64
	since  time.Time
	parser *parser
	pipe   *pipe
	job    job

	session session
	tx      *transaction // between MULTI and EXEC
	watched []watched
	quits   bool // the client is to be disconnected after its replies

	written chan struct{} // closed when the writer has ended
	gone    chan struct{} // closed when nobody waits for replies any more
	goOnce  sync.Once

	mu   sync.Mutex
	seen seen // what CLIENT LIST shows
}

// session is what a client has set for its connection; RESET undoes it.
type session struct {
	authenticated bool
	resp3         bool
	mute          mute
	name          string
	library       string
	libraryVer    string
}

func newConn(s *Server, nc net.Conn, id uint64) *conn {
	c := &conn{
		server:  s,
		nc:      nc,
		id:      id,
		since:   time.Now(),
		parser:  newParser(),
		pipe:    newPipe(s.backend.NewLane(), uint32(s.requestTimeout/time.Millisecond)),
		written: make(chan struct{}),
		gone:    make(chan struct{}),
	}
	c.job.c = c
	c.resetSession()
	c.note(nil)
	return c
}

// resetSession is the state of a new connection.
func (c *conn) resetSession() {
	c.session = session{authenticated: c.server.password == ""}
	c.parser.limited = !c.session.authenticated
	c.tx, c.watched = nil, nil
}

// serve is the reader's goroutine: it starts the writer and ends after it.
func (c *conn) serve() {
	if !c.shakeHands() {
		c.nc.Close()
		return
	}
	go c.writeLoop()
	for c.turn() {
	}
	c.pipe.end()
	<-c.written
	if c.quits {
		c.linger()
	}
	c.nc.Close()
}

// turn is one read and all commands that it completes. It is false at the
// connection's end.
func (c *conn) turn() bool {
	if !c.armRead() {
		return false
	}
	n, err := c.nc.Read(c.parser.room())
	c.parser.received(n)
	goOn, last, commands := c.consume()
	c.pipe.flush()
	if commands > 0 {
		c.server.stats.commands.Add(commands)
		c.note(last)
	}
	return goOn && (err == nil || c.mayIdle(err))
}

// consume carries out the commands received so far.
func (c *conn) consume() (goOn bool, last *command, commands int64) {
	for {
		args, err := c.parser.next()
		if err != nil {
			c.protocolFault(err)
			return false, last, commands
		}
		if args == nil {
			c.parser.release()
			return true, last, commands
		}
		commands++
		if !c.carryOut(args) {
			return false, c.job.cmd, commands
		}
		last = c.job.cmd
	}
}

// armRead sets the idle limit; it is false when the server is closing.
func (c *conn) armRead() bool {
	if limit := c.server.idleTimeout; limit > 0 {
		c.nc.SetReadDeadline(time.Now().Add(limit))
	}
	// After the deadline was set: Close sets its flag, then a deadline in the
	// past, so one of the two is seen.
	return !c.server.closing.Load()
}

// mayIdle says whether a read that ended with err is to be tried again: the
// idle limit does not count while replies are owed.
func (c *conn) mayIdle(err error) bool {
	return errors.Is(err, os.ErrDeadlineExceeded) && !c.server.closing.Load() && c.pipe.busy()
}

// protocolFault tells the client what was wrong and ends the connection.
func (c *conn) protocolFault(err error) {
	c.server.stats.protocolErrors.Add(1)
	c.server.logger.Debug("resp: protocol error", "client", c.nc.RemoteAddr(), "error", err)
	c.quits = true
	if s := c.pipe.slot(0); s != nil {
		s.silent = c.session.mute != muteNot
		s.reply = errorReply(err.Error())
		c.pipe.push(s, nil, true)
	}
}

// carryOut runs one command. It is false when the connection is to end.
func (c *conn) carryOut(args [][]byte) bool {
	if isWord(args[0], "post") || isWord(args[0], "host:") {
		c.crossProtocol()
		return false
	}
	s := c.pipe.slot(argsBytes(args))
	if s == nil {
		return false
	}
	j := &c.job
	j.slot, j.dst, j.args = s, &s.reply, args
	s.silent = c.session.mute != muteNot
	if c.session.mute == muteNext {
		c.session.mute = muteNot
	}
	c.dispatch(j)
	s.resp3 = c.session.resp3
	j.push(true)
	return !c.quits
}

// crossProtocol ends a connection on which HTTP is spoken, as Redis does: a
// web page must not be able to make a browser send commands.
func (c *conn) crossProtocol() {
	c.server.stats.protocolErrors.Add(1)
	c.server.logger.Warn("resp: HTTP on the Redis port, possibly an attack from a web page; closing", "client", c.nc.RemoteAddr())
	c.giveUp()
}

// dispatch decides what happens to a command: an error, a place in the
// transaction, or its handler.
func (c *conn) dispatch(j *job) {
	cmd, fault := c.server.commands.lookup(j.args)
	if fault != "" {
		c.refuse(j, fault)
		return
	}
	j.cmd = cmd
	switch {
	case !c.session.authenticated && !cmd.is(beforeAuth):
		c.refuse(j, "NOAUTH Authentication required.")
	case c.tx == nil || cmd.is(inMulti):
		if cmd.is(settled) && !j.settle() {
			return
		}
		cmd.run(j)
	case cmd.is(notInMulti):
		c.refuse(j, "ERR Command not allowed inside a transaction")
	default:
		if fault := c.tx.queue(cmd, j.args); fault != "" {
			j.fail(fault)
			return
		}
		j.reply(statusReply("QUEUED"))
	}
}

// refuse answers an error before a command has run, which breaks a
// transaction. A refused EXEC ends it.
func (c *conn) refuse(j *job, fault string) {
	j.cmd = nil
	if isWord(j.args[0], "exec") && c.session.authenticated {
		c.tx, c.watched = nil, nil
		j.fail("EXECABORT Transaction discarded because of: " + withoutCode(fault))
		return
	}
	if c.tx != nil {
		c.tx.breakUp()
	}
	j.fail(fault)
}

// withoutCode is an error line without the "ERR " before it.
func withoutCode(fault string) string {
	if len(fault) > 4 && fault[:4] == "ERR " {
		return fault[4:]
	}
	return fault
}

// writeLoop is the writer's goroutine.
func (c *conn) writeLoop() {
	defer close(c.written)
	out := &timedWriter{nc: c.nc, limit: c.server.writeTimeout}
	w := &writer{out: out}
	var slots []*slot
	var calls []*call
	for {
		var more bool
		slots, calls, more = c.pipe.collect(slots, calls)
		if !more {
			return
		}
		c.pipe.submit(calls)
		clear(calls)
		c.write(w, slots)
	}
}

// write writes the replies of one turn. When the client is not to be reached
// any more the connection is closed, which ends the reader; what it has sent
// is still carried out.
func (c *conn) write(w *writer, slots []*slot) {
	if len(slots) == 0 || w.err != nil {
		return
	}
	space := c.server.buffers.Get().(*[]byte)
	w.buf = (*space)[:0]
	for _, s := range slots {
		s.write(w)
	}
	w.flush()
	if cap(w.buf) <= 2*writeBytesMax {
		*space = w.buf[:0]
		c.server.buffers.Put(space)
	}
	w.buf = nil
	if w.err != nil {
		c.nc.Close()
	}
}

func (s *slot) write(w *writer) {
	switch {
	case s.silent:
	case s.fault != "":
		w.line('-', s.fault)
	default:
		w.reply(&s.reply, s.resp3)
	}
}

// timedWriter gives each write at least three quarters of the limit; to set a
// deadline each time would cost more than many a write.
type timedWriter struct {
	nc    net.Conn
	limit time.Duration
	armed time.Time
}

func (t *timedWriter) Write(b []byte) (int, error) {
	if now := time.Now(); t.limit > 0 && now.Sub(t.armed) > t.limit/4 {
		t.armed = now
		t.nc.SetWriteDeadline(now.Add(t.limit))
	}
	return t.nc.Write(b)
}

// linger ends our direction and reads on for a little.
func (c *conn) linger() {
	if half, ok := c.nc.(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
	}
	c.nc.SetReadDeadline(time.Now().Add(lingerTime))
	if !c.server.closing.Load() {
		io.Copy(io.Discard, c.nc)
	}
}

// stopReading makes the reader end once it has carried out what it has read.
func (c *conn) stopReading() {
	c.nc.SetReadDeadline(time.Unix(1, 0))
}

// giveUp ends the connection whatever is under way.
func (c *conn) giveUp() {
	c.goOnce.Do(func() { close(c.gone) })
	c.pipe.abandon()
	c.nc.Close()
}
