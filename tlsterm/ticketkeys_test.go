package tlsterm

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"slices"
	"strings"
	"testing"
)

func TestTicketKeyFiles(t *testing.T) {
	t.Parallel()
	key := func(n int) []byte {
		b := make([]byte, n)
		rand.Read(b)
		return b
	}
	k48, k80, k, l, m := key(48), key(80), key(80), key(80), key(80)
	wrapped := []byte(base64.StdEncoding.EncodeToString(k80))
	wrapped = slices.Concat(wrapped[:64], []byte("\n"), wrapped[64:], []byte("\n"))
	text48 := bytes.Repeat([]byte("abcdefgh"), 6)
	for name, tt := range map[string]struct {
		data []byte
		seal []byte
		open [][]byte
		want string // in the error
	}{
		"nginx, AES-128":            {k48, k48, [][]byte{k48}, ""},
		"nginx, AES-256":            {k80, k80, [][]byte{k80}, ""},
		"HAProxy, one":              {keyLines(k), k, [][]byte{k}, ""},
		"HAProxy, two":              {keyLines(k, l), k, [][]byte{k, l}, ""},
		"HAProxy, three":            {keyLines(k, l, m), l, [][]byte{k, l, m}, ""},
		"HAProxy, four":             {keyLines(k80, k, l, m), l, [][]byte{k, l, m}, ""},
		"of different lengths":      {keyLines(k48, k80), k48, [][]byte{k48, k80}, ""},
		"CR LF":                     {bytes.ReplaceAll(keyLines(k, l), []byte("\n"), []byte("\r\n")), k, [][]byte{k, l}, ""},
		"no final line feed":        {bytes.TrimSpace(keyLines(k, l)), k, [][]byte{k, l}, ""},
		"comments and empty lines":  {slices.Concat([]byte("# old\n\n"), keyLines(k), []byte("  # new\n"), keyLines(l)), k, [][]byte{k, l}, ""},
		"empty":                     {nil, nil, nil, "no key"},
		"only a comment":            {[]byte("# none\n"), nil, nil, "no key"},
		"32 bytes":                  {bytes.Repeat([]byte{0x81, 0x92}, 16), nil, nil, "32 bytes that are no text"},
		"two raw keys":              {bytes.Repeat([]byte{0x81, 0x92}, 80), nil, nil, "160 bytes that are no text"},
		"a line of 32 bytes":        {keyLines(k, key(32)), nil, nil, "line 2 has 32 bytes"},
		"wrapped by openssl base64": {wrapped, nil, nil, "line 1 has 48 bytes"},
		"text that is not base64":   {[]byte("secret!\n"), nil, nil, "line 1 is not base64"},
		"48 characters of base64":   {text48, nil, nil, "line 1 has 36 bytes"},
		"zeros":                     {make([]byte, 80), nil, nil, "one byte repeated"},
		"a line of zeros":           {keyLines(k, make([]byte, 48)), nil, nil, "one byte repeated"},
		"too large":                 {bytes.Repeat([]byte("#\n"), maxTicketKeyFile), nil, nil, "too many"},
	} {
		if name == "wrapped by openssl base64" {
			// 64 characters are 48 bytes: the first line is a key by its
			// length, the second is not.
			tt.want = "line 2 has"
		}
		got, err := parseTicketKeys(tt.data)
		switch {
		case tt.want != "":
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s: %v; want %q", name, err, tt.want)
			}
		case err != nil:
			t.Errorf("%s: %v", name, err)
		default:
			var open [][]byte
			for _, m := range got.open {
				open = append(open, m.secret)
			}
			if !bytes.Equal(got.seal.secret, tt.seal) || !slices.EqualFunc(open, tt.open, bytes.Equal) {
				t.Errorf("%s: other keys", name)
			}
		}
	}
	// An error must not show what may be a key.
	if _, err := parseTicketKeys([]byte("c2VjcmV0c2VjcmV0!\n")); err == nil || strings.Contains(err.Error(), "c2Vj") {
		t.Error(err)
	}
}

func FuzzTicketKeys(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(bytes.Repeat([]byte{1, 2}, 24))
	f.Add(bytes.Repeat([]byte{1, 2}, 40))
	f.Add(keyLines(bytes.Repeat([]byte{1, 2}, 24), bytes.Repeat([]byte{3, 4}, 40)))
	f.Add([]byte("# none\r\n\r\nAAAA\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := parseTicketKeys(data)
		if err != nil {
			return
		}
		if !slices.Contains(m.open, m.seal) || len(m.open) > ticketKeysKept {
			t.Errorf("%d keys", len(m.open))
		}
		for _, k := range m.open {
			if !ticketKeyLen(len(k.secret)) {
				t.Errorf("a key of %d bytes", len(k.secret))
			}
		}
	})
}

func FuzzRevocations(f *testing.F) {
	f.Add([]byte("-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n"))
	f.Add([]byte{0x30, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		if r, err := parseRevocations(data, nil); err == nil {
			t.Errorf("%d lists without an authority", len(r.lists))
		}
	})
}
