package udp

import (
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A request of 100 bytes to a wildcard socket and its response, once as plainly
// as sockets can, once as edgeproxy does it. Loopback hands a datagram over
// within the send, so nothing is waited for.
func BenchmarkRoundTrip(b *testing.B) {
	sockets := func(b *testing.B, address string) (client *Socket, server int) {
		server, bound := listen(b, address, ListenOptions{GRO: true})
		fd, _ := listen(b, "127.0.0.1:0", ListenOptions{})
		connect(b, fd, bound)
		return &Socket{FD: fd}, server
	}
	request := pattern(100)

	b.Run("plain", func(b *testing.B) {
		client, server := sockets(b, "127.0.0.1:0")
		buffer := make([]byte, 2048)
		var from Addr
		for b.Loop() {
			sendto(client.FD, &request[0], len(request), nil)
			n := recvfrom(server, buffer, &from)
			sendto(server, &buffer[0], n, &from)
			if recvfrom(client.FD, buffer, nil) != len(request) {
				b.Fatal("lost")
			}
		}
	})
	for _, test := range []struct {
		name, address string
		most          int
	}{{"batches of one", "127.0.0.1:0", 1}, {"batches", "127.0.0.1:0", 32}, {"batches, wildcard", "0.0.0.0:0", 32}} {
		b.Run(test.name, func(b *testing.B) {
			client, server := sockets(b, test.address)
			sock := &Socket{FD: server}
			r, s := receiver(b, 32), NewSender(32)
			p := Packet{Data: request}
			for b.Loop() {
				s.Add(&p)
				s.Flush(client)
				messages, _ := r.Receive(server, test.most)
				m := &messages[0]
				s.Add(&Packet{Data: m.Data, To: &m.From, Local: &m.Local, TOS: m.TOS})
				s.Flush(sock)
				r.Release()
				if messages, _ = r.ReceiveConnected(client.FD, 1); len(messages) != 1 {
					b.Fatal("lost")
				}
				r.Release()
			}
		})
	}
}

// Passing on bursts of 40 datagrams of 1200 bytes: what one wake of a loop does
// with a QUIC download. ns/op is for one burst, and includes making it.
func BenchmarkTrain(b *testing.B) {
	for _, test := range []struct {
		name    string
		offload bool
	}{{"offload", true}, {"one by one", false}} {
		b.Run(test.name, func(b *testing.B) {
			near, nearBound := listen(b, "127.0.0.1:0", ListenOptions{GRO: test.offload, ReceiveBuffer: 8 << 20})
			far, farBound := listen(b, "127.0.0.1:0", ListenOptions{GRO: test.offload, ReceiveBuffer: 8 << 20})
			client, server := dial(b, nearBound), dial(b, farBound)
			client.NoSegments, server.NoSegments = !test.offload, !test.offload
			r, s := receiver(b, 64), NewSender(64)
			burst := Packet{Data: pattern(48_000), Segment: 1200}
			b.SetBytes(48_000)
			for b.Loop() {
				s.Add(&burst)
				s.Flush(client)
				messages, _ := r.Receive(near, 64)
				for i := range messages {
					m := &messages[i]
					s.Add(&Packet{Data: m.Data, Segment: m.Segment})
				}
				if res := s.Flush(server); res.Sent != 40 {
					b.Fatalf("%+v", res)
				}
				r.Release()
				messages, _ = r.Receive(far, 64)
				if len(messages) == 0 {
					b.Fatal("lost")
				}
				r.Release()
			}
		})
	}
}

// recvfrom is recvfrom(2) and nothing else; from may be nil.
func recvfrom(fd int, b []byte, from *Addr) int {
	size := uint32(len(Addr{}))
	sizep := &size
	if from == nil {
		sizep = nil
	}
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), unix.MSG_DONTWAIT, uintptr(unsafe.Pointer(from)), uintptr(unsafe.Pointer(sizep)))
	if errno != 0 {
		return -1
	}
	return int(n)
}
