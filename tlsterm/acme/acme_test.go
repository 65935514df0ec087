package acme

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mholt/acmez/v3/acme"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"edgeproxy/internal/testacme"
	"edgeproxy/internal/testcert"
)

func challengeFor(name, kind, token string) acme.Challenge {
	return acme.Challenge{
		Type:             kind,
		Token:            token,
		KeyAuthorization: token + ".thumbprint",
		Identifier:       acme.Identifier{Type: "dns", Value: name},
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	roots := testcert.NewCA(t, "roots").Write(t, dir, "roots")
	empty := testcert.WriteFile(t, dir, "empty.pem", nil)
	label := strings.Repeat("a", 63)
	for _, tt := range []struct {
		name string
		edit func(*Options)
		want string // in the error; "": none
	}{
		{"as it is", func(*Options) {}, ""},
		{"no email", func(o *Options) { o.Email = "" }, ""},
		{"trailing dot and case", func(o *Options) { o.Domains = []string{"A.Example.COM."} }, ""},
		{"one label", func(o *Options) { o.Domains = []string{"intranet"} }, ""},
		{"longest label", func(o *Options) { o.Domains = []string{label + ".com"} }, ""},
		{"IDNA", func(o *Options) { o.Domains = []string{"xn--bcher-kva.example"} }, ""},
		{"http-01 alone", func(o *Options) { o.NoTLSALPN, o.HTTPAddress = true, "127.0.0.1:8402" }, ""},
		{"ca_file", func(o *Options) { o.CAFile = roots }, ""},

		{"no domains", func(o *Options) { o.Domains = nil }, "no domains"},
		{"wildcard", func(o *Options) { o.Domains = []string{"*.example.com"} }, "dns-01"},
		{"address", func(o *Options) { o.Domains = []string{"192.0.2.1"} }, "addresses"},
		{"IPv6 address", func(o *Options) { o.Domains = []string{"2001:db8::1"} }, "addresses"},
		{"empty", func(o *Options) { o.Domains = []string{""} }, "1 to 253"},
		{"too long", func(o *Options) { o.Domains = []string{strings.Repeat(label+".", 3) + label} }, "1 to 253"},
		{"label too long", func(o *Options) { o.Domains = []string{label + "a.com"} }, "not a host name"},
		{"empty label", func(o *Options) { o.Domains = []string{"a..com"} }, "not a host name"},
		{"hyphen first", func(o *Options) { o.Domains = []string{"-a.com"} }, "not a host name"},
		{"hyphen last", func(o *Options) { o.Domains = []string{"a-.com"} }, "not a host name"},
		{"beyond ASCII", func(o *Options) { o.Domains = []string{"bücher.example"} }, "xn--"},
		{"path", func(o *Options) { o.Domains = []string{"a/b"} }, "no place"},
		{"scheme", func(o *Options) { o.Domains = []string{"https://a.com"} }, `':' has no place`},
		{"email", func(o *Options) { o.Email = "nobody" }, "name@domain"},
		{"email with a name", func(o *Options) { o.Email = "Ops <ops@example.com>" }, "name@domain"},
		{"http directory", func(o *Options) { o.Directory = "http://ca.example/dir" }, "https://"},
		{"directory without host", func(o *Options) { o.Directory = "https:dir" }, "https://"},
		{"no storage", func(o *Options) { o.Storage = "" }, "storage"},
		{"http_address without port", func(o *Options) { o.HTTPAddress = "127.0.0.1" }, "host:port"},
		{"http_address with a name for a port", func(o *Options) { o.HTTPAddress = ":http" }, "host:port"},
		{"port too high", func(o *Options) { o.HTTPAddress = ":65536" }, "host:port"},
		{"no challenge left", func(o *Options) { o.NoTLSALPN = true }, "http_address"},
		{"no ca_file", func(o *Options) { o.CAFile = dir + "/none.pem" }, "none.pem"},
		{"empty ca_file", func(o *Options) { o.CAFile = empty }, "no PEM certificate"},
	} {
		o := Options{Domains: []string{"example.com"}, Email: "ops@example.com", Storage: dir}
		tt.edit(&o)
		switch err := o.Check(); {
		case tt.want == "" && err != nil:
			t.Errorf("%s: %v", tt.name, err)
		case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%s: error %v, want one with %q", tt.name, err, tt.want)
		}
	}
}

func TestIsChallenge(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		alpn []string
		want bool
	}{
		{"a.test", []string{"acme-tls/1"}, true},
		{"", []string{"acme-tls/1"}, false},
		{"a.test", nil, false},
		{"a.test", []string{"acme-tls/1", "h2"}, false},
		{"a.test", []string{"h2", "acme-tls/1"}, false},
		{"a.test", []string{"acme-tls/2"}, false},
	} {
		if got := IsChallenge(tt.name, tt.alpn); got != tt.want {
			t.Errorf("IsChallenge(%q, %q) = %v", tt.name, tt.alpn, got)
		}
	}
}

func TestPause(t *testing.T) {
	t.Parallel()
	refused := fmt.Errorf("order: %w", acme.Problem{Type: acme.ProblemTypeUnauthorized})
	unreachable := errors.New("connection refused")
	for _, tt := range []struct {
		failures int
		err      error
		want     time.Duration
	}{
		{1, unreachable, 5 * time.Second},
		{2, unreachable, 10 * time.Second},
		{7, unreachable, 5 * time.Minute},
		{1 << 40, unreachable, 5 * time.Minute},
		{1, refused, time.Minute},
		{2, refused, 5 * time.Minute},
		{8, refused, 8 * time.Hour},
		{1 << 40, refused, 8 * time.Hour},
	} {
		if got := pause(tt.failures, tt.err); got < tt.want || got > tt.want+tt.want/10 {
			t.Errorf("pause(%d, %v) = %v, want %v and at most a tenth more", tt.failures, tt.err, got, tt.want)
		}
	}
	// Let's Encrypt: five failed validations of a name in an hour.
	inAnHour, at := 0, time.Duration(0)
	for n := 1; at < time.Hour; n++ {
		inAnHour++
		at += pause(n, refused)
	}
	if inAnHour > 5 {
		t.Errorf("%d orders in the first hour", inAnHour)
	}
}

func TestStorageMustBeWritable(t *testing.T) {
	t.Parallel()
	file := testcert.WriteFile(t, t.TempDir(), "file", []byte("x"))
	o := Options{Domains: []string{"a.test"}, Storage: file}
	if _, err := NewService(nil).New(o); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("a file as storage folder: %v", err)
	}
}

func TestStorageIsPrivate(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "a", "b")
	s, err := newStorage(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Store(t.Context(), "x/key", []byte("secret")); err != nil {
		t.Fatal(err)
	}
	if err := s.Lock(t.Context(), "l"); err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: mode %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A daemon that starts as root and becomes somebody else must be able to renew.
func TestHandOver(t *testing.T) {
	t.Parallel()
	uid, gid := os.Getuid(), os.Getgid()
	if uid == 0 {
		uid, gid = 65534, 65534
	}
	s := NewService(nil)
	o := Options{Domains: []string{"a.test"}, Storage: t.TempDir()}
	m, err := s.New(o)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.storage.Store(t.Context(), "certificates/ca/a.test/a.test.key", []byte("secret")); err != nil {
		t.Fatal(err)
	}
	testcert.WriteFile(t, o.Storage, "of somebody else", nil)
	if err := s.HandOver(uid, gid); err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir(o.Storage, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		owner, want := info.Sys().(*syscall.Stat_t).Uid, uint32(uid)
		if d.Name() == "of somebody else" {
			want = uint32(os.Getuid())
		}
		if owner != want {
			t.Errorf("%s belongs to %d, want %d", path, owner, want)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestStorageLocks(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	a, _ := newStorage(dir)
	b, err := newStorage(dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	if err := a.Lock(ctx, "x"); err != nil {
		t.Fatal(err)
	}
	if ok, err := a.TryLock(ctx, "x"); ok || err != nil {
		t.Errorf("the same storage, again: %v, %v", ok, err)
	}
	if ok, err := b.TryLock(ctx, "x"); ok || err != nil {
		t.Errorf("another storage of the folder: %v, %v", ok, err)
	}
	if ok, err := b.TryLock(ctx, "y"); !ok || err != nil {
		t.Errorf("another lock: %v, %v", ok, err)
	}
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if err := b.Lock(gone, "x"); !errors.Is(err, context.Canceled) {
		t.Errorf("a wait that was cancelled: %v", err)
	}
	got := make(chan error, 1)
	go func() { got <- b.Lock(ctx, "x") }()
	if err := a.Unlock(ctx, "x"); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Errorf("after the unlock: %v", err)
	}
	if err := a.Unlock(ctx, "x"); err == nil {
		t.Error("what is not locked was unlocked")
	}
	b.Unlock(ctx, "x")
	b.Unlock(ctx, "y")
}

// Each attempt has a pause that is longer, as long as the Manager lives.
func TestRetriesUntilClosed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s := NewService(nil)
		m, err := s.New(Options{Domains: []string{"a.test"}, Storage: dir, Directory: "https://ca.test/dir"})
		if err != nil {
			t.Fatal(err)
		}
		var at []time.Time
		m.issuer.http.Transport = transport(func() { at = append(at, time.Now()) })
		m.Start()
		time.Sleep(time.Hour)
		m.Close()
		tries := len(at)
		time.Sleep(time.Hour)
		if len(at) != tries {
			t.Errorf("%d requests after Close", len(at)-tries)
		}
		if at[len(at)-1].Sub(at[0]) < 50*time.Minute {
			t.Errorf("the last of %d requests %v after the first", tries, at[len(at)-1].Sub(at[0]))
		}
	})
}

// Nothing of a Manager is left after Close, whatever was under way.
func TestCloseLeavesNothing(t *testing.T) {
	// Not parallel: it looks at all goroutines.
	e := newEdge(t)
	ca := testacme.Start(t, testacme.Options{TLSPort: 1})
	o := options(t, ca, "a.test", "b.test", "c.test", "d.test", "e.test", "f.test")
	o.HTTPAddress = "127.0.0.1:0"
	began := make(chan struct{}, 1)
	s := service(t)
	s.pause = func(int, error) time.Duration {
		select {
		case began <- struct{}{}:
		default:
		}
		return time.Millisecond
	}
	m := e.serve(s, o)
	m.Start()
	<-began
	m.Close()
	m.Close() // again is harmless
	m.Start()
	var stacks string
	left := func() bool {
		buf := make([]byte, 1<<20)
		stacks = string(buf[:runtime.Stack(buf, true)])
		for stack := range strings.SplitSeq(stacks, "\n\n") {
			if strings.Contains(stack, "certmagic") || strings.Contains(stack, "acme.(*keeper)") || strings.Contains(stack, "acme.(*issuer)") || strings.Contains(stack, "acme.(*Service)") {
				return true
			}
		}
		return false
	}
	eventually(t, "no goroutine is left", func() bool { return !left() })
}

// What certmagic complains of is tried again: it is no error. What fails
// because of the end is not worth a line.
func TestLibraryLog(t *testing.T) {
	t.Parallel()
	core, seen := observer.New(zapcore.InfoLevel)
	ctx, end := context.WithCancel(t.Context())
	log := zap.New(core).WithOptions(zap.IncreaseLevel(zapcore.WarnLevel), zap.WrapCore(func(c zapcore.Core) zapcore.Core { return libraryLog{c, ctx} }))
	log.Info("one")
	log.Named("n").With(zap.Int("a", 1)).Warn("two")
	log.With(zap.Int("a", 1)).Error("three")
	end()
	log.Error("four")
	var got []string
	for _, e := range seen.All() {
		got = append(got, e.Level.String()+" "+e.Message)
	}
	if fmt.Sprint(got) != "[warn two warn three]" {
		t.Errorf("logged %v", got)
	}
}

func BenchmarkCertificate(b *testing.B) {
	m, err := NewService(nil).New(Options{Domains: []string{"www.example.test"}, Storage: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer m.Close()
	pair := testcert.NewCA(b, "ca").Server(b, "www.example.test")
	if _, err := m.config.CacheUnmanagedCertificatePEMBytes(b.Context(), pair.CertPEM, pair.KeyPEM, nil); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if m.certificate("www.example.test") == nil {
			b.Fatal("no certificate")
		}
	}
}

// transport is a network without the authority.
type transport func()

func (f transport) RoundTrip(*http.Request) (*http.Response, error) {
	f()
	return nil, errors.New("unreachable")
}
