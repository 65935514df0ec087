package quic

import (
	"testing"

	"edgeproxy/internal/sniff"
)

// Not a parallel test: it counts what everybody allocates.
func TestAllocations(t *testing.T) {
	b := recorded(t, "rfc9001-client-initial")
	server := recorded(t, "rfc9001-server-initial")
	short := make([]byte, 100)
	if n := testing.AllocsPerRun(100, func() {
		h, _, ok := ParseLong(b)
		_, okServer := ServerSCID(server)
		_, okID := ServerID(firstID, 2)
		_, okShort := ShortDCID(short, 8)
		if !ok || !okServer || !okID || !okShort || !Begins(b) || h.Type != Initial {
			panic("not understood")
		}
	}); n != 0 {
		t.Errorf("headers: %v allocations", n)
	}
	var info sniff.Info
	if n := testing.AllocsPerRun(100, func() {
		var h Hello
		if done, err := h.Datagram(short, &info); !done || err != nil {
			panic("not understood")
		}
	}); n != 0 {
		t.Errorf("a datagram of something else: %v allocations", n)
	}
	if n := testing.AllocsPerRun(100, func() {
		h := new(Hello)
		if done, err := h.Datagram(b, &info); !done || err != nil {
			panic("not understood")
		}
	}); n > 10 {
		t.Errorf("a hello: %v allocations", n)
	}
}

func BenchmarkBegins(b *testing.B) {
	datagram := recorded(b, "rfc9001-client-initial")
	for b.Loop() {
		if !Begins(datagram) {
			b.Fatal("no")
		}
	}
}

func BenchmarkServerSCID(b *testing.B) {
	datagram := recorded(b, "rfc9001-server-initial")
	for b.Loop() {
		if _, ok := ServerSCID(datagram); !ok {
			b.Fatal("no")
		}
	}
}

// A hello of 241 bytes in one datagram of 1200, from the first byte to the name.
func BenchmarkHelloOneDatagram(b *testing.B) {
	datagram := recorded(b, "rfc9001-client-initial")
	var info sniff.Info
	b.ReportAllocs()
	for b.Loop() {
		h := new(Hello)
		if done, err := h.Datagram(datagram, &info); !done {
			b.Fatal(err)
		}
	}
}

// A post-quantum hello takes two.
func BenchmarkHelloTwoDatagrams(b *testing.B) {
	hello := clientHello(b, "www.example.com", "h3")
	datagrams := [2][]byte{initial(b, 0, crypto(0, hello[:1100])), initial(b, 1, crypto(1100, hello[1100:]))}
	var info sniff.Info
	b.ReportAllocs()
	for b.Loop() {
		h := new(Hello)
		if done, err := h.Datagram(datagrams[0], &info); done || err != nil {
			b.Fatal(err)
		}
		if done, err := h.Datagram(datagrams[1], &info); !done {
			b.Fatal(err)
		}
	}
}

// What a flood of Initial packets costs that cannot be opened.
func BenchmarkForgedInitial(b *testing.B) {
	datagram := recorded(b, "rfc9001-client-initial")
	datagram[len(datagram)-1] ^= 1
	var info sniff.Info
	b.ReportAllocs()
	for b.Loop() {
		h := new(Hello)
		if _, err := h.Datagram(datagram, &info); err == nil {
			b.Fatal("opened")
		}
	}
}
