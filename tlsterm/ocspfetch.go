package tlsterm

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"golang.org/x/crypto/ocsp"
)

const (
	maxOCSPResponse = 64 << 10
	// ocspSkew is how far the responder's clock may be ahead of ours.
	ocspSkew = 5 * time.Minute
)

// newOCSPClient makes a client for strangers: it keeps no connection, and goes
// where the certificate says by http or https only.
func newOCSPClient() *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			DialContext:            (&net.Dialer{Timeout: ocspTimeout}).DialContext,
			TLSHandshakeTimeout:    ocspTimeout,
			DisableKeepAlives:      true,
			MaxResponseHeaderBytes: 16 << 10,
		},
		CheckRedirect: func(_ *http.Request, via []*http.Request) error {
			if len(via) > 3 {
				return errors.New("too many redirects")
			}
			return nil
		},
	}
}

// fetchOCSP asks the responder at address (RFC 6960, appendix A.1; by POST,
// which no cache on the way answers with something old).
func fetchOCSP(ctx context.Context, client *http.Client, address string, leaf, issuer *x509.Certificate) ([]byte, error) {
	if u, err := url.Parse(address); err != nil || u.Scheme != "http" && u.Scheme != "https" {
		return nil, errors.New("not an http URL")
	}
	body, err := ocsp.CreateRequest(leaf, issuer, nil)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, address, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/ocsp-request")
	req.Header.Set("Accept", "application/ocsp-response")
	resp, err := client.Do(req)
	if err != nil {
		var urlErr *url.Error
		if errors.As(err, &urlErr) {
			err = urlErr.Err // the rest says the URL once more
		}
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("HTTP status %d", resp.StatusCode)
	}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxOCSPResponse+1))
	switch {
	case err != nil:
		return nil, err
	case len(raw) > maxOCSPResponse:
		return nil, fmt.Errorf("a response of more than %d bytes", maxOCSPResponse)
	}
	return raw, nil
}

// verifyOCSP checks a response as a client would (RFC 6960, section 3.2): about
// this certificate, signed by its issuer or whom that delegated, and current.
func verifyOCSP(raw []byte, leaf, issuer *x509.Certificate, now time.Time) (s *staple, err error) {
	defer func() {
		if v := recover(); v != nil {
			s, err = nil, fmt.Errorf("a response that cannot be parsed: %v", v)
		}
	}()
	resp, err := ocsp.ParseResponseForCert(raw, leaf, issuer)
	if err != nil {
		return nil, errors.New(bounded(err))
	}
	if resp.SerialNumber == nil || resp.SerialNumber.Cmp(leaf.SerialNumber) != 0 {
		return nil, errors.New("a response about another certificate")
	}
	// The parser has verified that the issuer signed the responder's
	// certificate, but so it did sign the certificates of all its customers.
	if d := resp.Certificate; d != nil && !d.Equal(issuer) {
		switch {
		case !slices.Contains(d.ExtKeyUsage, x509.ExtKeyUsageOCSPSigning):
			return nil, errors.New("signed with a certificate that is not for OCSP (RFC 6960, section 4.2.2.2)")
		case now.Before(d.NotBefore) || now.After(d.NotAfter):
			return nil, errors.New("signed with a certificate that is not valid now")
		}
	}
	until := resp.NextUpdate
	if until.IsZero() {
		until = now.Add(ocspNoUpdate)
	}
	switch {
	case resp.ThisUpdate.After(now.Add(ocspSkew)):
		return nil, fmt.Errorf("a response from the future: thisUpdate is %s", resp.ThisUpdate.UTC().Format(time.RFC3339))
	case !until.After(now):
		return nil, fmt.Errorf("an old response: nextUpdate was %s", until.UTC().Format(time.RFC3339))
	}
	switch resp.Status {
	case ocsp.Good:
		return &staple{raw: raw, from: resp.ThisUpdate, until: until}, nil
	case ocsp.Revoked:
		return &staple{from: resp.ThisUpdate, until: until, revoked: resp.RevokedAt}, nil
	}
	return nil, errors.New("the responder does not know the certificate")
}

// quoted is text of a certificate as it may stand in a log.
func quoted(s string) string { return strconv.Quote(bounded(errors.New(s))) }
