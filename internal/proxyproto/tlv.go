package proxyproto

import (
	"encoding/binary"
	"hash/crc32"
	"iter"
	"net/netip"
)

// Type is that of a TLV of version 2 (section 2.2). Those that are not listed,
// such as the reserved ones that clouds use (section 2.2.8), are passed on as
// they are.
type Type byte

const (
	TypeALPN      Type = 0x01
	TypeAuthority Type = 0x02
	TypeCRC32C    Type = 0x03
	TypeNoop      Type = 0x04
	TypeUniqueID  Type = 0x05
	TypeSSL       Type = 0x20
	TypeNetNS     Type = 0x30
)

// Types of the TLVs within TypeSSL (section 2.2.6).
const (
	sslVersion Type = 0x21
	sslCN      Type = 0x22
	sslCipher  Type = 0x23
	sslSigAlg  Type = 0x24
	sslKeyAlg  Type = 0x25
)

// Bits of [SSL.Client] (section 2.2.6).
const (
	ClientSSL      = 0x01 // the client connected by TLS
	ClientCertConn = 0x02 // it showed a certificate on this connection
	ClientCertSess = 0x04 // … at least once in the TLS session
)

// SSL is what TypeSSL says: how the client's TLS was terminated (section
// 2.2.6). In received ones the text is whatever the sender put there.
type SSL struct {
	Client  byte   // ClientSSL and others
	Verify  uint32 // 0: the client showed a certificate and it was verified
	Version string // "TLSv1.3"
	CN      string // common name of the client's certificate
	Cipher  string // "TLS_AES_128_GCM_SHA256"
	SigAlg  string // how the certificate shown to the client was signed: "SHA256"
	KeyAlg  string // what its key is: "RSA2048"
}

// sslFixed is the length of what precedes the TLVs within TypeSSL.
const sslFixed = 5

const (
	tlvFixed    = 3   // type and length
	maxUniqueID = 128 // section 2.2.5
	// maxText is the length of the longest authority, ALPN and text of SSL
	// that is sent: names of hosts have 253 characters at most, ALPN protocols
	// 255 bytes (RFC 7301, section 3.1).
	maxText = 255
)

const (
	errTLVOverrun syntaxError = "a TLV reaches beyond the end of the header"
	errTLVTwice   syntaxError = "ALPN, authority, CRC32c, unique ID or SSL occurs twice among the TLVs"
	errUniqueID   syntaxError = "the unique ID is longer than 128 bytes"
	errCRCLength  syntaxError = "the CRC32c is not 4 bytes long"
	errCRC        syntaxError = "the CRC32c is wrong"
	errSSL        syntaxError = "the SSL TLV is too short, or a TLV in it reaches beyond its end"
)

// Each goes through well-formed TLVs, such as [Header.TLVs], and stops where
// one is not.
func Each(tlvs []byte) iter.Seq2[Type, []byte] {
	return func(yield func(Type, []byte) bool) {
		for {
			t, value, rest, ok := next(tlvs)
			if !ok || !yield(t, value) {
				return
			}
			tlvs = rest
		}
	}
}

func next(tlvs []byte) (t Type, value, rest []byte, ok bool) {
	if len(tlvs) < tlvFixed {
		return 0, nil, tlvs, false
	}
	end := tlvFixed + int(binary.BigEndian.Uint16(tlvs[1:]))
	if end > len(tlvs) {
		return 0, nil, tlvs, false
	}
	return Type(tlvs[0]), tlvs[tlvFixed:end:end], tlvs[end:], true
}

// parseTLVs reads h.TLVs, the end of a whole header. Text is not looked into.
func (h *Header) parseTLVs(header []byte) error {
	// The next receiver may take the first of two where this one takes the
	// last: neither is to be trusted.
	const once = 1<<TypeALPN | 1<<TypeAuthority | 1<<TypeCRC32C | 1<<TypeUniqueID | 1<<TypeSSL
	var seen uint64
	rest := h.TLVs
	for len(rest) > 0 {
		at := len(header) - len(rest)
		t, value, after, ok := next(rest)
		if !ok {
			return errTLVOverrun
		}
		rest = after
		bit := uint64(once) & (1 << t)
		if seen&bit != 0 {
			return errTLVTwice
		}
		seen |= bit
		switch t {
		case TypeALPN:
			h.ALPN = value
		case TypeAuthority:
			h.Authority = value
		case TypeUniqueID:
			if len(value) > maxUniqueID {
				return errUniqueID
			}
			h.UniqueID = value
		case TypeCRC32C:
			if len(value) != 4 {
				return errCRCLength
			}
			if checksum(header, at+tlvFixed) != binary.BigEndian.Uint32(value) {
				return errCRC
			}
			h.CRC = true
		case TypeSSL:
			if !wellFormedSSL(value) {
				return errSSL
			}
			h.ssl = value
		}
	}
	return nil
}

func wellFormedSSL(value []byte) bool {
	if len(value) < sslFixed {
		return false
	}
	rest, ok := value[sslFixed:], true
	for ok && len(rest) > 0 {
		_, _, rest, ok = next(rest)
	}
	return ok
}

// SSL returns what the sender says of the client's TLS, if it does.
func (h *Header) SSL() (s SSL, ok bool) {
	if h.ssl == nil {
		return s, false
	}
	s.Client, s.Verify = h.ssl[0], binary.BigEndian.Uint32(h.ssl[1:])
	for t, value := range Each(h.ssl[sslFixed:]) {
		if field := s.field(t); field != nil {
			*field = string(value)
		}
	}
	return s, true
}

func (s *SSL) field(t Type) *string {
	switch t {
	case sslVersion:
		return &s.Version
	case sslCN:
		return &s.CN
	case sslCipher:
		return &s.Cipher
	case sslSigAlg:
		return &s.SigAlg
	case sslKeyAlg:
		return &s.KeyAlg
	}
	return nil
}

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	zeroes     = make([]byte, 4)
)

// checksum is the CRC32c of a header whose checksum field, at an offset, counts
// as zero (section 2.2.3).
func checksum(header []byte, field int) uint32 {
	sum := crc32.Update(0, castagnoli, header[:field])
	sum = crc32.Update(sum, castagnoli, zeroes)
	return crc32.Update(sum, castagnoli, header[field+len(zeroes):])
}

// TLVs is what a version 2 header says besides addresses. What is empty is not
// sent, and neither is what is too long, for half a name is another name:
// above 128 bytes of unique ID, above 255 of anything else.
type TLVs struct {
	Authority string // the name that the client asked for, from SNI
	ALPN      string // the protocol that was agreed on
	UniqueID  string
	SSL       *SSL // TLS that was terminated here
	// Keep is what came with the client's own header ([Header.TLVs]) and goes
	// on to the server: all but checksum, padding, and what is told anew above.
	// With SSL set that goes for ALPN, too: it spoke of another TLS. What makes
	// the header longer than [MaxHeader] is left out.
	Keep []byte
	CRC  bool // adds a checksum
}

// AppendV2TLVs appends what [AppendV2] does, and TLVs.
func AppendV2TLVs(dst []byte, src, local netip.AddrPort, t *TLVs) []byte {
	start := len(dst)
	return t.complete(AppendV2(dst, src, local), start)
}

// complete adds t to the header that begins at start.
func (t *TLVs) complete(dst []byte, start int) []byte {
	dst = appendTLV(dst, TypeALPN, t.ALPN, maxText)
	dst = appendTLV(dst, TypeAuthority, t.Authority, maxText)
	dst = appendTLV(dst, TypeUniqueID, t.UniqueID, maxUniqueID)
	if t.SSL != nil {
		dst = t.SSL.appendTo(dst)
	}
	most := MaxHeader
	if t.CRC {
		most -= tlvFixed + len(zeroes)
	}
	for kind, value := range Each(t.Keep) {
		if !t.replaces(kind) && len(dst)-start+tlvFixed+len(value) <= most {
			dst = append(dst, byte(kind), byte(len(value)>>8), byte(len(value)))
			dst = append(dst, value...)
		}
	}
	if t.CRC {
		dst = append(dst, byte(TypeCRC32C), 0, byte(len(zeroes)))
		dst = append(dst, zeroes...)
	}
	header := dst[start:]
	binary.BigEndian.PutUint16(header[v2Fixed-2:], uint16(len(header)-v2Fixed))
	if t.CRC {
		field := len(header) - len(zeroes)
		binary.BigEndian.PutUint32(header[field:], checksum(header, field))
	}
	return dst
}

// replaces reports whether a received TLV is not to be passed on.
func (t *TLVs) replaces(received Type) bool {
	switch received {
	case TypeCRC32C, TypeNoop:
		return true
	case TypeALPN:
		return t.ALPN != "" || t.SSL != nil
	case TypeAuthority:
		return t.Authority != ""
	case TypeUniqueID:
		return t.UniqueID != ""
	case TypeSSL:
		return t.SSL != nil
	}
	return false
}

func appendTLV(dst []byte, t Type, value string, most int) []byte {
	if value == "" || len(value) > most {
		return dst
	}
	dst = append(dst, byte(t), byte(len(value)>>8), byte(len(value)))
	return append(dst, value...)
}

func (s *SSL) appendTo(dst []byte) []byte {
	dst = append(dst, byte(TypeSSL), 0, 0)
	start := len(dst)
	dst = append(dst, s.Client)
	dst = binary.BigEndian.AppendUint32(dst, s.Verify)
	dst = appendTLV(dst, sslVersion, s.Version, maxText)
	dst = appendTLV(dst, sslCN, s.CN, maxText)
	dst = appendTLV(dst, sslCipher, s.Cipher, maxText)
	dst = appendTLV(dst, sslSigAlg, s.SigAlg, maxText)
	dst = appendTLV(dst, sslKeyAlg, s.KeyAlg, maxText)
	binary.BigEndian.PutUint16(dst[start-2:], uint16(len(dst)-start))
	return dst
}
