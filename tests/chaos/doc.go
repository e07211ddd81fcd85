// Package chaos runs real processes of the binary, three or five of them, under
// a load of clients, and does to them what can happen: kill -9, pauses, stops,
// networks cut in every shape, clocks that jump and drift, disks that are slow,
// full or broken. The faults are drawn from a seed, several at once, held for
// some seconds and healed; within 30 s of that every shard has to serve again.
//
// What the clients heard has to be linearizable, every acknowledged write there,
// each increment and each appended token in effect once and told to a watch once,
// no process ended that was not told to, memory bounded, and at the end all nodes
// hold the same.
//
//	make chaos [DURATION=30m] [NODES=3] [SEED=n]
//	go test -tags chaos ./tests/chaos -v -run TestFaults     each fault by itself
//
// The tests build a binary of their own with the tag chaos, in which a node's
// disk, clock and dialling obey a file (package internal/chaos). Nodes are on
// loopback with a TCP proxy between each two, in each direction, which needs
// nothing but Go; or, as root where the kernel allows it, in network namespaces,
// which cut gossip too. The tests want Linux. A process belongs to one test and
// does not outlive it.
package chaos
