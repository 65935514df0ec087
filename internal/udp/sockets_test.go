package udp

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// listen is Listen for a test, and where the socket is bound.
func listen(t testing.TB, address string, o ListenOptions) (int, netip.AddrPort) {
	t.Helper()
	fd, err := Listen(netip.MustParseAddrPort(address), o)
	if err != nil {
		t.Fatalf("listening on %s: %v", address, err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd, boundTo(t, fd)
}

func boundTo(t testing.TB, fd int) netip.AddrPort {
	t.Helper()
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(zoned(netip.AddrFrom16(sa.Addr), sa.ZoneId), uint16(sa.Port))
	}
	t.Fatalf("a socket of another family: %T", sa)
	return netip.AddrPort{}
}

// dial makes a connected socket.
func dial(t testing.TB, to netip.AddrPort) *Socket {
	t.Helper()
	family := unix.AF_INET
	if to.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	connect(t, fd, to)
	return &Socket{FD: fd, V6: to.Addr().Is6()}
}

func connect(t testing.TB, fd int, to netip.AddrPort) {
	t.Helper()
	a := AddrFrom(to)
	sa, n := a.sockaddr()
	if _, _, errno := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(sa), uintptr(n)); errno != 0 {
		t.Fatalf("connecting to %v: %v", to, errno)
	}
}

// refusing is an address whose port is unreachable (ICMP) to all the world, and
// stays so: the socket there is connected to itself.
func refusing(t testing.TB) netip.AddrPort {
	fd, bound := listen(t, "127.0.0.1:0", ListenOptions{})
	connect(t, fd, bound)
	return bound
}

func set(t testing.TB, fd, level, option, value int) {
	t.Helper()
	if err := unix.SetsockoptInt(fd, level, option, value); err != nil {
		t.Fatalf("option %d of level %d: %v", option, level, err)
	}
}

func receiver(t testing.TB, slots int) *Receiver {
	t.Helper()
	r, err := NewReceiver(slots)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// trains receives messages until they are n datagrams, and says how many of
// them each had, and of how many bytes.
func trains(t testing.TB, r *Receiver, fd int, n int) string {
	t.Helper()
	var got []string
	for n > 0 {
		m := receive(t, r, fd)
		size := len(m.Data)
		if m.Segment > 0 {
			size = m.Segment
		}
		got = append(got, fmt.Sprintf("%d×%d", m.Count(), size))
		n -= m.Count()
		r.Release()
	}
	return strings.Join(got, " ")
}

// readable waits so many milliseconds for a socket to be readable, or to have
// an error.
func readable(t testing.TB, fd, milliseconds int) bool {
	t.Helper()
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, milliseconds)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		return n > 0
	}
}

func await(t testing.TB, fd int) {
	t.Helper()
	if !readable(t, fd, 10_000) {
		t.Fatal("nothing came in 10 s")
	}
}

// receive waits for one message on an unconnected socket.
func receive(t testing.TB, r *Receiver, fd int) *Message {
	t.Helper()
	await(t, fd)
	m, errno := r.Receive(fd, 1)
	if errno != 0 || len(m) != 1 {
		t.Fatalf("%d messages, %v", len(m), errno)
	}
	return &m[0]
}

// sendAll flushes packets, all of which must leave.
func sendAll(t testing.TB, sock *Socket, packets ...Packet) {
	t.Helper()
	s := NewSender(len(packets))
	want := Result{}
	for i := range packets {
		p := &packets[i]
		s.Add(p)
		want.Sent += count(len(p.Data), p.Segment)
		want.Bytes += len(p.Data)
	}
	if got := s.Flush(sock); got != want {
		t.Fatalf("flushed: %+v; want %+v", got, want)
	}
}
