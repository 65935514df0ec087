package integration

import (
	"bytes"
	"strconv"
	"strings"
	"testing"
)

// gnutls is a running gnutls-cli. Lines such as ^rekey^ are commands to it.
func (l *tlsLab) gnutls(addr string, args ...string) *talk {
	l.t.Helper()
	return startTalk(l.t, need(l.t, "gnutls-cli"), l.gnutlsArgs(addr, args...)...)
}

func (l *tlsLab) gnutlsArgs(addr string, args ...string) []string {
	return append([]string{"--x509cafile", l.caFile(), "--sni-hostname", "app.test", "--verify-hostname", "app.test",
		"-p", splitPort(l.t, addr), "127.0.0.1"}, args...)
}

// GnuTLS with either version, with groups and limits of its own, new keys and
// a resumed session within one run.
func TestRealTLSGnuTLS(t *testing.T) {
	t.Parallel()
	need(t, "gnutls-cli")
	l := newTLSLab(t)
	p := Start(t, l.edgeWith(`alpn = ["echo"]`, "", "", Serve(t, echo).Addr()))
	n := 0
	for _, c := range []struct{ priority, says string }{
		{"NORMAL:-VERS-ALL:+VERS-TLS1.2", "TLS1.2"},
		{"NORMAL:-VERS-ALL:+VERS-TLS1.3", "TLS1.3"},
		{"NORMAL:-VERS-ALL:+VERS-TLS1.3:-GROUP-ALL:+GROUP-SECP521R1", "SECP521R1"},
		{"NORMAL:-VERS-ALL:+VERS-TLS1.3:-CIPHER-ALL:+CHACHA20-POLY1305", "CHACHA20-POLY1305"},
		{"NORMAL:-VERS-ALL:+VERS-TLS1.2:-CIPHER-ALL:+AES-256-GCM", "AES-256-GCM"},
		{"NORMAL:%COMPAT:%NO_TICKETS", "TLS1.3"},
		{"NORMAL:%ALLOW_SMALL_RECORDS", "TLS1.3"},
	} {
		args := []string{"--inline-commands", "--priority", c.priority, "--alpn", "echo"}
		if strings.Contains(c.priority, "SMALL") {
			args = append(args, "--recordsize", "512")
		}
		k := l.gnutls(p.Addr("edge"), args...)
		k.Await("Simple Client Mode")
		k.echoes("hello", strings.Repeat("0123456789", 50))
		if strings.Contains(c.says, "1.3") {
			k.Send("^rekey^")
			k.echoes("after new keys", strings.Repeat("abcdefghij", 50))
		}
		k.in.Close()
		out := k.AwaitEnd()
		want(t, out, c.says)
		want(t, out, "- Application protocol: echo")
		n++
		if e := p.LastEnd(n, "client_closed", "relay"); e.ALPN != "echo" {
			t.Errorf("%+v", e)
		}
	}
	want(t, toolFails(t, need(t, "gnutls-cli"), l.gnutlsArgs(p.Addr("edge"), "--priority", "NORMAL:-VERS-ALL:+VERS-TLS1.1:+SHA1:%COMPAT")...), "protocol version")
}

func TestRealTLSGnuTLSResumes(t *testing.T) {
	t.Parallel()
	need(t, "gnutls-cli")
	l := newTLSLab(t)
	p := Start(t, l.edge(Serve(t, echo).Addr()))
	for _, version := range []string{"1.2", "1.3"} {
		k := l.gnutls(p.Addr("edge"), "--resume", "--waitresumption", "--priority", "NORMAL:-VERS-ALL:+VERS-TLS"+version)
		k.Await("This is a resumed session")
		k.Await("Simple Client Mode")
		k.echoes("hello")
		k.in.Close()
		k.AwaitEnd()
		p.assertHandshakes(version, 1, 1)
	}
}

// Uploads, and downloads of gnutls-cli, which ends by itself when the server does.
func TestRealTLSGnuTLSTransfers(t *testing.T) {
	t.Parallel()
	cli := need(t, "gnutls-cli")
	l := newTLSLab(t)
	content := bytes.Repeat([]byte("0123456789abcdef"), 1<<19) // without lines that would be commands
	some := content[:1<<18]                                    // it writes single bytes
	up := Start(t, l.edge(Serve(t, takesThenTells(len(content))).Addr()))
	down := Start(t, l.edge(Serve(t, func(c Conn) { c.Write(some) }).Addr()))
	for i, version := range []string{"1.2", "1.3"} {
		args := []string{"--priority", "NORMAL:-VERS-ALL:+VERS-TLS" + version, "--logfile", l.file("log")}
		out, err := toolWith(t, bytes.NewReader(content), cli, l.gnutlsArgs(up.Addr("edge"), args...)...)
		if err != nil || !bytes.Contains(out, []byte(tookAll(content))) {
			t.Errorf("%s: %v, %s", version, err, tail(string(out), 500))
		}
		if e := up.LastEnd(i+1, "server_closed", "relay"); e.BytesIn != int64(len(content)) {
			t.Error(version, "counted", strconv.FormatInt(e.BytesIn, 10))
		}
		if out, err := outputWith(t, cli, l.gnutlsArgs(down.Addr("edge"), args...)...); err != nil || !bytes.Equal(bytes.TrimRight(out, "\n"), some) {
			t.Errorf("%s: %d bytes of %d, %v", version, len(out), len(some), err)
		}
	}
}
