// Package arch holds the structure of the house to its plan: which package may
// import which. There is nothing in it but tests.
package arch
