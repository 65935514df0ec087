package ktls

import "golang.org/x/sys/unix"

// Alerts (RFC 8446, section 6).
const (
	alertUnexpectedMessage = 10
	alertBadRecordMAC      = 20
	alertRecordOverflow    = 22
	alertProtocolVersion   = 70
)

// AlertOf returns the alert with which a peer is told of an error of receiving,
// whichever call it came out of; 0 if errno is none of those. EINVAL is the
// peer's fault only where it cannot mean something else: from Recv, or from
// splice(2) when Recv then says EAGAIN.
func AlertOf(errno unix.Errno) byte {
	switch errno {
	case unix.EBADMSG:
		return alertBadRecordMAC
	case unix.EMSGSIZE:
		return alertRecordOverflow
	case unix.EINVAL:
		return alertProtocolVersion
	case unix.EKEYEXPIRED:
		return alertUnexpectedMessage // half a KeyUpdate
	}
	return 0
}

// Fatal sends a fatal alert, also when an error of receiving is in the way.
// It is the last that is done with a session but to close it: the error that
// it clears may have been a reset.
func Fatal(fd int, desc byte) unix.Errno {
	unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	return Send(fd, Alert, []byte{2, desc})
}
