package integration

import (
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"edgeproxy/internal/tlsrecord"
)

// abused is a proxy under attack, with a session of somebody else's through
// it that nothing of this may harm.
type abused struct {
	t       *testing.T
	l       *tlsLab
	p       *Proxy
	addr    string
	version uint16
	other   *tlsClient
	ended   int
}

func newAbused(t *testing.T, version uint16) *abused {
	l := newTLSLab(t)
	// On one loop, whose buffers all sessions share.
	p := Start(t, l.edge(Serve(t, echo).Addr()), WithWorkers(1))
	a := &abused{t: t, l: l, p: p, addr: p.Addr("edge"), version: version}
	a.other = DialTLS(t, a.addr, l.client())
	a.unharmed()
	return a
}

func (a *abused) unharmed() {
	a.t.Helper()
	RoundTrip(a.t, a.other, string(randomBytes(20_000)))
}

func (a *abused) dial(t *testing.T) *rawTLS {
	t.Helper()
	return dialRaw(t, a.addr, only(a.l.client(), a.version, 0))
}

// refused asserts that c's session is refused with an alert, while the other
// one goes on. Where the alert is on its way together with a reset it may be
// lost: the log tells.
func (a *abused) refused(t *testing.T, c *rawTLS, alert uint8) Entry {
	t.Helper()
	if err := c.end(); err == errNotified {
		t.Error("an orderly end")
	}
	c.c.Close()
	a.ended++
	e := a.p.LastEnd(a.ended, "tls_failed", "relay")
	tlsFault(t, e, "client")
	a.unharmed()
	return e
}

// fine asserts that c's session still works, and closes it.
func (a *abused) fine(t *testing.T, c *rawTLS) {
	t.Helper()
	c.send(c.data("still there"))
	c.expect("still there")
	a.close(t, c)
}

func (a *abused) close(t *testing.T, c *rawTLS) {
	t.Helper()
	c.send(c.closeNotify())
	if err := c.end(); err != errNotified {
		t.Errorf("ended by %v, want close_notify", err)
	}
	c.c.Close()
	a.ended++
	a.p.LastEnd(a.ended, "client_closed", "relay")
	a.unharmed()
}

// Records that no honest client sends: RFC 8446, sections 5 and 6, RFC 5246,
// section 6.2.
func TestTLSRecordsRefused(t *testing.T) {
	t.Parallel()
	bothVersions(t, func(t *testing.T, version uint16) {
		a := newAbused(t, version)

		flip := func(at int) func(c *rawTLS) []byte {
			return func(c *rawTLS) []byte {
				b := c.data("hello")
				if at < 0 {
					at += len(b)
				}
				b[at] ^= 1
				return b
			}
		}
		zeros := func(n int) []byte { return make([]byte, n) }
		header := func(typ byte, n int) []byte { return []byte{typ, 3, 3, byte(n >> 8), byte(n)} }
		for _, c := range []struct {
			name  string
			only  uint16
			alert uint8
			make  func(c *rawTLS) []byte
		}{
			{"bad MAC", 0, tlsrecord.AlertBadRecordMAC, flip(-1)},
			{"changed text", 0, tlsrecord.AlertBadRecordMAC, flip(-17)},
			{"changed length", 0, tlsrecord.AlertBadRecordMAC, func(c *rawTLS) []byte {
				b := c.data("hello")
				b[4]++
				return append(b, 0)
			}},
			{"another version", 0, tlsrecord.AlertProtocolVersion, flip(2)},
			{"not for us", 0, tlsrecord.AlertBadRecordMAC, func(c *rawTLS) []byte {
				return append(header(tlsrecord.ApplicationData, 40), zeros(40)...)
			}},
			{"too short to be authentic", 0, tlsrecord.AlertBadRecordMAC, func(c *rawTLS) []byte {
				return append(header(tlsrecord.ApplicationData, 16), zeros(16)...)
			}},
			{"empty to the eye", 0, tlsrecord.AlertBadRecordMAC, func(c *rawTLS) []byte { return header(tlsrecord.ApplicationData, 0) }},
			{"longer than allowed", 0, tlsrecord.AlertRecordOverflow, func(c *rawTLS) []byte {
				return append(header(tlsrecord.ApplicationData, 0x4900), zeros(0x4900)...)
			}},
			{"as long as can be", 0, tlsrecord.AlertRecordOverflow, func(c *rawTLS) []byte {
				return append(header(tlsrecord.ApplicationData, 0xffff), zeros(0xffff)...)
			}},
			{"no record at all", 0, tlsrecord.AlertUnexpectedMessage, func(c *rawTLS) []byte { return []byte("GET / HTTP/1.1\r\n\r\n") }},
			{"change_cipher_spec", 0, tlsrecord.AlertUnexpectedMessage, func(c *rawTLS) []byte { return append(header(20, 1), 1) }},
			{"unknown outer type", 0, tlsrecord.AlertUnexpectedMessage, func(c *rawTLS) []byte {
				b := c.data("hello")
				b[0] = 99
				return b
			}},
			{"alert in the clear", 0, tlsrecord.AlertUnexpectedMessage, func(c *rawTLS) []byte { return append(header(21, 2), 1, 0) }},
			{"replayed", 0, tlsrecord.AlertBadRecordMAC, func(c *rawTLS) []byte {
				b := c.data("once")
				return slices.Concat(b, b)
			}},
			{"reordered", 0, tlsrecord.AlertBadRecordMAC, func(c *rawTLS) []byte {
				one, two := c.data("one"), c.data("two")
				return slices.Concat(two, one)
			}},
			{"one left out", 0, tlsrecord.AlertBadRecordMAC, func(c *rawTLS) []byte {
				c.data("lost")
				return c.data("after")
			}},
			{"heartbeat", 0, tlsrecord.AlertUnexpectedMessage, func(c *rawTLS) []byte { return c.seal(24, "\x01\x40\x00") }},
			{"change_cipher_spec inside", 0, tlsrecord.AlertUnexpectedMessage, func(c *rawTLS) []byte { return c.seal(20, "\x01") }},
			{"nothing but padding", tls.VersionTLS13, tlsrecord.AlertUnexpectedMessage, func(c *rawTLS) []byte { return c.seal(0, "\x00\x00\x00") }},
			{"empty handshake", 0, tlsrecord.AlertUnexpectedMessage, func(c *rawTLS) []byte { return c.seal(tlsrecord.Handshake, "") }},
			{"empty alert", 0, tlsrecord.AlertUnexpectedMessage, func(c *rawTLS) []byte { return c.seal(tlsrecord.Alert, "") }},
			{"two alerts in one record", 0, tlsrecord.AlertUnexpectedMessage, func(c *rawTLS) []byte { return c.seal(tlsrecord.Alert, "\x01\x00\x01\x00") }},
			{"another ClientHello", 0, tlsrecord.AlertUnexpectedMessage, func(c *rawTLS) []byte { return c.seal(tlsrecord.Handshake, "\x01\x00\x00\x02\x03\x03") }},
			{"a Finished", 0, tlsrecord.AlertUnexpectedMessage, func(c *rawTLS) []byte { return c.seal(tlsrecord.Handshake, "\x14\x00\x00\x00") }},
			{"a ticket from a client", 0, tlsrecord.AlertUnexpectedMessage, func(c *rawTLS) []byte { return c.seal(tlsrecord.Handshake, "\x04\x00\x00\x00") }},
			{"KeyUpdate of TLS 1.3 in 1.2", tls.VersionTLS12, tlsrecord.AlertUnexpectedMessage, func(c *rawTLS) []byte { return c.seal(tlsrecord.Handshake, "\x18\x00\x00\x01\x00") }},
			{"KeyUpdate that asks for 2", tls.VersionTLS13, tlsrecord.AlertIllegalParameter, func(c *rawTLS) []byte { return c.seal(tlsrecord.Handshake, "\x18\x00\x00\x01\x02") }},
			{"KeyUpdate of two bytes", tls.VersionTLS13, tlsrecord.AlertDecodeError, func(c *rawTLS) []byte { return c.seal(tlsrecord.Handshake, "\x18\x00\x00\x02\x00\x00") }},
			{"data behind half a KeyUpdate", tls.VersionTLS13, tlsrecord.AlertUnexpectedMessage, func(c *rawTLS) []byte {
				return append(c.seal(tlsrecord.Handshake, "\x18\x00"), c.data("x")...)
			}},
			{"two KeyUpdates in one record", tls.VersionTLS13, tlsrecord.AlertUnexpectedMessage, func(c *rawTLS) []byte {
				return c.seal(tlsrecord.Handshake, "\x18\x00\x00\x01\x00\x18\x00\x00\x01\x00")
			}},
			{"old key after a KeyUpdate", tls.VersionTLS13, tlsrecord.AlertBadRecordMAC, func(c *rawTLS) []byte {
				return append(c.seal(tlsrecord.Handshake, "\x18\x00\x00\x01\x00"), c.data("x")...)
			}},
			{"flood of empty records", 0, tlsrecord.AlertUnexpectedMessage, func(c *rawTLS) (b []byte) {
				for range 1000 {
					b = append(b, c.data("")...)
				}
				return b
			}},
			{"flood of KeyUpdates", tls.VersionTLS13, tlsrecord.AlertUnexpectedMessage, func(c *rawTLS) (b []byte) {
				for i := range 1000 {
					b = append(b, c.keyUpdate(byte(i%2), 5)...)
				}
				return b
			}},
			{"flood of warnings", 0, tlsrecord.AlertUnexpectedMessage, func(c *rawTLS) (b []byte) {
				for range 1000 {
					b = append(b, c.seal(tlsrecord.Alert, "\x01\x5a")...)
				}
				return b
			}},
		} {
			if c.only != 0 && c.only != version {
				continue
			}
			t.Run(c.name, func(t *testing.T) {
				raw := a.dial(t)
				raw.c.Write(c.make(raw)) // a flood may be refused before its end
				e := a.refused(t, raw, c.alert)
				if wantEngine(t) != "" && e.Error == "" {
					t.Error("no error in the log")
				}
			})
		}
	})
}

// The client is told by the alert that the RFC names, before the connection
// goes.
func TestTLSRecordsAlerts(t *testing.T) {
	t.Parallel()
	bothVersions(t, func(t *testing.T, version uint16) {
		a := newAbused(t, version)
		for _, c := range []struct {
			alert uint8
			b     func(c *rawTLS) []byte
		}{
			{tlsrecord.AlertBadRecordMAC, func(c *rawTLS) []byte {
				b := c.data("hello")
				b[len(b)-1] ^= 1
				return b
			}},
			{tlsrecord.AlertRecordOverflow, func(*rawTLS) []byte { return []byte{23, 3, 3, 0x50, 0} }},
			{tlsrecord.AlertUnexpectedMessage, func(c *rawTLS) []byte { return c.seal(tlsrecord.Handshake, "\x14\x00\x00\x00") }},
		} {
			raw := a.dial(t)
			raw.send(c.b(raw))
			raw.expectAlert(c.alert)
			raw.c.Close()
			a.ended++
			e := a.p.LastEnd(a.ended, "tls_failed", "relay")
			if e.Error == "" {
				t.Errorf("%+v", e)
			}
		}
		// A client's own fatal alert is in the log by its name.
		for alert, name := range map[uint8]string{42: "bad_certificate", 48: "unknown_ca", 80: "internal_error"} {
			raw := a.dial(t)
			raw.send(raw.data("x"))
			raw.expect("x")
			raw.send(raw.seal(tlsrecord.Alert, string([]byte{2, alert})))
			if err := raw.end(); err == errNotified {
				t.Error("an orderly end")
			}
			raw.c.Close()
			a.ended++
			e := a.p.LastEnd(a.ended, "tls_failed", "relay")
			if !strings.Contains(e.Error, name) && !strings.Contains(e.Error, strings.ReplaceAll(name, "_", " ")) {
				t.Errorf("error %q does not name the alert %s", e.Error, name)
			}
		}
		a.unharmed()
	})
}

// What is odd and allowed.
func TestTLSRecordsTaken(t *testing.T) {
	t.Parallel()
	bothVersions(t, func(t *testing.T, version uint16) {
		a := newAbused(t, version)
		t.Run("16 empty records between data", func(t *testing.T) {
			c := a.dial(t)
			for range 5 {
				var b []byte
				for range 16 {
					b = append(b, c.data("")...)
				}
				c.send(append(b, c.data("data")...))
				c.expect("data")
			}
			a.fine(t, c)
		})
		t.Run("10000 records of a byte", func(t *testing.T) {
			c := a.dial(t)
			want := string(randomBytes(10_000))
			var b []byte
			for i := range len(want) {
				b = append(b, c.data(want[i:i+1])...)
			}
			go c.c.Write(b)
			c.expect(want)
			a.fine(t, c)
		})
		t.Run("full records", func(t *testing.T) {
			c := a.dial(t)
			want := string(randomBytes(10 * tlsrecord.MaxPlaintext))
			var b []byte
			for part := range slices.Chunk([]byte(want), tlsrecord.MaxPlaintext) {
				b = append(b, c.data(string(part))...)
			}
			go c.c.Write(b)
			c.expect(want)
			a.fine(t, c)
		})
		t.Run("close_notify with data after it", func(t *testing.T) {
			// What comes after close_notify is ignored (RFC 8446, section 6.1).
			c := a.dial(t)
			c.send(slices.Concat(c.data("last"), c.closeNotify(), c.data("ignored")))
			c.expect("last")
			if err := c.end(); err != errNotified {
				t.Errorf("ended by %v, want close_notify", err)
			}
			c.c.Close()
			a.ended++
			if e := a.p.LastEnd(a.ended, "client_closed", "relay"); e.BytesIn != 4 {
				t.Errorf("%+v", e)
			}
		})
		t.Run("a warning before close_notify", func(t *testing.T) {
			c := a.dial(t)
			c.send(slices.Concat(c.data("last"), c.seal(tlsrecord.Alert, "\x01\x5a"))) // user_canceled
			c.expect("last")
			a.close(t, c)
		})
		if version != tls.VersionTLS13 {
			return
		}
		t.Run("padding", func(t *testing.T) {
			c := a.dial(t)
			for _, n := range []int{0, 1, 100, tlsrecord.MaxPlaintext - 6} {
				c.send(c.seal(0, "padded"[:5]+"\x17"+strings.Repeat("\x00", n)))
				c.expect("padde")
			}
			c.send(c.seal(0, "\x17"+strings.Repeat("\x00", 1000))) // empty, but long
			a.fine(t, c)
		})
		for request := range byte(2) {
			t.Run(fmt.Sprintf("KeyUpdates, request %d", request), func(t *testing.T) {
				c := a.dial(t)
				updates := 0
				for i := range 50 {
					text := string(randomBytes(1 + i*997))
					// Split at any place, and several in a row.
					var b []byte
					for j := range i%3 + 1 {
						b = append(b, c.keyUpdate(request, 1+(i+j)%5)...)
					}
					for part := range slices.Chunk([]byte(text), tlsrecord.MaxPlaintext) {
						b = append(b, c.data(string(part))...)
					}
					c.send(b)
					updates += c.expect(text)
				}
				// However often it is asked, one answer will do; without a
				// request there need be none.
				if request == 1 && updates < 50 || request == 0 && updates > 0 {
					t.Errorf("%d KeyUpdates came back", updates)
				}
				a.fine(t, c)
			})
		}
		t.Run("KeyUpdate, close_notify under the new key", func(t *testing.T) {
			c := a.dial(t)
			c.send(slices.Concat(c.data("x"), c.keyUpdate(1, 5)))
			c.expect("x")
			a.close(t, c)
		})
	})
}

// A recorded request, cut at every place into two segments, and byte by byte.
func TestTLSRecordsEverySplit(t *testing.T) {
	t.Parallel()
	bothVersions(t, func(t *testing.T, version uint16) {
		a := newAbused(t, version)
		request := func(c *rawTLS) []byte {
			b := slices.Concat(c.data("GET /"), c.data(""), c.data("x"))
			if version == tls.VersionTLS13 {
				b = slices.Concat(b, c.keyUpdate(1, 2), c.data("y"))
			} else {
				b = append(b, c.data("y")...)
			}
			return append(b, c.data(" HTTP/1.1\r\n\r\n")...)
		}
		const want = "GET /xy HTTP/1.1\r\n\r\n"
		c := a.dial(t)
		c.c.(*net.TCPConn).SetNoDelay(true)
		split := func(cuts ...int) {
			t.Helper()
			b := request(c)
			from := 0
			for _, to := range append(cuts, len(b)) {
				c.send(b[from:to])
				from = to
				// Let the proxy take each piece on its own, mostly.
				if len(cuts) == 1 || to%16 == 0 {
					time.Sleep(time.Millisecond)
				}
			}
			c.expect(want)
		}
		n := len(request(c)) // never sent: so the session is begun anew
		c.c.Close()
		a.ended++
		a.p.AccessLog(a.ended)
		c = a.dial(t)
		for at := 1; at < n; at++ {
			split(at)
		}
		var all []int
		for at := 1; at < n; at++ {
			all = append(all, at)
		}
		split(all...)
		for range 30 {
			var cuts []int
			for at := 1; at < n; at++ {
				if rand.IntN(8) == 0 {
					cuts = append(cuts, at)
				}
			}
			split(cuts...)
		}
		a.fine(t, c)
	})
}

// A client that goes within a record has not finished, wherever that is.
func TestTLSRecordsCut(t *testing.T) {
	t.Parallel()
	bothVersions(t, func(t *testing.T, version uint16) {
		a := newAbused(t, version)
		for _, at := range []int{1, 3, 4, 5, 6, 12, 13, 20, 26, -1} {
			c := a.dial(t)
			c.send(c.data("x"))
			c.expect("x")
			b := c.data("never whole")
			if at < 0 {
				at += len(b)
			}
			c.send(b[:at])
			c.c.CloseWrite()
			if err := c.end(); err == errNotified {
				t.Errorf("cut at %d: an orderly end", at)
			}
			c.c.Close()
			a.ended++
			e := a.p.LastEnd(a.ended, "client_reset", "relay")
			tlsFault(t, e, "truncated")
			if e.BytesIn != 1 {
				t.Errorf("%d bytes in", e.BytesIn)
			}
		}
		// Cut within a record after the server has finished, too.
		a.unharmed()
	})
}

// Half a record is all that a silent client can make us keep, and it is held
// to the idle timeout.
func TestTLSRecordsStalled(t *testing.T) {
	t.Parallel()
	bothVersions(t, func(t *testing.T, version uint16) {
		l := newTLSLab(t)
		p := Start(t, l.edgeWith("", `timeouts { idle = "700ms" }`, "", Serve(t, echo).Addr()))
		c := dialRaw(t, p.Addr("edge"), only(l.client(), version, 0))
		c.send(c.data("x"))
		c.expect("x")
		b := c.data(strings.Repeat("y", 16000))
		c.send(b[:len(b)-1])
		if err := c.end(); err == errNotified {
			t.Error("an orderly end")
		}
		if e := p.LastEnd(1, "idle_timeout", "relay"); e.BytesIn != 1 {
			t.Errorf("%+v", e)
		}
	})
}

// Bytes that have come when a record is found to be bad are delivered, and
// nothing after them.
func TestTLSRecordsBeforeABadOne(t *testing.T) {
	t.Parallel()
	bothVersions(t, func(t *testing.T, version uint16) {
		l := newTLSLab(t)
		got := make(chan string, 1)
		p := Start(t, l.edge(Serve(t, func(c Conn) {
			b := make([]byte, 100)
			n, _ := io.ReadFull(c, b[:4])
			m, err := c.Read(b[4:])
			got <- fmt.Sprint(string(b[:n+m]), " ", err != nil && err != io.EOF)
		}).Addr()))
		c := dialRaw(t, p.Addr("edge"), only(l.client(), version, 0))
		c.send(c.data("good"))
		bad := c.data("evil")
		bad[len(bad)-1]++
		time.Sleep(moment)
		c.send(append(bad, c.data("late")...))
		if s := <-got; s != "good true" {
			t.Errorf("the server read %q, want the good record and a reset", s)
		}
		p.LastEnd(1, "tls_failed", "relay")
	})
}
