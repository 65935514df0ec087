package upstream

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	lookupTimeout = 5 * time.Second
	// firstLookup bounds how long a start or a reload waits for name servers.
	firstLookup = 2 * time.Second
)

// lookup is replaced in tests.
var lookup = func(ctx context.Context, host string) ([]netip.Addr, error) {
	return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
}

// resolve looks a server's host name up. The address in use stays as long as
// it is among the answers, and when there is no answer; changed reports that
// another one is used now.
func (s *Server) resolve(ctx context.Context) (changed bool, err error) {
	addrs, err := lookup(ctx, s.Address.Host)
	if err != nil {
		return false, err
	}
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	old := s.endpoint.Load()
	if old != nil && slices.Contains(addrs, old.addr.Addr()) {
		return false, nil
	}
	if len(addrs) == 0 {
		return false, fmt.Errorf("no addresses for %q", s.Address.Host)
	}
	// IPv4 first, then by number: every node of a fleet chooses alike.
	slices.SortFunc(addrs, netip.Addr.Compare)
	s.endpoint.Store(newEndpoint(netip.AddrPortFrom(addrs[0], s.Address.Port), ""))
	if g := s.group.Load(); g != nil {
		g.changed() // even if it is a reload that looks up, and is then given up
	}
	return true, nil
}

// resolveAll looks up all servers that have no address yet, side by side.
func resolveAll(servers []*Server, events Events) {
	ctx, cancel := context.WithTimeout(context.Background(), firstLookup)
	defer cancel()
	var wg sync.WaitGroup
	limit := make(chan struct{}, 64)
	for _, s := range servers {
		wg.Go(func() {
			limit <- struct{}{}
			defer func() { <-limit }()
			if _, err := s.resolve(ctx); err != nil {
				events.ServerResolved(s, "", err)
			}
		})
	}
	wg.Wait()
}

// keepResolving looks the group's host names up again and again.
func (g *Group) keepResolving(ctx context.Context, events Events) {
	var named []*Server
	for _, m := range g.members {
		if m.Address.Host != "" {
			named = append(named, m.Server)
		}
	}
	if len(named) == 0 {
		return
	}
	failing := make(map[*Server]bool)
	for _, s := range named {
		failing[s] = s.endpoint.Load() == nil // which Prepare has told
	}
	tick := time.NewTicker(orDefault(g.opts.Resolve, DefaultResolve))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, s := range named {
			c, cancel := context.WithTimeout(ctx, lookupTimeout)
			changed, err := s.resolve(c)
			cancel()
			switch {
			case ctx.Err() != nil:
				return
			case err != nil && !failing[s]:
				failing[s] = true
				events.ServerResolved(s, "", err)
			case changed || err == nil && failing[s]:
				failing[s] = false
				events.ServerResolved(s, s.endpoint.Load().addr.String(), nil)
			}
		}
	}
}
