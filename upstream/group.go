package upstream

import (
	"iter"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"edgeproxy/balance"
	"edgeproxy/internal/histogram"
	"edgeproxy/tlsterm"
)

// rebuildPause bounds how often a loop builds its view anew while servers
// change their state one after another. Between two builds a server that went
// down is still left out, because a pick looks at its state; one that came up
// waits this long.
const rebuildPause = 20 * time.Millisecond

// member is a server as one configuration uses it.
type member struct {
	*Server
	opts ServerOptions
}

// Group is one upstream: servers, and how to choose among them. It is
// immutable but for the loops' views.
type Group struct {
	opts      Options
	members   []*member
	retries   int
	connect   *histogram.Histogram // survives reloads, as the servers do
	version   atomic.Uint64        // changes when a server's state does
	views     []view               // by loop
	keyed     []keyed              // by tier, of a policy that chooses by a key; else nil
	resolving *resolving
	tls       *tlsterm.ClientContext // nil: no re-encryption
}

// view is what one loop knows of the group: a picker for each tier, over the
// servers that were usable when it was built; or the tables, which all loops
// share, of the tiers that had any.
type view struct {
	version uint64
	built   int64
	panics  bool // too few servers are up: their health is ignored
	tiers   []tier
	_       [64]byte
}

type tier struct {
	picker  balance.Picker
	table   *balance.Table // instead of a picker
	members []*member
}

func newConnectHistogram() *histogram.Histogram {
	return histogram.New(100*time.Microsecond, 250*time.Microsecond, 500*time.Microsecond, time.Millisecond, 2500*time.Microsecond,
		5*time.Millisecond, 10*time.Millisecond, 25*time.Millisecond, 50*time.Millisecond, 100*time.Millisecond, 250*time.Millisecond,
		500*time.Millisecond, time.Second, 2500*time.Millisecond, 5*time.Second)
}

// Options are the group's, as configured.
func (g *Group) Options() *Options { return &g.opts }

// changed tells every loop to look at the servers again.
func (g *Group) changed() { g.version.Add(1) }

// usable reports whether a member may take a new session, but for its load.
func (m *member) usable(ignoreHealth bool) bool {
	return m.endpoint.Load() != nil && (ignoreHealth || m.up.Load())
}

// build makes a loop's view. On the loop.
func (g *Group) build(v *view, loop int, now int64) {
	v.version = g.version.Load()
	v.built = now
	weighed, up := 0, 0
	for _, m := range g.members {
		if weight(m.opts) > 0 {
			weighed++
			if m.usable(false) {
				up++
			}
		}
	}
	v.panics = g.opts.PanicThreshold > 0 && float64(up) < g.opts.PanicThreshold*float64(weighed)
	v.tiers = v.tiers[:0]
	for t, ms := range g.byTier(func(m *member) bool { return m.usable(v.panics) }) {
		if k := g.keyedTier(t); k != nil {
			v.tiers = append(v.tiers, tier{table: k.table, members: k.members})
			continue
		}
		choices := make([]balance.Member, len(ms))
		for i, m := range ms {
			choices[i] = balance.Member{Weight: weight(m.opts), Load: &m.active}
		}
		v.tiers = append(v.tiers, tier{picker: balance.New(g.opts.Balance, choices, uint64(loop)<<32^uint64(now)), members: ms})
	}
}

// byTier yields the tiers that have members of a weight which are wanted, and
// those members, the lowest tier first.
func (g *Group) byTier(wanted func(*member) bool) iter.Seq2[int, []*member] {
	byTier := map[int][]*member{}
	for _, m := range g.members {
		if weight(m.opts) > 0 && wanted(m) {
			byTier[m.opts.Tier] = append(byTier[m.opts.Tier], m)
		}
	}
	return func(yield func(int, []*member) bool) {
		for _, t := range slices.Sorted(maps.Keys(byTier)) {
			if !yield(t, byTier[t]) {
				return
			}
		}
	}
}

// pick leases a server for d, nil when there is none. Members that d has
// tried, that are full, or that have gone down since are left out. On the loop.
func (g *Group) pick(d *Dial, loop int, now int64) *member {
	v := &g.views[loop]
	fresh := false
	if g.keyed != nil {
		d.key = d.client.key(g.opts.HashOn)
	}
	if v.built == 0 || v.version != g.version.Load() && now-v.built > int64(rebuildPause) {
		g.build(v, loop, now)
		fresh = true
	}
	for {
		if m := v.pick(d); m != nil {
			return m
		}
		if fresh || v.version == g.version.Load() {
			return nil
		}
		g.build(v, loop, now)
		fresh = true
	}
}

func (v *view) pick(d *Dial) *member {
	for i := range v.tiers {
		t := &v.tiers[i]
		d.choices, d.panics = t.members, v.panics
		// A loop elsewhere may take the last place between looking and leasing.
		for range 4 {
			var n int
			if t.table != nil {
				n = t.table.Pick(d.key, d)
			} else {
				n = t.picker.Pick(d)
			}
			if n < 0 {
				break
			}
			if m := t.members[n]; m.lease(m.opts.MaxConnections) {
				return m
			}
		}
	}
	return nil
}

// Skip implements [balance.Filter].
func (d *Dial) Skip(i int) bool {
	m := d.choices[i]
	if !m.usable(d.panics) {
		return true
	}
	if n := m.opts.MaxConnections; n > 0 && m.active.Load() >= int64(n) {
		return true
	}
	return d.ntried > 0 && slices.Contains(d.tried[:d.ntried], m.Server)
}

// Stats returns what the group has counted.
func (g *Group) Stats() Stats {
	s := Stats{Name: g.opts.Name, Servers: make([]ServerStats, len(g.members))}
	for i, m := range g.members {
		s.Servers[i] = m.stats(m.opts)
	}
	g.connect.AddTo(&s.Connect)
	return s
}
