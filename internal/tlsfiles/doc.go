// Package tlsfiles turns three PEM files (a certificate, its key and the CAs
// that are trusted) into TLS for both ends of every connection, and follows the
// files: a handshake uses what they say then, so certificates are rotated with
// no restart.
//
// # Contract
//
//   - TLS 1.3 only, and no session tickets: every handshake verifies, by the
//     files of that moment.
//   - What is in use is always whole and checked: the key belongs to the
//     certificate, the certificate is valid now, a CA of the CA file signed it,
//     and, for a process that others call, it names the host they call it by.
//     Files that fail are not taken: Load refuses them, and later the set
//     before them stays in use, which is logged once for each complaint.
//   - The files are looked at when there is a handshake, lookInterval apart at
//     the least, by one handshake while others go on; they are read only if one
//     of them has changed or the last look had a complaint. [Files.Watch] looks
//     too, so that a mistake shows before somebody connects.
//   - A connection that stands is not looked at again.
//   - How long a handshake may take is for those to say who accept or dial.
//
// # Who has to show a certificate
//
// [Files.Credentials], for gRPC, are mutual: both ends show a certificate of a
// CA in the file, and the caller checks that it names the host that it called.
// [Files.Listener] is mutual or not, as its caller says; [Files.ServerConfig] of
// kind Anybody asks for no certificate.
//
// # What it refuses
//
// Files that are not regular or larger than fileBytesMax, what is not PEM, keys
// with a passphrase, certificates without the key usage that they need. Every
// error is one line that names the flag and the file.
package tlsfiles
