package quic

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"

	"edgeproxy/internal/sniff"
)

// naive puts a stream together byte by byte.
type naive map[int]byte

// add reports whether b agrees with what is there.
func (s naive) add(offset int, b []byte) bool {
	for i, c := range b {
		if have, ok := s[offset+i]; ok && have != c {
			return false
		}
	}
	for i, c := range b {
		s[offset+i] = c
	}
	return true
}

// ready returns the bytes from the beginning on.
func (s naive) ready() (b []byte) {
	for {
		c, ok := s[len(b)]
		if !ok {
			return b
		}
		b = append(b, c)
	}
}

// invariants of a stream: the parts are in order, apart, and all of data.
func invariants(tb testing.TB, s *stream) {
	tb.Helper()
	end, stored := 0, 0
	at := make([]part, 0, len(s.parts))
	for i, p := range s.parts {
		if p.n <= 0 || int(p.offset) < end {
			tb.Fatalf("part %d of %+v", i, s.parts)
		}
		end = p.end()
		stored += int(p.n)
		at = append(at, p)
	}
	slices.SortFunc(at, func(a, b part) int { return int(a.at - b.at) })
	next := 0
	for _, p := range at {
		if int(p.at) != next {
			tb.Fatalf("%+v do not fill %d bytes", s.parts, len(s.data))
		}
		next += int(p.n)
	}
	if stored != len(s.data) || len(s.parts) > maxParts {
		tb.Fatalf("%d bytes in %d parts, %d stored", stored, len(s.parts), len(s.data))
	}
}

// agree adds a fragment to both, and holds one against the other. It reports
// whether the stream goes on.
func agree(tb testing.TB, s *stream, model naive, offset int, b []byte) bool {
	tb.Helper()
	ok, err := model.add(offset, b), s.add(offset, b)
	if err == errFragments {
		return false
	}
	if (err == nil) != ok || err != nil && err != errConflict {
		tb.Fatalf("%d bytes at %d: %v; all agree: %v", len(b), offset, err, ok)
	}
	invariants(tb, s)
	if err != nil {
		return false
	}
	want := model.ready()
	if n := s.ready(); n != len(want) || n > 0 && !bytes.Equal(s.bytes(n), want) {
		tb.Fatalf("%d bytes are ready, want %d", n, len(want))
	}
	return true
}

// Fragments in any order, over each other, again, and with conflicts: RFC 9000,
// sections 2.2 and 19.6.
func TestStreamAgainstOracle(t *testing.T) {
	t.Parallel()
	d := rand.New(rand.NewPCG(1, 2))
	text := make([]byte, 300)
	for i := range text {
		text[i] = byte(d.Uint32())
	}
	conflicts, whole := 0, 0
	for range 3000 {
		var s stream
		model := naive{}
		size := 1 + d.IntN(len(text))
		for range 1 + d.IntN(60) {
			from := d.IntN(size)
			b := bytes.Clone(text[from : from+d.IntN(size-from+1)])
			if len(b) > 0 && d.IntN(100) == 0 {
				b[d.IntN(len(b))] ^= 1
			}
			if !agree(t, &s, model, from, b) {
				conflicts++
				break
			}
		}
		if s.ready() == size {
			whole++
		}
	}
	if conflicts < 100 || whole < 100 {
		t.Errorf("%d conflicts and %d complete streams: this tests little", conflicts, whole)
	}
}

// All pairs of fragments of a short stream, behind a third.
func TestStreamOverlaps(t *testing.T) {
	t.Parallel()
	const text = "abcdefg"
	for from := range len(text) {
		for to := from; to <= len(text); to++ {
			for from2 := range len(text) {
				for to2 := from2; to2 <= len(text); to2++ {
					for at := range len(text) {
						var s stream
						model := naive{}
						agree(t, &s, model, at, []byte(text[at:at+1]))
						agree(t, &s, model, from, []byte(text[from:to]))
						agree(t, &s, model, from2, []byte(text[from2:to2]))
						agree(t, &s, model, 0, []byte(text))
						if s.ready() != len(text) {
							t.Fatal("not whole")
						}
					}
				}
			}
		}
	}
}

// The first difference counts, wherever it is, and nothing is read after it.
func TestStreamConflict(t *testing.T) {
	t.Parallel()
	for i := range small {
		var s stream
		other := bytes.Clone(small)
		other[i] ^= 0x20 // of a letter: its case
		if err := s.add(0, small); err != nil {
			t.Fatal(err)
		}
		if err := s.add(0, other); err != errConflict {
			t.Errorf("byte %d: %v", i, err)
		}
	}
}

// FuzzStream: triples of offset, length and how the bytes differ from the text.
func FuzzStream(f *testing.F) {
	f.Add([]byte("\x00\x05\x00\x05\x05\x00"))
	f.Add([]byte("\x05\x05\x00\x00\x05\x00\x03\x04\x00"))
	f.Add([]byte("\x05\x05\x00\x02\x00\x00\x00\xff\x01"))
	f.Add([]byte("\x0a\x01\x00\x08\x01\x00\x06\x01\x00\x04\x01\x00\x02\x01\x00\x00\x0c\x00"))
	f.Fuzz(func(t *testing.T, ops []byte) {
		var s stream
		model := naive{}
		for ; len(ops) >= 3; ops = ops[3:] {
			b := make([]byte, ops[1])
			for i := range b {
				b[i] = byte(int(ops[0])+i) ^ byte(i*5)&ops[2]&1
			}
			if !agree(t, &s, model, int(ops[0]), b) {
				return
			}
		}
	})
}

// FuzzFrames: whatever is in a packet, its frames are read to an end or refused,
// and the hello is what the bytes make that are there from the beginning on.
func FuzzFrames(f *testing.F) {
	f.Add(crypto(0, small))
	f.Add(slices.Concat(crypto(40, small[40:]), []byte{framePing, 0, 0, 0}, crypto(0, small[:50])))
	f.Add([]byte("\x02\x05\x00\x01\x00\x00\x01\x03\x05\x00\x00\x00\x01\x02\x03\x1c\x40\x0a\x06\x03why"))
	f.Add(slices.Concat(crypto(0, small), crypto(60, []byte("evil"))))
	f.Fuzz(func(t *testing.T, payload []byte) {
		var h Hello
		if err := h.frames(payload); err != nil {
			return
		}
		invariants(t, &h.stream)
		var info, again sniff.Info
		n := h.stream.ready()
		var message []byte
		if n > 0 {
			message = bytes.Clone(h.stream.bytes(n))
		}
		done, err := h.stream.hello(&info)
		need, errAgain := again.Hello(message)
		if done != (need == 0 && errAgain == nil) || err != nil && err != errAgain || string(info.ServerName) != string(again.ServerName) {
			t.Fatalf("%v %v %q, at once: %d %v %q", done, err, info.ServerName, need, errAgain, again.ServerName)
		}
	})
}
