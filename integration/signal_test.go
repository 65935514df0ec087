package integration

import (
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// SIGUSR1 opens the log files again, so that logrotate can move them away:
// every line is in the old file or in the new one.
func TestReopenLogs(t *testing.T) {
	t.Parallel()
	s := Serve(t, named("app"))
	p := Start(t, oneUpstream("", "", s.Addr()))
	addr := p.Addr("edge")
	load := StartLoad(t, 2, func() error { _, err := fetch(addr); return err })
	moved := []string{}
	for i := range 5 {
		load.AwaitRequests(t, 20)
		old := p.path("access.log." + strconv.Itoa(i))
		if err := os.Rename(p.path("access.log"), old); err != nil {
			t.Fatal(err)
		}
		moved = append(moved, old)
		p.Signal(syscall.SIGUSR1)
		eventually(t, func() bool { _, err := os.Stat(p.path("access.log")); return err == nil },
			func() string { return "the access log is there again\n" + p.Log() })
	}
	load.AwaitRequests(t, 20)
	assertNoFailures(t, load)
	p.Await(0, "edgeproxy_sessions_active")
	var lines int64
	eventually(t, func() bool {
		lines = 0
		for _, path := range append(moved, p.path("access.log")) {
			entries, err := parseAccessLog(path)
			if err != nil {
				return false
			}
			lines += int64(len(entries))
		}
		return lines == load.Requests()
	}, func() string {
		return strconv.FormatInt(lines, 10) + " lines for " + strconv.FormatInt(load.Requests(), 10)
	})
}

// SIGUSR1 also opens the program's own log again.
func TestReopenOwnLog(t *testing.T) {
	t.Parallel()
	file := shortTempDir(t) + "/edge.log"
	s := Serve(t, named("app"))
	p := Start(t, oneUpstream("", "", s.Addr()), WithLog(`log { output = "`+file+`" }`))
	before, err := os.ReadFile(file)
	if err != nil || len(before) == 0 {
		t.Fatalf("the log: %q, %v", before, err)
	}
	if err := os.Rename(file, file+".1"); err != nil {
		t.Fatal(err)
	}
	p.Signal(syscall.SIGUSR1)
	eventually(t, func() bool { _, err := os.Stat(file); return err == nil }, func() string { return "the log is there again" })
	p.SignalReload()
	eventually(t, func() bool { b, _ := os.ReadFile(file); return len(b) > 0 }, func() string { return "a reload is logged in the new file" })
}

// The service manager learns what sd_notify(3) describes.
func TestNotify(t *testing.T) {
	t.Parallel()
	s := Serve(t, named("app"))
	good := oneUpstream("", "", s.Addr())
	p := Start(t, good, WithEnv("WATCHDOG_USEC=400000"))
	if n := p.note.count("READY=1"); n != 1 {
		t.Errorf("%d times READY=1 after the start", n)
	}
	p.Reload(good)
	all := strings.Join(p.note.all(), " ")
	if !regexp.MustCompile(`READY=1 .*RELOADING=1 (STATUS=.* )?MONOTONIC_USEC=\d+ .*READY=1`).MatchString(all) {
		t.Errorf("after a reload: %q, want RELOADING=1 with MONOTONIC_USEC, then READY=1", all)
	}
	p.ReloadFails("nonsense {")
	if r, n := p.note.count("RELOADING=1"), p.note.count("READY=1"); r != 2 || n != 3 {
		t.Errorf("after a good and a bad reload %d times RELOADING=1, %d times READY=1; want 2 and 3", r, n)
	}
	before := p.note.count("WATCHDOG=1")
	begin := time.Now()
	eventually(t, func() bool { return p.note.count("WATCHDOG=1") >= before+4 }, func() string { return "WATCHDOG=1 keeps coming" })
	if d := time.Since(begin); d > 4*400*time.Millisecond {
		t.Errorf("4 times WATCHDOG=1 took %v; the interval is 400 ms", d)
	}
	p.Term()
	if n := p.note.count("STOPPING=1"); n != 1 {
		t.Errorf("%d times STOPPING=1", n)
	}
}

// The file of --pid-file holds the number of the process while it runs.
func TestPidFile(t *testing.T) {
	t.Parallel()
	file := shortTempDir(t) + "/edge.pid"
	p := Start(t, oneUpstream("", "", Serve(t, echo).Addr()), WithArgs("--pid-file", file))
	b, err := os.ReadFile(file)
	if err != nil || strings.TrimSpace(string(b)) != strconv.Itoa(p.Pid()) {
		t.Errorf("%q, %v; want %d", b, err, p.Pid())
	}
	p.Term()
	if _, err := os.Stat(file); err == nil {
		t.Error("the pid file is left after the end")
	}
}
