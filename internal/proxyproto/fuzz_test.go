package proxyproto

import (
	"bufio"
	"bytes"
	"net"
	"net/netip"
	"strings"
	"testing"

	peer "github.com/pires/go-proxyproto"
)

// FuzzParse looks for headers that are read otherwise than by
// github.com/pires/go-proxyproto, other than where we know why, and holds the
// parser to what it promises whatever comes.
func FuzzParse(f *testing.F) {
	for _, c := range v1Lines {
		f.Add([]byte(c.line + payload))
	}
	for _, c := range v2Headers {
		f.Add(append(unhex(f, c.header), payload...))
	}
	f.Add(unhex(f, fromHAProxy))
	f.Fuzz(func(t *testing.T, b []byte) {
		untouched := bytes.Clone(b)
		var h Header
		n, need, err := h.Parse(b)
		if !bytes.Equal(b, untouched) {
			t.Fatal("the bytes were changed")
		}
		results := 0
		for _, set := range []bool{n > 0, need > 0, err != nil} {
			if set {
				results++
			}
		}
		if results != 1 || n > min(len(b), MaxHeader) || need > MaxHeader || need > 0 && need <= len(b) {
			t.Fatalf("n=%d, need=%d, error %v of %d bytes", n, need, err, len(b))
		}
		if h.Source.IsValid() != h.Destination.IsValid() && err == nil {
			t.Fatalf("one address only: %+v", h)
		}
		if n > 0 {
			splits(t, b[:n])
			again(t, &h)
		}
		compare(t, b, &h, n, err)
	})
}

// splits checks that each beginning of a header is known for one.
func splits(t *testing.T, header []byte) {
	for i := range header {
		var h Header
		if n, need, err := h.Parse(header[:i]); n != 0 || err != nil || need <= i || need > len(header) {
			t.Fatalf("%d bytes of %d: n=%d, need=%d, error %v", i, len(header), n, need, err)
		}
	}
}

// again checks that what was read goes on to the next receiver unchanged.
func again(t *testing.T, h *Header) {
	if h.Local {
		return
	}
	sent := AppendV2TLVs(nil, h.Source, h.Destination, &TLVs{Keep: h.TLVs, CRC: h.CRC})
	var got Header
	n, _, err := got.Parse(sent)
	if len(h.TLVs) > MaxHeader-v2Fixed-36 {
		return // an IPv4 address may have become one of IPv6
	}
	if err != nil || n != len(sent) {
		t.Fatalf("%x: n=%d, error %v", sent, n, err)
	}
	if got.Source != h.Source || got.Destination != h.Destination || got.CRC != h.CRC || !bytes.Equal(got.ssl, h.ssl) ||
		!bytes.Equal(got.ALPN, h.ALPN) || !bytes.Equal(got.Authority, h.Authority) || !bytes.Equal(got.UniqueID, h.UniqueID) {
		t.Fatalf("%+v became %+v", h, got)
	}
}

func compare(t *testing.T, b []byte, h *Header, n int, err error) {
	r := bufio.NewReaderSize(bytes.NewReader(b), 1<<17)
	theirs, theirErr := peer.Read(r)
	left := r.Buffered() // after the first read, which takes all
	switch v2 := bytes.HasPrefix(b, []byte(signature)); {
	case n > 0 && theirErr == nil:
		if got := len(b) - left; got != n {
			t.Fatalf("%x: they read %d bytes, we %d", b, got, n)
		}
		if theirs.Command.IsLocal() {
			if h.Source.IsValid() {
				t.Fatalf("%x: they read no addresses, we %v", b, h.Source)
			}
			return
		}
		if src, dst := endOf(theirs.SourceAddr), endOf(theirs.DestinationAddr); src != h.Source || dst != h.Destination {
			t.Fatalf("%x: they read %v %v, we %v %v", b, src, dst, h.Source, h.Destination)
		}
		if h.Local {
			t.Fatalf("%x: they do not read LOCAL", b)
		}
		tlvs, err := theirs.TLVs()
		if err != nil {
			t.Fatalf("%x: they refuse the TLVs: %v", b, err)
		}
		for kind, value := range Each(h.TLVs) {
			if Type(tlvs[0].Type) != kind || kind != TypeNoop && !bytes.Equal(tlvs[0].Value, value) {
				t.Fatalf("%x: they read %v, we %#x %x", b, tlvs[0], kind, value)
			}
			tlvs = tlvs[1:]
		}
		if len(tlvs) > 0 {
			t.Fatalf("%x: they read %v in addition", b, tlvs)
		}
	case n > 0:
		// They are stricter, where the specification leaves it to the receiver:
		unspec := v2 && !h.Local && (b[13]>>4 == 0 || b[13]&0xf == 0)   // PROXY with UNSPEC
		ignored := v2 && h.Local                                        // the family of LOCAL, which "is ignored"
		unknown := !v2 && strings.HasPrefix(string(b), "PROXY UNKNOWN") // "must ignore anything presented before the CRLF": they end at LF
		if !unspec && !ignored && !unknown {
			t.Fatalf("%q: they refuse it: %v", b, theirErr)
		}
	case err != nil && theirErr == nil:
		// They are laxer: TLVs are read late or not at all, the checksum not
		// checked, and 4 KiB do not include the first 16 bytes.
		switch err {
		case errTLVOverrun, errTLVTwice, errUniqueID, errCRCLength, errCRC, errSSL, errV2Long:
		default:
			t.Fatalf("%q: they accept it, we say: %v", b, err)
		}
	case err == nil && theirErr == nil:
		t.Fatalf("%q: they accept it, we need more", b)
	}
}

// endOf is an address of theirs in our form.
func endOf(a net.Addr) netip.AddrPort {
	switch a := a.(type) {
	case *net.TCPAddr:
		return unmapped(a.AddrPort())
	case *net.UDPAddr:
		return unmapped(a.AddrPort())
	}
	return netip.AddrPort{}
}
