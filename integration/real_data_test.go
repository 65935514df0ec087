package integration

import (
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// redis-cli and redis-benchmark through edgeproxy, with checks that speak Redis.
func TestRealRedis(t *testing.T) {
	t.Parallel()
	server, cli, bench := need(t, "redis-server"), need(t, "redis-cli"), need(t, "redis-benchmark")
	dir := shortTempDir(t)
	port := FreePorts(t, 1)
	startReal(t, local(port), nil, server, "--port", strconv.Itoa(port), "--bind", "127.0.0.1", "--dir", dir,
		"--save", "", "--unixsocket", filepath.Join(dir, "redis.sock"), "--maxclients", "1000")
	p := Start(t, oneUpstream("", ` health "tcp" {
  send     = "PING\r\n"
  expect   = "+PONG"
  interval = "100ms"
 }`, local(port), "unix:"+filepath.Join(dir, "redis.sock")))
	edge := splitPort(t, p.Addr("edge"))
	if out := tool(t, cli, "-h", "127.0.0.1", "-p", edge, "SET", "key", "value"); out != "OK\n" {
		t.Errorf("SET: %q", out)
	}
	for range 4 { // over TCP and the unix socket
		if out := tool(t, cli, "-h", "127.0.0.1", "-p", edge, "GET", "key"); out != "value\n" {
			t.Errorf("GET: %q", out)
		}
	}
	for _, args := range [][]string{
		{"-n", "30000", "-c", "50", "-t", "set,get"},
		{"-n", "100000", "-c", "20", "-P", "32", "-t", "set,get,lpush"},
		{"-n", "300", "-c", "10", "-d", "1000000", "-t", "set,get"},
	} {
		out := tool(t, bench, append([]string{"-h", "127.0.0.1", "-p", edge, "--csv"}, args...)...)
		if strings.Contains(strings.ToLower(out), "err") || strings.Count(out, "\n") < 3 {
			t.Errorf("redis-benchmark %v:\n%s", args, out)
		}
	}
	p.assertEnds("edge", "client_closed", "client_reset")
	m := p.Metrics()
	for _, s := range []string{"s0", "s1"} {
		if m.Sum("edgeproxy_server_sessions_total", "server", s) == 0 {
			t.Errorf("no session on %s", s)
		}
	}
}

// pgbench through edgeproxy, with connections that stay and with a new one for
// each transaction; nothing that was committed is lost.
func TestRealPostgreSQL(t *testing.T) {
	t.Parallel()
	postgres, initdb, pgbench, psql := need(t, "postgres"), need(t, "initdb"), need(t, "pgbench"), need(t, "psql")
	dir := shortTempDir(t)
	data := filepath.Join(dir, "data")
	as := databaseUser(t)
	if as != nil {
		if err := os.Chown(dir, int(as.Uid), int(as.Gid)); err != nil {
			t.Fatal(err)
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
		"-c", "unix_socket_directories="+dir, "-c", "fsync=off", "-c", "max_connections=50")
	p := Start(t, oneUpstream("", "health \"tcp\" {\n interval = \"200ms\"\n }", local(port)))
	edge := []string{"-h", "127.0.0.1", "-p", splitPort(t, p.Addr("edge")), "-U", "edge"}
	run := func(exe string, args ...string) string {
		t.Helper()
		return tool(t, exe, append(append([]string{}, edge...), append(args, "postgres")...)...)
	}
	run(pgbench, "-i", "-s", "1", "-q")
	processed := 0
	for _, args := range [][]string{{"-c", "8", "-j", "2", "-t", "150"}, {"-c", "4", "-j", "2", "-t", "40", "-C"}} {
		out := run(pgbench, append([]string{"-n"}, args...)...)
		m := regexp.MustCompile(`actually processed: (\d+)/(\d+)`).FindStringSubmatch(out)
		if m == nil || m[1] != m[2] {
			t.Fatalf("pgbench %v:\n%s", args, out)
		}
		n, _ := strconv.Atoi(m[1])
		processed += n
	}
	if out := run(psql, "-Atc", "select count(*) from pgbench_history"); out != fmt.Sprintln(processed) {
		t.Errorf("%q transactions in the history, want %d", out, processed)
	}
	p.assertEnds("edge", "client_closed", "server_closed")
}

// databaseUser is whom PostgreSQL runs as: it refuses to be root.
func databaseUser(t testing.TB) *syscall.Credential {
	t.Helper()
	if os.Geteuid() != 0 {
		return nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		if u, err := user.Lookup(name); err == nil {
			uid, _ := strconv.Atoi(u.Uid)
			gid, _ := strconv.Atoi(u.Gid)
			return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		}
	}
	t.Fatal("no user to run PostgreSQL as")
	return nil
}
