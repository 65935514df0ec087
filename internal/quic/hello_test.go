package quic

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"slices"
	"testing"

	"edgeproxy/internal/sniff"
)

// small is a ClientHello for a.example.com and h3, and what it leads to.
var (
	small     = smallHello("a.example.com")
	smallWant = quicFor("a.example.com", "h3")
)

// Versions, lengths of connection ids (RFC 9000, section 17.2), tokens and
// packet numbers (section 17.1).
func TestInitialShapes(t *testing.T) {
	t.Parallel()
	id := bytes.Repeat([]byte{0x5a}, MaxConnID+1)
	for _, version := range []uint32{Version1, Version2} {
		for n := range MaxConnID + 2 {
			for _, token := range [][]byte{nil, []byte("t"), bytes.Repeat([]byte("t"), 63), bytes.Repeat([]byte("t"), 64), bytes.Repeat([]byte("t"), 900)} {
				b := packet{version: version, kind: Initial, dcid: id[:n], scid: id[n:], token: token, payload: crypto(0, small), size: MinDatagram}.wire(t)
				want := smallWant
				switch {
				case n > MaxConnID || len(id)-n > MaxConnID:
					want = refused(errPacket)
				case n < minFirstDCID && token == nil: // section 7.2
					want = refused(errShortID)
				}
				if got := fresh(t, b); got != want {
					t.Errorf("version %#x, connection id of %d bytes, token of %d: %+v, want %+v", version, n, len(token), got, want)
				}
			}
		}
		for n := 1; n <= 4; n++ {
			for _, number := range []uint64{0, 1, 127, 255} {
				b := packet{version: version, kind: Initial, dcid: firstID, number: number, numberLen: n, payload: crypto(0, small), size: MinDatagram}.wire(t)
				if got := fresh(t, b); got != smallWant {
					t.Errorf("version %#x, packet %d in %d bytes: %+v", version, number, n, got)
				}
			}
		}
	}
	// A token of more than an Ethernet frame, and a datagram as long as they get.
	b := packet{kind: Initial, dcid: firstID, token: make([]byte, 60000), payload: crypto(0, small), size: 65507}.wire(t)
	if got := fresh(t, b); len(b) != 65507 || got != smallWant {
		t.Errorf("a long token: %+v", got)
	}
	// RFC 9287, section 3: clients may clear the fixed bit.
	if got := fresh(t, packet{kind: Initial, dcid: firstID, greased: true, payload: crypto(0, small), size: MinDatagram}.wire(t)); got != smallWant {
		t.Errorf("a greased fixed bit: %+v", got)
	}
}

// RFC 8999: what is of another version, or not of QUIC, is none of ours.
func TestUnknown(t *testing.T) {
	t.Parallel()
	v1 := initial(t, 0, crypto(0, small))
	version := func(v string) []byte { return slices.Concat(v1[:1], []byte(v), v1[5:]) }
	short := bytes.Clone(v1)
	short[0] &^= longHeader
	retry := bytes.Clone(v1)
	retry[0] |= 0x30
	for why, b := range map[string][]byte{
		"nothing": nil, "one byte": {0xc0}, "no version": v1[:4],
		"Version Negotiation from a client (RFC 9000, 17.2.1)": version("\x00\x00\x00\x00"),
		"a greased version (section 15)":                       version("\x1a\x2a\x3a\x4a"),
		"draft 29":                                             version("\xff\x00\x00\x1d"),
		"version 3":                                            version("\x00\x00\x00\x03"),
		"a short header":                                       short,
		"a Retry from a client":                                retry,
		"DNS":                                                  []byte("\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x00\x00\x01\x00\x01"),
		"WireGuard":                                            append([]byte{1, 0, 0, 0}, make([]byte, 144)...),
		"STUN":                                                 append([]byte{0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42}, make([]byte, 12)...),
		"DTLS":                                                 []byte("\x16\xfe\xfd\x00\x00\x00\x00\x00\x00\x00\x00\x00\x40"),
		"RTP":                                                  append([]byte{0x80, 0x60, 0x12, 0x34}, make([]byte, 160)...),
	} {
		if got := fresh(t, b); got != unknown || Begins(b) {
			t.Errorf("%s: %+v, begins: %v", why, got, Begins(b))
		}
	}
}

// What servers discard or close the connection for must not be routed, least
// of all as something that names nobody.
func TestRefused(t *testing.T) {
	t.Parallel()
	of := func(p packet) []byte {
		p.kind, p.dcid = Initial, firstID
		if p.size == 0 {
			p.size = MinDatagram
		}
		return p.wire(t)
	}
	hello := crypto(0, small)
	good := of(packet{payload: hello})
	other := packet{kind: Initial, dcid: bytes.Repeat([]byte("x"), 8), payload: hello, size: 100}.wire(t)
	v2 := packet{version: Version2, kind: Initial, dcid: firstID, payload: hello, size: 100}.wire(t)
	// 4 bytes of packet number and 15 more.
	tooShort := slices.Concat([]byte("\xc3\x00\x00\x00\x01\x08"), firstID, []byte("\x00\x00\x13"), make([]byte, 1200))
	wrongKeys2 := packet{version: Version2, kind: Initial, dcid: firstID, keysOf: []byte("another!"), payload: hello, size: MinDatagram}.wire(t)
	for why, test := range map[string]struct {
		datagram []byte
		want     error
	}{
		"RFC 9000, 14.1: 1199 bytes":                  {of(packet{payload: hello, size: MinDatagram - 1}), errSmall},
		"14.1: a hello and no padding":                {of(packet{payload: hello, size: 1}), errSmall},
		"17.2: reserved bits":                         {of(packet{payload: hello, reserved: 1}), errBits},
		"17.2: the other reserved bit":                {of(packet{payload: hello, reserved: 2}), errBits},
		"17.2: a length beyond the datagram":          {of(packet{payload: hello, lengthIsTooGreat: 1}), errPacket},
		"12.4: no frames":                             {append(of(packet{token: make([]byte, 1200), size: 1}), 0), errEmpty},
		"12.2: another connection behind it":          {slices.Concat(good, other), errCoalesced},
		"12.2: another version behind it":             {slices.Concat(good, v2), errCoalesced},
		"RFC 9001, 5.2: keys of another id":           {of(packet{payload: hello, keysOf: []byte("chosen by a server")}), errOpen},
		"5.2: keys of another id in version 2":        {wrongKeys2, errOpen},
		"5.4.2: too short for a sample":               {tooShort, errPacket},
		"a connection begun before":                   {packet{kind: Handshake, dcid: firstID, payload: make([]byte, 1200)}.wire(t), errNoInitial},
		"Handshake with a broken header":              {[]byte("\xe0\x00\x00\x00\x01\xff"), errPacket},
		"an Initial with a broken header":             {[]byte("\xc0\x00\x00\x00\x01"), errPacket},
		"RFC 8446, 4: the first message is no hello":  {of(packet{payload: crypto(0, []byte("\x02\x00\x00\x04abcd"))}), nil},
		"a hello with a name that is none":            {of(packet{payload: crypto(0, smallHello("a..b"))}), nil},
		"a hello of more than 64 KiB":                 {of(packet{payload: crypto(0, []byte("\x01\x01\x00\x00"))}), nil},
		"a CRYPTO frame that reaches beyond 64 KiB":   {of(packet{payload: crypto(sniff.MaxHello-3, []byte("abcd"))}), errLong},
		"a CRYPTO frame at the largest offset":        {of(packet{payload: crypto(1<<62-1, []byte("abcd"))}), errLong},
		"a hello, then a frame that must not be here": {of(packet{payload: append(bytes.Clone(hello), 0x08)}), errFrame},
	} {
		got := fresh(t, test.datagram)
		if test.want == nil && got.err != nil { // what sniff says
			test.want = got.err
		}
		if want := refused(test.want); got != want || got.err == nil {
			t.Errorf("%s: %+v, want %v", why, got, test.want)
		}
	}
}

// RFC 9000, section 12.4, table 3: of all types of frames these may be in an
// Initial packet; section 12.4: each in the shortest encoding.
func TestFrameTypes(t *testing.T) {
	t.Parallel()
	allowed := map[byte]string{
		framePadding: "", framePing: "",
		frameACK:    "\x05\x00\x01\x00\x00\x01", // two ranges
		frameACKECN: "\x05\x00\x00\x00\x01\x02\x03",
		frameCrypto: "\x40\x40\x02ab", // behind the hello
		frameClose:  "\x40\x0a\x06\x03why",
	}
	for kind := range 256 {
		body, ok := allowed[byte(kind)]
		frame := append([]byte{byte(kind)}, body...)
		want := refused(errFrame)
		if ok {
			want = smallWant
		}
		for _, b := range [][]byte{initial(t, 0, frame, crypto(0, small)), initial(t, 0, crypto(0, small), frame)} {
			if kind == frameCrypto {
				b = initial(t, 0, crypto(len(small), []byte("ab")), crypto(0, small))
			}
			if got := fresh(t, b); got != want {
				t.Errorf("a frame of type %#x: %+v, want %+v", kind, got, want)
			}
		}
		// Each cut of it at the end of a packet.
		for n := 1; ok && n < len(frame); n++ {
			p := packet{kind: Initial, dcid: firstID, token: make([]byte, 1200), payload: slices.Concat(crypto(0, small), frame[:n])}.wire(t)
			if got := fresh(t, p); got != refused(errFrameCut) {
				t.Errorf("%d bytes of a frame of type %#x: %+v", n, kind, got)
			}
		}
	}
	for why, frame := range map[string]string{
		"PING in two bytes":                      "\x40\x01",
		"CRYPTO in two bytes":                    "\x40\x06\x00\x00",
		"more ranges of an ACK than bytes":       "\x02\x05\x00\xff\xff\xff\xff\xff\xff\xff\xff\x00",
		"more bytes of CRYPTO than there are":    "\x06\x00\xff\xff\xff\xff\xff\xff\xff\xff",
		"a longer reason than there are bytes":   "\x1c\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff",
		"an application's close (section 19.19)": "\x1d\x00\x00",
	} {
		if got := fresh(t, initial(t, 0, crypto(0, small), []byte(frame))); got.err == nil {
			t.Errorf("%s: %+v", why, got)
		}
	}
}

// RFC 9000, section 12.2: what is coalesced in one datagram, and what follows it.
func TestCoalesced(t *testing.T) {
	t.Parallel()
	zeroRTT := packet{kind: ZeroRTT, dcid: firstID, payload: make([]byte, 300)}.wire(t)
	handshake := packet{kind: Handshake, dcid: firstID, payload: make([]byte, 300)}.wire(t)
	part := func(number uint64, from, to, size int) []byte {
		return packet{kind: Initial, dcid: firstID, number: number, payload: crypto(from, small[from:to]), size: size}.wire(t)
	}
	first, second := part(0, 0, 30, 600), part(1, 30, len(small), 600)
	for why, b := range map[string][]byte{
		"two Initial packets":                  slices.Concat(first, second),
		"in the other order":                   slices.Concat(second, first),
		"0-RTT behind them":                    slices.Concat(first, second, zeroRTT),
		"0-RTT in front":                       slices.Concat(zeroRTT, first, second),
		"0-RTT between":                        slices.Concat(first, zeroRTT, second),
		"Handshake in front":                   slices.Concat(handshake, first, second),
		"padding that is no packet":            slices.Concat(first, second, make([]byte, 100)),
		"random bytes of a short header":       slices.Concat(first, second, []byte("\x41random")),
		"half a long header":                   slices.Concat(first, second, first[:10]),
		"a packet of another version behind":   slices.Concat(first, second, []byte("\xc0\x1a\x2a\x3a\x4a\x00\x00")),
		"a packet with a length beyond it all": slices.Concat(first, second, first[:50]),
	} {
		if got := fresh(t, b); got != smallWant {
			t.Errorf("%s: %+v", why, got)
		}
	}
	// The end of a Retry, or of another version's packet, is not known: nobody
	// reads on behind it.
	for why, b := range map[string][]byte{
		"Retry": slices.Concat([]byte("\xf0"), first[1:]), "another version": slices.Concat([]byte("\xc0\x1a\x2a\x3a\x4a"), first[5:]),
	} {
		if got := fresh(t, slices.Concat(b, first, second)); got != unknown {
			t.Errorf("behind %s: %+v", why, got)
		}
	}
}

// Lesson: Traefik CVE-2026-32305. A hello that does not come all at once gave
// an empty name, and the default route. Here it is waited for.
func TestHelloOverDatagrams(t *testing.T) {
	t.Parallel()
	zeroRTT := packet{kind: ZeroRTT, dcid: firstID, payload: make([]byte, 1100)}.wire(t)
	for _, version := range []uint32{Version1, Version2} {
		hello := clientHello(t, "WWW.example.com.", "h3", "hq-interop") // CVE-2026-48491: case, trailing dot
		want := quicFor("www.example.com", "h3 hq-interop")
		if len(hello) < MinDatagram {
			t.Fatalf("a hello of %d bytes is not post-quantum", len(hello))
		}
		part := func(number uint64, from, to int) []byte {
			return packet{version: version, kind: Initial, dcid: firstID, number: number, payload: crypto(from, hello[from:to]), size: MinDatagram}.wire(t)
		}
		for n := 1; n < len(hello); n += 7 {
			a, b := part(0, 0, n), part(1, n, len(hello))
			for why, datagrams := range map[string][][]byte{
				"in order": {a, b}, "the other way": {b, a}, "with duplicates": {a, a, a, b}, "sent again": {a, part(2, 0, n), b},
				"0-RTT first": {zeroRTT, b, zeroRTT, a},
				// A lost one comes again, cut in another way.
				"again": {b, part(2, 0, n/2), part(3, n/3, n)},
			} {
				h := new(Hello)
				if got := show(t, h, datagrams[:len(datagrams)-1]...); got != waiting {
					t.Fatalf("%s, %d bytes, without the last datagram: %+v", why, n, got)
				}
				if got := show(t, h, datagrams[len(datagrams)-1]); got != want {
					t.Fatalf("%s, %d bytes: %+v", why, n, got)
				}
			}
		}
	}
}

// A datagram that is not of the attempt has no say in where it goes.
func TestNotOfThisAttempt(t *testing.T) {
	t.Parallel()
	otherID := []byte("12345678")
	first, second := initial(t, 0, crypto(0, small[:50])), initial(t, 1, crypto(50, small[50:]))
	evil := crypto(0, smallHello("evil.example.com"))
	for why, b := range map[string][]byte{
		"another connection id":                      packet{kind: Initial, dcid: otherID, payload: evil, size: MinDatagram}.wire(t),
		"another connection id, cannot be opened":    packet{kind: Initial, dcid: otherID, keysOf: firstID, payload: evil, size: MinDatagram}.wire(t),
		"another connection id, short":               packet{kind: Initial, dcid: otherID, payload: evil}.wire(t),
		"another version":                            packet{version: Version2, kind: Initial, dcid: firstID, payload: evil, size: MinDatagram}.wire(t),
		"0-RTT, and behind it an Initial of its own": slices.Concat(packet{kind: ZeroRTT, dcid: otherID, payload: make([]byte, 20)}.wire(t), second),
		"Handshake":                   packet{kind: Handshake, dcid: otherID, payload: make([]byte, 1200)}.wire(t),
		"a short header":              append([]byte("\x41"), firstID...),
		"Version Negotiation":         []byte("\x80\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01"),
		"a version that is not known": []byte("\xc0\x1a\x2a\x3a\x4a\x08\x83\x94\xc8\xf0\x3e\x51\x57\x08\x00"),
		"nothing":                     {},
		"half a header":               second[:9],
		"a length that does not fit":  second[:len(second)-1],
		"not of QUIC":                 []byte("hello, world"),
		"RFC 9000, 12.3: a packet number used before": initial(t, 0, evil),
		"12.3: of the past":                           initial(t, 0, crypto(50, []byte("evil"))),
	} {
		h := new(Hello)
		if got := show(t, h, first, b); got != waiting {
			t.Errorf("%s: %+v", why, got)
		}
		if got := show(t, h, second); got != smallWant {
			t.Errorf("%s, and then the rest: %+v", why, got)
		}
	}
	// What is of the attempt, as its connection id says, must be in order.
	for why, test := range map[string]struct {
		b    []byte
		want error
	}{
		"a short datagram":                   {packet{kind: Initial, dcid: firstID, number: 1, payload: crypto(50, small[50:])}.wire(t), errSmall},
		"one that cannot be opened":          {packet{kind: Initial, dcid: firstID, number: 1, keysOf: otherID, payload: evil, size: MinDatagram}.wire(t), errOpen},
		"one that contradicts (section 2.2)": {initial(t, 1, evil), errConflict},
		"another connection behind it":       {slices.Concat(second, packet{kind: Initial, dcid: otherID, payload: evil}.wire(t)), errCoalesced},
	} {
		if got := fresh(t, first, test.b); got != refused(test.want) {
			t.Errorf("%s: %+v", why, got)
		}
	}
}

// Each order of up to four fragments of a hello, in one packet, in packets of
// one datagram, and in datagrams.
func TestEveryOrderOfFragments(t *testing.T) {
	t.Parallel()
	step := 1
	if testing.Short() {
		step = 9
	}
	check := func(cuts ...int) {
		t.Helper()
		cuts = append(cuts, len(small))
		fragments := make([][]byte, len(cuts))
		from := 0
		for i, to := range cuts {
			fragments[i] = crypto(from, small[from:to])
			from = to
		}
		for order := range permutations(len(fragments)) {
			var frames, coalesced []byte
			var datagrams [][]byte
			for i, f := range order {
				frames = append(frames, fragments[f]...)
				frames = append(frames, framePing, framePadding)
				coalesced = append(coalesced, packet{kind: Initial, dcid: firstID, number: uint64(i), payload: fragments[f], size: MinDatagram / 2}.wire(t)...)
				datagrams = append(datagrams, initial(t, uint64(i), fragments[f]))
			}
			how := fmt.Sprint(cuts, order)
			if got := fresh(t, initial(t, 0, frames)); got != smallWant {
				t.Fatalf("%s in one packet: %+v", how, got)
			}
			if got := fresh(t, coalesced); got != smallWant {
				t.Fatalf("%s in one datagram: %+v", how, got)
			}
			h := new(Hello)
			if got := show(t, h, datagrams[:len(datagrams)-1]...); got != waiting {
				t.Fatalf("%s in datagrams, but for the last: %+v", how, got)
			}
			if got := show(t, h, datagrams[len(datagrams)-1]); got != smallWant {
				t.Fatalf("%s in datagrams: %+v", how, got)
			}
		}
	}
	for a := 1; a < len(small); a += step {
		check(a)
		if b := a + (len(small)-a)/2; b > a {
			check(a, b)
		}
	}
	check(1, 2, 3)
	check(3, 4, 5)
	check(20, 40, 60)
}

// permutations yields each order of 0…n-1.
func permutations(n int) func(func([]int) bool) {
	return func(yield func([]int) bool) {
		var walk func(order []int) bool
		walk = func(order []int) bool {
			if len(order) == n {
				return yield(order)
			}
			for i := range n {
				if !slices.Contains(order, i) && !walk(append(slices.Clip(order), i)) {
					return false
				}
			}
			return true
		}
		walk(nil)
	}
}

// A datagram that is cut off, or of which a bit is wrong, names nobody and
// nobody else, and is not taken for something that has no name.
func TestDamagedDatagrams(t *testing.T) {
	t.Parallel()
	b := packet{kind: Initial, dcid: firstID, scid: []byte("client"), token: []byte("token"), payload: crypto(0, small), size: 1250}.wire(t)
	for n := range b {
		want := refused(errPacket)
		if n < 5 {
			want = unknown
		}
		if got := fresh(t, b[:n]); got != want {
			t.Errorf("%d of %d bytes: %+v", n, len(b), got)
		}
	}
	step := 1
	if testing.Short() {
		step = 7
	}
	for bit := 0; bit < 8*len(b); bit += step {
		c := bytes.Clone(b)
		c[bit/8] ^= 1 << (bit % 8)
		switch got := fresh(t, c); {
		case got.err != nil:
		case bit/8 < 5 && got == unknown: // the form of the header, its type, or its version
		case bit/8 == 0 && got == waiting: // 0-RTT
		default:
			t.Errorf("bit %d of byte %d: %+v", bit%8, bit/8, got)
		}
	}
	if got := fresh(t, b); got != smallWant {
		t.Errorf("as it was: %+v", got)
	}
}

// Memory and work are bounded, whatever a client sends.
func TestBounds(t *testing.T) {
	t.Parallel()
	t.Run("packets", func(t *testing.T) {
		t.Parallel()
		for why, next := range map[string]func(i int) []byte{
			"nothing but PING": func(i int) []byte { return initial(t, uint64(i), []byte{framePing}) },
			"the same again":   func(int) []byte { return initial(t, 0, crypto(1, small[1:2])) },
			"a byte at a time": func(i int) []byte { return initial(t, uint64(i), crypto(i+1, small[1:2])) },
		} {
			h := new(Hello)
			for i := range maxPackets {
				if got := show(t, h, next(i)); got != waiting {
					t.Fatalf("%s: %+v after %d packets", why, got, i)
				}
			}
			if got := show(t, h, next(maxPackets)); got != refused(errPackets) {
				t.Errorf("%s: %+v", why, got)
			}
		}
		// All of them in one datagram.
		one := packet{kind: Initial, dcid: firstID, payload: []byte{framePing, 0, 0, 0}}.wire(t)
		if got := fresh(t, bytes.Repeat(one, 65000/len(one))); got != refused(errPackets) {
			t.Errorf("%+v", got)
		}
	})
	t.Run("fragments", func(t *testing.T) {
		t.Parallel()
		long := clientHello(t, "a.example.com", "h3")
		var backwards []byte
		for i := maxParts; i >= 0; i-- {
			backwards = append(backwards, crypto(2*i, long[2*i:2*i+1])...)
		}
		if got := fresh(t, initial(t, 0, backwards)); got != refused(errFragments) {
			t.Errorf("%+v", got)
		}
		if got := fresh(t, initial(t, 0, backwards[len(crypto(2*maxParts, long[:1])):])); got != waiting {
			t.Errorf("as many as are allowed: %+v", got)
		}
		// In order they are one.
		var forwards []byte
		for i := range long {
			forwards = append(forwards, crypto(i, long[i:i+1])...)
		}
		if got := fresh(t, initial(t, 0, forwards)); got != quicFor("a.example.com", "h3") {
			t.Errorf("%+v", got)
		}
	})
	t.Run("memory", func(t *testing.T) {
		t.Parallel()
		h := new(Hello)
		if got := show(t, h, initial(t, 0, crypto(sniff.MaxHello-1, []byte("x")), crypto(0, []byte("\x01\x00\xff\x00")))); got != waiting {
			t.Fatalf("%+v", got)
		}
		if n := cap(h.stream.data); n > 64 {
			t.Errorf("%d bytes for 5, on a promise of 64 KiB", n)
		}
	})
	// A hello of 64 KiB, in as many datagrams as it takes.
	t.Run("the longest hello", func(t *testing.T) {
		t.Parallel()
		padding := make([]byte, sniff.MaxHello-len(small)-4)
		long := slices.Concat(small, []byte{0, 21, byte(len(padding) >> 8), byte(len(padding))}, padding)
		if len(long) != sniff.MaxHello {
			t.Fatal(len(long))
		}
		body, exts := len(long)-4, len(long)-4-2-32-1-4-2-2
		copy(long[1:], []byte{byte(body >> 16), byte(body >> 8), byte(body)})
		copy(long[4+2+32+1+4+2:], []byte{byte(exts >> 8), byte(exts)})
		h := new(Hello)
		for n, number := 0, uint64(0); n < len(long); n, number = n+1150, number+1 {
			got := show(t, h, initial(t, number, crypto(n, long[n:min(n+1150, len(long))])))
			if last := n+1150 >= len(long); last && got != smallWant || !last && got != waiting {
				t.Fatalf("%d bytes: %+v", n, got)
			}
		}
		if n := cap(h.stream.data); n > 2*sniff.MaxHello {
			t.Errorf("%d bytes", n)
		}
	})
}

// What is not of QUIC and comes at random is refused or unknown, never a name.
func TestRandomDatagrams(t *testing.T) {
	t.Parallel()
	b := make([]byte, 1400)
	for range 2000 {
		rand.Read(b)
		if b[1]&1 == 0 {
			copy(b[1:], "\x00\x00\x00\x01\x08")
		}
		if got := fresh(t, b); got.done && got != unknown {
			t.Fatalf("%x: %+v", b, got)
		}
	}
}
