package disk

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"
)

var (
	// ErrInUse refuses a directory that this or another process has open.
	ErrInUse = errors.New("data directory is in use")
	// ErrForeign refuses a directory whose FORMAT file names something else.
	ErrForeign = errors.New("data directory belongs to something else")
)

// FormatError refuses a directory that was written in a newer format.
type FormatError struct {
	Dir          string
	Found, Known int
}

func (e *FormatError) Error() string {
	return fmt.Sprintf("%s has format %d and this program knows formats up to %d: use the newer program", e.Dir, e.Found, e.Known)
}

// formatBytesMax bounds what is read of a FORMAT file.
const formatBytesMax = 128

// Claim is the right to a directory, until Close.
type Claim struct {
	lock io.Closer
	// Fresh says that the directory was made or first claimed by this Claim.
	Fresh bool
}

// Take creates dir if needed, locks it and checks, or writes, its FORMAT file.
func Take(fs vfs.FS, dir, kind string, version int) (*Claim, error) {
	if err := MakeDir(fs, dir); err != nil {
		return nil, err
	}
	lock, err := fs.Lock(fs.PathJoin(dir, "LOCK"))
	if err != nil {
		return nil, lockError(dir, err)
	}
	fresh, err := checkFormat(fs, dir, kind, version)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return &Claim{lock: lock, Fresh: fresh}, nil
}

// Close gives the directory back.
func (c *Claim) Close() error { return c.lock.Close() }

func lockError(dir string, err error) error {
	// A second lock by one process comes back as a plain text error.
	held := errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EACCES) ||
		strings.Contains(err.Error(), "held by current process")
	if held {
		return fmt.Errorf("%s: %w (%v)", dir, ErrInUse, err)
	}
	return fmt.Errorf("lock %s: %w", dir, err)
}

func checkFormat(fs vfs.FS, dir, kind string, version int) (fresh bool, err error) {
	name := fs.PathJoin(dir, "FORMAT")
	text, err := readSmall(fs, name)
	if errors.Is(err, os.ErrNotExist) {
		return true, WriteFile(fs, name, []byte(fmt.Sprintf("flotilla %s %d\n", kind, version)))
	}
	if err != nil {
		return false, fmt.Errorf("read %s: %w", name, err)
	}
	var foundKind string
	var found int
	if _, err := fmt.Sscanf(string(text), "flotilla %s %d\n", &foundKind, &found); err != nil || foundKind != kind || found < 1 {
		return false, fmt.Errorf("%s: %w: FORMAT says %.40q, wanted %s", dir, ErrForeign, text, kind)
	}
	if found > version {
		return false, &FormatError{Dir: dir, Found: found, Known: version}
	}
	return false, nil
}

func readSmall(fs vfs.FS, name string) ([]byte, error) {
	f, err := fs.Open(name)
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(f, formatBytesMax))
	return text, errors.Join(err, f.Close())
}

// WriteFile replaces the file by one with these bytes, durably and at once:
// after a crash there is the old one or the new one.
func WriteFile(fs vfs.FS, name string, bytes []byte) error {
	temp := name + ".tmp"
	f, err := fs.Create(temp, vfs.WriteCategoryUnspecified)
	if err != nil {
		return fmt.Errorf("create %s: %w", temp, err)
	}
	_, err = f.Write(bytes)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", temp, err)
	}
	if err := fs.Rename(temp, name); err != nil {
		return fmt.Errorf("rename %s: %w", temp, err)
	}
	return SyncDir(fs, fs.PathDir(name))
}

// MakeDir creates dir and its parents, durably; those that exist are left as
// they are.
func MakeDir(fs vfs.FS, dir string) error {
	if _, err := fs.Stat(dir); err == nil {
		return nil
	}
	parent := fs.PathDir(dir)
	if parent != dir && parent != "." {
		if err := MakeDir(fs, parent); err != nil {
			return err
		}
	}
	if err := fs.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("create %s: %w", dir, err)
	}
	return SyncDir(fs, parent)
}

// SyncDir makes the names in dir durable.
func SyncDir(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return fmt.Errorf("open %s: %w", dir, err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}
