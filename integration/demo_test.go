package integration

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

var curlURL = regexp.MustCompile(`curl .*?(http://127\.0\.0\.1:\d+|127\.0\.0\.1:\d+)`)

// The demo needs nothing at all: it prints its file and what to try, serves
// from three servers, and leaves nothing behind.
func TestDemo(t *testing.T) {
	t.Parallel()
	dir := shortTempDir(t)
	temp := filepath.Join(dir, "tmp")
	if err := os.Mkdir(temp, 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := os.Create(filepath.Join(dir, "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := command(program(t), &setup{env: []string{"TMPDIR=" + temp}}, "demo")
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	t.Cleanup(func() { cmd.Process.Kill() })
	text := func() string {
		b, _ := os.ReadFile(out.Name())
		return string(b)
	}
	eventually(t, func() bool { return curlURL.MatchString(text()) }, text)
	for _, want := range []string{`listener "tcp" "http"`, `upstream "web"`, "least_conn", `listener "udp" "ping"`, "nc -u"} {
		if !strings.Contains(text(), want) {
			t.Errorf("nothing about %q in:\n%s", want, text())
		}
	}
	url := "http://" + strings.TrimPrefix(curlURL.FindStringSubmatch(text())[1], "http://")
	client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	answers := map[string]bool{}
	eventually(t, func() bool {
		resp, err := client.Get(url)
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		answers[string(regexp.MustCompile(`web-[abc]`).Find(body))] = true
		return answers["web-a"] && answers["web-b"] && answers["web-c"]
	}, func() string { return "all three servers answer\n" + text() })

	cmd.Process.Signal(syscall.SIGINT)
	select {
	case err := <-exited:
		if err != nil {
			t.Errorf("%v\n%s", err, text())
		}
	case <-time.After(patience):
		t.Errorf("the demo does not end\n%s", text())
	}
	if left, _ := os.ReadDir(temp); len(left) > 0 {
		t.Errorf("left in the temporary folder: %v", left)
	}
	if line := crashLine(text()); line != "" {
		t.Error(line)
	}
}
