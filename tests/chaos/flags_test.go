//go:build chaos

package chaos

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

var (
	duration    = flag.Duration("duration", time.Minute, "TestChaos: for how long to draw rounds")
	nodes       = flag.Int("nodes", 3, "TestChaos: of how many nodes, 3 or 5")
	seed        = flag.Uint64("chaos.seed", 0, "TestChaos: of the faults; 0: by the clock")
	networkKind = flag.String("chaos.network", "auto", "auto, proxies or namespaces")
	given       = flag.String("chaos.binary", "", "the binary under test; empty: one that is built with the tag chaos")
	keepDir     = flag.String("chaos.dir", "", "where logs, data and histories go; empty: a temporary one, kept if a test fails")
)

// binary is the product with the tag chaos, built once by TestMain if none is
// given.
var binary string

func TestMain(m *testing.M) {
	flag.Parse()
	redis.SetLogger(silence{})
	code, err := build(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// silence is for go-redis, which logs each node that it cannot reach.
type silence struct{}

func (silence) Printf(context.Context, string, ...any) {}

func build(m *testing.M) (code int, err error) {
	if binary = *given; binary != "" {
		return m.Run(), nil
	}
	dir, err := os.MkdirTemp("", "flotilla-chaos-bin-")
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	binary = filepath.Join(dir, "flotilla")
	if err := buildBinary(binary, "chaos"); err != nil {
		return 1, err
	}
	return m.Run(), nil
}

// buildBinary builds the product with tags, and with what else is given to go
// build.
func buildBinary(path, tags string, more ...string) error {
	args := append([]string{"build", "-tags", tags, "-o", path}, more...)
	command := exec.Command("go", append(args, "../../cmd/flotilla")...)
	command.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("go build -tags %s: %w\n%s", tags, err, out)
	}
	return nil
}
