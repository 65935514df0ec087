package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Proxy is a running edgeproxy. Make one with [Start].
type Proxy struct {
	t     testing.TB
	dir   string
	file  string // the configuration
	head  string // what stands before each body in it
	cmd   *exec.Cmd
	admin *http.Client
	note  *notifySocket
	base  footprint

	exited   chan struct{} // closed once the process is gone
	killed   bool          // by [Proxy.Kill]: no exit code to expect
	exitCode int           // to be expected
	expected []*regexp.Regexp
}

type setup struct {
	process string // further attributes of the process block
	workers int
	log     string // the log block
	nofile  int
	env     []string
	files   map[string]*os.File // LISTEN_FDNAMES → sockets
	args    []string
	user    *syscall.Credential
	caps    []uintptr // the capabilities that user has
	start   func(*exec.Cmd) error
}

// Option changes how [Start] runs the program.
type Option func(*setup)

// WithWorkers sets the number of event loops, 2 otherwise.
func WithWorkers(n int) Option { return func(s *setup) { s.workers = n } }

// WithProcess adds attributes to the process block.
func WithProcess(attrs string) Option { return func(s *setup) { s.process = attrs } }

// WithNoFile limits the process to n descriptors.
func WithNoFile(n int) Option { return func(s *setup) { s.nofile = n } }

// WithEnv adds NAME=value to the otherwise nearly empty environment.
func WithEnv(kv ...string) Option { return func(s *setup) { s.env = append(s.env, kv...) } }

// WithLog replaces the log block.
func WithLog(block string) Option { return func(s *setup) { s.log = block } }

// WithSocket passes a listening socket the way systemd does.
func WithSocket(name string, f *os.File) Option {
	return func(s *setup) {
		if s.files == nil {
			s.files = map[string]*os.File{}
		}
		s.files[name] = f
	}
}

// WithStart starts the process in another way, such as in a network of its own.
func WithStart(start func(*exec.Cmd) error) Option { return func(s *setup) { s.start = start } }

var nobody = &syscall.Credential{Uid: 65534, Gid: 65534}

// asNobody runs the program without any privilege.
func asNobody(s *setup) {
	if os.Geteuid() == 0 {
		s.user = nobody
	}
}

// WithArgs adds arguments to the command line.
func WithArgs(args ...string) Option { return func(s *setup) { s.args = args } }

// Start runs edgeproxy with the given listener and upstream blocks and waits
// until it is ready. When the test ends, after everything that was opened
// later is closed, it asserts that the process is back where it started, and
// stops it.
func Start(t testing.TB, body string, options ...Option) *Proxy {
	t.Helper()
	s := setup{workers: 2, log: `log { level = "info" }`, start: (*exec.Cmd).Start}
	for _, o := range options {
		o(&s)
	}
	// The virtual machines of .ci/vm run the same tests with the kernel's TLS.
	if mode := os.Getenv("EDGEPROXY_KERNEL_TLS"); mode != "" && !strings.Contains(s.process, "kernel_tls") {
		s.process += fmt.Sprintf("\n  kernel_tls = %q", mode)
	}
	p := &Proxy{t: t, dir: shortTempDir(t), exited: make(chan struct{})}
	p.file = filepath.Join(p.dir, "edge.hcl")
	p.head = fmt.Sprintf(`process {
  workers = %d
  %s
}
%s
access_log { output = %q }
admin { address = %q }
`, s.workers, s.process, s.log, p.path("access.log"), "unix:"+p.path("admin.sock"))
	p.write(body)
	p.note = newNotifySocket(t, p.path("notify.sock"))
	p.admin = adminClient(p.path("admin.sock"))
	if s.user != nil {
		p.giveTo(s.user)
	}

	errors, err := os.Create(p.path("stderr"))
	if err != nil {
		t.Fatal(err)
	}
	defer errors.Close()
	p.cmd = command(program(t), &s, "run", "-c", p.file)
	p.cmd.Env = append(p.cmd.Env, "NOTIFY_SOCKET="+p.path("notify.sock"))
	p.cmd.Stdout, p.cmd.Stderr = errors, errors
	if err := s.start(p.cmd); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.cmd.Wait()
		close(p.exited)
	}()
	t.Cleanup(p.finish)
	p.awaitReady()
	p.base = p.footprint()
	return p
}

// giveTo lets another user run the program in the test's folder.
func (p *Proxy) giveTo(user *syscall.Credential) {
	p.t.Helper()
	if err := errors.Join(os.Chown(p.dir, int(user.Uid), int(user.Gid)), os.Chmod(p.path("notify.sock"), 0o777)); err != nil {
		p.t.Fatal(err)
	}
}

// command prepares a run of the program. Descriptor limits and systemd's
// LISTEN_PID need a shell in front, which then becomes the program.
func command(bin string, s *setup, args ...string) *exec.Cmd {
	args = append(args, s.args...)
	script := ""
	if s.nofile > 0 {
		script += fmt.Sprintf("ulimit -n %d; ", s.nofile)
	}
	if len(s.files) > 0 {
		script += "export LISTEN_PID=$$; "
	}
	cmd := exec.Command(bin, args...)
	if script != "" {
		cmd = exec.Command("/bin/sh", append([]string{"-c", script + `exec "$0" "$@"`, bin}, args...)...)
	}
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=/", "GOTRACEBACK=all"}, s.env...)
	var names []string
	for name, f := range s.files {
		names = append(names, name)
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	if len(names) > 0 {
		cmd.Env = append(cmd.Env, fmt.Sprintf("LISTEN_FDS=%d", len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Credential: s.user, AmbientCaps: s.caps}
	return cmd
}

// Run runs the program to its end and returns its exit code and output.
func Run(t testing.TB, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	return run(t, &setup{}, args...)
}

// usage is what a run of the program took.
type usage struct {
	cpu    time.Duration
	memory int64 // bytes resident at the peak; 0 if it was less than that of the tests
}

func run(t testing.TB, s *setup, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	code, stdout, stderr, _ = runAs(t, program(t), s, args...)
	return code, stdout, stderr
}

// runMeasured is for bounds on time and memory: always without the race
// detector, which multiplies both.
func runMeasured(t testing.TB, args ...string) (code int, stdout, stderr string, used usage) {
	t.Helper()
	return runAs(t, plainProgram(t), &setup{}, args...)
}

func runAs(t testing.TB, binary string, s *setup, args ...string) (code int, stdout, stderr string, used usage) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	cmd := command(binary, s, args...)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop := context.AfterFunc(ctx, func() { cmd.Process.Kill() })
	defer stop()
	err := cmd.Wait()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if bad := crashLine(errs.String()); bad != "" {
		t.Errorf("edgeproxy %s: %s", strings.Join(args, " "), bad)
	}
	state := cmd.ProcessState
	used.cpu = state.UserTime() + state.SystemTime()
	// Until it calls execve(2) a process shares its parent's memory, and that
	// counts as its own peak.
	var own syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &own)
	if r, ok := state.SysUsage().(*syscall.Rusage); ok && r.Maxrss > own.Maxrss {
		used.memory = r.Maxrss << 10
	}
	return state.ExitCode(), out.String(), errs.String(), used
}

// shortTempDir is a temporary directory whose sockets fit into sockaddr_un,
// however long the test's name is.
func shortTempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ep-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func adminClient(socket string) *http.Client {
	return &http.Client{
		Timeout: patience,
		Transport: &http.Transport{
			// A kept connection would be one descriptor more in the proxy.
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", socket)
			},
		},
	}
}

func (p *Proxy) path(name string) string { return filepath.Join(p.dir, name) }

// write replaces the configuration in one step, as the proxy may be reading it.
func (p *Proxy) write(body string) {
	p.t.Helper()
	next := p.file + ".next"
	if err := os.WriteFile(next, []byte(p.head+body), 0o644); err != nil {
		p.t.Fatal(err)
	}
	if err := os.Rename(next, p.file); err != nil {
		p.t.Fatal(err)
	}
}

// Pid is the process number.
func (p *Proxy) Pid() int { return p.cmd.Process.Pid }

func (p *Proxy) awaitReady() {
	p.t.Helper()
	eventually(p.t, func() bool {
		select {
		case <-p.exited:
			p.t.Fatalf("edgeproxy ended with %v before it was ready:\n%s", p.cmd.ProcessState, p.Log())
		default:
		}
		status, _, err := p.get("/readyz")
		return err == nil && status == http.StatusOK
	}, func() string { return "/readyz answers 200\n" + p.Log() })
}

func (p *Proxy) get(path string) (status int, body []byte, err error) {
	return p.request(http.MethodGet, path)
}

func (p *Proxy) request(method, path string) (status int, body []byte, err error) {
	req, err := http.NewRequest(method, "http://edgeproxy"+path, nil)
	if err != nil {
		return 0, nil, err
	}
	resp, err := p.admin.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	return resp.StatusCode, body, err
}

// API reads a JSON document of the admin API.
func (p *Proxy) API(path string, into any) {
	p.t.Helper()
	status, body, err := p.get(path)
	if err != nil || status != http.StatusOK {
		p.t.Fatalf("GET %s: status %d, %v, %s", path, status, err, body)
	}
	if err := json.Unmarshal(body, into); err != nil {
		p.t.Fatalf("GET %s: %v in %s", path, err, body)
	}
}

// Addrs returns where a listener is really bound, in the order of the file.
func (p *Proxy) Addrs(listener string) []string {
	p.t.Helper()
	var list []struct {
		Name      string
		Addresses []string
	}
	p.API("/v1/listeners", &list)
	for _, l := range list {
		if l.Name == listener {
			return l.Addresses
		}
	}
	p.t.Fatalf("/v1/listeners has no %q: %+v", listener, list)
	return nil
}

// Addr is the first of a listener's addresses.
func (p *Proxy) Addr(listener string) string {
	p.t.Helper()
	a := p.Addrs(listener)
	if len(a) == 0 {
		p.t.Fatalf("listener %q is bound to nothing", listener)
	}
	return a[0]
}

// Reload writes a new body, sends SIGHUP, and waits until it is in use.
func (p *Proxy) Reload(body string) {
	p.t.Helper()
	p.write(body)
	p.SignalReload()
	if v := p.Metrics().Sum("edgeproxy_config_last_reload_successful"); v != 1 {
		p.t.Fatalf("the reload failed:\n%s", p.Log())
	}
}

// ReloadFails writes a new body, sends SIGHUP, asserts that it is refused,
// and returns what was logged about it.
func (p *Proxy) ReloadFails(body string) string {
	p.t.Helper()
	from := len(p.Log())
	p.Expect(`edge\.hcl|reload failed`)
	p.write(body)
	p.SignalReload()
	if v := p.Metrics().Sum("edgeproxy_config_last_reload_successful"); v != 0 {
		p.t.Errorf("edgeproxy_config_last_reload_successful is %v after a reload of\n%s", v, body)
	}
	return p.Log()[from:]
}

// SignalReload sends SIGHUP and waits for the outcome, good or bad: the
// READY=1 that sd_notify(3) asks for after RELOADING=1.
func (p *Proxy) SignalReload() {
	p.t.Helper()
	want := p.note.count("READY=1") + 1
	p.Signal(syscall.SIGHUP)
	eventually(p.t, func() bool { return p.note.count("READY=1") >= want },
		func() string { return "READY=1 after SIGHUP\n" + p.Log() })
}

// Signal sends a signal to the process.
func (p *Proxy) Signal(sig syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		p.t.Fatalf("%v: %v\n%s", sig, err, p.Log())
	}
}

// Term stops the process with SIGTERM and waits for its end.
func (p *Proxy) Term() {
	p.t.Helper()
	p.Signal(syscall.SIGTERM)
	p.AwaitExit()
}

// Kill ends the process at once; nothing is asserted about its end.
func (p *Proxy) Kill() {
	p.killed = true
	p.cmd.Process.Kill()
	<-p.exited
}

// AwaitExit waits for the end of the process.
func (p *Proxy) AwaitExit() {
	p.t.Helper()
	select {
	case <-p.exited:
	case <-time.After(patience):
		p.Signal(syscall.SIGQUIT) // its stacks, into the log
		select {
		case <-p.exited:
		case <-time.After(patience):
			p.Kill()
		}
		p.killed = true
		p.t.Errorf("still running %v after it was told to stop:\n%s", patience, p.Log())
	}
}

// Expect declares that error lines matching a pattern are part of the test.
func (p *Proxy) Expect(pattern string) {
	p.expected = append(p.expected, regexp.MustCompile(pattern))
}

// notifySocket is the service manager's end of sd_notify(3).
type notifySocket struct {
	mu    sync.Mutex
	lines []string
}

func newNotifySocket(t testing.TB, path string) *notifySocket {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	n := &notifySocket{}
	go func() {
		buf := make([]byte, 4096)
		for {
			size, err := conn.Read(buf)
			if err != nil {
				return
			}
			n.mu.Lock()
			n.lines = append(n.lines, strings.Split(strings.TrimRight(string(buf[:size]), "\n"), "\n")...)
			n.mu.Unlock()
		}
	}()
	return n
}

func (n *notifySocket) all() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]string(nil), n.lines...)
}

func (n *notifySocket) count(line string) (c int) {
	for _, l := range n.all() {
		if l == line {
			c++
		}
	}
	return c
}
