package tlsrecord

import "crypto/cipher"

// Wrote tells c of a record that has been sent already, by whoever did the
// handshake. It reports whether that was sealed with the outgoing keys, as the
// next of them, and if so counts it. Only for TLS 1.3.
func (c *Conn) Wrote(rec []byte) bool {
	n, err := c.Size(rec)
	if err != nil || n == 0 || n != len(rec) {
		return false
	}
	h := &c.out
	if h.aead == nil {
		h.aead = c.p.mustAEAD(&h.key)
	}
	h.maskIV()
	ok := opens(h.aead, h.iv[:], rec)
	h.maskIV()
	if ok {
		h.seq++
	}
	return ok
}

func opens(a cipher.AEAD, nonce, rec []byte) bool {
	text, err := a.Open(make([]byte, 0, len(rec)), nonce, rec[HeaderLen:], rec[:HeaderLen])
	clear(text)
	return err == nil
}
