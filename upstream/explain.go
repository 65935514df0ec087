package upstream

import (
	"net/netip"
	"slices"

	"edgeproxy/balance"
)

// Explanation is how a group chooses a server for one client.
type Explanation struct {
	Upstream string `json:"upstream"`
	Balance  string `json:"balance"`
	HashOn   string `json:"hash_on,omitempty"`
	// Key is what a policy that hashes goes by; "" where the client does not
	// have it, or the policy does not hash.
	Key   string            `json:"key,omitempty"`
	Tiers []TierExplanation `json:"tiers"`
	// Server is who gets the session, and Next who would if that server were
	// down. "": it is decided only when there is a session.
	Server string `json:"server,omitempty"`
	Next   string `json:"next,omitempty"`
}

// TierExplanation is one tier, the lowest of which has the sessions.
type TierExplanation struct {
	Tier    int           `json:"tier"`
	Servers []ServerShare `json:"servers"`
	Table   *TableFacts   `json:"table,omitempty"` // of a policy that hashes
}

// TableFacts describe the table of a tier. Nodes whose fingerprints are the
// same send every client to the same server.
type TableFacts struct {
	Slots       int    `json:"slots"` // of a Maglev table, or points on a ring
	Bytes       int    `json:"bytes"`
	Fingerprint string `json:"fingerprint"`
}

// ServerShare is what a server gets of its tier's sessions, by its weight alone.
type ServerShare struct {
	Name    string  `json:"name"`
	Address string  `json:"address"`
	Weight  int     `json:"weight"`
	Percent float64 `json:"percent"`
}

// Sketch makes a group for [Group.Explain] and for nothing else: no name is
// looked up, no file read, no server checked, and all of them count as up.
func Sketch(o Options) *Group {
	g := newGroup(&Env{Loops: 1}, o, nil)
	for _, m := range g.members {
		if m.endpoint.Load() == nil {
			// Nobody connects to it, and choices do not depend on addresses.
			m.endpoint.Store(newEndpoint(netip.AddrPortFrom(netip.IPv4Unspecified(), m.Address.Port), ""))
		}
	}
	return g
}

// Explain tells whom a group that [Sketch] has made gives a client to.
func (g *Group) Explain(c Client) Explanation {
	e := Explanation{Upstream: g.opts.Name, Balance: g.opts.Balance.String(), Tiers: []TierExplanation{}}
	hashes := g.opts.Balance.Keyed()
	if hashes {
		e.HashOn, e.Key = HashOns[g.opts.HashOn], c.keyText(g.opts.HashOn)
	}
	for t, members := range g.byTier(func(*member) bool { return true }) {
		e.Tiers = append(e.Tiers, g.explainTier(t, members))
	}
	d := &Dial{client: c}
	choose := func() string {
		m := g.pick(d, 0, 1)
		if m == nil {
			return ""
		}
		m.Release()
		// Without a key, and with others beside it, the next draw is another.
		if tier := e.tier(m.opts.Tier); e.Key == "" && len(tier.Servers) > 1 {
			return ""
		}
		d.tried[d.ntried] = m.Server
		d.ntried++
		return m.Name
	}
	if e.Server = choose(); e.Server != "" {
		e.Next = choose()
	}
	return e
}

func (g *Group) explainTier(n int, members []*member) TierExplanation {
	tier := TierExplanation{Tier: n}
	total := 0
	for _, m := range members {
		total += min(weight(m.opts), balance.MaxWeight)
	}
	for _, m := range members {
		w := min(weight(m.opts), balance.MaxWeight)
		tier.Servers = append(tier.Servers, ServerShare{
			Name: m.Name, Address: m.Address.String(), Weight: w, Percent: 100 * float64(w) / float64(total),
		})
	}
	if k := g.keyedTier(n); k != nil {
		tier.Table = &TableFacts{Slots: k.table.Size(), Bytes: k.table.Bytes(), Fingerprint: k.table.Fingerprint()}
	}
	return tier
}

func (e *Explanation) tier(n int) *TierExplanation {
	return &e.Tiers[slices.IndexFunc(e.Tiers, func(t TierExplanation) bool { return t.Tier == n })]
}

// keyText is [Client.key] for people.
func (c *Client) keyText(on HashOn) string {
	switch {
	case on == HashSNI && c.SNI != "":
		return "server name " + c.SNI
	case on == HashDestination && c.Local.IsValid():
		return "destination " + c.Local.String()
	case on == HashDestination || !c.Source.IsValid():
		return ""
	case on == HashSourcePort:
		return "source " + c.Source.String()
	}
	return "source " + c.Source.Addr().WithZone("").String()
}
