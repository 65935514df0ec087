// Package ktls lets the kernel seal and open the records of a TLS session
// (Documentation/networking/tls.rst), in raw calls on non-blocking sockets.
// It knows no handshakes and makes no decisions about a session.
//
// A session in steps:
//
//  1. [Probe] has found, once at start, that this kernel does all of what
//     follows; otherwise none of it is used.
//  2. [Attach] as soon as the connection is there: after the peer's FIN it is
//     too late. Until keys are set, bytes pass as they are, [Send] included.
//  3. After the handshake [SetKeys], both directions with the same version and
//     suite. Bytes of the peer that are still in the socket are decrypted.
//  4. The socket is read, written and spliced as if it were plain. What is not
//     application data makes itself known by an error, and is read by [Recv].
//  5. An alert or handshake message to the peer goes through [Send]; after a
//     KeyUpdate in either direction that direction's keys are set anew.
//  6. Close_notify has been taken by [Send] before the socket is shut or closed.
//
// # What calls return, and what to do
//
// Measured on 6.1, 6.12 and 7.3, where no kernel is named alike; TestKernel
// holds every line.
//
//	what is in the socket         read    splice  Recv             what to do
//	data                          n       n       n, Data
//	empty data records            EAGAIN  0       EAGAIN           splice's 0: ask Recv
//	empty data record, then FIN   0       0       0, Data          read again
//	FIN, also inside a record     0       0       0, 0             truncated, unless close_notify came before
//	record of another type        EIO     EINVAL  n ≥ 0, its type  Recv; an empty one, too, has its type
//	 … behind data                n       n       n, Data          then as above
//	wrong MAC, no inner type      EBADMSG EBADMSG EBADMSG          bad_record_mac; for good
//	outer type not Data, forged   EBADMSG EBADMSG EBADMSG          as if the MAC were wrong, or as the next line
//	header: length, version       EMSGSIZE or EINVAL, EBADMSG where it is too short: once, then EAGAIN for good
//	KeyUpdate has been received   EKEYEXPIRED until SetKeys, even when there is nothing to read (7.3);
//	                              6.1 and 6.12 use the old key, hence EBADMSG
//	RST                           ECONNRESET once, then 0
//
// What follows from it:
//
//   - EINVAL of splice(2) means a record of another type or a bad header. If
//     Recv then says EAGAIN, it was the header, the error has been taken, and
//     the stream is dead: nothing more will ever be reported.
//   - A bad header is announced by EPOLLERR without EPOLLIN (6.1: with). Do not
//     ask for SO_ERROR, which takes the error away; ask Recv.
//   - TLS 1.2 with AES-GCM: a header is judged when 13 bytes are there, with the
//     explicit nonce. Whoever sends less looks like one who stopped within a
//     record. TLS 1.3: the outer type of an authentic record is not looked at.
//   - Errors of receiving come out of sends, too: all of a bad header, and
//     EBADMSG once Recv has seen it. [AlertOf] tells which these are. [Fatal]
//     clears them, so that the peer can still be told.
//   - After a RST that has been read, sends succeed: the kernel keeps their
//     bytes in its memory, without bound, and nobody ever gets them. The same
//     after shutdown(SHUT_WR). So after ECONNRESET or EPOLLHUP nothing may be
//     sent.
//   - What a send has taken may not have reached TCP yet: up to one record
//     waits for room. shutdown(2) loses it, but not once a later Send has been
//     taken. A close_notify that gets EAGAIN has to be tried again on EPOLLOUT.
//   - MSG_MORE keeps a record open for good: shutdown(2) and close(2) lose it.
//     The next send without it, or Send, sends it; then record and close_notify
//     leave together.
//   - A handshake record that begins with a KeyUpdate stops 7.3, whatever else
//     is in it: a KeyUpdate split over two records cannot be read. One behind
//     another message in the same record does not stop it, and keys can be set.
//   - splice(2) moves one record at a time, 16 KiB at most, and less when the
//     peer's records are small. That says nothing of how much there is.
//   - Recv and read(2) stop short of a record of another type: fewer bytes than
//     asked for do not mean that the socket is empty, and there will be no
//     further edge. Only EAGAIN does.
//   - EPOLLIN is a whole record, and comes again when SetKeys makes one
//     readable: edge-triggered use is safe.
//   - Sends and splices may fail with EINTR although they do not wait: the
//     kernel's own worker may hold the lock. Nothing has been taken then.
//   - A direction of TLS 1.2 takes keys once.
package ktls
