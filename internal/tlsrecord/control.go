package tlsrecord

import "slices"

// maxUseless is how many records or handshake messages in a row may come
// without application data. Without a bound a peer could keep us decrypting,
// and deriving keys, for nothing. crypto/tls draws the same line.
const maxUseless = 16

// Event is what a control record means to its session.
type Event uint8

const (
	None    Event = iota
	Closed        // close_notify: the peer sends no more, and nothing after it may be read
	Rekeyed       // a KeyUpdate: the next record comes under new keys
)

// Handshake messages that may come after the handshake (RFC 8446, section 4;
// RFC 5246, section 7.4).
const (
	helloRequest       = 0
	clientHello        = 1
	newSessionTicket   = 4
	certificateRequest = 13
	keyUpdate          = 24
)

const (
	messageHeader = 4 // of a handshake message

	// A ticket has fixed fields and a label of at least one byte (RFC 8446,
	// section 4.6.1). crypto/tls takes no handshake message above 64 KiB.
	minTicket = 14
	maxTicket = 1 << 16
)

// Due reports whether control records must be sent before the next
// application data: see AppendDue.
func (c *Conn) Due() bool { return c.updateDue || c.out.seq >= c.RekeyAfter }

// AppendDue appends the record that is due, if any: a KeyUpdate, because the
// peer has asked for one, however often (RFC 8446, section 4.6.3), or because
// our key has sealed enough (section 5.5). Records that are sealed later must
// be sent later.
func (c *Conn) AppendDue(dst []byte) []byte {
	if !c.Due() {
		return dst
	}
	msg := [...]byte{keyUpdate, 0, 0, 1, 0}
	dst = c.appendRecord(dst, Handshake, msg[:])
	c.updated()
	return dst
}

// AppendKeyUpdate appends a KeyUpdate message, unsealed, for a kernel to seal
// and send as a record of type Handshake. The outgoing keys have changed when
// it returns, and are to be set with the sequence number 0 once the message is
// sent. In TLS 1.2 there is no such message, and dst stays as it is.
func (c *Conn) AppendKeyUpdate(dst []byte) []byte {
	if !c.p.tls13 {
		return dst
	}
	c.updated()
	return append(dst, keyUpdate, 0, 0, 1, 0)
}

// updated switches the outgoing keys after a KeyUpdate.
func (c *Conn) updated() {
	c.updateDue = false
	c.out.next(c.p)
}

// AppendAlert appends a sealed alert.
func (c *Conn) AppendAlert(dst []byte, alert uint8) []byte {
	msg := [...]byte{AlertLevel(alert), alert}
	return c.appendRecord(dst, Alert, msg[:])
}

func (c *Conn) appendRecord(dst []byte, typ byte, text []byte) []byte {
	head, at := c.Header(), len(dst)
	n := head + len(text) + c.Trailer()
	dst = slices.Grow(dst, n)[:at+n]
	copy(dst[at+head:], text)
	c.Seal(typ, dst[at:], len(text))
	return dst
}

// Data tells that a record with n bytes of application data has come. Open
// calls it; a user of kernel TLS does so for what the kernel has opened, at
// least for every empty record.
func (c *Conn) Data(n int) error {
	if c.msgLen != 0 {
		return unexpected("application data within a handshake message") // RFC 8446, section 5.1
	}
	if n == 0 {
		return c.noProgress()
	}
	c.useless = 0
	return nil
}

// noProgress counts a record or message without application data.
func (c *Conn) noProgress() error {
	if c.useless++; c.useless > maxUseless {
		c.useless = maxUseless
		return unexpected("%d records in a row without application data", maxUseless+1)
	}
	return nil
}

// Control takes a record that is not application data, decrypted by Open or by
// the kernel. Handshake messages may be split over records or share them; only
// a few bytes are kept of one that is incomplete.
func (c *Conn) Control(typ byte, plain []byte) (Event, error) {
	switch typ {
	case Alert:
		return c.alert(plain)
	case Handshake:
		if len(plain) == 0 {
			return None, unexpected("empty handshake record") // RFC 8446, section 5.1
		}
		return c.handshake(plain)
	}
	return None, unexpected("control record of type %d", typ)
}

func (c *Conn) alert(plain []byte) (Event, error) {
	switch {
	case c.msgLen != 0:
		return None, unexpected("alert within a handshake message")
	case len(plain) != 2:
		return None, unexpected("alert of %d bytes", len(plain))
	case plain[1] == AlertCloseNotify:
		return Closed, nil
	case c.p.tls13:
		// TLS 1.3 goes by the description, not the level: only user_canceled
		// is no error (RFC 8446, section 6), and some peers send it before
		// each close_notify.
		if plain[1] == AlertUserCanceled {
			return None, c.noProgress()
		}
	case plain[0] == levelWarning:
		return None, c.noProgress()
	case plain[0] != levelFatal:
		return None, unexpected("alert of level %d", plain[0])
	}
	return None, &AlertError{Alert: plain[1], Remote: true}
}

func (c *Conn) handshake(b []byte) (event Event, err error) {
	for len(b) > 0 {
		if c.msgLen < messageHeader {
			if c.msgLen == 0 {
				if err := c.expect(b[0]); err != nil {
					return None, err
				}
				c.msgType = b[0]
			} else {
				c.skip = c.skip<<8 | uint32(b[0])
			}
			c.msgLen++
			b = b[1:]
			if c.msgLen < messageHeader {
				continue
			}
			if err := checkLength(c.msgType, c.skip); err != nil {
				return None, err
			}
		} else {
			if c.msgType == keyUpdate {
				c.request = b[0]
			}
			n := min(c.skip, uint32(len(b)))
			c.skip -= n
			b = b[n:]
		}
		if c.skip > 0 {
			continue
		}
		c.msgLen = 0
		if err := c.noProgress(); err != nil {
			return None, err
		}
		if c.msgType != keyUpdate {
			continue // a ticket we have no use for, or a HelloRequest, which may be ignored (RFC 5246, section 7.4.1.1)
		}
		switch {
		case len(b) > 0:
			return None, unexpected("handshake message in one record with the KeyUpdate before it") // RFC 8446, section 5.1
		case c.request > 1:
			return None, &AlertError{Alert: AlertIllegalParameter, Reason: "KeyUpdate that neither asks for an update nor does not"}
		case c.request == 1:
			c.updateDue = true
		}
		c.in.next(c.p)
		event = Rekeyed
	}
	return event, nil
}

// expect says whether a handshake message of this type may come now.
func (c *Conn) expect(typ byte) error {
	switch {
	case c.p.tls13 && typ == keyUpdate:
		return nil
	case c.p.tls13 && typ == newSessionTicket && c.role == Client:
		return nil
	case c.p.tls13 && typ == certificateRequest && c.role == Client:
		return unexpected("request for a certificate, which post_handshake_auth was not offered for")
	case !c.p.tls13 && typ == helloRequest && c.role == Client:
		return nil
	case !c.p.tls13 && typ == clientHello && c.role == Server:
		return &AlertError{Alert: AlertNoRenegotiation, Reason: "renegotiation"}
	}
	return unexpected("handshake message of type %d", typ)
}

func checkLength(typ byte, n uint32) error {
	least, most := uint32(0), uint32(0)
	switch typ {
	case keyUpdate:
		least, most = 1, 1
	case newSessionTicket:
		least, most = minTicket, maxTicket
	}
	if n < least || n > most {
		return decodeError("handshake message of type %d and %d bytes", typ, n)
	}
	return nil
}
