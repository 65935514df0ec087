package ktls

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Raw calls on non-blocking descriptors: the scheduler need not know of them,
// see the package comment of internal/reactor. EINTR is possible all the same:
// the kernel's TLS waits for a mutex, which its own worker may hold.

// control is room for one control message of one byte.
type control struct {
	head unix.Cmsghdr
	data [unsafe.Sizeof(uintptr(0))]byte
}

// Recv reads from a socket that has keys for RX, without waiting. What it
// returns together belongs together: any number of [Data] records, or (part
// of) a single one of another type, and never both. Where it cannot be told
// from n what happened, typ tells:
//
//	n > 0                what was read, of type typ
//	n == 0, typ != 0     an empty record of type typ
//	n == 0, typ == 0     the peer's FIN, with nothing before it that we have not seen
//	errno                see the table of the package
//
// Empty [Data] records are skipped. b must not be empty.
func Recv(fd int, b []byte) (n int, typ byte, errno unix.Errno) {
	var c control
	iov := unix.Iovec{Base: unsafe.SliceData(b)}
	iov.SetLen(len(b))
	msg := unix.Msghdr{Iov: &iov, Control: (*byte)(unsafe.Pointer(&c))}
	msg.SetIovlen(1)
	msg.SetControllen(int(unsafe.Sizeof(c)))
	r, _, errno := unix.RawSyscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(&msg)), unix.MSG_DONTWAIT)
	for errno == unix.EINTR {
		r, _, errno = unix.RawSyscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(&msg)), unix.MSG_DONTWAIT)
	}
	if errno != 0 {
		return 0, 0, errno
	}
	if int(msg.Controllen) >= unix.CmsgLen(1) && c.head.Level == unix.SOL_TLS && c.head.Type == getRecordType {
		typ = c.data[0]
	}
	return int(r), typ, 0
}

// Send sends b as one record of type typ, after everything that was sent
// before. It is for alerts and handshake messages: nothing of b is taken when
// it fails, EAGAIN included, and all of it when it does not.
func Send(fd int, typ byte, b []byte) unix.Errno {
	if len(b) == 0 || len(b) > MaxPlaintext {
		return unix.EMSGSIZE
	}
	var c control
	c.head.Level, c.head.Type = unix.SOL_TLS, setRecordType
	c.head.SetLen(unix.CmsgLen(1))
	c.data[0] = typ
	iov := unix.Iovec{Base: unsafe.SliceData(b)}
	iov.SetLen(len(b))
	msg := unix.Msghdr{Iov: &iov, Control: (*byte)(unsafe.Pointer(&c))}
	msg.SetIovlen(1)
	msg.SetControllen(unix.CmsgSpace(1))
	n, _, errno := unix.RawSyscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&msg)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	for errno == unix.EINTR {
		n, _, errno = unix.RawSyscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&msg)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	}
	if errno == 0 && int(n) != len(b) {
		return unix.EIO // half a message: the stream cannot be continued
	}
	return errno
}
