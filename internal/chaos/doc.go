// Package chaos disturbs what a node takes from the operating system: its
// disk, its clock and its connections to other nodes. It is compiled in only
// with the build tag of its name, into a binary that the tests of tests/chaos
// make for themselves; the product has none of it.
//
// A test writes Settings into the file that the environment variable
// FLOTILLA_CHAOS names. The node looks at it every few milliseconds, and when
// it has taken it writes the number of the settings into a file beside it.
package chaos
