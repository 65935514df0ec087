// Package health finds out by active probes whether servers are up. It knows
// neither upstreams nor configuration files: what to probe comes in as
// [Options] and [Target], what was found goes out as [Report].
//
// The life of a check:
//
//  1. [Scheduler.Add] takes the checks of one server; the first probe starts
//     at once, or within moments when there are many.
//  2. When a probe is due and there is room for it, it gets a goroutine, which
//     connects, speaks, and ends by the check's timeout at the latest.
//  3. Its result goes through the check's rise and fall, the server is up if
//     all of its checks are, and the probe is reported.
//  4. The check waits in the queue, without a goroutine, for its next turn.
//  5. [Watch.Stop] takes it out; nothing is reported any more.
package health

import "time"

// Defaults of [Options].
const (
	DefaultInterval = 5 * time.Second
	DefaultTimeout  = 2 * time.Second
	DefaultRise     = 2
	DefaultFall     = 3
)

// Kind is what a probe speaks.
type Kind uint8

const (
	TCP  Kind = iota // connect, optionally send bytes and expect others
	HTTP             // one HTTP/1.1 request
	UDP              // one datagram and its answer, or at least no ICMP error
)

func (k Kind) String() string {
	switch k {
	case HTTP:
		return "http"
	case UDP:
		return "udp"
	}
	return "tcp"
}

// ProxyProtocol is the version of the PROXY header that a probe begins with.
type ProxyProtocol uint8

const (
	ProxyNone ProxyProtocol = iota
	ProxyV1                 // with the addresses of the probe's connection; not for UDP
	ProxyV2                 // with the command LOCAL
)

// StatusRange is an inclusive range of HTTP status codes.
type StatusRange struct{ From, To int }

// Options describe the active check of an upstream. The zero value is a TCP
// connect every [DefaultInterval].
type Options struct {
	Kind     Kind
	Interval time.Duration // between the starts of two probes, ±10 % jitter; 0: DefaultInterval
	Timeout  time.Duration // of a whole probe; 0: DefaultTimeout
	Rise     int           // successes in a row that make a down server up; 0: DefaultRise
	Fall     int           // failures in a row that make an up server down; 0: DefaultFall
	Port     int           // 1–65535; 0: the server's own
	Address  string        // host to probe instead of the server's; "": the server's own

	ProxyProtocol ProxyProtocol // UDP: version 2 only, in the same datagram as Send

	// Send is what a TCP probe sends after connecting, and a UDP probe in one
	// datagram; there, empty means an empty datagram. As any datagram may be
	// lost, it is sent again after each third of the timeout, three times in
	// all: it should be something that does no harm twice.
	Send []byte
	// Expect must occur in the first 64 KiB of what comes back; empty: for TCP,
	// connecting is enough. For UDP it must occur in one of the first 64
	// datagrams; empty: any answer is a success at once, and so is silence to
	// the timeout's end. Only ICMP then tells that a server is down, and not
	// every host or firewall sends that: servers that answer should be asked.
	Expect []byte

	Method       string        // HTTP; "": GET
	Path         string        // HTTP; "": /
	Host         string        // HTTP Host header; "": the probed address
	ExpectStatus []StatusRange // HTTP; empty: 200–399
	ExpectBody   string        // HTTP: must occur in the first 64 KiB of the body
}

// withDefaults returns the options with nothing left to default.
func (o Options) withDefaults() Options {
	if o.Interval <= 0 {
		o.Interval = DefaultInterval
	}
	if o.Timeout <= 0 {
		o.Timeout = DefaultTimeout
	}
	if o.Rise <= 0 {
		o.Rise = DefaultRise
	}
	if o.Fall <= 0 {
		o.Fall = DefaultFall
	}
	if o.Method == "" {
		o.Method = "GET"
	}
	if o.Path == "" {
		o.Path = "/"
	}
	if len(o.ExpectStatus) == 0 {
		o.ExpectStatus = []StatusRange{{200, 399}}
	}
	return o
}
