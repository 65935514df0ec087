package udp

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

func TestAddr(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		in   string
		out  string // "": the same
		len  uint32
		ipv4 bool
	}{
		{in: "192.0.2.1:53", len: unix.SizeofSockaddrInet4, ipv4: true},
		{in: "0.0.0.0:0", len: unix.SizeofSockaddrInet4, ipv4: true},
		{in: "255.255.255.255:65535", len: unix.SizeofSockaddrInet4, ipv4: true},
		{in: "[2001:db8::1]:443", len: unix.SizeofSockaddrInet6},
		{in: "[::]:1", len: unix.SizeofSockaddrInet6},
		// RFC 4291 section 2.5.5.2: what a dual-stack socket calls an IPv4 peer.
		{in: "[::ffff:192.0.2.1]:53", out: "192.0.2.1:53", len: unix.SizeofSockaddrInet6, ipv4: true},
		{in: "[::192.0.2.1]:53", len: unix.SizeofSockaddrInet6},
		// RFC 4007 section 11: the zone, as an index.
		{in: "[fe80::1%7]:9", len: unix.SizeofSockaddrInet6},
		{in: "[fe80::1%lo]:9", out: "[fe80::1%1]:9", len: unix.SizeofSockaddrInet6},
		{in: "[fe80::1%no such interface]:9", out: "[fe80::1]:9", len: unix.SizeofSockaddrInet6},
	} {
		in := netip.MustParseAddrPort(test.in)
		a := AddrFrom(in)
		want := in
		if test.out != "" {
			want = netip.MustParseAddrPort(test.out)
		}
		if got := a.AddrPort(); got != want || a.Len() != test.len || a.speaksIPv4() != test.ipv4 {
			t.Errorf("%s: %v, %d bytes, IPv4 %v; want %v, %d bytes, IPv4 %v", test.in, got, a.Len(), a.speaksIPv4(), want, test.len, test.ipv4)
		}
	}
	var none Addr
	if got := none.AddrPort(); got.IsValid() {
		t.Errorf("no address is %v", got)
	}
}

// The kernel is the oracle: what it calls the sockaddr is what AddrFrom makes.
func TestAddrAsTheKernelHasIt(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"127.0.0.1:0", "127.9.8.7:0", "[::1]:0"} {
		fd, bound := listen(t, address, ListenOptions{})
		client := dial(t, bound)
		r := receiver(t, 1)
		for i := range r.messages[0].From {
			r.messages[0].From[i] = 0xff // left over from another message
		}
		sendAll(t, client, Packet{Data: []byte("x")})
		m := receive(t, r, fd)
		if want := AddrFrom(boundTo(t, client.FD)); m.From != want {
			t.Errorf("the kernel has % x, AddrFrom % x", m.From, want)
		}
	}
}

func TestLocal(t *testing.T) {
	t.Parallel()
	v4 := func(destination, spec [4]byte) (l Local) {
		l.Interface = 9 // left over from another datagram
		l.setIPv4(&unix.Inet4Pktinfo{Ifindex: 3, Addr: destination, Spec_dst: spec})
		return l
	}
	v6 := func(destination string) (l Local) {
		l.Interface = 9
		l.setIPv6(&unix.Inet6Pktinfo{Ifindex: 3, Addr: netip.MustParseAddr(destination).As16()})
		return l
	}
	for _, test := range []struct {
		name string
		l    Local
		want string // "": the zero Local
		ipv4 bool
	}{
		{"IPv4", v4([4]byte{127, 0, 0, 2}, [4]byte{127, 0, 0, 2}), "127.0.0.2", true},
		// ip(7): the header's destination of a broadcast cannot be a source.
		{"IPv4 broadcast", v4([4]byte{192, 0, 2, 255}, [4]byte{192, 0, 2, 7}), "192.0.2.7", true},
		{"IPv6", v6("2001:db8::1"), "2001:db8::1", false},
		{"IPv6, mapped", v6("::ffff:192.0.2.1"), "192.0.2.1", true},
		{"IPv6 link-local, RFC 4291 section 2.5.6", v6("fe80::1"), "fe80::1%3", false},
		{"its last address", v6("febf:ffff::1"), "febf:ffff::1%3", false},
		{"the first behind it", v6("fec0::1"), "fec0::1", false},
		{"IPv6 multicast, RFC 4291 section 2.7: never a source", v6("ff02::1"), "", false},
	} {
		want := netip.Addr{}
		if test.want != "" {
			want = netip.MustParseAddr(test.want)
		} else if test.l != (Local{}) {
			t.Errorf("%s: %+v is not zero", test.name, test.l)
		}
		if got := test.l.Addr(); got != want || test.l.isIPv4() != test.ipv4 {
			t.Errorf("%s: %v, IPv4 %v; want %v, %v", test.name, got, test.l.isIPv4(), want, test.ipv4)
		}
	}
}
