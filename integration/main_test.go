// Package integration looks at edgeproxy from outside: it builds the binary,
// runs it as a process of its own between instrumented servers and clients,
// and reads what operators read: exit codes, logs, metrics and the admin API.
// After every test the harness asserts that the process left nothing behind.
//
// Nothing here imports the program's packages: what these tests know of it is
// what stands in the documentation. The one exception is the record layer, with
// which clients make records that no client should send.
package integration

import (
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// patience bounds every wait for a condition. It is long because it only
// matters when something is wrong, and the machine may be busy.
const patience = 30 * time.Second

var build = struct {
	once sync.Once
	dir  string
	err  error

	plain    sync.Once
	plainErr error
}{}

// program builds edgeproxy once per test run, with the race detector when the
// tests themselves run with it, and returns its path. EDGEPROXY_BINARY names
// one to be tested instead, such as that of a package.
func program(t testing.TB) string {
	t.Helper()
	if path := os.Getenv("EDGEPROXY_BINARY"); path != "" {
		return path
	}
	build.once.Do(func() {
		if build.dir, build.err = os.MkdirTemp("", "edgeproxy-integration-"); build.err != nil {
			return
		}
		// Some tests run it as another user.
		if build.err = os.Chmod(build.dir, 0o755); build.err != nil {
			return
		}
		if build.err = noteSources(); build.err != nil {
			return
		}
		var args []string
		if raceEnabled {
			args = []string{"-race"}
		}
		build.err = goBuild("edgeproxy", args...)
	})
	if build.err != nil {
		t.Fatal(build.err)
	}
	return filepath.Join(build.dir, "edgeproxy")
}

// plainProgram is program without the race detector.
func plainProgram(t testing.TB) string {
	t.Helper()
	path := program(t)
	if !raceEnabled || os.Getenv("EDGEPROXY_BINARY") != "" {
		return path
	}
	build.plain.Do(func() { build.plainErr = goBuild("edgeproxy-plain") })
	if build.plainErr != nil {
		t.Fatal(build.plainErr)
	}
	return filepath.Join(build.dir, "edgeproxy-plain")
}

func goBuild(name string, args ...string) error {
	args = append([]string{"build", "-o", filepath.Join(build.dir, name)}, args...)
	if out, err := exec.Command("go", append(args, "edgeproxy/cmd/edgeproxy")...).CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	return nil
}

// noteSources looks at every source file, which makes `go test` take its
// result from the cache only while none of them has changed: it knows nothing
// of what a test builds.
func noteSources() error {
	return filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name := d.Name(); d.IsDir() && len(name) > 2 && name[0] == '.' {
			return fs.SkipDir
		}
		switch filepath.Ext(path) {
		case ".go", ".mod", ".sum", ".hcl":
			_, err = os.Stat(path)
		}
		return err
	})
}

func TestMain(m *testing.M) {
	flag.Parse()
	// Most tests wait for timeouts and processes rather than compute, so more
	// of them than there are CPUs run side by side, unless the caller chose.
	chosen := false
	flag.Visit(func(f *flag.Flag) { chosen = chosen || f.Name == "test.parallel" })
	if !chosen {
		flag.Set("test.parallel", "6")
	}
	code := m.Run()
	if build.dir != "" {
		os.RemoveAll(build.dir)
	}
	os.Exit(code)
}

// eventually waits for a condition, and fails the test with what describe
// returns when it does not come about.
func eventually(t testing.TB, cond func() bool, describe func() string) {
	t.Helper()
	if !waitFor(patience, cond) {
		t.Fatalf("not within %v: %s", patience, describe())
	}
}

// waitFor polls a condition of another process, for which there is nothing to
// block on.
func waitFor(limit time.Duration, cond func() bool) bool {
	end := time.Now().Add(limit)
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		if cond() {
			return true
		}
		if time.Now().After(end) {
			return false
		}
		time.Sleep(pause)
	}
}
