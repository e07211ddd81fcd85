// Package assert holds the assertions that stay on in production. A violated
// one means that we are wrong, not the input: the process stops rather than
// go on with a state nobody has thought about.
package assert

import "fmt"

// That panics with the formatted text unless ok. The text names the property,
// with both numbers and the ids.
func That(ok bool, format string, args ...any) {
	if !ok {
		panic("assertion failed: " + fmt.Sprintf(format, args...))
	}
}
