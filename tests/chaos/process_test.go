//go:build chaos

package chaos

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// process is one life of a node. What it prints goes to the node's log file.
type process struct {
	name    string
	log     string // its log file
	from    int64  // where this life begins in it
	cmd     *exec.Cmd
	exited  chan struct{} // closed when it has
	mayExit atomic.Bool   // set before something is done to it that ends it
}

// launch starts a node; unexpected is told, from a goroutine, if it ends though
// nobody meant it to.
func launch(cmd *exec.Cmd, name, log string, unexpected func(error)) (*process, error) {
	file, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	p := &process{name: name, log: log, from: info.Size(), cmd: cmd, exited: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = file, file
	// The node must not outlive a test that is killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		cmd.Wait() // its outcome is in ProcessState
		if !p.mayExit.Load() {
			unexpected(fmt.Errorf("%s ended by itself: %v\n%s", name, cmd.ProcessState, p.tail(30)))
		}
		close(p.exited)
	}()
	return p, nil
}

func (p *process) lives() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// printed is what this life has printed.
func (p *process) printed() []byte {
	all, err := os.ReadFile(p.log)
	if err != nil || int64(len(all)) < p.from {
		return nil
	}
	return all[p.from:]
}

func (p *process) tail(lines int) string {
	all := bytes.Split(bytes.TrimSpace(p.printed()), []byte("\n"))
	return string(bytes.Join(all[max(0, len(all)-lines):], []byte("\n")))
}

// waitLine waits until it has printed text.
func (p *process) waitLine(text string, within time.Duration) error {
	return eventually(within, func() error {
		switch {
		case bytes.Contains(p.printed(), []byte(text)):
			return nil
		case !p.lives():
			return final(fmt.Errorf("%s ended before it printed %q:\n%s", p.name, text, p.tail(20)))
		}
		return fmt.Errorf("%s has not printed %q:\n%s", p.name, text, p.tail(20))
	})
}

// signal sends a signal to a process that may have ended.
func (p *process) signal(s syscall.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("%v to %s: %w", s, p.name, err)
	}
	return nil
}

// kill is kill -9.
func (p *process) kill() error {
	p.mayExit.Store(true)
	err := p.signal(syscall.SIGKILL)
	<-p.exited
	return err
}

// waitExit waits until it has ended, and requires an exit code and, if it is
// not empty, a text among its last lines.
func (p *process) waitExit(within time.Duration, code int, text string) error {
	select {
	case <-p.exited:
		return p.judgeExit(code, text)
	case <-time.After(within):
		return fmt.Errorf("%s still runs after %v:\n%s", p.name, within, p.tail(20))
	}
}

func (p *process) judgeExit(code int, text string) error {
	if got := p.cmd.ProcessState.ExitCode(); got != code || !strings.Contains(p.tail(20), text) {
		return fmt.Errorf("%s ended with %v; want exit %d and a word of %q:\n%s", p.name, p.cmd.ProcessState, code, text, p.tail(20))
	}
	return nil
}

// resident are the bytes of memory that it holds.
func (p *process) resident() int64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, _ := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 64)
			return kib << 10
		}
	}
	return 0
}

// finalError ends eventually at once.
type finalError struct{ error }

func final(err error) error { return finalError{err} }

// eventually waits until check has no complaint, and returns the last one when
// the time is up.
func eventually(within time.Duration, check func() error) error {
	deadline := time.Now().Add(within)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		var last finalError
		switch {
		case err == nil:
			return nil
		case errors.As(err, &last):
			return last.error
		case time.Now().After(deadline):
			return fmt.Errorf("after %v: %w", within, err)
		}
		<-tick.C
	}
}
