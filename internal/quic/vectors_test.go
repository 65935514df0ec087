package quic

import (
	"bytes"
	"encoding/hex"
	"testing"
)

// The ClientHello of RFC 9001, appendix A.2, in its CRYPTO frame; RFC 9369,
// appendix A.2 has the same.
const sampleFrame = `
060040f1010000ed0303ebf8fa56f12939b9584a3896472ec40bb863cfd3e868
04fe3a47f06a2b69484c00000413011302010000c000000010000e00000b6578
616d706c652e636f6dff01000100000a00080006001d00170018001000070005
04616c706e000500050100000000003300260024001d00209370b2c9caa47fba
baf4559fedba753de171fa71f50f1ce15d43e994ec74d748002b000302030400
0d0010000e0403050306030203080408050806002d00020101001c0002400100
3900320408ffffffffffffffff05048000ffff07048000ffff08011001048000
75300901100f088394c8f03e51570806048000ffff`

func TestVectorsClientInitial(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		file, iv string
		version  uint32
	}{
		{"rfc9001-client-initial", "fa044b2f42a3fd3b46fb255c", Version1}, // appendix A.1
		{"rfc9369-client-initial", "91f73e2351d8fa91660e909f", Version2},
	} {
		b := recorded(t, test.file)
		var k keys
		if err := k.derive(test.version, firstID); err != nil {
			t.Fatal(err)
		}
		if got := hex.EncodeToString(k.iv[:]); got != test.iv {
			t.Errorf("%s: iv %s, want %s", test.file, got, test.iv)
		}
		h, rest, ok := ParseLong(b)
		if !ok || len(rest) != 0 || h.Version != test.version || h.Type != Initial || !bytes.Equal(h.DCID, firstID) || len(h.SCID)+len(h.Token) != 0 {
			t.Fatalf("%s: %+v, %d bytes left, %v", test.file, h, len(rest), ok)
		}
		payload, number, err := k.open(&h, 0, new(scratch))
		if err != nil || number != 2 {
			t.Fatalf("%s: packet %d, %v", test.file, number, err)
		}
		frame := unhex(t, sampleFrame)
		if want := append(frame, make([]byte, 1162-len(frame))...); !bytes.Equal(payload, want) {
			t.Errorf("%s: %x", test.file, payload)
		}
		if got := fresh(t, b); got != quicFor("example.com", "alpn") {
			t.Errorf("%s: %+v", test.file, got)
		}
		// The tests seal like the RFCs, so they may be asked about the rest.
		again := packet{version: test.version, kind: Initial, dcid: firstID, number: 2, payload: frame, size: MinDatagram}.wire(t)
		if got := fresh(t, again); got != quicFor("example.com", "alpn") {
			t.Errorf("%s, sealed again: %+v", test.file, got)
		}
	}
}

// Appendices A.3 and A.4 of RFC 9001 and RFC 9369.
func TestVectorsServer(t *testing.T) {
	t.Parallel()
	scid := unhex(t, "f067a5502a4262b5")
	for _, test := range []struct {
		why     string
		packet  []byte
		version uint32
		kind    PacketType
	}{
		{"RFC 9001, A.3", recorded(t, "rfc9001-server-initial"), Version1, Initial},
		{"RFC 9369, A.3", recorded(t, "rfc9369-server-initial"), Version2, Initial},
		{"RFC 9001, A.4", unhex(t, "ff000000010008f067a5502a4262b5746f6b656e04a265ba2eff4d829058fb3f0f2496ba"), Version1, Retry},
		{"RFC 9369, A.4", unhex(t, "cf6b3343cf0008f067a5502a4262b5746f6b656ec8646ce8bfe33952d955543665dcc7b6"), Version2, Retry},
	} {
		h, rest, ok := ParseLong(test.packet)
		if !ok || len(rest) != 0 || h.Version != test.version || h.Type != test.kind || len(h.DCID) != 0 || !bytes.Equal(h.SCID, scid) {
			t.Errorf("%s: %+v, %d bytes left, %v", test.why, h, len(rest), ok)
		}
		if id, ok := ServerSCID(test.packet); !ok || !bytes.Equal(id, scid) {
			t.Errorf("%s: %x, %v", test.why, id, ok)
		}
		// From a client they are nonsense.
		want := refused(errSmall)
		if test.kind == Retry {
			want = unknown
		}
		if got := fresh(t, test.packet); got != want {
			t.Errorf("%s, from a client: %+v", test.why, got)
		}
	}
}

// RFC 9000, appendix A.3 has one example; the rest is against a search for the
// nearest number that ends in the right bytes.
func TestPacketNumber(t *testing.T) {
	t.Parallel()
	if got := packetNumber(0xa82f30ea+1, 0x9b32, 2); got != 0xa82f9b32 {
		t.Errorf("%#x", got)
	}
	for _, next := range []uint64{0, 1, 2, 100, 127, 128, 129, 255, 256, 257, 383, 384, 385, 1000, 1<<62 - 300, 1<<62 - 2, 1<<62 - 1} {
		for truncated := range uint64(256) {
			want, found := uint64(0), false
			for candidate := uint64(max(0, int64(next)-1000)); candidate < next+1000 && candidate < 1<<62; candidate++ {
				// In the middle between two, the larger one: as in the RFC's code.
				if candidate&255 == truncated && (!found || distance(candidate, next) <= distance(want, next)) {
					want, found = candidate, true
				}
			}
			if got := packetNumber(next, truncated, 1); got != want {
				t.Errorf("%d expected, ends in %d: %d, want %d", next, truncated, got, want)
			}
		}
	}
}

func distance(a, b uint64) uint64 { return max(a, b) - min(a, b) }
