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

	Send   []byte // TCP: sent after connecting
	Expect []byte // TCP: must occur in the first 64 KiB of what comes back; empty: connecting is enough

	Method       string        // HTTP; "": GET
	Path         string        // HTTP; "": /
	Host         string        // HTTP Host header; "": the probed address
	ExpectStatus []StatusRange // HTTP; empty: 200–399
	ExpectBody   string        // HTTP: must occur in the first 64 KiB of the body
}
