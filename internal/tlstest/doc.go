// Package tlstest makes certificate authorities and certificates, good and bad
// ones, for tests, and puts them where a process under test looks for them.
// Nothing else imports it.
package tlstest
