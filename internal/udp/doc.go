// Package udp moves datagrams in batches between sockets and memory, and knows
// nothing of what they mean or whose they are.
//
// A [Receiver] has slots of 64 KiB. One recvmmsg fills as many as there are
// datagrams, or, with UDP_GRO, trains of datagrams of equal size that came one
// behind the other: a [Message] says from where, to which local address and
// with which TOS. What was received stays in its slot until Release.
//
// A [Sender] collects what is to leave through one socket. Neighbours of equal
// size to the same peer are merged into one UDP_SEGMENT send, which the kernel,
// or the network card, takes apart again; Flush hands all of it to one
// sendmmsg. In steps:
//
//  1. Receive: a batch of messages, good until Release.
//  2. Add: a packet for each, pointing at the message's bytes.
//  3. Flush: one system call, or as many as refusals make it; the Result has
//     an account of every datagram.
//  4. Release.
//
// The order of datagrams is kept. A kernel, socket or path that refuses
// UDP_SEGMENT gets the same datagrams one by one, and [Socket] remembers.
//
// Nothing is locked: Receiver, Sender and Socket belong to one event loop.
// Nothing is allocated per datagram. All calls are raw and carry MSG_DONTWAIT:
// they return at once, and the Go scheduler need not know of them (see the
// package comment of internal/reactor).
package udp
