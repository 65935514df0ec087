package udp

import (
	"net/netip"
	"testing"
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
