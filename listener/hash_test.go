package listener

import (
	"testing"

	"edgeproxy/balance"
	"edgeproxy/internal/sniff"
	"edgeproxy/upstream"
)

// Where servers are chosen by the server name, it is looked for, though no
// route asks; elsewhere nothing is.
func TestHashOnNameIsSniffed(t *testing.T) {
	t.Parallel()
	byName := upstream.Sketch(upstream.Options{Name: "byname", Balance: balance.Maglev, HashOn: upstream.HashSNI})
	groups := func(name string) *upstream.Group {
		if name == "byname" {
			return byName
		}
		return upstream.Sketch(upstream.Options{Name: name, HashOn: upstream.HashSNI}) // not by a key at all
	}
	tls, head := sniff.Set(0).With(sniff.TLS), sniff.Head
	named, other := []Split{{"byname", 1}}, []Split{{"web", 1}}
	inside := []Match{{Source: prefixes("10.0.0.0/8")}}
	for i, test := range []struct {
		routes          []RouteOptions
		inside, outside sniff.Set
	}{
		{[]RouteOptions{{Splits: other}}, 0, 0},
		{[]RouteOptions{{Splits: named}}, tls, tls},
		{[]RouteOptions{{Splits: []Split{{"web", 1}, {"byname", 1}}}}, tls, tls},
		{[]RouteOptions{{Match: inside, Splits: named}, {Splits: other}}, tls, 0},
		{[]RouteOptions{{Match: inside, Splits: other}, {Splits: named}}, 0, tls},
		{[]RouteOptions{{Match: []Match{{Host: []string{"a.test"}}}, Splits: other}, {Splits: named}}, tls | head, tls | head},
		{[]RouteOptions{{Match: []Match{{Host: []string{"a.test"}}}, Splits: named}, {Splits: other}}, tls | head, tls | head},
	} {
		table := newTable(&Options{Routes: test.routes}, groups)
		if got := table.sniffs(&facts{source: addr("10.0.0.1")}); got != test.inside {
			t.Errorf("%d: inside %b, want %b", i, got, test.inside)
		}
		if got := table.sniffs(&facts{source: addr("192.0.2.1")}); got != test.outside {
			t.Errorf("%d: outside %b, want %b", i, got, test.outside)
		}
	}
}
