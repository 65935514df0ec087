package listener

import (
	"slices"
	"testing"
)

// The names are public: they stand in logs, dashboards and alerts.
func TestNamesOfEndsAndPhases(t *testing.T) {
	t.Parallel()
	want := []string{
		"client_closed", "server_closed", "client_reset", "server_reset", "idle_timeout", "half_close_timeout", "lifetime",
		"handshake_timeout", "bad_proxy_header", "tls_failed", "no_route", "denied", "limited", "no_server", "connect_failed",
		"connect_timeout", "queue_timeout", "queue_full", "server_down", "server_removed", "killed", "drained", "responses_done",
		"overloaded", "internal_error",
	}
	if !slices.Equal(Ends[:], want) || len(want) != int(endCount) {
		t.Errorf("ends are %q", Ends)
	}
	for name, e := range map[string]End{
		"client_closed": ClientClosed, "server_closed": ServerClosed, "client_reset": ClientReset, "server_reset": ServerReset,
		"idle_timeout": IdleTimeout, "lifetime": Lifetime, "no_route": NoRoute, "denied": Denied, "limited": Limited,
		"no_server": NoServer, "connect_failed": ConnectFailed, "connect_timeout": ConnectTimeout, "server_down": ServerDown,
		"drained": Drained, "overloaded": Overloaded, "internal_error": InternalError, "half_close_timeout": HalfCloseTimeout,
		"handshake_timeout": HandshakeTimeout,
	} {
		if e.String() != name {
			t.Errorf("%s is called %s", name, e)
		}
	}
	if want := []string{"accept", "proxy_header", "sniff", "tls", "connect", "relay"}; !slices.Equal(phases[:], want) {
		t.Errorf("phases are %q", phases)
	}
	if PhaseAccept.String() != "accept" || PhaseConnect.String() != "connect" || PhaseRelay.String() != "relay" {
		t.Error("a phase is called otherwise")
	}
}

// What may have cut a stream short must not look like its end.
func TestOrderlyEnds(t *testing.T) {
	t.Parallel()
	for e := range endCount {
		want := slices.Contains([]string{"client_closed", "server_closed", "no_route", "denied", "limited", "responses_done"}, e.String())
		if e.orderly() != want {
			t.Errorf("%v: orderly %v", e, e.orderly())
		}
	}
}
