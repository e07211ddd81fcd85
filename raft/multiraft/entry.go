package multiraft

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// entryVersion is the first byte of a command entry.
const entryVersion = 1

// entryHeaderBytes is what precedes the count: version(1) and stamp(8).
const entryHeaderBytes = 9

var errEntry = errors.New("command entry cannot be read")

// commandOverhead bounds what a command costs in an entry beyond its bytes.
const commandOverhead = binary.MaxVarintLen32

// encodeCommands makes the data of one entry; the layout is drawn in doc.go.
func encodeCommands(stamp int64, props []proposal) []byte {
	size := entryHeaderBytes + binary.MaxVarintLen32
	for i := range props {
		size += commandOverhead + len(props[i].command)
	}
	data := make([]byte, 0, size)
	data = append(data, entryVersion)
	data = binary.BigEndian.AppendUint64(data, uint64(stamp))
	data = binary.AppendUvarint(data, uint64(len(props)))
	for i := range props {
		data = binary.AppendUvarint(data, uint64(len(props[i].command)))
		data = append(data, props[i].command...)
	}
	return data
}

// decodeCommands appends the entry's commands to into. They share data.
func decodeCommands(data []byte, into [][]byte) (stamp int64, commands [][]byte, err error) {
	if len(data) < entryHeaderBytes {
		return 0, nil, fmt.Errorf("%w: %d bytes", errEntry, len(data))
	}
	if data[0] != entryVersion {
		return 0, nil, fmt.Errorf("%w: version %d, this program knows %d", errEntry, data[0], entryVersion)
	}
	stamp = int64(binary.BigEndian.Uint64(data[1:]))
	rest := data[entryHeaderBytes:]
	count, n := binary.Uvarint(rest)
	if n <= 0 || count > uint64(len(rest)) {
		return 0, nil, fmt.Errorf("%w: count of commands", errEntry)
	}
	rest = rest[n:]
	for range count {
		size, n := binary.Uvarint(rest)
		if n <= 0 || size > uint64(len(rest)-n) {
			return 0, nil, fmt.Errorf("%w: length of a command", errEntry)
		}
		into = append(into, rest[n:n+int(size):n+int(size)])
		rest = rest[n+int(size):]
	}
	if len(rest) != 0 {
		return 0, nil, fmt.Errorf("%w: %d bytes too many", errEntry, len(rest))
	}
	return stamp, into, nil
}
