package peer

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestConfigsNameEveryAddress(t *testing.T) {
	t.Parallel()
	s := Setup{
		Workers: 3, Listen: []string{"127.0.0.1:1001", "127.0.0.1:1002"}, Servers: []string{"127.1.0.1:80", "127.1.0.2:80"},
		Admin: "127.0.0.1:1003", Bulk: "127.0.0.1:1004", Descriptors: 5000, Sessions: 2200, Name: "bench.example",
	}
	encrypted, named := s, s
	encrypted.Certificate = &Certificate{CertFile: "/c/crt", KeyFile: "/c/key", Both: "/c/pem"}
	named.Named = "127.0.0.1:1005"
	datagrams := s
	datagrams.Datagrams = true
	for _, tt := range []struct {
		kind  *Kind
		setup Setup
		also  []string
	}{
		{Edgeproxy, s, []string{"workers = 3", s.Admin}},
		{HAProxy, s, []string{"nbthread 3", "splice-auto", "splice-response", "maxconn 2200", s.Bulk}},
		{Nginx, s, []string{"worker_processes 3", "reuseport", "load_module /x/y.so;", "worker_rlimit_nofile 5000"}},
		{IOCopy, s, nil},
		{Edgeproxy, encrypted, []string{"/c/crt", "/c/key", "X25519", `"1.3"`, "tls.bench"}},
		{HAProxy, encrypted, []string{"ssl crt /c/pem", "X25519", "TLSv1.3", "TLS_AES_128_GCM_SHA256", s.Bulk}},
		{Nginx, encrypted, []string{"/c/crt", "/c/key", "X25519", "TLSv1.3", "TLS_AES_128_GCM_SHA256", s.Bulk}},
		{IOCopy, encrypted, []string{"/c/crt", "/c/key"}},
		{Edgeproxy, named, []string{named.Named, named.Name}},
		{HAProxy, named, []string{named.Named, named.Name, "req.ssl_sni"}},
		{Nginx, named, []string{named.Named, named.Name, "ssl_preread on"}},
		{IOCopy, named, []string{named.Named, named.Name}},
		{Edgeproxy, datagrams, []string{`listener "udp"`, "max_connections = 2200"}},
		{Nginx, datagrams, []string{"udp reuseport rcvbuf=4m", "proxy_timeout 30s"}},
		{IOCopy, datagrams, []string{"listen-udp 127.0.0.1:1002"}},
	} {
		kind, s := tt.kind, tt.setup
		p := &Peer{Name: "p", Kind: kind, module: "/x/y.so"}
		file, err := p.WriteConfig(t.TempDir(), s)
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range append(append(tt.also, s.Listen...), s.Servers...) {
			if !strings.Contains(string(b), want) {
				t.Errorf("%s lacks %q:\n%s", file, want, b)
			}
		}
	}
}

func TestMissingProgramSaysHowToInstall(t *testing.T) {
	t.Parallel()
	for _, kind := range []*Kind{Edgeproxy, HAProxy, Nginx} {
		_, err := Find("it", kind, "/nowhere/at/all")
		if err == nil || !strings.Contains(err.Error(), "install with: "+kind.Install) || !strings.Contains(err.Error(), "/nowhere/at/all") {
			t.Errorf("got %v", err)
		}
	}
}

func TestProcessThatEndsSaysWhy(t *testing.T) {
	t.Parallel()
	p, err := StartProcess("failing", []string{"sh", "-c", "echo out of order >&2; exit 3"}, nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Stop()
	<-p.Exited()
	if err := p.Failure(); !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), "out of order") {
		t.Errorf("got %v", err)
	}
}

func TestStopEndsAProcessThatWillNot(t *testing.T) {
	t.Parallel()
	started, stdout, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer started.Close()
	// It ignores SIGTERM, and so does its child.
	p, err := StartProcess("stubborn", []string{"sh", "-c", "trap '' TERM; echo; sleep 1000 & wait; wait"}, nil, nil, stdout)
	stdout.Close()
	if err != nil {
		t.Fatal(err)
	}
	started.Read(make([]byte, 1))
	p.Stop()
	<-p.Exited()
	// The pipe ends when nobody has it open any more: the child is gone as well.
	if n, err := started.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("read %d, %v", n, err)
	}
}

func TestFreePorts(t *testing.T) {
	t.Parallel()
	if p, err := FreePorts(50); err != nil || p < 1024 || p+50 > 65535 {
		t.Errorf("%d, %v", p, err)
	}
}

func TestIOCopySaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	for config, want := range map[string]string{
		"":                                       "needs a listen and a server",
		"listen 127.0.0.1:0\n":                   "needs a listen and a server",
		"server 127.0.0.1:1\n":                   "needs a listen and a server",
		"listen\n":                               "no listen or server line",
		"serve 127.0.0.1:0\n":                    "no listen or server line",
		"listen-sni 127.0.0.1:0\n":               "no listen or server line",
		"listen-udp nowhere\n":                   "nowhere",
		"listen-udp 127.0.0.1:0\n":               "needs a listen and a server",
		"listen-tls 127.0.0.1:0 /none /nowhere ": "/none",
	} {
		file := filepath.Join(t.TempDir(), "iocopy.conf")
		if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := RunIOCopy(file); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want an error with %q", config, err, want)
		}
	}
}
