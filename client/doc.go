// Package client is the Go client of Flotilla: it knows which group serves
// which shard and who leads it, and hides fail-overs, moves of shards, retries
// and connections from its caller.
//
//	c, err := client.New(client.Options{Servers: []string{"127.0.0.1:7000"}})
//	if err != nil { ... }
//	defer c.Close()
//
//	_, err = c.Put(ctx, "greeting", []byte("hello"), client.TTL(time.Hour))
//	item, err := c.Get(ctx, "greeting")
//	if errors.Is(err, client.ErrNotFound) { ... }
//	n, err := c.Incr(ctx, "visits", 1)
//	for item, err := range c.Scan(ctx, client.Prefix("user:")) { ... }
//	w, err := c.WatchPrefix(ctx, "user:")
//	for e, err := w.Next(ctx); err == nil; e, err = w.Next(ctx) { ... }
//
// # What holds
//
// Reads are linearizable unless an option asks for less by name. A write takes
// effect at most once, however often the client sends it: it carries a number
// that the shard remembers (RIFL). An error tells whether a write may have
// happened: only an error that is ErrUnknownOutcome leaves it open, and
// Client.Outcome settles it. Every call ends at its context's deadline, or
// after Options.Timeout if it has none. MultiGet and Batch are atomic shard by
// shard, Scan reads page by page; none is a snapshot of the whole.
//
// A watch tells each change of a shard once and in order, through moves,
// elections and lost connections, and can be taken up again from a version or
// token. Where the cluster does not keep the past any more it says so and tells
// what is there: it leaves nothing out in silence (see Watcher).
//
// All methods are safe for concurrent use, and all share one connection to
// each node: what is queued while a message is being sent goes out together in
// the next one. The calls under way and their bytes are bounded (Options);
// at the bound methods wait, and Submit answers ErrBusy.
//
// # How it is made
//
// Package routing decides: a pure step machine that takes in requests, answers,
// broken connections and maps, and says what to send where. This package
// drives it: it holds one lock around a step and carries out what came of it
// after the lock. There is one goroutine for time, one or two for the shard
// map, and for each connection one that sends and one that receives; none for
// a call that was submitted. A watch has one of its own, and one for each group
// that it is told by; all watches share a connection to each node.
//
// The client imports nothing of the server but the tables it shares with it
// (shardmap) and the wire messages. A node uses it too, for its RESP door, with
// a Dialer and a MapSource that know the node itself.
package client
