package main

import (
	"time"

	"go.uber.org/zap"

	"edgeproxy/config"
	"edgeproxy/internal/ktls"
)

// kernelTLS probes the kernel, if it is to be used; nil: it is not, or cannot.
func (d *daemon) kernelTLS(cfg *config.Config) *ktls.Support {
	if cfg.Process.KernelTLS != "auto" {
		return nil
	}
	s := ktls.Probe()
	if !s.Available || !s.Rekey {
		d.log.Warn("kernel TLS is not used: process.kernel_tls is \"auto\", and the kernel did not pass the probe",
			zap.String("reason", s.Reason), zap.String("kernel", s.Kernel))
		return nil
	}
	d.log.Info("kernel TLS is used", zap.String("kernel", s.Kernel))
	return &s
}

// tlsEvents logs what becomes of the files of `tls` blocks. It implements
// [tlsterm.Events].
type tlsEvents struct{ log *zap.Logger }

func (e tlsEvents) CertificateLoaded(block, file string, subjects []string, notAfter time.Time) {
	const most = 10
	e.log.Info("certificate in use", zap.String("tls", block), zap.String("file", file),
		zap.Strings("subjects", subjects[:min(len(subjects), most)]), zap.Time("not_after", notAfter))
}

func (e tlsEvents) CertificateRefused(block, file string, err error) {
	e.log.Error("changed certificate cannot be used; the old one stays in use", zap.String("tls", block), zap.String("file", file), zap.Error(err))
}

func (e tlsEvents) CertificateDropped(block, file string) {
	e.log.Warn("certificate is gone from its folder and no longer in use", zap.String("tls", block), zap.String("file", file))
}

func (e tlsEvents) CertificateWarning(block, file, warning string) {
	e.log.Warn("certificate: "+warning, zap.String("tls", block), zap.String("file", file))
}

func (e tlsEvents) CertificateRevoked(block, file, subject string, at time.Time) {
	e.log.Error("the certificate's issuer calls it revoked; have it replaced", zap.String("tls", block), zap.String("file", file),
		zap.String("subject", subject), zap.Time("revoked_at", at))
}

func (e tlsEvents) StapleFailed(block, file, subject string, err error) {
	e.log.Warn("no fresh OCSP response; the last one is stapled until it expires", zap.String("tls", block), zap.String("file", file),
		zap.String("subject", subject), zap.Error(err))
}

func (e tlsEvents) RevocationsLoaded(block, file string, expires time.Time) {
	e.log.Info("revocation lists in use", zap.String("tls", block), zap.String("file", file), zap.Time("first_expires", expires))
}

func (e tlsEvents) RevocationsRefused(block, file string, err error) {
	e.log.Error("changed crl_file cannot be used; the lists read before stay in force", zap.String("tls", block), zap.String("file", file), zap.Error(err))
}

func (e tlsEvents) RevocationsExpire(block, file, issuer string, at time.Time, expired bool) {
	fields := []zap.Field{zap.String("tls", block), zap.String("file", file), zap.String("issuer", issuer), zap.Time("at", at)}
	if expired {
		e.log.Error("revocation list has expired: clients with certificates of its issuer are refused", fields...)
		return
	}
	e.log.Warn("revocation list expires soon; once it has, clients with certificates of its issuer are refused", fields...)
}

func (e tlsEvents) TicketKeysLoaded(file string) {
	e.log.Info("ticket keys in use", zap.String("file", file))
}

func (e tlsEvents) TicketKeysRefused(file string, err error) {
	e.log.Error("changed ticket_keys cannot be used; the old keys stay in force", zap.String("file", file), zap.Error(err))
}

func (e tlsEvents) TicketKeysRotated(block string) {
	e.log.Debug("session tickets are sealed with a new key", zap.String("tls", block))
}
