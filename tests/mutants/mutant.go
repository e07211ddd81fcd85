package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// mutant is a bug to plant.
type mutant struct {
	name    string
	breaks  string // the rule, in one sentence
	changes []change
	killers []killer // each of them must fail
	// hangs: the bug may also show as a test that never ends.
	hangs bool
}

// change replaces a piece of one file.
type change struct {
	file string // from the module's root, with slashes
	old  string // exact, and once in the file
	new  string
}

// killer is a test that must notice.
type killer struct {
	pkg  string   // as go test takes it
	test string   // a top-level test's whole name
	args []string // behind the package, for seeded tests
}

// killerTimeout is how long one test may take, building aside. The slowest of
// the table needs a tenth of it on an idle machine.
const killerTimeout = 2 * time.Minute

// apply gives the changed text of each file, by its path below root. Changes
// of one file follow each other.
func (m *mutant) apply(root string) (map[string]string, error) {
	texts := make(map[string]string)
	for _, c := range m.changes {
		path := filepath.Join(root, filepath.FromSlash(c.file))
		text, changed := texts[path]
		if !changed {
			content, err := os.ReadFile(path)
			if err != nil {
				return nil, fmt.Errorf("the table has rotted: %s: %w", m.name, err)
			}
			text = string(content)
		}
		if n := strings.Count(text, c.old); n != 1 {
			return nil, fmt.Errorf("the table has rotted: %s: its text occurs %d times in %s, not once:\n%s", m.name, n, c.file, c.old)
		}
		texts[path] = strings.Replace(text, c.old, c.new, 1)
	}
	return texts, nil
}

// overlay writes the mutant into dir and returns the file for go's -overlay.
func (m *mutant) overlay(root, dir string) (string, error) {
	texts, err := m.apply(root)
	if err != nil {
		return "", err
	}
	replace := make(map[string]string)
	for path, text := range texts {
		at := filepath.Join(dir, fmt.Sprintf("%d.go", len(replace)))
		if err := os.WriteFile(at, []byte(text), 0o644); err != nil {
			return "", err
		}
		replace[path] = at
	}
	content, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	name := filepath.Join(dir, "overlay.json")
	return name, os.WriteFile(name, content, 0o644)
}

// packages are the import paths, relative to the root, of the files changed.
func (m *mutant) packages() (dirs []string) {
	for _, c := range m.changes {
		dir, _ := filepath.Split(c.file)
		dirs = append(dirs, strings.TrimSuffix(dir, "/"))
	}
	return dirs
}

// killedBy names the killers.
func (m *mutant) killedBy() string {
	var names []string
	for _, k := range m.killers {
		names = append(names, k.String())
	}
	return strings.Join(names, ", ")
}

func (k killer) String() string {
	return strings.TrimPrefix(k.pkg, "./") + " " + k.test
}
