//go:build !wrongreads

package multiraft

// wrongReads is set only by the build tag of that name.
const wrongReads = false
