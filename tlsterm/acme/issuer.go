package acme

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"
	"go.uber.org/zap"
)

// issuer places orders with one authority. It takes the place of
// certmagic.ACMEIssuer, which insists on listening for challenges itself.
type issuer struct {
	keeper  *keeper
	key     string // of the authority, in the names of files
	http    *http.Client
	solvers map[string]acmez.Solver

	account sync.Mutex // registering: once for all orders
}

var (
	_ certmagic.Issuer            = (*issuer)(nil)
	_ certmagic.RenewalInfoGetter = (*issuer)(nil)
)

func newIssuer(k *keeper, roots *x509.CertPool) *issuer {
	i := &issuer{
		keeper: k,
		key:    issuerKey(k.options.Directory),
		http: &http.Client{
			Timeout: 30 * time.Second,
			Transport: &http.Transport{
				Proxy:                 http.ProxyFromEnvironment,
				DialContext:           (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
				TLSClientConfig:       &tls.Config{RootCAs: roots},
				TLSHandshakeTimeout:   10 * time.Second,
				ResponseHeaderTimeout: 30 * time.Second,
				IdleConnTimeout:       3 * time.Second, // orders are weeks apart
				ForceAttemptHTTP2:     true,
			},
		},
		solvers: map[string]acmez.Solver{},
	}
	if !k.options.NoTLSALPN {
		i.solvers[acme.ChallengeTypeTLSALPN01] = solver{k}
	}
	if k.responder != nil {
		i.solvers[acme.ChallengeTypeHTTP01] = solver{k}
	}
	return i
}

// issuerKey makes one name of a directory's host and path, the same that
// certmagic makes: a storage folder of its other users fits.
func issuerKey(directory string) string {
	u, err := url.Parse(directory)
	if err != nil {
		return certmagic.StorageKeys.Safe(directory)
	}
	key := u.Host
	if p := strings.Trim(strings.ReplaceAll(u.Path, "/", "-"), "-"); p != "" {
		key += "-" + p
	}
	return key
}

// IssuerKey implements certmagic.Issuer.
func (i *issuer) IssuerKey() string { return i.key }

func (i *issuer) client() *acmez.Client {
	return &acmez.Client{
		Client: &acme.Client{
			Directory:  i.keeper.options.Directory,
			UserAgent:  "edgeproxy",
			HTTPClient: i.http,
		},
		ChallengeSolvers: i.solvers,
	}
}

// Issue implements certmagic.Issuer: it takes an order from its beginning to
// the certificate.
func (i *issuer) Issue(ctx context.Context, csr *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
	ctx, done, ok := i.keeper.whileOpen(ctx)
	if !ok {
		return nil, context.Canceled
	}
	defer done()

	account, err := i.useAccount(ctx)
	if err != nil {
		return nil, err
	}
	chains, err := i.order(ctx, account, csr)
	// The authority may have forgotten the account, a private one that was
	// set up anew for example.
	if hasProblem(err, acme.ProblemTypeAccountDoesNotExist) {
		i.keeper.log.Warn("the authority does not know the account any more; registering another", zap.String("account", account.Location))
		if err := i.keeper.storage.Delete(ctx, i.accountFile()); err != nil {
			return nil, fmt.Errorf("account: %w", err)
		}
		if account, err = i.useAccount(ctx); err != nil {
			return nil, err
		}
		chains, err = i.order(ctx, account, csr)
	}
	if err != nil {
		return nil, err
	}
	if len(chains) == 0 {
		return nil, errors.New("the authority issued no certificate")
	}
	// The first is the authority's own preference (RFC 8555, section 7.4.2).
	return &certmagic.IssuedCertificate{Certificate: chains[0].ChainPEM, Metadata: chains[0]}, nil
}

func (i *issuer) order(ctx context.Context, account acme.Account, csr *x509.CertificateRequest) ([]acme.Certificate, error) {
	params, err := acmez.OrderParametersFromCSR(account, csr)
	if err != nil {
		return nil, fmt.Errorf("order: %w", err)
	}
	params.Replaces = i.replaced(ctx, csr)
	chains, err := i.client().ObtainCertificate(ctx, params)
	// That an authority does not like what is to be replaced is no reason to
	// go without a certificate (RFC 9773, section 5).
	if problem := (acme.Problem{}); params.Replaces != nil && errors.As(err, &problem) &&
		(problem.Type == acme.ProblemTypeMalformed || problem.Status == http.StatusNotFound || problem.Status == http.StatusConflict) {
		params.Replaces = nil
		chains, err = i.client().ObtainCertificate(ctx, params)
	}
	return chains, err
}

// replaced returns the stored certificate that the order renews, nil if there
// is none: authorities exempt renewals from rate limits (RFC 9773, section 5).
func (i *issuer) replaced(ctx context.Context, csr *x509.CertificateRequest) *x509.Certificate {
	if len(csr.DNSNames) == 0 {
		return nil
	}
	file, err := i.keeper.storage.Load(ctx, certmagic.StorageKeys.SiteCert(i.key, csr.DNSNames[0]))
	if err != nil {
		return nil
	}
	block, _ := pem.Decode(file)
	if block == nil {
		return nil
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil || len(leaf.AuthorityKeyId) == 0 || time.Now().After(leaf.NotAfter) {
		return nil
	}
	return leaf
}

// GetRenewalInfo implements certmagic.RenewalInfoGetter (RFC 9773).
func (i *issuer) GetRenewalInfo(ctx context.Context, c certmagic.Certificate) (acme.RenewalInfo, error) {
	ctx, done, ok := i.keeper.whileOpen(ctx)
	if !ok {
		return acme.RenewalInfo{}, context.Canceled
	}
	defer done()
	return i.client().GetRenewalInfo(ctx, c.Leaf)
}

// accountData is an account the way it is stored.
type accountData struct {
	Account acme.Account `json:"account"`
	Key     string       `json:"key"` // PEM
}

func (i *issuer) accountFile() string {
	email := i.keeper.options.Email
	if email == "" {
		email = "default"
	}
	return "accounts/" + certmagic.StorageKeys.Safe(i.key) + "/" + certmagic.StorageKeys.Safe(email) + ".json"
}

// useAccount returns the stored account, or registers one, which says yes to
// the authority's terms of service.
func (i *issuer) useAccount(ctx context.Context) (acme.Account, error) {
	i.account.Lock()
	defer i.account.Unlock()
	a, err := i.loadAccount(ctx)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return a, err
	}
	// Other Managers and the rest of a fleet may use the same folder.
	storage, lock := i.keeper.storage, "account_"+i.accountFile()
	if err := storage.Lock(ctx, lock); err != nil {
		return a, fmt.Errorf("account: %w", err)
	}
	defer storage.Unlock(context.WithoutCancel(ctx), lock)
	if a, err = i.loadAccount(ctx); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return a, err
	}

	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return a, fmt.Errorf("account: %w", err)
	}
	a = acme.Account{PrivateKey: key, TermsOfServiceAgreed: true}
	if email := i.keeper.options.Email; email != "" {
		a.Contact = []string{"mailto:" + email}
	}
	if a, err = i.client().NewAccount(ctx, a); err != nil {
		return a, fmt.Errorf("registering an account: %w", err)
	}
	if err := i.saveAccount(ctx, a, key); err != nil {
		return a, fmt.Errorf("account: %w", err)
	}
	i.keeper.log.Info("account registered", zap.String("directory", i.keeper.options.Directory), zap.String("account", a.Location))
	return a, nil
}

func (i *issuer) loadAccount(ctx context.Context) (acme.Account, error) {
	file, err := i.keeper.storage.Load(ctx, i.accountFile())
	if err != nil {
		return acme.Account{}, fmt.Errorf("account: %w", err)
	}
	var d accountData
	if err = json.Unmarshal(file, &d); err == nil {
		d.Account.PrivateKey, err = certmagic.PEMDecodePrivateKey([]byte(d.Key))
	}
	if err != nil {
		return acme.Account{}, fmt.Errorf("account: %s: %w; remove it to have another registered", i.keeper.storage.Filename(i.accountFile()), err)
	}
	return d.Account, nil
}

func (i *issuer) saveAccount(ctx context.Context, a acme.Account, key crypto.PrivateKey) error {
	block, err := certmagic.PEMEncodePrivateKey(key)
	if err != nil {
		return err
	}
	file, err := json.Marshal(accountData{a, string(block)})
	if err != nil {
		return err
	}
	return i.keeper.storage.Store(ctx, i.accountFile(), file)
}

func hasProblem(err error, kind string) bool {
	problem := acme.Problem{}
	return errors.As(err, &problem) && problem.Type == kind
}
