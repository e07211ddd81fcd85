// Package readme runs the commands of README.md as a new user would and holds
// what they print against what it shows.
package readme
