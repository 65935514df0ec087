package udp

import (
	"encoding/binary"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// namespace puts the test's goroutine, until it ends, into a network of its
// own, with loopback up. It must not be shared: other goroutines of the test
// stay outside. Without the privilege the test is skipped, unless
// EDGEPROXY_REQUIRE_REAL=1 says that it must run.
func namespace(t *testing.T) {
	t.Helper()
	runtime.LockOSThread() // for good: the thread ends with the goroutine
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		unprivileged(t, "a network namespace", err)
	}
	ifreq(t, unix.AF_INET, "lo", unix.SIOCSIFFLAGS, func(r *unix.Ifreq) { r.SetUint16(unix.IFF_UP) })
}

func unprivileged(t *testing.T, what string, err error) {
	t.Helper()
	if os.Getenv("EDGEPROXY_REQUIRE_REAL") == "1" {
		t.Fatalf("%s: %v; EDGEPROXY_REQUIRE_REAL=1 asks for it: run as root, with /dev/net/tun", what, err)
	}
	t.Skipf("%s: %v; run as root", what, err)
}

func ifreq(t *testing.T, family int, name string, request uint, fill func(*unix.Ifreq)) {
	t.Helper()
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq(name)
	if err != nil {
		t.Fatal(err)
	}
	fill(r)
	if err := unix.IoctlIfreq(fd, request, r); err != nil {
		t.Fatalf("%s, request %#x: %v", name, request, err)
	}
}

func setMTU(t *testing.T, name string, mtu uint32) {
	t.Helper()
	ifreq(t, unix.AF_INET, name, unix.SIOCSIFMTU, func(r *unix.Ifreq) { r.SetUint32(mtu) })
}

// RFC 4007: a link-local address means nothing without its interface, neither
// as peer nor as the source of the answer.
func TestLinkLocal(t *testing.T) {
	t.Parallel()
	namespace(t)
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	ours := netip.MustParseAddr("fe80::7")
	request := struct { // struct in6_ifreq, ipv6(7)
		address [16]byte
		prefix  uint32
		index   int32
	}{ours.As16(), 64, 1}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCSIFADDR, uintptr(unsafe.Pointer(&request))); errno != 0 {
		t.Fatalf("adding %v to lo: %v", ours, errno)
	}

	for _, dual := range []bool{false, true} {
		server, bound := listen(t, "[::]:0", ListenOptions{Dual: dual})
		to := netip.AddrPortFrom(ours.WithZone("1"), bound.Port())
		// The kernel finishes adding the address at its own time. Until then it
		// drops, and what was connected by then keeps a wrong source.
		var client *Socket
		for tries := 0; ; tries++ {
			client = dial(t, to)
			sendAll(t, client, Packet{Data: []byte("question")})
			if readable(t, server, 10) {
				break
			}
			if tries == 1000 {
				t.Fatalf("nothing came to %v", to)
			}
		}
		r := receiver(t, 2)
		m := receive(t, r, server)
		if got := m.Local.Addr(); got != to.Addr() {
			t.Errorf("sent to %v, by PKTINFO %v", to.Addr(), got)
		}
		if got, want := m.From.AddrPort(), boundTo(t, client.FD); got != want {
			t.Errorf("from %v; sent by %v", got, want)
		}
		sendAll(t, &Socket{FD: server, V6: true}, Packet{Data: []byte("answer"), To: &m.From, Local: &m.Local})
		await(t, client.FD)
		if got, errno := r.ReceiveConnected(client.FD, 1); len(got) != 1 || string(got[0].Data) != "answer" {
			t.Errorf("%v, %v", got, errno)
		}
	}
	bound, err := Listen(netip.MustParseAddrPort("[fe80::7%lo]:0"), ListenOptions{})
	if err != nil {
		t.Errorf("listening on a link-local address: %v", err)
	} else {
		unix.Close(bound)
	}
}

// UDP_SEGMENT refuses datagrams that are larger than the MTU (EMSGSIZE, before
// Linux 6.9 EINVAL), which may go in fragments otherwise.
func TestSegmentsLargerThanTheMTU(t *testing.T) {
	t.Parallel()
	namespace(t)
	const mtu = 1500
	setMTU(t, "lo", mtu)
	for _, test := range []struct {
		address string
		room    int
	}{{"127.0.0.1:0", mtu - 28}, {"[::1]:0", mtu - 48}} {
		in, bound := listen(t, test.address, ListenOptions{GRO: true})
		r := receiver(t, 1)
		client := dial(t, bound)
		send := func(sock *Socket, to *Addr, segment int, want string) {
			t.Helper()
			sendAll(t, sock, Packet{Data: pattern(2 * segment), Segment: segment, To: to})
			if got := trains(t, r, in, 2); got != want {
				t.Errorf("%s: 2×%d arrived as %s; want %s", test.address, segment, got, want)
			}
		}
		send(client, nil, 2000, "1×2000 1×2000")
		if client.SegmentMax != test.room || client.NoSegments {
			t.Errorf("%s: learned %+v; want SegmentMax %d", test.address, client, test.room)
		}
		send(client, nil, 1472+1, "1×1473 1×1473")
		if test.room == 1472 {
			send(client, nil, 1472, "2×1472")
		} else {
			send(client, nil, 1452, "2×1452")
		}

		// Of an unconnected socket's peers, this is true of one only.
		fd, near := listen(t, test.address, ListenOptions{})
		sock, peer := &Socket{FD: fd, V6: near.Addr().Is6()}, AddrFrom(bound)
		send(sock, &peer, 2000, "1×2000 1×2000")
		send(sock, &peer, 1400, "2×1400")
		if sock.SegmentMax != 0 || sock.NoSegments {
			t.Errorf("%s, unconnected: learned %+v", test.address, sock)
		}

		// Where nothing may be fragmented they are too big, and said to be.
		Tune(client.FD, client.V6, TuneOptions{PMTUProbe: true})
		for _, known := range []int{0, test.room} {
			client.SegmentMax = known
			s := NewSender(4)
			s.Add(&Packet{Data: pattern(4000), Segment: 2000})
			s.Add(&Packet{Data: pattern(test.room)})
			s.Add(&Packet{Data: pattern(test.room + 1)})
			if got, want := s.Flush(client), (Result{Sent: 1, Bytes: test.room, TooBig: 3}); got != want {
				t.Errorf("%s: %+v; want %+v", test.address, got, want)
			}
			trains(t, r, in, 1)
		}
	}
}

// ICMP errors that look like a refusal of what is being sent (fragmentation
// needed, RFC 1191; protocol unreachable, RFC 792) are of an earlier datagram.
// Others are the server's, keep the packets, and are told once.
func TestErrorsOfEarlierDatagrams(t *testing.T) {
	t.Parallel()
	namespace(t)
	raw, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(raw)
	in, bound := listen(t, "127.0.0.1:0", ListenOptions{GRO: true})
	client := dial(t, bound)
	set(t, client.FD, unix.IPPROTO_IP, unix.IP_RECVERR, 1) // for those that may pass
	r := receiver(t, 1)
	for _, test := range []struct {
		name    string
		code    byte
		mtu     uint16
		packets []Packet
		want    string
		errno   unix.Errno
	}{
		{"host unreachable", 1, 0, []Packet{{Data: pattern(100)}}, "1×100", unix.EHOSTUNREACH},
		{"host unreachable, several", 1, 0, []Packet{{Data: pattern(100)}, {Data: pattern(300), Segment: 150}}, "1×100 2×150", unix.EHOSTUNREACH},
		{"administratively prohibited, RFC 1812 section 5.2.7.1", 13, 0, []Packet{{Data: pattern(7), Segment: 5}}, "2×5", unix.EHOSTUNREACH},
		{"fragmentation needed", 4, 1400, []Packet{{Data: pattern(100)}}, "1×100", 0},
		{"fragmentation needed, several", 4, 1400, []Packet{{Data: pattern(100)}, {Data: pattern(101)}}, "1×100 1×101", 0},
		{"fragmentation needed, a train", 4, 1400, []Packet{{Data: pattern(300), Segment: 100}}, "3×100", 0},
		{"protocol unreachable", 2, 0, []Packet{{Data: pattern(100)}}, "1×100", unix.ENOPROTOOPT},
		{"protocol unreachable, a train", 2, 0, []Packet{{Data: pattern(300), Segment: 100}}, "3×100", 0},
		{"source route failed, a train", 5, 0, []Packet{{Data: pattern(300), Segment: 100}}, "3×100", 0},
	} {
		icmp := make([]byte, 8+20+8) // RFC 792: header, and what it is about
		icmp[0], icmp[1] = 3, test.code
		binary.BigEndian.PutUint16(icmp[6:], test.mtu)
		ip := icmp[8:]
		ip[0], ip[8], ip[9] = 0x45, 64, unix.IPPROTO_UDP
		binary.BigEndian.PutUint16(ip[2:], 28)
		from, to := boundTo(t, client.FD), bound
		copy(ip[12:], from.Addr().AsSlice())
		copy(ip[16:], to.Addr().AsSlice())
		binary.BigEndian.PutUint16(ip[20:], from.Port())
		binary.BigEndian.PutUint16(ip[22:], to.Port())
		binary.BigEndian.PutUint16(ip[24:], 8)
		binary.BigEndian.PutUint16(icmp[2:], checksum(icmp))
		if err := unix.Sendto(raw, icmp, 0, &unix.SockaddrInet4{Addr: from.Addr().As4()}); err != nil {
			t.Fatal(err)
		}
		await(t, client.FD)

		if test.errno != 0 {
			s := NewSender(4)
			for i := range test.packets {
				s.Add(&test.packets[i])
			}
			if got := s.Flush(client); got != (Result{Errno: test.errno}) {
				t.Errorf("%s: %+v; want %v alone", test.name, got, test.errno)
			}
			if n, _ := s.Drop(); n != len(datagrams(test.packets)) {
				t.Errorf("%s: %d datagrams were kept", test.name, n)
			}
		}
		sendAll(t, client, test.packets...)
		if got := trains(t, r, in, len(datagrams(test.packets))); got != test.want {
			t.Errorf("%s: arrived %s; want %s", test.name, got, test.want)
		}
		if client.NoSegments || client.SegmentMax != 0 {
			t.Errorf("%s: learned %+v", test.name, client)
			client.NoSegments, client.SegmentMax = false, 0
		}
		if _, _, _, _, err := unix.Recvmsg(client.FD, nil, nil, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT); err != nil {
			t.Errorf("%s: the queue of errors: %v", test.name, err)
		}
	}
}

// checksum is RFC 1071's.
func checksum(b []byte) uint16 {
	sum := uint32(0)
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// Datagrams that wait for a neighbour who does not answer (RFC 1122 section
// 2.3.2.2) fill the socket's buffer.
func TestSocketFull(t *testing.T) {
	t.Parallel()
	namespace(t)
	tap, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		unprivileged(t, "/dev/net/tun", err)
	}
	defer unix.Close(tap)
	const name = "neighbours"
	r, err := unix.NewIfreq(name)
	if err != nil {
		t.Fatal(err)
	}
	r.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(tap, unix.TUNSETIFF, r); err != nil {
		unprivileged(t, "a tap device", err)
	}
	inet := func(request uint, a, b, c, d byte) {
		ifreq(t, unix.AF_INET, name, request, func(r *unix.Ifreq) { r.SetInet4Addr([]byte{a, b, c, d}) })
	}
	inet(unix.SIOCSIFADDR, 10, 1, 1, 1)
	inet(unix.SIOCSIFNETMASK, 255, 255, 255, 0)
	ifreq(t, unix.AF_INET, name, unix.SIOCSIFFLAGS, func(r *unix.Ifreq) { r.SetUint16(unix.IFF_UP) })

	silent := netip.MustParseAddrPort("10.1.1.2:9")
	for _, segments := range []bool{false, true} {
		sock := dial(t, silent)
		set(t, sock.FD, unix.SOL_SOCKET, unix.SO_SNDBUF, 4096)
		s := NewSender(64)
		for i := range 100 {
			p := Packet{Data: pattern(1000 + i)}
			if segments {
				p = Packet{Data: pattern(2000 + i*2), Segment: 1000 + i}
			}
			s.Add(&p)
		}
		res := s.Flush(sock)
		if total := len(datagrams([]Packet{{Data: pattern(1)}})) * 100; !segments && res.Sent+res.Full != total || segments && res.Sent+res.Full != 200 {
			t.Errorf("%+v: not every datagram is accounted for", res)
		}
		if res.Sent == 0 || res.Full == 0 || res.Errno != 0 || sock.NoSegments {
			t.Errorf("%+v, %+v; want some sent, and the buffer full", res, sock)
		}
		if n, _ := s.Drop(); n != 0 {
			t.Errorf("%d datagrams are still in the Sender", n)
		}
	}
}
