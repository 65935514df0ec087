package sniff

import (
	"bytes"
	"encoding/binary"
	"errors"
)

// Errors of an HTTP/1 request head. The sections are those of RFC 9112.
var (
	errHeadCut      = errors.New("the HTTP request head is incomplete")
	errHeadLong     = errors.New("the HTTP request head is longer than 16 KiB")
	errRequestLine  = errors.New("the HTTP request line is malformed")                      // section 3
	errTarget       = errors.New("the HTTP request target is malformed")                    // section 3.2
	errHeader       = errors.New("a line of the HTTP request head is no header field")      // section 5
	errHeaderFolded = errors.New("a header field of the HTTP request is folded")            // section 5.2
	errHost         = errors.New("the host of the HTTP request is malformed")               // section 3.2
	errHostTwice    = errors.New("the HTTP request has more than one Host header field")    // section 3.2
	errControl      = errors.New("the HTTP request head has a NUL byte or a bare CR in it") // section 2.2
)

var rootPath = []byte("/")

// request looks for an HTTP/1 request line, or the first line of the HTTP/2
// preface, and if head is set for all of the request head.
//
// Servers differ in how much they forgive: empty lines ahead, lower-case
// methods, several spaces. So any first line is awaited that begins like one,
// and what has a version of HTTP in it, but is not well-formed, is an error
// rather than Unknown. A request without version (HTTP/0.9) is not recognised.
func (in *Info) request(b []byte, head bool) (verdict, error) {
	full := len(b) >= MaxHead
	b = b[:min(len(b), MaxHead)]
	v, err := in.requestHead(b, head)
	if err == nil && full && (v == maybe || v == sure) {
		err = errHeadLong
	}
	if err != nil || v != yes {
		in.Host, in.Path = nil, nil
	}
	return v, err
}

func (in *Info) requestHead(b []byte, head bool) (verdict, error) {
	for len(b) > 0 && (b[0] == '\r' || b[0] == '\n') { // section 2.2
		b = b[1:]
	}
	method := 0
	for method < len(b) && isToken[b[method]] {
		method++
	}
	switch {
	case method == len(b):
		return maybe, nil
	case method == 0, b[method] != ' ' && b[method] != '\t':
		return no, nil
	}
	end := bytes.IndexByte(b, '\n')
	if end < 0 {
		if isText(b[method:]) {
			return maybe, nil
		}
		return no, nil
	}
	if !isText(b[method:end]) {
		return no, nil
	}
	line, rest := trimCR(b[:end]), b[end:]
	if string(line) == "PRI * HTTP/2.0" {
		return yes, nil
	}
	target, ok := strictLine(line[method:])
	switch {
	case !ok && !hasVersion(line):
		return no, nil
	case !ok:
		return sure, errRequestLine
	case !head:
		return yes, nil
	}
	// As long as it may be sent byte by byte the head is only searched for its end.
	if end = headEnd(rest); end < 0 {
		return sure, nil
	}
	host, path, err := splitTarget(string(b[:method]) == "CONNECT", target)
	if err != nil {
		return sure, err
	}
	header, err := hostHeader(rest[1:end])
	if err != nil {
		return sure, err
	}
	if host == nil { // section 3.2.2: an absolute-form wins
		host = header
	}
	in.Host, in.Path = host, path
	return yes, nil
}

// strictLine returns the target of " target HTTP/1.x".
func strictLine(s []byte) ([]byte, bool) {
	const version = " HTTP/1.x"
	n := len(s) - len(version)
	if n < 2 || s[0] != ' ' || string(s[n:len(s)-1]) != version[:len(version)-1] || s[len(s)-1] < '0' || s[len(s)-1] > '9' {
		return nil, false
	}
	target := s[1:n]
	for _, c := range []byte(" \t\r") { // other controls are excluded by isText
		if bytes.IndexByte(target, c) >= 0 {
			return nil, false
		}
	}
	return target, true
}

// hasVersion reports whether a word of the line begins like HTTP's version.
func hasVersion(line []byte) bool {
	for {
		i := bytes.Index(line, []byte("HTTP/"))
		if i < 0 {
			return false
		}
		if i > 0 && line[i-1] <= ' ' {
			return true
		}
		line = line[i+1:]
	}
}

// splitTarget returns the host of an absolute-form or authority-form, nil for
// the others, and the path.
func splitTarget(connect bool, target []byte) (host, path []byte, err error) {
	switch {
	case target[0] == '/':
		return nil, target, nil
	case connect:
		host, err = authority(target)
		if err == nil && len(host) == 0 {
			err = errTarget
		}
		return host, nil, err
	case string(target) == "*":
		return nil, target, nil
	}
	scheme, rest, ok := bytes.Cut(target, []byte("://"))
	if !ok || len(scheme) == 0 {
		return nil, nil, errTarget
	}
	for _, c := range scheme {
		if !isToken[c] {
			return nil, nil, errTarget
		}
	}
	end := bytes.IndexAny(rest, "/?")
	if end < 0 {
		end = len(rest)
	}
	// User information, too, is refused here: RFC 9110, section 4.2.4.
	if host, err = authority(rest[:end]); err == nil && len(host) == 0 {
		err = errTarget
	}
	path = rest[end:]
	if len(path) == 0 || path[0] != '/' {
		path = rootPath
	}
	return host, path, err
}

// headEnd returns where the empty line begins that ends the head, of which b
// is what follows the request line, with its LF.
func headEnd(b []byte) int {
	end := bytes.Index(b, []byte("\n\n"))
	if end >= 0 {
		b = b[:end+1]
	}
	if i := bytes.Index(b, []byte("\n\r\n")); i >= 0 {
		end = i
	}
	if end < 0 {
		return -1
	}
	return end + 1
}

// hostHeader reads header fields, each with its line end.
func hostHeader(b []byte) (host []byte, err error) {
	seen := false
	for len(b) > 0 {
		end := bytes.IndexByte(b, '\n')
		line := trimCR(b[:end])
		b = b[end+1:]
		if line[0] == ' ' || line[0] == '\t' {
			return nil, errHeaderFolded
		}
		if bytes.IndexByte(line, '\r') >= 0 || bytes.IndexByte(line, 0) >= 0 {
			return nil, errControl
		}
		name := 0
		for name < len(line) && isToken[line[name]] {
			name++
		}
		if name == 0 || name == len(line) || line[name] != ':' {
			return nil, errHeader
		}
		if name != len("host") || !bytes.EqualFold(line[:name], []byte("host")) {
			continue
		}
		if seen {
			return nil, errHostTwice
		}
		seen = true
		if host, err = authority(bytes.Trim(line[name+1:], " \t")); err != nil {
			return nil, err
		}
	}
	return host, nil
}

// authority returns the host of host[:port], in the form of [Info.Host].
func authority(b []byte) ([]byte, error) {
	if len(b) == 0 {
		return nil, nil
	}
	port := []byte(nil)
	if b[0] == '[' {
		end := bytes.IndexByte(b, ']')
		if end < 0 || !isIPv6(b[1:end]) {
			return nil, errHost
		}
		b, port = b[1:end], b[end+1:]
		for i, c := range b {
			if c >= 'A' && c <= 'F' {
				b[i] = c | 0x20
			}
		}
	} else {
		if i := bytes.IndexByte(b, ':'); i >= 0 {
			b, port = b[:i], b[i:]
		}
		var ok bool
		if b, ok = hostName(b); !ok {
			return nil, errHost
		}
	}
	if len(port) > 0 && port[0] != ':' || len(port) > 6 {
		return nil, errHost
	}
	for _, c := range port[min(1, len(port)):] {
		if c < '0' || c > '9' {
			return nil, errHost
		}
	}
	return b, nil
}

// isText reports whether b has no control characters but TAB and CR.
func isText(b []byte) bool {
	const ones = 0x0101010101010101
	for len(b) >= 8 {
		x := binary.LittleEndian.Uint64(b)
		del := x ^ 0x7f*ones
		// The high bit of each byte that is below 0x20, or 0x7f.
		if ((x-0x20*ones)&^x|(del-ones)&^del)&(0x80*ones) != 0 && !isTextSlow(b[:8]) {
			return false
		}
		b = b[8:]
	}
	return isTextSlow(b)
}

func isTextSlow(b []byte) bool {
	for _, c := range b {
		if c < ' ' && c != '\t' && c != '\r' || c == 0x7f {
			return false
		}
	}
	return true
}

// trimCR takes the CR of a CRLF off; a lone LF ends a line as well (section 2.2).
func trimCR(line []byte) []byte {
	if n := len(line); n > 0 && line[n-1] == '\r' {
		return line[:n-1]
	}
	return line
}

// isToken is tchar of RFC 9110, section 5.6.2.
var isToken = func() (t [256]bool) {
	for _, c := range "!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz" {
		t[c] = true
	}
	return t
}()
