package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// outcome is what became of a test.
type outcome int

const (
	passed   outcome = iota
	failed           // also: crashed
	hung             // ran into its timeout
	notBuilt         // its package, or one below it, does not compile
	notRun           // there is no such test, or it skips itself
)

// run is one go test command.
type run struct {
	root    string
	overlay string // "": none
	pkg     string
	pattern string // -run
	args    []string
	timeout time.Duration
}

// event is a line of go test -json.
type event struct {
	Action      string
	Test        string
	Output      string
	FailedBuild string
}

// result is what a run said.
type result struct {
	events []event
	output string
}

// buildTimeout is what a run may take beside its tests.
const buildTimeout = 10 * time.Minute

// do runs the command. An error is one of this program or its surroundings; a
// test that fails is none.
func (r run) do(ctx context.Context) (result, error) {
	args := []string{"test", "-json", "-vet=off", "-count=1", "-timeout", r.timeout.String(), "-run", r.pattern}
	if r.overlay != "" {
		args = append(args, "-overlay", r.overlay)
	}
	args = append(append(args, r.pkg), r.args...)
	ctx, cancel := context.WithTimeout(ctx, r.timeout+buildTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = r.root
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // go passes it on to the test
	cmd.WaitDelay = 10 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if ctx.Err() != nil {
		return result{}, fmt.Errorf("go %s: %w", strings.Join(args, " "), ctx.Err())
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return result{}, fmt.Errorf("go %s: %w", strings.Join(args, " "), err)
	}
	return parse(stdout.Bytes(), stderr.String()), nil
}

// parse reads the events; what is none, such as an error of go itself, is kept
// as output.
func parse(stdout []byte, stderr string) result {
	var r result
	var text strings.Builder
	for line := range bytes.Lines(stdout) {
		var e event
		if json.Unmarshal(line, &e) != nil {
			text.Write(line)
			continue
		}
		r.events = append(r.events, e)
		text.WriteString(e.Output)
	}
	text.WriteString(stderr)
	r.output = text.String()
	return r
}

// of is what became of one top-level test. A binary that died fails the test
// that it died in.
func (r result) of(test string) outcome {
	ran, ended, crashed := false, false, false
	end := notRun
	for _, e := range r.events {
		switch {
		case e.FailedBuild != "" || e.Action == "build-fail":
			return notBuilt
		case e.Test == test && e.Action == "run":
			ran = true
		case e.Test == test && e.Action == "pass":
			ended, end = true, passed
		case e.Test == test && e.Action == "fail":
			ended, end = true, failed
		case e.Test == test && e.Action == "skip":
			ended, end = true, notRun
		case e.Test == "" && e.Action == "fail":
			crashed = true
		}
	}
	switch {
	case !ran || ended && end == notRun || !ended && !crashed:
		return notRun
	case ended && end == passed:
		return passed
	case strings.Contains(r.output, "panic: test timed out after"):
		return hung
	}
	return failed
}

// tail is the end of the output, to be shown with an error.
func (r result) tail() string {
	lines := strings.Split(strings.TrimSpace(r.output), "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "\n")
}

// exactly matches these top-level tests and no others.
func exactly(tests ...string) string { return "^(" + strings.Join(tests, "|") + ")$" }
