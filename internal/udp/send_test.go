package udp

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// datagrams is the naive oracle: what packets are on the wire.
func datagrams(packets []Packet) [][]byte {
	var out [][]byte
	for _, p := range packets {
		for data := p.Data; ; {
			n := len(data)
			if p.Segment > 0 {
				n = min(n, p.Segment)
			}
			out = append(out, slices.Concat(p.Header, data[:n]))
			if data = data[n:]; len(data) == 0 {
				break
			}
		}
	}
	return out
}

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i ^ i>>8)
	}
	return b
}

// Which neighbours leave as one.
func TestMerging(t *testing.T) {
	t.Parallel()
	a, b := AddrFrom(netip.MustParseAddrPort("192.0.2.1:1")), AddrFrom(netip.MustParseAddrPort("192.0.2.2:1"))
	equal := a
	one, two := Local{IP: [16]byte{1}}, Local{IP: [16]byte{2}}
	plain := func(sizes ...int) (out []Packet) {
		for _, n := range sizes {
			out = append(out, Packet{Data: pattern(n)})
		}
		return out
	}
	train := func(segment, size int) Packet { return Packet{Data: pattern(size), Segment: segment} }
	with := func(p Packet, change func(*Packet)) Packet { change(&p); return p }
	header := func(n int) func(*Packet) { return func(p *Packet) { p.Header = pattern(n) } }
	to := func(a *Addr) func(*Packet) { return func(p *Packet) { p.To = a } }
	from := func(l *Local) func(*Packet) { return func(p *Packet) { p.Local = l } }

	for _, test := range []struct {
		name    string
		packets []Packet
		want    string // datagrams × bytes of the first, a run each
	}{
		{"one", plain(100), "1×100"},
		{"equal", plain(100, 100, 100), "3×100"},
		{"a shorter one ends it", plain(100, 100, 99, 99, 100), "3×100 1×99 1×100"},
		{"a longer one begins anew", plain(100, 101), "1×100 1×101"},
		{"empty ones go alone", plain(100, 0, 0, 100), "1×100 1×0 1×0 1×100"},
		{"64 at most", plain(slices.Repeat([]int{7}, 130)...), "64×7 64×7 2×7"},
		{"bytes of IPv6 at most", plain(slices.Repeat([]int{10_000}, 8)...), "6×10000 2×10000"},
		{"exactly", plain(slices.Repeat([]int{65487 / 3}, 4)...), "3×21829 1×21829"},
		{"longer than a train may be", plain(65507, 65507, 5), "1×65507 1×65507 1×5"},
		{"trains", []Packet{train(1200, 12000), train(1200, 2500), train(1200, 1200)}, "13×1200 1×1200"},
		{"trains of more than 65487 bytes", []Packet{train(1200, 38400), train(1200, 38400)}, "32×1200 32×1200"},
		{"a train, then its like alone", []Packet{train(500, 1000), {Data: pattern(500)}, {Data: pattern(3)}}, "4×500"},
		{"a segment that is not one", []Packet{train(500, 500), train(900, 500), train(0, 500)}, "3×500"},
		{"a train of many small ones", []Packet{train(1, 300)}, "64×1 64×1 64×1 64×1 44×1"},
		{"a train with a shorter tail cannot be a tail", []Packet{train(10, 20), train(9, 18)}, "2×10 2×9"},
		{"headers", []Packet{with(train(100, 250), header(28)), with(Packet{Data: pattern(100)}, header(28))}, "3×128 1×128"},
		{"headers, and a train that is too long with them", []Packet{with(train(1200, 64800), header(52))}, "52×1252 2×1252"},
		{"headers alone", []Packet{with(Packet{}, header(28)), with(Packet{}, header(28))}, "2×28"},
		{"headers of another length", []Packet{with(Packet{Data: pattern(72)}, header(28)), {Data: pattern(100)}}, "1×100 1×100"},
		{"peers by value", []Packet{with(train(5, 10), to(&a)), with(train(5, 10), to(&equal)), with(train(5, 10), to(&b)), train(5, 10)}, "4×5 2×5 2×5"},
		{"sources by value, the zero one is none", []Packet{with(train(5, 10), from(&one)), with(train(5, 10), from(&two)), train(5, 10), with(train(5, 10), from(&Local{}))}, "2×5 2×5 4×5"},
		{"TOS", []Packet{{Data: pattern(5)}, {Data: pattern(5), TOS: 1}, {Data: pattern(5), TOS: 1}}, "1×5 2×5"},
	} {
		s := NewSender(2)
		var got string
		bytes := 0
		for i := range test.packets {
			s.Add(&test.packets[i])
			bytes += len(test.packets[i].Data)
		}
		for i, r := range s.runs {
			if i > 0 {
				got += " "
			}
			got += fmt.Sprintf("%d×%d", r.count, r.size)
		}
		if got != test.want {
			t.Errorf("%s: %s; want %s", test.name, got, test.want)
		}
		if n, b := s.Drop(); n != len(datagrams(test.packets)) || b != bytes {
			t.Errorf("%s: dropped %d datagrams of %d bytes; want %d of %d", test.name, n, b, len(datagrams(test.packets)), bytes)
		}
	}
}

// Any list of packets arrives as exactly the datagrams that were added, in
// order, each with its header: through a socket that takes UDP_SEGMENT, through
// one that refuses it, and, if an ICMP error kept some back, through another
// socket.
func FuzzFlush(f *testing.F) {
	f.Add(uint8(0), []byte{})
	for mode := range uint8(64) {
		f.Add(mode, []byte{0, 0, 100, 0, 0, 100, 0, 0, 99, 0, 0, 99})
		f.Add(mode, []byte{0x80, 9, 200, 0x80, 9, 9, 0x40, 5, 100, 0x41, 5, 90, 0x42, 0, 0, 0x42, 0, 0})
		f.Add(mode, bytes.Repeat([]byte{0xc3, 1, 255, 0xc3, 2, 255}, 6))
		f.Add(mode, []byte{0xf0, 255, 255, 0xf0, 255, 255, 0xf1, 200, 90, 0x31, 0, 17, 0x31, 0, 17})
	}
	f.Fuzz(func(t *testing.T, mode uint8, program []byte) {
		connected, bare, refused, cut := mode&1 != 0, mode&2 != 0, mode&4 != 0, int(mode>>3)
		var fds [2]int
		var to [2]Addr
		for i := range fds {
			fd, bound := listen(t, "127.0.0.1:0", ListenOptions{ReceiveBuffer: 8 << 20})
			fds[i], to[i] = fd, AddrFrom(bound)
		}
		packets, of := decode(program, connected, &to)
		if len(packets) == 0 {
			return
		}
		type datagram struct {
			to      int
			data    []byte
			payload int
		}
		var all []datagram // what is to be sent
		s := NewSender(4)
		for i := range packets {
			for _, d := range datagrams(packets[i : i+1]) {
				all = append(all, datagram{of[i], d, len(d) - len(packets[i].Header)})
			}
			s.Add(&packets[i])
		}
		for i := range s.runs {
			if r := &s.runs[i]; r.count > maxSegments || r.count > 1 && r.wire > maxTrain {
				t.Fatalf("%d datagrams, %d bytes in one send", r.count, r.wire)
			}
		}

		sock := &Socket{}
		got := Result{}
		add := func(r Result) {
			got.Sent += r.Sent
			got.Bytes += r.Bytes
			got.TooBig += r.TooBig
			got.Full += r.Full
			got.Failed += r.Failed
		}
		if s.build(&Socket{NoSegments: true}, 0); cut > 0 && cut < len(s.parts) {
			// As if an error had met this one, in the middle of a train perhaps:
			// loopback is too quick for that.
			s.keep(&s.parts[cut])
			all = all[cut:]
		}
		lost := 0 // datagrams that left through a socket whose peer is gone
		switch {
		case connected && refused:
			// The first ones go to a port that is closed: an error comes back
			// and keeps the rest in the Sender, time and again.
			gone := dial(t, refusing(t))
			for range 3 {
				r := s.Flush(gone)
				add(r)
				if r.Errno == 0 {
					break
				}
			}
			lost = got.Sent
			fallthrough
		case connected:
			sock = dial(t, to[0].AddrPort())
		default:
			sock.FD, _ = listen(t, "127.0.0.1:0", ListenOptions{})
		}
		if bare {
			// UDP_SEGMENT needs checksums.
			set(t, sock.FD, unix.SOL_SOCKET, unix.SO_NO_CHECK, 1)
		}
		add(s.Flush(sock))
		want := Result{Sent: len(all)}
		for _, d := range all {
			want.Bytes += d.payload
		}
		if got != want {
			t.Fatalf("%+v; want %+v", got, want)
		}
		if n, b := s.Drop(); n != 0 || b != 0 {
			t.Fatalf("%d datagrams are left", n)
		}
		room := make([]byte, 1<<16)
		for k, d := range all[lost:] {
			await(t, fds[d.to])
			n, _, err := unix.Recvfrom(fds[d.to], room, unix.MSG_DONTWAIT)
			if err != nil || !bytes.Equal(room[:n], d.data) {
				t.Fatalf("datagram %d of %d: %d bytes, %v; want %d bytes", lost+k, len(all), n, err, len(d.data))
			}
		}
		for _, fd := range fds {
			if n, _, err := unix.Recvfrom(fd, room, unix.MSG_DONTWAIT); err != unix.EAGAIN {
				t.Fatalf("%d bytes that nobody sent (%v)", n, err)
			}
		}
	})
}

// decode makes packets of bytes, three for each, and no more than sockets'
// buffers hold without privileges: 64 datagrams, 96 KB.
func decode(program []byte, connected bool, to *[2]Addr) (packets []Packet, of []int) {
	var left, number = 96 << 10, 64
	for ; len(program) >= 3; program = program[3:] {
		kind, a, b := program[0], int(program[1]), int(program[2])
		p := Packet{TOS: kind >> 2 & 3}
		data := pattern(b * (1 + int(kind>>4&3)*20))
		if kind&0x80 != 0 {
			p.Segment = max(a, 1)
		}
		if kind&0x40 != 0 {
			p.Header = bytes.Repeat([]byte{0x0d, 0x0a}, 1+a%14)
		}
		for i := range data {
			data[i] += byte(len(packets)) // so that no two packets are alike
		}
		p.Data = data
		peer := 0
		if !connected {
			peer = int(kind & 1)
			p.To = &to[peer]
		}
		n := count(len(p.Data), p.Segment)
		if number -= n; number < 0 {
			break
		}
		if left -= len(p.Data) + n*len(p.Header); left < 0 {
			break
		}
		packets, of = append(packets, p), append(of, peer)
	}
	return packets, of
}
