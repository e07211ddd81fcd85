package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(command(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// command is the program; it returns the exit status.
func command(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("mutants", flag.ContinueOnError)
	flags.SetOutput(stderr)
	pattern := flags.String("run", "", "only the mutants whose name matches")
	list := flags.Bool("list", false, "print the table, as docs/testing.md has it")
	seeds := flags.Int("sim", 0, "throw so many seeds of each simulation at each mutant, too")
	if flags.Parse(args) != nil {
		return 2
	}
	name, err := regexp.Compile(*pattern)
	if err != nil || flags.NArg() > 0 {
		fmt.Fprintln(stderr, "mutants: usage: mutants [-run REGEXP] [-list] [-sim SEEDS]")
		return 2
	}
	var picked []*mutant
	for _, m := range allMutants() {
		if name.MatchString(m.name) {
			picked = append(picked, m)
		}
	}
	if len(picked) == 0 {
		fmt.Fprintf(stderr, "mutants: none matches %q\n", *pattern)
		return 2
	}
	if *list {
		for _, m := range picked {
			fmt.Fprintln(stdout, documented(m))
		}
		return 0
	}
	root, err := moduleRoot()
	if err == nil {
		err = (&session{root: root, mutants: picked, seeds: *seeds, timeout: killerTimeout, out: stdout}).run(ctx)
	}
	if err != nil {
		fmt.Fprintln(stderr, "mutants:", err)
		return 1
	}
	return 0
}

// documented is the mutant's row in docs/testing.md.
func documented(m *mutant) string {
	return fmt.Sprintf("| %s | %s | %s |", m.name, m.breaks, "`"+strings.ReplaceAll(m.killedBy(), ", ", "`, `")+"`")
}

// moduleRoot is the directory of the go.mod that holds here.
func moduleRoot() (string, error) {
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOMOD: %w", err)
	}
	mod := strings.TrimSpace(string(out))
	if mod == "" || mod == os.DevNull {
		return "", errors.New("run it inside the module")
	}
	return filepath.Dir(mod), nil
}

// session is one run over some mutants.
type session struct {
	root    string
	mutants []*mutant
	seeds   int // of the simulations; 0: they are left out
	timeout time.Duration
	out     io.Writer
}

func (s *session) note(format string, args ...any) { fmt.Fprintf(s.out, format, args...) }

// run prints a row for each mutant as it is judged. The error says what is to
// be done: mutants that survived, or a table that is wrong.
func (s *session) run(ctx context.Context) error {
	start := time.Now()
	if err := baseline(ctx, s.root, s.mutants, s.timeout, s.note); err != nil {
		return err
	}
	sims := s.simulations()
	rows := newRows(s.mutants, sims)
	s.note("\n%s", rows.head())
	var survivors []string
	var wrong []error
	for _, m := range s.mutants {
		v, err := judge(ctx, s.root, m, s.timeout)
		if err != nil {
			return err
		}
		cells := []string{m.name, m.killedBy(), fmt.Sprintf("%.1f", v.took.Seconds())}
		switch {
		case v.err != nil:
			wrong = append(wrong, v.err)
			cells[1] = "ERROR: see below"
		case len(v.survived) > 0:
			survivors = append(survivors, m.name)
			cells[1] = "SURVIVED: " + strings.Join(v.survived, ", ") + " passes with it"
		}
		for i := range sims {
			needed, err := sims[i].throw(ctx, s.root, m, s.seeds)
			if err != nil {
				return err
			}
			cells = append(cells, needed)
		}
		s.note("%s", rows.row(cells))
	}
	s.note("\n%d mutants, %d killed, %.0f s\n", len(s.mutants), len(s.mutants)-len(survivors)-len(wrong), time.Since(start).Seconds())
	if len(survivors) > 0 {
		wrong = append(wrong, fmt.Errorf("survived: %s: each is a hole in the tests; see why with -run", strings.Join(survivors, ", ")))
	}
	return errors.Join(wrong...)
}

// simulations are those to be thrown at; one that is not in the tree is named.
func (s *session) simulations() (sims []simulation) {
	if s.seeds <= 0 {
		return nil
	}
	for _, sim := range simulations {
		if sim.present(s.root) {
			sims = append(sims, sim)
		} else {
			s.note("no column %q: there is no %s\n", sim.column, sim.pkg)
		}
	}
	return sims
}

// rows prints aligned columns.
type rows struct {
	titles []string
	widths []int
}

func newRows(mutants []*mutant, sims []simulation) *rows {
	r := &rows{titles: []string{"mutant", "killed by", "seconds"}}
	for _, s := range sims {
		r.titles = append(r.titles, "seeds: "+s.column)
	}
	for _, t := range r.titles {
		r.widths = append(r.widths, len(t))
	}
	for _, m := range mutants {
		r.widths[0], r.widths[1] = max(r.widths[0], len(m.name)), max(r.widths[1], len(m.killedBy()))
	}
	return r
}

func (r *rows) head() string { return r.row(r.titles) }

func (r *rows) row(cells []string) string {
	padded := slices.Clone(cells)
	for i := range padded {
		padded[i] = fmt.Sprintf("%-*s", r.widths[i], cells[i])
	}
	return strings.TrimRight(strings.Join(padded, "  "), " ") + "\n"
}
