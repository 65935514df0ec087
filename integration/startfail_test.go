package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A configuration that can be read but not opened is refused by the system's
// reason, with the listener, the address, and what to do.
func TestStartFailures(t *testing.T) {
	t.Parallel()
	taken := Serve(t, echo)
	body := func(address string) string {
		return strings.Replace(oneUpstream("", "", taken.Addr()), "127.0.0.1:0", address, 1)
	}
	dir := shortTempDir(t)
	readOnly := filepath.Join(dir, "read-only")
	if err := os.Mkdir(readOnly, 0o555); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	file := writeFile(t, filepath.Join(dir, "a-file"), "precious")
	for name, c := range map[string]struct {
		body    string
		says    []string
		options []Option
	}{
		"port in use":            {body(taken.Addr()), []string{`"edge"`, taken.Addr(), "address already in use", "ss -"}, nil},
		"second of two in use":   {strings.Replace(body("127.0.0.1:0"), `"127.0.0.1:0"`, fmt.Sprintf(`["127.0.0.1:0", %q]`, taken.Addr()), 1), []string{`"edge"`, taken.Addr()}, nil},
		"address of another":     {body("192.0.2.77:8080"), []string{`"edge"`, "192.0.2.77:8080", "cannot assign"}, nil},
		"missing unix folder":    {body("unix:" + dir + "/none/e.sock"), []string{`"edge"`, "create the folder " + dir + "/none"}, nil},
		"a file, not a socket":   {body("unix:" + file), []string{`"edge"`, file}, nil},
		"folder not writable":    {body("unix:" + readOnly + "/e.sock"), []string{`"edge"`, readOnly, "permission denied"}, []Option{asNobody}},
		"access log not there":   {body("127.0.0.1:0") + fmt.Sprintf("access_log { output = %q }\n", dir+"/none/access.log"), []string{dir + "/none"}, nil},
		"log is a folder":        {body("127.0.0.1:0") + fmt.Sprintf("log { output = %q }\n", dir), []string{dir}, nil},
		"admin in use":           {body("127.0.0.1:0") + fmt.Sprintf("admin { address = %q }\n", taken.Addr()), []string{"admin", taken.Addr(), "address already in use"}, nil},
		"systemd socket missing": {body("systemd:web"), []string{`"edge"`, "systemd:web"}, nil},
		"unknown user":           {body("127.0.0.1:0") + "process { user = \"no-such-user\" }\n", []string{"no-such-user"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			code, out, errs := startOnly(t, c.body, c.options...)
			if code != 1 {
				t.Errorf("exit code %d, want 1\n%s%s", code, out, errs)
			}
			for _, want := range c.says {
				if !strings.Contains(strings.ReplaceAll(errs, `\"`, `"`), want) {
					t.Errorf("nothing about %q in:\n%s", want, errs)
				}
			}
		})
	}
	if b, err := os.ReadFile(file); string(b) != "precious" {
		t.Errorf("a file that stood in a socket's place: %q, %v", b, err)
	}
}

// Without the capability, a low port is refused with what to do about it.
func TestStartWithoutPermission(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
	if err != nil {
		t.Fatal(err)
	}
	var lowest int
	fmt.Sscan(string(b), &lowest)
	code, _, errs := startOnly(t, strings.Replace(oneUpstream("", "", "127.0.0.1:1"), "127.0.0.1:0", "127.9.9.9:80", 1), asNobody)
	if lowest <= 80 {
		t.Logf("this machine lets everybody bind ports from %d", lowest)
		return
	}
	errs = strings.ReplaceAll(errs, `\"`, `"`)
	for _, want := range []string{`"edge"`, "127.9.9.9:80", "permission denied", "CAP_NET_BIND_SERVICE"} {
		if code != 1 || !strings.Contains(errs, want) {
			t.Errorf("exit code %d, nothing about %q in:\n%s", code, want, errs)
		}
	}
}
