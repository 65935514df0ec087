package main

import (
	"fmt"
	"strings"
	"testing"

	"edgeproxy/internal/testcert"
)

func TestCheckReadsFiles(t *testing.T) {
	t.Parallel()
	ca := testcert.NewCA(t, "one")
	dir := t.TempDir()
	cert, key := ca.Server(t, "example.com").Write(t, dir, "web")
	_, other := ca.Server(t, "example.com").Write(t, dir, "other")
	roots := ca.Write(t, dir, "ca")
	body := func(cert, key, roots string) string {
		return fmt.Sprintf(`tls "public" {
  certificate {
    cert_file = %q
    key_file  = %q
  }
  certificate {
    acme {
      domains = ["example.org"]
      email   = "ops@example.org"
    }
  }
}

listener "tcp" "edge" {
  address  = "127.0.0.1:0"
  tls      = tls.public
  upstream = upstream.web
}

upstream "web" {
  server "a" {
    address = "127.0.0.1:8080"
  }
  tls {
    server_name = "web.internal"
    ca_file     = %q
  }
}
`, cert, key, roots)
	}
	for _, tt := range []struct {
		name, cert, key, roots string
		flags                  []string
		code                   int
		stderr                 []string
	}{
		{"fine", cert, key, roots, nil, 0, nil},
		{"another certificate's key", cert, other, roots, nil, 1, []string{"public", other}},
		{"no such files", cert, key + "x", roots + "x", nil, 1, []string{":4:", key + "x", ":26:", roots + "x", "2 errors"}},
		{"not looked at", cert, key + "x", roots + "x", []string{"--files=false"}, 0, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			path := writeFile(t, "edge.hcl", body(tt.cert, tt.key, tt.roots))
			got := edgeproxy(t, "", append([]string{"check", "-c", path}, tt.flags...)...)
			if got.code != tt.code {
				t.Errorf("exit code %d\n%s", got.code, got.stderr)
			}
			for _, part := range tt.stderr {
				if !strings.Contains(got.stderr, part) {
					t.Errorf("%q is missing in\n%s", part, got.stderr)
				}
			}
		})
	}
}
