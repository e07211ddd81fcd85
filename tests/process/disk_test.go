//go:build process

package process

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// smallDisk mounts a file system of its own, of so many bytes. Without the
// right to mount the test is skipped by name.
func smallDisk(t *testing.T, bytes int64) (dir string) {
	t.Helper()
	needs(t, "mkfs.ext4")
	if os.Getuid() != 0 {
		t.Skip("SKIPPED a full disk: only root may mount one")
	}
	image, dir := filepath.Join(t.TempDir(), "image"), t.TempDir()
	file, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(file.Truncate(bytes), file.Close()); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-m", "0", image).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v\n%s", err, out)
	}
	if out, err := exec.Command("mount", "-o", "loop", image, dir).CombinedOutput(); err != nil {
		t.Skipf("SKIPPED a full disk: no loop device can be mounted here: %v %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v\n%s", err, out)
		}
	})
	return dir
}

// fill takes all room of a disk but so many bytes, or more room if it is there
// already.
func fill(t *testing.T, dir string, leave int64) (ballast string) {
	t.Helper()
	ballast = filepath.Join(dir, "ballast")
	file, err := os.OpenFile(ballast, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	chunk := make([]byte, 1<<20)
	reserved := false
	for len(chunk) > 0 {
		var disk syscall.Statfs_t
		if err := syscall.Statfs(dir, &disk); err != nil {
			t.Fatal(err)
		}
		free := int64(disk.Bavail) * disk.Bsize
		if free <= leave {
			break
		}
		if most := free - leave - 32<<20; most > 0 && !reserved {
			// Most of it at once; what is written for it has no room for itself.
			reserved = true
			syscall.Fallocate(int(file.Fd()), 0, 0, most)
			if _, err := file.Seek(0, io.SeekEnd); err != nil {
				t.Fatal(err)
			}
			continue
		}
		_, err := file.Write(chunk[:min(int64(len(chunk)), free-leave)])
		switch {
		case errors.Is(err, syscall.ENOSPC):
			chunk = chunk[:len(chunk)/2] // down to the last byte
		case err != nil:
			t.Fatal(err)
		}
	}
	if err := file.Sync(); err != nil {
		t.Fatal(err)
	}
	return ballast
}

// makeRoom deletes the ballast; its room is there when that is on the disk.
func makeRoom(t *testing.T, disk, ballast string) {
	t.Helper()
	dir, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(ballast), dir.Sync(), dir.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestFullDisk fills the disk under one node of a cluster under load: that node
// exits with 1 and says why, the others go on, and when room was made it comes
// back and catches up. No acknowledged write is lost.
func TestFullDisk(t *testing.T) {
	disk := smallDisk(t, 1<<30)
	c := newCluster(t, 3)
	c.dirs[2] = filepath.Join(disk, "n3")
	c.bringUp()
	client := c.redis(0)
	ctx, stop := context.WithCancel(context.Background())
	wait := load(ctx, client, counters(8))
	bench := begin(t, c.bin, "bench", "--server", c.grpc(0), "--duration", "5m", "-o", "json",
		"--clients", "16", "--reads", "0", "--keys", "20000", "--value-size", "4096")
	waitApplied(t, c, 500)

	ballast := fill(t, disk, 16<<20)
	stopsWith(t, c.nodes[2], "no space left on device")
	waitApplied(t, c, 500) // the others go on

	fill(t, disk, 0)
	c.start(2) // on a full disk
	stopsWith(t, c.nodes[2], "no space left on device")

	makeRoom(t, disk, ballast)
	c.start(2)
	c.waitReady(2)
	waitApplied(t, c, 500)
	stop()
	longest, total := judge(t, client, wait())
	bench.interrupt()
	if result := bench.result(time.Minute); result.Failed > 0 {
		t.Errorf("%d of %d requests of the others failed", result.Failed, result.Ops)
	}
	caughtUp(t, c, 2)
	keys := sameReplicas(t, c)
	t.Logf("%d increments, longest gap %s; %d keys, equal on all nodes", total, longest, keys)
}

// caughtUp waits until no replica of node i lags.
func caughtUp(t *testing.T, c *cluster, i int) {
	t.Helper()
	id := nodeID(t, c, statusAt(t, c.grpc(0)), i)
	eventually(t, 30*time.Second, func() error {
		if lag := lagOf(statusAt(t, c.grpc(0)), id); lag != 0 {
			return fmt.Errorf("node %d lags %d entries", i+1, lag)
		}
		return nil
	})
}
