package balance

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/big"
	"slices"
	"testing"
)

var keyedPolicies = []Policy{Maglev, RingHash}

// eachKeyed runs a test for the policies that choose by a key.
func eachKeyed(t *testing.T, f func(t *testing.T, p Policy)) {
	for _, p := range keyedPolicies {
		t.Run(p.String(), func(t *testing.T) {
			t.Parallel()
			f(t, p)
		})
	}
}

// named makes members a0, a1 … of these weights.
func named(weights ...int) []Keyed {
	ms := make([]Keyed, len(weights))
	for i, w := range weights {
		ms[i] = Keyed{Name: fmt.Sprintf("a%d", i), Weight: w}
	}
	return ms
}

// namedBy makes n members.
func namedBy(n int, weight func(i int) int) []Keyed {
	ms := make([]Keyed, n)
	for i := range ms {
		ms[i] = Keyed{Name: fmt.Sprintf("a%d", i), Weight: weight(i)}
	}
	return ms
}

// keyOf is the key of the nth client.
func keyOf(n int) uint64 {
	var b [16]byte
	b[10], b[11] = 0xff, 0xff
	binary.BigEndian.PutUint32(b[12:], uint32(n))
	return Key(b[:])
}

func TestKeyedPolicies(t *testing.T) {
	t.Parallel()
	for p := range Policies {
		if got := Policy(p).Keyed(); got != slices.Contains(keyedPolicies, Policy(p)) || got == slices.Contains(pickers, Policy(p)) {
			t.Errorf("%v: keyed %v", Policy(p), got)
		}
	}
}

// Who gets what is the same on every node of a fleet, whatever its version:
// these values never change. A fleet that is upgraded node by node would send
// one client to two servers.
func TestTableIsForEver(t *testing.T) {
	t.Parallel()
	// XXH64 with seed 0: the values that its other implementations give.
	for text, want := range map[string]uint64{"": 0xef46db3751d8e999, "a": 0xd24ec4f1a98c6e5b, "abc": 0x44bc2cf5ad770999} {
		if got := Key([]byte(text)); got != want {
			t.Errorf("the key of %q is %#x, want %#x", text, got, want)
		}
	}
	tests := []struct {
		policy      Policy
		members     []Keyed
		fingerprint string
		picks       string // of the clients 0 … 31
	}{
		{Maglev, named(1, 1, 1, 1), "59cb031bd74982df",
			"1 1 2 2 2 0 0 0 1 1 0 0 1 0 1 0 1 1 0 2 2 3 0 2 0 0 0 0 1 2 3 3 "},
		{Maglev, named(10, 1, 256, 0, 3), "441256654f647282",
			"2 2 2 2 2 2 2 2 2 2 2 2 2 4 2 2 1 2 2 2 2 2 0 2 2 0 2 2 2 2 2 2 "},
		{Maglev, namedBy(5000, func(int) int { return 1 }), "9e65cd6779be98f4",
			"1237 3622 367 4765 1547 3324 2367 1119 2525 2669 3839 2459 3468 2781 3262 3813 2219 3136 2379 23 110 2429 1112 353 1674 3960 4004 280 1910 3842 3359 788 "},
		{RingHash, named(1, 1, 1, 1), "7d2d41c179ca067b",
			"2 1 3 1 2 0 2 3 3 1 3 2 2 2 1 3 0 3 1 0 3 1 1 0 2 1 3 0 1 3 0 1 "},
		{RingHash, named(10, 1, 256, 0, 3), "0e02dcbfe94a191f",
			"2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 2 1 "},
		{RingHash, namedBy(5000, func(int) int { return 1 }), "a41eea14b3581ef3",
			"2175 420 2935 4766 718 4777 3620 2544 3205 2015 62 4499 2064 2832 2333 1316 348 3552 4105 379 27 1523 4724 2784 3172 3363 2808 1229 2214 3811 2634 4650 "},
	}
	for _, test := range tests {
		table := NewTable(test.policy, test.members)
		picks := ""
		for n := range 32 {
			picks += fmt.Sprintf("%d ", table.Pick(keyOf(n), nil))
		}
		if got := table.Fingerprint(); got != test.fingerprint || picks != test.picks {
			t.Errorf("%v of %d: fingerprint %q, picks %q", test.policy, len(test.members), got, picks)
		}
	}
}

// naiveMaglev is the pseudo code of the paper's section 3.4, for equal weights.
func naiveMaglev(members []Keyed, size int) []int {
	order := make([]int, len(members))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return slices.Compare([]byte(members[a].Name), []byte(members[b].Name)) })
	permutation := make([][]int, len(members))
	for rank, i := range order {
		h := Key([]byte(members[i].Name))
		offset, skip := int(h%uint64(size)), int(mix(h)%uint64(size-1))+1
		for j := range size {
			permutation[rank] = append(permutation[rank], (offset+j*skip)%size)
		}
	}
	next, entry := make([]int, len(members)), make([]int, size)
	for j := range entry {
		entry[j] = -1
	}
	for n := 0; ; {
		for rank, i := range order {
			c := permutation[rank][next[rank]]
			for entry[c] >= 0 {
				next[rank]++
				c = permutation[rank][next[rank]]
			}
			entry[c] = i
			next[rank]++
			if n++; n == size {
				return entry
			}
		}
	}
}

func TestMaglevIsThePapers(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 2, 3, 7} {
		members := named(slices.Repeat([]int{5}, n)...)
		table := NewTable(Maglev, members)
		want := naiveMaglev(members, table.Size())
		for slot, m := range table.slots.(maglev) {
			if got := int(table.order[m]); got != want[slot] {
				t.Fatalf("%d members: slot %d is %d's, want %d", n, slot, got, want[slot])
			}
		}
	}
}

func TestMaglevSizes(t *testing.T) {
	t.Parallel()
	for _, size := range []int64{maglevSize, largeMaglevSize} {
		if !big.NewInt(size).ProbablyPrime(0) {
			t.Error(size)
		}
	}
	for _, test := range []struct {
		members []Keyed
		size    uint32
	}{
		{named(1), 65537},
		{named(1, 256), 65537},
		{namedBy(4096, func(int) int { return 200 }), 65537},
		{namedBy(4097, func(int) int { return 1 }), 1<<20 + 7},
		{namedBy(20, func(i int) int { return 256 - 255*(i/19) }), 1<<20 + 7}, // one with a 4865th
		{namedBy(10000, func(int) int { return 1 }), 1<<20 + 7},
		{namedBy(10000, func(i int) int { return 1 + i%256 }), 1<<20 + 7},
	} {
		var weights []seeded
		for _, m := range test.members {
			weights = append(weights, seeded{weight: uint32(m.Weight)})
		}
		if got, _ := maglevFor(weights); got != test.size {
			t.Errorf("%d members: %d slots, want %d", len(test.members), got, test.size)
		}
	}
}

// naiveRing looks at every point.
func naiveRing(r *ring, key uint64) int32 {
	for i, p := range r.points {
		if p >= key {
			return r.owners[i]
		}
	}
	return r.owners[0]
}

func TestRingFindsTheNextPoint(t *testing.T) {
	t.Parallel()
	for _, members := range [][]Keyed{named(1), named(1, 2), named(1, 2, 3, 4, 5, 200)} {
		r := NewTable(RingHash, members).slots.(*ring)
		keys := []uint64{0, 1, math.MaxUint64, math.MaxUint64 - 1}
		for _, p := range r.points {
			keys = append(keys, p-1, p, p+1)
		}
		for n := range 300 {
			keys = append(keys, keyOf(n))
		}
		for i, key := range keys {
			if i%50 != 0 && len(r.points) > 5000 {
				continue // the naive search is slow
			}
			if got, want := r.at(key, 0), naiveRing(r, key); got != want {
				t.Fatalf("%d points, key %#x: %d, want %d", len(r.points), key, got, want)
			}
		}
		if !slices.IsSorted(r.points) || len(r.points) != len(r.owners) {
			t.Error("the ring is not in order")
		}
	}
}

func TestRingIsBounded(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		members     []Keyed
		least, most int
	}{
		{named(1, 1, 1, 1), 4 * pointsPerWeight, 4 * pointsPerWeight},
		{namedBy(100, func(int) int { return 256 }), maxPoints / 2, maxPoints},
		{namedBy(10000, func(i int) int { return 1 + i%256 }), maxPoints / 4, maxPoints + 10000},
	} {
		if n := NewTable(RingHash, test.members).Size(); n < test.least || n > test.most {
			t.Errorf("%d members: %d points, want %d to %d", len(test.members), n, test.least, test.most)
		}
	}
}

// shares counts what each member gets of n keys.
func shares(table *Table, members, n int, f Filter) []float64 {
	got := make([]float64, members)
	for k := range n {
		if i := table.Pick(keyOf(k), f); i >= 0 {
			got[i]++
		}
	}
	return got
}

// deviation is how far the shares are from those of the weights: the standard
// deviation, and the largest difference, each as a part of the own share. What
// the draw of n keys alone brings is in it.
func deviation(got []float64, members []Keyed) (standard, worst float64) {
	var sum, total float64
	for i, m := range members {
		sum += got[i]
		total += float64(max(m.Weight, 0))
	}
	n := 0
	for i, m := range members {
		if m.Weight <= 0 {
			continue
		}
		d := got[i]*total/(sum*float64(m.Weight)) - 1
		standard += d * d
		worst = max(worst, math.Abs(d))
		n++
	}
	return math.Sqrt(standard / float64(n)), worst
}

func TestSharesFollowWeights(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		members []Keyed
		bounds  [2]float64 // of the largest difference: maglev, ring_hash
	}{
		{"2 equal", named(1, 1), [2]float64{0.01, 0.15}},
		{"3 by weight", named(1, 2, 5), [2]float64{0.01, 0.15}},
		{"10 equal", namedBy(10, weightings[0].weight), [2]float64{0.02, 0.2}},
		{"100 mixed", namedBy(100, weightings[1].weight), [2]float64{0.1, 0.25}},
		{"one of 256 to one", named(256, 1), [2]float64{0.06, 0.2}},
	}
	eachKeyed(t, func(t *testing.T, p Policy) {
		for _, test := range tests {
			table := NewTable(p, test.members)
			standard, worst := deviation(shares(table, len(test.members), 300_000, nil), test.members)
			t.Logf("%s: standard deviation %.1f %%, worst %.1f %%", test.name, 100*standard, 100*worst)
			if bound := test.bounds[slices.Index(keyedPolicies, p)]; worst > bound {
				t.Errorf("%s: one share is off by %.1f %%, want at most %.1f %%", test.name, 100*worst, 100*bound)
			}
		}
	})
}

// moved counts the keys, of n, that another member gets in u than in t; those
// that could not stay where they were are not among them.
func moved(t, u *Table, before, after []Keyed, n int) (most, needless float64) {
	at := map[Keyed]bool{}
	for _, m := range after {
		at[m] = true
	}
	was := map[Keyed]bool{}
	for _, m := range before {
		was[m] = true
	}
	for k := range n {
		a, b := before[t.Pick(keyOf(k), nil)], after[u.Pick(keyOf(k), nil)]
		if a == b {
			continue
		}
		most++
		if at[a] && was[b] { // from one that is still there to one that was there
			needless++
		}
	}
	return most / float64(n), needless / float64(n)
}

func TestMembersComeAndGo(t *testing.T) {
	t.Parallel()
	eachKeyed(t, func(t *testing.T, p Policy) {
		for _, n := range []int{2, 4, 10, 100, 400} {
			for _, w := range weightings[:2] {
				all := namedBy(n+1, w.weight)
				fewer := slices.Delete(slices.Clone(all), n/2, n/2+1)
				total := 0
				for _, m := range all {
					total += m.Weight
				}
				share := float64(all[n/2].Weight) / float64(total)
				more, less := NewTable(p, all), NewTable(p, fewer)
				const keys = 50_000
				most, needless := moved(more, less, all, fewer, keys)
				back, again := moved(less, more, fewer, all, keys)
				t.Logf("%s, %d members, one with %.2f %% of the keys goes: %.2f %% move, %.2f %% needlessly", w.name, n+1, 100*share, 100*most, 100*needless)
				if back != most || again != needless {
					t.Errorf("%d members: coming moves %.2f %%, going %.2f %%", n+1, 100*back, 100*most)
				}
				bound := 0.01
				if p == RingHash {
					bound = 0
				}
				if needless > bound || most > 1.6*share+bound {
					t.Errorf("%s, %d members: %.2f %% of the keys move, %.2f %% needlessly", w.name, n+1, 100*most, 100*needless)
				}
			}
		}
	})
}

// A change of one weight moves about what the difference is.
func TestWeightChanges(t *testing.T) {
	t.Parallel()
	eachKeyed(t, func(t *testing.T, p Policy) {
		before, after := named(10, 10, 10, 10), named(10, 10, 10, 5)
		a, b := NewTable(p, before), NewTable(p, after)
		n := 0
		const keys = 100_000
		for k := range keys {
			if a.Pick(keyOf(k), nil) != b.Pick(keyOf(k), nil) {
				n++
			}
		}
		t.Logf("%.1f %% move", 100*float64(n)/keys)
		if n > keys/5 { // 1/4 to 1/7 is 11 %
			t.Errorf("%d of %d keys move", n, keys)
		}
	})
}

// A member that is skipped moves nobody else's keys; its own go to the others
// by their weights, and come back.
func TestSkippedMovesNobodyElse(t *testing.T) {
	t.Parallel()
	eachKeyed(t, func(t *testing.T, p Policy) {
		for _, members := range [][]Keyed{named(1, 1, 1, 1), named(10, 1, 5, 0, 3), namedBy(50, weightings[1].weight)} {
			table := NewTable(p, members)
			down := make(skipSet, len(members))
			down[0] = true
			inherited := make([]float64, len(members))
			for k := range 200_000 {
				was, now := table.Pick(keyOf(k), nil), table.Pick(keyOf(k), down)
				if was == 0 {
					inherited[now]++
				} else if now != was {
					t.Fatalf("key %d moved from %d to %d", k, was, now)
				}
			}
			heirs := slices.Clone(members)
			heirs[0].Weight = 0
			if inherited[0] > 0 {
				t.Error("the skipped one was picked")
			}
			if len(members) > 10 {
				continue // too few keys for each heir
			}
			_, worst := deviation(inherited, heirs)
			t.Logf("%d members: one heir's share is off by %.1f %%", len(members), 100*worst)
			if bound := map[Policy]float64{Maglev: 0.05, RingHash: 0.2}[p]; worst > bound {
				t.Errorf("%d members: one heir's share is off by %.1f %%, want %.1f %%", len(members), 100*worst, 100*bound)
			}
		}
	})
}

// With more and more skipped each step moves only the keys of who goes, as
// long as not nearly all are gone, and somebody is found to the end.
func TestSkipOneAfterTheOther(t *testing.T) {
	t.Parallel()
	eachKeyed(t, func(t *testing.T, p Policy) {
		const n, keys = 40, 2000
		table := NewTable(p, namedBy(n, weightings[1].weight))
		down := make(skipSet, n)
		last := make([]int, keys)
		for k := range last {
			last[k] = table.Pick(keyOf(k), nil)
		}
		for gone := range n {
			down[gone*7%n] = true
			for k := range last {
				i := table.Pick(keyOf(k), down)
				switch {
				case gone == n-1 && i != -1, gone < n-1 && (i < 0 || down[i]):
					t.Fatalf("%d are down: picked %d", gone+1, i)
				case gone < n/2 && last[k] != gone*7%n && i != last[k]:
					t.Fatalf("%d are down: key %d moved from %d to %d", gone+1, k, last[k], i)
				}
				last[k] = i
			}
		}
	})
}

// The last one that is left is found, however small it is.
func TestTheSmallestIsFound(t *testing.T) {
	t.Parallel()
	eachKeyed(t, func(t *testing.T, p Policy) {
		members := namedBy(300, func(i int) int { return 1 + 31*min(i, 1) })
		table := NewTable(p, members)
		down := make(skipSet, len(members))
		for i := range down {
			down[i] = i != 0
		}
		for k := range 20 {
			if i := table.Pick(keyOf(k), down); i != 0 {
				t.Fatalf("picked %d", i)
			}
		}
		if p == Maglev && !slices.Contains(table.slots.(maglev), int32(slices.Index(table.order, 0))) {
			t.Error("a member has no slot at all")
		}
	})
}

func TestOrderDoesNotMatter(t *testing.T) {
	t.Parallel()
	eachKeyed(t, func(t *testing.T, p Policy) {
		members := append(namedBy(30, weightings[1].weight), Keyed{"idle", 0})
		backwards := slices.Clone(members)
		slices.Reverse(backwards)
		a, b := NewTable(p, members), NewTable(p, backwards)
		if a.Fingerprint() != b.Fingerprint() {
			t.Error("the fingerprints differ")
		}
		if !a.Equal(p, members) || a.Equal(p, backwards) {
			t.Error("Equal is to tell whether the indexes are the same")
		}
		for k := range 5000 {
			if x, y := members[a.Pick(keyOf(k), nil)], backwards[b.Pick(keyOf(k), nil)]; x != y {
				t.Fatalf("key %d: %v and %v", k, x, y)
			}
		}
	})
}

func TestFingerprintTellsTablesApart(t *testing.T) {
	t.Parallel()
	seen := map[string]int{}
	for i, table := range []*Table{
		NewTable(Maglev, nil), NewTable(RingHash, nil),
		NewTable(Maglev, named(1)), NewTable(RingHash, named(1)), NewTable(Maglev, named(2)),
		NewTable(Maglev, named(1, 1)), NewTable(RingHash, named(1, 1)), NewTable(RingHash, named(2, 2)),
		NewTable(Maglev, named(1, 2)), NewTable(Maglev, named(2, 1)),
		NewTable(Maglev, []Keyed{{"a", 1}, {"b", 1}}), NewTable(Maglev, []Keyed{{"ab", 1}}),
	} {
		f := table.Fingerprint()
		if j, ok := seen[f]; ok || len(f) != 16 {
			t.Errorf("tables %d and %d: %q", i, j, f)
		}
		seen[f] = i
	}
	if NewTable(Maglev, named(1, 0)).Fingerprint() != NewTable(Maglev, named(1)).Fingerprint() {
		t.Error("who gets nothing changes the fingerprint")
	}
}

func TestNobodyInTheTable(t *testing.T) {
	t.Parallel()
	eachKeyed(t, func(t *testing.T, p Policy) {
		for _, members := range [][]Keyed{nil, named(0), named(-5, 0)} {
			if i := NewTable(p, members).Pick(1, nil); i != -1 {
				t.Errorf("%v: picked %d", members, i)
			}
		}
	})
}

// Two of one name are two members.
func TestNamesakes(t *testing.T) {
	t.Parallel()
	eachKeyed(t, func(t *testing.T, p Policy) {
		members := []Keyed{{"a", 1}, {"a", 1}, {"a", 2}}
		got := shares(NewTable(p, members), 3, 200_000, nil)
		if _, worst := deviation(got, members); worst > 0.2 {
			t.Errorf("%v of 200 000", got)
		}
	})
}

func TestTableAllocatesNothing(t *testing.T) {
	for _, p := range keyedPolicies {
		table := NewTable(p, namedBy(100, weightings[1].weight))
		down := make(skipSet, 100)
		for i := range down {
			down[i] = i != 50
		}
		f, k := Filter(down), 0
		if a := testing.AllocsPerRun(500, func() {
			k++
			table.Pick(keyOf(k), nil)
			table.Pick(keyOf(k), f)
		}); a > 0 {
			t.Errorf("%v: %v allocations", p, a)
		}
	}
}

func TestManyMembers(t *testing.T) {
	t.Parallel()
	eachKeyed(t, func(t *testing.T, p Policy) {
		members := namedBy(10_000, weightings[0].weight)
		table := NewTable(p, members)
		got := shares(table, len(members), 500_000, nil)
		standard, worst := deviation(got, members)
		// The draw of 50 keys for each alone makes 14 %.
		t.Logf("%d slots, %d KiB: standard deviation %.1f %%, worst %.1f %%", table.Size(), table.Bytes()>>10, 100*standard, 100*worst)
		if bound := map[Policy]float64{Maglev: 0.155, RingHash: 0.22}[p]; standard > bound {
			t.Errorf("standard deviation %.1f %%", 100*standard)
		}
	})
}

func BenchmarkTablePick(b *testing.B) {
	for _, p := range keyedPolicies {
		for _, n := range []int{10, 100, 1000, 10000} {
			table := NewTable(p, namedBy(n, weightings[0].weight))
			for _, part := range []string{"none", "half", "all_but_one"} {
				down := make(skipSet, n)
				for i := range down {
					down[i] = part == "half" && i%2 == 0 || part == "all_but_one" && i > 0
				}
				b.Run(fmt.Sprintf("%s/%d/%s_skipped", p, n, part), func(b *testing.B) {
					r := rng(1)
					f := Filter(down)
					for b.Loop() {
						table.Pick(r.next(), f)
					}
				})
			}
		}
	}
}

func BenchmarkNewTable(b *testing.B) {
	for _, p := range keyedPolicies {
		for _, w := range weightings {
			for _, n := range []int{4, 100, 1000, 10000} {
				b.Run(fmt.Sprintf("%s/%s/%d", p, w.name, n), func(b *testing.B) {
					members := namedBy(n, w.weight)
					var table *Table
					for b.Loop() {
						table = NewTable(p, members)
					}
					b.ReportMetric(float64(table.Bytes()), "table-bytes")
					b.ReportMetric(float64(table.Size()), "slots")
				})
			}
		}
	}
}
