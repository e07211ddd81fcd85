package logstore

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/flotilla-kv/flotilla/internal/disk"
)

const (
	segmentMagic       = "FLSG"
	segmentHeaderBytes = 64
	frameHeaderBytes   = 16
	// frameBytesMax is far above what the writer makes; a length beyond it is
	// not believed.
	frameBytesMax = 1 << 30

	// segmentBytesMin is the size of the first file, so that a small node costs
	// little; each new file is segmentGrowth times as large as the last, up to
	// Options.SegmentBytes.
	segmentBytesMin = 1 << 20
	segmentGrowth   = 4

	zeroStepBytes = 1 << 20 // written at once while a file is made
)

// segment is one file of the log. Its file is as large as it will be before it
// is written to, so that a sync writes data and nothing else.
type segment struct {
	header segmentHeader
	name   string
	file   vfs.File
	size   int64 // of the file

	// The writer's.
	end   int64 // where the next frame goes
	live  int64 // bytes of the entries in it that still count
	dirty bool  // it holds frames that were not synced

	// readers counts who reads from it now. It is raised only under the lock of
	// a group that has entries here.
	readers atomic.Int32
}

// segmentHeader begins a file. A file without a whole one is free.
type segmentHeader struct {
	number   uint64 // ascending; 0: none
	before   uint64 // the number of the segment that this one follows; 0: none
	beforeTo uint64 // the last frame of that segment that counts
	first    uint64 // number of the first frame
	nonce    uint64 // goes into the checksum of every frame: what an older use of the file left never counts
}

func (h segmentHeader) encode() []byte {
	b := append(make([]byte, 0, segmentHeaderBytes), segmentMagic...)
	for _, n := range []uint64{h.number, h.before, h.beforeTo, h.first, h.nonce} {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	return b[:segmentHeaderBytes]
}

func decodeSegmentHeader(b []byte) (h segmentHeader, ok bool) {
	const sum = len(segmentMagic) + 5*8
	if len(b) < segmentHeaderBytes || string(b[:4]) != segmentMagic || crc32.Checksum(b[:sum], castagnoli) != binary.BigEndian.Uint32(b[sum:]) {
		return h, false
	}
	for i, n := range []*uint64{&h.number, &h.before, &h.beforeTo, &h.first, &h.nonce} {
		*n = binary.BigEndian.Uint64(b[4+8*i:])
	}
	return h, h.number != 0
}

func newNonce() uint64 {
	var b [8]byte
	rand.Read(b[:])
	return binary.BigEndian.Uint64(b[:])
}

// frameSum is the checksum of a frame.
func frameSum(nonce, seq uint64, payload []byte) uint32 {
	var head [16]byte
	binary.BigEndian.PutUint64(head[:], nonce)
	binary.BigEndian.PutUint64(head[8:], seq)
	return crc32.Update(crc32.Checksum(head[:], castagnoli), castagnoli, payload)
}

// sealFrame fills in the header of a frame, whose payload begins at
// frameHeaderBytes.
func sealFrame(frame []byte, nonce, seq uint64) {
	payload := frame[frameHeaderBytes:]
	binary.BigEndian.PutUint32(frame, uint32(len(payload)))
	binary.BigEndian.PutUint32(frame[4:], frameSum(nonce, seq, payload))
	binary.BigEndian.PutUint64(frame[8:], seq)
}

// write puts a sealed frame at the end.
func (g *segment) write(frame []byte) error {
	if _, err := g.file.WriteAt(frame, g.end); err != nil {
		return fmt.Errorf("write log: %w", err)
	}
	g.end += int64(len(frame))
	g.dirty = true
	return nil
}

// sync makes all frames durable.
func (g *segment) sync() error {
	if err := g.file.SyncData(); err != nil {
		return fmt.Errorf("sync log: %w", err)
	}
	g.dirty = false
	return nil
}

// frameReader reads the frames of a segment from its beginning.
type frameReader struct {
	in      io.Reader
	header  segmentHeader
	at      int64  // where the next frame begins
	next    uint64 // its number
	payload []byte // used again for each frame
}

// read returns the next frame, whose payload lives until the next read, and
// where the payload lies. ok is false where the segment ends: behind the last
// frame that is whole and in its turn.
func (r *frameReader) read() (seq uint64, payload []byte, at int64, ok bool, err error) {
	var head [frameHeaderBytes]byte
	if whole, err := readFull(r.in, head[:]); !whole {
		return 0, nil, 0, false, err
	}
	length := int(binary.BigEndian.Uint32(head[:]))
	if seq = binary.BigEndian.Uint64(head[8:]); seq != r.next || length > frameBytesMax {
		return 0, nil, 0, false, nil
	}
	if r.payload, err = readGrowing(r.in, r.payload[:0], length); err != nil || len(r.payload) < length {
		return 0, nil, 0, false, err
	}
	if frameSum(r.header.nonce, seq, r.payload) != binary.BigEndian.Uint32(head[4:]) {
		return 0, nil, 0, false, nil
	}
	at = r.at + frameHeaderBytes
	r.at = at + int64(length)
	r.next++
	return seq, r.payload, at, true, nil
}

// readFull fills b; whole is false, without an error, where the file ends.
func readFull(in io.Reader, b []byte) (whole bool, err error) {
	_, err = io.ReadFull(in, b)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return false, nil
	}
	return err == nil, err
}

// readGrowing appends length bytes to b, or as many as there are: memory grows
// with what is really there.
func readGrowing(in io.Reader, b []byte, length int) ([]byte, error) {
	for len(b) < length {
		n := min(length-len(b), zeroStepBytes)
		from := len(b)
		if cap(b)-from < n {
			b = append(make([]byte, 0, max(2*cap(b), from+n)), b...)
		}
		b = b[:from+n]
		if whole, err := readFull(in, b[from:]); !whole {
			return b[:from], err
		}
	}
	return b, nil
}

// makeSegment makes a free file of the given size, durably. It gives up when
// stop is closed.
func makeSegment(fs vfs.FS, name string, size int64, stop <-chan struct{}) (_ *segment, err error) {
	file, err := fs.Create(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		return nil, fmt.Errorf("create %s: %w", name, err)
	}
	zeros := make([]byte, min(size, zeroStepBytes))
	for written := int64(0); written < size && err == nil; written += int64(len(zeros)) {
		select {
		case <-stop:
			err = ErrClosed
		default:
			_, err = file.Write(zeros[:min(int64(len(zeros)), size-written)])
		}
		if err == nil {
			err = file.SyncData() // step by step: one large sync would hold up the log's
		}
	}
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return nil, fmt.Errorf("write %s: %w", name, err)
	}
	if err := disk.SyncDir(fs, fs.PathDir(name)); err != nil {
		return nil, err
	}
	return openSegment(fs, name)
}

// openSegment opens a file and reads its header.
func openSegment(fs vfs.FS, name string) (*segment, error) {
	file, err := fs.OpenReadWrite(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	info, err := file.Stat()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("stat %s: %w", name, err), file.Close())
	}
	g := &segment{name: name, file: file, size: info.Size(), end: segmentHeaderBytes}
	b := make([]byte, segmentHeaderBytes)
	n, err := file.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, errors.Join(fmt.Errorf("read %s: %w", name, err), file.Close())
	}
	g.header, _ = decodeSegmentHeader(b[:n])
	return g, nil
}
