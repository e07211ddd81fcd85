// Package routing decides where each request of a client goes and what follows
// from each answer. It is a pure step machine: no goroutine, lock, clock or I/O
// of its own. The driver (package client, or a simulator) tells it what
// happened, with the time, and takes out what is to be done:
//
//	in    Submit, Response, LinkUp, LinkDown, MapChanged, Cancel, Tick
//	out   Output: sends, connects, disconnects, deliveries, whether the
//	      shard map has to be refreshed, and when to call Tick next
//
// A Router is for one goroutine at a time. The same events with the same times
// and the same random source give the same outputs.
//
// # What holds
//
//   - Every call that was submitted is delivered exactly once, at its deadline
//     at the latest.
//   - A write is numbered (RIFL) when it is first sent and keeps session and
//     number through all its attempts, so it takes effect at most once. A write
//     gets another number only if the session expired before any attempt can
//     have had an effect.
//   - A failure says whether the write may have happened (Failure.Possible). It
//     is false only if every attempt is known to have had no effect.
//   - `lowest` of a session never passes a number whose call is still waited
//     for.
//   - A shard's owner follows the higher generation, whichever way the maps
//     arrive; a "moved" answer is believed until a map knows better.
//   - A call that may succeed yet goes on until its deadline, whatever it meets:
//     with waits that grow up to a tenth of a second, those after "busy" apart
//     from those after failures.
//   - Requests of one Lane that meet in one shard take effect in their order:
//     one request of the lane is under way in a shard at a time, and those that
//     waited behind it go on together as one where that is possible.
//
// # What it refuses
//
// Requests whose keys lie in different shards. Limits of sizes and the number
// of calls under way are the driver's.
package routing
