//go:build linux

package reactor

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Raw calls: none of these blocks for longer than asked, and the scheduler
// need not know of them (see the package comment).

func epollWaitRaw(epfd int, events []unix.EpollEvent, timeout int) int {
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epfd), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), uintptr(timeout), 0, 0)
	if errno != 0 {
		return 0 // EINTR
	}
	return int(n)
}

func epollCtl(epfd, op, fd int, e *unix.EpollEvent) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(epfd), uintptr(op), uintptr(fd), uintptr(unsafe.Pointer(e)), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func closeRaw(fd int32) { unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) }
