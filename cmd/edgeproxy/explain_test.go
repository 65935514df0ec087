package main

import (
	"encoding/json"
	"strings"
	"testing"
)

const explainedFile = `listener "tcp" "edge" {
  address = "127.0.0.1:8443"
  deny    = ["192.0.2.0/24"]
  route "ssh" {
    match { protocol = ["ssh"] }
    upstream = upstream.app
  }
  route "canary" {
    match { sni = ["canary.test"] }
    split {
      upstream = upstream.web
      weight   = 3
    }
    split {
      upstream = upstream.app
      weight   = 1
    }
  }
  route "web" {
    match { sni = ["*.test"] }
    upstream = upstream.web
  }
  route "rest" { reject = true }
}

listener "udp" "dns" {
  address  = ":5353"
  upstream = upstream.ring
}

upstream "web" {
  balance = "maglev"
  server "a" { address = "10.0.0.1:80" }
  server "b" { address = "10.0.0.2:80" }
  server "z" {
    address = "z.example.com:80"
    tier    = 1
  }
}

upstream "ring" {
  balance = "ring_hash"
  hash_on = "destination"
  server "a" { address = "10.0.0.1:53" }
  server "b" { address = "10.0.0.2:53" }
}

upstream "app" {
  server "a" { address = "10.0.0.1:22" }
  server "b" {
    address = "10.0.0.2:22"
    weight  = 3
  }
}
`

func TestExplain(t *testing.T) {
	t.Parallel()
	path := writeFile(t, "edge.hcl", explainedFile)
	broken := writeFile(t, "broken.hcl", strings.Replace(explainedFile, "maglev", "maglef", 1))
	single := writeFile(t, "single.hcl", validFile)
	for _, tt := range []struct {
		args string
		code int
		want string // lines of stdout or stderr, as fields
	}{
		{"--listener edge --source 10.0.0.1:5 --sni x.test", 0, `server "a" of upstream "web", by route "web" of listener "edge"
			if it were down: server "b"
			source 10.0.0.1:5
			destination 127.0.0.1:8443
			protocol tls
			ssh protocol tls is not ssh
			canary sni x.test is not canary.test
			* web matches
			rest would match, but comes after web
			upstream "web": maglev by source 10.0.0.1
			* a 10.0.0.1:80 weight 1 50 %
			b 10.0.0.2:80 weight 1 50 %
			table of 65537 slots in 257 KiB, fingerprint f1fa9438fefed1da
			tier 1, when no server of a lower one is usable
			z z.example.com:80 weight 1 100 %
			note: servers are taken as up, and limits as not reached`},
		{"--listener edge --source 10.0.0.1:5 --sni canary.test", 0, `one of 2 upstreams, drawn anew for each session by route "canary" of listener "edge"
			upstream "web" for 75 % of the sessions: maglev by source 10.0.0.1
			upstream "app" for 25 % of the sessions: random
			b 10.0.0.2:22 weight 3 75 %`},
		{"--listener edge --source 10.0.0.1:5 --protocol ssh", 0, `one of 2 servers of upstream "app", by route "ssh" of listener "edge"`},
		{"--listener edge --source 10.0.0.1:5", 0, `refused by route "rest" of listener "edge" (denied): route "rest" rejects`},
		{"--listener edge --source 192.0.2.1:5", 0, `refused by listener "edge" (denied): source 192.0.2.1 is in 192.0.2.0/24 of deny`},
		{"--listener dns --source 10.0.0.1:5 --destination 192.0.2.53:5353", 0, `upstream "ring": ring_hash by destination 192.0.2.53:5353
			table of 512 points in 11 KiB, fingerprint a0bcf93b832ce4d8`},

		{"--listener dns --source 10.0.0.1:5", 2, `edgeproxy: --destination: upstream "ring" chooses by it, and listener "dns" takes sessions to more than one`},
		{"--listener egde --source 10.0.0.1:5", 2, `edgeproxy: ` + path + ` has no listener "egde"; did you mean "edge"?`},
		{"--listener nothing --source 10.0.0.1:5", 2, `edgeproxy: ` + path + ` has no listener "nothing", but "edge" or "dns"`},
		{"--source 10.0.0.1:5", 2, `edgeproxy: explain needs one of several listeners: --listener "edge" or "dns"`},
		{"--listener edge", 2, `edgeproxy: explain needs the client's address: --source IP:PORT`},
		{"--listener edge --source 10.0.0.1", 2, `edgeproxy: --source "10.0.0.1" has no port; write 10.0.0.1:40000`},
		{"--listener edge --source [::1]", 2, `edgeproxy: --source "[::1]" has no port; write [::1]:40000`},
		{"--listener edge --source example.com:5", 2, `edgeproxy: --source "example.com:5" is not IP:PORT, like 192.0.2.7:40000 or [2001:db8::7]:40000`},
		{"--listener edge --source 10.0.0.1:5 --destination 10.0.0.9:1", 2, `edgeproxy: --destination: listener "edge" does not listen on 10.0.0.9:1; its addresses are 127.0.0.1:8443`},
		{"--listener edge --source 10.0.0.1:5 --protocol smtp", 2, `edgeproxy: --protocol: "smtp" is not one that this tcp listener knows: tls, http, ssh, postgres, redis, mqtt, rdp, socks5, proxy`},
		{"--listner edge", 2, `edgeproxy: there is no flag --listner; did you mean --listener?`},
		{"edge", 2, `edgeproxy: edgeproxy explain takes no argument, but was given "edge"; the configuration is named with -c`},
		{"-c " + broken + " --source 10.0.0.1:5", 1, `Did you mean "maglev"?`},
		{"-c /no/such.hcl --source 10.0.0.1:5", 1, `/no/such.hcl`},
		{"-c " + single + " --source 10.0.0.1:5", 0, `one of 2 servers of upstream "app", by listener "web"`},
	} {
		t.Run(tt.args, func(t *testing.T) {
			t.Parallel()
			got := edgeproxy(t, "", append([]string{"explain", "-c", path}, strings.Fields(tt.args)...)...)
			out := got.stdout
			if tt.code != exitOK {
				out = got.stderr
			}
			all := strings.Join(strings.Fields(out), " ")
			for line := range strings.Lines(tt.want) {
				if !strings.Contains(all, strings.TrimSpace(line)) {
					t.Errorf("missing: %q", strings.TrimSpace(line))
				}
			}
			if got.code != tt.code || tt.code == exitOK && got.stderr != "" {
				t.Errorf("exit code %d, want %d\n%s\n%s", got.code, tt.code, got.stdout, got.stderr)
			}
			if t.Failed() {
				t.Log(out)
			}
		})
	}
}

// The words of --json are for scripts, and stay.
func TestExplainJSON(t *testing.T) {
	t.Parallel()
	path := writeFile(t, "edge.hcl", explainedFile)
	got := edgeproxy(t, "", "explain", "--json", "-c", path, "--listener", "edge", "--source", "10.0.0.1:5", "--sni", "x.test")
	var e struct {
		Listener, Network, Source, Destination, Protocol, Route, End string
		Routes                                                       []struct {
			Name          string
			Chosen, Holds bool
			Fails         []string
		}
		Upstreams []struct {
			Percent               float64
			Upstream, Server, Key string
			Tiers                 []struct {
				Tier    int
				Servers []struct {
					Name, Address string
					Weight        int
					Percent       float64
				}
				Table struct {
					Slots, Bytes int
					Fingerprint  string
				}
			}
		}
	}
	if err := json.Unmarshal([]byte(got.stdout), &e); err != nil || got.code != exitOK || got.stderr != "" {
		t.Fatalf("%v: %+v", err, got)
	}
	if e.Listener != "edge" || e.Network != "tcp" || e.Protocol != "tls" || e.Route != "web" || e.End != "" || len(e.Routes) != 4 || !e.Routes[2].Chosen || len(e.Upstreams) != 1 {
		t.Fatalf("%+v", e)
	}
	u := e.Upstreams[0]
	if u.Percent != 100 || u.Upstream != "web" || u.Server == "" || u.Key != "source 10.0.0.1" || len(u.Tiers) != 2 {
		t.Errorf("%+v", u)
	}
	if tier := u.Tiers[0]; tier.Table.Slots != 65537 || len(tier.Table.Fingerprint) != 16 || len(tier.Servers) != 2 || tier.Servers[1].Percent != 50 {
		t.Errorf("%+v", tier)
	}
}
