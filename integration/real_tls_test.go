package integration

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"edgeproxy/internal/testcert"
)

// The tests in the files real_tls_*_test.go are those of real_*_test.go for
// TLS: clients and servers with TLS libraries other than Go's.

// toolFails runs a client program that must fail, and returns its output.
func toolFails(t testing.TB, exe string, args ...string) string {
	t.Helper()
	out, err := toolWith(t, nil, exe, args...)
	if err == nil {
		t.Errorf("%s %s succeeded; it must not\n%s", exe, strings.Join(args, " "), out)
	}
	return string(out)
}

// toolWith runs a client program with a standard input. Without one it reads
// nothing, and the end of it only when the program itself has ended: many
// clients take that end for their own.
func toolWith(t testing.TB, in io.Reader, exe string, args ...string) ([]byte, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, exe, args...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	cmd.Stdin = r
	if in != nil {
		go func() { io.Copy(w, in) }()
	}
	return cmd.CombinedOutput()
}

// talk is a program that is used through its standard input and output.
type talk struct {
	t     testing.TB
	in    io.WriteCloser
	ended chan struct{}

	mu   sync.Mutex
	out  bytes.Buffer
	seen int // up to here Await has found what it looked for
}

func startTalk(t testing.TB, exe string, args ...string) *talk {
	t.Helper()
	k := &talk{t: t, ended: make(chan struct{})}
	cmd := exec.CommandContext(t.Context(), exe, args...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stdout, cmd.Stderr = k, k
	var err error
	if k.in, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		cmd.Wait()
		close(k.ended)
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-k.ended
	})
	return k
}

// Write takes the program's output.
func (k *talk) Write(b []byte) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.out.Write(b)
}

func (k *talk) text() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.out.String()
}

// Send writes a line.
func (k *talk) Send(line string) {
	k.t.Helper()
	if _, err := io.WriteString(k.in, line+"\n"); err != nil {
		k.t.Fatalf("sending %q: %v\n%s", line, err, k.text())
	}
}

// Await waits until the program has said something after what the last call
// waited for.
func (k *talk) Await(what string) {
	k.t.Helper()
	eventually(k.t, func() bool {
		k.mu.Lock()
		defer k.mu.Unlock()
		i := bytes.Index(k.out.Bytes()[k.seen:], []byte(what))
		if i >= 0 {
			k.seen += i + len(what)
		}
		return i >= 0
	}, func() string { return fmt.Sprintf("%q in\n%s", what, k.text()) })
}

// AwaitEnd waits for the program's end and returns all it has said.
func (k *talk) AwaitEnd() string {
	k.t.Helper()
	eventually(k.t, func() bool {
		select {
		case <-k.ended:
			return true
		default:
			return false
		}
	}, func() string { return "the program's end\n" + k.text() })
	return k.text()
}

// End writes a last line and waits for the program's end.
func (k *talk) End(line string) string {
	k.t.Helper()
	k.Send(line)
	return k.AwaitEnd()
}

// caFile is the authority's certificate.
func (l *tlsLab) caFile() string { return l.ca.Write(l.t, l.dir, "ca") }

// with issues NAME.crt and NAME.key.
func (l *tlsLab) with(name string, tpl testcert.Template) *testcert.Pair {
	l.t.Helper()
	p := l.ca.Issue(l.t, tpl)
	p.Write(l.t, l.dir, name)
	return p
}

func (l *tlsLab) file(name string) string { return filepath.Join(l.dir, name) }

// want asserts that a program has said something.
func want(t testing.TB, output, what string) {
	t.Helper()
	if !strings.Contains(output, what) {
		t.Errorf("no %q in\n%s", what, output)
	}
}

// blob is a file of random bytes.
func blob(t testing.TB, dir, name string, size int) (path string, content []byte) {
	t.Helper()
	content = randomBytes(size)
	path = filepath.Join(dir, name)
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
	return path, content
}

func wantFile(t testing.TB, path string, content []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("%s: %d bytes, %v; want the %d that were sent", filepath.Base(path), len(got), err, len(content))
	}
}

// takesThenTells reads so many bytes, then answers with their SHA-256 and
// ends: a test of uploads for clients that cannot half-close.
func takesThenTells(size int) func(Conn) {
	return func(c Conn) {
		h := sha256.New()
		if _, err := io.CopyN(h, c, int64(size)); err == nil {
			fmt.Fprintf(c, "took %x\n", h.Sum(nil))
		}
	}
}

func tookAll(content []byte) string { return fmt.Sprintf("took %x\n", sha256.Sum256(content)) }
