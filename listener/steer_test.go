package listener

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// load is what the program takes a loop's load for.
func (l *lane) load() int64 { return l.steered.Load() - l.released.Load() }

// steering loads the program. Where the kernel refuses it to this user, it
// asserts that the reason is told, and returns nil.
func steering(t testing.TB, loops int) *Steering {
	t.Helper()
	s, err := NewSteering(loops)
	if err != nil {
		if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.ENOSYS) || !strings.Contains(err.Error(), "bpf(2)") {
			t.Fatal(err)
		}
		t.Logf("cannot be tried here: %v", err)
		return nil
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// segment is a TCP segment of IPv4 or IPv6, in an Ethernet frame.
func segment(version int, flags byte) []byte {
	ip := 14
	f := make([]byte, 14+40+20)
	f[12], f[13] = 0x86, 0xdd
	f[ip], f[ip+6] = 0x60, unix.IPPROTO_TCP
	tcp := ip + 40
	if version == 4 {
		f[12], f[13] = 0x08, 0x00
		f[ip], f[ip+9] = 0x45, unix.IPPROTO_TCP
		tcp = ip + 20
	}
	f[tcp+12], f[tcp+13] = 5<<4, flags
	return f
}

const (
	fin = 0x01
	syn = 0x02
	rst = 0x04
	ack = 0x10
	ece = 0x40
	cwr = 0x80
)

var opening = segment(4, syn)

func (s *Steering) choose(t testing.TB, frame []byte) int {
	t.Helper()
	n, _, err := s.program.Test(frame)
	if err != nil {
		t.Fatal(err)
	}
	if int(n) >= len(s.lanes) {
		t.Fatalf("loop %d of %d was chosen", n, len(s.lanes))
	}
	return int(n)
}

// Only what opens a connection counts, RFC 9293 section 3.10.7.2; the kernel
// asks for other segments as well.
func TestSteeringCountsSYNs(t *testing.T) {
	t.Parallel()
	const loops = 4
	for flags, counts := range map[byte]bool{
		syn: true, syn | ece | cwr: true,
		ack: false, fin | ack: false, rst: false, rst | ack: false, 0: false, syn | ack: false,
	} {
		for _, version := range []int{4, 6} {
			s := steering(t, loops)
			if s == nil {
				return
			}
			var chosen [loops]int
			for range 200 {
				chosen[s.choose(t, segment(version, flags))]++
			}
			sum := int64(0)
			for i := range s.lanes {
				sum += s.lanes[i].load()
			}
			if counts && sum != 200 || !counts && sum != 0 {
				t.Errorf("IPv%d, flags %#x: %d of 200 counted", version, flags, sum)
			}
			if slices.Min(chosen[:]) < 20 {
				t.Errorf("IPv%d, flags %#x: the loops got %v", version, flags, chosen)
			}
		}
	}
}

func TestSteeringChoosesTheLeastLoad(t *testing.T) {
	t.Parallel()
	for _, loops := range []int{2, 3, 4, 7, 16} {
		s := steering(t, loops)
		if s == nil {
			return
		}
		rnd := rand.New(rand.NewPCG(1, uint64(loops)))
		for range 300 {
			for i := range s.lanes {
				// Differences of both signs, and many ties.
				s.lanes[i].released.Store(s.lanes[i].steered.Load() - rnd.Int64N(6) + 2)
			}
			before := make([]int64, loops)
			for i := range before {
				before[i] = s.lanes[i].load()
			}
			got := s.choose(t, opening)
			if before[got] != slices.Min(before) {
				t.Fatalf("loads %v: loop %d was chosen", before, got)
			}
			before[got]++
			for i := range before {
				if l := s.lanes[i].load(); l != before[i] {
					t.Fatalf("loop %d was chosen, the load of loop %d is %d, want %d", got, i, l, before[i])
				}
			}
		}
	}
}

func TestSteeringSpreadsTies(t *testing.T) {
	t.Parallel()
	const loops, rounds = 3, 3000
	s := steering(t, loops)
	if s == nil {
		return
	}
	var chosen [loops]int
	for range rounds {
		i := s.choose(t, opening)
		chosen[i]++
		s.lanes[i].released.Add(1) // the session has ended: no loop has any
	}
	for i, n := range chosen {
		if n < rounds/loops*8/10 || n > rounds/loops*12/10 {
			t.Errorf("of %d sessions one after the other, loop %d got %d", rounds, i, n)
		}
	}
}

// A loop that hangs ends no session: it gets no more than brings it level with
// the others.
func TestSteeringAvoidsALoopThatHangs(t *testing.T) {
	t.Parallel()
	const loops, live = 3, 10
	s := steering(t, loops)
	if s == nil {
		return
	}
	for range loops * live {
		s.choose(t, opening)
	}
	for range 1000 {
		if i := s.choose(t, opening); i != 0 {
			s.lanes[i].released.Add(1)
		}
	}
	if got := s.lanes[0].load(); got > live+1 {
		t.Errorf("the loop that hangs was given %d sessions, the others have %d at a time", got, live)
	}
}

func TestSteeringOverManyLoops(t *testing.T) {
	t.Parallel()
	for _, loops := range []int{17, 64, 100, 1024} {
		s := steering(t, loops)
		if s == nil {
			return
		}
		const each = 20
		for range loops * each {
			s.choose(t, opening)
		}
		least, most := int64(each), int64(each)
		for i := range s.lanes {
			least, most = min(least, s.lanes[i].load()), max(most, s.lanes[i].load())
		}
		if least < each-8 || most > each+4 {
			t.Errorf("%d connections per loop on %d loops: from %d to %d", each, loops, least, most)
		}
	}
}

// TestTally holds a tally against what it is to count: sessions and
// connections under way, but no phantoms older than a second or two.
func TestTally(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		y := tally{lane: new(lane)}
		var live, waiting, phantoms, old int64
		drain := func() {
			for ; waiting > 0; waiting-- {
				live++
				y.begin(true)
			}
			y.drained()
		}
		for range 2000 {
			switch rnd.IntN(7) {
			case 0, 1:
				y.lane.steered.Add(1)
				waiting++
			case 2:
				if waiting > 0 {
					waiting--
					live++
					y.begin(true)
				}
			case 3:
				if live > 0 {
					live--
					y.end()
				}
			case 4: // through a socket all loops share
				live++
				y.begin(false)
			case 5:
				y.lane.steered.Add(1)
				phantoms++
			case 6:
				switch rnd.IntN(10) {
				case 0:
					drain()
				case 1:
					drain()
					for range rnd.IntN(3) {
						y.lane.steered.Add(1)
						waiting++
					}
					y.settle(false)
					phantoms, old = 0, phantoms
				}
			}
			load := y.lane.load()
			if load < live || load > live+waiting+phantoms+old {
				t.Fatalf("load %d with %d live, %d waiting, %d + %d phantoms", load, live, waiting, phantoms, old)
			}
		}
		for range 2 {
			drain()
			y.settle(false)
		}
		if got := y.lane.load(); got != live {
			t.Fatalf("load %d after two corrections, with %d live", got, live)
		}
	}
}

// A loop that never finds its queue empty has no phantoms that it could tell
// from what waits.
func TestTallyOfABusyLoop(t *testing.T) {
	t.Parallel()
	y := tally{lane: new(lane)}
	for i := range int64(10) {
		y.lane.steered.Add(5)
		y.begin(true)
		y.settle(false)
		if got, want := y.lane.load(), 5*(i+1); got != want {
			t.Errorf("load %d with %d live and the rest of %d in the queue", got, i+1, want)
		}
	}
}

func TestTallyOfAPausedLoop(t *testing.T) {
	t.Parallel()
	y := tally{lane: new(lane)}
	y.lane.steered.Add(5)
	for range 10 {
		y.settle(true)
	}
	if got := y.lane.load(); got != 5 {
		t.Errorf("load %d while 5 wait for the loop to go on", got)
	}
}

// What was given up and arrives after all is counted once.
func TestTallyOfALateConnection(t *testing.T) {
	t.Parallel()
	y := tally{lane: new(lane)}
	y.lane.steered.Add(1)
	y.settle(false)
	y.settle(false)
	if got := y.lane.load(); got != 0 {
		t.Errorf("load %d after the phantom was given up", got)
	}
	y.begin(true)
	y.settle(false)
	if got := y.lane.load(); got != 1 {
		t.Errorf("load %d with one live", got)
	}
	y.end()
	if got := y.lane.load(); got != 0 {
		t.Errorf("load %d at the end", got)
	}
}

func BenchmarkSteering(b *testing.B) {
	for _, loops := range []int{2, 16, 64} {
		if s := steering(b, loops); s != nil {
			b.Run(fmt.Sprint(loops, " loops"), func(b *testing.B) {
				_, d, err := s.program.Benchmark(opening, b.N, nil)
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(d.Nanoseconds()), "ns/connection")
			})
		}
	}
}

func BenchmarkNewSteering(b *testing.B) {
	for _, loops := range []int{2, 16, 64} {
		b.Run(fmt.Sprint(loops, " loops"), func(b *testing.B) {
			for b.Loop() {
				s, err := NewSteering(loops)
				if err != nil {
					b.Fatal(err)
				}
				s.Close()
			}
		})
	}
}
