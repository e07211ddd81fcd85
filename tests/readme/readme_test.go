//go:build process

package readme

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A command that the README shows: what follows "$ " in a console block, and
// the output below it. An ellipsis in a shown line stands for anything.
type command struct {
	line  int
	text  string
	shown []string
}

// server is the one command of the README that does not end by itself; the
// others run while it does.
const server = "go run ./cmd/flotilla dev"

func TestCommandsOfTheReadme(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	commands := consoleCommands(t, filepath.Join(root, "README.md"))
	if len(commands) < 8 {
		t.Fatalf("found only %d commands in the README", len(commands))
	}
	for _, port := range []string{"7000", "7002"} {
		listener, err := net.Listen("tcp", "127.0.0.1:"+port)
		if err != nil {
			t.Skipf("SKIPPED: port %s is taken, and the README uses it: %v", port, err)
		}
		listener.Close()
	}
	var stop func()
	for _, c := range commands {
		if c.text == server {
			if stop == nil {
				stop = startServer(t, root, c)
				defer stop()
			}
			continue
		}
		if strings.HasPrefix(c.text, "make ") || strings.HasPrefix(c.text, "git ") {
			continue // CI itself is make test
		}
		runCommand(t, root, c)
	}
	if stop == nil {
		t.Fatalf("the README does not show %q", server)
	}
}

// consoleCommands reads the console blocks.
func consoleCommands(t *testing.T, path string) []command {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var commands []command
	inside := false
	for i, line := range strings.Split(string(content), "\n") {
		switch {
		case strings.HasPrefix(line, "```"):
			inside = line == "```console"
		case inside && strings.HasPrefix(line, "$ "):
			commands = append(commands, command{line: i + 1, text: line[2:]})
		case inside && len(commands) > 0:
			last := &commands[len(commands)-1]
			last.shown = append(last.shown, line)
		}
	}
	return commands
}

// startServer runs the command in the background until it has printed all that
// the README shows, and returns what ends it as Ctrl-C would.
func startServer(t *testing.T, root string, c command) (stop func()) {
	t.Helper()
	cmd := exec.Command("bash", "-c", c.text)
	cmd.Dir = root
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // go run and what it started
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	printed := make(chan string, 1000)
	go func() {
		defer close(printed)
		scanner := bufio.NewScanner(stdout)
		for scanner.Scan() {
			printed <- scanner.Text()
		}
		io.Copy(io.Discard, stdout)
	}()
	stop = func() { endGroup(t, cmd) }
	deadline := time.After(3 * time.Minute) // compilation included
	for _, want := range c.shown {
		select {
		case got, open := <-printed:
			if !open || !matches(want, got) {
				stop()
				t.Fatalf("README.md:%d: %s printed %q, the README shows %q", c.line, c.text, got, want)
			}
		case <-deadline:
			stop()
			t.Fatalf("README.md:%d: %s did not print %q in time", c.line, c.text, want)
		}
	}
	return stop
}

// endGroup interrupts the process group this test started and waits for it.
func endGroup(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	syscall.Kill(-cmd.Process.Pid, syscall.SIGINT)
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		<-done
		t.Error("the server did not stop within 30 s of an interrupt")
	}
}

func runCommand(t *testing.T, root string, c command) {
	t.Helper()
	if strings.Contains(c.text, "redis-cli") {
		if _, err := exec.LookPath("redis-cli"); err != nil {
			t.Logf("SKIPPED README.md:%d: redis-cli is not installed", c.line)
			return
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	// redis-cli prints to a terminal as the README shows it.
	text := strings.ReplaceAll(c.text, "redis-cli ", "redis-cli --no-raw ")
	cmd := exec.CommandContext(ctx, "bash", "-c", text)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "PATH="+filepath.Join(root, "bin")+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("README.md:%d: %s: %v", c.line, c.text, err)
	}
	got := strings.Split(strings.TrimRight(string(out), "\n"), "\n")
	want := strings.Split(strings.TrimRight(strings.Join(c.shown, "\n"), "\n"), "\n")
	if len(got) != len(want) && !hasGap(want) {
		t.Errorf("README.md:%d: %s printed\n%s\nthe README shows\n%s", c.line, c.text, strings.Join(got, "\n"), strings.Join(want, "\n"))
		return
	}
	for i := range want {
		if want[i] == "…" {
			return // the rest is left out
		}
		if i >= len(got) || !matches(want[i], got[i]) {
			t.Errorf("README.md:%d: %s printed\n%s\nthe README shows\n%s", c.line, c.text, strings.Join(got, "\n"), strings.Join(want, "\n"))
			return
		}
	}
}

// hasGap reports whether a line of the README leaves the rest out.
func hasGap(shown []string) bool {
	for _, line := range shown {
		if line == "…" {
			return true
		}
	}
	return false
}

// matches compares a printed line with a shown one: blanks count as one, and
// an ellipsis stands for anything.
func matches(shown, printed string) bool {
	shown = strings.Join(strings.Fields(shown), " ")
	printed = strings.Join(strings.Fields(printed), " ")
	parts := strings.Split(shown, "…")
	if len(parts) == 1 {
		return shown == printed
	}
	if !strings.HasPrefix(printed, parts[0]) || !strings.HasSuffix(printed, parts[len(parts)-1]) {
		return false
	}
	for _, part := range parts {
		at := strings.Index(printed, part)
		if at < 0 {
			return false
		}
		printed = printed[at+len(part):]
	}
	return true
}
