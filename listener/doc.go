// Package listener accepts connections, decides where they go, and lives with
// them to their end.
//
// The life of a session, in steps, all on one loop:
//
//  1. accept: the loop's own listening socket is ready. A place is reserved
//     among max_connections before accept4, so that a full process leaves
//     clients in the kernel's queue. Allow, deny and limits are asked.
//  2. route: the routing table in force at that moment, an immutable snapshot
//     that the session keeps, names the upstream.
//  3. connect: package upstream picks a server and connects (`connect` phase),
//     all within timeouts.handshake.
//  4. relay: package splice moves the bytes (`relay` phase); the session's one
//     timer watches idle, half-close and lifetime.
//  5. end: one [End] from the closed list, with the [Phase] it happened in;
//     the lease goes back, one [Record] is logged, counters are added to, and
//     the session's memory is used for the next.
//
// A [Manager] owns the listening sockets and the loops' workers. A reload is
// [Manager.Prepare], which does everything that can fail, and [Plan.Commit],
// which cannot.
package listener
