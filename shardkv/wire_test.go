package shardkv

import (
	"fmt"
	"testing"

	flotillav1 "github.com/flotilla-kv/flotilla/api/flotilla/v1"
)

// TestAReadThatWaitsKeepsNothingOfItsMessage writes over the memory that a read
// came in.
func TestAReadThatWaitsKeepsNothingOfItsMessage(t *testing.T) {
	memory := []byte("key start end prefix compared")
	key, start, end, prefix, compared := memory[:3], memory[4:9], memory[10:13], memory[14:20], memory[21:]
	q := &flotillav1.Request{
		Compares:  []*flotillav1.Compare{{Target: flotillav1.Compare_VALUE, Key: key, Value: compared}},
		Ops:       []*flotillav1.Op{{Op: &flotillav1.Op_Get{Get: &flotillav1.Get{Key: key}}}},
		Otherwise: []*flotillav1.Op{{Op: &flotillav1.Op_Scan{Scan: &flotillav1.Scan{Start: start, End: end, Prefix: prefix}}}},
	}
	r, err := fromWire(q, 1)
	if err != nil {
		t.Fatal(err)
	}
	text := func(r readRequest) string { return fmt.Sprintf("%+v", r) }
	want, own := text(r.read), r.read.own()
	clear(memory)
	if got := text(own); got != want {
		t.Errorf("the read is now\n%s\nand was\n%s", got, want)
	}
}
