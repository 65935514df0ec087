package integration

import (
	"debug/buildinfo"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// loopSessions is how many sessions each loop has.
func (p *Proxy) loopSessions(loops int) (n []float64) {
	m := p.Metrics()
	for i := range loops {
		n = append(n, m.Sum("edgeproxy_loop_sessions", "loop", fmt.Sprint(i)))
	}
	return n
}

// steered reports whether the proxy chooses the loop itself. If not, the log
// must say why.
func (p *Proxy) steered() bool {
	p.t.Helper()
	hash := regexp.MustCompile(`"level":"info".*the kernel's hash spreads connections.*"error":".*(CAP_BPF|CONFIG_BPF_SYSCALL)`)
	log := p.Log()
	switch on, off := strings.Contains(log, "each connection goes to the loop that has the fewest"), hash.MatchString(log); {
	case on && !off:
		return true
	case off && !on:
		p.t.Logf("connections are not steered here: %s", hash.FindString(log))
	default:
		p.t.Errorf("the log does not say how connections are spread over the loops:\n%s", log)
	}
	return false
}

func (p *Proxy) expectEven(loops, total int) {
	p.t.Helper()
	var n []float64
	eventually(p.t, func() bool {
		n = p.loopSessions(loops)
		sum := 0.0
		for _, v := range n {
			sum += v
		}
		return sum == float64(total)
	}, func() string { return fmt.Sprintf("%d sessions; the loops have %v", total, n) })
	// Two SYNs that are handled at one moment on two CPUs may choose alike.
	if slack := 2 + float64(total)/100; slices.Max(n)-slices.Min(n) > slack {
		p.t.Errorf("%d sessions are spread over the loops as %v", total, n)
	}
}

// Connections go to the loop that has the fewest, be they many at once, more
// on one listener than on another, or fewer on one loop because sessions end.
func TestConnectionsSpreadOverLoops(t *testing.T) {
	t.Parallel()
	for _, loops := range []int{2, 4, 17} {
		t.Run(fmt.Sprint(loops, " loops"), func(t *testing.T) {
			t.Parallel()
			s := Serve(t, echo)
			const second = `listener "tcp" "v6" {
  address  = "[::1]:0"
  upstream = upstream.app
}
`
			body := oneUpstream("", "", s.Addr()) + second
			p := Start(t, body, WithWorkers(loops))
			if !p.steered() {
				return
			}
			edge, v6 := p.Addr("edge"), p.Addr("v6")
			var conns []Conn
			for i := range 64 {
				conns = append(conns, Dial(t, []string{edge, v6}[min(i%3, 1)]))
			}
			if loops == 17 { // not all loops are looked at
				eventually(t, func() bool { return p.Metrics().Sum("edgeproxy_sessions_active") == 64 }, func() string { return "64 sessions" })
				if n := p.loopSessions(loops); slices.Max(n) > 7 || slices.Min(n) == 0 {
					t.Errorf("64 sessions are spread over 17 loops as %v", n)
				}
				return
			}
			p.expectEven(loops, len(conns))

			const burst = 500
			var wg sync.WaitGroup
			var mu sync.Mutex
			for range burst {
				wg.Go(func() {
					c := Dial(t, edge)
					mu.Lock()
					conns = append(conns, c)
					mu.Unlock()
				})
			}
			wg.Wait()
			p.expectEven(loops, len(conns))

			for i, c := range conns {
				if i%3 > 0 {
					c.Close()
				}
			}
			left := (len(conns) + 2) / 3
			eventually(t, func() bool { return p.Metrics().Sum("edgeproxy_sessions_active") == float64(left) },
				func() string { return fmt.Sprintf("%d sessions are left", left) })
			for range burst {
				Dial(t, v6)
			}
			p.expectEven(loops, left+burst)

			// A reload keeps what it was, and has it for what is new.
			p.Reload(body + strings.Replace(second, "v6", "added", 1))
			added := p.Addr("added")
			for i := range 60 {
				Dial(t, []string{edge, v6, added}[i%3])
			}
			p.expectEven(loops, left+burst+60)
			p.Reload(body)
		})
	}
}

// One session at a time leaves all loops equal each time: they take turns.
func TestShortConnectionsSpreadOverLoops(t *testing.T) {
	t.Parallel()
	p := Start(t, oneUpstream("", "", Serve(t, echo).Addr()))
	const n = 60
	var had [2]float64
	for range n {
		c := Dial(t, p.Addr("edge"))
		RoundTrip(t, c, "x")
		for i, v := range p.loopSessions(2) {
			had[i] += v
		}
		c.CloseWrite()
		ExpectEOF(t, c)
		eventually(t, func() bool { return p.Metrics().Sum("edgeproxy_sessions_active") == 0 }, func() string { return "no session" })
	}
	if had[0]+had[1] != n || min(had[0], had[1]) < n/10 {
		t.Errorf("%d sessions one after the other: the loops had %v", n, had)
	}
}

// Between two turns of the loops, none of which accepts, a burst is spread.
// A process that is stopped makes that moment long. What waits is served after.
func TestConnectionsSpreadWithinABurst(t *testing.T) {
	t.Parallel()
	p := Start(t, oneUpstream("", "", Serve(t, echo).Addr()))
	steered := p.steered()
	edge := p.Addr("edge")
	p.Signal(syscall.SIGSTOP)
	const n = 200
	var conns []Conn
	for range n {
		conns = append(conns, Dial(t, edge))
	}
	p.Signal(syscall.SIGCONT)
	for _, c := range conns {
		RoundTrip(t, c, "x")
	}
	if steered {
		p.expectEven(2, n)
	}
}

// Without the right to load a program, or without wanting it, everything works
// by the kernel's hash.
func TestConnectionsSpreadByTheKernel(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]Option{"nobody": asNobody, "off": WithProcess(`steering = "off"`)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := Start(t, oneUpstream("", "", Serve(t, echo).Addr()), o)
			if name == "off" {
				if strings.Contains(p.Log(), "loop that has the fewest") || strings.Contains(p.Log(), "the kernel's hash") {
					t.Errorf("steering is off, and the log tells of it:\n%s", p.Log())
				}
			} else if p.steered() && os.Geteuid() == 0 && unprivilegedBPF(t) != "0" {
				t.Errorf("nobody has loaded a program:\n%s", p.Log())
			}
			const n = 64
			for range n {
				RoundTrip(t, Dial(t, p.Addr("edge")), "hello")
			}
			if l := p.loopSessions(2); l[0]+l[1] != n || l[0] == 0 || l[1] == 0 {
				t.Errorf("%d sessions on the loops: %v", n, l)
			}
		})
	}
}

// unprivilegedBPF is the kernel's setting: 0 lets every process load programs
// of the harmless kinds, to which this one belongs.
func unprivilegedBPF(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/sys/kernel/unprivileged_bpf_disabled")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// The program is loaded before privileges are dropped, and serves listeners
// that are added after.
func TestSteeringOutlivesPrivileges(t *testing.T) {
	t.Parallel()
	attrs := ""
	if os.Geteuid() == 0 {
		attrs = `user = "nobody"`
	}
	body := oneUpstream("", "", Serve(t, echo).Addr())
	p := Start(t, body, WithProcess(attrs))
	if !p.steered() {
		return
	}
	if os.Geteuid() == 0 {
		p.giveTo(nobody)
		if err := os.Chown(p.path("access.log"), int(nobody.Uid), int(nobody.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	p.Reload(body + "listener \"tcp\" \"added\" {\n address = \"127.0.0.1:0\"\n upstream = upstream.app\n}\n")
	const n = 80
	for range n {
		Dial(t, p.Addr("added"))
	}
	p.expectEven(2, n)
	p.Reload(body)
}

// CAP_BPF is all the right it takes, and is given up once it has served, except
// in a build with cgo: Go does not reach the threads of C.
func TestSteeringByCapability(t *testing.T) {
	t.Parallel()
	const bpf = 39 // capabilities(7)
	if own := capabilities(t, "self", "CapEff"); own[0]>>bpf&1 == 0 {
		t.Logf("cannot be tried here: this process has the capabilities %#x, without CAP_BPF", own[0])
		return
	}
	p := Start(t, oneUpstream("", "", Serve(t, echo).Addr()), asNobody, func(s *setup) { s.caps = []uintptr{bpf} })
	if !p.steered() {
		t.Errorf("CAP_BPF is not enough")
	}
	info, err := buildinfo.ReadFile(program(t))
	if err != nil {
		t.Fatal(err)
	}
	if slices.Contains(info.Settings, debug.BuildSetting{Key: "CGO_ENABLED", Value: "1"}) {
		return
	}
	for _, set := range []string{"CapPrm", "CapEff", "CapInh", "CapAmb"} {
		for _, c := range capabilities(t, fmt.Sprint(p.Pid()), set) {
			if c>>bpf&1 != 0 {
				t.Errorf("a thread still has CAP_BPF in %s", set)
			}
		}
	}
}

// capabilities reads one set of every thread of a process.
func capabilities(t *testing.T, pid, set string) (of []uint64) {
	t.Helper()
	threads, err := filepath.Glob("/proc/" + pid + "/task/*/status")
	if err != nil || len(threads) == 0 {
		t.Fatalf("threads of process %s: %v", pid, err)
	}
	for _, file := range threads {
		b, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue // the thread has gone
		}
		m := regexp.MustCompile(set + `:\s*([0-9a-f]+)`).FindSubmatch(b)
		if err != nil || m == nil {
			t.Fatalf("%s: %v, no %s in %q", file, err, set, b)
		}
		v, err := strconv.ParseUint(string(m[1]), 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		of = append(of, v)
	}
	return of
}
