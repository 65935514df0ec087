package health

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"
)

const (
	// maxInformational is how many responses like "103 Early Hints" may come
	// before the one that counts (RFC 9110 section 15.2).
	maxInformational = 8

	// drainTime is granted to the rest of a response after the verdict, as
	// closing before it was read would reset the connection, and the server
	// would log that.
	drainTime = 100 * time.Millisecond
)

// http sends a request and judges the response. Redirects are not followed:
// 301 is a status like others.
func (x *exchange) http(host string) error {
	o := x.opts
	x.doing = "sending the request"
	_, err := fmt.Fprintf(x.conn, "%s %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: edgeproxy\r\nAccept: */*\r\nConnection: close\r\n\r\n", o.Method, o.Path, host)
	if err != nil {
		return err
	}
	x.doing = "waiting for the response"
	limited := &io.LimitedReader{R: x.conn, N: maxRead}
	r := bufio.NewReader(limited)
	resp, err := readResponse(r, o.Method)
	if err != nil {
		return x.badResponse(err, limited)
	}
	defer x.drain(resp.Body, limited)
	if !statusWanted(o.ExpectStatus, resp.StatusCode) {
		return fmt.Errorf("status %d, want %s", resp.StatusCode, statusText(o.ExpectStatus))
	}
	if o.ExpectBody == "" {
		return nil
	}
	x.doing = "waiting for the response's body"
	// The body has its own allowance; chunk headers are part of it.
	limited.N = maxRead
	found, got, err := search(resp.Body, []byte(o.ExpectBody))
	switch {
	case found:
		return nil
	case err == nil || limited.N == 0:
		return fmt.Errorf("the first %d KiB of the body do not contain %q", maxRead>>10, o.ExpectBody)
	case err == io.EOF && len(got) == 0:
		return fmt.Errorf("body is empty, want it to contain %q", o.ExpectBody)
	case err == io.EOF:
		return fmt.Errorf("body does not contain %q", o.ExpectBody)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("connection closed within the body, which does not contain %q so far", o.ExpectBody)
	}
	return err
}

// readResponse returns the final response, after any informational ones.
func readResponse(r *bufio.Reader, method string) (*http.Response, error) {
	for range maxInformational {
		resp, err := http.ReadResponse(r, &http.Request{Method: method})
		if err != nil || resp.StatusCode >= 200 || resp.StatusCode == http.StatusSwitchingProtocols {
			return resp, err
		}
	}
	return nil, fmt.Errorf("more than %d informational responses", maxInformational)
}

// badResponse says what is wrong where there was no complete header.
func (x *exchange) badResponse(err error, limited *io.LimitedReader) error {
	var ioErr interface{ Timeout() bool } // a net.Error, without its deprecated part
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &ioErr):
		return err
	case limited.N == 0:
		return fmt.Errorf("the response's header is longer than %d KiB", maxRead>>10)
	case errors.Is(err, io.ErrUnexpectedEOF) && limited.N == maxRead:
		return errors.New("connection closed without a response")
	case errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("connection closed within the response's header")
	}
	return fmt.Errorf("the response is not valid HTTP/1.1: %w", err)
}

// drain reads what is left of a short body.
func (x *exchange) drain(body io.Reader, limited *io.LimitedReader) {
	x.conn.SetReadDeadline(time.Now().Add(drainTime))
	limited.N = maxRead
	io.Copy(io.Discard, body)
}

func statusWanted(ranges []StatusRange, status int) bool {
	for _, r := range ranges {
		if status >= r.From && status <= r.To {
			return true
		}
	}
	return false
}

func statusText(ranges []StatusRange) string {
	var parts []string
	for _, r := range ranges {
		if r.From == r.To {
			parts = append(parts, fmt.Sprint(r.From))
		} else {
			parts = append(parts, fmt.Sprintf("%d-%d", r.From, r.To))
		}
	}
	return strings.Join(parts, ", ")
}
