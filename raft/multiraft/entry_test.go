package multiraft

import (
	"bytes"
	"errors"
	"testing"

	"pgregory.net/rapid"
)

func TestCommandsComeBackAsTheyWent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		commands := rapid.SliceOf(rapid.SliceOfN(rapid.Byte(), 0, 300)).Draw(t, "commands")
		stamp := rapid.Int64().Draw(t, "stamp")
		var props []proposal
		for _, c := range commands {
			props = append(props, proposal{command: c})
		}
		data := encodeCommands(stamp, props)
		before := [][]byte{{1}}
		gotStamp, got, err := decodeCommands(data, before)
		if err != nil || gotStamp != stamp || len(got) != len(commands)+1 {
			t.Fatalf("stamp %d -> %d, %d commands -> %d, %v", stamp, gotStamp, len(commands), len(got)-1, err)
		}
		for i := range commands {
			if !bytes.Equal(got[i+1], commands[i]) {
				t.Fatalf("command %d: %x -> %x", i, commands[i], got[i+1])
			}
		}
	})
}

func TestADamagedEntryIsRefused(t *testing.T) {
	whole := encodeCommands(7, []proposal{{command: []byte("one")}, {command: []byte("two")}})
	for n := range len(whole) {
		if _, _, err := decodeCommands(whole[:n], nil); !errors.Is(err, errEntry) {
			t.Errorf("cut to %d of %d bytes: %v", n, len(whole), err)
		}
	}
	for name, data := range map[string][]byte{
		"a byte too many":   append(bytes.Clone(whole), 0),
		"unknown version":   append([]byte{2}, whole[1:]...),
		"impossible count":  append(bytes.Clone(whole[:9]), 0xff, 0xff, 0xff, 0x7f),
		"impossible length": append(bytes.Clone(whole[:9]), 1, 0xff, 0xff, 0xff, 0x7f),
	} {
		if _, _, err := decodeCommands(data, nil); !errors.Is(err, errEntry) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzDecodeCommands(f *testing.F) {
	f.Add(encodeCommands(1, []proposal{{command: []byte("x")}}))
	f.Fuzz(func(t *testing.T, data []byte) { _, _, _ = decodeCommands(data, nil) })
}
