package traffic

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestDatagramRoundTrip(t *testing.T) {
	t.Parallel()
	want := datagram{client: 99_999, seq: 1<<32 - 2, process: 65535, index: 31, count: 32, answers: 64, answer: 1000, flags: flagPlain}
	for _, size := range []int{datagramHeader, 100, 1200} {
		b := make([]byte, size)
		want.put(b)
		if got, err := parseDatagram(b); err != nil || got != want {
			t.Errorf("%d bytes: got %+v, %v", size, got, err)
		}
	}
}

func TestDatagramsThatAreWrong(t *testing.T) {
	t.Parallel()
	made := func(d datagram, size int) []byte {
		b := make([]byte, size)
		d.put(b)
		return b
	}
	good := datagram{client: 1, seq: 2, count: 1, answers: 1, answer: 100}
	for _, tt := range []struct {
		name   string
		change func(d *datagram)
		bytes  func(b []byte) []byte
		want   string
	}{
		{"short", nil, func(b []byte) []byte { return b[:datagramHeader-1] }, "23 bytes"},
		{"magic", nil, func(b []byte) []byte { b[3]++; return b }, "starts with"},
		{"filler", nil, func(b []byte) []byte { b[99]++; return b }, "other bytes"},
		{"cut off, though its filler is right", nil, func(b []byte) []byte { return b[:99] }, ""},
		{"no train", func(d *datagram) { d.count = 0 }, nil, "number 0 of 0"},
		{"index", func(d *datagram) { d.index = 1 }, nil, "number 1 of 1"},
		{"long train", func(d *datagram) { d.count = maxTrain + 1 }, nil, "number 0 of 65"},
		{"flags", func(d *datagram) { d.flags = 4 }, nil, "flags 0x4"},
		{"no answer", func(d *datagram) { d.answers = 0 }, nil, "0 of 100 bytes"},
		{"small answer", func(d *datagram) { d.answer = datagramHeader - 1 }, nil, "1 of 23 bytes"},
		{"answer larger than a send", func(d *datagram) { d.answers, d.answer = 64, 1200 }, nil, "64 of 1200 bytes"},
	} {
		d := good
		if tt.change != nil {
			tt.change(&d)
		}
		b := made(d, 100)
		if tt.bytes != nil {
			b = tt.bytes(b)
		}
		_, err := parseDatagram(b)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: got %v, want an error with %q", tt.name, err, tt.want)
		}
	}
}

func TestTrainOf(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		total       int64
		segment     int
		count, size int // 0: it is none
	}{
		{100, 0, 1, 100},
		{100, 1200, 1, 100},
		{1200, 1200, 1, 1200},
		{38400, 1200, 32, 1200},
		{65507, 0, 1, 65507},
		{38401, 1200, 0, 0},
		{65508, 0, 0, 0},
		{65 * 1000, 1000, 0, 0},
		{23, 0, 0, 0},
	} {
		count, size, err := trainOf(tt.total, tt.segment)
		if count != tt.count || size != tt.size || (err == nil) != (tt.count > 0) {
			t.Errorf("%d in %d: got %d of %d, %v", tt.total, tt.segment, count, size, err)
		}
	}
}

// startDatagramBackend runs one loop of the backend on a port of its own, until
// the program ends.
func startDatagramBackend(t *testing.T) netip.AddrPort {
	t.Helper()
	b, err := newDatagramBackend(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(int(b.fd))
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		runtime.LockOSThread()
		panic(b.run()) // it ends for a failed system call only
	}()
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(sa.(*unix.SockaddrInet4).Port))
}

func obeyDatagrams(t *testing.T, target netip.AddrPort, threads int, commands ...Command) []Reply {
	t.Helper()
	return decode(t, commands, func(in io.Reader, out io.Writer) error {
		return Obey([]netip.AddrPort{target}, Datagrams, threads, in, out)
	})
}

func TestDatagramsAgainstBackend(t *testing.T) {
	t.Parallel()
	backend := startDatagramBackend(t)
	const train = 32 * 1200
	for _, tt := range []struct {
		name    string
		threads int
		open    int
		run     Run
		least   uint64
		most    uint64 // 0: any
	}{
		{"one request each", 1, 50, Run{}, 50, 50},
		{"more clients than are served at a time", 1, 300, Run{Window: 20}, 300, 300},
		{"two threads", 2, 51, Run{}, 51, 51},
		{"closed loop", 1, 64, Run{Duration: 50 * time.Millisecond}, 64, 0},
		{"closed loop, fewer than clients", 1, 500, Run{Duration: 50 * time.Millisecond, Window: 16}, 16, 0},
		{"paced", 1, 16, Run{Duration: 100 * time.Millisecond, Rate: 500}, 50, 50},
		{"open", 1, 2, Run{Duration: 100 * time.Millisecond, Rate: 3000, Open: true}, 300, 300},
		{"train to the server", 1, 4, Run{Duration: 50 * time.Millisecond, Request: train, Segment: 1200}, 4, 0},
		{"… one by one", 1, 4, Run{Duration: 50 * time.Millisecond, Request: train, Segment: 1200, Singly: true}, 4, 0},
		{"train from the server", 1, 4, Run{Duration: 50 * time.Millisecond, Answer: train, Segment: 1200}, 4, 0},
		{"… one by one", 1, 4, Run{Duration: 50 * time.Millisecond, Answer: train, Segment: 1200, Singly: true}, 4, 0},
		{"the longest there is", 1, 4, Run{Request: 65507, Answer: 65507}, 4, 4},
		{"both ways", 1, 3, Run{Request: 64 * 1000, Answer: 64 * 1000, Segment: 1000}, 3, 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			run := tt.run
			if run.Request == 0 {
				run.Request = 100
			}
			if run.Answer == 0 {
				run.Answer = 100
			}
			run.Timeout = 20 * time.Second // a busy machine loses nothing
			replies := obeyDatagrams(t, backend, tt.threads,
				Command{Open: &Open{Connections: tt.open, Request: 100, Answer: 100}}, Command{Run: &run}, Command{Run: &run})
			for _, reply := range replies[1:] {
				r := reply.Result
				if reply.Error != "" || r == nil || r.Errors+r.Lost > 0 {
					t.Fatalf("%+v", reply)
				}
				if r.Requests < tt.least && r.Requests+r.Unsent != tt.most || tt.most > 0 && r.Requests > tt.most || r.Latency.Count() != r.Requests {
					t.Errorf("%d requests, %d latencies", r.Requests, r.Latency.Count())
				}
				if r.Bytes != r.Requests*uint64(max(int64(run.Request), run.Answer)) {
					t.Errorf("%d bytes in %d requests", r.Bytes, r.Requests)
				}
			}
		})
	}
}

// startRelay answers each request with what reply makes of the right answer: any
// number of datagrams.
func startRelay(t *testing.T, reply func(nth int, answer []byte) [][]byte) netip.AddrPort {
	t.Helper()
	c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		b := [2000]byte{}
		for nth := 0; ; nth++ {
			n, from, err := c.ReadFromUDPAddrPort(b[:])
			if err != nil {
				return
			}
			d, err := parseDatagram(b[:n])
			if err != nil {
				t.Error(err)
			}
			for _, answer := range reply(nth, answerTo(d)) {
				c.WriteToUDPAddrPort(answer, from)
			}
		}
	}()
	return netip.MustParseAddrPort(c.LocalAddr().String())
}

func answerTo(d datagram) []byte {
	b := make([]byte, d.answer)
	(&datagram{client: d.client, seq: d.seq, process: d.process, count: 1, flags: flagAnswer}).put(b)
	return b
}

// A client that did not notice these would call a broken proxy fast.
func TestDatagramClientNoticesWrongAnswers(t *testing.T) {
	t.Parallel()
	changed := func(change func(d *datagram)) func(int, []byte) [][]byte {
		return func(nth int, answer []byte) [][]byte {
			d, _ := parseDatagram(answer)
			change(&d)
			d.put(answer)
			return [][]byte{answer}
		}
	}
	for _, tt := range []struct {
		name   string
		answer func(nth int, answer []byte) [][]byte
		want   string // in the first error; "": it is lost
	}{
		{"none", func(int, []byte) [][]byte { return nil }, ""},
		{"a changed byte", func(_ int, b []byte) [][]byte { b[70]++; return [][]byte{b} }, "other bytes"},
		{"cut off", func(_ int, b []byte) [][]byte { return [][]byte{b[:99]} }, "99"},
		{"another client's", changed(func(d *datagram) { d.client ^= 1 }), "came to"},
		{"another process's", changed(func(d *datagram) { d.process++ }), "nobody's"},
		{"a request", changed(func(d *datagram) { d.flags, d.answers, d.answer = 0, 1, 100 }), "nobody's"},
		{"one of before", changed(func(d *datagram) { d.seq -= 1000 }), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			target := startRelay(t, func(nth int, b []byte) [][]byte {
				if nth < 2 {
					return [][]byte{b}
				}
				return tt.answer(nth, b)
			})
			replies := obeyDatagrams(t, target, 1,
				Command{Open: &Open{Connections: 2, Request: 100, Answer: 100}},
				Command{Run: &Run{Request: 100, Answer: 100, Timeout: 100 * time.Millisecond}})
			r := replies[1].Result
			if replies[0].Error != "" || r == nil || r.Requests > 0 || r.Lost != 2 {
				t.Fatalf("got %+v", replies)
			}
			if tt.want == "" && r.Errors > 0 || tt.want != "" && !strings.Contains(r.FirstError, tt.want) {
				t.Errorf("got %+v, want an error with %q", r, tt.want)
			}
		})
	}
}

func TestDatagramsTwiceCountOnce(t *testing.T) {
	t.Parallel()
	target := startRelay(t, func(_ int, b []byte) [][]byte { return [][]byte{b, b} })
	replies := obeyDatagrams(t, target, 1,
		Command{Open: &Open{Connections: 20, Request: 100, Answer: 100}},
		Command{Run: &Run{Request: 100, Answer: 100}})
	if r := replies[1].Result; replies[0].Error != "" || r == nil || r.Requests != 20 || r.Errors+r.Lost > 0 {
		t.Errorf("got %+v", replies)
	}
}

// Of eight requests at a time one is lost: the others must not wait for it.
func TestLostDatagramsHoldNobodyUp(t *testing.T) {
	t.Parallel()
	target := startRelay(t, func(nth int, b []byte) [][]byte {
		if nth == 10 {
			return nil
		}
		return [][]byte{b}
	})
	replies := obeyDatagrams(t, target, 1,
		Command{Open: &Open{Connections: 8, Request: 100, Answer: 100}},
		Command{Run: &Run{Request: 100, Answer: 100, Duration: 200 * time.Millisecond, Window: 8, Timeout: 300 * time.Millisecond}})
	if r := replies[1].Result; replies[0].Error != "" || r == nil || r.Lost != 1 || r.Requests < 16 {
		t.Errorf("got %+v", replies)
	}
}

func TestOpenSaysThatNobodyAnswers(t *testing.T) {
	t.Parallel()
	target := startRelay(t, func(nth int, b []byte) [][]byte {
		if nth == 3 {
			return nil
		}
		return [][]byte{b}
	})
	replies := obeyDatagrams(t, target, 1, Command{Open: &Open{Connections: 5, Request: 100, Answer: 100}})
	if !strings.Contains(replies[0].Error, "1 of 5 clients got no answer") {
		t.Errorf("got %+v", replies)
	}
}

func TestAskDatagram(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		target netip.AddrPort
		ok     bool
	}{
		{startDatagramBackend(t), true},
		{startRelay(t, func(_ int, b []byte) [][]byte { b[50]++; return [][]byte{b} }), false},
		{startRelay(t, func(_ int, b []byte) [][]byte { return [][]byte{b[:60]} }), false},
	} {
		c, err := net.Dial("udp", tt.target.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(20 * time.Second))
		if err := AskDatagram(c); (err == nil) != tt.ok || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	}
}

// Each datagram of a flood comes from an address of its own.
func TestFloodSources(t *testing.T) {
	t.Parallel()
	c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const sources, total = 70, 100
	done := make(chan []netip.Addr)
	go func() {
		var seen []netip.Addr
		b := [200]byte{}
		for len(seen) < total {
			_, from, err := c.ReadFromUDPAddrPort(b[:])
			if err != nil {
				break
			}
			seen = append(seen, from.Addr())
		}
		done <- seen
	}()
	replies := obeyDatagrams(t, netip.MustParseAddrPort(c.LocalAddr().String()), 1,
		Command{Run: &Run{Request: 100, Answer: 100, Duration: 100 * time.Millisecond, Rate: total * 10, Sources: sources}})
	if r := replies[0].Result; r == nil || r.Requests != total {
		t.Fatalf("got %+v", replies)
	}
	seen := <-done
	if len(seen) != total || !slices.Equal(seen[sources:], seen[:total-sources]) {
		t.Errorf("%d datagrams, not from the same addresses in turn: %v", len(seen), seen)
	}
	slices.SortFunc(seen, netip.Addr.Compare)
	if n := len(slices.Compact(seen)); n != sources {
		t.Errorf("%d addresses", n)
	}
}
