//go:build chaos

package chaos

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// planted are bugs that TestChaos has to find in two minutes: a build tag, or a
// line of a file that is replaced by another.
var planted = []struct {
	name                string
	tags                string
	file, line, becomes string
	finds               string // what a run says of it
}{
	{name: "reads without a quorum", tags: "chaos,wrongreads", finds: `is not linearizable`},
	{name: "a leader commits by its own log", tags: "chaos", file: "raft/commit.go",
		line: "return uint64(r.matchOf(id))", becomes: "return uint64(r.log.durable)",
		finds: `were answered|is not linearizable|has lost|are lost|ended by itself`},
	{name: "a retry is applied again", tags: "chaos", file: "shardkv/machine.go",
		line: "if w.session.seq == 0 {", becomes: "if w.session.seq >= 0 {",
		finds: `took effect twice|2 times|is not linearizable|had no effect`},
	{name: "a watch that is taken up again skips one", tags: "chaos", file: "shardkv/watch.go",
		line: "c.begun, c.told = true, c.version", becomes: "c.begun, c.told = true, c.version+1",
		finds: `the watch of`},
}

// TestPlantedBugsAreFound proves that the run can fail: it runs TestChaos on
// binaries that are wrong on purpose. It is no part of make test: it builds the
// product once for each.
func TestPlantedBugsAreFound(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED planted bugs: -short")
	}
	for _, p := range planted {
		t.Run(p.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "flotilla")
			var overlay []string
			if p.file != "" {
				overlay = []string{"-overlay", overlayOf(t, p.file, p.line, p.becomes)}
			}
			if err := buildBinary(path, p.tags, overlay...); err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command(os.Args[0], "-test.run", "^TestChaos$", "-test.v", "-duration", "2m", "-chaos.seed", "1",
				"-chaos.binary", path, "-chaos.dir", t.TempDir(), "-chaos.network", *networkKind).CombinedOutput()
			problem := regexp.MustCompile("PROBLEM .*").FindString(string(out))
			if err == nil || !regexp.MustCompile(p.finds).MatchString(problem) {
				t.Fatalf("TestChaos did not find %q (%v), but %q:\n%s", p.finds, err, problem, lastLines(string(out), 30))
			}
			t.Logf("found: %s", problem)
		})
	}
}

// overlayOf is what go build -overlay wants to build the product with one line
// of a file replaced.
func overlayOf(t *testing.T, file, line, becomes string) string {
	t.Helper()
	original, err := filepath.Abs("../../" + file)
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile(original)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Count(string(source), line) != 1 {
		t.Fatalf("%s does not hold the line %q once: the planted bug has to follow the code", file, line)
	}
	mutant, overlay := filepath.Join(t.TempDir(), "mutant.go"), filepath.Join(t.TempDir(), "overlay.json")
	if err := os.WriteFile(mutant, []byte(strings.Replace(string(source), line, becomes, 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	encoded, err := json.Marshal(map[string]map[string]string{"Replace": {original: mutant}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(overlay, encoded, 0o644); err != nil {
		t.Fatal(err)
	}
	return overlay
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
