// Package node is one node: it wires the log store, the state store, the
// transport, the host of many groups, gossip, the controller, the replica
// groups' server, the client library and the doors (gRPC, RESP, HTTP) into one
// life: start, wait until ready, hand over, stop.
//
// The order of a start is the order of the fields of Node: each stands on those
// above it, and a stop goes the other way. Nothing here decides: a package
// that decides is stepped by its own loop, and node only introduces them to
// each other.
//
// With TLS files (internal/tlsfiles) all that goes over gRPC, RESP and HTTP is
// protected by them, in both directions; tls.go says who has to show what.
//
// What it refuses: a data dir that is in use, of a newer format, or of another
// node; ports that are taken; a name that is empty or too long; TLS files that
// others would not take. A disk that fails ends the node: [Node.Failed] tells, and
// the process exits.
package node
