package config

import "testing"

// FuzzHostPattern: what the quick look takes is what the thorough one makes of
// it, and the form that comes out stays as it is.
func FuzzHostPattern(f *testing.F) {
	for _, s := range []string{
		"example.com", "Example.COM.", "*.bücher.example", "*", "*.", "a..b", "1.2.3.4", "1.2.3", "[::1]", "::FFFF:1.2.3.4", "a-.b", "-a.b", "a_b.c",
		"xn--bcher-kva.example", "a:1", "https://a", ".a", "K.example", "faß.de", "a.*.b", "fe80::1%eth0",
	} {
		f.Add(s, true)
		f.Add(s, false)
	}
	f.Fuzz(func(t *testing.T, s string, addresses bool) {
		name, why, _ := hostPattern(s, addresses)
		if plain(s) && (why != "" || name != s) {
			t.Fatalf("%q is plain, yet %q %q", s, name, why)
		}
		if why != "" {
			return
		}
		if again, why, _ := hostPattern(name, addresses); again != name || why != "" {
			t.Fatalf("%q gives %q, which gives %q %q", s, name, again, why)
		}
	})
}
