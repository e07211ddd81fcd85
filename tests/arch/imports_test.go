package arch

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/flotilla-kv/flotilla/"

// arrows says which of our own packages each package may import, itself and
// its subpackages aside. A package that is not named here is refused: a new
// one is placed first.
var arrows = map[string][]string{
	"api/flotilla/v1":      {},
	"internal/assert":      {},
	"internal/chaos":       {},
	"internal/disk":        {},
	"internal/history":     {"client"},
	"internal/wire":        {"api/flotilla/v1"},
	"internal/protogen":    {},
	"internal/tlsfiles":    {},
	"internal/tlstest":     {},
	"raft":                 {},
	"raft/rafttest":        {"raft", "internal/assert"},
	"raft/peer":            {"raft"},
	"raft/logstore":        {"raft", "internal/disk", "internal/assert"},
	"raft/statestore":      {"raft", "internal/disk", "internal/assert"},
	"raft/transport":       {"raft", "api/flotilla/v1", "internal/assert", "internal/wire"},
	"raft/multiraft":       {"raft", "raft/logstore", "raft/statestore", "raft/transport", "internal/assert"},
	"shardctrler/shardmap": {"raft"},
	"shardctrler":          {"shardctrler/shardmap", "raft/multiraft", "raft/statestore", "raft", "api/flotilla/v1", "internal/assert"},
	"shardkv":              {"shardctrler/shardmap", "raft/multiraft", "raft/statestore", "raft", "api/flotilla/v1", "internal/assert"},
	"client":               {"client/routing", "shardctrler/shardmap", "raft", "api/flotilla/v1", "internal/assert", "internal/wire"},
	"client/routing":       {"shardctrler/shardmap", "raft", "api/flotilla/v1", "internal/assert"},
	"gossip":               {"raft", "internal/assert"},
	"resp":                 {"shardctrler/shardmap", "api/flotilla/v1", "raft", "internal/assert"},
}

// everything may be imported by those who wire it.
var wires = []string{"node", "cmd/", "tests/"}

func TestArrowsPointAtTheCore(t *testing.T) {
	eachFile(t, func(pkg, file string, imports []string) {
		if strings.HasSuffix(file, "_test.go") || isWiring(pkg) {
			return
		}
		allowed, placed := arrows[pkg]
		if !placed {
			t.Errorf("%s is a package with no place in the house: name it in this test's table with what it may import", pkg)
			return
		}
		for _, path := range imports {
			own, isOwn := strings.CutPrefix(path, module)
			if !isOwn || own == pkg || slices.Contains(allowed, own) {
				continue
			}
			t.Errorf("%s imports %s: %s may import only %v of our packages", file, own, pkg, allowed)
		}
	})
}

func TestTheCoreIsPure(t *testing.T) {
	forbidden := []string{"sync", "time", "net", "os", "context", "io", "math/rand", "math/rand/v2", "log", "log/slog"}
	eachFile(t, func(pkg, file string, imports []string) {
		if pkg != "raft" || strings.HasSuffix(file, "_test.go") {
			return
		}
		for _, path := range imports {
			if strings.Contains(path, ".") {
				t.Errorf("%s imports %s: the core imports only the standard library", file, path)
			}
			if slices.Contains(forbidden, path) || strings.HasPrefix(path, "net/") || strings.HasPrefix(path, "sync/") {
				t.Errorf("%s imports %s: the core has no clock, lock, I/O or random source of its own", file, path)
			}
		}
	})
}

// TestThePeerStandsAlone: who wants one Raft peer gets nothing else with it.
func TestThePeerStandsAlone(t *testing.T) {
	seen := 0
	eachFile(t, func(pkg, file string, imports []string) {
		if pkg != "raft/peer" || strings.HasSuffix(file, "_test.go") {
			return
		}
		seen++
		for _, path := range imports {
			if strings.Contains(path, ".") && path != module+"raft" {
				t.Errorf("%s imports %s: raft/peer imports raft and the standard library only", file, path)
			}
		}
	})
	if seen == 0 {
		t.Fatal("raft/peer has no files: the test looks at nothing")
	}
}

// TestTheClientPullsInNoServer follows the imports of client through our
// packages and looks at what they bring.
func TestTheClientPullsInNoServer(t *testing.T) {
	graph := make(map[string][]string)
	eachFile(t, func(pkg, file string, imports []string) {
		if !strings.HasSuffix(file, "_test.go") {
			graph[pkg] = append(graph[pkg], imports...)
		}
	})
	server := []string{"github.com/cockroachdb/pebble", "github.com/hashicorp/memberlist", "github.com/prometheus/", "github.com/spf13/cobra"}
	seen := make(map[string]bool)
	var visit func(pkg string, path []string)
	visit = func(pkg string, path []string) {
		if seen[pkg] {
			return
		}
		seen[pkg] = true
		for _, next := range graph[pkg] {
			for _, prefix := range server {
				if strings.HasPrefix(next, prefix) {
					t.Errorf("client pulls in %s through %s", next, strings.Join(append(path, pkg), " -> "))
				}
			}
			if own, isOwn := strings.CutPrefix(next, module); isOwn {
				visit(own, append(path, pkg))
			}
		}
	}
	visit("client", nil)
	if len(seen) < 3 {
		t.Fatalf("followed only %v: the test does not see the imports", seen)
	}
}

func isWiring(pkg string) bool {
	return slices.ContainsFunc(wires, func(w string) bool { return strings.HasPrefix(pkg+"/", strings.TrimSuffix(w, "/")+"/") })
}

// eachFile calls visit for every Go file of the module with its package's
// folder and its imports.
func eachFile(t *testing.T, visit func(pkg, file string, imports []string)) {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			return skipFolder(root, path, entry.Name())
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		var imports []string
		for _, spec := range file.Imports {
			name, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			imports = append(imports, name)
		}
		relative, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		visit(filepath.ToSlash(filepath.Dir(relative)), filepath.ToSlash(relative), imports)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// skipFolder leaves out what is not this module's code.
func skipFolder(root, path, name string) error {
	if path == root {
		return nil
	}
	if strings.HasPrefix(name, ".") || name == "testdata" {
		return filepath.SkipDir
	}
	if _, err := os.Stat(filepath.Join(path, "go.mod")); err == nil {
		return filepath.SkipDir
	}
	return nil
}
