package logstore

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/flotilla-kv/flotilla/raft"
)

// frameStarts says where the frames of a file begin; the last one is where they
// end.
func frameStarts(text []byte) (frames []int) {
	at, number := segmentHeaderBytes, binary.BigEndian.Uint64(text[28:])
	for at+frameHeaderBytes <= len(text) && binary.BigEndian.Uint64(text[at+8:]) == number {
		frames = append(frames, at)
		at += frameHeaderBytes + int(binary.BigEndian.Uint32(text[at:]))
		number++
	}
	return append(frames, at)
}

// A disk may put a block at another's place, or say that it wrote one and leave
// what was there. Each block is whole by itself, so it takes what is around it
// to notice: the file's nonce and the frame's number are in its checksum, and
// the evidence says how far the log was. All that lies before the place is
// there, and counts for nothing until a leader has confirmed it.
func TestAMisplacedOrLostWriteIsNoticed(t *testing.T) {
	for _, c := range []struct {
		name   string
		damage func(text []byte, frames []int, n int)
	}{
		{"another frame of the same length", func(text []byte, frames []int, n int) {
			for other := n - 1; other > 0; other-- {
				if frames[other+1]-frames[other] == frames[n+1]-frames[n] {
					copy(text[frames[n]:frames[n+1]], text[frames[other]:frames[other+1]])
					return
				}
			}
			t.Fatal("no frame of the same length")
		}},
		{"the same frame of another file", func(text []byte, frames []int, n int) {
			sealFrame(text[frames[n]:frames[n+1]], 77, binary.BigEndian.Uint64(text[frames[n]+8:]))
		}},
		{"a write that was lost", func(text []byte, frames []int, n int) {
			clear(text[frames[n]:frames[n+1]])
		}},
	} {
		for _, place := range []string{"in the middle", "at the end"} {
			t.Run(c.name+" "+place, func(t *testing.T) {
				fs := usedStore(t, true)
				edit(t, fs, newestWAL(t, fs), func(text []byte) []byte {
					frames := frameStarts(text)
					n := len(frames) - 2
					if place == "in the middle" {
						n = len(frames) / 2
					}
					c.damage(text, frames, n)
					return text
				})
				s := openTest(t, testOptions(t, fs))
				defer closeTest(t, s)
				if !s.Cut() {
					t.Error("not noticed")
				}
				for _, id := range []raft.ReplicaKey{key(2, 3), key(3, 4)} {
					state, err := s.Load(id)
					if err != nil || !state.Suspect || state.Last == 0 || place == "in the middle" && state.Last > 15 {
						t.Errorf("%v: %+v, %v", id, state, err)
					}
					for i := raft.Index(1); i <= state.Last; i++ {
						if term, err := s.Reader(id).Term(i); err != nil || term != raft.Term(i) {
							t.Errorf("%v: entry %d is of term %d, %v", id, i, term, err)
						}
					}
				}
			})
		}
	}
}

// A record that is whole and lies at another's place is not taken for it when
// it is read again: not one of another group, nor one of the same group with
// other entries, which would leave a gap in what is sent to a follower.
func TestAMisplacedRecordStopsTheStore(t *testing.T) {
	id := key(2, 1)
	for name, misplaced := range map[string]struct {
		of    raft.ReplicaKey
		entry raft.Index
	}{
		"of another group":       {key(3, 1), 4},
		"of entries behind it":   {id, 6},
		"of entries in front":    {id, 2},
		"of the entry behind it": {id, 5},
	} {
		t.Run(name, func(t *testing.T) {
			o := smallSegments(t, vfs.NewMem())
			fatal := newFatalCounter()
			o.OnFatal = fatal.onFatal
			s := openTest(t, o)
			createTest(t, s, id, key(3, 1))
			fill(t, s, id, 7)
			fill(t, s, key(3, 1), 7)
			from, _ := s.Reader(misplaced.of).(reader).borrow(misplaced.entry)
			to, _ := s.Reader(id).(reader).borrow(4)
			body := make([]byte, from.bytes)
			if _, err := from.segment.file.ReadAt(body, from.at); err != nil || from.bytes != to.bytes {
				t.Fatalf("%d bytes for %d: %v", from.bytes, to.bytes, err)
			}
			if _, err := to.segment.file.WriteAt(body, to.at); err != nil {
				t.Fatal(err)
			}
			if entries, err := s.Reader(id).Entries(3, 8, 1<<20); err == nil {
				t.Errorf("3 to 7 are read as %v", entries)
			}
			select {
			case <-fatal.called:
			case <-time.After(testDeadline):
				t.Error("the node was not told")
			}
			if err := s.Close(); err == nil {
				t.Error("a store with damage closes without an error")
			}
		})
	}
}
