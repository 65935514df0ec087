package logging

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
)

// childEnv makes the test binary log to a stderr whose reader is gone.
const childEnv = "LOGGING_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) == "" {
		os.Exit(m.Run())
	}
	l, err := New(Options{})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	for range 3 {
		l.Zap().Error("into the void")
	}
	fmt.Print("alive")
}

func open(t *testing.T, o Options) *Logger {
	t.Helper()
	l, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestJSONFields(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l := open(t, Options{Output: path})
	before := time.Now().Truncate(time.Millisecond)
	l.Zap().With(zap.String("listener", "edge")).Warn("accepting paused", zap.Duration("for", 1500*time.Millisecond), zap.Error(errors.New("too many\nopen files")))

	var line map[string]any
	if err := json.Unmarshal([]byte(read(t, path)), &line); err != nil {
		t.Fatal(err)
	}
	at, err := time.Parse("2006-01-02T15:04:05.000Z", line["time"].(string))
	if err != nil || at.Before(before) || at.After(time.Now()) {
		t.Errorf("time %v, want RFC 3339 with milliseconds, in UTC, of now (%v)", line["time"], err)
	}
	delete(line, "time")
	want := map[string]any{"level": "warn", "msg": "accepting paused", "listener": "edge", "for": 1.5, "error": "too many\nopen files"}
	if fmt.Sprint(line) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", line, want)
	}
}

func TestConsole(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l := open(t, Options{Output: path, Format: "console"})
	l.Zap().Info("ready", zap.Int("listeners", 3), zap.Duration("after", 1500*time.Millisecond))
	_, got, _ := strings.Cut(read(t, path), "Z")
	if want := "  INFO   ready  {\"listeners\": 3, \"after\": \"1.5s\"}\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestBadOptions(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if out, err := exec.Command("mkfifo", fifo).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	good := filepath.Join(dir, "good")
	l := open(t, Options{Output: good})
	for _, tt := range []struct {
		o    Options
		want string
	}{
		{Options{Level: "loud"}, `log level "loud" is unknown; use debug, info, warn or error`},
		{Options{Format: "xml"}, `log format "xml" is unknown; use json or console`},
		{Options{Output: dir + "/no/log"}, "log: opening " + dir + "/no/log: no such file or directory; create the directory " + dir + "/no, writable"},
		{Options{Output: dir}, "is a directory; name a file in it"},
		{Options{Output: fifo}, "start its reader first"},
		{Options{Output: good + "/log"}, "not a directory"},
	} {
		if _, err := New(tt.o); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("New(%+v): %v, want %q", tt.o, err, tt.want)
		}
		if _, err := l.Prepare(tt.o); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Prepare(%+v): %v, want %q", tt.o, err, tt.want)
		}
	}
	l.Zap().Info("still here")
	if !strings.Contains(read(t, good), "still here") {
		t.Error("a change that failed to prepare has changed something")
	}
}

func TestChangeReachesDerivedLoggers(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	l := open(t, Options{Output: a})
	derived := l.Zap().With(zap.String("upstream", "web"))

	c, err := l.Prepare(Options{Output: b, Format: "console", Level: "debug"})
	if err != nil {
		t.Fatal(err)
	}
	derived.Debug("one")
	derived.Info("two")
	c.Commit()
	derived.Debug("three")
	if c, err = l.Prepare(Options{Output: b, Level: "error"}); err != nil { // the same file: stays open
		t.Fatal(err)
	}
	c.Commit()
	derived.Warn("four")
	derived.Error("five")
	if c, err = l.Prepare(Options{Output: a}); err != nil {
		t.Fatal(err)
	}
	c.Discard()
	derived.Error("six")

	if got := read(t, a); strings.Count(got, "\n") != 1 || !strings.Contains(got, `"msg":"two","upstream":"web"`) {
		t.Errorf("first file: %q", got)
	}
	lines := strings.Split(read(t, b), "\n")
	if len(lines) != 4 || !strings.HasSuffix(lines[0], `DEBUG  three  {"upstream": "web"}`) ||
		!strings.Contains(lines[1], `"msg":"five","upstream":"web"`) || !strings.Contains(lines[2], `"msg":"six"`) {
		t.Errorf("second file: %q", lines)
	}
}

func TestReopenLosesNothing(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "log")
	l := open(t, Options{Output: path})
	const writers, lines, rotations = 4, 300, 20
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range lines {
				l.Zap().Info("x", zap.Int("line", w*lines+i))
			}
		})
	}
	for r := range rotations {
		if err := os.Rename(path, fmt.Sprintf("%s.%d", path, r)); err != nil {
			t.Fatal(err)
		}
		if err := l.Reopen(); err != nil {
			t.Fatal(err)
		}
	}
	wg.Wait()

	seen := make([]int, writers*lines)
	files, _ := filepath.Glob(path + "*")
	for _, f := range files {
		for dec := json.NewDecoder(strings.NewReader(read(t, f))); dec.More(); {
			var v struct{ Line int }
			if err := dec.Decode(&v); err != nil {
				t.Fatal(err)
			}
			seen[v.Line]++
		}
	}
	for i, n := range seen {
		if n != 1 {
			t.Fatalf("line %d is there %d times", i, n)
		}
	}
}

func TestFailedReopenKeepsTheFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "logs")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	l := open(t, Options{Output: filepath.Join(dir, "log")})
	moved := dir + ".moved"
	if err := os.Rename(dir, moved); err != nil {
		t.Fatal(err)
	}
	if err := l.Reopen(); err == nil || !strings.Contains(err.Error(), "create the directory") {
		t.Errorf("reopening in a directory that is gone: %v", err)
	}
	l.Zap().Info("after")
	if !strings.Contains(read(t, filepath.Join(moved, "log")), "after") {
		t.Error("the old file is not in use any more")
	}
}

func TestReopenOfAStreamDoesNothing(t *testing.T) {
	for _, output := range []string{"", "stderr", "stdout", "/dev/stderr"} {
		l := open(t, Options{Output: output})
		before := l.file
		if err := l.Reopen(); err != nil || l.file != before {
			t.Errorf("output %q: %v", output, err)
		}
	}
}

func TestLinesGoToStderrWhileTheFileFails(t *testing.T) {
	path := filepath.Join(t.TempDir(), "stderr")
	stderr, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	l := open(t, Options{Output: "/dev/full"}) // every write: ENOSPC
	l.stderr.Close()
	l.stderr = stderr
	l.Zap().Info("one")
	l.Zap().Info("two")
	lines := strings.Split(read(t, path), "\n")
	if len(lines) != 4 || !strings.Contains(lines[0], "no space left on device") || !strings.Contains(lines[1], `"one"`) || !strings.Contains(lines[2], `"two"`) {
		t.Errorf("stderr has %q, want one notice and both lines", lines)
	}
}

// os(3), signals: a broken pipe on descriptor 1 or 2 ends a Go program.
func TestBrokenStderrIsSurvived(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	var stdout bytes.Buffer
	cmd := exec.Command(os.Args[0])
	cmd.Env = []string{childEnv + "=1", "GORACE=atexit_sleep_ms=0"}
	cmd.Stdout, cmd.Stderr = &stdout, w
	r.Close()
	if err := cmd.Run(); err != nil || stdout.String() != "alive" {
		t.Errorf("%v, printed %q, want \"alive\"", err, stdout.String())
	}
}

func BenchmarkInfo(b *testing.B) {
	l, err := New(Options{Output: "/dev/null"})
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	z := l.Zap().With(zap.String("upstream", "web"))
	b.ReportAllocs()
	for b.Loop() {
		z.Info("server is down", zap.String("server", "a"), zap.Int("failures", 3))
	}
}
