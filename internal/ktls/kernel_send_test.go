package ktls

import (
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// open decrypts everything that is in stream, and returns the data, the types
// of what else there was, and how many bytes are left over.
func (s *sealer) open(t *testing.T, stream []byte) (data, types []byte, records, rest int) {
	t.Helper()
	for len(stream) >= 5 {
		n := 5 + int(stream[3])<<8 + int(stream[4])
		if len(stream) < n {
			break
		}
		inner, err := s.aead.Open(nil, s.nonce(), stream[5:n], stream[:5])
		if err != nil {
			t.Fatal(err)
		}
		records++
		if typ := inner[len(inner)-1]; typ == Data {
			data = append(data, inner[:len(inner)-1]...)
		} else {
			types = append(types, typ)
		}
		stream = stream[n:]
	}
	return data, types, records, len(stream)
}

// all reads the far end to the end of the stream.
func (s *session) all() (stream []byte) {
	s.t.Helper()
	b := make([]byte, 1<<16)
	for {
		if err := s.p.wait(s.far, unix.POLLIN); err != nil {
			s.t.Fatal(err)
		}
		n, err := unix.Read(s.far, b)
		if n == 0 && err == nil {
			return stream
		}
		if err != nil && err != unix.EAGAIN {
			s.t.Fatal(err)
		}
		stream = append(stream, b[:max(n, 0)]...)
	}
}

// However the bytes lie in the pipe, all that splice(2) took arrives, without
// a further send to push it.
func testSpliceInto(t *testing.T, _ Support) {
	for _, total := range []int{1, 5000, 200000} {
		for _, chunk := range []int{100, 1448, 4096, 65536} {
			s := newSession(t)
			unix.FcntlInt(uintptr(s.pipe[0]), unix.F_SETPIPE_SZ, 1<<20)
			sent := []byte(strings.Repeat("0123456789", total/10+1))[:total]
			held := 0
			for held < total {
				n, err := unix.Write(s.pipe[1], sent[held:min(held+chunk, total)])
				if err != nil {
					break // the pipe's slots are used up
				}
				held += n
			}
			for out := 0; out < held; {
				n, err := unix.Splice(s.pipe[0], nil, s.near, nil, held-out, unix.SPLICE_F_NONBLOCK)
				if err != nil {
					t.Fatalf("%d of %d by %d: %v", out, held, chunk, err)
				}
				out += int(n)
			}
			var stream, data []byte
			for len(data) < held {
				if err := s.p.wait(s.far, unix.POLLIN); err != nil {
					t.Fatalf("%d by %d: %d have arrived: %v", held, chunk, len(data), err)
				}
				b := make([]byte, 1<<18)
				n, err := unix.Read(s.far, b)
				if err != nil {
					t.Fatal(err)
				}
				stream = append(stream, b[:n]...)
				more, _, _, rest := s.out.open(t, stream)
				data = append(data, more...)
				stream = stream[len(stream)-rest:]
			}
			if string(data) != string(sent[:held]) {
				t.Errorf("%d by %d: other bytes have arrived", held, chunk)
			}
		}
	}
}

// A record kept open by MSG_MORE leaves with close_notify, and only with it.
func testMore(t *testing.T, _ Support) {
	for _, c := range []struct {
		name        string
		end         func(s *session)
		data, types string
	}{
		{"close_notify", func(s *session) { s.want("alert", "ok"); unix.Shutdown(s.near, unix.SHUT_WR) }, "hello", "\x15"},
		{"a send", func(s *session) { s.want("write", "5"); unix.Shutdown(s.near, unix.SHUT_WR) }, "hellohello", ""},
		{"shutdown", func(s *session) { unix.Shutdown(s.near, unix.SHUT_WR) }, "", ""},
		{"close", func(s *session) { s.p.close(s.near) }, "", ""},
	} {
		s := newSession(t)
		if _, err := unix.SendmsgN(s.near, []byte("hello"), nil, nil, unix.MSG_MORE|unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL); err != nil {
			t.Fatal(err)
		}
		c.end(s)
		data, types, _, rest := s.out.open(t, s.all())
		if string(data) != c.data || string(types) != c.types || rest != 0 {
			t.Errorf("%s: %q, %q and %d bytes, not %q, %q", c.name, data, types, rest, c.data, c.types)
		}
	}
}

// A slow reader, a full send buffer of any size: when close_notify has been
// taken, shutdown and close lose nothing.
func testTail(t *testing.T, _ Support) {
	for i := range 24 {
		s := newSession(t)
		unix.SetsockoptInt(s.near, unix.SOL_SOCKET, unix.SO_SNDBUF, 5000+i*3001)
		sent, stream := 0, []byte(nil)
		b := make([]byte, 1+i*2741)
		for sent < 4<<20 {
			n, err := unix.SendmsgN(s.near, b, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
			if err != nil {
				break
			}
			sent += n
		}
		step := make([]byte, 500+i*777)
		for {
			errno := Send(s.near, Alert, []byte{1, 0})
			if errno == 0 {
				break
			}
			if errno != unix.EAGAIN {
				t.Fatal(errno)
			}
			if time.Now().After(s.p.deadline) {
				t.Fatalf("close_notify is never taken, after %d bytes", sent)
			}
			if n, _ := unix.Read(s.far, step); n > 0 {
				stream = append(stream, step[:n]...)
			}
		}
		if i%2 == 0 {
			s.p.close(s.near)
		} else {
			unix.Shutdown(s.near, unix.SHUT_WR)
		}
		stream = append(stream, s.all()...)
		data, types, _, rest := s.out.open(t, stream)
		if len(data) != sent || string(types) != "\x15" || rest != 0 {
			t.Errorf("round %d: %d of %d bytes, then %x and %d more", i, len(data), sent, types, rest)
		}
	}
}

// With the kernel told not to expect padding, padded records and records of
// other types are read all the same.
func testPadding(t *testing.T, _ Support) {
	for _, expectNone := range []bool{false, true} {
		s := newSession(t)
		if expectNone {
			if errno := ExpectNoPad(s.near); errno != 0 {
				t.Errorf("TLS_RX_EXPECT_NO_PAD: %v", errno)
			}
		}
		s.arrive(s.in.sealPadded(Data, "padded", 100))
		s.want("recv recv", "6/23 EAGAIN")
		s.arrive(s.in.seal(Data, "not"))
		s.want("recv", "3/23")
		s.arrive(s.in.sealPadded(Alert, "\x01\x00", 300))
		s.want("read splice recv", "EIO EINVAL 2/21")
		s.arrive(s.in.sealPadded(Data, "", 300))
		s.want("splice recv", "0 EAGAIN")
		s.arrive(s.in.seal(Data, "end"))
		s.want("splice recv", "3 EAGAIN")
	}
}

func testAllocations(t *testing.T, _ Support) {
	s := newSession(t)
	b, msg := make([]byte, 100), []byte{1, 0}
	records := make([][]byte, 101)
	for i := range records {
		records[i] = s.in.seal(Data, "hello")
	}
	i := 0
	if n := testing.AllocsPerRun(100, func() {
		unix.Write(s.far, records[i])
		i++
		if n, typ, errno := Recv(s.near, b); n != 5 || typ != Data || errno != 0 {
			t.Errorf("%d, %d, %v", n, typ, errno)
		}
		if errno := Send(s.near, Alert, msg); errno != 0 {
			t.Error(errno)
		}
	}); n != 0 {
		t.Errorf("%v allocations for a record read and one sent", n)
	}
}
