package accesslog

import (
	"encoding/json"
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"edgeproxy/internal/sniff"
	"edgeproxy/listener"
)

// line has the fields of the access log in their order.
type line struct {
	Time          time.Time `json:"time"`
	ID            string    `json:"id"`
	Listener      string    `json:"listener"`
	Route         string    `json:"route,omitempty"`
	Upstream      string    `json:"upstream,omitempty"`
	Server        string    `json:"server,omitempty"`
	Source        string    `json:"source,omitempty"`
	Destination   string    `json:"destination,omitempty"`
	ServerAddress string    `json:"server_address,omitempty"`
	Protocol      string    `json:"protocol"`
	BytesIn       uint64    `json:"bytes_in"`
	BytesOut      uint64    `json:"bytes_out"`
	DurationMS    float64   `json:"duration_ms"`
	ConnectMS     float64   `json:"connect_ms"`
	Retries       int       `json:"retries"`
	End           string    `json:"end"`
	Phase         string    `json:"phase"`
	Error         string    `json:"error,omitempty"`
}

var full = listener.Record{
	Time:          time.Date(2026, 11, 23, 23, 59, 59, 7_999_999, time.FixedZone("", 3600)),
	ID:            0xfe,
	Listener:      "edge",
	Route:         "rest",
	Upstream:      "web",
	Server:        "a",
	Source:        netip.MustParseAddrPort("192.0.2.1:4711"),
	Destination:   netip.MustParseAddrPort("[2001:db8::1]:443"),
	ServerAddress: "10.0.0.1:8080",
	BytesIn:       100,
	BytesOut:      1 << 63,
	Duration:      12345678 * time.Nanosecond,
	Connect:       999 * time.Nanosecond,
	Retries:       1,
	End:           listener.ServerReset,
	Phase:         listener.PhaseRelay,
	Err:           errors.New("read: connection reset by peer"),
}

func TestJSON(t *testing.T) {
	with := func(f func(*listener.Record)) listener.Record { r := full; f(&r); return r }
	for _, tt := range []struct {
		name string
		r    listener.Record
		want string
	}{
		{"all", full, `{"time":"2026-11-23T22:59:59.007Z","id":"00000000000000fe","listener":"edge","route":"rest","upstream":"web","server":"a",` +
			`"source":"192.0.2.1:4711","destination":"[2001:db8::1]:443","server_address":"10.0.0.1:8080","protocol":"tcp",` +
			`"bytes_in":100,"bytes_out":9223372036854775808,"duration_ms":12.345,"connect_ms":0.000,"retries":1,` +
			`"end":"server_reset","phase":"relay","error":"read: connection reset by peer"}`},
		{"denied on a unix socket", listener.Record{Time: time.Unix(0, 0), ID: 1<<64 - 1, Listener: "edge", DestUnix: "/run/e.sock", End: listener.Denied},
			`{"time":"1970-01-01T00:00:00.000Z","id":"ffffffffffffffff","listener":"edge","destination":"unix:/run/e.sock","protocol":"tcp",` +
				`"bytes_in":0,"bytes_out":0,"duration_ms":0.000,"connect_ms":0.000,"retries":0,"end":"denied","phase":"accept"}`},
		{"IPv4 on a dual-stack socket", with(func(r *listener.Record) {
			*r = listener.Record{Time: time.Unix(0, 0), Source: netip.MustParseAddrPort("[::ffff:192.0.2.1]:1"), Duration: -1}
		}), `{"time":"1970-01-01T00:00:00.000Z","id":"0000000000000000","listener":"","source":"192.0.2.1:1","protocol":"tcp",` +
			`"bytes_in":0,"bytes_out":0,"duration_ms":0.000,"connect_ms":0.000,"retries":0,"end":"client_closed","phase":"accept"}`},
		{"UDP", listener.Record{Time: time.Unix(0, 0), Listener: "dns", Network: listener.UDP, BytesIn: 30, BytesOut: 512, DatagramsOut: 2, End: listener.ResponsesDone, Phase: listener.PhaseRelay},
			`{"time":"1970-01-01T00:00:00.000Z","id":"0000000000000000","listener":"dns","protocol":"udp",` +
				`"bytes_in":30,"bytes_out":512,"datagrams_in":0,"datagrams_out":2,"duration_ms":0.000,"connect_ms":0.000,"retries":0,"end":"responses_done","phase":"relay"}`},
		{"QUIC", listener.Record{Time: time.Unix(0, 0), Listener: "h3", Network: listener.UDP, Protocol: sniff.QUIC, SNI: "a.example", ALPN: "h3", DatagramsIn: 1<<64 - 1, End: listener.IdleTimeout, Phase: listener.PhaseRelay},
			`{"time":"1970-01-01T00:00:00.000Z","id":"0000000000000000","listener":"h3","protocol":"quic","sni":"a.example","alpn":"h3",` +
				`"bytes_in":0,"bytes_out":0,"datagrams_in":18446744073709551615,"datagrams_out":0,"duration_ms":0.000,"connect_ms":0.000,"retries":0,"end":"idle_timeout","phase":"relay"}`},
	} {
		var e encoder
		if got := string(e.appendJSON(nil, &tt.r)); got != tt.want+"\n" {
			t.Errorf("%s:\ngot  %swant %s", tt.name, got, tt.want)
		}
	}
}

func TestConsole(t *testing.T) {
	var e encoder
	for _, tt := range []struct {
		r    listener.Record
		want string
	}{
		{full, "2026-11-23T22:59:59.007Z 00000000000000fe edge/rest 192.0.2.1:4711 -> web/a 10.0.0.1:8080 tcp in=100 out=9223372036854775808 " +
			"duration=12.345ms connect=0.000ms retries=1 server_reset in relay: read: connection reset by peer\n"},
		{listener.Record{Time: time.Unix(0, 0), Listener: "a b", DestUnix: "@e", Err: errors.New("x\ny")},
			"1970-01-01T00:00:00.000Z 0000000000000000 \"a b\" unix:@e -> -/- - tcp in=0 out=0 duration=0.000ms connect=0.000ms retries=0 client_closed in accept: x\\ny\n"},
		{listener.Record{Time: time.Unix(0, 0), Listener: "dns", Network: listener.UDP, BytesIn: 30, DatagramsIn: 1, BytesOut: 512, DatagramsOut: 2, End: listener.ResponsesDone, Phase: listener.PhaseRelay},
			"1970-01-01T00:00:00.000Z 0000000000000000 dns - -> -/- - udp in=30/1 out=512/2 duration=0.000ms connect=0.000ms retries=0 responses_done in relay\n"},
	} {
		if got := string(e.appendConsole(nil, &tt.r)); got != tt.want {
			t.Errorf("\ngot  %swant %s", got, tt.want)
		}
	}
}

var hostile = []string{
	"", "plain", `"`, `\`, `","end":"killed`, "\n", "\r\n\t", "\x00\x01\x1f\x7f", "\x1b[31m", "\u0085", "\u2028\u2029", "weiß", "日本語", "😀",
	"\xff", "a\xc3", "\xed\xa0\x80", "\ufffd", "</script>", strings.Repeat("x", maxName), strings.Repeat("x", maxName+1),
	strings.Repeat("é", maxName), strings.Repeat("\x01", 2*maxError), strings.Repeat("\xff", 2*maxError), strings.Repeat("😀", maxError),
}

// shown is what a reader of the log should see of s.
func shown(s string, limit int) string {
	cut := len(s) > limit
	if cut {
		for limit > 0 && !utf8.RuneStart(s[limit]) {
			limit--
		}
		s = s[:limit]
	}
	// Not ToValidUTF8, which makes one U+FFFD of several bytes.
	s = string([]rune(s))
	if cut {
		s += "…"
	}
	return s
}

func checkHostile(t *testing.T, s string) {
	t.Helper()
	r := full
	r.Listener, r.Route, r.Upstream, r.Server, r.ServerAddress = s, s, s, s, s
	r.Destination, r.DestUnix = netip.AddrPort{}, s
	r.Source = netip.AddrPortFrom(netip.MustParseAddr("fe80::1").WithZone(s), 1)
	r.Err = errors.New(s)
	var e encoder
	b := e.appendJSON(nil, &r)
	if len(b) > maxLine {
		t.Errorf("%q: a line of %d bytes, above the maximum of %d", s, len(b), maxLine)
	}
	if n := strings.Count(string(b), "\n"); n != 1 || b[len(b)-1] != '\n' {
		t.Errorf("%q: %d line ends", s, n)
	}
	if !utf8.Valid(b) {
		t.Errorf("%q: not UTF-8: %q", s, b)
	}
	var got line
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatalf("%q: %v in %s", s, err, b)
	}
	name := shown(s, maxName)
	want := got // what the text does not touch is the business of TestJSON
	want.Listener, want.Route, want.Upstream, want.Server, want.ServerAddress = name, name, name, name, name
	want.Source = shown(r.Source.String(), maxName)
	if s != "" {
		want.Destination = "unix:" + name
	}
	want.Error = shown(s, maxError)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%q:\ngot  %+v\nwant %+v", s, got, want)
	}
	if b = e.appendConsole(nil, &r); len(b) > maxLine || strings.Count(string(b), "\n") != 1 || strings.ContainsAny(string(b), "\x1b\x00\r") {
		t.Errorf("%q: console line %q", s, b)
	}
}

func TestHostileTexts(t *testing.T) {
	for _, s := range hostile {
		checkHostile(t, s)
	}
	for c := range 256 { // every byte
		checkHostile(t, "a"+string([]byte{byte(c)})+"b")
	}
}

func FuzzHostileTexts(f *testing.F) {
	for _, s := range hostile {
		f.Add(s)
	}
	f.Fuzz(checkHostile)
}

func TestEncoderKeepsUpWithTime(t *testing.T) {
	var e encoder
	at := time.Date(2027, 12, 31, 23, 59, 58, 0, time.UTC)
	for range 5000 {
		if got, want := string(e.appendTime(nil, at)), at.Format("2006-01-02T15:04:05.000Z07:00"); got != want {
			t.Fatalf("got %s, want %s", got, want)
		}
		at = at.Add(997 * time.Microsecond)
	}
}

func TestEncoderKeepsUpWithDestinations(t *testing.T) {
	var e encoder
	for _, s := range []string{"192.0.2.1:443", "192.0.2.1:443", "0.9.10.99:0", "100.101.199.255:65535", "[::1]:80", "[fe80::1%eth0]:80", "192.0.2.1:443"} {
		if got := string(e.appendDestination(nil, netip.MustParseAddrPort(s))); got != s {
			t.Errorf("got %s, want %s", got, s)
		}
	}
}

func BenchmarkEncode(b *testing.B) {
	r := full
	r.BytesOut, r.End, r.Err = 1024, listener.ClientClosed, nil
	var e encoder
	buf := make([]byte, 0, maxLine)
	for b.Loop() {
		r.Time = r.Time.Add(10 * time.Microsecond)
		buf = e.appendJSON(buf[:0], &r)
	}
}
