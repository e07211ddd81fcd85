// Package process tries the binary as its users run it: real processes on
// loopback that are loaded, killed with -9, stopped and restarted.
//
// The tests need the binary (make build) and the tag process:
//
//	make build && go test -tags process ./tests/process/...
package process
