// Bench compares edgeproxy with other proxies on this machine: HAProxy, nginx, a
// Go proxy of io.Copy, and no proxy at all. HAProxy has no UDP.
//
//	go run ./integration/bench [-quick] [-peers …] [-scenarios REGEXP] [-peer NAME=PATH]
//
// A run goes in rounds. In each round every proxy is started afresh, and every
// scenario is measured on one proxy after the other, in an order that rotates,
// so that whatever else the machine does meets all of them. Ratios are made
// within a round; the table gives their median and range over the rounds.
//
// Client and backend are processes of their own (sub-commands of this binary,
// package traffic). What a proxy costs is read from the CPU clocks, memory maps
// and descriptor tables of its processes (package proc). docs/benchmarks.md says
// what each scenario is and how to read the result.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"edgeproxy/integration/bench/peer"
	"edgeproxy/integration/bench/traffic"
)

func main() {
	var err error
	switch command := argument(1); command {
	case "load":
		err = loadMain(os.Args[2:])
	case "backend":
		err = backendMain(os.Args[2:])
	case "iocopy":
		err = peer.RunIOCopy(argument(2))
	default:
		err = benchMain(os.Args[1:])
	}
	switch {
	case errors.Is(err, flag.ErrHelp):
	case errors.As(err, new(usageError)):
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func argument(i int) string {
	if i < len(os.Args) {
		return os.Args[i]
	}
	return ""
}

type usageError struct{ error }

// options of a run of the harness.
type options struct {
	Rounds  int
	Workers int     // threads of each proxy
	Threads int     // of client and backend each
	Scale   float64 // of every scenario's duration
	Idle    int     // connections of the idle scenario
	Shrink  int     // divides all other numbers of connections
	Bulk    int64   // bytes of a bulk answer
	Pace    float64 // share of the slowest peer's throughput
	Curve   bool    // all points of the scaling curve
	Ladder  int     // rates of UDP that are tried, at most

	Quiet       time.Duration // of idle TLS sessions, before the second look
	QuietRounds int           // in so many rounds; the flood of datagrams as well

	Subject   string // the peer that is judged
	Scenarios *regexp.Regexp
	Out       string // folder for results
}

func fullOptions() options {
	return options{Rounds: 5, Workers: 2, Threads: 1, Scale: 1, Idle: 5000, Shrink: 1, Bulk: 100_000_000, Pace: 0.6, Curve: true, Ladder: 40, Subject: "edgeproxy",
		Quiet: 30 * time.Second, QuietRounds: 2}
}

func benchMain(args []string) error {
	o := fullOptions()
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	quick := fs.Bool("quick", false, "two short rounds and fewer points of the curve: under 7 minutes instead of 35")
	rounds := fs.Int("rounds", 0, "rounds; default 5, quick 2")
	scale := fs.Float64("scale", 0, "multiplies how long each scenario runs; default 1, quick 0.25")
	names := fs.String("peers", environment("BENCH_PEERS", "edgeproxy,haproxy,nginx,iocopy,direct"), "which to compare; or $BENCH_PEERS")
	scenarios := fs.String("scenarios", environment("BENCH_SCENARIOS", ""), "regular expression of the scenarios to run; or $BENCH_SCENARIOS")
	programs := map[string]string{}
	var extra []string
	fs.Func("peer", "`NAME=PATH`: the binary of edgeproxy, haproxy or nginx, or under another name one more edgeproxy to compare; repeatable", func(v string) error {
		name, path, ok := strings.Cut(v, "=")
		if !ok || name == "" || path == "" {
			return errors.New("want NAME=PATH")
		}
		programs[name] = path
		extra = append(extra, name)
		return nil
	})
	fs.StringVar(&o.Subject, "subject", o.Subject, "the peer whose numbers are held against the targets")
	fs.IntVar(&o.Workers, "workers", o.Workers, "threads of each proxy")
	fs.IntVar(&o.Threads, "threads", o.Threads, "threads of the client, and of the backend; more than 1 only where CPUs are left over")
	fs.Float64Var(&o.Pace, "pace", o.Pace, "rate of the latency scenarios, as a share of the slowest peer's throughput in the first round")
	fs.StringVar(&o.Out, "out", ".bench", "folder for result.json, table.md, targets.md (its first part) and scaling.svg")
	list := fs.Bool("list", false, "list the scenarios and end")
	report := fs.String("report", "", "print the table of a result.json again and end")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return usageError{err}
	}
	if fs.NArg() > 0 {
		return usageError{fmt.Errorf("unknown argument %q; -help lists the flags", fs.Arg(0))}
	}
	if *quick {
		o.Rounds, o.Scale, o.Curve, o.QuietRounds = 2, 0.25, false, 1
	}
	if *rounds > 0 {
		o.Rounds = *rounds
	}
	if *scale > 0 {
		o.Scale = *scale
	}
	var err error
	if o.Scenarios, err = regexp.Compile(*scenarios); err != nil {
		return usageError{fmt.Errorf("-scenarios: %w", err)}
	}
	switch {
	case *list:
		for _, s := range scenarioList(o) {
			fmt.Printf("%-17s %s\n", s.Name, s.Title)
		}
		return nil
	case *report != "":
		results, err := readResults(*report)
		if err != nil {
			return err
		}
		return results.writeTable(os.Stdout)
	}
	peers, err := findPeers(strings.Split(*names, ","), extra, programs)
	if err != nil {
		return err
	}

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	results, err := compare(ctx, o, peers, os.Stderr)
	if err != nil {
		return err
	}
	if err := results.save(o.Out); err != nil {
		return err
	}
	if err := results.writeTable(os.Stdout); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "written: %s\n", filepath.Join(o.Out, "{result.json,table.md,targets.md,scaling.svg}"))
	if n := results.failures(); n > 0 {
		return fmt.Errorf("%d measurements failed; the table lists them", n)
	}
	return nil
}

func environment(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

// findPeers finds all programs, or says everything that is missing.
func findPeers(names, extra []string, programs map[string]string) ([]*peer.Peer, error) {
	kinds := map[string]*peer.Kind{
		"edgeproxy": peer.Edgeproxy, "haproxy": peer.HAProxy, "nginx": peer.Nginx,
		"iocopy": peer.IOCopy, "direct": peer.Direct,
	}
	var peers []*peer.Peer
	var missing []error
	seen := map[string]bool{}
	for _, name := range append(names, extra...) {
		name = strings.TrimSpace(name)
		if name == "" || seen[name] {
			continue
		}
		seen[name] = true
		kind, known := kinds[name]
		if !known {
			if programs[name] == "" {
				return nil, usageError{fmt.Errorf("unknown peer %q: known are edgeproxy, haproxy, nginx, iocopy, direct; "+
					"another edgeproxy binary is given by -peer %s=PATH", name, name)}
			}
			kind = peer.Edgeproxy
		}
		p, err := peer.Find(name, kind, programs[name])
		if err != nil {
			missing = append(missing, err)
			continue
		}
		peers = append(peers, p)
	}
	if len(peers) == 0 && len(missing) == 0 {
		return nil, usageError{errors.New("-peers names none")}
	}
	return peers, errors.Join(missing...)
}

// loadMain is the client process.
func loadMain(args []string) error {
	fs := flag.NewFlagSet("load", flag.ContinueOnError)
	threads := fs.Int("threads", 1, "")
	target := fs.String("target", "", "")
	speech := fs.String("speech", string(traffic.Plain), "")
	if err := fs.Parse(args); err != nil {
		return usageError{err}
	}
	to, err := netip.ParseAddrPort(*target)
	if err != nil {
		return usageError{err}
	}
	return traffic.Obey([]netip.AddrPort{to}, traffic.Speech(*speech), *threads, os.Stdin, os.Stdout)
}

// backendMain is the backend process.
func backendMain(args []string) error {
	fs := flag.NewFlagSet("backend", flag.ContinueOnError)
	threads := fs.Int("threads", 1, "")
	listen := fs.String("listen", "", "")
	quic := fs.String("quic", "", "")
	certificate := fs.String("certificate", "", "")
	key := fs.String("key", "", "")
	if err := fs.Parse(args); err != nil {
		return usageError{err}
	}
	at, err := netip.ParseAddrPort(*listen)
	if err != nil {
		return usageError{err}
	}
	over, err := netip.ParseAddrPort(*quic)
	if err != nil {
		return usageError{err}
	}
	failed := make(chan error)
	go func() { failed <- traffic.Serve(at, *threads) }()
	go func() { failed <- traffic.ServeQUIC(over, *certificate, *key) }()
	return <-failed
}

// scaled is a duration of the full run in this one.
func (o options) scaled(d time.Duration) time.Duration {
	return max(time.Duration(float64(d)*o.Scale), 50*time.Millisecond)
}
