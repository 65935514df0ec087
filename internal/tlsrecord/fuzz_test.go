package tlsrecord

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
)

// Whatever comes as a record or in one, Open and Control only ever return an
// *AlertError; what was sealed is opened again; what was changed is not.
func FuzzOpen(f *testing.F) {
	f.Add(byte(0), byte(ApplicationData), []byte("hello"), uint16(40), uint16(0))
	f.Add(byte(1), byte(Handshake), updateRequest, uint16(0), uint16(3))
	f.Add(byte(2), byte(Handshake), ticket(40), uint16(100), uint16(100))
	f.Add(byte(3), byte(Alert), []byte{1, 0}, uint16(7), uint16(0))
	f.Add(byte(4), byte(Handshake), []byte{0, 0, 0, 0}, uint16(99), uint16(0))
	f.Add(byte(5), byte(ChangeCipherSpec), []byte{1}, uint16(1), uint16(0))
	f.Add(byte(6), byte(0), []byte{}, uint16(0), uint16(0))
	f.Add(byte(7), byte(ApplicationData), []byte("\x17\x03\x03\x00\x13 a record of a record"), uint16(1), uint16(16384))
	f.Fuzz(func(t *testing.T, k, typ byte, text []byte, flip, padding uint16) {
		client, server := pair(t, few()[int(k)%len(few())])
		if k >= 128 {
			client, server = server, client
		}
		isAlert := func(err error) bool {
			var e *AlertError
			return errors.As(err, &e)
		}
		// As it came from the network.
		if n, err := server.Size(text); err != nil && !isAlert(err) || n > MaxRecord {
			t.Errorf("Size = %d, %v", n, err)
		}
		if _, _, err := server.Open(nil, bytes.Clone(text)); !isAlert(err) {
			t.Errorf("Open = %v", err)
		}
		// Authentic.
		text = text[:min(len(text), MaxPlaintext)]
		var rec []byte
		if client.p.tls13 {
			inner := append(bytes.Clone(text), typ)
			inner = append(inner, make([]byte, min(int(padding), MaxPlaintext-len(text)))...)
			rec = forge(client, ApplicationData, inner)
		} else {
			rec = forge(client, typ, text)
		}
		bad := bytes.Clone(rec)
		bad[int(flip)/8%len(bad)] ^= 1 << (flip % 8)
		if _, _, err := server.Open(nil, bad); !isAlert(err) {
			t.Errorf("a changed record: %v", err)
		}
		got, plain, err := server.Open(make([]byte, 0, len(rec)), rec)
		if typ < Alert || typ > ApplicationData {
			if client.p.tls13 && typ == 0 && len(bytes.TrimRight(text, "\x00")) > 0 {
				return // the last byte of the text was taken for the type
			}
			if !isAlert(err) {
				t.Errorf("type %d: %v", typ, err)
			}
			return
		}
		if err != nil || got != typ || !bytes.Equal(plain, text) {
			t.Fatalf("type %d, %d bytes: opened as %d, %d bytes, %v", typ, len(text), got, len(plain), err)
		}
		if typ != ApplicationData {
			if _, err := server.Control(typ, plain); err != nil && !isAlert(err) {
				t.Errorf("Control = %v", err)
			}
		}
		if server.useless > maxUseless || server.msgLen > messageHeader || server.skip > 1<<24 {
			t.Errorf("left in %+v", server)
		}
	})
}

// stricter are the reasons for which we end sessions that crypto/tls goes on
// with, or not yet ends.
var stricter = []string{
	"record of type 20",                   // after the handshake; crypto/tls drops 16 of them
	"record of inner type 20",             // RFC 8446, section 5
	"nothing but padding",                 // crypto/tls takes an empty inner plaintext for empty data
	"handshake message of type",           // at its first bytes; crypto/tls waits for the whole message
	"renegotiation",                       // at its first byte
	"request for a certificate",           // at its first byte
	"alert within a handshake message",    // in TLS 1.2 as well
	"application data within a handshake", // in TLS 1.2 as well
}

// A script of records, good and bad, has the same outcome here and in
// crypto/tls, in either role.
func FuzzAgainstCryptoTLS(f *testing.F) {
	f.Add([]byte{0, 0, 5, 4, 1, 0, 9})
	f.Add([]byte{1, 4, 1, 4, 1, 4, 0, 0, 5, 4, 2})
	f.Add([]byte{2, 5, 40, 10, 5, 3, 0, 0, 7, 1, 0})
	f.Add([]byte{6, 1, 1, 90, 0, 10, 1, 2, 40})
	f.Add([]byte{7, 5, 40, 10, 0, 9})
	f.Add([]byte{8, 5, 4, 99, 4, 1, 0, 9, 1, 1, 0})
	f.Add([]byte{3, 0, 9, 1, 1, 112, 0, 9, 1, 1, 0})
	f.Add([]byte{9, 2, 4, 0, 0, 0, 0, 0, 9})
	f.Add([]byte{3, 2, 4, 1, 0, 0, 0, 0, 9})
	f.Add([]byte{0, 3, 23, 200, 5, 3, 23, 0, 0, 6, 0, 200})
	f.Add([]byte{4, 7, 0, 5, 8})
	f.Add([]byte{9, 3, 22, 48}) // twelve HelloRequests
	f.Add(append([]byte{0}, bytes.Repeat([]byte{0, 0}, 20)...))
	f.Add(append([]byte{6}, bytes.Repeat([]byte{5, 3, 50}, 20)...))
	f.Add(append([]byte{7}, bytes.Repeat([]byte{4, 1}, 20)...))
	f.Fuzz(func(t *testing.T, script []byte) {
		if len(script) == 0 || len(script) > 200 {
			return
		}
		next := func() (b byte) {
			if len(script) > 0 {
				b, script = script[0], script[1:]
			}
			return b
		}
		some := func(n int) []byte {
			n = min(n, len(script))
			b := script[:n]
			script = script[n:]
			return b
		}
		choice := int(next())
		s := handshake(t, few()[choice%6])
		role := Role(choice / 6 % 2)
		theirs, from, toUs := s.server, s.conn(t, Client, 0, 0), s.serverWire
		ours := s.conn(t, role, 0, 0)
		if role == Client {
			theirs, toUs = s.client, s.clientWire
			tickets := s.tickets(t)
			openAll(t, ours, slices.Concat(tickets...))
			from = s.conn(t, Server, 0, uint64(len(tickets)))
			theirs.Read(make([]byte, 1))
		}
		var last []byte
		lenient := false // there were handshake messages that crypto/tls looks into more than we do
		for len(script) > 0 {
			var rec []byte
			rekey := false
			switch op := next() % 9; op {
			case 0:
				rec = typed(from, ApplicationData, bytes.Repeat([]byte{'d'}, int(next())))
			case 1:
				rec = typed(from, Alert, some(2))
			case 2:
				body := some(int(next()) % 16)
				rec = typed(from, Handshake, body)
				lenient = true
			case 3: // any inner type, with padding
				typ, n := next(), int(next())
				lenient = true
				if from.p.tls13 {
					rec = forge(from, ApplicationData, append([]byte{'p', typ}, make([]byte, n*n/3)...))
				} else {
					rec = forge(from, typ, make([]byte, n))
				}
			case 4:
				v := next() % 3
				rec = typed(from, Handshake, []byte{keyUpdate, 0, 0, 1, v})
				rekey = true
			case 5: // a ticket, cut in two
				b := ticket(1 + int(next()))
				cut := min(len(b), 1+int(next()))
				rec = typed(from, Handshake, b[:cut])
				if cut < len(b) {
					rec = append(rec, typed(from, Handshake, b[cut:])...)
				}
			case 6: // any outer type, short and long
				rec = forge(from, next(), make([]byte, int(next())*65))
				lenient = true
			case 7:
				rec = typed(from, ApplicationData, []byte("bit"))
				i := int(next()) * 3
				rec[i/8%len(rec)] ^= 1 << (i % 8)
				if rec[3] != 0 || int(rec[4]) != len(rec)-HeaderLen {
					return // another length: no whole record any more
				}
			case 8:
				rec = last
			}
			last = rec
			if len(rec) == 0 {
				continue
			}

			var got []byte
			var event Event
			var err error
			for b := bytes.Clone(rec); len(b) > 0 && err == nil && event != Closed; {
				var n int
				if n, err = ours.Size(b); err != nil {
					break
				}
				var typ byte
				var plain []byte
				if typ, plain, event, err = take1(ours, b[:n]); err == nil && typ == ApplicationData {
					got = append(got, plain...)
				}
				b = b[n:]
			}
			if rekey && event == Rekeyed {
				from.updated()
			}

			toUs.in.mu.Lock()
			toUs.in.buf.Write(rec)
			toUs.in.mu.Unlock()
			var want []byte
			var theirErr error
			for buf := make([]byte, 1<<15); theirErr == nil; {
				var n int
				n, theirErr = theirs.Read(buf)
				want = append(want, buf[:n]...)
			}
			waiting := errors.Is(theirErr, os.ErrDeadlineExceeded)
			var e *AlertError
			errors.As(err, &e)
			switch {
			case !bytes.Equal(got, want):
				t.Fatalf("we read %d bytes (%v), crypto/tls %d (%v)", len(got), err, len(want), theirErr)
			case e == nil && event == Closed:
				if theirErr != io.EOF {
					t.Fatalf("we saw close_notify, crypto/tls %v", theirErr)
				}
				return
			case e == nil && waiting:
			case e == nil:
				// We skip tickets unread, and ignore HelloRequests.
				if !lenient || role == Server {
					t.Fatalf("crypto/tls ended it: %v", theirErr)
				}
				return
			case e.Remote:
				if want := "remote error: " + tls.AlertError(e.Alert).Error(); theirErr.Error() != want {
					t.Fatalf("%v, but crypto/tls: %v", e, theirErr)
				}
				return
			default:
				for _, reason := range stricter {
					if strings.Contains(e.Reason, reason) {
						return
					}
				}
				if waiting {
					t.Fatalf("%v, but crypto/tls goes on", e)
				}
				return
			}
		}
	})
}
