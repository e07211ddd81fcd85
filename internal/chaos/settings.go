//go:build chaos

package chaos

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// Environment names the variable that holds the path of a node's settings.
const Environment = "FLOTILLA_CHAOS"

// Settings say how one node's surroundings are disturbed; the zero value not at
// all.
type Settings struct {
	// Number differs from that of the settings before.
	Number int64
	// Dial tells where to connect to instead of an address of gRPC.
	Dial map[string]string
	// ClockOffset shifts the wall clock, in whole seconds. The monotonic clock
	// goes on as it was: that is what a jump is.
	ClockOffset time.Duration
	// ClockRate is the speed of both clocks; 0 stands for 1.
	ClockRate float64
	// SyncDelay is added to each sync.
	SyncDelay time.Duration
	// SyncFails lets each sync fail with EIO, DiskFull each write with ENOSPC.
	SyncFails, DiskFull bool
	// LeaseReads lets groups serve reads from leases. It is read when a node
	// starts and must be the same at all nodes.
	LeaseReads bool
}

// Write replaces the settings in a file, at once.
func (s Settings) Write(path string) error {
	encoded, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", encoded, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// Read reads them.
func Read(path string) (s Settings, err error) {
	encoded, err := os.ReadFile(path)
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(encoded, &s); err != nil {
		return s, fmt.Errorf("%s: %w", path, err)
	}
	if s.ClockRate == 0 {
		s.ClockRate = 1
	}
	return s, nil
}

// takenSuffix is that of the file in which a node writes the number of the
// settings that it has taken.
const takenSuffix = ".taken"

// Taken is the number of the settings that the node has taken last, 0 if none.
func Taken(path string) int64 {
	text, err := os.ReadFile(path + takenSuffix)
	if err != nil {
		return 0
	}
	number, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return 0 // it is being written
	}
	return number
}
