package integration

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"edgeproxy/internal/testcert"
)

// finding is one of testssl.sh's.
type finding struct {
	ID       string
	Severity string
	Finding  string
}

// testssl.sh finds nothing to complain about with a `tls` block that has
// nothing but certificates. Of lower severity are that the authority is not
// named in the DNS, and that tickets of TLS 1.2 are announced as good for a
// week: a hint, which crypto/tls fixes at its own limit.
//
// The certificate names a responder, as one of a real authority does; it is
// asked by nobody.
func TestRealTLSScan(t *testing.T) {
	testssl := need(t, "testssl")
	l := newTLSLab(t)
	template := testcert.Template{Names: []string{"app.test"}, NotAfter: time.Now().AddDate(0, 0, 85), OCSPServer: "http://" + local(1)}
	l.with("app", template)
	template.RSA = true
	l.with("rsa", template)
	port := FreePorts(t, 1)
	startNginx(t, local(port), "server {\n listen "+local(port)+";\n add_header Strict-Transport-Security max-age=31536000;\n location / { return 200 ok; }\n}")
	p := Start(t, l.edgeWith(l.certificate("rsa"), "", "", local(port)))
	report := filepath.Join(l.dir, "report.json")
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, testssl, "--add-ca", l.caFile(), "--jsonfile", report, "--warnings", "off", "--color", "0", "--quiet",
		"--ip", "127.0.0.1", "-p", "-s", "-f", "-P", "-S", "-U", "-c", "app.test:"+splitPort(t, p.Addr("edge")))
	cmd.Dir = "/"
	out, _ := cmd.CombinedOutput() // its exit code is the number of findings
	text, err := os.ReadFile(report)
	if err != nil {
		t.Fatalf("%v\n%s", err, tail(string(out), 4000))
	}
	var findings []finding
	if err := json.Unmarshal(text, &findings); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	seen := map[string]string{}
	for _, f := range findings {
		id, _, _ := strings.Cut(f.ID, " ") // "cert_… <cert#1>"
		seen[id] = f.Finding
		if id == "overall_grade" && !strings.HasPrefix(f.Finding, "A") { // of testssl.sh 3.2 and later
			t.Errorf("grade %s", f.Finding)
		}
		if slices.Contains([]string{"MEDIUM", "HIGH", "CRITICAL", "FATAL"}, f.Severity) || strings.HasPrefix(f.Finding, "VULNERABLE") {
			t.Errorf("%s (%s): %s", f.ID, f.Severity, f.Finding)
		}
	}
	for id, want := range map[string]string{
		"SSLv2": "not offered", "SSLv3": "not offered", "TLS1": "not offered", "TLS1_1": "not offered",
		"TLS1_2": "offered", "TLS1_3": "offered",
		"heartbleed": "not vulnerable", "ticketbleed": "not vulnerable", "ROBOT": "not vulnerable", "secure_renego": "supported",
		"secure_client_renego": "not vulnerable", "SWEET32": "not vulnerable", "LOGJAM": "not vulnerable", "LUCKY13": "not vulnerable", "RC4": "not vulnerable",
	} {
		if !strings.HasPrefix(seen[id], want) {
			t.Errorf("%s: %q, want %q", id, seen[id], want)
		}
	}
	if t.Failed() {
		t.Log(string(out))
	}
}
