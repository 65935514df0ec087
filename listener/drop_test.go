package listener

import (
	"slices"
	"testing"
)

// The names are public: they stand in dashboards and alerts.
func TestNamesOfDrops(t *testing.T) {
	t.Parallel()
	want := []string{"no_route", "limited", "no_server", "too_big", "socket_full", "malformed", "denied"}
	if !slices.Equal(Drops[:], want) || len(want) != int(dropCount) {
		t.Errorf("drops are %q", Drops)
	}
	for name, d := range map[string]Drop{
		"no_route": DropNoRoute, "limited": DropLimited, "no_server": DropNoServer, "too_big": DropTooBig,
		"socket_full": DropSocketFull, "malformed": DropMalformed, "denied": DropDenied,
	} {
		if d.String() != name {
			t.Errorf("%s is called %s", name, d)
		}
	}
}
