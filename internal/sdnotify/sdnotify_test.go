package sdnotify

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// childEnv makes the test binary print what Sockets returns, twice.
const childEnv = "SDNOTIFY_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) == "" {
		os.Exit(m.Run())
	}
	// Only now is the process id known that systemd would have filled in.
	if os.Getenv("LISTEN_PID") == "self" {
		os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
	}
	for range 2 {
		byName, err := Sockets()
		if err != nil {
			fmt.Println("error:", err)
			continue
		}
		var lines []string
		for name, files := range byName {
			for _, f := range files {
				l, err := net.FileListener(f)
				if err != nil {
					fmt.Println("error:", err)
					continue
				}
				lines = append(lines, name+" "+l.Addr().String())
			}
		}
		slices.Sort(lines)
		fmt.Println(strings.Join(lines, ", "))
	}
	fmt.Printf("left %q\n", os.Getenv("LISTEN_PID")+os.Getenv("LISTEN_FDS")+os.Getenv("LISTEN_FDNAMES"))
}

// manager stands in for systemd's end of NOTIFY_SOCKET.
func manager(t *testing.T) *net.UnixConn {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return c
}

func receive(t *testing.T, c *net.UnixConn) string {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	b := make([]byte, 4096)
	n, err := c.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

func TestNotify(t *testing.T) {
	c := manager(t)
	for _, tt := range []struct{ state, want string }{
		{Ready, "READY=1"},
		{Stopping, "STOPPING=1"},
		{Ready + "\n" + Status("10 listeners"), "READY=1\nSTATUS=10 listeners"},
		{Status("edge.hcl:3: bad\nREADY=1"), "STATUS=edge.hcl:3: bad"}, // a text adds no state of its own
	} {
		if err := Notify(tt.state); err != nil {
			t.Fatal(err)
		}
		if got := receive(t, c); got != tt.want {
			t.Errorf("sent %q, want %q", got, tt.want)
		}
	}
}

// sd_notify(3): RELOADING=1 needs MONOTONIC_USEC=, of CLOCK_MONOTONIC, in the
// same message.
func TestReloadingCarriesTheMonotonicClock(t *testing.T) {
	c := manager(t)
	now := func() int64 {
		var ts unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
			t.Fatal(err)
		}
		return ts.Nano() / 1000
	}
	before := now()
	if err := Notify(Reloading()); err != nil {
		t.Fatal(err)
	}
	after := now()
	rest, ok := strings.CutPrefix(receive(t, c), "RELOADING=1\nMONOTONIC_USEC=")
	if usec, err := strconv.ParseInt(strings.TrimSpace(rest), 10, 64); !ok || err != nil || usec < before || usec > after {
		t.Errorf("got %q, want a time from %d to %d", rest, before, after)
	}
}

func TestNotifyWithoutSystemd(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if err := Notify(Ready); err != nil {
		t.Errorf("no systemd is no error: %v", err)
	}
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "gone"))
	if err := Notify(Ready); err == nil || !strings.Contains(err.Error(), "READY=1") {
		t.Errorf("a socket that is gone: %v", err)
	}
}

func TestWatchdogPingsOnlyWhileAlive(t *testing.T) {
	c := manager(t)
	t.Setenv("WATCHDOG_USEC", "2000")
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	answers := []bool{true, false, false, true, false, true}
	asked := make(chan struct{})
	n := 0
	stop := StartWatchdog(func() bool {
		if n == len(answers) {
			close(asked)
		}
		n++
		return n <= len(answers) && answers[n-1]
	})
	<-asked
	stop()
	stop()
	if err := Notify("END=1"); err != nil {
		t.Fatal(err)
	}
	var got []string
	for len(got) == 0 || got[len(got)-1] != "END=1" {
		got = append(got, receive(t, c))
	}
	if want := []string{"WATCHDOG=1", "WATCHDOG=1", "WATCHDOG=1", "END=1"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want one ping per yes of %v", got, answers)
	}
}

func TestWatchdogOff(t *testing.T) {
	for _, tt := range []struct{ usec, pid string }{{"", ""}, {"1000", "1"}, {"x", ""}, {"0", ""}, {"-5", ""}} {
		t.Setenv("WATCHDOG_USEC", tt.usec)
		t.Setenv("WATCHDOG_PID", tt.pid)
		StartWatchdog(func() bool {
			t.Errorf("WATCHDOG_USEC=%q WATCHDOG_PID=%q: asked", tt.usec, tt.pid)
			return true
		})()
	}
}

func TestSockets(t *testing.T) {
	file := func(l net.Listener, err error) (*os.File, string) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		f, err := l.(*net.TCPListener).File()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f, l.Addr().String()
	}
	a, addrA := file(net.Listen("tcp", "127.0.0.1:0"))
	b, addrB := file(net.Listen("tcp", "127.0.0.1:0"))
	plain, err := os.Create(filepath.Join(t.TempDir(), "plain"))
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()

	for _, tt := range []struct {
		name  string
		files []*os.File
		env   []string
		want  string
	}{
		{"two names", []*os.File{a, b}, []string{"LISTEN_PID=self", "LISTEN_FDS=2", "LISTEN_FDNAMES=web:admin"},
			"admin " + addrB + ", web " + addrA},
		{"one name for both", []*os.File{a, b}, []string{"LISTEN_PID=self", "LISTEN_FDS=2", "LISTEN_FDNAMES=web:web"},
			strings.Join(slices.Sorted(slices.Values([]string{"web " + addrA, "web " + addrB})), ", ")},
		{"meant for another process", []*os.File{a}, []string{"LISTEN_PID=1", "LISTEN_FDS=1", "LISTEN_FDNAMES=web"}, ""},
		{"none", nil, nil, ""},
		{"not a socket", []*os.File{plain}, []string{"LISTEN_PID=self", "LISTEN_FDS=1", "LISTEN_FDNAMES=web"}, "error: descriptor 3 (\"web\"), passed by systemd, is not a socket"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command(os.Args[0])
			cmd.Env = append([]string{childEnv + "=1", "GORACE=atexit_sleep_ms=0"}, tt.env...)
			cmd.ExtraFiles = tt.files
			out, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			lines := strings.Split(strings.TrimRight(string(out), "\n"), "\n")
			if len(lines) != 3 || !strings.HasPrefix(lines[0], tt.want) || (tt.want == "" && lines[0] != "") || lines[1] != lines[0] || lines[2] != `left ""` {
				t.Errorf("got\n%s\nwant %q, twice, and a clean environment", out, tt.want)
			}
		})
	}
}
