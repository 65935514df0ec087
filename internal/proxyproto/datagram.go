package proxyproto

import "net/netip"

// MaxDatagramHeader is the length of the longest header that
// [AppendV2Datagram] writes: that of two IPv6 addresses. It is 28 for IPv4. A
// payload that filled the path's MTU before is fragmented with it.
const MaxDatagramHeader = v2Fixed + ipv6Length

// ErrNoDatagramHeader says that a datagram does not even begin like a header of
// either version. From a peer that is not to send headers nothing else will do:
// one that is refused here may be taken by a laxer server.
const ErrNoDatagramHeader syntaxError = "the datagram does not begin with the signature of version 2; is the peer set up to send a header in each datagram?"

const (
	errDatagramV1    syntaxError = "the datagram begins with a header of version 1, which knows TCP only; set the peer to send version 2"
	errDatagramShort syntaxError = "the header does not end within its datagram"
)

// ParseDatagram reads the header that a whole datagram begins with. The
// payload is what follows the n bytes of the header, and may be empty, as UDP
// allows. Otherwise than with [Header.Parse] nothing can be added later: a
// header "must not [be] split […] across multiple UDP datagrams" (section 2).
//
// Every error is reason to drop the datagram, and only that: the one after it
// is "parse[d] independently". Sections of the specification on what is not an
// error:
//
//   - LOCAL (2.2) "must" be accepted, with the datagram's own addresses.
//   - UNSPEC, and a unix socket's addresses (2.2): as above, without addresses.
//   - TCP over IPv4 or IPv6 (2.2): "the receiver must then use the information
//     provided". See [Header.Datagram].
func (h *Header) ParseDatagram(b []byte) (n int, err error) {
	*h = Header{}
	if len(b) < len(signature) || string(b[:len(signature)]) != signature {
		if len(b) >= len(v1Begin) && string(b[:len(v1Begin)]) == v1Begin {
			return 0, errDatagramV1
		}
		return 0, ErrNoDatagramHeader
	}
	n, need, err := h.parseV2(b)
	if need > 0 {
		return 0, errDatagramShort
	}
	return n, err
}

// AppendV2Datagram appends a version 2 header, command PROXY, for a datagram
// from src that was received on local; its payload is to follow. The header is
// the same for all datagrams of a session.
func AppendV2Datagram(dst []byte, src, local netip.AddrPort) []byte {
	return appendV2(dst, src, local, transportDgram)
}

// AppendV2DatagramTLVs appends what [AppendV2Datagram] does, and TLVs. Each
// datagram carries them again.
func AppendV2DatagramTLVs(dst []byte, src, local netip.AddrPort, t *TLVs) []byte {
	start := len(dst)
	return t.complete(AppendV2Datagram(dst, src, local), start)
}
