package tlsrecord

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"errors"
	"fmt"
	"hash"
	"math"

	"golang.org/x/crypto/chacha20poly1305"
)

const (
	maxKey    = 32
	maxSecret = 48 // the longest hash is SHA-384
)

// gcmRecords is how many records one AES-GCM key may seal: RFC 8446, section
// 5.5 allows 2^24.5 of full size. The difference is slack for records that are
// sealed between two looks at Due.
const gcmRecords = 1 << 24

// params is what all sessions of one version and suite share.
type params struct {
	version, suite  uint16
	keyLen          uint8
	header, trailer uint8
	tls13           bool
	explicit        bool // part of the nonce is sent (AES-GCM in TLS 1.2)
	chacha          bool
	sha384          bool
	minLen, maxLen  uint16 // of a record after its header
	records         uint64 // RekeyAfter
}

// wiped refuses to make an AEAD, because no cipher has a key of length 0.
var wiped params

var (
	aes128GCM = params{keyLen: 16, explicit: true, records: gcmRecords}
	aes256GCM = params{keyLen: 32, explicit: true, records: gcmRecords, sha384: true}
	chacha20  = params{keyLen: 32, chacha: true, records: math.MaxUint64}
)

// suites holds every suite with an AEAD that crypto/tls negotiates. How the
// keys were exchanged makes no difference to the records.
var suites = []*params{
	suite13(tls.TLS_AES_128_GCM_SHA256, aes128GCM),
	suite13(tls.TLS_AES_256_GCM_SHA384, aes256GCM),
	suite13(tls.TLS_CHACHA20_POLY1305_SHA256, chacha20),
	suite12(tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, aes128GCM),
	suite12(tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, aes128GCM),
	suite12(tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, aes256GCM),
	suite12(tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, aes256GCM),
	suite12(tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, chacha20),
	suite12(tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256, chacha20),
	suite12(tls.TLS_RSA_WITH_AES_128_GCM_SHA256, aes128GCM),
	suite12(tls.TLS_RSA_WITH_AES_256_GCM_SHA384, aes256GCM),
}

func suite13(id uint16, p params) *params {
	p.version, p.suite = tls.VersionTLS13, id
	p.tls13, p.explicit = true, false
	p.header, p.trailer = HeaderLen, 1+tagLen
	// A plaintext without even a content type can be authentic: Open says
	// what is wrong with it.
	p.minLen, p.maxLen = tagLen, MaxPlaintext+1+tagLen
	return &p
}

func suite12(id uint16, p params) *params {
	p.version, p.suite = tls.VersionTLS12, id
	p.header, p.trailer = HeaderLen, tagLen
	p.minLen, p.maxLen = tagLen, MaxPlaintext+tagLen
	if p.explicit {
		p.header += explicitLen
		p.minLen += explicitLen
		p.maxLen += explicitLen
	}
	p.records = math.MaxUint64 // TLS 1.2 has no KeyUpdate
	return &p
}

func find(version, suite uint16) *params {
	for _, p := range suites {
		if p.version == version && p.suite == suite {
			return p
		}
	}
	return nil
}

// Supported reports whether sessions of this version and cipher suite can be
// taken over.
func Supported(version, suite uint16) bool { return find(version, suite) != nil }

// New13 takes over a TLS 1.3 session. The secrets are the application traffic
// secrets (RFC 8446, section 7.1): inSecret that of the peer, outSecret ours.
// They are copied. inSeq and outSeq are the sequence numbers of the next
// records, counted from the first under these secrets.
func New13(role Role, suite uint16, inSecret, outSecret []byte, inSeq, outSeq uint64) (*Conn, error) {
	p := find(tls.VersionTLS13, suite)
	if p == nil {
		return nil, fmt.Errorf("tlsrecord: %s is no cipher suite of TLS 1.3 known here", tls.CipherSuiteName(suite))
	}
	if n := p.hashLen(); len(inSecret) != n || len(outSecret) != n {
		return nil, fmt.Errorf("tlsrecord: traffic secrets of %d and %d bytes, want %d", len(inSecret), len(outSecret), n)
	}
	c := &Conn{p: p, role: role, RekeyAfter: p.records}
	copy(c.in.secret[:], inSecret)
	copy(c.out.secret[:], outSecret)
	c.in.derive(p)
	c.out.derive(p)
	return c.start(inSeq, outSeq)
}

// New12 takes over a TLS 1.2 session, of which master is the master secret.
// Sequence numbers count from ChangeCipherSpec: after Finished they are 1.
func New12(role Role, suite uint16, master, clientRandom, serverRandom []byte, inSeq, outSeq uint64) (*Conn, error) {
	p := find(tls.VersionTLS12, suite)
	if p == nil {
		return nil, fmt.Errorf("tlsrecord: %s is no AEAD cipher suite of TLS 1.2 known here", tls.CipherSuiteName(suite))
	}
	if len(master) != 48 || len(clientRandom) != 32 || len(serverRandom) != 32 {
		return nil, fmt.Errorf("tlsrecord: master secret of %d bytes and randoms of %d and %d, want 48, 32 and 32", len(master), len(clientRandom), len(serverRandom))
	}
	c := &Conn{p: p, role: role, RekeyAfter: p.records}
	client, server := &c.in, &c.out
	if role == Client {
		client, server = server, client
	}
	// RFC 5246, section 6.3: client key, server key, client IV, server IV;
	// AEADs have no MAC keys.
	k, iv := int(p.keyLen), p.fixedIV()
	var block [2*maxKey + 2*ivLen]byte
	p.prf12(block[:2*k+2*iv], master, serverRandom, clientRandom)
	b := block[:]
	for _, dst := range [][]byte{client.key[:k], server.key[:k], client.iv[:iv], server.iv[:iv]} {
		b = b[copy(dst, b):]
	}
	clear(block[:])
	return c.start(inSeq, outSeq)
}

func (c *Conn) start(inSeq, outSeq uint64) (*Conn, error) {
	if inSeq > maxSeq || outSeq > maxSeq {
		c.Wipe()
		return nil, fmt.Errorf("tlsrecord: sequence numbers %d and %d leave too few records", inSeq, outSeq)
	}
	c.in.seq, c.out.seq = inSeq, outSeq
	for _, h := range []*half{&c.in, &c.out} {
		var err error
		if h.aead, err = c.p.newAEAD(&h.key); err != nil {
			c.Wipe()
			return nil, fmt.Errorf("tlsrecord: %w", err)
		}
	}
	return c, nil
}

func (p *params) newAEAD(key *[maxKey]byte) (cipher.AEAD, error) {
	if p.chacha {
		return chacha20poly1305.New(key[:p.keyLen])
	}
	block, err := aes.NewCipher(key[:p.keyLen])
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// mustAEAD makes an AEAD again that start could make before.
func (p *params) mustAEAD(key *[maxKey]byte) cipher.AEAD {
	if p.keyLen == 0 {
		panic("tlsrecord: used after Wipe")
	}
	a, err := p.newAEAD(key)
	if err != nil {
		panic(err)
	}
	return a
}

// fixedIV is the number of bytes of the IV that are derived from the secrets.
func (p *params) fixedIV() int {
	if p.explicit {
		return ivLen - explicitLen
	}
	return ivLen
}

func (p *params) hash() func() hash.Hash {
	if p.sha384 {
		return sha512.New384
	}
	return sha256.New
}

func (p *params) hashLen() int {
	if p.sha384 {
		return sha512.Size384
	}
	return sha256.Size
}

// derive makes key and IV from the traffic secret (RFC 8446, section 7.3).
func (h *half) derive(p *params) {
	secret := h.secret[:p.hashLen()]
	p.expand(h.key[:p.keyLen], secret, "key")
	p.expand(h.iv[:], secret, "iv")
	h.seq, h.aead = 0, nil
}

// next replaces the traffic secret by its successor (RFC 8446, section 7.2).
func (h *half) next(p *params) {
	var secret [maxSecret]byte
	n := p.hashLen()
	p.expand(secret[:n], h.secret[:n], "traffic upd")
	h.secret = secret
	clear(secret[:])
	h.derive(p)
}

// expand is HKDF-Expand-Label with an empty context (RFC 8446, section 7.1).
func (p *params) expand(dst, secret []byte, label string) {
	info := make([]byte, 0, 32)
	info = append(info, byte(len(dst)>>8), byte(len(dst)), byte(len("tls13 ")+len(label)))
	info = append(info, "tls13 "...)
	info = append(info, label...)
	info = append(info, 0)
	b, err := hkdf.Expand(p.hash(), secret, string(info), len(dst))
	if err != nil {
		panic(err) // lengths are constants of the suite
	}
	copy(dst, b)
	clear(b)
}

// prf12 fills dst with the key expansion of a master secret (RFC 5246,
// section 5: P_hash).
func (p *params) prf12(dst, master, serverRandom, clientRandom []byte) {
	mac := hmac.New(p.hash(), master)
	sum := func(parts ...[]byte) []byte {
		mac.Reset()
		for _, b := range parts {
			mac.Write(b)
		}
		return mac.Sum(nil)
	}
	label := []byte("key expansion")
	a := sum(label, serverRandom, clientRandom)
	for len(dst) > 0 {
		b := sum(a, label, serverRandom, clientRandom)
		dst = dst[copy(dst, b):]
		clear(b)
		a = sum(a)
	}
}

// Keys is what kernel TLS has to be told about one direction.
type Keys struct {
	Version, Suite uint16
	Key            []byte
	IV             []byte // 12 bytes; the 4 of the salt for AES-GCM in TLS 1.2
	Seq            uint64 // of the next record
}

// Keys returns the keys of the outgoing or the incoming direction. Key and IV
// are the Conn's own memory: they are to be used before its next method call.
func (c *Conn) Keys(out bool) Keys {
	h := c.half(out)
	return Keys{
		Version: c.p.version,
		Suite:   c.p.suite,
		Key:     h.key[:c.p.keyLen],
		IV:      h.iv[:c.p.fixedIV()],
		Seq:     h.seq,
	}
}

// SetSeq corrects the sequence number of the next record in a direction, after
// somebody else (the kernel) has sealed or opened some.
func (c *Conn) SetSeq(out bool, seq uint64) error {
	if seq > maxSeq {
		return errors.New("tlsrecord: the sequence number leaves too few records")
	}
	c.half(out).seq = seq
	return nil
}

func (c *Conn) half(out bool) *half {
	if out {
		return &c.out
	}
	return &c.in
}
