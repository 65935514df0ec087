package tlsrecord

import (
	"bytes"
	"crypto/tls"
	"encoding/hex"
	"strings"
	"testing"
)

func unhex(s string) []byte {
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		panic(err)
	}
	return b
}

// RFC 8448, section 3: the simple 1-RTT handshake. Before its application
// data, the server has sent a ticket.
func TestRFC8448(t *testing.T) {
	t.Parallel()
	clientSecret := unhex("9e40646ce79a7f9dc05af8889bce6552 875afa0b06df0087f792ebb7c17504a5")
	serverSecret := unhex("a11af9f05531f856ad47116b45a95032 8204b4f44bfb6b3a4b4f1f3fcb631643")
	text := make([]byte, 50)
	for i := range text {
		text[i] = byte(i)
	}
	client, err := New13(Client, tls.TLS_AES_128_GCM_SHA256, serverSecret, clientSecret, 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	server, err := New13(Server, tls.TLS_AES_128_GCM_SHA256, clientSecret, serverSecret, 0, 1)
	if err != nil {
		t.Fatal(err)
	}
	for out, want := range map[bool]struct{ key, iv string }{
		true:  {"17422dda596ed5d9acd890e3c63f5051", "5b78923dee08579033e523d9"},
		false: {"9f02283b6c9c07efc26bb9f2ac92e356", "cf782b88dd83549aadf1e984"},
	} {
		k := client.Keys(out)
		if !bytes.Equal(k.Key, unhex(want.key)) || !bytes.Equal(k.IV, unhex(want.iv)) {
			t.Errorf("out %v: key %x, IV %x", out, k.Key, k.IV)
		}
	}
	for _, step := range []struct {
		name     string
		from, to *Conn
		typ      byte
		plain    []byte
		event    Event
		rec      string
	}{
		{"client data", client, server, ApplicationData, text, None, `17 03 03 00 43
			a2 3f 70 54 b6 2c 94 d0 af fa fe 82 28 ba 55 cb ef ac ea 42 f9 14 aa 66 bc ab 3f 2b 98 19 a8 a5 b4
			6b 39 5b d5 4a 9a 20 44 1e 2b 62 97 4e 1f 5a 62 92 a2 97 70 14 bd 1e 3d ea e6 3a ee bb 21 69 49 15 e4`},
		{"server data", server, client, ApplicationData, text, None, `17 03 03 00 43
			2e 93 7e 11 ef 4a c7 40 e5 38 ad 36 00 5f c4 a4 69 32 fc 32 25 d0 5f 82 aa 1b 36 e3 0e fa f9 7d 90
			e6 df fc 60 2d cb 50 1a 59 a8 fc c4 9c 4b f2 e5 f0 a2 1c 00 47 c2 ab f3 32 54 0d d0 32 e1 67 c2 95 5d`},
		{"client alert", client, server, Alert, []byte{1, 0}, Closed, "17 03 03 00 13 c9 87 27 60 65 56 66 b7 4d 7f f1 15 3e fd 6d b6 d0 b0 e3"},
		{"server alert", server, client, Alert, []byte{1, 0}, Closed, "17 03 03 00 13 b5 8f d6 71 66 eb f5 99 d2 47 20 cf be 7e fa 7a 88 64 a9"},
	} {
		sealed := seal(step.from, step.typ, step.plain)
		if !bytes.Equal(sealed, unhex(step.rec)) {
			t.Errorf("%s: sealed as\n%x, want\n%x", step.name, sealed, unhex(step.rec))
		}
		typ, plain, event, err := take1(step.to, unhex(step.rec))
		if err != nil || typ != step.typ || !bytes.Equal(plain, step.plain) || event != step.event {
			t.Errorf("%s: opened as type %d, %x, event %v, error %v", step.name, typ, plain, event, err)
		}
	}
}
