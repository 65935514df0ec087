package tlsrecord

import (
	"bytes"
	"crypto/tls"
	"errors"
	"slices"
	"strings"
	"testing"
)

func ticket(label int) []byte {
	n := 4 + 4 + 1 + 8 + 2 + label + 2
	b := []byte{newSessionTicket, byte(n >> 16), byte(n >> 8), byte(n), 0, 0, 14, 16, 1, 2, 3, 4, 8, 1, 2, 3, 4, 5, 6, 7, 8, byte(label >> 8), byte(label)}
	b = append(b, bytes.Repeat([]byte{0x18}, label)...) // 0x18: would be a KeyUpdate if it were read
	return append(b, 0, 0)
}

var (
	updateOnly    = []byte{keyUpdate, 0, 0, 1, 0}
	updateRequest = []byte{keyUpdate, 0, 0, 1, 1}
)

// receiver is a fresh Conn in a role, with the peer it receives from.
func receiver(tb testing.TB, version uint16, role Role) (peer, c *Conn) {
	k := kind{tls.VersionTLS13, tls.TLS_AES_128_GCM_SHA256}
	if version == tls.VersionTLS12 {
		k = kind{version, tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}
	}
	client, server := pair(tb, k)
	if role == Client {
		return server, client
	}
	return client, server
}

// All 65536 alerts.
func TestAlerts(t *testing.T) {
	t.Parallel()
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		_, c := receiver(t, version, Server)
		for level := range 256 {
			for alert := range 256 {
				c.useless = 0
				event, err := c.Control(Alert, []byte{byte(level), byte(alert)})
				var e *AlertError
				switch errors.As(err, &e); {
				case alert == AlertCloseNotify: // RFC 8446, section 6.1, whatever the level
					if event != Closed || err != nil {
						t.Errorf("%x: close_notify %d: %v, %v", version, level, event, err)
					}
				case version == tls.VersionTLS13 && alert == AlertUserCanceled, version == tls.VersionTLS12 && level == 1:
					if event != None || err != nil || c.useless != 1 {
						t.Errorf("%x: %d %d: %v, %v", version, level, alert, event, err)
					}
				case version == tls.VersionTLS12 && level != 2:
					wantAlert(t, err, AlertUnexpectedMessage)
				default: // RFC 8446, section 6: the level does not matter
					if e == nil || !e.Remote || int(e.Alert) != alert || !strings.HasPrefix(err.Error(), "the peer sent alert ") {
						t.Errorf("%x: %d %d: %v, %v", version, level, alert, event, err)
					}
				}
			}
		}
		for _, b := range [][]byte{nil, {1}, {2, 40, 0}, {1, 0, 1, 0}} {
			_, err := c.Control(Alert, b)
			wantAlert(t, err, AlertUnexpectedMessage) // RFC 8446, section 5.1
		}
	}
}

func TestAlertTexts(t *testing.T) {
	t.Parallel()
	seen := make(map[string]bool)
	for i := range 256 {
		name := AlertName(uint8(i))
		if name != "unassigned" && seen[name] || name == "" || strings.ToLower(name) != name {
			t.Errorf("alert %d is %q", i, name)
		}
		seen[name] = true
		level := byte(2)
		if i == AlertCloseNotify || i == AlertNoRenegotiation {
			level = 1
		}
		if got, want := AppendPlainAlert([]byte{7}, uint8(i)), []byte{7, 21, 3, 3, 0, 2, level, byte(i)}; !bytes.Equal(got, want) {
			t.Errorf("alert %d is %x, want %x", i, got, want)
		}
	}
	for want, err := range map[string]error{
		"the peer sent alert certificate_unknown (46)":                     &AlertError{Alert: 46, Remote: true},
		"the peer sent alert unassigned (99)":                              &AlertError{Alert: 99, Remote: true},
		"bad record MAC (alert bad_record_mac (20) sent)":                  &AlertError{Alert: 20, Reason: "bad record MAC"},
		"unexpected record of type 7 (alert unexpected_message (10) sent)": unexpected("record of type %d", 7),
	} {
		if err.Error() != want {
			t.Errorf("got %q, want %q", err, want)
		}
	}
}

// All types of control records that are none.
func TestControlTypes(t *testing.T) {
	t.Parallel()
	_, c := receiver(t, tls.VersionTLS13, Client)
	for typ := range 256 {
		if typ == Alert || typ == Handshake {
			continue
		}
		_, err := c.Control(byte(typ), []byte{1, 0})
		wantAlert(t, err, AlertUnexpectedMessage)
	}
	_, err := c.Control(Handshake, nil)
	wantAlert(t, err, AlertUnexpectedMessage) // RFC 8446, section 5.1
}

// All types of handshake messages, and lengths about those allowed.
func TestHandshakeTypes(t *testing.T) {
	t.Parallel()
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, role := range roles() {
			_, fresh := receiver(t, version, role)
			for typ := range 256 {
				var least, most int
				alert, ok := uint8(AlertUnexpectedMessage), false
				switch {
				case version == tls.VersionTLS13 && typ == keyUpdate:
					least, most, ok = 1, 1, true
				case version == tls.VersionTLS13 && role == Client && typ == newSessionTicket:
					least, most, ok = minTicket, maxTicket, true
				case version == tls.VersionTLS12 && role == Client && typ == helloRequest:
					ok = true
				case version == tls.VersionTLS12 && role == Server && typ == clientHello:
					alert = AlertNoRenegotiation
				}
				for _, n := range []int{0, 1, 2, minTicket - 1, minTicket, 1000, maxTicket, maxTicket + 1, 1<<24 - 1} {
					c := *fresh
					_, err := c.Control(Handshake, []byte{byte(typ), byte(n >> 16), byte(n >> 8), byte(n)})
					switch {
					case !ok:
						wantAlert(t, err, alert)
					case n < least || n > most:
						wantAlert(t, err, AlertDecodeError)
					case err != nil:
						t.Errorf("%x, %v, type %d, %d bytes: %v", version, role, typ, n, err)
					}
				}
			}
		}
	}
}

// RFC 8446, section 4.6.3: all values of request_update.
func TestKeyUpdateValues(t *testing.T) {
	t.Parallel()
	for v := range 256 {
		_, c := receiver(t, tls.VersionTLS13, Server)
		before := c.in
		event, err := c.Control(Handshake, []byte{keyUpdate, 0, 0, 1, byte(v)})
		if v > 1 {
			wantAlert(t, err, AlertIllegalParameter)
			if c.in != before || c.Due() {
				t.Errorf("value %d changed something", v)
			}
			continue
		}
		if err != nil || event != Rekeyed || c.Due() != (v == 1) || c.in.secret == before.secret || c.in.key == before.key || c.in.iv == before.iv || c.in.seq != 0 {
			t.Errorf("value %d: %v, %v", v, event, err)
		}
	}
}

// Messages may be cut anywhere, share records, and come a byte at a time
// (RFC 8446, section 5.1).
func TestSplitMessages(t *testing.T) {
	t.Parallel()
	all := slices.Concat(ticket(1), ticket(300), ticket(40), updateRequest)
	feed := func(parts ...[]byte) {
		t.Helper()
		peer, c := receiver(t, tls.VersionTLS13, Client)
		for i, part := range parts {
			_, _, event, err := take1(c, seal(peer, Handshake, part))
			if last := i == len(parts)-1; err != nil || (event == Rekeyed) != last {
				t.Fatalf("part %d of %d: %v, %v", i, len(parts), event, err)
			}
		}
		if !c.Due() || c.msgLen != 0 || c.useless != 4 {
			t.Fatalf("left behind: %+v", c)
		}
		peer.updated()
		if _, plain, _, err := take1(c, seal(peer, ApplicationData, []byte("x"))); err != nil || string(plain) != "x" {
			t.Fatalf("under the new keys: %v", err)
		}
	}
	feed(all)
	for i := 1; i < len(all); i++ {
		feed(all[:i], all[i:])
		for j := i + 1; j < len(all); j += 53 {
			feed(all[:i], all[i:j], all[j:])
		}
	}
	feed(slices.Collect(slices.Chunk(all, 1))...)
}

// RFC 8446, section 5.1: no other record within a handshake message, and none
// of its bytes behind a KeyUpdate.
func TestInterleaving(t *testing.T) {
	t.Parallel()
	whole := ticket(30)
	for cut := 1; cut < len(whole); cut++ {
		for _, other := range []struct {
			typ   byte
			plain []byte
		}{{ApplicationData, []byte("x")}, {ApplicationData, nil}, {Alert, []byte{1, 0}}, {Alert, []byte{2, 40}}, {Alert, []byte{1, 90}}} {
			peer, c := receiver(t, tls.VersionTLS13, Client)
			if _, _, _, err := take1(c, seal(peer, Handshake, whole[:cut])); err != nil {
				t.Fatal(err)
			}
			_, _, _, err := take1(c, seal(peer, other.typ, other.plain))
			wantAlert(t, err, AlertUnexpectedMessage)
		}
	}
	for _, rest := range [][]byte{{keyUpdate}, updateOnly, ticket(4), {0}} {
		_, c := receiver(t, tls.VersionTLS13, Client)
		before := c.in
		_, err := c.Control(Handshake, slices.Concat(updateOnly, rest))
		wantAlert(t, err, AlertUnexpectedMessage)
		if c.in != before {
			t.Error("keys have changed")
		}
	}
	// A data record of the kernel's.
	_, c := receiver(t, tls.VersionTLS13, Client)
	c.Control(Handshake, whole[:5])
	wantAlert(t, c.Data(1), AlertUnexpectedMessage)
}

// RFC 8446, section 4.6.3: any number of requests is answered once.
func TestUpdatesAreAnsweredOnce(t *testing.T) {
	t.Parallel()
	for _, k := range few()[:3] {
		client, server := pair(t, k)
		for range maxUseless {
			if _, _, event, err := take1(server, seal(client, Handshake, updateRequest)); err != nil || event != Rekeyed {
				t.Fatal(event, err)
			}
			client.updated()
		}
		if !server.Due() {
			t.Fatal("no answer is due")
		}
		// Alerts need no answer before them, application data does.
		out := server.AppendAlert(nil, AlertUserCanceled)
		if !server.Due() {
			t.Fatal("no answer is due any more")
		}
		out = server.AppendDue(out)
		if server.Due() || len(server.AppendDue(nil)) != 0 {
			t.Error("due again")
		}
		got := openAll(t, client, append(out, seal(server, ApplicationData, []byte("x"))...))
		if len(got) != 3 || got[0].typ != Alert || got[1].event != Rekeyed || !bytes.Equal(got[1].plain, updateOnly) || got[2].typ != ApplicationData {
			t.Errorf("the peer got %+v", got)
		}
		if client.Due() {
			t.Error("the answer asks for an answer")
		}
	}
}

// Records that bring no application data are bounded, whatever they are.
func TestFloods(t *testing.T) {
	t.Parallel()
	for _, f := range []struct {
		name    string
		version uint16
		typ     byte
		plain   []byte
	}{
		{"empty data", tls.VersionTLS13, ApplicationData, nil},
		{"empty data 1.2", tls.VersionTLS12, ApplicationData, nil},
		{"tickets", tls.VersionTLS13, Handshake, ticket(20)},
		{"KeyUpdates", tls.VersionTLS13, Handshake, updateOnly},
		{"KeyUpdate requests", tls.VersionTLS13, Handshake, updateRequest},
		{"user_canceled", tls.VersionTLS13, Alert, []byte{1, AlertUserCanceled}},
		{"warnings 1.2", tls.VersionTLS12, Alert, []byte{1, AlertUnrecognizedName}},
		{"HelloRequests", tls.VersionTLS12, Handshake, []byte{helloRequest, 0, 0, 0}},
	} {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			peer, c := receiver(t, f.version, Client)
			send := func(typ byte, plain []byte) error {
				rec := seal(peer, typ, plain)
				if bytes.Equal(plain, updateOnly) || bytes.Equal(plain, updateRequest) {
					peer.updated()
				}
				_, _, _, err := take1(c, rec)
				return err
			}
			for range 3 {
				for i := range maxUseless {
					if err := send(f.typ, f.plain); err != nil {
						t.Fatalf("record %d: %v", i+1, err)
					}
				}
				if err := send(ApplicationData, []byte("x")); err != nil {
					t.Fatal(err)
				}
			}
			for range maxUseless {
				if err := send(f.typ, f.plain); err != nil {
					t.Fatal(err)
				}
			}
			wantAlert(t, send(f.typ, f.plain), AlertUnexpectedMessage)
		})
	}
	// Many messages in one record count as many.
	_, c := receiver(t, tls.VersionTLS13, Client)
	_, err := c.Control(Handshake, bytes.Repeat(ticket(1), maxUseless+1))
	wantAlert(t, err, AlertUnexpectedMessage)
}

// RFC 8446, section 5.5.
func TestRecordLimit(t *testing.T) {
	t.Parallel()
	for _, k := range few() {
		client, server := pair(t, k)
		if (client.RekeyAfter == gcmRecords) != (client.p.tls13 && !client.p.chacha) {
			t.Errorf("%v: a KeyUpdate after %d records", k, client.RekeyAfter)
		}
		if !client.p.tls13 {
			continue
		}
		client.RekeyAfter = 5
		updates := 0
		for i := range 100 {
			var out []byte
			if client.Due() {
				secret := client.out.secret
				out = client.AppendDue(out)
				if client.out.secret == secret || client.out.seq != 0 {
					t.Fatal("the keys have not changed")
				}
			}
			out = append(out, seal(client, ApplicationData, []byte{byte(i)})...)
			for _, r := range openAll(t, server, out) {
				switch r.typ {
				case Handshake:
					updates++
				case ApplicationData:
					if len(r.plain) != 1 || r.plain[0] != byte(i) {
						t.Fatalf("record %d: %x", i, r.plain)
					}
				}
			}
			if server.Due() {
				t.Fatal("our update asks for one in return")
			}
		}
		if updates != 19 {
			t.Errorf("%v: %d updates", k, updates)
		}
	}
}

// The kernel seals and opens; the Conn follows.
func TestKernelKeys(t *testing.T) {
	t.Parallel()
	for _, k := range few() {
		client, server := pair(t, k)
		same := func() {
			t.Helper()
			for _, d := range []struct{ a, b Keys }{{client.Keys(true), server.Keys(false)}, {client.Keys(false), server.Keys(true)}} {
				if d.a.Version != k.version || d.a.Suite != k.suite || !bytes.Equal(d.a.Key, d.b.Key) || !bytes.Equal(d.a.IV, d.b.IV) || d.a.Seq != d.b.Seq {
					t.Errorf("%v: %+v and %+v", k, d.a, d.b)
				}
				if want := client.p.fixedIV(); len(d.a.IV) != want || len(d.a.Key) != int(client.p.keyLen) {
					t.Errorf("%v: key of %d bytes, IV of %d", k, len(d.a.Key), len(d.a.IV))
				}
			}
		}
		same()
		seal(client, ApplicationData, []byte("x"))
		if err := server.SetSeq(false, client.Keys(true).Seq); err != nil {
			t.Error(err)
		}
		same()
		salt := bytes.Clone(client.Keys(true).IV)
		seal(client, ApplicationData, []byte("x"))
		server.SetSeq(false, client.Keys(true).Seq)
		if !bytes.Equal(salt, client.Keys(true).IV) {
			t.Errorf("%v: sealing has changed the IV", k)
		}
		msg := client.AppendKeyUpdate(nil)
		if !client.p.tls13 {
			if msg != nil {
				t.Errorf("%v: KeyUpdate %x", k, msg)
			}
			continue
		}
		if event, err := server.Control(Handshake, msg); event != Rekeyed || err != nil || !bytes.Equal(msg, updateOnly) {
			t.Error(event, err)
		}
		same()
	}
}

func TestShedAndWipe(t *testing.T) {
	t.Parallel()
	eachKind(t, func(t *testing.T, client, server *Conn) {
		for i := range 20 {
			client.Shed()
			server.Shed()
			if client.in.aead != nil || client.out.aead != nil {
				t.Fatal("not shed")
			}
			if _, plain, err := server.Open(nil, seal(client, ApplicationData, []byte{byte(i)})); err != nil || plain[0] != byte(i) {
				t.Fatal(err)
			}
		}
		client.Wipe()
		if client.in != (half{}) || client.out != (half{}) {
			t.Error("keys are left")
		}
		client.Wipe()
		client.Shed()
		mustPanic(t, func() { seal(client, ApplicationData, []byte("in the clear")) })
		if client.Due() || len(client.Keys(true).Key) != 0 {
			t.Error("something is left to do")
		}
		if _, err := client.Size([]byte{ApplicationData, 3, 3, 0, 100}); err == nil {
			t.Error("a wiped session reads on")
		}
	})
}

func TestNewErrors(t *testing.T) {
	t.Parallel()
	for _, c := range slices.Concat(tls.CipherSuites(), tls.InsecureCipherSuites()) {
		aead := strings.Contains(c.Name, "GCM") || strings.Contains(c.Name, "POLY1305")
		for v := uint16(tls.VersionTLS10); v <= tls.VersionTLS13; v++ {
			if want := aead && slices.Contains(c.SupportedVersions, v); Supported(v, c.ID) != want {
				t.Errorf("%s in %s: supported %v", c.Name, tls.VersionName(v), !want)
			}
		}
	}
	s32, s48 := make([]byte, 32), make([]byte, 48)
	for _, err := range []error{
		second(New13(Server, tls.TLS_AES_128_GCM_SHA256, s48, s48, 0, 0)),
		second(New13(Server, tls.TLS_AES_256_GCM_SHA384, s48, s32, 0, 0)),
		second(New13(Server, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, s32, s32, 0, 0)),
		second(New13(Server, tls.TLS_AES_128_GCM_SHA256, s32, s32, 1<<63, 0)),
		second(New12(Server, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, s48, s32, s48, 1, 1)),
		second(New12(Server, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, s32, s32, s32, 1, 1)),
		second(New12(Server, tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA, s48, s32, s32, 1, 1)),
		second(New12(Server, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, s48, s32, s32, 1, 1<<63)),
	} {
		if err == nil || !strings.HasPrefix(err.Error(), "tlsrecord: ") {
			t.Errorf("error %v", err)
		}
	}
}

func second(_ *Conn, err error) error { return err }
