package udp

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"runtime"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Linux has had both since 5.0, and edgeproxy asks for more.
func TestProbe(t *testing.T) {
	t.Parallel()
	if got := Probe(); got != (Features{GRO: true, Segment: true}) {
		t.Errorf("%+v", got)
	}
}

// refuse makes a system call fail, as a kernel or a sandbox without the feature
// does, where one of its arguments is the given one. It applies to the test's
// goroutine alone, until it ends.
func refuse(t *testing.T, call, argument, value uint32, errno unix.Errno) {
	t.Helper()
	runtime.LockOSThread() // for good: the thread ends with the goroutine
	low := uint32(0)       // the half of an argument that has 32-bit values
	if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 {
		low = 4
	}
	filter := []unix.SockFilter{ // over struct seccomp_data, seccomp(2)
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 3, K: call},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 16 + 8*argument + low},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: value},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(errno)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0); err != nil {
		t.Fatal(err)
	}
}

// Without UDP_GRO and UDP_SEGMENT all works, one by one.
func TestOptionsRefused(t *testing.T) {
	t.Parallel()
	refuse(t, unix.SYS_SETSOCKOPT, 1, unix.IPPROTO_UDP, unix.ENOPROTOOPT)
	if got := Probe(); got != (Features{}) {
		t.Errorf("%+v", got)
	}
	fd, bound := listen(t, "127.0.0.1:0", ListenOptions{GRO: true})
	client := dial(t, bound)
	client.NoSegments = true
	sendAll(t, client, Packet{Data: pattern(250), Segment: 100})
	if got := trains(t, receiver(t, 1), fd, 3); got != "1×100 1×100 1×50" {
		t.Errorf("arrived %s", got)
	}
}

func TestListen(t *testing.T) {
	t.Parallel()
	get := func(fd, level, option int) int {
		t.Helper()
		v, err := unix.GetsockoptInt(fd, level, option)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	for _, test := range []struct {
		address              string
		o                    ListenOptions
		pktinfo, pktinfo6    int
		only, probe4, probe6 int
	}{
		{address: "127.0.0.1:0", probe4: unix.IP_PMTUDISC_WANT},
		{address: "0.0.0.0:0", pktinfo: 1, probe4: unix.IP_PMTUDISC_WANT},
		{address: "0.0.0.0:0", o: ListenOptions{PMTUProbe: true, ReusePort: true}, pktinfo: 1, probe4: unix.IP_PMTUDISC_PROBE},
		{address: "[::1]:0", only: 1, probe4: unix.IP_PMTUDISC_WANT, probe6: unix.IPV6_PMTUDISC_WANT},
		{address: "[::]:0", only: 1, pktinfo6: 1, probe4: unix.IP_PMTUDISC_WANT, probe6: unix.IPV6_PMTUDISC_WANT},
		{address: "[::]:0", o: ListenOptions{Dual: true, PMTUProbe: true, GRO: true}, pktinfo: 1, pktinfo6: 1, probe4: unix.IP_PMTUDISC_PROBE, probe6: unix.IPV6_PMTUDISC_PROBE},
	} {
		test.o.ReceiveBuffer, test.o.SendBuffer = 100_000, 50_000
		fd, _ := listen(t, test.address, test.o)
		type options struct{ pktinfo, pktinfo6, tos, tos6, only, probe4, probe6, reuse, ovfl, receive, send int }
		want := options{
			pktinfo: test.pktinfo, pktinfo6: test.pktinfo6, tos: 1, only: test.only, probe4: test.probe4, probe6: test.probe6,
			reuse: truth(test.o.ReusePort), ovfl: 1, receive: 200_000, send: 100_000, // the kernel doubles them, socket(7)
		}
		got := options{
			pktinfo: get(fd, unix.IPPROTO_IP, unix.IP_PKTINFO),
			tos:     get(fd, unix.IPPROTO_IP, unix.IP_RECVTOS),
			probe4:  get(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER),
			reuse:   get(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT),
			ovfl:    get(fd, unix.SOL_SOCKET, unix.SO_RXQ_OVFL),
			receive: get(fd, unix.SOL_SOCKET, unix.SO_RCVBUF),
			send:    get(fd, unix.SOL_SOCKET, unix.SO_SNDBUF),
		}
		if netip.MustParseAddrPort(test.address).Addr().Is6() {
			want.tos6 = 1
			got.pktinfo6 = get(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO)
			got.tos6 = get(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS)
			got.only = get(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY)
			got.probe6 = get(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER)
		}
		if got != want {
			t.Errorf("%s %+v:\n got %+v\nwant %+v", test.address, test.o, got, want)
		}
	}
}

// What a reload changes, both ways.
func TestRetune(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"0.0.0.0:0", "[::]:0"} {
		fd, bound := listen(t, address, ListenOptions{})
		client := AddrFrom(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), bound.Port()))
		if bound.Addr().Is6() {
			client = AddrFrom(netip.AddrPortFrom(netip.IPv6Loopback(), bound.Port()))
		}
		sock := dial(t, client.AddrPort())
		r := receiver(t, 1)
		for _, on := range []bool{true, false, true} {
			Retune(fd, bound.Addr(), ListenOptions{GRO: on, PMTUProbe: on, ReceiveBuffer: 70_000 + 1000*truth(on), SendBuffer: 60_000})
			want, discover, discover6 := "1×100 1×100", unix.IP_PMTUDISC_WANT, unix.IPV6_PMTUDISC_WANT
			if on {
				want, discover, discover6 = "2×100", unix.IP_PMTUDISC_PROBE, unix.IPV6_PMTUDISC_PROBE
			}
			sendAll(t, sock, Packet{Data: pattern(200), Segment: 100})
			if got := trains(t, r, fd, 2); got != want {
				t.Errorf("%s, %v: arrived %s; want %s", address, on, got, want)
			}
			check := func(level, option, want int) {
				t.Helper()
				if got, err := unix.GetsockoptInt(fd, level, option); got != want || err != nil {
					t.Errorf("%s, %v: option %d is %d, %v; want %d", address, on, option, got, err, want)
				}
			}
			check(unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, discover)
			if bound.Addr().Is6() {
				check(unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, discover6)
			}
			check(unix.SOL_SOCKET, unix.SO_RCVBUF, 2*(70_000+1000*truth(on)))
			check(unix.SOL_SOCKET, unix.SO_SNDBUF, 2*60_000)
		}
	}
}

func TestListenFails(t *testing.T) {
	t.Parallel()
	_, bound := listen(t, "127.0.0.1:0", ListenOptions{})
	if _, err := Listen(bound, ListenOptions{}); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("an address in use: %v", err)
	}
	if _, err := Listen(netip.MustParseAddrPort("192.0.2.1:0"), ListenOptions{}); !errors.Is(err, unix.EADDRNOTAVAIL) {
		t.Errorf("an address of others: %v", err)
	}
}

// Without IPv6 a dual-stack wildcard means what there is, any other is an error.
func TestListenWithoutIPv6(t *testing.T) {
	t.Parallel()
	refuse(t, unix.SYS_SOCKET, 0, unix.AF_INET6, unix.EAFNOSUPPORT)
	fd, bound := listen(t, "[::]:0", ListenOptions{Dual: true})
	if !bound.Addr().Is4() {
		t.Errorf("bound to %v", bound)
	}
	sendAll(t, dial(t, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), bound.Port())), Packet{Data: pattern(1)})
	if m := receive(t, receiver(t, 1), fd); m.Local.Addr() != netip.MustParseAddr("127.0.0.2") {
		t.Errorf("by PKTINFO sent to %v", m.Local.Addr())
	}
	if fd, err := Listen(netip.MustParseAddrPort("[::]:0"), ListenOptions{}); !errors.Is(err, unix.EAFNOSUPPORT) {
		t.Errorf("IPv6 alone: %d, %v", fd, err)
	}
}
