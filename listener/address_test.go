package listener

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParseAddress(t *testing.T) {
	t.Parallel()
	ip := func(s string) Address { return Address{AddrPort: netip.MustParseAddrPort(s)} }
	dual := func(port uint16) Address {
		return Address{AddrPort: netip.AddrPortFrom(netip.IPv6Unspecified(), port), Dual: true}
	}
	long := strings.Repeat("x", 106)
	for in, want := range map[string][]Address{
		":443":                  {dual(443)},
		"*:443":                 {dual(443)},
		":0":                    {dual(0)},
		":65534-65535":          {dual(65534), dual(65535)},
		"0.0.0.0:443":           {ip("0.0.0.0:443")},
		"[::]:443":              {ip("[::]:443")},
		"[::1]:1-3":             {ip("[::1]:1"), ip("[::1]:2"), ip("[::1]:3")},
		"127.0.0.1:80-80":       {ip("127.0.0.1:80")},
		"[fe80::1%lo]:80":       {ip("[fe80::1%lo]:80")},
		"[::ffff:127.0.0.1]:80": {ip("127.0.0.1:80")},
		"unix:/run/e.sock":      {{Unix: "/run/e.sock"}},
		"unix:/run/e:1-2":       {{Unix: "/run/e:1-2"}},
		"unix:@e":               {{Unix: "@e"}},
		"unix:/" + long:         {{Unix: "/" + long}},
		"systemd:web":           {{Systemd: "web"}},
	} {
		got, err := ParseAddress(in)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %+v, %v; want %+v", in, got, err, want)
			continue
		}
		for _, a := range got {
			if again, err := ParseAddress(a.String()); err != nil || len(again) != 1 || again[0] != a {
				t.Errorf("%q: the text %q reads as %+v, %v", in, a.String(), again, err)
			}
		}
	}
	if all, err := ParseAddress(":1-65535"); err != nil || len(all) != 65535 || all[65534] != dual(65535) {
		t.Errorf("all ports: %d, %v", len(all), err)
	}
}

func TestParseAddressRefuses(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"":                                  "has no port",
		"443":                               `write ":443"`,
		"127.0.0.1":                         "has no port",
		"localhost:80":                      "host name",
		"300.1.1.1:80":                      "not an IP address",
		"::1:80":                            `"[::1]:80"`,
		"[127.0.0.1]:80":                    "not an IPv6 address",
		"[]:80":                             "not an IPv6 address",
		"[:80":                              "not an IP address",
		"]:80":                              "not an IP address",
		":65536":                            "0 to 65535",
		":-1":                               "0 to 65535",
		":":                                 "0 to 65535",
		":http":                             "0 to 65535",
		":80-":                              "0 to 65535",
		":80-65536":                         "0 to 65535",
		":80-90-95":                         "0 to 65535",
		":90-80":                            "empty",
		":0-80":                             "from 1",
		"unix:":                             "names no socket",
		"unix:@":                            "names no socket",
		"unix:run/e.sock":                   "absolute",
		"unix:/" + strings.Repeat("x", 107): "at most 107",
		"systemd:":                          "FileDescriptorName=",
	} {
		if got, err := ParseAddress(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %+v, %v; want an error with %q", in, got, err, want)
		}
	}
}

func FuzzParseAddress(f *testing.F) {
	for _, s := range []string{":443", "*:1", "[::1]:1-3", "127.0.0.1:0", "unix:@a", "systemd:a", "[", "[]:", "::1:2"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		as, err := ParseAddress(s)
		if err == nil && len(as) == 0 {
			t.Errorf("%q: no address and no error", s)
		}
		for i, a := range as {
			again, err := ParseAddress(a.String())
			if err != nil || len(again) != 1 || again[0] != a {
				t.Errorf("%q: the text %q reads as %+v, %v", s, a.String(), again, err)
			}
			if !a.Overlaps(a) && a.AddrPort.Port() != 0 || i > 0 && a.Overlaps(as[i-1]) {
				t.Errorf("%q: overlaps are wrong", s)
			}
		}
	})
}

// The kernel is the oracle: what overlaps cannot be bound side by side. All
// of 127.0.0.0/8 is local, and so is nothing else that must be configured.
func TestOverlapsAgainstTheKernel(t *testing.T) {
	t.Parallel()
	forms := []string{":", "0.0.0.0:", "[::]:", "127.0.0.1:", "127.0.0.2:", "[::1]:"}
	for _, x := range forms {
		for _, y := range forms {
			// A stranger may hold the second address of a port; not time after time.
			for try := range 5 {
				first, second, err := bindBoth(t, one(t, x+"0"), one(t, y+"0"))
				got := first.Overlaps(second)
				if got != second.Overlaps(first) {
					t.Errorf("%v and %v: not symmetric", first, second)
				}
				if got == (err != nil) {
					break
				}
				if got || try == 4 {
					t.Errorf("%v overlaps %v: %v, but binding both: %v", first, second, got, err)
					break
				}
			}
		}
	}
}

// bindBoth listens on the first address and tries the second on the same port.
func bindBoth(t *testing.T, first, second Address) (a, b Address, err error) {
	t.Helper()
	fd, err := bindTCP(first, first.AddrPort, false)
	if err != nil {
		t.Fatalf("%s: %v", first, err)
	}
	defer unix.Close(fd)
	if err := unix.Listen(fd, 1); err != nil {
		t.Fatal(err)
	}
	port := boundTo(fd).Port()
	first.AddrPort = netip.AddrPortFrom(first.AddrPort.Addr(), port)
	second.AddrPort = netip.AddrPortFrom(second.AddrPort.Addr(), port)
	other, err := bindTCP(second, second.AddrPort, false)
	if err == nil {
		err = unix.Listen(other, 1)
		unix.Close(other)
	}
	if err != nil && !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("%v beside %v: %v", second, first, err)
	}
	return first, second, err
}

func one(t testing.TB, s string) Address {
	t.Helper()
	as, err := ParseAddress(s)
	if err != nil || len(as) != 1 {
		t.Fatal(as, err)
	}
	return as[0]
}

func TestOverlapsOfOtherForms(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		a, b string
		want bool
	}{
		{":80", ":81", false},
		{":0", ":0", false},
		{"127.0.0.1:0", "127.0.0.1:0", false},
		{"[fe80::1%1]:80", "[fe80::1%2]:80", false},
		{"[::]:80", "[fe80::1%2]:80", true},
		{"0.0.0.0:80", "[fe80::1%2]:80", false},
		{":80", "unix:/a", false},
		{"unix:/a", "unix:/a", true},
		{"unix:/a", "unix:@a", false},
		{"unix:/a", "systemd:a", false},
		{"systemd:a", "systemd:a", true},
		{"systemd:a", "systemd:b", false},
		{"systemd:a", ":80", false},
	} {
		a, b := one(t, test.a), one(t, test.b)
		if a.Overlaps(b) != test.want || b.Overlaps(a) != test.want {
			t.Errorf("%s, %s: %v, %v", a, b, a.Overlaps(b), b.Overlaps(a))
		}
	}
}
