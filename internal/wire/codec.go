package wire

import (
	"fmt"

	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // the standard codec
	"google.golang.org/grpc/mem"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
)

// codec encodes as protobuf's own does, byte for byte, and the messages that
// there are many of without reflection. What comes in shares the memory it came
// in: one allocation for a batch of requests instead of several for each. Answers
// of the KV service do not: their values go to who may keep one for long.
type codec struct{ standard encoding.CodecV2 }

func newCodec() codec { return codec{standard: encoding.GetCodecV2("proto")} }

// Name is the standard codec's: who uses that one is understood, and the other
// way round.
func (codec) Name() string { return "proto" }

type fastMarshaler interface {
	SizeVT() int
	MarshalToSizedBufferVT(to []byte) (int, error)
}

type fastUnmarshaler interface {
	Reset()
	UnmarshalVTUnsafe(from []byte) error
}

// Marshal encodes a message.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	m, fast := v.(fastMarshaler)
	if !fast {
		return c.standard.Marshal(v)
	}
	size := m.SizeVT()
	if mem.IsBelowBufferPoolingThreshold(size) {
		b := make([]byte, size)
		if err := fill(m, b); err != nil {
			return nil, err
		}
		return mem.BufferSlice{mem.SliceBuffer(b)}, nil
	}
	pool := mem.DefaultBufferPool()
	b := pool.Get(size)
	if err := fill(m, (*b)[:size]); err != nil {
		pool.Put(b)
		return nil, err
	}
	return mem.BufferSlice{mem.NewBuffer(b, pool)}, nil
}

func fill(m fastMarshaler, to []byte) error {
	n, err := m.MarshalToSizedBufferVT(to)
	if err == nil && n != len(to) {
		err = fmt.Errorf("%T took %d bytes instead of %d", m, n, len(to))
	}
	return err
}

// Unmarshal decodes a message over whatever v was.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	switch m := v.(type) {
	case *flotillav1.BatchResponse:
		return unmarshalCopying(data, m)
	case *flotillav1.Response:
		return unmarshalCopying(data, m)
	case fastUnmarshaler:
		m.Reset()
		return m.UnmarshalVTUnsafe(data.Materialize())
	default:
		return c.standard.Unmarshal(data, v)
	}
}

func unmarshalCopying(data mem.BufferSlice, m interface {
	Reset()
	UnmarshalVT(from []byte) error
}) error {
	b := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer b.Free()
	m.Reset()
	return m.UnmarshalVT(b.ReadOnlyData())
}
