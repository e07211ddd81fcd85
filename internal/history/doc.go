// Package history records what concurrent clients did to a few keys of a live
// cluster and heard of it, and checks with porcupine whether there is an order
// of the operations that explains every answer: whether the cluster was
// linearizable.
//
// Linearizability is local, so each key is checked by itself. An operation
// whose outcome is not known stays open for ever: it may take effect at any
// later time or never. One that failed for certain must have had no effect and
// is left out; if it had one after all, some answer has no explanation.
//
// The model knows versions too: each write gets one that is higher than all
// before it, and a read tells that of the write it saw.
package history
