package traffic

import (
	"io"
	"net/netip"
	"testing"
	"time"

	"edgeproxy/integration/bench/peer"
)

func TestQUICAgainstBackend(t *testing.T) {
	t.Parallel()
	certificate, err := peer.NewCertificate(t.TempDir(), ServerName)
	if err != nil {
		t.Fatal(err)
	}
	l, err := listenQUIC(netip.MustParseAddrPort("127.0.0.1:0"), certificate.CertFile, certificate.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go serveQUIC(l)
	target := netip.MustParseAddrPort(l.Addr().String())
	replies := decode(t, []Command{
		{Open: &Open{Connections: 3, Request: 100, Answer: 1024}},
		{Run: &Run{Request: 100, Answer: 3 << 20}},
		{Run: &Run{Request: 100, Answer: 1024, Duration: 30 * time.Millisecond}},
	}, func(in io.Reader, out io.Writer) error {
		return Obey([]netip.AddrPort{target}, QUIC, 1, in, out)
	})
	if replies[0].Error != "" {
		t.Fatal(replies[0].Error)
	}
	for i, r := range []*Result{replies[1].Result, replies[2].Result} {
		if r == nil || r.Errors > 0 || r.Requests < 3 || r.Elapsed <= 0 || r.Latency.Count() != r.Requests {
			t.Errorf("run %d: %+v", i, r)
		}
	}
	if r := replies[1].Result; r != nil && (r.Requests != 3 || r.Bytes != 9<<20) {
		t.Errorf("got %+v", r)
	}
	if err := AskQUIC(target.String()); err != nil {
		t.Error(err)
	}
}
