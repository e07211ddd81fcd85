package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCheckOfASoundCluster(t *testing.T) {
	s := newKVStub(t)
	code, out, notes := tool(t, "check", "--server", s.addr, "--duration", "300ms", "--follower", "--lease", "-o", "json")
	if code != exitOK {
		t.Fatalf("exit %d: %s%s", code, out, notes)
	}
	var got checkJSON
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got.Verdict != "linearizable" || got.Ops < 50 || got.Keys < 8 || // more if it is fast: a key that has had its share of operations is followed by another
		got.Unknown != 0 || got.Failed != 0 || got.Key != "" {
		t.Errorf("found %+v", got)
	}
	if len(s.items) != 0 {
		t.Errorf("%d keys are left behind", len(s.items))
	}
}

func TestCheckFindsStaleReadsAndShowsThem(t *testing.T) {
	s := newKVStub(t)
	s.stale = true
	page := filepath.Join(t.TempDir(), "page.html")
	code, out, notes := tool(t, "check", "--server", s.addr, "--duration", "300ms", "--html", page)
	if code != exitFailed || !strings.Contains(out, "not linearizable") || !strings.Contains(out, "key check-") || !strings.Contains(out, "OPERATION") {
		t.Fatalf("exit %d: %s%s", code, out, notes)
	}
	if lines := strings.Count(out, "\n"); lines > 120 {
		t.Errorf("%d lines", lines)
	}
	if html, err := os.ReadFile(page); err != nil || !strings.Contains(string(html), "<html") {
		t.Errorf("the page has %d bytes: %v", len(html), err)
	}
}

func TestCheckRefusesBadFlags(t *testing.T) {
	for _, args := range [][]string{{"--clients", "0"}, {"--keys", "0"}, {"--duration", "0s"}, {"--search", "0s"}, {"--timeout", "-1s"}} {
		if code, _, notes := tool(t, append([]string{"check"}, args...)...); code != exitUsage || strings.Count(notes, "\n") != 1 {
			t.Errorf("%v: exit %d, %q", args, code, notes)
		}
	}
}
