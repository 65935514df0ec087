package main

import (
	"fmt"
	"time"

	"edgeproxy/integration/bench/traffic"
)

// scenario is one thing that is measured on every peer.
type scenario struct {
	Name  string
	Title string

	kind        kind
	connections int
	answer      int64
	duration    time.Duration // in the full run
	paceOf      string        // the scenario whose throughput sets the rate; "": as fast as it goes
	servers     int           // in the upstream; 0: 1
	listeners   int           // 0: 1
	bulk        bool          // goes to the proxy's bulk listener
	withDirect  bool          // makes sense with no proxy

	setup  setup
	speech traffic.Speech // what the client says; zero: plain
	also   string         // what is measured in turns with it: the same through a listener that routes nothing, or a moment without flood
	quiet  time.Duration  // idle: the second look comes so much later; all peers are measured together
	rounds int            // it is measured in the first so many; 0: in all

	paceBy  []string // the peers that set the rate, beside the subject; nil: all
	request int64    // bytes; 0: 100
	segment int      // UDP: requests and answers are trains of datagrams of so many bytes; 0: one datagram each
	singly  bool     // UDP: trains are sent as single datagrams
	window  int      // UDP: requests under way in a closed loop; 0: 64
}

// setup is what a proxy's listeners do.
type setup int

const (
	relaySetup    setup = iota
	tlsSetup            // terminate TLS
	nameSetup           // one relays, one routes by name
	datagramSetup       // relay UDP
	quicSetup           // relay UDP to the server that speaks QUIC
)

func (s setup) datagrams() bool { return s == datagramSetup || s == quicSetup }

type kind int

const (
	idle    kind = iota // memory and descriptors of connections that do nothing
	kept                // requests on connections that stay
	connect             // a connection for each request
	check               // time to read a configuration
	start               // time from exec to accepting
	flood               // latency with and without a flood of handshakes

	ladder  // UDP: the highest rate with hardly any loss
	loss    // UDP: loss at the highest rate that peers have in common
	spoofed // UDP: latency with and without a flood from many sources
)

const (
	requestSize = 100
	answerSize  = 1 << 10
	bulkStreams = 8
	// How many connections connect–request–close has at a time.
	connectSlots = 64
	// A paced run opens as many connections as it needs, up to this.
	pacedSlots = 4096

	// A flood makes so many handshakes at a time, beside connections that began
	// one and do not go on.
	floodSlots   = 64
	floodStalled = 256
	// Requests per second on the sessions that were there before.
	floodRate = 2000
)

// The names the report asks for.
const (
	idleScenario        = "idle"
	bulkScenario        = "bulk"
	connectScenario     = "connect"
	pacedBulkScenario   = "bulk-paced"
	fewServersScenario  = "servers10"
	manyServersScenario = "servers10000"
	checkScenario       = "check10000"
	startScenario       = "start100"

	tlsIdleScenario      = "tls-idle"
	tlsBulkScenario      = "tls-bulk"
	tlsPacedBulkScenario = "tls-bulk-paced"
	tlsFullScenario      = "tls-full"
	tlsResumedScenario   = "tls-resumed"
	floodScenario        = "tls-flood"
	calmScenario         = "tls-calm"
	nameConnectScenario  = "sni-connect"
	nameConnectBase      = "sni-plain-connect"
)

func keptScenario(connections int) string  { return fmt.Sprintf("request%d", connections) }
func pacedScenario(connections int) string { return fmt.Sprintf("request%d-paced", connections) }

func tlsKeptScenario(connections int) string { return fmt.Sprintf("tls-request%d", connections) }
func nameScenario(connections int) string    { return fmt.Sprintf("sni-request%d", connections) }
func nameBase(connections int) string        { return fmt.Sprintf("sni-plain%d", connections) }

const pacedConnectScenario = "connect-paced"

// curvePoints are the connections of the scaling curve.
var curvePoints = []int{16, 64, 256, 1000, 4000, 8000}

// scenarioList is what a run does in each round, in order. Idle memory comes
// first, while the proxies are fresh.
func scenarioList(o options) []scenario {
	all := []scenario{{
		Name: idleScenario, Title: fmt.Sprintf("memory and descriptors of %d idle connections", o.Idle),
		kind: idle, connections: o.Idle, answer: answerSize,
	}}
	for _, n := range curvePoints {
		s := scenario{
			Name: keptScenario(n), Title: fmt.Sprintf("100 B → 1 KB on %d kept connections, closed loop", n),
			kind: kept, connections: n, answer: answerSize, duration: 2 * time.Second,
		}
		switch n {
		case 64, 1000, 8000:
			s.withDirect = true
		default:
			if !o.Curve {
				continue
			}
			s.duration = time.Second
		}
		all = append(all, s)
	}
	all = append(all,
		scenario{
			Name: bulkScenario, Title: "8 streams of 100 MB answers",
			kind: kept, connections: bulkStreams, answer: o.Bulk, bulk: true, duration: 2500 * time.Millisecond, withDirect: true,
		},
		scenario{
			Name: connectScenario, Title: "connect, request, close: 64 at a time",
			kind: connect, connections: connectSlots, answer: answerSize, duration: 1500 * time.Millisecond, withDirect: true,
		},
		scenario{
			Name: pacedScenario(64), Title: "100 B → 1 KB on 64 connections at one rate for all",
			kind: kept, connections: 64, answer: answerSize, duration: 1500 * time.Millisecond, paceOf: keptScenario(64), withDirect: true,
		},
		scenario{
			Name: pacedScenario(1000), Title: "100 B → 1 KB on 1000 connections at one rate for all",
			kind: kept, connections: 1000, answer: answerSize, duration: 1500 * time.Millisecond, paceOf: keptScenario(1000), withDirect: true,
		},
		scenario{
			Name: pacedBulkScenario, Title: "8 streams of 100 MB answers at one rate for all",
			kind: kept, connections: bulkStreams, answer: o.Bulk, bulk: true, duration: 3 * time.Second, paceOf: bulkScenario, withDirect: true,
		},
		scenario{
			Name: pacedConnectScenario, Title: "connect, request, close at one rate for all",
			kind: connect, connections: pacedSlots, answer: answerSize, duration: 1500 * time.Millisecond, paceOf: connectScenario, withDirect: true,
		},
		scenario{
			Name: fewServersScenario, Title: "connect, request, close with 10 servers",
			kind: connect, connections: connectSlots, answer: answerSize, duration: 1500 * time.Millisecond, servers: 10,
		},
		scenario{
			Name: manyServersScenario, Title: "connect, request, close with 10 000 servers",
			kind: connect, connections: connectSlots, answer: answerSize, duration: 1500 * time.Millisecond, servers: 10_000,
		},
		scenario{
			Name: checkScenario, Title: "reading a configuration of 10 000 servers",
			kind: check, servers: 10_000,
		},
		scenario{
			Name: startScenario, Title: "from exec to accepting on 100 listeners",
			kind: start, listeners: 100,
		},
	)
	all = append(all, tlsScenarios(o)...)
	all = append(all, nameScenarios()...)
	all = append(all, datagramScenarios(o)...)
	for i := range all {
		s := &all[i]
		if s.speech == "" {
			s.speech = traffic.Plain
		}
		if s.request == 0 {
			s.request = requestSize
		}
		if s.kind != idle {
			s.connections = (s.connections + o.Shrink - 1) / o.Shrink
		}
	}
	if o.Scenarios == nil {
		return all
	}
	wanted := map[string]bool{}
	for _, s := range all {
		if o.Scenarios.MatchString(s.Name) || s.also != "" && o.Scenarios.MatchString(s.also) {
			wanted[s.Name] = true
			wanted[s.paceOf] = true // its rate comes from there
		}
	}
	var chosen []scenario
	for _, s := range all {
		if wanted[s.Name] {
			chosen = append(chosen, s)
		}
	}
	return chosen
}

// tlsScenarios have TLS between client and proxy. Each proxy is started afresh
// for them.
func tlsScenarios(o options) []scenario {
	sessions := o.Idle * 4 / 5 // of each peer, at the same time: the backend needs descriptors for all
	all := []scenario{{
		Name: tlsIdleScenario, Title: fmt.Sprintf("memory and descriptors of %d idle TLS sessions, at once and %v later", sessions, o.Quiet),
		kind: idle, connections: sessions, answer: answerSize, quiet: o.Quiet, rounds: o.QuietRounds,
	}}
	for _, n := range []int{64, 1000} {
		all = append(all, scenario{
			Name: tlsKeptScenario(n), Title: fmt.Sprintf("100 B → 1 KB on %d kept TLS sessions, closed loop", n),
			kind: kept, connections: n, answer: answerSize, duration: 1500 * time.Millisecond,
		})
	}
	all = append(all,
		scenario{
			Name: tlsBulkScenario, Title: "8 streams of 25 MB answers over TLS",
			kind: kept, connections: bulkStreams, answer: o.Bulk / 4, bulk: true, duration: 2 * time.Second,
		},
		scenario{
			Name: tlsPacedBulkScenario, Title: "8 streams of 25 MB answers over TLS at one rate for all",
			kind: kept, connections: bulkStreams, answer: o.Bulk / 4, bulk: true, duration: 2 * time.Second, paceOf: tlsBulkScenario,
		},
		scenario{
			Name: tlsFullScenario, Title: "connect, full TLS handshake, request, close: 64 at a time",
			kind: connect, connections: connectSlots, answer: answerSize, duration: 1500 * time.Millisecond,
		},
		scenario{
			Name: tlsResumedScenario, Title: "connect, resumed TLS handshake, request, close: 64 at a time",
			kind: connect, connections: connectSlots, answer: answerSize, duration: 1500 * time.Millisecond, speech: traffic.Resumed,
		},
		scenario{
			Name: floodScenario, Title: "100 B → 1 KB on 64 TLS sessions, 2000/s, before and during a flood of handshakes",
			kind: flood, connections: 64, answer: answerSize, duration: 1500 * time.Millisecond, also: calmScenario,
		},
	)
	for i := range all {
		all[i].setup = tlsSetup
		if all[i].speech == "" {
			all[i].speech = traffic.TLS
		}
	}
	return all
}

// nameScenarios pass TLS through by its server name. Nothing is encrypted: all
// that the proxy looks at is the ClientHello.
func nameScenarios() []scenario {
	var all []scenario
	for _, n := range []int{64, 1000} {
		all = append(all, scenario{
			Name: nameScenario(n), Title: fmt.Sprintf("100 B → 1 KB on %d connections routed by SNI, in turns with %d that are not", n, n),
			kind: kept, connections: n, also: nameBase(n), duration: 1200 * time.Millisecond,
		})
	}
	all = append(all, scenario{
		Name: nameConnectScenario, Title: "connect, ClientHello → 1 KB, close: 64 at a time, routed by SNI in turns with not",
		kind: connect, connections: connectSlots, also: nameConnectBase, duration: 1200 * time.Millisecond,
	})
	for i := range all {
		all[i].answer, all[i].setup, all[i].speech = answerSize, nameSetup, traffic.Hello
	}
	return all
}
