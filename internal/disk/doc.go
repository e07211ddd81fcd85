// Package disk holds what the two stores of a node (logstore and statestore)
// have in common below their data: the claim on a directory, and what happens
// when the disk fails.
//
// A directory is claimed by a lock and a FORMAT file:
//
//	LOCK      held while the store is open
//	FORMAT    "flotilla <kind> <version>\n"
//
// A directory that is already open is refused with ErrInUse, one that a newer
// version of the program wrote with a *FormatError, one that holds something
// else with ErrForeign. None of these changes anything in it.
//
// A failed disk is not retried (an fsync that failed once says nothing about
// the bytes, whatever the next one answers): the store stops for good, once,
// and tells the node through a callback. See Stop.
package disk
