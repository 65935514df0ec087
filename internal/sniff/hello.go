package sniff

import (
	"errors"
	"iter"
)

// Errors of a ClientHello. The sections are those of RFC 8446 if not said otherwise.
var (
	errHelloCut     = errors.New("the ClientHello is incomplete")
	errHelloLong    = errors.New("the ClientHello is longer than 64 KiB")
	errHelloRecord  = errors.New("the ClientHello is interrupted by a TLS record that is empty, too long or of another type")
	errHelloAlert   = errors.New("a TLS alert comes before the ClientHello")
	errHelloType    = errors.New("the first TLS message is no ClientHello")
	errHelloLengths = errors.New("the lengths inside the ClientHello contradict each other")
	errHelloTwice   = errors.New("the ClientHello has an extension twice")
	errHelloSNI     = errors.New("the server name extension of the ClientHello is malformed, or has several names")
	errHelloName    = errors.New("the server name in the ClientHello is not a host name")
	errHelloALPN    = errors.New("the ALPN extension of the ClientHello is malformed")
)

const (
	recordAlert     = 21
	recordHandshake = 22
	recordHeader    = 5
	recordMax       = 1 << 14 // bytes of plain text
	clientHello     = 1
	messageHeader   = 4

	extServerName = 0
	extALPN       = 16
)

// hello looks for a ClientHello in as many records as it takes (RFC 8446,
// section 5.1). The version of the records is ignored, as it must be; but with
// the usual one they are TLS for sure, and nothing that is wrong with them
// makes them Unknown.
func (in *Info) hello(b []byte) (v verdict, need int, err error) {
	if b[0] == recordAlert {
		return alert(b)
	}
	if len(b) < 2 {
		return maybe, 2, nil
	}
	if b[1] != 3 {
		if len(b) >= 5 && (recordLen(b) == 0 || recordLen(b) > recordMax) {
			return no, 0, nil
		}
		if len(b) <= recordHeader {
			return maybe, len(b) + 1, nil
		}
		if b[recordHeader] != clientHello {
			return no, 0, nil
		}
	}
	var head [messageHeader]byte
	total := messageHeader // length of the message, as far as it is known
	have := 0              // of which there are in the records before pos
	pos, records := 0, 0
	for have < total {
		rec := b[min(pos, len(b)):]
		if len(rec) > 0 && rec[0] != recordHandshake {
			return sure, 0, errHelloRecord
		}
		if len(rec) < recordHeader {
			return await(pos + wire(total-have))
		}
		n := recordLen(rec)
		if n == 0 || n > recordMax {
			return sure, 0, errHelloRecord
		}
		payload := rec[recordHeader:min(len(rec), recordHeader+n)]
		if have < messageHeader {
			if total, err = messageLen(head[:have+copy(head[have:], payload)]); err != nil {
				return sure, 0, err
			}
		}
		n = min(n, total-have) // what follows the message in its record is not ours
		end := pos + recordHeader + n
		if need := end + wire(total-have-n); need > MaxHello || len(payload) < n {
			return await(need)
		}
		have += n
		pos = end
		records++
	}
	if records > 1 {
		join(b[:pos])
	}
	in.HelloLen = pos
	if err := in.parse(b[recordHeader+messageHeader : recordHeader+total]); err != nil {
		*in = Info{}
		return sure, 0, err
	}
	return yes, 0, nil
}

// Hello reads a ClientHello that comes without records, as in the CRYPTO frames
// of QUIC (RFC 9001, section 4.1.3): b is the handshake message from its first
// byte on. The rules are those of [Info.Sniff], so that a name or a protocol is
// the same one on TCP and on UDP.
//
// A need of zero says that it is decided; otherwise need is how many bytes there
// must be to get further: more than len(b), at most MaxHello. in.Protocol is
// QUIC in either case. What follows the message in b is ignored. b is spoiled
// once it is decided, and only then.
func (in *Info) Hello(b []byte) (need int, err error) {
	*in = Info{Protocol: QUIC}
	total, err := messageLen(b[:min(len(b), messageHeader)])
	switch {
	case err != nil:
		return 0, err
	case total > MaxHello:
		return 0, errHelloLong
	case len(b) < total:
		return total, nil
	}
	in.HelloLen = total
	if err := in.parse(b[messageHeader:total]); err != nil {
		*in = Info{Protocol: QUIC}
		return 0, err
	}
	return 0, nil
}

// messageLen returns the length of a ClientHello, its header included, of which
// head has the first bytes; as long as the header is incomplete, the length of that.
func messageLen(head []byte) (int, error) {
	switch {
	case len(head) > 0 && head[0] != clientHello:
		return 0, errHelloType
	case len(head) < messageHeader:
		return messageHeader, nil
	}
	return messageHeader + int(head[1])<<16 + int(head[2])<<8 + int(head[3]), nil
}

func recordLen(b []byte) int { return int(b[3])<<8 | int(b[4]) }

// wire returns how many bytes of records n bytes of a message are at least.
func wire(n int) int { return n + (n+recordMax-1)/recordMax*recordHeader }

func await(need int) (verdict, int, error) {
	if need > MaxHello {
		return sure, 0, errHelloLong
	}
	return sure, need, nil
}

// join moves the payloads of the records in b together, behind the header of
// the first one.
func join(b []byte) {
	for to, pos := recordHeader, 0; pos < len(b); {
		payload := b[pos+recordHeader : min(pos+recordHeader+recordLen(b[pos:]), len(b))]
		pos += recordHeader + len(payload)
		to += copy(b[to:], payload)
	}
}

// alert refuses an alert ahead of the ClientHello: some servers, crypto/tls
// among them, skip warnings there, and would then see a name that we do not.
func alert(b []byte) (verdict, int, error) {
	switch {
	case len(b) >= 2 && b[1] >= 0x10, len(b) >= 4 && b[3] != 0, len(b) >= 5 && b[4] != 2:
		return no, 0, nil
	case len(b) < 5:
		return maybe, len(b) + 1, nil
	}
	return sure, 0, errHelloAlert
}

// parse reads the body of a ClientHello: section 4.1.2.
func (in *Info) parse(s []byte) error {
	const fixed = 2 + 32 // version and random
	if len(s) < fixed {
		return errHelloLengths
	}
	_, s, ok1 := vector8(s[fixed:]) // session ID
	_, s, ok2 := vector16(s)        // cipher suites
	_, s, ok3 := vector8(s)         // compression methods
	if !ok1 || !ok2 || !ok3 {
		return errHelloLengths
	}
	if len(s) == 0 { // no extensions before TLS 1.3
		return nil
	}
	exts, s, ok := vector16(s)
	if !ok || len(s) != 0 {
		return errHelloLengths
	}
	var names, protocols bool
	for len(exts) > 0 {
		if len(exts) < 2 {
			return errHelloLengths
		}
		kind := int(exts[0])<<8 | int(exts[1])
		var data []byte
		if data, exts, ok = vector16(exts[2:]); !ok {
			return errHelloLengths
		}
		var err error
		switch kind {
		case extServerName:
			if names {
				return errHelloTwice // section 4.2
			}
			names = true
			err = in.serverName(data)
		case extALPN:
			if protocols {
				return errHelloTwice
			}
			protocols = true
			err = in.alpn(data)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// serverName: RFC 6066, section 3. Clients that put an IP address there, which
// they must not, are common enough among monitors and old libraries. They know
// no name, and are treated so; servers do the same.
func (in *Info) serverName(data []byte) error {
	list, rest, ok := vector16(data)
	if !ok || len(rest) != 0 || len(list) == 0 {
		return errHelloSNI
	}
	var found bool
	for len(list) > 0 {
		kind := list[0]
		var name []byte
		if name, list, ok = vector16(list[1:]); !ok || len(name) == 0 {
			return errHelloSNI
		}
		if kind != 0 { // not a host_name; others were never defined
			continue
		}
		if found {
			return errHelloSNI
		}
		found = true
		if isIPv6(name) {
			continue
		}
		if name, ok = hostName(name); !ok {
			return errHelloName
		}
		if !isIPv4(name) {
			in.ServerName = name
		}
	}
	return nil
}

// alpn: RFC 7301, section 3.1.
func (in *Info) alpn(data []byte) error {
	list, rest, ok := vector16(data)
	if !ok || len(rest) != 0 || len(list) == 0 {
		return errHelloALPN
	}
	for s := list; len(s) > 0; {
		var p []byte
		if p, s, ok = vector8(s); !ok || len(p) == 0 {
			return errHelloALPN
		}
	}
	in.ALPN = ALPNList(list)
	return nil
}

// ALPNList is the list of protocols that a client offers, most preferred
// first, each behind a byte with its length.
type ALPNList []byte

// All yields the protocols.
func (l ALPNList) All() iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for s := []byte(l); len(s) > 0; {
			p, rest, ok := vector8(s)
			if !ok || !yield(p) {
				return
			}
			s = rest
		}
	}
}

// Len returns how many there are.
func (l ALPNList) Len() (n int) {
	for range l.All() {
		n++
	}
	return n
}

// vector8 cuts off a vector behind a length of one byte.
func vector8(s []byte) (v, rest []byte, ok bool) {
	if len(s) < 1 || len(s)-1 < int(s[0]) {
		return nil, nil, false
	}
	n := 1 + int(s[0])
	return s[1:n:n], s[n:], true
}

// vector16 cuts off a vector behind a length of two bytes.
func vector16(s []byte) (v, rest []byte, ok bool) {
	if len(s) < 2 || len(s)-2 < int(s[0])<<8|int(s[1]) {
		return nil, nil, false
	}
	n := 2 + (int(s[0])<<8 | int(s[1]))
	return s[2:n:n], s[n:], true
}
