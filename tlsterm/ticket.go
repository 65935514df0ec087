package tlsterm

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"slices"
	"sync/atomic"
	"time"
)

// A session ticket:
//
//	key name (16) | nonce (12) | AES-256-GCM of tls.SessionState.Bytes | tag (16)
//
// crypto/tls would seal tickets with keys of its own; but tls.Config.Clone
// copies those (Go CVE-2025-68121), and they know nothing of what a session was
// verified against (nginx CVE-2025-23419, Envoy CVE-2022-21654). Here a key is
// derived from a master secret and the scope, a hash of the tls block's name
// and of all that decides who gets a session there. Resuming across that border
// is not forbidden, it is impossible: the ticket cannot be opened.
//
// Listeners do not count. The same tls block on two listeners is the same
// policy, and a session of the one may be resumed at the other.
const (
	ticketNameLen = 16
	ticketMinLen  = ticketNameLen + 12 + 16
	// maxTicket bounds what a client has to send back; beyond it, which takes
	// a client certificate with a long chain, the session cannot be resumed.
	maxTicket = 16 << 10
)

// sealer seals and opens the tickets of one Context. Its keys are derived
// anew when the masters change.
type sealer struct {
	keys    *ticketKeys
	scope   [sha256.Size]byte
	derived atomic.Pointer[derivedKeys]
}

type derivedKeys struct {
	from *ticketMasters
	seal *ticketKey
	open []*ticketKey
}

// ticketKey is good for 2^32 tickets, since nonces are random (NIST SP
// 800-38D, section 8.3): for 6 hours at 200 000 a second, which is more than
// own keys see before they are rotated.
type ticketKey struct {
	name [ticketNameLen]byte
	aead cipher.AEAD // with a random nonce in front
}

func newSealer(keys *ticketKeys, scope [sha256.Size]byte) *sealer {
	return &sealer{keys: keys, scope: scope}
}

func (s *sealer) current() *derivedKeys {
	masters := s.keys.masters()
	d := s.derived.Load()
	if d == nil || d.from != masters {
		d = &derivedKeys{from: masters}
		for _, m := range masters.open {
			key := deriveTicketKey(m.secret, s.scope)
			d.open = append(d.open, key)
			if m == masters.seal {
				d.seal = key
			}
		}
		s.derived.Store(d) // two that race store the same
	}
	return d
}

func deriveTicketKey(master []byte, scope [sha256.Size]byte) *ticketKey {
	okm, err := hkdf.Key(sha256.New, master, []byte("edgeproxy session tickets 1"), string(scope[:]), ticketNameLen+32)
	if err != nil {
		panic("tlsterm: " + err.Error()) // HKDF-SHA256 gives up to 8160 bytes
	}
	key := &ticketKey{}
	copy(key.name[:], okm)
	block, err := aes.NewCipher(okm[ticketNameLen:])
	if err == nil {
		key.aead, err = cipher.NewGCMWithRandomNonce(block)
	}
	if err != nil {
		panic("tlsterm: " + err.Error()) // 32 bytes are an AES key
	}
	clear(okm)
	return key
}

// extraTag begins the entry of tls.SessionState.Extra that is ours:
//
//	tag | authenticated, seconds since the epoch (8) | server name
var extraTag = []byte("edgeproxy1")

func appendExtra(authenticated time.Time, serverName string) []byte {
	b := bytes.Clone(extraTag)
	b = binary.BigEndian.AppendUint64(b, uint64(authenticated.Unix()))
	return append(b, serverName...)
}

func parseExtra(extra [][]byte) (authenticated time.Time, serverName string, ok bool) {
	for _, e := range extra {
		if rest, found := bytes.CutPrefix(e, extraTag); found && len(rest) >= 8 {
			return time.Unix(int64(binary.BigEndian.Uint64(rest)), 0), string(rest[8:]), true
		}
	}
	return time.Time{}, "", false
}

// wrap is tls.Config.WrapSession. If ss.Extra has our entry, as
// [inheritSession] puts it there, the session goes on being as old as that
// says.
func (s *sealer) wrap(cs tls.ConnectionState, ss *tls.SessionState) ([]byte, error) {
	authenticated, _, inherited := parseExtra(ss.Extra)
	if !inherited || !cs.DidResume {
		authenticated = time.Now()
	}
	ss.Extra = slices.DeleteFunc(ss.Extra, func(e []byte) bool { return bytes.HasPrefix(e, extraTag) })
	ss.Extra = append(ss.Extra, appendExtra(authenticated, normalName(cs.ServerName)))
	ss.EarlyData = false // 0-RTT stays off (HAProxy CVE-2024-49214)
	state, err := ss.Bytes()
	if err != nil {
		return nil, err
	}
	defer clear(state)
	if len(state)+ticketMinLen > maxTicket {
		// An error would end the handshake. What opens for nobody leads the
		// client to a full handshake next time.
		ticket := make([]byte, ticketMinLen)
		rand.Read(ticket)
		return ticket, nil
	}
	key := s.current().seal
	ticket := make([]byte, ticketNameLen, len(state)+ticketMinLen)
	copy(ticket, key.name[:])
	return key.aead.Seal(ticket, nil, state, key.name[:]), nil
}

// unwrap is tls.Config.UnwrapSession. What cannot be resumed is no error, which
// would end the handshake, but a full handshake.
func (s *sealer) unwrap(ticket []byte, cs tls.ConnectionState) (*tls.SessionState, error) {
	if len(ticket) < ticketMinLen || len(ticket) > maxTicket {
		return nil, nil
	}
	d := s.current()
	i := slices.IndexFunc(d.open, func(k *ticketKey) bool { return bytes.Equal(k.name[:], ticket[:ticketNameLen]) })
	if i < 0 {
		return nil, nil
	}
	key := d.open[i]
	state, err := key.aead.Open(nil, nil, ticket[ticketNameLen:], key.name[:])
	if err != nil {
		return nil, nil
	}
	ss, err := tls.ParseSessionState(state) // keeps parts of state
	if err != nil {
		return nil, nil // of another version of Go, elsewhere in the fleet
	}
	authenticated, serverName, ok := parseExtra(ss.Extra)
	if !ok || serverName != normalName(cs.ServerName) {
		return nil, nil
	}
	// Clocks of a fleet differ a little; a ticket from the future beyond that
	// would be one that never gets old.
	if age := time.Since(authenticated); age > TicketLifetime || age < -5*time.Minute {
		return nil, nil
	}
	return ss, nil
}

// inheritSession carries over to the ticket next what belongs to the session
// that was resumed: when the client was authenticated. Without it a chain of
// resumptions, each with a fresh ticket, would never come to an end.
func inheritSession(next, resumed *tls.SessionState) {
	for _, e := range resumed.Extra {
		if bytes.HasPrefix(e, extraTag) {
			next.Extra = append(next.Extra, e)
		}
	}
}
