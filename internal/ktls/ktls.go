package ktls

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"edgeproxy/internal/tlsrecord"
)

// Direction of a socket's bytes.
type Direction uint8

const (
	RX Direction = iota // what the peer sends
	TX                  // what we send
)

// Record content types (RFC 8446, section 5.1).
const (
	Alert     = 21
	Handshake = 22
	Data      = 23
)

// MaxPlaintext is the most that one record holds (RFC 8446, section 5.1), and
// the most that [Send] takes.
const MaxPlaintext = 1 << 14

var (
	// ErrUnavailable says that this kernel, or this kind of socket, has no TLS.
	ErrUnavailable = errors.New("no kernel TLS for this socket")
	// ErrFinished says that the socket is not established any more: the peer's
	// FIN or a reset has come before the ULP.
	ErrFinished = errors.New("kernel TLS cannot be attached after the peer's FIN")
	// ErrSuite says that the kernel knows no such version and cipher suite.
	ErrSuite = errors.New("cipher suite not covered by kernel TLS")
	// ErrNoRekey says that the direction has keys, which this kernel cannot
	// replace.
	ErrNoRekey = errors.New("this kernel cannot replace the keys of a TLS socket")
)

// Names of include/uapi/linux/tls.h. The numbers are the kernel's ABI.
const (
	optTX          = 1
	optRX          = 2
	optExpectNoPad = 4 // since 6.0

	setRecordType = 1
	getRecordType = 2

	version12 = 0x0303
	version13 = 0x0304

	cipherAES128GCM = 51
	cipherAES256GCM = 52
	cipherChaCha20  = 54
)

// Attach makes fd, a connected TCP socket, able to take keys. Until it has
// some, bytes pass as they are. It fails with [ErrUnavailable] or
// [ErrFinished], or for a reason of its own; the socket is then as it was.
//
// Never call it on a listening socket: accepted sockets would share its
// context (CVE-2023-0461).
func Attach(fd int) error {
	return attachError(unix.SetsockoptString(fd, unix.SOL_TCP, unix.TCP_ULP, "tls"))
}

func attachError(err error) error {
	switch err {
	case nil:
		return nil
	case unix.ENOENT, unix.ENOPROTOOPT, unix.EOPNOTSUPP:
		// ENOENT: the module tls is not there, and not loaded for processes
		// without CAP_NET_ADMIN. The others: not TCP, but MPTCP or Unix.
		return fmt.Errorf("%w: TCP_ULP: %w", ErrUnavailable, err)
	case unix.ENOTCONN:
		return fmt.Errorf("%w: TCP_ULP: %w", ErrFinished, err)
	}
	return fmt.Errorf("TCP_ULP: %w", err)
}

// SetKeys gives one direction of an attached socket its keys. k.Seq is the
// number of the next record. A second call replaces the keys, where the kernel
// can: see [Support].Rekey.
//
// For RX nothing encrypted may have been read from the socket that k has not
// counted, and nothing may be left of a record that was read in part.
func SetKeys(fd int, d Direction, k tlsrecord.Keys) error {
	var info cryptoInfo
	n, err := info.set(k)
	if err != nil {
		return err
	}
	opt := optRX
	if d == TX {
		opt = optTX
	}
	errno := setsockopt(fd, opt, unsafe.Pointer(&info), n)
	clear(info[:])
	switch errno {
	case 0:
		return nil
	case unix.EBUSY:
		return fmt.Errorf("%w: %w", ErrNoRekey, errno)
	case unix.ENOENT, unix.ENOPROTOOPT:
		return fmt.Errorf("%w: setting keys: %w", ErrUnavailable, errno)
	}
	return fmt.Errorf("kernel TLS: setting keys: %w", errno)
}

// ExpectNoPad lets the kernel decrypt TLS 1.3 records straight into the
// reader's buffer, on the assumption that peers do not pad; a padded one is
// decrypted a second time. It changes nothing for splice(2). Call it after
// SetKeys(RX); errors can be ignored.
func ExpectNoPad(fd int) unix.Errno {
	one := uint32(1)
	return setsockopt(fd, optExpectNoPad, unsafe.Pointer(&one), unsafe.Sizeof(one))
}

func setsockopt(fd, opt int, p unsafe.Pointer, n uintptr) unix.Errno {
	_, _, errno := unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_TLS, uintptr(opt), uintptr(p), n, 0)
	return errno
}

// cryptoInfo holds any of the kernel's struct tls12_crypto_info_*, which serve
// TLS 1.3, too. They begin with the version and the cipher type; then
//
//	AES-GCM:  iv[8]  key[16 or 32] salt[4] rec_seq[8]
//	ChaCha20: iv[12] key[32]               rec_seq[8]
type cryptoInfo [4 + 12 + 32 + 8]byte

// set fills in k and returns how long the structure is.
func (c *cryptoInfo) set(k tlsrecord.Keys) (uintptr, error) {
	cipher, keyLen := cipherOf(k.Version, k.Suite)
	if cipher == 0 {
		return 0, fmt.Errorf("%w: version %#04x, suite %#04x", ErrSuite, k.Version, k.Suite)
	}
	ivLen := 12
	if k.Version == version12 && cipher != cipherChaCha20 {
		ivLen = 4 // the explicit part of the nonce travels (RFC 5288, section 3)
	}
	if len(k.Key) != keyLen || len(k.IV) != ivLen {
		return 0, fmt.Errorf("suite %#04x of version %#04x takes a key of %d bytes and an IV of %d, not of %d and %d",
			k.Suite, k.Version, keyLen, ivLen, len(k.Key), len(k.IV))
	}
	b := c[:0]
	b = binary.NativeEndian.AppendUint16(b, k.Version)
	b = binary.NativeEndian.AppendUint16(b, cipher)
	switch {
	case cipher == cipherChaCha20:
		b = append(b, k.IV...)
		b = append(b, k.Key...)
	case ivLen == 4:
		// The kernel counts the explicit nonce up from here. The sequence
		// number never repeats under one key.
		b = binary.BigEndian.AppendUint64(b, k.Seq)
		b = append(b, k.Key...)
		b = append(b, k.IV...)
	default:
		b = append(b, k.IV[4:]...)
		b = append(b, k.Key...)
		b = append(b, k.IV[:4]...)
	}
	b = binary.BigEndian.AppendUint64(b, k.Seq)
	return uintptr(len(b)), nil
}

// cipherOf returns the kernel's number and the key length of a cipher suite,
// or zeros.
func cipherOf(version, suite uint16) (cipher uint16, keyLen int) {
	switch version {
	case version13:
		switch suite {
		case 0x1301:
			return cipherAES128GCM, 16
		case 0x1302:
			return cipherAES256GCM, 32
		case 0x1303:
			return cipherChaCha20, 32
		}
	case version12:
		switch suite {
		case 0xc02b, 0xc02f, 0x009c:
			return cipherAES128GCM, 16
		case 0xc02c, 0xc030, 0x009d:
			return cipherAES256GCM, 32
		case 0xcca8, 0xcca9:
			return cipherChaCha20, 32
		}
	}
	return 0, 0
}
