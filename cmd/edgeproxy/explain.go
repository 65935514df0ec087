package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"edgeproxy/config"
	"edgeproxy/listener"
)

type explainOptions struct {
	configPath          string
	listener            string
	source, destination string
	question            listener.Question
	json                bool
}

func newExplainCommand() *cobra.Command {
	var o explainOptions
	cmd := &cobra.Command{
		Use:   "explain -c FILE|DIR --listener NAME --source IP:PORT",
		Short: "Say which route, upstream and server a session gets, and why not the others",
		Long: `Say which route, upstream and server a session gets that a client might begin,
and why not the others. It is decided by the same tables as real sessions, but
without a daemon: servers are taken as up, and limits as not reached.

With balance = "maglev" or "ring_hash" it names the server, who comes next if
that one is down, and the fingerprint of the table: two nodes with the same one
send every client to the same server.

A session that would be refused is an answer, too: the command ends with 0.`,
		Example: `  edgeproxy explain -c /etc/edgeproxy --listener edge --source 192.0.2.7:40000 --sni api.example.com --alpn h2
  edgeproxy explain -c /etc/edgeproxy --listener dns --source 192.0.2.7:40000 --json | jq -r '.upstreams[].tiers[].table.fingerprint'`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needConfig(cmd, o.configPath); err != nil {
				return err
			}
			if err := o.parse(cmd); err != nil {
				return err
			}
			return explain(cmd, &o)
		},
	}
	configFlag(cmd, &o.configPath)
	q := &o.question
	flags := cmd.Flags()
	flags.StringVar(&o.listener, "listener", "", "the listener's name; it may be left out if there is only one")
	flags.StringVar(&o.source, "source", "", "the client's address, IP:PORT; behind a PROXY header the one that it names")
	flags.StringVar(&o.destination, "destination", "", "what the client sends to, IP:PORT; by default the listener's address")
	flags.StringVar(&q.Protocol, "protocol", "", "what the client begins with: tls, http, ssh …; by default what the other flags imply")
	flags.StringVar(&q.SNI, "sni", "", "the server name that its ClientHello asks for")
	flags.StringSliceVar(&q.ALPN, "alpn", nil, "the protocols that its ClientHello offers; may be given again")
	flags.StringVar(&q.Host, "host", "", "the Host of its HTTP/1 request")
	flags.StringVar(&q.Path, "path", "", "the path of its HTTP/1 request")
	flags.StringSliceVar(&q.ClientNames, "client-name", nil, "a name in its verified certificate; may be given again")
	flags.BoolVar(&o.json, "json", false, "print JSON")
	return cmd
}

// parse reads the addresses.
func (o *explainOptions) parse(cmd *cobra.Command) (err error) {
	if o.source == "" {
		return usagef(cmd, "explain needs the client's address: --source IP:PORT")
	}
	if o.question.Source, err = addrPort(cmd, "source", o.source); err != nil || o.destination == "" {
		return err
	}
	o.question.Destination, err = addrPort(cmd, "destination", o.destination)
	return err
}

func addrPort(cmd *cobra.Command, flag, s string) (netip.AddrPort, error) {
	a, err := netip.ParseAddrPort(s)
	if err == nil {
		return a, nil
	}
	if ip, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return a, usagef(cmd, "--%s %q has no port; write %v", flag, s, netip.AddrPortFrom(ip, 40000))
	}
	return a, usagef(cmd, "--%s %q is not IP:PORT, like 192.0.2.7:40000 or [2001:db8::7]:40000", flag, s)
}

func explain(cmd *cobra.Command, o *explainOptions) error {
	c, diags := config.Load(o.configPath)
	if diags.HasErrors() { // warnings are for check
		return printDiagnostics(cmd, diags)
	}
	l, err := o.find(cmd, c.Listeners)
	if err != nil {
		return err
	}
	e, err := listener.Explain(l, c.Upstreams, o.question)
	var bad *listener.BadQuestion
	if errors.As(err, &bad) {
		return usagef(cmd, "--%s: %w", bad.What, bad.Err)
	}
	if err != nil {
		return err
	}
	if o.json {
		enc := json.NewEncoder(cmd.OutOrStdout())
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		return enc.Encode(e)
	}
	return writeExplanation(cmd.OutOrStdout(), e)
}

// find returns the listener that is asked about.
func (o *explainOptions) find(cmd *cobra.Command, all []listener.Options) (*listener.Options, error) {
	names := make([]string, len(all))
	for i := range all {
		names[i] = all[i].Name
	}
	if o.listener == "" && len(all) == 1 {
		return &all[0], nil
	}
	if i := slices.Index(names, o.listener); i >= 0 {
		return &all[i], nil
	}
	if o.listener == "" {
		return nil, usagef(cmd, "explain needs one of several listeners: --listener %s", quotedList(names))
	}
	if near := nearest(o.listener, names); near != "" {
		return nil, usagef(cmd, "%s has no listener %q; did you mean %q?", o.configPath, o.listener, near)
	}
	return nil, usagef(cmd, "%s has no listener %q, but %s", o.configPath, o.listener, quotedList(names))
}

// shownRoutes bounds the routes that are listed before and after the chosen
// one; --json has them all.
const shownRoutes = 30

func writeExplanation(out io.Writer, e *listener.Explanation) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, verdict(e))
	for i := range e.Upstreams {
		if u := &e.Upstreams[i]; u.Server != "" && len(e.Upstreams) == 1 {
			fmt.Fprintln(w, ifDown(u))
		}
	}
	fmt.Fprintf(w, "\nsession\n  source\t%s\n", e.Source)
	if e.Destination != "" {
		fmt.Fprintf(w, "  destination\t%s\n", e.Destination)
	}
	fmt.Fprintf(w, "  protocol\t%s\n", e.Protocol)
	if e.TLS != "" {
		fmt.Fprintf(w, "  tls\tterminated by tls.%s\n", e.TLS)
	}
	w.Flush()
	if len(e.Routes) > 1 || len(e.Routes) == 1 && e.Routes[0].Name != "" {
		writeRoutes(w, e.Routes)
	}
	for i := range e.Upstreams {
		writeUpstream(w, e, &e.Upstreams[i])
	}
	fmt.Fprintln(w)
	for _, n := range e.Notes {
		fmt.Fprintf(w, "note: %s\n", n)
	}
	fmt.Fprintln(w, "note: servers are taken as up, and limits as not reached")
	return w.Flush()
}

// verdict is the answer in one line.
func verdict(e *listener.Explanation) string {
	by := fmt.Sprintf("listener %q", e.Listener)
	if e.Route != "" {
		by = fmt.Sprintf("route %q of %s", e.Route, by)
	}
	switch {
	case e.End != "":
		return fmt.Sprintf("refused by %s (%s): %s", by, e.End, e.Why)
	case len(e.Upstreams) > 1:
		return fmt.Sprintf("one of %s, drawn anew for each session by %s", plural(len(e.Upstreams), "upstream"), by)
	}
	u := &e.Upstreams[0]
	if u.Server == "" {
		return fmt.Sprintf("one of %s of upstream %q, by %s", plural(len(u.Tiers[0].Servers), "server"), u.Upstream, by)
	}
	return fmt.Sprintf("server %q of upstream %q, by %s", u.Server, u.Upstream, by)
}

func ifDown(u *listener.UpstreamShare) string {
	switch {
	case u.Next != "":
		return fmt.Sprintf("if it were down: server %q", u.Next)
	case len(u.Tiers) > 1 || len(u.Tiers[0].Servers) > 1:
		return "if it were down: one of the others"
	}
	return "if it were down: none"
}

func writeRoutes(w *tabwriter.Writer, routes []listener.RouteExplanation) {
	fmt.Fprintln(w, "\nroutes")
	chosen := slices.IndexFunc(routes, func(r listener.RouteExplanation) bool { return r.Chosen })
	last := chosen
	if chosen < 0 {
		last = len(routes)
	}
	hidden := 0
	for i := range routes {
		r := &routes[i]
		if !r.Holds && (i >= shownRoutes && i < last || i > last+shownRoutes) {
			hidden++
			continue
		}
		switch {
		case r.Chosen:
			fmt.Fprintf(w, "* %s\tmatches\n", routeName(r))
		case r.Holds:
			fmt.Fprintf(w, "  %s\twould match, but comes after %s\n", routeName(r), routeName(&routes[chosen]))
		default:
			for j, why := range r.Fails {
				name := "  " + routeName(r)
				if j > 0 {
					name = "  "
				}
				fmt.Fprintf(w, "%s\t%s\n", name, why)
			}
		}
	}
	if hidden > 0 {
		fmt.Fprintf(w, "  and %s that do not match; --json has them\n", plural(hidden, "more route"))
	}
	w.Flush()
}

func routeName(r *listener.RouteExplanation) string { return cmp.Or(r.Name, "(all)") }

func writeUpstream(w *tabwriter.Writer, e *listener.Explanation, u *listener.UpstreamShare) {
	fmt.Fprintf(w, "\nupstream %q", u.Upstream)
	if len(e.Upstreams) > 1 {
		fmt.Fprintf(w, " for %.4g %% of the sessions", u.Percent)
	}
	fmt.Fprintf(w, ": %s", u.Balance)
	switch {
	case u.Key != "":
		fmt.Fprintf(w, " by %s", u.Key)
	case u.HashOn != "":
		fmt.Fprintf(w, " by %s, which this client does not have: at random, by weight", u.HashOn)
	}
	fmt.Fprintln(w)
	for i := range u.Tiers {
		t := &u.Tiers[i]
		if i > 0 {
			fmt.Fprintf(w, "  tier %d, when no server of a lower one is usable\n", t.Tier)
		}
		for _, s := range t.Servers {
			mark := " "
			if s.Name == u.Server {
				mark = "*"
			}
			fmt.Fprintf(w, "%s %s\t%s\tweight %d\t%.4g %%\n", mark, s.Name, s.Address, s.Weight, s.Percent)
		}
		w.Flush()
		if f := t.Table; f != nil {
			fmt.Fprintf(w, "  table of %d %s in %d KiB, fingerprint %s\n", f.Slots, slotsOf(u.Balance), (f.Bytes+1023)/1024, f.Fingerprint)
		}
	}
	w.Flush()
}

func slotsOf(policy string) string {
	if policy == "ring_hash" {
		return "points"
	}
	return "slots"
}
