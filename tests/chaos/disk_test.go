//go:build chaos

package chaos

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// smallDisk mounts a file system of its own. Without the right to mount the test
// is skipped by name.
func smallDisk(t *testing.T, bytes int64) (dir string) {
	t.Helper()
	if _, err := exec.LookPath("mkfs.ext4"); err != nil || os.Getuid() != 0 {
		t.Skip("SKIPPED a disk that is really full: it wants root and mkfs.ext4")
	}
	image, dir := filepath.Join(t.TempDir(), "image"), t.TempDir()
	file, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(file.Truncate(bytes), file.Close(), run("mkfs.ext4 -q -m 0 "+image)); err != nil {
		t.Fatal(err)
	}
	if err := run("mount -o loop " + image + " " + dir); err != nil {
		t.Skipf("SKIPPED a disk that is really full: %v", err)
	}
	t.Cleanup(func() {
		if err := run("umount " + dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fill takes all room of a disk.
func fill(dir string) (ballast string, err error) {
	ballast = filepath.Join(dir, "ballast")
	file, err := os.Create(ballast)
	if err != nil {
		return "", err
	}
	end := int64(0)
	for chunk := int64(64 << 20); chunk >= 4096; {
		switch err := syscall.Fallocate(int(file.Fd()), 0, end, chunk); {
		case err == nil:
			end += chunk
		case errors.Is(err, syscall.ENOSPC):
			chunk /= 2
		default:
			return "", errors.Join(err, file.Close())
		}
	}
	return ballast, file.Close()
}

// TestDiskReallyFull fills the disk of one node under load, for real: it ends by
// itself and says why, the others go on, and when there is room it comes back.
func TestDiskReallyFull(t *testing.T) {
	disk := smallDisk(t, 1<<30)
	const victim = 2
	r := newRunner(t, clusterOptions{nodes: 3, disks: map[int]string{victim: disk}}, "go test -tags chaos ./tests/chaos -count=1 -v -run TestDiskReallyFull")
	r.load()
	p := r.cluster.nodes[victim].life()
	p.mayExit.Store(true)
	ballast, err := fill(disk)
	if !r.must(err) {
		return
	}
	r.note("disk-full", r.cluster.nodes[victim].name, "not a block is free")
	// What is pre-sized has room for a while.
	for end := time.Now().Add(time.Minute); p.lives() && time.Now().Before(end); {
		r.must(r.flood(256, 64<<10))
	}
	if r.must(p.waitExit(serveWithin, 1, "no space left on device")) {
		r.injured["disk-full"]++
		r.serves(serveWithin)
		r.must(errors.Join(os.Remove(ballast), r.startAll([]int{victim})))
		r.recovered(time.Now(), "a full disk")
	}
	r.judge()
	if !r.failed() {
		r.finish()
	}
	r.summary(t, "a disk that is really full: 3 nodes on "+r.cluster.network.String())
}
