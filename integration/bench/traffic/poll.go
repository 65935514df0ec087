package traffic

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// poller is an epoll instance. Its user is one locked thread.
type poller struct {
	fd     int
	events [512]unix.EpollEvent
}

func newPoller() (*poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll_create1: %w", err)
	}
	return &poller{fd: fd}, nil
}

func (p *poller) close() { unix.Close(p.fd) }

// add registers fd; its events carry slot.
func (p *poller) add(fd int32, events uint32, slot int32) error {
	ev := unix.EpollEvent{Events: events, Fd: slot}
	return p.control(unix.EPOLL_CTL_ADD, fd, &ev)
}

func (p *poller) modify(fd int32, events uint32, slot int32) error {
	ev := unix.EpollEvent{Events: events, Fd: slot}
	return p.control(unix.EPOLL_CTL_MOD, fd, &ev)
}

func (p *poller) control(op int, fd int32, ev *unix.EpollEvent) error {
	if _, _, e := syscall.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(p.fd), uintptr(op), uintptr(fd), uintptr(unsafe.Pointer(ev)), 0, 0); e != 0 {
		return fmt.Errorf("epoll_ctl: %w", e)
	}
	return nil
}

// wait returns what is ready, waiting up to timeout when nothing is; a negative
// timeout waits for ever. Only the call that may block tells the scheduler.
func (p *poller) wait(timeout time.Duration) ([]unix.EpollEvent, error) {
	n, _, e := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(p.fd), uintptr(unsafe.Pointer(&p.events[0])), uintptr(len(p.events)), 0, 0, 0)
	if e == 0 && n == 0 && timeout != 0 {
		// epoll_pwait2 (Linux 5.11), because epoll_wait knows milliseconds only.
		var ts *unix.Timespec
		if timeout > 0 {
			t := unix.NsecToTimespec(int64(timeout))
			ts = &t
		}
		n, _, e = syscall.Syscall6(unix.SYS_EPOLL_PWAIT2, uintptr(p.fd), uintptr(unsafe.Pointer(&p.events[0])), uintptr(len(p.events)), uintptr(unsafe.Pointer(ts)), 0, 0)
	}
	switch e {
	case 0:
		return p.events[:n], nil
	case syscall.EINTR:
		return nil, nil
	case syscall.ENOSYS:
		return nil, errors.New("epoll_pwait2 is missing: the benchmark needs Linux 5.11 or later")
	}
	return nil, fmt.Errorf("epoll_pwait2: %w", e)
}

// The calls below are for non-blocking descriptors alone: they do not tell the
// scheduler, so a call that blocked would stop the program.

func read(fd int32, b []byte) (int, syscall.Errno) {
	n, _, e := syscall.RawSyscall(syscall.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	return int(n), e
}

// discard reads without copying: the bytes are dropped in the kernel.
func discard(fd int32, n int) (int, syscall.Errno) {
	got, _, e := syscall.RawSyscall6(syscall.SYS_RECVFROM, uintptr(fd), 0, uintptr(n), unix.MSG_TRUNC, 0, 0)
	return int(got), e
}

func write(fd int32, b []byte) (int, syscall.Errno) {
	n, _, e := syscall.RawSyscall(syscall.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	return int(n), e
}

func accept(fd int32) (int32, syscall.Errno) {
	n, _, e := syscall.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), 0, 0, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
	return int32(n), e
}

func closeSocket(fd int32) {
	syscall.RawSyscall(syscall.SYS_CLOSE, uintptr(fd), 0, 0)
}

func socket() (int32, syscall.Errno) {
	fd, _, e := syscall.RawSyscall(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	return int32(fd), e
}

func noDelay(fd int32) {
	one := int32(1)
	syscall.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.IPPROTO_TCP, unix.TCP_NODELAY, uintptr(unsafe.Pointer(&one)), unsafe.Sizeof(one), 0)
}

func connect(fd int32, to *unix.RawSockaddrInet4) syscall.Errno {
	_, _, e := syscall.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(to)), unix.SizeofSockaddrInet4)
	return e
}

func rawAddress(a netip.AddrPort) (unix.RawSockaddrInet4, error) {
	if !a.Addr().Is4() {
		return unix.RawSockaddrInet4{}, fmt.Errorf("%s: the benchmark speaks IPv4 only", a)
	}
	sa := unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: a.Addr().As4()}
	sa.Port = a.Port()<<8 | a.Port()>>8 // network order, on the little-endian machines Go calls amd64 and arm64
	return sa, nil
}

// sharpTimers lets this thread's waits end when asked and not up to 50 µs later,
// which at paced rates would be counted as latency.
func sharpTimers() { unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0) }
