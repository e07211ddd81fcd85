package statestore

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/cespare/xxhash/v2"
)

const (
	// ChunkBytes is the most that a chunk of a snapshot stream holds.
	ChunkBytes = 512 << 10
	// streamFieldBytesMax bounds a key or a value in a stream, so that a
	// garbled length does not allocate.
	streamFieldBytesMax = 64 << 20

	streamVersion = 1
	streamEndTail = 16 // number of records and hash, behind the end's zero
)

// streamWriter encodes records.
type streamWriter struct {
	pending []byte // encoded and not yet in a chunk
	records uint64
	hash    *xxhash.Digest
}

func newStreamWriter() *streamWriter {
	w := &streamWriter{hash: xxhash.New()}
	w.put([]byte{streamVersion})
	return w
}

func (w *streamWriter) put(p []byte) {
	_, _ = w.hash.Write(p) // never fails
	w.pending = append(w.pending, p...)
}

func (w *streamWriter) record(key, value []byte) {
	w.records++
	var length [binary.MaxVarintLen64]byte
	w.put(binary.AppendUvarint(length[:0], uint64(len(key))))
	w.put(key)
	w.put(binary.AppendUvarint(length[:0], uint64(len(value))))
	w.put(value)
}

func (w *streamWriter) end() {
	w.put([]byte{0})
	w.put(binary.BigEndian.AppendUint64(nil, w.records))
	w.pending = binary.BigEndian.AppendUint64(w.pending, w.hash.Sum64())
}

// chunk takes out the next chunk.
func (w *streamWriter) chunk() []byte {
	n := min(len(w.pending), ChunkBytes)
	chunk := append([]byte(nil), w.pending[:n]...)
	w.pending = append(w.pending[:0], w.pending[n:]...)
	return chunk
}

// streamReader decodes records out of chunks.
type streamReader struct {
	pending []byte // received and not yet decoded
	records uint64
	last    []byte // the last key
	hash    *xxhash.Digest
	begun   bool
	ended   bool
}

func newStreamReader() *streamReader { return &streamReader{hash: xxhash.New()} }

// add decodes what chunk completes. visit must not keep its arguments.
func (r *streamReader) add(chunk []byte, visit func(key, value []byte) error) error {
	r.pending = append(r.pending, chunk...)
	rest := r.pending
	for {
		n, err := r.step(rest, visit)
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		rest = rest[n:]
	}
	r.pending = append(r.pending[:0], rest...)
	return nil
}

// step decodes one element at the beginning of p and returns its length; 0 if
// p does not hold all of it.
func (r *streamReader) step(p []byte, visit func(key, value []byte) error) (int, error) {
	switch {
	case len(p) == 0:
		return 0, nil
	case r.ended:
		return 0, fmt.Errorf("%w: %d bytes behind its end", ErrBadStream, len(p))
	case !r.begun:
		if p[0] != streamVersion {
			return 0, fmt.Errorf("%w: version %d", ErrBadStream, p[0])
		}
		r.begun = true
		_, _ = r.hash.Write(p[:1])
		return 1, nil
	case p[0] == 0:
		return r.end(p)
	}
	key, n, err := field(p)
	if n == 0 || err != nil {
		return 0, err
	}
	value, m, err := field(p[n:])
	if m == 0 || err != nil {
		return 0, err
	}
	if bytes.Compare(key, r.last) <= 0 {
		return 0, fmt.Errorf("%w: keys do not ascend", ErrBadStream)
	}
	if err := visit(key, value); err != nil {
		return 0, err
	}
	r.records++
	r.last = append(r.last[:0], key...)
	_, _ = r.hash.Write(p[:n+m])
	return n + m, nil
}

// field reads a length and as many bytes; n is 0 if p ends before.
func field(p []byte) (content []byte, n int, err error) {
	length, n := binary.Uvarint(p)
	if n < 0 || length > streamFieldBytesMax {
		return nil, 0, fmt.Errorf("%w: length %d", ErrBadStream, length)
	}
	if n == 0 || uint64(len(p)-n) < length {
		return nil, 0, nil
	}
	return p[n : n+int(length)], n + int(length), nil
}

func (r *streamReader) end(p []byte) (int, error) {
	if len(p) < 1+streamEndTail {
		return 0, nil
	}
	_, _ = r.hash.Write(p[:9])
	if records := binary.BigEndian.Uint64(p[1:]); records != r.records {
		return 0, fmt.Errorf("%w: %d records of %d", ErrBadStream, r.records, records)
	}
	if binary.BigEndian.Uint64(p[9:]) != r.hash.Sum64() {
		return 0, fmt.Errorf("%w: checksum", ErrBadStream)
	}
	r.ended = true
	return 1 + streamEndTail, nil
}
