package wire

import (
	"bytes"
	"testing"

	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
)

// full sets every field of a message, and every member of its oneofs in turn.
func full(m protoreflect.Message, member, depth int) { filled(m, member, depth, 3, 100) }

// filled does that with lists of some length, and bytes of twice some length.
func filled(m protoreflect.Message, member, depth, list, size int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if o := f.ContainingOneof(); o != nil && o.Fields().Get(member%o.Fields().Len()) != f {
			continue
		}
		switch {
		case f.IsList():
			elements := m.Mutable(f).List()
			for n := range list {
				if v := value(elements.NewElement(), f, member+n, depth, list, size); v.IsValid() {
					elements.Append(v)
				}
			}
		default:
			if v := value(m.NewField(f), f, member, depth, list, size); v.IsValid() {
				m.Set(f, v)
			}
		}
	}
}

func value(empty protoreflect.Value, f protoreflect.FieldDescriptor, member, depth, list, size int) protoreflect.Value {
	switch f.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(1)
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(1 << 31)
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return protoreflect.ValueOfUint64(1<<63 + 7)
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(-5)
	case protoreflect.StringKind:
		return protoreflect.ValueOfString("täxt")
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes(bytes.Repeat([]byte{0xfe, 0}, size))
	case protoreflect.MessageKind:
		if depth == 0 {
			return protoreflect.Value{}
		}
		filled(empty.Message(), member, depth-1, list, size)
		return empty
	}
	panic(f.Kind().String())
}

// TestCodecIsThatOfProtobuf encodes each message with one and decodes it with the
// other.
func TestCodecIsThatOfProtobuf(t *testing.T) {
	ours := newCodec()
	for _, m := range []proto.Message{
		new(flotillav1.BatchRequest), new(flotillav1.BatchResponse), new(flotillav1.Request), new(flotillav1.Response),
		new(flotillav1.RaftBatch), new(flotillav1.RaftClosed), new(flotillav1.LivenessPing),
		new(flotillav1.SnapshotChunk), new(flotillav1.SnapshotReply),
		new(grpc_health_v1.HealthCheckResponse),
	} {
		for member := range 9 {
			full(m.ProtoReflect(), member, 4)
			for _, way := range []struct {
				name     string
				from, to interface {
					Marshal(any) (mem.BufferSlice, error)
					Unmarshal(mem.BufferSlice, any) error
				}
			}{{"ours to standard", ours, ours.standard}, {"standard to ours", ours.standard, ours}} {
				encoded, err := way.from.Marshal(m)
				if err != nil {
					t.Fatalf("%s: %T: %v", way.name, m, err)
				}
				got := m.ProtoReflect().New().Interface()
				if err := way.to.Unmarshal(encoded, got); err != nil {
					t.Fatalf("%s: %T: %v", way.name, m, err)
				}
				if !proto.Equal(got, m) {
					t.Errorf("%s: %T is\n%v\nwant\n%v", way.name, m, got, m)
				}
				if err := way.to.Unmarshal(encoded, got); err != nil || !proto.Equal(got, m) {
					t.Errorf("%s: %T over another is\n%v, %v\nwant\n%v", way.name, m, got, err, m)
				}
				encoded.Free()
			}
		}
	}
}

// TestValuesOfResponsesAreTheirOwn writes over the memory that a response came
// in: nothing of it may change.
func TestValuesOfResponsesAreTheirOwn(t *testing.T) {
	m := &flotillav1.BatchResponse{Responses: []*flotillav1.Response{{Results: []*flotillav1.Result{{Value: []byte("value")}}}}}
	encoded, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	got := new(flotillav1.BatchResponse)
	if err := newCodec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(encoded)}, got); err != nil {
		t.Fatal(err)
	}
	clear(encoded)
	if !proto.Equal(got, m) {
		t.Errorf("is now %v", got)
	}
}

// FuzzUnmarshal decodes what need not be a message: it may be refused, and
// nothing else.
func FuzzUnmarshal(f *testing.F) {
	for member := range 9 {
		for _, m := range []proto.Message{new(flotillav1.BatchRequest), new(flotillav1.RaftBatch), new(flotillav1.BatchResponse)} {
			filled(m.ProtoReflect(), member, 4, 1, 2) // the fuzzer is slow with large ones
			encoded, err := proto.Marshal(m)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(encoded)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, m := range []proto.Message{
			new(flotillav1.BatchRequest), new(flotillav1.BatchResponse), new(flotillav1.RaftBatch), new(flotillav1.SnapshotChunk),
		} {
			if newCodec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(data)}, m) != nil {
				continue
			}
			if _, err := newCodec().Marshal(m); err != nil {
				t.Errorf("%T cannot be encoded again: %v", m, err)
			}
		}
	})
}
