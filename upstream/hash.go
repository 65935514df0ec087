package upstream

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"

	"edgeproxy/balance"
)

// keyed is a tier of a group that chooses by a key: a table over all of its
// servers that have a weight, up or not, so that what happens to one of them
// moves nobody else's sessions.
type keyed struct {
	tier    int
	table   *balance.Table
	members []*member // by the table's indexes
}

// keyedTiers builds the tables of a group, taking over those of the group
// before it (nil: none) whose servers are the same.
func (g *Group) keyedTiers(before *Group) []keyed {
	if !g.opts.Balance.Keyed() {
		return nil
	}
	var tiers []keyed
	for t, members := range g.byTier(func(*member) bool { return true }) {
		choices := make([]balance.Keyed, len(members))
		for i, m := range members {
			choices[i] = balance.Keyed{Name: m.Name, Weight: weight(m.opts)}
		}
		k := keyed{tier: t, members: members}
		if was := before.keyedTier(t); was != nil && was.table.Equal(g.opts.Balance, choices) {
			k.table = was.table
		} else {
			k.table = balance.NewTable(g.opts.Balance, choices)
		}
		tiers = append(tiers, k)
	}
	return tiers
}

// keyedTier returns the tier of that number, nil if there is none.
func (g *Group) keyedTier(tier int) *keyed {
	if g == nil {
		return nil
	}
	for i := range g.keyed {
		if g.keyed[i].tier == tier {
			return &g.keyed[i]
		}
	}
	return nil
}

// NeedsName reports whether servers are chosen by [Client.SNI].
func (o *Options) NeedsName() bool { return o.Balance.Keyed() && o.HashOn == HashSNI }

// NeedsDestination reports whether servers are chosen by [Client.Local].
func (o *Options) NeedsDestination() bool { return o.Balance.Keyed() && o.HashOn == HashDestination }

// key is what a client's server is chosen by. A client of a unix socket has no
// address, nor does it send to one: it gets a server at random, by weight.
func (c *Client) key(on HashOn) uint64 {
	var buf [64]byte
	b := buf[:0]
	switch {
	case on == HashSNI && c.SNI != "":
		b = append(b, c.SNI...)
	case on == HashDestination:
		b = appendAddress(b, c.Local, true)
	default:
		b = appendAddress(b, c.Source, on == HashSourcePort)
	}
	if len(b) == 0 {
		return rand.Uint64()
	}
	return balance.Key(b)
}

// appendAddress appends the 16 bytes of an address, an IPv4 address in its
// mapped form, without its zone, which is known to this machine only; and the
// port in network order.
func appendAddress(b []byte, a netip.AddrPort, port bool) []byte {
	if !a.IsValid() {
		return b
	}
	ip := a.Addr().As16()
	b = append(b, ip[:]...)
	if port {
		b = binary.BigEndian.AppendUint16(b, a.Port())
	}
	return b
}
