package main

import (
	"bytes"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// root is the module's, from here.
func root(t *testing.T) string {
	t.Helper()
	at, err := moduleRoot()
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// TestEveryMutantFits keeps the table fresh without running it: each text is
// found once, what takes its place parses, each killer is a test that exists,
// and the documentation has the row.
func TestEveryMutantFits(t *testing.T) {
	root := root(t)
	docs, err := os.ReadFile(filepath.Join(root, "docs", "testing.md"))
	if err != nil {
		t.Fatal(err)
	}
	names := make(map[string]bool)
	kebab := regexp.MustCompile(`^[a-z]+([-'][a-z]+)*$`)
	tests := make(map[string][]string)
	for _, m := range allMutants() {
		if names[m.name] || !kebab.MatchString(m.name) {
			t.Errorf("%q: a name is given once, in lower case with hyphens", m.name)
		}
		names[m.name] = true
		if m.breaks == "" || len(m.killers) == 0 {
			t.Errorf("%s: it breaks no rule, or nobody kills it", m.name)
		}
		texts, err := m.apply(root)
		if err != nil {
			t.Error(err)
		}
		for path, text := range texts {
			if _, err := format.Source([]byte(text)); err != nil {
				t.Errorf("%s: %s: %v", m.name, path, err)
			}
		}
		for _, k := range m.killers {
			if tests[k.pkg] == nil {
				tests[k.pkg] = testsOf(t, filepath.Join(root, k.pkg))
			}
			if !slices.Contains(tests[k.pkg], k.test) {
				t.Errorf("%s: %s has no %s", m.name, k.pkg, k.test)
			}
		}
		if !bytes.Contains(docs, []byte(documented(m)+"\n")) {
			t.Errorf("docs/testing.md lacks the row (go run ./tests/mutants -list):\n%s", documented(m))
		}
	}
}

// testsOf names the tests in a directory.
func testsOf(t *testing.T, dir string) (names []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range parsed.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && strings.HasPrefix(f.Name.Name, "Test") {
				names = append(names, f.Name.Name)
			}
		}
	}
	return names
}

// toy is a module whose tests notice some of what can be wrong with it.
var toy = map[string]string{
	"go.mod": "module toy\n\ngo 1.26\n",
	"toy.go": `package toy

// Sum adds.
func Sum(a, b int) int { return a + b }

// Steps counts down.
func Steps(n int) (steps int) {
	for ; n > 0; n-- {
		steps++
	}
	return steps
}
`,
	"toy_test.go": `package toy

import "testing"

func TestSum(t *testing.T) {
	if Sum(1, 2) != 3 {
		t.Error("wrong")
	}
}

func TestZero(t *testing.T) {
	if Sum(0, 0) != 0 {
		t.Error("wrong")
	}
}

func TestSteps(t *testing.T) {
	if Steps(3) != 3 {
		t.Error("wrong")
	}
}
`,
}

func toyModule(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range toy {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestVerdicts plants good and bad rows in a toy and looks at what is said of
// them. The toy's files stay what they are.
func TestVerdicts(t *testing.T) {
	if testing.Short() {
		t.Skip("it builds a module several times")
	}
	dir := toyModule(t)
	sum := func(name, new string, killers ...killer) *mutant {
		return &mutant{name: name, breaks: "a rule", changes: in("toy.go", "return a + b", new), killers: killers}
	}
	sumTest, zeroTest := killer{pkg: ".", test: "TestSum"}, killer{pkg: ".", test: "TestZero"}
	endless := mutant{name: "endless", changes: in("toy.go", "n--", "n++"), killers: by(".", "TestSteps")}
	patient := endless
	patient.hangs = true
	for _, c := range []struct {
		m                *mutant
		survived, failed string
	}{
		{m: sum("killed", "return a - b", sumTest)},
		{m: sum("crashes", "panic(a)", sumTest, zeroTest)},
		{m: sum("exits", "os.Exit(3); return 0", sumTest), failed: "does not compile"},
		{m: sum("survives-one", "return a - b", sumTest, zeroTest), survived: "TestZero"},
		{m: sum("rotten", "return a - b", killer{pkg: ".", test: "TestGone"}), failed: "did not run"},
		{m: &mutant{name: "rotted", changes: in("toy.go", "return a * b", ""), killers: by(".", "TestSum")}, failed: "occurs 0 times"},
		{m: &mutant{name: "ambiguous", changes: in("toy.go", "func S", ""), killers: by(".", "TestSum")}, failed: "occurs 2 times"},
		{m: &endless, failed: "hangs"},
		{m: &patient},
	} {
		v, err := judge(t.Context(), dir, c.m, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		said := ""
		if v.err != nil {
			said = v.err.Error()
		}
		if (said == "") != (c.failed == "") || !strings.Contains(said, c.failed) {
			t.Errorf("%s: error %q, want one that has %q", c.m.name, said, c.failed)
		}
		if survived := strings.Join(v.survived, " "); (survived == "") != (c.survived == "") || !strings.Contains(survived, c.survived) {
			t.Errorf("%s: survived %q, want %q", c.m.name, survived, c.survived)
		}
	}
	for name, text := range toy {
		if have, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(have) != text {
			t.Errorf("%s was changed: %v", name, err)
		}
	}
}

// TestASession prints a row for each mutant, and its error names who survived.
func TestASession(t *testing.T) {
	if testing.Short() {
		t.Skip("it builds a module several times")
	}
	killed := &mutant{name: "killed", changes: in("toy.go", "a + b", "a - b"), killers: by(".", "TestSum")}
	survives := &mutant{name: "survives", changes: in("toy.go", "a + b", "a - b"), killers: by(".", "TestZero")}
	var out bytes.Buffer
	s := &session{root: toyModule(t), mutants: []*mutant{killed, survives}, seeds: 5, timeout: time.Minute, out: &out}
	err := s.run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "survived: survives:") {
		t.Errorf("error %v", err)
	}
	for _, want := range []string{`no column "cluster"`, "\nkilled    . TestSum", "\nsurvives  SURVIVED: . TestZero passes with it", "2 mutants, 1 killed"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the output lacks %q:\n%s", want, &out)
		}
	}

	s.mutants = []*mutant{{name: "any", changes: killed.changes, killers: by(".", "TestGone")}}
	if err := s.run(t.Context()); err == nil || !strings.Contains(err.Error(), "TestGone does not pass") {
		t.Errorf("a killer that is not there: %v", err)
	}
}

// TestSimulationColumn reads what the simulations print.
func TestSimulationColumn(t *testing.T) {
	for _, c := range []struct {
		column, output string
		events         []event
		want           string
	}{
		{column: "one group", want: "-", events: []event{{Action: "run", Test: "TestSimulation"}, {Action: "pass", Test: "TestSimulation"}}},
		{column: "one group", want: "17", events: []event{{Action: "run", Test: "TestSimulation"}, {Action: "fail", Test: "TestSimulation"}},
			output: "    sim_test.go:42: seed 17: durable vote: replica 2\n"},
		{column: "many groups", want: "8", events: []event{{Action: "run", Test: "TestSeeds"}, {Action: "fail", Test: "TestSeeds"}},
			output: "--- FAIL: TestSeeds (3.61s)\n    --- FAIL: TestSeeds/7 (0.06s)\n    --- FAIL: TestSeeds/9 (0.11s)\n"},
		{column: "cluster", want: "23", events: []event{{Action: "run", Test: "TestSeeds"}, {Action: "fail", Test: "TestSeeds"}},
			output: "    sim_test.go:42: seed 23: violation: lost write\n"},
		{column: "cluster", want: "crash", events: []event{{Action: "run", Test: "TestSeeds"}, {Action: "fail"}}, output: "panic: oh\n"},
		{column: "cluster", want: "hangs", events: []event{{Action: "run", Test: "TestSeeds"}, {Action: "fail"}}, output: "panic: test timed out after 20m0s\n"},
	} {
		i := slices.IndexFunc(simulations, func(s simulation) bool { return s.column == c.column })
		got, err := simulations[i].read(result{events: c.events, output: c.output})
		if err != nil || got != c.want {
			t.Errorf("%s: %q, %v, want %q", c.column, got, err, c.want)
		}
	}
	core := mutant{changes: in("raft/log.go", "", "")}
	if !simulations[0].reachesAny(core.packages()) || simulations[0].reachesAny([]string{"raft/multiraft"}) {
		t.Error("the simulation of one group is thrown at the wrong packages")
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{{"-run", "("}, {"-run", "no such mutant"}, {"-nonsense"}, {"argument"}} {
		if status := command(t.Context(), args, new(bytes.Buffer), new(bytes.Buffer)); status != 2 {
			t.Errorf("%q: exit status %d", args, status)
		}
	}
	var out bytes.Buffer
	if status := command(t.Context(), []string{"-list", "-run", "^vote-not-durable$"}, &out, &out); status != 0 || !strings.Contains(out.String(), "TestVoteIsDurableFirst") {
		t.Errorf("-list: exit status %d, %s", status, &out)
	}
}
