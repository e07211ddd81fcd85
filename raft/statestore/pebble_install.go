package statestore

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/objstorage/objstorageprovider"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// installFileBytes is the size at which an incoming snapshot goes on in a new
// file.
const installFileBytes = 32 << 20

// pebbleInstall writes an incoming snapshot into sorted tables beside the
// store. They are synced when they are complete.
type pebbleInstall struct {
	engine *pebbleEngine
	lo, hi []byte
	name   string // of the first file, without its number
	files  []string
	writer *sstable.Writer // of the last file; nil: none is open
	bytes  int             // in the last file
}

func (e *pebbleEngine) newInstall(lo, hi []byte) rawInstall {
	name := e.fs.PathJoin(e.installs, fmt.Sprintf("%d", e.installed.Add(1)))
	return &pebbleInstall{engine: e, lo: lo, hi: hi, name: name}
}

func (in *pebbleInstall) add(key, value []byte) error {
	if in.writer != nil && in.bytes >= installFileBytes {
		if err := in.closeFile(); err != nil {
			return err
		}
	}
	if in.writer == nil {
		if err := in.openFile(); err != nil {
			return err
		}
	}
	if err := in.writer.Set(key, value); err != nil {
		return in.engine.failed(fmt.Errorf("write incoming snapshot: %w", err))
	}
	in.bytes += len(key) + len(value)
	return nil
}

func (in *pebbleInstall) openFile() error {
	name := fmt.Sprintf("%s-%d.sst", in.name, len(in.files))
	file, err := in.engine.fs.Create(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		return in.engine.failed(fmt.Errorf("create %s: %w", name, err))
	}
	in.files = append(in.files, name)
	const bottom = 6 // the level whose table settings apply
	options := in.engine.options.MakeWriterOptions(bottom, in.engine.db.TableFormat())
	in.writer, in.bytes = sstable.NewWriter(objstorageprovider.NewFileWritable(file), options), 0
	return nil
}

func (in *pebbleInstall) closeFile() error {
	writer := in.writer
	in.writer = nil
	if err := writer.Close(); err != nil {
		return in.engine.failed(fmt.Errorf("write incoming snapshot: %w", err))
	}
	return nil
}

func (in *pebbleInstall) finish() error {
	if in.writer != nil {
		if err := in.closeFile(); err != nil {
			return err
		}
	}
	if err := in.engine.drain(); err != nil {
		return err
	}
	span := pebble.KeyRange{Start: in.lo, End: in.hi}
	err := in.engine.stop.Try(func() error {
		_, err := in.engine.db.IngestAndExcise(context.Background(), in.files, nil, nil, span)
		return err
	})
	if err != nil {
		return in.engine.failed(fmt.Errorf("ingest snapshot: %w", err))
	}
	want, ok, err := in.engine.get(in.lo)
	if err != nil || !ok {
		return in.engine.failed(fmt.Errorf("ingested snapshot is not there: %w", errors.Join(err, pebble.ErrNotFound)))
	}
	return in.engine.settle(func() (bool, error) { return in.engine.durably(in.lo, want) })
}

// durably says whether key has that value on disk.
func (e *pebbleEngine) durably(key, want []byte) (same bool, err error) {
	iter, err := e.newDurableIter(key, append(append([]byte(nil), key...), 0))
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, iter.Close()) }()
	return iter.First() && string(iter.Value()) == string(want), iter.Error()
}

func (in *pebbleInstall) abort() error {
	var errs []error
	if in.writer != nil {
		errs = append(errs, in.writer.Close())
		in.writer = nil
	}
	for _, name := range in.files {
		// A finish that failed half-way may have taken some away.
		if err := in.engine.fs.Remove(name); err != nil && !isNotExist(err) {
			errs = append(errs, err)
		}
	}
	in.files = nil
	return errors.Join(errs...)
}

func isNotExist(err error) bool { return errors.Is(err, os.ErrNotExist) }
