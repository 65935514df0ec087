package integration

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// footprint is what a process holds that a session could leave behind.
type footprint struct {
	fds        map[string]int // by kind: socket, pipe, anon_inode:[eventpoll], file
	goroutines int
}

func (f footprint) String() string { return fmt.Sprintf("%v, %d goroutines", f.fds, f.goroutines) }

// within reports whether f holds no more than base. Goroutines may differ by
// those that runtime and libraries start when they are first needed.
func (f footprint) within(base footprint) bool {
	for kind, n := range f.fds {
		if n > base.fds[kind] {
			return false
		}
	}
	return f.goroutines <= base.goroutines+2
}

var (
	goroutineTotal = regexp.MustCompile(`goroutine profile: total (\d+)`)
	goroutineGroup = regexp.MustCompile(`(?m)^(\d+) @ `)
)

func (p *Proxy) footprint() footprint {
	p.t.Helper()
	f := footprint{goroutines: -1}
	status, body, err := p.get("/debug/pprof/goroutine?debug=1")
	if m := goroutineTotal.FindSubmatch(body); err == nil && status == http.StatusOK && m != nil {
		f.goroutines, _ = strconv.Atoi(string(m[1]))
		f.goroutines -= spareStacks(string(body))
	} else {
		p.t.Errorf("/debug/pprof/goroutine: status %d, %v", status, err)
	}
	f.fds = descriptors(p.Pid())
	return f
}

// spareStacks counts the goroutines that wait for a next handshake to run. The
// pool keeps some of them, to a bound; those within a handshake are not among
// them.
func spareStacks(profile string) (n int) {
	for group := range strings.SplitSeq(profile, "\n\n") {
		if strings.Contains(group, "tlsterm.newCoroutine") && !strings.Contains(group, "tlsterm.(*Handshake).run") {
			if m := goroutineGroup.FindStringSubmatch(group); m != nil {
				spare, _ := strconv.Atoi(m[1])
				n += spare
			}
		}
	}
	return n
}

// finish runs when the test and all its clients are done.
func (p *Proxy) finish() {
	p.t.Helper()
	defer func() {
		if p.t.Failed() {
			p.t.Logf("the last of the log:\n%s", tail(p.Log(), 6000))
		}
	}()
	select {
	case <-p.exited:
	default:
		p.assertIdle()
		p.cmd.Process.Signal(syscall.SIGTERM)
		p.AwaitExit()
	}
	if code := p.cmd.ProcessState.ExitCode(); !p.killed && code != p.exitCode {
		p.t.Errorf("edgeproxy ended with %v, want exit code %d", p.cmd.ProcessState, p.exitCode)
	}
	p.assertCleanLog()
}

// assertIdle waits until the process is back at its baseline.
func (p *Proxy) assertIdle() {
	p.t.Helper()
	const bound = 15 * time.Second
	var m Metrics
	if !waitFor(bound, func() bool {
		m = p.Metrics()
		return m.Sum("edgeproxy_sessions_active") == 0 && m.Sum("edgeproxy_server_sessions_active") == 0
	}) {
		p.t.Errorf("after the test %v sessions and %v leases are left",
			m.Sum("edgeproxy_sessions_active"), m.Sum("edgeproxy_server_sessions_active"))
	}
	if total, ends := m.Sum("edgeproxy_sessions_total"), m.Sum("edgeproxy_session_ends_total"); total != ends {
		p.t.Errorf("%v sessions began, %v ended", total, ends)
	}
	var now footprint
	if !waitFor(bound, func() bool { now = p.footprint(); return now.within(p.base) }) {
		p.t.Errorf("left behind: at the start %v, after the test %v", p.base, now)
		if now.goroutines > p.base.goroutines+2 {
			_, stacks, _ := p.get("/debug/pprof/goroutine?debug=1")
			p.t.Logf("%s", tail(string(stacks), 6000))
		}
	}
}

// crashLine returns the first line that no run may ever print.
func crashLine(log string) string {
	for line := range strings.Lines(log) {
		for _, bad := range []string{"panic:", "DATA RACE", "fatal error:", "runtime error:", "goroutine stack exceeds"} {
			if strings.Contains(line, bad) {
				return line
			}
		}
	}
	return ""
}

func (p *Proxy) assertCleanLog() {
	p.t.Helper()
	log := p.Log()
	if line := crashLine(log); line != "" {
		p.t.Errorf("log: %s", line)
		return
	}
	unexpected := 0
next:
	for line := range strings.Lines(log) {
		var entry struct{ Level string }
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			entry.Level = "not JSON"
		}
		switch entry.Level {
		case "debug", "info", "warn":
			continue
		}
		for _, e := range p.expected {
			if e.MatchString(line) {
				continue next
			}
		}
		p.t.Errorf("unexpected line (%s) in the log: %s", entry.Level, line)
		if unexpected++; unexpected == 5 {
			return
		}
	}
}

// Log is all that the process wrote to standard error.
func (p *Proxy) Log() string {
	b, err := os.ReadFile(p.path("stderr"))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func tail(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return "…" + s[len(s)-n:]
}
