package traffic

import (
	"encoding/json"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// startBackend runs one loop of the backend on a port of its own, until the
// program ends.
func startBackend(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := newBackendLoop(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(int(l.listening))
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		runtime.LockOSThread()
		panic(l.run()) // it ends for a failed epoll or accept only
	}()
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(sa.(*unix.SockaddrInet4).Port))
}

// obey sends commands to a client and returns its replies.
func obey(t *testing.T, target netip.AddrPort, threads int, commands ...Command) []Reply {
	t.Helper()
	return decode(t, commands, func(in io.Reader, out io.Writer) error {
		return Obey([]netip.AddrPort{target}, Plain, threads, in, out)
	})
}

func decode(t *testing.T, commands []Command, obey func(in io.Reader, out io.Writer) error) []Reply {
	t.Helper()
	var in, out strings.Builder
	for _, c := range commands {
		if err := json.NewEncoder(&in).Encode(c); err != nil {
			t.Fatal(err)
		}
	}
	if err := obey(strings.NewReader(in.String()), &out); err != nil {
		t.Fatal(err)
	}
	var replies []Reply
	for dec := json.NewDecoder(strings.NewReader(out.String())); ; {
		var r Reply
		if err := dec.Decode(&r); err == io.EOF {
			return replies
		} else if err != nil {
			t.Fatal(err)
		}
		replies = append(replies, r)
	}
}

func TestClientAgainstBackend(t *testing.T) {
	t.Parallel()
	backend := startBackend(t)
	const long = 3 << 20
	for _, tt := range []struct {
		name    string
		threads int
		open    int
		run     Run
		least   uint64 // requests
		most    uint64 // 0: any
	}{
		{"one request each", 1, 50, Run{Answer: 1024}, 50, 50},
		{"one request each, two threads", 2, 51, Run{Answer: 1024}, 51, 51},
		{"closed loop", 1, 16, Run{Duration: 50 * time.Millisecond, Answer: 1024}, 16, 0},
		{"long answers", 1, 4, Run{Duration: 50 * time.Millisecond, Answer: long}, 4, 0},
		{"paced", 1, 16, Run{Duration: 100 * time.Millisecond, Rate: 500, Answer: 1024}, 50, 50},
		{"paced, two threads", 2, 16, Run{Duration: 100 * time.Millisecond, Rate: 1000, Answer: 1024}, 100, 100},
		{"connect", 1, 0, Run{Duration: 50 * time.Millisecond, Connect: true, Connections: 8, Answer: 1024}, 8, 0},
		{"connect, long", 1, 0, Run{Connect: true, Connections: 3, Answer: long}, 3, 3},
		{"connect, paced", 1, 0, Run{Duration: 100 * time.Millisecond, Rate: 300, Connect: true, Connections: 64, Answer: 1024}, 30, 30},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var commands []Command
			if tt.open > 0 {
				commands = append(commands, Command{Open: &Open{Connections: tt.open, Request: 100, Answer: 1024}})
			}
			tt.run.Request = 100
			commands = append(commands, Command{Run: &tt.run})
			replies := obey(t, backend, tt.threads, commands...)
			if len(replies) != len(commands) {
				t.Fatalf("%d replies to %d commands", len(replies), len(commands))
			}
			last := replies[len(replies)-1]
			r := last.Result
			if last.Error != "" || r == nil || r.Errors > 0 {
				t.Fatalf("%+v", last)
			}
			if r.Requests < tt.least || tt.most > 0 && r.Requests+r.Unsent > tt.most || r.Latency.Count() != r.Requests {
				t.Errorf("%d requests, %d latencies", r.Requests, r.Latency.Count())
			}
			if r.Bytes != r.Requests*uint64(tt.run.Answer) {
				t.Errorf("%d bytes in %d answers", r.Bytes, r.Requests)
			}
		})
	}
}

// A client that did not notice these would call a broken proxy fast.
func TestClientNoticesWrongAnswers(t *testing.T) {
	t.Parallel()
	answer := func(request []byte) []byte {
		h, _, err := parseRequest(request)
		if err != nil {
			t.Error(err)
		}
		return append([]byte(nil), patternAt(h.offset, 0)[:h.answer]...)
	}
	for _, tt := range []struct {
		name   string
		answer func(request []byte) []byte // then the connection is closed
		want   string
	}{
		{"a changed byte", func(r []byte) []byte { b := answer(r); b[700]++; return b }, "wrong bytes"},
		{"a missing byte", func(r []byte) []byte { b := answer(r); return append(b[:500], b[501:]...) }, "wrong bytes"},
		{"a short answer", func(r []byte) []byte { return answer(r)[:1000] }, "after 1000 of 1024 bytes"},
		{"a long answer", func(r []byte) []byte { return append(answer(r), 1) }, "longer"},
		{"none", func(r []byte) []byte { return nil }, "after 0 of 1024 bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					request := make([]byte, 100)
					if _, err := io.ReadFull(c, request); err == nil {
						c.Write(tt.answer(request))
					}
					c.Close()
				}
			}()
			target := netip.MustParseAddrPort(l.Addr().String())
			replies := obey(t, target, 1, Command{Run: &Run{Connect: true, Connections: 2, Request: 100, Answer: 1024}})
			if r := replies[0].Result; r == nil || r.Errors == 0 || r.Requests > 0 || !strings.Contains(r.FirstError, tt.want) {
				t.Errorf("got %+v, want errors with %q", r, tt.want)
			}
			replies = obey(t, target, 1, Command{Open: &Open{Connections: 2, Request: 100, Answer: 1024}})
			if !strings.Contains(replies[0].Error, tt.want) {
				t.Errorf("open: got %+v, want an error with %q", replies[0], tt.want)
			}
		})
	}
}

func TestClientSaysWhatRefused(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	target := netip.MustParseAddrPort(l.Addr().String())
	l.Close()
	replies := obey(t, target, 1, Command{Run: &Run{Connect: true, Connections: 1, Request: 100, Answer: 10}}, Command{})
	if r := replies[0].Result; r == nil || r.Errors != 1 || !strings.Contains(r.FirstError, "refused") {
		t.Errorf("got %+v", replies[0])
	}
	if !strings.Contains(replies[1].Error, "neither") {
		t.Errorf("an empty command: got %+v", replies[1])
	}
}

// A late request counts from when it was due: one slow answer must show in the
// latencies of those that waited behind it.
func TestPacedLatencyCountsFromDue(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const pause = 50 * time.Millisecond
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		request := make([]byte, 100)
		for i := 0; ; i++ {
			if _, err := io.ReadFull(c, request); err != nil {
				return
			}
			if i == 1 { // the first of the run; 0 is that of open
				time.Sleep(pause) // the slow server itself
			}
			h, _, _ := parseRequest(request)
			c.Write(patternAt(h.offset, 0)[:h.answer])
		}
	}()
	replies := obey(t, netip.MustParseAddrPort(l.Addr().String()), 1,
		Command{Open: &Open{Connections: 1, Request: 100, Answer: 64}},
		Command{Run: &Run{Duration: 40 * time.Millisecond, Rate: 250, Request: 100, Answer: 64}})
	r := replies[1].Result
	if r == nil || r.Requests != 10 {
		t.Fatalf("got %+v", replies[1])
	}
	// The last of them was due 36 ms after the first and so waited 14 ms.
	if least := r.Latency.Quantile(0.01); least < 14*time.Millisecond {
		t.Errorf("a request that was due during the pause claims %v", least)
	}
}
