package logstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/flotilla-kv/flotilla/internal/disk"
)

const (
	evidenceMagic     = "FLEV"
	evidenceSlotBytes = 4096
	evidenceBytes     = 32
)

// evidence is how far the store was durable.
type evidence struct {
	seq   uint64 // last synced frame
	votes uint64 // last synced record of the votes file
}

// evidenceFile keeps an evidence in two slots written in turn. It belongs to
// one goroutine at a time.
type evidenceFile struct {
	file    vfs.File
	counter uint64
}

// readEvidence reads the file; found is false if it is missing or neither slot
// is whole.
func readEvidence(fs vfs.FS, name string) (e evidence, counter uint64, found bool, err error) {
	file, err := fs.Open(name)
	if errors.Is(err, os.ErrNotExist) {
		return e, 0, false, nil
	}
	if err != nil {
		return e, 0, false, fmt.Errorf("open %s: %w", name, err)
	}
	for slot := range int64(2) {
		text := make([]byte, evidenceBytes)
		if _, err := file.ReadAt(text, slot*evidenceSlotBytes); err != nil {
			continue // too short: not a whole slot
		}
		if c, slotEvidence, ok := decodeEvidence(text); ok && (!found || c > counter) {
			e, counter, found = slotEvidence, c, true
		}
	}
	return e, counter, found, file.Close()
}

func encodeEvidence(counter uint64, e evidence) []byte {
	text := append(make([]byte, 0, evidenceBytes), evidenceMagic...)
	text = binary.BigEndian.AppendUint64(text, counter)
	text = binary.BigEndian.AppendUint64(text, e.seq)
	text = binary.BigEndian.AppendUint64(text, e.votes)
	return binary.BigEndian.AppendUint32(text, crc32.Checksum(text, castagnoli))
}

func decodeEvidence(text []byte) (counter uint64, e evidence, ok bool) {
	if string(text[:4]) != evidenceMagic || crc32.Checksum(text[:28], castagnoli) != binary.BigEndian.Uint32(text[28:]) {
		return 0, e, false
	}
	e = evidence{seq: binary.BigEndian.Uint64(text[12:]), votes: binary.BigEndian.Uint64(text[20:])}
	return binary.BigEndian.Uint64(text[4:]), e, true
}

// writeEvidence makes a new file that holds e, durably in place of what is
// there, and keeps it open.
func writeEvidence(fs vfs.FS, name string, counter uint64, e evidence) (*evidenceFile, error) {
	text := make([]byte, 2*evidenceSlotBytes)
	counter++
	copy(text[(counter%2)*evidenceSlotBytes:], encodeEvidence(counter, e))
	if err := disk.WriteFile(fs, name, text); err != nil {
		return nil, err
	}
	file, err := fs.OpenReadWrite(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	return &evidenceFile{file: file, counter: counter}, nil
}

// write makes e durable in the slot that does not hold the last one.
func (f *evidenceFile) write(e evidence) error {
	f.counter++
	if _, err := f.file.WriteAt(encodeEvidence(f.counter, e), int64(f.counter%2)*evidenceSlotBytes); err != nil {
		return fmt.Errorf("write evidence: %w", err)
	}
	if err := f.file.Sync(); err != nil {
		return fmt.Errorf("sync evidence: %w", err)
	}
	return nil
}

func (f *evidenceFile) close() error { return f.file.Close() }
