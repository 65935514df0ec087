package udp

import (
	"bytes"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// A train that came as one message leaves as one send: the far end has UDP_GRO,
// and loopback hands on in one piece what was sent in one.
func TestTrainsStayTrains(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		far, farBound := listen(t, address, ListenOptions{GRO: true, ReceiveBuffer: 4 << 20})
		near, nearBound := listen(t, address, ListenOptions{GRO: true, ReceiveBuffer: 4 << 20})
		client, server := dial(t, nearBound), dial(t, farBound)
		r, s := receiver(t, 8), NewSender(8)

		sendAll(t, client, Packet{Data: pattern(40_000), Segment: 1200}, Packet{Data: pattern(50_000), Segment: 1000}, Packet{Data: pattern(500)})
		// Received all at once …
		await(t, near)
		messages, errno := r.Receive(near, 8)
		if errno != 0 || len(messages) != 2 {
			t.Fatalf("%d messages, %v", len(messages), errno)
		}
		n := 0
		for i := range messages {
			m := &messages[i]
			n += m.Count()
			s.Add(&Packet{Data: m.Data, Segment: m.Segment})
		}
		// … and passed on: 34 datagrams, of which the last is shorter, and 51.
		if res := s.Flush(server); res != (Result{Sent: n, Bytes: 90_500}) {
			t.Fatalf("passed on: %+v", res)
		}
		r.Release()
		if got := trains(t, r, far, n); got != "34×1200 51×1000" {
			t.Errorf("%s: arrived as %s", address, got)
		}

		// Single datagrams make a train, and headers do not keep them from it.
		header := pattern(28)
		sendAll(t, server, slices.Repeat([]Packet{{Data: pattern(100), Header: header}}, 10)...)
		if got := trains(t, r, far, 10); got != "10×128" {
			t.Errorf("%s: with headers %s", address, got)
		}
	}
}

func TestSizes(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		address string
		longest int // payload of one datagram: 65 535 less the headers (IPv6: of UDP alone)
	}{{"127.0.0.1:0", 65507}, {"[::1]:0", 65527}} {
		fd, bound := listen(t, test.address, ListenOptions{ReceiveBuffer: 4 << 20})
		client := dial(t, bound)
		r, s := receiver(t, 1), NewSender(4)
		for _, size := range []int{0, 1, 1472, test.longest} {
			for _, header := range [][]byte{nil, pattern(min(size, 16))} {
				data := pattern(size)[len(header):]
				sendAll(t, client, Packet{Data: data, Header: header})
				m := receive(t, r, fd)
				if !bytes.Equal(m.Data, slices.Concat(header, data)) || m.Truncated || m.Count() != 1 {
					t.Errorf("%d bytes: received %d, truncated %v", size, len(m.Data), m.Truncated)
				}
				r.Release()
			}
		}
		// Too long by a byte, alone, by its header, and between others.
		long := Packet{Data: pattern(test.longest + 1)}
		headed := Packet{Data: pattern(test.longest), Header: []byte{1}}
		for _, packets := range [][]Packet{{long}, {headed}, {{Data: pattern(10)}, long, headed, {Data: pattern(11)}}} {
			for i := range packets {
				s.Add(&packets[i])
			}
			want := Result{TooBig: 1}
			if len(packets) > 1 {
				want = Result{Sent: 2, Bytes: 21, TooBig: 2}
			}
			if got := s.Flush(client); got != want {
				t.Errorf("%d packets, too long: %+v; want %+v", len(packets), got, want)
			}
		}
		if got := trains(t, r, fd, 2); got != "1×10 1×11" {
			t.Errorf("of too long ones and others arrived %s", got)
		}
	}
}

// An ICMP error keeps in the Sender what was not sent; another socket takes it.
func TestPortUnreachable(t *testing.T) {
	t.Parallel()
	packets := []Packet{
		{Data: pattern(100)},
		{Data: pattern(5000), Segment: 1000, Header: pattern(28)},
		{},
		{Data: pattern(3), TOS: 0x28},
	}
	for n := 1; n <= len(packets); n++ {
		gone := dial(t, refusing(t))
		sendAll(t, gone, Packet{Data: pattern(1)})
		await(t, gone.FD) // the error

		s := NewSender(2)
		for i := range packets[:n] {
			s.Add(&packets[i])
		}
		if got := s.Flush(gone); got != (Result{Errno: unix.ECONNREFUSED}) {
			t.Fatalf("%d packets: %+v; want ECONNREFUSED alone", n, got)
		}
		if gone.NoSegments || gone.SegmentMax != 0 {
			t.Errorf("learned from an ICMP error that trains are refused: %+v", gone)
		}
		fd, bound := listen(t, "127.0.0.1:0", ListenOptions{})
		want := datagrams(packets[:n])
		if got := s.Flush(dial(t, bound)); got.Sent != len(want) || got.Errno != 0 {
			t.Fatalf("%d packets through another socket: %+v; want %d sent", n, got, len(want))
		}
		r := receiver(t, 1)
		for i, w := range want {
			if m := receive(t, r, fd); !bytes.Equal(m.Data, w) {
				t.Fatalf("datagram %d: %d bytes; want %d", i, len(m.Data), len(w))
			}
			r.Release()
		}
	}

	// The receiving side is told as well, once.
	gone := dial(t, refusing(t))
	sendAll(t, gone, Packet{Data: pattern(1)})
	await(t, gone.FD)
	r := receiver(t, 2)
	if m, errno := r.ReceiveConnected(gone.FD, 2); len(m) != 0 || errno != unix.ECONNREFUSED {
		t.Errorf("received %d messages, %v; want ECONNREFUSED", len(m), errno)
	}
	if m, errno := r.ReceiveConnected(gone.FD, 2); len(m) != 0 || errno != 0 {
		t.Errorf("then %d messages, %v; want none", len(m), errno)
	}
}

// What is wrong with one peer does not keep the datagrams of others.
func TestFailed(t *testing.T) {
	t.Parallel()
	out, _ := listen(t, "0.0.0.0:0", ListenOptions{})
	in, bound := listen(t, "127.0.0.1:0", ListenOptions{})
	good := AddrFrom(bound)
	// Without SO_BROADCAST it is EACCES; a source that cannot be one is EINVAL.
	broadcast := AddrFrom(boundTo(t, out))
	copy(broadcast[offsetIPv4:], []byte{255, 255, 255, 255})
	wrong := Local{IP: [16]byte{10: 0xff, 11: 0xff, 12: 224, 15: 1}}
	sock := &Socket{FD: out}
	s := NewSender(8)
	for _, p := range []Packet{
		{Data: pattern(10), To: &broadcast},
		{Data: pattern(11), To: &good},
		{Data: pattern(200), Segment: 50, To: &broadcast},
		{Data: pattern(12), To: &good},
		{Data: pattern(90), Segment: 30, To: &good, Local: &wrong},
		{Data: pattern(13), To: &good},
	} {
		s.Add(&p)
	}
	if got, want := s.Flush(sock), (Result{Sent: 3, Bytes: 36, Failed: 8, FailedErrno: unix.EINVAL}); got != want {
		t.Errorf("%+v; want %+v", got, want)
	}
	if got := trains(t, receiver(t, 1), in, 3); got != "1×11 1×12 1×13" {
		t.Errorf("arrived %s", got)
	}
	if sock.NoSegments || sock.refusals != 0 {
		t.Errorf("learned from a wrong source address that trains are refused: %+v", sock)
	}
}

// A socket without checksums refuses UDP_SEGMENT (EINVAL): its datagrams go one
// by one, at once, and after that are not tried any more.
func TestSegmentsRefused(t *testing.T) {
	t.Parallel()
	in, bound := listen(t, "127.0.0.1:0", ListenOptions{GRO: true})
	r := receiver(t, 1)
	peer := AddrFrom(bound)

	client := dial(t, bound)
	set(t, client.FD, unix.SOL_SOCKET, unix.SO_NO_CHECK, 1)
	sendAll(t, client, Packet{Data: pattern(9)}, Packet{Data: pattern(250), Segment: 100})
	if !client.NoSegments || client.SegmentMax != 0 {
		t.Errorf("connected: learned %+v", client)
	}
	if got := trains(t, r, in, 4); got != "1×9 1×100 1×100 1×50" {
		t.Errorf("connected: arrived %s", got)
	}
	set(t, client.FD, unix.SOL_SOCKET, unix.SO_NO_CHECK, 0)
	sendAll(t, client, Packet{Data: pattern(250), Segment: 100})
	if got := trains(t, r, in, 3); got != "1×100 1×100 1×50" {
		t.Errorf("connected, remembered: arrived %s", got)
	}

	// An unconnected socket has many peers, and gives up later.
	fd, _ := listen(t, "127.0.0.1:0", ListenOptions{})
	sock := &Socket{FD: fd}
	send := func(want string) {
		t.Helper()
		sendAll(t, sock, Packet{Data: pattern(200), Segment: 100, To: &peer})
		if got := trains(t, r, in, 2); got != want {
			t.Fatalf("arrived %s; want %s", got, want)
		}
	}
	for range 2 {
		if send("2×100"); sock.refusals != 0 {
			t.Errorf("%d refusals behind a success", sock.refusals)
		}
		set(t, fd, unix.SOL_SOCKET, unix.SO_NO_CHECK, 1)
		for i := range refusalsInARow - 1 {
			if send("1×100 1×100"); sock.NoSegments {
				t.Fatalf("gave up after %d refusals", i+1)
			}
		}
		set(t, fd, unix.SOL_SOCKET, unix.SO_NO_CHECK, 0)
	}
	send("2×100")
	set(t, fd, unix.SOL_SOCKET, unix.SO_NO_CHECK, 1)
	for range refusalsInARow {
		send("1×100 1×100")
	}
	if !sock.NoSegments {
		t.Errorf("tries still after %d refusals", refusalsInARow)
	}
}

// More than one sendmmsg, and a Sender that has to grow.
func TestManyRuns(t *testing.T) {
	t.Parallel()
	in, bound := listen(t, "127.0.0.1:0", ListenOptions{})
	s := NewSender(4)
	client := dial(t, bound)
	for _, client.NoSegments = range []bool{false, true} {
		var want [][]byte
		res := Result{}
		for i := range 40 {
			p := Packet{Data: pattern(10 + i%2 + i), Segment: 5 + i%2}
			s.Add(&p)
			if (i >= 3) != s.Full() {
				t.Fatalf("Full is %v with %d packets in a Sender for 4", s.Full(), i+1)
			}
			d := datagrams([]Packet{p})
			want = append(want, d...)
			res.Sent += len(d)
			res.Bytes += len(p.Data)
		}
		if got := s.Flush(client); got != res {
			t.Fatalf("%+v; want %+v", got, res)
		}
		r := receiver(t, 1)
		for i, w := range want {
			if m := receive(t, r, in); !bytes.Equal(m.Data, w) {
				t.Fatalf("datagram %d of %d: % x; want % x", i, len(want), m.Data, w)
			}
			r.Release()
		}
	}
}

func TestNothingIsAllocated(t *testing.T) {
	in, bound := listen(t, "0.0.0.0:0", ListenOptions{GRO: true})
	back, _ := listen(t, "127.0.0.1:0", ListenOptions{GRO: true})
	connect(t, back, bound)
	client, server := &Socket{FD: back}, &Socket{FD: in}
	r, s := receiver(t, 8), NewSender(8)
	request := Packet{Data: pattern(2500), Segment: 1000, Header: pattern(20), TOS: 3}
	small := Packet{Data: pattern(100)}
	for _, client.NoSegments = range []bool{false, true} {
		if n := testing.AllocsPerRun(100, func() {
			s.Add(&request)
			s.Add(&small)
			s.Flush(client)
			s.Add(&small)
			s.Flush(client)
			got := 0
			for got < 5 {
				messages, _ := r.Receive(in, r.Free())
				for i := range messages {
					m := &messages[i]
					got += m.Count()
					s.Add(&Packet{Data: m.Data, Segment: m.Segment, To: &m.From, Local: &m.Local, TOS: m.TOS})
				}
			}
			res := s.Flush(server)
			r.Release()
			for got = 0; got < res.Sent; r.Release() {
				messages, _ := r.ReceiveConnected(back, 8)
				for i := range messages {
					got += messages[i].Count()
				}
			}
		}); n != 0 {
			t.Errorf("%v allocations for a round trip", n)
		}
	}
}
