package admin

import (
	"net/http"
	"os"
	"time"

	"edgeproxy/internal/version"
	"edgeproxy/listener"
)

type statusView struct {
	Version   string     `json:"version"`
	GoVersion string     `json:"go_version"`
	PID       int        `json:"pid"`
	Started   time.Time  `json:"started"`
	Uptime    float64    `json:"uptime_seconds"`
	State     string     `json:"state"` // starting, running, draining
	Ready     bool       `json:"ready"`
	NotReady  string     `json:"not_ready,omitempty"` // why
	Reload    reloadView `json:"last_reload"`
	Loops     []loopView `json:"loops"`
}

type reloadView struct {
	OK      bool       `json:"ok"`
	Success *time.Time `json:"success,omitempty"` // when one last succeeded
}

type loopView struct {
	Loop     int     `json:"loop"`
	Sessions int64   `json:"sessions"`
	Busy     float64 `json:"busy_ratio"`
}

func (h *handler) status(w http.ResponseWriter, _ *http.Request) {
	state := h.source.State()
	v := statusView{
		Version: version.String(), GoVersion: version.Go(), PID: os.Getpid(),
		Started: h.started.UTC().Truncate(time.Millisecond), Uptime: time.Since(h.started).Truncate(time.Millisecond).Seconds(),
		State: state.Phase.String(), Ready: state.unready() == "", NotReady: state.unready(),
		Loops: []loopView{},
	}
	ok, success := h.source.LastReload()
	v.Reload.OK = ok
	if !success.IsZero() {
		v.Reload.Success = new(success.UTC().Truncate(time.Millisecond))
	}
	for i, s := range h.source.Loops() {
		v.Loops = append(v.Loops, loopView{i, s.Sessions, s.Busy})
	}
	respond(w, http.StatusOK, v)
}

type listenerView struct {
	Name      string            `json:"name"`
	Protocol  string            `json:"protocol"` // tcp, udp
	Addresses []string          `json:"addresses"`
	Active    int64             `json:"sessions_active"`
	Sessions  uint64            `json:"sessions_total"`
	Ends      map[string]uint64 `json:"ends"` // those that have occurred
	BytesIn   uint64            `json:"bytes_in"`
	BytesOut  uint64            `json:"bytes_out"`
	Errors    uint64            `json:"accept_errors"`
	*tcpView                    // nil unless Protocol says so
	*udpView                    // nil unless Protocol says so
}

type tcpView struct {
	Spliced      uint64 `json:"spliced_bytes"`
	AcceptPauses uint64 `json:"accept_pauses"`
}

type udpView struct {
	DatagramsIn  uint64            `json:"datagrams_in"`
	DatagramsOut uint64            `json:"datagrams_out"`
	Dropped      map[string]uint64 `json:"dropped"` // datagrams, by why; those reasons that have occurred
}

func (h *handler) listeners(w http.ResponseWriter, _ *http.Request) {
	all := []listenerView{}
	for _, s := range h.source.Listeners() {
		v := listenerView{
			Name: s.Name, Protocol: s.Network.String(), Addresses: append([]string{}, s.Addresses...),
			Active: s.Active, Sessions: s.Sessions, Ends: map[string]uint64{},
			BytesIn: s.BytesIn, BytesOut: s.BytesOut, Errors: s.AcceptErrors,
		}
		for i, n := range s.Ends {
			if n > 0 {
				v.Ends[listener.End(i).String()] = n
			}
		}
		if s.Network == listener.UDP {
			v.udpView = &udpView{s.DatagramsIn, s.DatagramsOut, map[string]uint64{}}
			for i, n := range s.Dropped {
				if n > 0 {
					v.Dropped[listener.Drop(i).String()] = n
				}
			}
		} else {
			v.tcpView = &tcpView{s.Spliced, s.AcceptPauses}
		}
		all = append(all, v)
	}
	respond(w, http.StatusOK, all)
}

type upstreamView struct {
	Name    string       `json:"name"`
	Servers []serverView `json:"servers"`
}

type serverView struct {
	Name      string            `json:"name"`
	Address   string            `json:"address"`
	Resolved  string            `json:"resolved,omitempty"` // of a host name: the address in use
	Weight    int               `json:"weight"`
	Tier      int               `json:"tier"`
	State     string            `json:"state"`                // up, down
	LastError string            `json:"last_error,omitempty"` // of the last health check, if it failed
	Active    int64             `json:"sessions_active"`
	Sessions  uint64            `json:"sessions_total"`
	Failures  map[string]uint64 `json:"failures"` // those that have occurred
	Checks    checksView        `json:"health_checks"`
}

type checksView struct {
	Passed uint64 `json:"passed"`
	Failed uint64 `json:"failed"`
}

func (h *handler) upstreams(w http.ResponseWriter, _ *http.Request) {
	all := []upstreamView{}
	for _, u := range h.source.Upstreams() {
		v := upstreamView{Name: u.Name, Servers: make([]serverView, 0, len(u.Servers))}
		for _, s := range u.Servers {
			state := "down"
			if s.Up {
				state = "up"
			}
			failures := map[string]uint64{}
			for reason, n := range s.Failures {
				if n > 0 {
					failures[reason] = n
				}
			}
			v.Servers = append(v.Servers, serverView{
				Name: s.Name, Address: s.Address, Resolved: s.Resolved, Weight: s.Weight, Tier: s.Tier,
				State: state, LastError: s.LastErr, Active: s.Active, Sessions: s.Sessions, Failures: failures,
				Checks: checksView{s.Checks.Passed, s.Checks.Failed},
			})
		}
		all = append(all, v)
	}
	respond(w, http.StatusOK, all)
}
