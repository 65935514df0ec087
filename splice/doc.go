// Package splice moves bytes both ways between two connected sockets on one
// event loop.
//
// A [Relay] has two directions, each the life of a byte in steps:
//
//  1. The source is readable: up to 64 KiB are read into the loop's one buffer.
//  2. They are written to the destination at once. What it does not take is
//     kept with the session, and the source is not read until it is gone:
//     that is all of the back-pressure.
//  3. After two full reads in a row the direction changes to splice(2): socket
//     → pipe → socket, never through user space. A pipe is held only while
//     bytes are in it. When splices bring little, the direction goes back.
//  4. The source has finished (FIN): when nothing is left to write, the
//     destination is shut for writing; the other direction goes on.
//
// Invariants: a direction holds either kept bytes or a pipe, never both; while
// it holds anything its destination is not writable; bytes read are delivered
// in order or the relay ends with a reset, never with a clean FIN.
package splice
