package tlsterm

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// CertificateEvents is told what becomes of certificates. Its methods are
// called from goroutines of the store, one at a time for each store. They must
// not wait for the store to close.
type CertificateEvents interface {
	// CertificateLoaded says that a pair is in use from now on: at the start,
	// or since its files changed.
	CertificateLoaded(tlsName, file string, subjects []string, notAfter time.Time)
	// CertificateRefused says that files which changed are no usable pair. The
	// old one stays in use.
	CertificateRefused(tlsName, file string, err error)
	// CertificateDropped says that a pair vanished from its folder and is no
	// longer in use.
	CertificateDropped(tlsName, file string)
	// CertificateWarning is about one that is in use, yet needs somebody's care.
	CertificateWarning(tlsName, file, warning string)
	// CertificateRevoked says that the issuer's responder calls it revoked
	// since at (RFC 6960). It stays in use, without a staple.
	CertificateRevoked(tlsName, file, subject string, at time.Time)
	// StapleFailed says that no fresh OCSP response was had. The last good one
	// is stapled until it expires.
	StapleFailed(tlsName, file, subject string, err error)
}

// OCSPStatus is what is known of a certificate's OCSP response.
type OCSPStatus uint8

const (
	OCSPNone    OCSPStatus = iota // not asked for, or nobody to ask
	OCSPPending                   // nothing to staple (yet)
	OCSPGood                      // stapled
	OCSPRevoked                   // revoked; nothing is stapled
)

func (s OCSPStatus) String() string {
	switch s {
	case OCSPNone:
		return "none"
	case OCSPPending:
		return "pending"
	case OCSPGood:
		return "good"
	case OCSPRevoked:
		return "revoked"
	}
	return "unknown"
}

// CertificateStatus is one certificate in use. Subjects need not be unique: an
// ECDSA and an RSA pair of one name share theirs.
type CertificateStatus struct {
	Subject  string // first DNS name, or the common name
	NotAfter time.Time
	Source   string // its file; "acme" for those that ACME obtained
	OCSP     OCSPStatus
}

// certEnv is what a store needs of its surroundings. Zero fields have defaults.
type certEnv struct {
	events CertificateEvents // nil: nobody is told
	// acme gives the certificates that o describes; the store closes them if
	// they have a method Close. nil: ACME is an error.
	acme func(tlsName string, o *ACMEOptions) (dynamicCerts, error)
	// previous is the store that this one will replace: its staples are taken
	// over, so that a reload leaves no moment without.
	previous *certStore

	http  *http.Client  // asks OCSP responders; nil: own
	sweep time.Duration // how often all files are looked at whatever inotify says; 0: 10 s
}

// Times of renewal. A new pair is in use after debounce at the earliest: its
// files change one after the other.
const (
	debounce     = 100 * time.Millisecond
	settle       = 500 * time.Millisecond // a bad pair is given so long to become good before it is reported
	defaultSweep = 10 * time.Second
)

// certStore holds the certificates of one `tls` block.
//
//  1. newCertStore reads everything and reports every error; nothing runs yet,
//     and a store that is not wanted after all is just closed
//  2. start cannot fail: files are watched and responders asked from then on
//  3. get, from any goroutine, reads the snapshot of the moment
//  4. scan, on the watching goroutine, reads what changed and swaps the snapshot
//  5. Close ends all goroutines, and waits for them
//
// A folder may be empty as long as there is a certificate elsewhere, since
// every hello needs one.
type certStore struct {
	name    string
	env     certEnv
	strict  bool
	staple  bool
	sources []*certSource
	dynamic []dynamicCerts

	index atomic.Pointer[certIndex]

	started  atomic.Bool
	ask      chan chan []error // see refresh
	pending  dirty             // slots that are bad, but not long enough to say so
	eventMu  sync.Mutex        // makes events come one at a time
	ctx      context.Context
	cancel   context.CancelFunc
	running  sync.WaitGroup
	stapling stapler
}

// certSource is one `certificate` block: a pair, a folder, or ACME. Its slots
// belong to the goroutine that scans.
type certSource struct {
	dir     string           // "": the slot "" is all there is
	slots   map[string]*slot // by the name without .crt and .key
	dynamic dynamicCerts

	listing problem // of the folder itself
}

// slot is the place of one pair of files.
type slot struct {
	certFile, keyFile string // keyFile "": in certFile
	last              loaded
	lastRead          time.Time
	inUse             *certificate // nil: never was good
	problem           problem
	vanished          bool // both files; what is in use is kept, being all that there is
	keptTold          bool // … and that has been said
	linked            bool // its files may be symbolic links
}

// problem is an error that is reported once, if it lasts.
type problem struct {
	err      error
	since    time.Time
	reported bool
}

// newCertStore reads the certificates of o. The error joins all there are.
func newCertStore(o *Options, env certEnv) (*certStore, error) {
	if env.events == nil {
		env.events = noEvents{}
	}
	if env.sweep == 0 {
		env.sweep = defaultSweep
	}
	s := &certStore{name: o.Name, env: env, strict: o.StrictSNI, staple: o.OCSPStapling, ask: make(chan chan []error)}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.stapling.init(s)
	var errs []error
	for _, c := range o.Certificates {
		src := &certSource{slots: make(map[string]*slot)}
		switch {
		case c.ACME != nil:
			if env.acme == nil {
				errs = append(errs, errors.New("certificates by ACME are not possible here"))
				continue
			}
			d, err := env.acme(o.Name, c.ACME)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			src.dynamic = d
			s.dynamic = append(s.dynamic, d)
		case c.Dir != "":
			src.dir = filepath.Clean(c.Dir)
		default:
			key := c.KeyFile
			if key == c.CertFile {
				key = ""
			}
			src.slots[""] = &slot{certFile: c.CertFile, keyFile: key}
		}
		s.sources = append(s.sources, src)
	}
	s.scan(everything, time.Now())
	errs = append(errs, s.problems()...)
	if len(errs) == 0 {
		errs = append(errs, s.rebuild())
		if len(s.certificates())+len(s.dynamic) == 0 {
			var dirs []string
			for _, src := range s.sources {
				dirs = append(dirs, src.dir)
			}
			errs = append(errs, fmt.Errorf("no certificate in %s; expected at least one pair NAME.crt and NAME.key, or another certificate block", strings.Join(dirs, ", ")))
		}
	}
	if err := s.joined(errs); err != nil {
		s.Close()
		return nil, err
	}
	if env.previous != nil {
		s.stapling.inherit(env.previous)
	}
	return s, nil
}

// problems is what is wrong with the files, by the last scan.
func (s *certStore) problems() (errs []error) {
	for _, src := range s.sources {
		if src.listing.err != nil {
			errs = append(errs, src.listing.err)
		}
		for _, stem := range src.stems() {
			if err := src.slots[stem].problem.err; err != nil {
				errs = append(errs, err)
			}
		}
	}
	return errs
}

// joined names the block in every error. Of a folder full of them the first
// are enough to see what is wrong.
func (s *certStore) joined(errs []error) error {
	const enough = 50
	errs = slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	more := len(errs) - enough
	if more > 0 {
		errs = append(errs[:enough], fmt.Errorf("and %d more", more))
	}
	for i, err := range errs {
		errs[i] = fmt.Errorf("tls %q: %w", s.name, err)
	}
	return errors.Join(errs...)
}

// start begins to watch the files and to ask responders, and tells what is in
// use. It is called once, or never.
func (s *certStore) start() {
	for _, c := range s.index.Load().all {
		s.announce(c)
	}
	s.started.Store(true)
	s.running.Go(s.watch)
	if s.staple {
		s.running.Go(s.stapling.run)
	}
}

func (s *certStore) announce(c *certificate) {
	s.event(func(e CertificateEvents) {
		e.CertificateLoaded(s.name, c.file, c.names, c.leaf.NotAfter)
		for _, w := range c.warnings {
			e.CertificateWarning(s.name, c.file, w)
		}
		if w := s.stapling.warning(c); w != "" {
			e.CertificateWarning(s.name, c.file, w)
		}
	})
}

func (s *certStore) event(tell func(CertificateEvents)) {
	s.eventMu.Lock()
	defer s.eventMu.Unlock()
	tell(s.env.events)
}

// Close ends what start began. Look-ups go on to work.
func (s *certStore) Close() {
	s.cancel()
	s.running.Wait()
	for _, d := range s.dynamic {
		switch d := d.(type) {
		case interface{ Close() }:
			d.Close()
		case io.Closer:
			d.Close()
		}
	}
}

// get is tls.Config.GetCertificate; see [certIndex.get].
func (s *certStore) get(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	return s.index.Load().get(hello, time.Now())
}

// expiry tells of every certificate in use, in order of configuration.
func (s *certStore) expiry() []CertificateStatus {
	var out []CertificateStatus
	for _, c := range s.index.Load().all {
		out = append(out, CertificateStatus{Subject: c.subject(), NotAfter: c.leaf.NotAfter, Source: c.file, OCSP: s.stapling.status(c)})
	}
	for _, d := range s.dynamic {
		d, ok := d.(interface{ Leaves() []*x509.Certificate })
		if !ok {
			continue
		}
		for _, leaf := range d.Leaves() {
			c := certificate{leaf: leaf}
			out = append(out, CertificateStatus{Subject: c.subject(), NotAfter: leaf.NotAfter, Source: "acme"})
		}
	}
	return out
}

// stems are the names of a source's slots in order.
func (src *certSource) stems() []string { return slices.Sorted(maps.Keys(src.slots)) }

// certificates are those in use, in order of configuration.
func (s *certStore) certificates() []*certificate {
	var out []*certificate
	for _, src := range s.sources {
		for _, stem := range src.stems() {
			if c := src.slots[stem].inUse; c != nil {
				out = append(out, c)
			}
		}
	}
	return out
}

func (s *certStore) rebuild() error {
	first := len(s.sources) > 0 && s.sources[0].dynamic != nil
	ix, err := buildIndex(s.certificates(), s.dynamic, first, s.strict)
	if err != nil {
		return err
	}
	s.index.Store(ix)
	return nil
}

// listDir gives the stems of the pairs in a folder, and whether a symbolic link
// is among their files. Hidden files are those of writers at work, and the inner
// side of a Kubernetes volume.
func listDir(dir string) (map[string]bool, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, describeReadError(err)
	}
	defer f.Close()
	stems := make(map[string]bool)
	for {
		entries, err := f.ReadDir(4096)
		for _, e := range entries {
			if stem, ok := stemOf(e.Name()); ok && !e.IsDir() {
				stems[stem] = stems[stem] || e.Type()&fs.ModeSymlink != 0
			}
		}
		switch {
		case err == io.EOF:
			return stems, nil
		case err != nil:
			return nil, err
		case len(stems) > maxNames:
			return nil, fmt.Errorf("%s: more than %d files; expected the pairs of one tls block", dir, maxNames)
		}
	}
}

func stemOf(name string) (stem string, ok bool) {
	if strings.HasPrefix(name, ".") {
		return "", false
	}
	if stem, ok = strings.CutSuffix(name, ".crt"); !ok {
		stem, ok = strings.CutSuffix(name, ".key")
	}
	return stem, ok && stem != ""
}

// noEvents is for nobody to be told.
type noEvents struct{}

func (noEvents) CertificateLoaded(string, string, []string, time.Time) {}
func (noEvents) CertificateRefused(string, string, error)              {}
func (noEvents) CertificateDropped(string, string)                     {}
func (noEvents) CertificateWarning(string, string, string)             {}
func (noEvents) CertificateRevoked(string, string, string, time.Time)  {}
func (noEvents) StapleFailed(_, _, _ string, _ error)                  {}
