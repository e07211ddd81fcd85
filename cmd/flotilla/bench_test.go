package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
)

// tool runs a command line.
func tool(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	code = run(t.Context(), args, strings.NewReader(""), &out, &err)
	return code, out.String(), err.String()
}

func TestBenchPrintsTheFieldsOfItsContract(t *testing.T) {
	s := newKVStub(t)
	code, out, notes := tool(t, "bench", "--server", s.addr, "--duration", "300ms", "--clients", "4", "--pipeline", "3", "--keys", "10", "-o", "json")
	if code != exitOK {
		t.Fatalf("exit %d: %s", code, notes)
	}
	var got map[string]float64
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, field := range []string{"ops", "failed", "seconds", "ops_per_s", "p50_us", "p99_us", "max_us"} {
		if _, ok := got[field]; !ok {
			t.Errorf("no field %s in %s", field, out)
		}
	}
	if len(got) != 7 || got["ops"] < 10 || got["failed"] != 0 || got["p50_us"] <= 0 || got["max_us"] < got["p99_us"] {
		t.Errorf("printed %s", out)
	}
	if s.reads == 0 || len(s.items) != 10 {
		t.Errorf("%d reads, %d keys", s.reads, len(s.items))
	}
}

func TestBenchPrintsATableAndProgressInPlainLines(t *testing.T) {
	s := newKVStub(t)
	code, out, notes := tool(t, "bench", "--server", s.addr, "--duration", "1200ms", "--rate", "200", "--reads", "0")
	if code != exitOK || !strings.Contains(out, "OPS/S") {
		t.Fatalf("exit %d: %s%s", code, out, notes)
	}
	if !strings.Contains(notes, "ops/s") || strings.Contains(notes, "\r") {
		t.Errorf("progress: %q", notes)
	}
}

func TestBenchFailsWithOneLine(t *testing.T) {
	s := newKVStub(t)
	for name, test := range map[string]struct {
		args []string
		code int
	}{
		"no clients":   {[]string{"--clients", "0"}, exitUsage},
		"bad reads":    {[]string{"--reads", "101"}, exitUsage},
		"bad output":   {[]string{"-o", "xml"}, exitUsage},
		"an argument":  {[]string{"now"}, exitUsage},
		"unknown flag": {[]string{"--fast"}, exitUsage},
	} {
		code, out, notes := tool(t, append([]string{"bench", "--server", s.addr}, test.args...)...)
		if code != test.code || out != "" || strings.Count(notes, "\n") != 1 {
			t.Errorf("%s: exit %d, %q, %q", name, code, out, notes)
		}
	}
	s.mu.Lock()
	s.code = flotillav1.Code_INVALID
	s.mu.Unlock()
	code, out, notes := tool(t, "bench", "--server", s.addr, "--duration", "100ms", "--reads", "0")
	if code != exitFailed || out != "" || !strings.Contains(notes, "no request succeeded") {
		t.Errorf("with a cluster that refuses: exit %d, %q, %q", code, out, notes)
	}
}

func TestACommandWithoutArgumentsSaysSo(t *testing.T) {
	code, _, notes := tool(t, "scan", "user:")
	if code != exitUsage || !strings.Contains(notes, `: scan takes no argument, and "user:" is one`) {
		t.Errorf("exit %d, %q", code, notes)
	}
	if _, _, notes = tool(t, "node", "list", "n1"); !strings.Contains(notes, `: node list takes no argument, and "n1" is one`) {
		t.Errorf("%q", notes)
	}
	if _, _, notes = tool(t, "node", "lst"); !strings.Contains(notes, `unknown command "lst"`) {
		t.Errorf("%q", notes)
	}
}
