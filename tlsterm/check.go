package tlsterm

import (
	"crypto/tls"
	"errors"

	"edgeproxy/tlsterm/acme"
)

// Check reads all files of o and tells what is wrong with them, as Prepare
// would. Nothing is kept, opened or bound.
func Check(o Options) error {
	set, err := Prepare(&Env{checking: true}, nil, []Options{o})
	if err == nil {
		set.Discard()
	}
	return err
}

// unobtained stands for a source of certificates while only files are checked.
type unobtained []string

func newUnobtained(o acme.Options) (dynamicCerts, error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	return unobtained(o.Domains), nil
}

func (u unobtained) Domains() []string { return u }

func (u unobtained) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return nil, errors.New("not obtained")
}
