// Package load drives a cluster with a workload of reads and writes and
// measures how it answers.
//
// Each of the workload's clients keeps its pipeline of requests under way.
// Without a rate a client sends the next request when one is answered, and a
// latency counts from the sending. With a rate the requests have one schedule,
// from which each client takes the next when its pipeline has room, and a
// latency counts from the time at which the request was due: a cluster that
// stalls does not slow the schedule down and so hide the stall (coordinated
// omission). Latencies are those of requests that succeeded.
package load
