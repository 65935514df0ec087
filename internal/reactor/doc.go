// Package reactor is an edge-triggered epoll loop: descriptors with
// generations, a timer wheel, deferred closes and a clock, owned by one
// goroutine and shared with nobody.
//
// A turn of the loop, in steps:
//
//  1. Wait: epoll_pwait, no longer than until the next timer.
//  2. Posted functions run (the only way in from other goroutines).
//  3. Ready descriptors: each event carries slot and generation; an event of
//     a slot that was freed earlier in the same batch is dropped.
//  4. What asked for another turn because it used up its budget.
//  5. Timers that are due.
//  6. What was put off to the end of the turn, such as datagrams to be sent.
//  7. Deferred closes: only now are descriptor numbers given back, so that no
//     number is used anew within a batch.
//
// Everything marked "on the loop" may only be called from a handler, a timer
// or a posted function of that loop.
//
// The loop lives beside Go's scheduler. While there is work it waits by raw
// system call, which keeps its P: entering and leaving a blocking call through
// the scheduler costs more than a small relay does. That is safe because
// epoll_wait is always interrupted by the signal by which the runtime stops
// the world. After a few idle milliseconds it waits through the scheduler, so
// that an idle process is not signalled. It asks for GOMAXPROCS above the
// number of loops, so that goroutines always find a P.
package reactor
