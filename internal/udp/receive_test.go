package udp

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// What a wildcard socket is told about a datagram is what its answer needs to
// leave from the very address that the client sent to, with the client's TOS.
func TestReplyFromWhereItWasSentTo(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, listen, to string
		o                ListenOptions
	}{
		{"IPv4", "0.0.0.0:0", "127.0.0.1", ListenOptions{}},
		{"IPv4, another address", "0.0.0.0:0", "127.0.0.2", ListenOptions{}},
		{"IPv4, of many sockets", "0.0.0.0:0", "127.3.2.1", ListenOptions{ReusePort: true, GRO: true}},
		{"IPv6", "[::]:0", "::1", ListenOptions{}},
		{"dual stack, IPv6", "[::]:0", "::1", ListenOptions{Dual: true, GRO: true}},
		{"dual stack, IPv4", "[::]:0", "127.0.0.2", ListenOptions{Dual: true, GRO: true}},
		{"dual stack, PMTU probing", "[::]:0", "127.0.0.3", ListenOptions{Dual: true, PMTUProbe: true}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			fd, bound := listen(t, test.listen, test.o)
			to := netip.AddrPortFrom(netip.MustParseAddr(test.to), bound.Port())
			client := dial(t, to) // being connected, it takes answers from that address only
			r := receiver(t, 4)
			// 0xb9: DSCP EF and ECN ECT(1), RFC 3168 section 5.
			sendAll(t, client, Packet{Data: []byte("question"), TOS: 0xb9})

			m := receive(t, r, fd)
			if string(m.Data) != "question" || m.Segment != 0 || m.Truncated || m.Count() != 1 {
				t.Errorf("received %+v", m)
			}
			if m.TOS != 0xb9 {
				t.Errorf("TOS %#x", m.TOS)
			}
			if got := m.Local.Addr(); got != to.Addr() {
				t.Errorf("sent to %v, by PKTINFO %v", to.Addr(), got)
			}
			if got, want := m.From.AddrPort(), boundTo(t, client.FD); got != want {
				t.Errorf("from %v, sent by %v", got, want)
			}

			// The answer, once by itself and once as a train that is taken apart on the way.
			Tune(client.FD, client.V6, TuneOptions{TOS: true})
			sock := &Socket{FD: fd, V6: bound.Addr().Is6()}
			from, local := m.From, m.Local
			r.Release()
			sendAll(t, sock,
				Packet{Data: []byte("answer"), To: &from, Local: &local, TOS: 0x2e},
				Packet{Data: []byte("0123456789"), Segment: 4, To: &from, Local: &local, TOS: 0x2f})
			for i, want := range []string{"answer", "0123", "4567", "89"} {
				await(t, client.FD)
				got, errno := r.ReceiveConnected(client.FD, 1)
				if errno != 0 || len(got) != 1 || string(got[0].Data) != want {
					t.Fatalf("answer %+v, %v; want %q", got, errno, want)
				}
				if got[0].From != (Addr{}) || got[0].Local != (Local{}) {
					t.Errorf("a connected socket's message has From %v, Local %v", got[0].From, got[0].Local)
				}
				if want := uint8(0x2e + min(i, 1)); got[0].TOS != want {
					t.Errorf("the answer's TOS is %#x, not %#x", got[0].TOS, want)
				}
				r.Release()
			}
		})
	}
}

// A broadcast says so, and has an address of ours as its Local, from which it
// can be answered.
func TestToMany(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		listen string
		o      ListenOptions
	}{{"0.0.0.0:0", ListenOptions{}}, {"[::]:0", ListenOptions{Dual: true}}} {
		fd, bound := listen(t, test.listen, test.o)
		out, _ := listen(t, "127.0.0.1:0", ListenOptions{})
		set(t, out, unix.SOL_SOCKET, unix.SO_BROADCAST, 1)
		r := receiver(t, 1)
		for _, step := range []struct {
			to     string
			toMany bool
			local  string
		}{
			{"127.255.255.255", true, "127.0.0.1"}, // loopback's, RFC 919 section 7
			{"127.0.0.9", false, "127.0.0.9"},
		} {
			to := AddrFrom(netip.AddrPortFrom(netip.MustParseAddr(step.to), bound.Port()))
			sendAll(t, &Socket{FD: out}, Packet{Data: pattern(5), To: &to})
			if m := receive(t, r, fd); m.ToMany != step.toMany || m.Local.Addr() != netip.MustParseAddr(step.local) {
				t.Errorf("%s: sent to %s: to many %v, Local %v", test.listen, step.to, m.ToMany, m.Local.Addr())
			}
			r.Release()
		}
	}
}

func TestReceiveBound(t *testing.T) {
	t.Parallel()
	fd, bound := listen(t, "127.0.0.1:0", ListenOptions{})
	client := dial(t, bound)
	r := receiver(t, 4)
	if m, errno := r.Receive(fd, 4); len(m) != 0 || errno != 0 {
		t.Fatalf("an empty queue: %v, %v", m, errno)
	}
	for range 6 {
		sendAll(t, client, Packet{Data: []byte("x")})
	}
	for _, step := range []struct{ most, got, free int }{{1, 1, 3}, {2, 2, 1}, {9, 1, 0}, {9, 0, 0}} {
		m, errno := r.Receive(fd, step.most)
		if len(m) != step.got || errno != 0 || r.Free() != step.free {
			t.Fatalf("at most %d: %d messages, %v, %d slots left; want %d, %d left", step.most, len(m), errno, r.Free(), step.got, step.free)
		}
		for i := range m {
			if m[i].Local.Addr().IsValid() {
				t.Error("a socket bound to one address needs no PKTINFO, and pays for it")
			}
		}
	}
	r.Release()
	if m, errno := r.Receive(fd, 4); len(m) != 2 || errno != 0 || r.Free() != 2 {
		t.Fatalf("after Release: %d messages, %v", len(m), errno)
	}
}

// What did not fit is never taken for what was sent: neither bytes, nor the
// control messages that may say how many datagrams they are.
func TestTruncated(t *testing.T) {
	t.Parallel()
	fd, bound := listen(t, "[::]:0", ListenOptions{Dual: true, GRO: true})
	client := dial(t, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), bound.Port()))
	r, err := newReceiver(4, 1000)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, test := range []struct {
		size      int
		truncated bool
	}{{999, false}, {1000, false}, {1001, true}, {5, false}} {
		sendAll(t, client, Packet{Data: pattern(test.size)})
		if m := receive(t, r, fd); m.Truncated != test.truncated || len(m.Data) != min(test.size, 1000) {
			t.Errorf("%d bytes into 1000: %d, truncated %v", test.size, len(m.Data), m.Truncated)
		}
	}
	r.Release()
	// More than a socket of ours asks for.
	set(t, fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1)
	set(t, fd, unix.IPPROTO_IP, unix.IP_RECVTTL, 1)
	set(t, fd, unix.IPPROTO_IP, unix.IP_RECVORIGDSTADDR, 1)
	for range 2 {
		sendAll(t, client, Packet{Data: pattern(9), Segment: 5})
		if m := receive(t, r, fd); !m.Truncated {
			t.Error("control messages were cut off in silence")
		}
	}
}

func TestDropped(t *testing.T) {
	t.Parallel()
	fd, bound := listen(t, "127.0.0.1:0", ListenOptions{ReceiveBuffer: 10_000})
	client := dial(t, bound)
	r := receiver(t, 64)
	const sent = 500
	var last uint32
	for round := range uint32(2) {
		for range sent {
			sendAll(t, client, Packet{Data: pattern(1000)})
		}
		messages, errno := r.Receive(fd, 64)
		if errno != 0 || len(messages) == 0 || len(messages) == 64 {
			t.Fatalf("%d messages, %v", len(messages), errno)
		}
		if n, ok := r.Dropped(); ok != (round > 0) || ok && n != last {
			t.Errorf("queued before the first drop, and yet %d dropped (%v)", n, ok)
		}
		lost := sent - uint32(len(messages))
		r.Release()
		// The next to be queued knows.
		sendAll(t, client, Packet{Data: pattern(1)})
		receive(t, r, fd)
		if n, ok := r.Dropped(); !ok || n-last != lost {
			t.Errorf("%d of %d sent came, and %d were dropped (%v)", len(messages), sent, n-last, ok)
		} else {
			last = n
		}
		r.Release()
		r.Receive(fd, 1)
		if n, ok := r.Dropped(); ok {
			t.Errorf("%d dropped, says an empty queue", n)
		}
	}
}
