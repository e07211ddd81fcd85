//go:build chaos

package chaos

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// look is how often a node looks for new settings.
const look = 10 * time.Millisecond

// Node are the disturbed surroundings of one node.
type Node struct {
	path  string
	began Settings
	now   atomic.Pointer[state]
}

// state are settings and the clock that they made.
type state struct {
	settings Settings
	clock    clock
}

// Open reads the settings that the environment names and follows them for as
// long as the process lives: it is a node's, and has no other.
func Open() (*Node, error) {
	path := os.Getenv(Environment)
	if path == "" {
		return nil, errors.New(Environment + " names no settings, and this binary is made for them: build the product without the tag chaos")
	}
	settings, err := Read(path)
	if err != nil {
		return nil, err
	}
	n := &Node{path: path, began: settings}
	start := time.Now()
	n.take(settings, clock{real: start, began: start, rate: 1})
	go n.follow()
	return n, nil
}

func (n *Node) follow() {
	for range time.Tick(look) {
		settings, err := Read(n.path)
		if last := n.now.Load(); err == nil && settings.Number != last.settings.Number {
			n.take(settings, last.clock)
		}
	}
}

func (n *Node) take(s Settings, last clock) {
	n.now.Store(&state{s, last.turned(time.Now(), s.ClockRate, s.ClockOffset)})
	if err := os.WriteFile(n.path+takenSuffix, fmt.Appendln(nil, s.Number), 0o600); err != nil {
		panic(err) // the test would wait for it in vain
	}
}

// LeaseReads are those of the settings that the node started with.
func (n *Node) LeaseReads() bool { return n.began.LeaseReads }

// Clock is the node's clock.
func (n *Node) Clock() time.Time { return n.now.Load().clock.at(time.Now()) }

// Dial connects to an address, or to what stands before it.
func (n *Node) Dial(ctx context.Context, addr string) (net.Conn, error) {
	if instead, ok := n.now.Load().settings.Dial[addr]; ok {
		addr = instead
	}
	var dialer net.Dialer
	return dialer.DialContext(ctx, "tcp", addr)
}

// FS is the operating system's file system on the node's disk.
func (n *Node) FS() vfs.FS { return errorfs.Wrap(vfs.Default, errorfs.InjectorFunc(n.operate)) }

// operate lets an operation of the disk wait, or fail.
func (n *Node) operate(op errorfs.Op) error {
	s := &n.now.Load().settings
	switch op.Kind {
	case errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpFileSyncTo:
		time.Sleep(s.SyncDelay) // a slow disk
		if n.now.Load().settings.SyncFails {
			return &os.PathError{Op: "sync", Path: op.Path, Err: syscall.EIO}
		}
	case errorfs.OpCreate, errorfs.OpFileWrite, errorfs.OpFileWriteAt, errorfs.OpFilePreallocate, errorfs.OpMkdirAll:
		if s.DiskFull {
			return &os.PathError{Op: "write", Path: op.Path, Err: syscall.ENOSPC}
		}
	}
	return nil
}
