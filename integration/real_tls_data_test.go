package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// PostgreSQL's own request for TLS, answered by the server behind a listener
// that passes it through, and by edgeproxy on one that terminates.
func TestRealTLSPostgreSQL(t *testing.T) {
	t.Parallel()
	postgres, initdb, pgbench, psql := need(t, "postgres"), need(t, "initdb"), need(t, "pgbench"), need(t, "psql")
	l := newTLSLab(t)
	dir := shortTempDir(t)
	l.ca.Server(t, "db.test").Write(t, dir, "db")
	data := filepath.Join(dir, "data")
	as := databaseUser(t)
	if as != nil {
		for _, path := range []string{dir, filepath.Join(dir, "db.crt"), filepath.Join(dir, "db.key")} {
			if err := os.Chown(path, int(as.Uid), int(as.Gid)); err != nil {
				t.Fatal(err)
			}
		}
	}
	create := exec.Command(initdb, "-D", data, "-U", "edge", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C")
	create.Dir = "/"
	create.SysProcAttr = &syscall.SysProcAttr{Credential: as}
	if out, err := create.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	port := FreePorts(t, 1)
	startReal(t, local(port), as, postgres, "-D", data, "-p", strconv.Itoa(port), "-c", "listen_addresses=127.0.0.1",
		"-c", "unix_socket_directories="+dir, "-c", "fsync=off", "-c", "ssl=on",
		"-c", "ssl_cert_file="+filepath.Join(dir, "db.crt"), "-c", "ssl_key_file="+filepath.Join(dir, "db.key"))
	p := Start(t, l.policy("")+fmt.Sprintf(`
listener "tcp" "through" {
  address = "127.0.0.1:0"
  route "db" {
    match { protocol = ["postgres"] }
    upstream = upstream.db
  }
}
listener "tcp" "ended" {
  address = "127.0.0.1:0"
  route "db" {
    match { protocol = ["postgres"] }
    tls      = tls.public
    upstream = upstream.db
  }
}
upstream "db" {
  server "a" { address = %q }
}
`, local(port)))
	for _, c := range []struct{ listener, name, inServer string }{{"through", "db.test", "t"}, {"ended", "app.test", "f"}} {
		to := func(mode string) string {
			return fmt.Sprintf("host=%s hostaddr=127.0.0.1 port=%s user=edge dbname=postgres sslmode=%s sslrootcert=%s",
				c.name, splitPort(t, p.Addr(c.listener)), mode, l.caFile())
		}
		for _, mode := range []string{"require", "verify-full"} {
			out := tool(t, psql, "-X", to(mode), "-Atc", "select ssl from pg_stat_ssl where pid = pg_backend_pid()", "-c", `\conninfo`)
			if !strings.HasPrefix(out, c.inServer+"\n") || !strings.Contains(out, "SSL connection (protocol: TLSv1.3") {
				t.Errorf("%s, %s: %s", c.listener, mode, out)
			}
		}
		out := tool(t, psql, "-X", to("require"), "-Atc", "select string_agg(md5(n::text), '') from generate_series(1, 100000) n")
		if len(out) != 32*100_000+1 {
			t.Errorf("%s: %d bytes", c.listener, len(out))
		}
		tool(t, pgbench, "-i", "-q", to("require"))
		for _, args := range [][]string{{"-c", "6", "-j", "2", "-t", "80"}, {"-c", "4", "-j", "2", "-t", "15", "-C"}} {
			n, clients := args[5], args[1]
			out := tool(t, pgbench, append(append([]string{"-n"}, args...), to("require"))...)
			each, _ := strconv.Atoi(n)
			count, _ := strconv.Atoi(clients)
			want(t, out, fmt.Sprintf("actually processed: %d/%[1]d", each*count))
		}
		ends := []string{"client_closed", "server_closed"}
		if c.listener == "through" {
			// Both sides close without reading the other's close_notify.
			ends = append(ends, "client_reset", "server_reset")
		}
		p.assertEnds(c.listener, ends...)
	}
	// A client that would speak in the clear is not let in where TLS ends.
	out := toolFails(t, psql, "-X", fmt.Sprintf("host=127.0.0.1 port=%s user=edge dbname=postgres sslmode=disable", splitPort(t, p.Addr("ended"))), "-c", "select 1")
	want(t, out, "closed")
}

// Redis without TLS behind, its clients with it.
func TestRealTLSRedis(t *testing.T) {
	t.Parallel()
	server, cli, bench := need(t, "redis-server"), need(t, "redis-cli"), need(t, "redis-benchmark")
	l := newTLSLab(t)
	port := FreePorts(t, 1)
	startReal(t, local(port), nil, server, "--port", strconv.Itoa(port), "--bind", "127.0.0.1", "--dir", shortTempDir(t), "--save", "")
	p := Start(t, l.edge(local(port)))
	edge := []string{"-h", "127.0.0.1", "-p", splitPort(t, p.Addr("edge")), "--tls", "--cacert", l.caFile(), "--sni", "app.test"}
	if out := tool(t, cli, append(edge, "SET", "key", "value")...); out != "OK\n" {
		t.Errorf("SET: %q", out)
	}
	if out := tool(t, cli, append(edge, "GET", "key")...); out != "value\n" {
		t.Errorf("GET: %q", out)
	}
	for _, args := range [][]string{
		{"-n", "5000", "-c", "50", "-t", "set,get"},
		{"-n", "30000", "-c", "20", "-P", "32", "-t", "set,get,lpush"},
		{"-n", "100", "-c", "10", "-d", "1000000", "-t", "set,get"},
	} {
		out := tool(t, bench, append(append(append([]string{}, edge...), "--csv"), args...)...)
		if strings.Contains(strings.ToLower(out), "err") || strings.Count(out, "\n") < 3 {
			t.Errorf("redis-benchmark %v:\n%s", args, out)
		}
	}
	p.assertEnds("edge", "client_closed", "client_reset")
	if e := p.AccessLog(1)[0]; e.SNI != "app.test" || e.TLSVersion != "1.3" {
		t.Errorf("%+v", e)
	}
}
