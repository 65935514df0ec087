package integration

import (
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// Back-pressure: what a server does not read stays with the client. A
// thousand such sessions cost next to nothing, and do not stand in the way of
// one that is read.
func TestBackPressure(t *testing.T) {
	const sessions, each = 1000, 1 << 20 // 1 GB in all
	// Over a unix socket, as the kernel's buffers between two TCP sockets on
	// one machine would take megabytes each before the proxy has to hold back.
	stuck, release := ServeNeverReading(t, "unix", filepath.Join(shortTempDir(t), "stuck.sock"))
	sink := Serve(t, discard)
	p := Start(t, fmt.Sprintf(`
listener "tcp" "edge" {
  address  = "127.0.0.1:0"
  upstream = upstream.stuck
}
listener "tcp" "free" {
  address  = "127.0.0.1:0"
  upstream = upstream.free
}
upstream "stuck" {
  server "a" { address = %q }
}
upstream "free" {
  server "a" { address = %q }
}`, stuck.Addr(), sink.Addr()))
	// What the clients have sent is on its way when they close, so sessions
	// end with the server.
	t.Cleanup(release)
	before := pss(t, p.Pid())
	var senders sync.WaitGroup
	t.Cleanup(senders.Wait)
	addr := p.Addr("edge")
	for range sessions {
		c := Dial(t, addr)
		c.(*net.TCPConn).SetWriteBuffer(64 << 10)
		senders.Go(func() { newStreamShared().Send(c, each) })
	}
	eventually(t, func() bool { return stuck.Open() == sessions }, func() string { return fmt.Sprintf("%d sessions", stuck.Open()) })
	// Stuck: nothing has moved for half a second.
	last := -1.0
	eventually(t, func() bool {
		was := last
		last = p.Metrics().Sum("edgeproxy_bytes_total", "listener", "edge", "direction", "in")
		if last != was {
			time.Sleep(500 * time.Millisecond)
		}
		return last == was
	}, func() string { return fmt.Sprintf("bytes stop to move at %.0f", last) })
	if last > sessions*each*0.9 {
		t.Fatalf("%.0f bytes went through to servers that do not read", last)
	}
	full := pss(t, p.Pid())
	if grown := full - before; grown > raceFactor*sessions*32<<10 {
		t.Errorf("the process grew by %d KB for %d sessions that are stuck, want ≤ 32 KB each", grown>>10, sessions)
	}
	t.Logf("%d MB sent, of which the process holds %d KB; descriptors %v", int(last)>>20, (full-before)>>10, descriptors(p.Pid()))

	c := Dial(t, p.Addr("free"))
	if err := newStreamShared().Send(c, bulk()); err != nil {
		t.Error(err)
	}
	c.CloseWrite()
	ExpectEOF(t, c)
	if grown := pss(t, p.Pid()) - full; grown > 16<<20 {
		t.Errorf("the process grew by %d KB while %d MB passed through", grown>>10, bulk()>>20)
	}
	// A second of nothing to do costs nothing: no loop spins on stuck sockets.
	idle := cpuTime(t, p.Pid())
	time.Sleep(time.Second)
	if used := cpuTime(t, p.Pid()) - idle; used > 200*time.Millisecond {
		t.Errorf("%v of CPU in a second in which nothing moved", used)
	}
}

var newStreamShared = sync.OnceValue(func() *stream { return newStream(9) })

// A client that reads nothing holds up its server, and no one else.
func TestBackPressureFromClient(t *testing.T) {
	t.Parallel()
	const n = 512 << 20
	s := Serve(t, func(c Conn) { newStreamShared().Send(c, n) })
	p := Start(t, oneUpstream("", "", s.Addr()), WithWorkers(1))
	before := pss(t, p.Pid())
	addr := p.Addr("edge")
	for range 20 {
		Dial(t, addr) // never reads
	}
	p.Await(20, "edgeproxy_server_sessions_active")
	c := Dial(t, addr)
	if err := newStreamShared().Verify(c, n); err != nil {
		t.Error(err)
	}
	if grown := pss(t, p.Pid()) - before; grown > 16<<20 {
		t.Errorf("the process grew by %d KB", grown>>10)
	}
}
