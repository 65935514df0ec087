package tlsrecord

import (
	"bytes"
	"math"
	"slices"
	"testing"
)

// eachKind runs a test for every format of records, with a client that can
// forge and a server that is to resist.
func eachKind(t *testing.T, test func(t *testing.T, client, server *Conn)) {
	for _, k := range few() {
		t.Run(k.String(), func(t *testing.T) {
			t.Parallel()
			client, server := pair(t, k)
			test(t, client, server)
		})
	}
}

func TestSizes(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, client, server *Conn) {
		longest := 0
		for n := range MaxPlaintext + 1 {
			if n > 300 && n < MaxPlaintext-300 && n%127 != 0 {
				continue
			}
			text := bytes.Repeat([]byte{byte(n)}, n)
			buf := make([]byte, client.Header()+n, client.Header()+n+client.Trailer())
			copy(buf[client.Header():], text)
			rec := client.Seal(ApplicationData, buf, n)
			longest = max(longest, len(rec))
			if len(rec) != client.Header()+n+client.Trailer() || &rec[0] != &buf[0] {
				t.Fatalf("%d bytes became a record of %d", n, len(rec))
			}
			for cut := range HeaderLen {
				if m, err := server.Size(rec[:cut]); m != 0 || err != nil {
					t.Fatalf("Size of %d bytes = %d, %v", cut, m, err)
				}
			}
			if m, err := server.Size(append(slices.Clip(rec), 1, 2, 3)); m != len(rec) || err != nil {
				t.Fatalf("Size = %d, %v, want %d", m, err, len(rec))
			}
			dst := make([]byte, MaxRecord)
			typ, plain, err := server.Open(dst, rec)
			if typ != ApplicationData || !bytes.Equal(plain, text) || err != nil {
				t.Fatalf("%d bytes: opened as type %d, %d bytes, %v", n, typ, len(plain), err)
			}
			if n > 0 && &plain[0] != &dst[0] {
				t.Fatal("not opened into dst")
			}
		}
		if longest > MaxRecord || client.Header() > MaxHeader || client.Trailer() > MaxTrailer {
			t.Errorf("a record of %d bytes, header %d, trailer %d", longest, client.Header(), client.Trailer())
		}
	})
}

// All 256 outer types (RFC 8446, section 5.2: application_data; RFC 5246,
// section 6.2.1).
func TestOuterTypes(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, client, server *Conn) {
		for typ := range 256 {
			ok := typ == ApplicationData || !client.p.tls13 && (typ == Alert || typ == Handshake)
			_, err := server.Size([]byte{byte(typ), 3, 3, 0, 100})
			if ok != (err == nil) {
				t.Errorf("type %d: %v", typ, err)
			}
			if !ok {
				wantAlert(t, err, AlertUnexpectedMessage)
			}
			// An authentic one is refused as well.
			saved := *server
			client.out.seq, saved.in.seq = 9, 9
			inner := []byte{1, 0}
			if client.p.tls13 {
				inner = append(inner, ApplicationData)
			}
			if _, _, err := saved.Open(nil, forge(client, byte(typ), inner)); ok != (err == nil) {
				t.Errorf("type %d: %v", typ, err)
			}
		}
	})
}

// All 256 inner types (RFC 8446, section 5.4).
func TestInnerTypes(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, client, server *Conn) {
		if !client.p.tls13 {
			return
		}
		for typ := range 256 {
			for _, padding := range []int{0, 1, 300} {
				client.out.seq, server.in.seq = 5, 5
				inner := append([]byte{'x', 0, byte(typ)}, make([]byte, padding)...)
				got, plain, err := server.Open(nil, forge(client, ApplicationData, inner))
				switch typ {
				case 0:
					// Type 0 is padding; 'x' becomes the type.
					wantAlert(t, err, AlertUnexpectedMessage)
				case Alert, Handshake, ApplicationData:
					if err != nil || int(got) != typ || string(plain) != "x\x00" {
						t.Errorf("type %d: opened as %d, %q, %v", typ, got, plain, err)
					}
				default:
					wantAlert(t, err, AlertUnexpectedMessage)
				}
			}
		}
	})
}

// RFC 8446, section 5.4: padding alone is unexpected_message; padding counts
// towards the length of a plaintext.
func TestPadding(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, client, server *Conn) {
		if !client.p.tls13 {
			return
		}
		for _, n := range []int{0, 1, 2, 100, MaxPlaintext + 1} {
			client.out.seq, server.in.seq = 5, 5
			_, _, err := server.Open(nil, forge(client, ApplicationData, make([]byte, n)))
			wantAlert(t, err, AlertUnexpectedMessage)
		}
		for at := range MaxPlaintext + 1 {
			if at > 40 && at < MaxPlaintext-40 {
				continue
			}
			client.out.seq, server.in.seq = 5, 5
			inner := make([]byte, MaxPlaintext+1)
			inner[at] = ApplicationData
			typ, plain, err := server.Open(nil, forge(client, ApplicationData, inner))
			if err != nil || typ != ApplicationData || len(plain) != at {
				t.Fatalf("content of %d bytes: type %d, %d bytes, %v", at, typ, len(plain), err)
			}
			server.useless = 0
		}
	})
}

// RFC 8446, section 5.2; RFC 5246, section 6.2.3: every length a header can
// hold.
func TestLengths(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, client, server *Conn) {
		least := server.Header() + tagLen - HeaderLen
		most := server.Header() + MaxPlaintext + server.Trailer() - HeaderLen
		for n := range 1 << 16 {
			size, err := server.Size([]byte{ApplicationData, 3, 3, byte(n >> 8), byte(n)})
			switch {
			case n < least:
				wantAlert(t, err, AlertBadRecordMAC)
			case n > most:
				wantAlert(t, err, AlertRecordOverflow)
			case err != nil || size != HeaderLen+n:
				t.Fatalf("length %d: %d, %v", n, size, err)
			}
		}
		text := make([]byte, MaxPlaintext+1)
		text[0] = 1
		_, _, err := server.Open(nil, typed(client, ApplicationData, text))
		wantAlert(t, err, AlertRecordOverflow)
	})
}

// All versions but 0x0303: protocol_version, as crypto/tls has it.
func TestVersions(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, client, server *Conn) {
		for v := range 1 << 16 {
			_, err := server.Size([]byte{ApplicationData, byte(v >> 8), byte(v), 0, 100})
			if v == 0x0303 {
				if err != nil {
					t.Error(err)
				}
				continue
			}
			wantAlert(t, err, AlertProtocolVersion)
		}
	})
}

// Every bit of a record is under the tag, or under a check.
func TestBitFlips(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, client, server *Conn) {
		rec := seal(client, ApplicationData, []byte("attack at dawn"))
		for bit := range len(rec) * 8 {
			bad := bytes.Clone(rec)
			bad[bit/8] ^= 1 << (bit % 8)
			if _, _, err := server.Open(nil, bad); err == nil {
				t.Fatalf("bit %d flipped, and opened", bit)
			}
			if bit/8 >= HeaderLen {
				_, _, err := server.Open(nil, bytes.Clone(bad))
				wantAlert(t, err, AlertBadRecordMAC)
			}
		}
		if _, _, err := server.Open(nil, rec); err != nil {
			t.Errorf("the record itself: %v", err)
		}
	})
}

// A plaintext that is not authentic is never left in the buffer.
func TestForgedPlaintextIsCleared(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, client, server *Conn) {
		rec := seal(client, ApplicationData, []byte("attack at dawn"))
		rec[len(rec)-1] ^= 1
		for _, dst := range [][]byte{nil, make([]byte, MaxRecord)} {
			b := bytes.Clone(rec)
			_, plain, err := server.Open(dst, b)
			wantAlert(t, err, AlertBadRecordMAC)
			if plain != nil || bytes.Contains(dst, []byte("attack")) || bytes.Contains(b, []byte("attack")) {
				t.Error("plaintext of a forged record")
			}
		}
	})
}

func TestReplayReorderCut(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, client, server *Conn) {
		a, b := seal(client, ApplicationData, []byte("a")), seal(client, ApplicationData, []byte("b"))
		fails := func(rec []byte) {
			t.Helper()
			_, _, err := server.Open(nil, bytes.Clone(rec))
			wantAlert(t, err, AlertBadRecordMAC)
		}
		fails(b)
		if _, _, err := server.Open(nil, bytes.Clone(a)); err != nil {
			t.Fatal(err)
		}
		fails(a)
		for n := range b {
			if n < HeaderLen {
				if m, err := server.Size(b[:n]); m != 0 || err != nil {
					t.Errorf("Size of %d bytes: %d, %v", n, m, err)
				}
			}
			_, _, err := server.Open(nil, b[:n])
			wantAlert(t, err, AlertInternalError) // the caller's mistake
			// The peer's header says it is whole.
			cut := bytes.Clone(b[:n])
			if n >= HeaderLen {
				cut[3], cut[4] = byte((n-HeaderLen)>>8), byte(n-HeaderLen)
				fails(cut)
			}
		}
		_, _, err := server.Open(nil, append(bytes.Clone(b), 0))
		wantAlert(t, err, AlertInternalError)
		if _, plain, err := server.Open(nil, b); err != nil || string(plain) != "b" {
			t.Error(err)
		}
		// Our own records do not come back to us.
		c := seal(client, ApplicationData, []byte("c"))
		client.in.seq = client.out.seq - 1
		_, _, err = client.Open(nil, c)
		wantAlert(t, err, AlertBadRecordMAC)
	})
}

func TestTinyRecords(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, client, server *Conn) {
		buf := make([]byte, 64)
		for i := range 10_000 {
			buf[client.Header()] = byte(i)
			_, plain, err := server.Open(nil, client.Seal(ApplicationData, buf, 1))
			if err != nil || len(plain) != 1 || plain[0] != byte(i) {
				t.Fatal(plain, err)
			}
		}
	})
}

// RFC 8446, section 5.3; RFC 5246, section 6.1: sequence numbers do not wrap.
func TestSequenceWrap(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, client, server *Conn) {
		client.RekeyAfter = math.MaxUint64
		for _, out := range []bool{true, false} {
			if client.SetSeq(out, 1<<63) == nil {
				t.Error("2^63 was taken over")
			}
		}
		client.out.seq, server.in.seq = math.MaxUint64-1, math.MaxUint64-1
		rec := seal(client, ApplicationData, []byte("last"))
		if _, _, err := server.Open(nil, bytes.Clone(rec)); err != nil {
			t.Fatal(err)
		}
		_, _, err := server.Open(nil, rec)
		wantAlert(t, err, AlertInternalError)
		mustPanic(t, func() { seal(client, ApplicationData, nil) })
	})
}

func mustPanic(t *testing.T, f func()) {
	t.Helper()
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	f()
}

func TestSealPanics(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, client, _ *Conn) {
		seq := client.out.seq
		buf := make([]byte, 2*MaxRecord)
		mustPanic(t, func() { client.Seal(ApplicationData, buf, MaxPlaintext+1) })
		mustPanic(t, func() { client.Seal(ApplicationData, buf, -1) })
		n := client.Header() + 10 + client.Trailer() - 1
		mustPanic(t, func() { client.Seal(ApplicationData, buf[:n:n], 10) })
		if client.out.seq != seq {
			t.Error("a record that was not sealed has used a sequence number")
		}
	})
}

// What follows a record in the buffer, such as the next one, stays.
func TestNeighboursInTheBuffer(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, client, server *Conn) {
		buf := bytes.Repeat([]byte{0xaa}, 500)
		h := client.Header()
		end := h + 100 + client.Trailer()
		client.Seal(ApplicationData, buf, 100)
		if !bytes.Equal(buf[end:], bytes.Repeat([]byte{0xaa}, 500-end)) {
			t.Error("Seal wrote behind the record")
		}
		header := bytes.Clone(buf[:HeaderLen])
		if _, _, err := server.Open(nil, buf[:end]); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(buf[end:], bytes.Repeat([]byte{0xaa}, 500-end)) || !bytes.Equal(buf[:HeaderLen], header) {
			t.Error("Open wrote outside of the ciphertext")
		}
	})
}

// AllocsPerRun counts for the whole process, so that this test runs alone.
func TestNoAllocations(t *testing.T) {
	for _, k := range few() {
		client, server := pair(t, k)
		in, out := make([]byte, MaxRecord), make([]byte, MaxRecord)
		for _, n := range []int{0, 1, 100, MaxPlaintext} {
			for _, dst := range [][]byte{nil, in} {
				if a := testing.AllocsPerRun(100, func() {
					server.useless = 0
					if _, _, err := server.Open(dst, client.Seal(ApplicationData, out, n)); err != nil {
						t.Fatal(err)
					}
				}); a != 0 {
					t.Errorf("%v: %d bytes, in place %v: %v allocations", k, n, dst == nil, a)
				}
			}
		}
		if a := testing.AllocsPerRun(100, func() {
			if client.Due() {
				t.Fatal("due")
			}
			out = client.AppendAlert(client.AppendDue(out[:0]), AlertCloseNotify)
		}); a != 0 {
			t.Errorf("%v: an alert: %v allocations", k, a)
		}
	}
}
