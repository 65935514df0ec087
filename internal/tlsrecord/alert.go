package tlsrecord

import "fmt"

// Alerts (RFC 8446, section 6; RFC 5246, section 7.2) that edgeproxy sends or
// treats specially.
const (
	AlertCloseNotify           = 0
	AlertUnexpectedMessage     = 10
	AlertBadRecordMAC          = 20
	AlertRecordOverflow        = 22
	AlertHandshakeFailure      = 40
	AlertBadCertificate        = 42
	AlertCertificateRevoked    = 44
	AlertCertificateExpired    = 45
	AlertCertificateUnknown    = 46
	AlertIllegalParameter      = 47
	AlertUnknownCA             = 48
	AlertAccessDenied          = 49
	AlertDecodeError           = 50
	AlertDecryptError          = 51
	AlertProtocolVersion       = 70
	AlertInternalError         = 80
	AlertUserCanceled          = 90
	AlertNoRenegotiation       = 100
	AlertUnrecognizedName      = 112
	AlertCertificateRequired   = 116
	AlertNoApplicationProtocol = 120
)

// Levels of alerts.
const (
	levelWarning = 1
	levelFatal   = 2
)

// alertNames is IANA's registry "TLS Alerts", with the reserved ones that old
// peers may still send.
var alertNames = [256]string{
	0:   "close_notify",
	10:  "unexpected_message",
	20:  "bad_record_mac",
	21:  "decryption_failed",
	22:  "record_overflow",
	30:  "decompression_failure",
	40:  "handshake_failure",
	41:  "no_certificate",
	42:  "bad_certificate",
	43:  "unsupported_certificate",
	44:  "certificate_revoked",
	45:  "certificate_expired",
	46:  "certificate_unknown",
	47:  "illegal_parameter",
	48:  "unknown_ca",
	49:  "access_denied",
	50:  "decode_error",
	51:  "decrypt_error",
	52:  "too_many_cids_requested",
	60:  "export_restriction",
	70:  "protocol_version",
	71:  "insufficient_security",
	80:  "internal_error",
	86:  "inappropriate_fallback",
	90:  "user_canceled",
	100: "no_renegotiation",
	109: "missing_extension",
	110: "unsupported_extension",
	111: "certificate_unobtainable",
	112: "unrecognized_name",
	113: "bad_certificate_status_response",
	114: "bad_certificate_hash_value",
	115: "unknown_psk_identity",
	116: "certificate_required",
	117: "general_error",
	120: "no_application_protocol",
	121: "ech_required",
}

// AlertName is the registered name of an alert, or "unassigned".
func AlertName(alert uint8) string {
	if s := alertNames[alert]; s != "" {
		return s
	}
	return "unassigned"
}

// AlertLevel is the level an alert is sent with: warning for close_notify
// (RFC 8446, section 6.1) and no_renegotiation (RFC 5246, section 7.2.2), else
// fatal.
func AlertLevel(alert uint8) uint8 {
	if alert == AlertCloseNotify || alert == AlertNoRenegotiation {
		return levelWarning
	}
	return levelFatal
}

// AppendPlainAlert appends an alert that is not encrypted, for when there are
// no keys yet.
func AppendPlainAlert(dst []byte, alert uint8) []byte {
	return append(dst, Alert, recordVersion>>8, recordVersion&0xff, 0, 2, AlertLevel(alert), alert)
}

// AlertError ends a session: the peer has sent Alert (Remote), or has done
// what Alert is the answer to.
type AlertError struct {
	Alert  uint8
	Remote bool
	Reason string // what was wrong; empty if Remote
}

func (e *AlertError) Error() string {
	if e.Remote {
		return fmt.Sprintf("the peer sent alert %s (%d)", AlertName(e.Alert), e.Alert)
	}
	return fmt.Sprintf("%s (alert %s (%d) sent)", e.Reason, AlertName(e.Alert), e.Alert)
}

func unexpected(format string, args ...any) *AlertError {
	return &AlertError{Alert: AlertUnexpectedMessage, Reason: "unexpected " + fmt.Sprintf(format, args...)}
}

func decodeError(format string, args ...any) *AlertError {
	return &AlertError{Alert: AlertDecodeError, Reason: fmt.Sprintf(format, args...)}
}
