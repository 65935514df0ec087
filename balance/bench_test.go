package balance

import (
	"fmt"
	"sync/atomic"
	"testing"
)

// server stands for what a member's load is a field of.
type server struct {
	_    [96]byte
	load atomic.Int64
	down atomic.Bool
	_    [96]byte
}

type notDown []*server

func (f notDown) Skip(i int) bool { return f[i].down.Load() }

// fleet makes n servers and members. weight gives the weight of each.
func fleet(n int, weight func(i int) int) ([]*server, []Member) {
	servers, members := make([]*server, n), make([]Member, n)
	for i := range servers {
		servers[i] = new(server)
		members[i] = Member{Weight: weight(i), Load: &servers[i].load}
	}
	return servers, members
}

var weightings = []struct {
	name   string
	weight func(i int) int
}{
	{"equal", func(int) int { return 1 }},
	{"mixed", func(i int) int { return 1 + i*7%5 }},
	{"all_weights", func(i int) int { return 1 + i*37%MaxWeight }},
}

// BenchmarkPick is one pick and what comes with it: the filter asked, the load
// raised, and an older session ended. Two sessions per member are alive. With
// 10 000 members much of the time goes by outside of Pick, waiting for the
// memory of the server whose session ends.
func BenchmarkPick(b *testing.B) {
	for _, p := range pickers {
		for _, w := range weightings {
			for _, n := range []int{10, 100, 1000, 10000} {
				b.Run(fmt.Sprintf("%s/%s/%d", p, w.name, n), func(b *testing.B) {
					servers, members := fleet(n, w.weight)
					picker := New(p, members, 1)
					f := Filter(notDown(servers))
					alive := make([]int32, 2*n)
					for i := range alive {
						alive[i] = int32(picker.Pick(f))
						servers[alive[i]].load.Add(1)
					}
					r := rng(2)
					for b.Loop() {
						k := below(uint32(r.next()), uint32(len(alive)))
						servers[alive[k]].load.Add(-1)
						i := picker.Pick(f)
						servers[i].load.Add(1)
						alive[k] = int32(i)
					}
				})
			}
		}
	}
}

// BenchmarkPickAlone is the pick by itself.
func BenchmarkPickAlone(b *testing.B) {
	for _, p := range pickers {
		for _, w := range weightings {
			for _, n := range []int{10, 100, 1000, 10000} {
				b.Run(fmt.Sprintf("%s/%s/%d", p, w.name, n), func(b *testing.B) {
					_, members := fleet(n, w.weight)
					picker := New(p, members, 1)
					for b.Loop() {
						picker.Pick(nil)
					}
				})
			}
		}
	}
}

func BenchmarkNew(b *testing.B) {
	for _, p := range pickers {
		for _, w := range weightings {
			b.Run(fmt.Sprintf("%s/%s/10000", p, w.name), func(b *testing.B) {
				_, members := fleet(10000, w.weight)
				for b.Loop() {
					New(p, members, 1)
				}
			})
		}
	}
}
