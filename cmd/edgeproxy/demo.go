package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"edgeproxy/config"
	"edgeproxy/internal/demo"
)

// demoFile is a valid configuration; the addresses in it that are in
// [demoServers], or taken on this machine, are replaced before it is used.
//
//go:embed demo.hcl
var demoFile string

// Where demo.hcl listens.
const (
	demoHTTP  = "127.0.0.1:8080"
	demoEcho  = "127.0.0.1:7000"
	demoPing  = "127.0.0.1:7001" // UDP
	demoAdmin = "127.0.0.1:9901"
)

// demoServers are the servers of demo.hcl.
var demoServers = []struct {
	name, address string
	start         func(name string) (*demo.Backend, error)
}{
	{"web-a", "127.0.0.1:18081", demo.StartHTTP},
	{"web-b", "127.0.0.1:18082", demo.StartHTTP},
	{"web-c", "127.0.0.1:18083", demo.StartHTTP},
	{"echo-a", "127.0.0.1:17001", demo.StartEcho},
	{"echo-b", "127.0.0.1:17002", demo.StartEcho},
	{"echo-c", "127.0.0.1:17003", demo.StartEcho},
	{"ping-a", "127.0.0.1:17101", demo.StartPing},
	{"ping-b", "127.0.0.1:17102", demo.StartPing},
}

func newDemoCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "demo",
		Short: "Show the whole proxy at work against built-in servers",
		Long: `Show the whole proxy at work: three HTTP servers, three echo servers and two
UDP servers inside this process, the proxy in front of them on loopback ports,
the configuration it runs, what to try, and a line that tells what is going on.
Ctrl-C ends it and leaves nothing behind.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runDemo(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
}

// stage is what a demo stands on: servers, a file, addresses.
type stage struct {
	backends []*demo.Backend
	dir      string // temporary
	file     string // in dir: the configuration, free to be edited
	moved    []string

	http, echo, ping, admin string // where the proxy listens
}

func runDemo(ctx context.Context, stdout, stderr io.Writer) error {
	s, err := newStage()
	if err != nil {
		return fmt.Errorf("demo: %w", err)
	}
	defer s.close()

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var view *liveView
	logTo := "" // as the file says
	if isTerminal(stdout) && isTerminal(stderr) {
		// Log lines and the live line share the terminal: the logs come
		// through a pipe, and are printed above the line.
		r, w, err := os.Pipe()
		if err != nil {
			return fmt.Errorf("demo: %w", err)
		}
		defer w.Close()
		logTo = fmt.Sprintf("/proc/self/fd/%d", w.Fd())
		view = newLiveView(stdout, r)
	} else {
		view = newLiveView(stdout, nil)
	}

	var watching sync.WaitGroup
	err = runDaemon(ctx, daemonOptions{
		configPath: s.file,
		stderr:     stderr,
		source: func() (*config.Config, *config.Diagnostics) {
			c, diags := config.Load(s.file)
			if c != nil && logTo != "" {
				c.Log.Output, c.AccessLog.Output = logTo, logTo
			}
			return c, diags
		},
		ready: func(*daemon) {
			s.introduce(view)
			watching.Go(func() { view.watch(ctx, s.admin) })
		},
	})
	cancel()
	watching.Wait()
	view.close()
	return err
}

// newStage starts the servers, finds addresses for the proxy, and writes the
// configuration that joins them.
func newStage() (s *stage, err error) {
	s = new(stage)
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	replace := make([]string, 0, 2*len(demoServers)+8)
	for _, d := range demoServers {
		b, err := d.start(d.name)
		if err != nil {
			return s, err
		}
		s.backends = append(s.backends, b)
		replace = append(replace, quoted(d.address), quoted(b.Addr()))
	}
	for _, l := range []struct {
		network, wanted string
		got             *string
	}{{"tcp", demoHTTP, &s.http}, {"tcp", demoEcho, &s.echo}, {"udp", demoPing, &s.ping}, {"tcp", demoAdmin, &s.admin}} {
		if *l.got, err = freeAddress(l.network, l.wanted); err != nil {
			return s, err
		}
		if *l.got != l.wanted {
			s.moved = append(s.moved, fmt.Sprintf("%s is taken; the demo uses %s instead", l.wanted, *l.got))
		}
		replace = append(replace, quoted(l.wanted), quoted(*l.got))
	}
	if s.dir, err = os.MkdirTemp("", "edgeproxy-demo-"); err != nil {
		return s, err
	}
	s.file = filepath.Join(s.dir, "demo.hcl")
	return s, os.WriteFile(s.file, []byte(strings.NewReplacer(replace...).Replace(demoFile)), 0o600)
}

func quoted(address string) string { return `"` + address + `"` }

func (s *stage) close() {
	for _, b := range s.backends {
		b.Close()
	}
	if s.dir != "" {
		os.RemoveAll(s.dir)
	}
}

// freeAddress returns the wanted address, one of the next ports when that is
// taken, or any port of the kernel's choice when those are as well.
func freeAddress(network, wanted string) (string, error) {
	host, port, err := net.SplitHostPort(wanted)
	if err != nil {
		return "", err
	}
	first, err := strconv.Atoi(port)
	if err != nil {
		return "", err
	}
	var failed error
	for i := range 11 {
		p := first + i
		if i == 10 {
			p = 0
		}
		addr, err := tryAddress(network, net.JoinHostPort(host, strconv.Itoa(p)))
		if err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		return addr, nil
	}
	return "", failed
}

// tryAddress listens on an address for a moment, and returns what it was.
func tryAddress(network, address string) (string, error) {
	if network == "udp" {
		conn, err := net.ListenPacket(network, address)
		if err != nil {
			return "", err
		}
		defer conn.Close()
		return conn.LocalAddr().String(), nil
	}
	ln, err := net.Listen(network, address)
	if err != nil {
		return "", err
	}
	defer ln.Close()
	return ln.Addr().String(), nil
}

// introduce prints the configuration and what to try with it.
func (s *stage) introduce(view *liveView) {
	src, err := os.ReadFile(s.file)
	if err != nil {
		src = []byte("# " + err.Error() + "\n")
	}
	var b strings.Builder
	fmt.Fprintf(&b, "\nThis is %s:\n\n", s.file)
	for line := range strings.Lines(string(src)) {
		if line != "\n" {
			b.WriteString("    ")
		}
		b.WriteString(line)
	}
	if len(s.moved) > 0 {
		b.WriteString("\n" + strings.Join(s.moved, "\n") + "\n")
	}
	b.WriteString("\nTry in another terminal:\n\n")
	tries := [][2]string{
		{"curl " + s.http, "several times: another server answers"},
		{"curl " + s.http + "/stop", "who answers goes away for 15s: see it down, and up again"},
		{"curl -o /dev/null '" + s.http + "/bytes?mb=1000'", "1 GB, moved by the kernel (spliced)"},
		{"nc " + strings.Replace(s.echo, ":", " ", 1), "an echo server; the session stays until you leave"},
		{"echo hello | nc -u -w1 " + strings.Replace(s.ping, ":", " ", 1), "UDP: one answer ends the session, the other server gives the next"},
		{"curl -s " + s.admin + "/metrics | grep ^edgeproxy", "all that is counted"},
		{fmt.Sprintf("kill -HUP %d", os.Getpid()), "reload: edit the file above before; sessions go on"},
	}
	longest := 0
	for _, try := range tries {
		longest = max(longest, len(try[0]))
	}
	for _, try := range tries {
		fmt.Fprintf(&b, "  %-*s  # %s\n", longest, try[0], try[1])
	}
	b.WriteString("\nCtrl-C ends it.\n\n")
	view.print(b.String())
}
