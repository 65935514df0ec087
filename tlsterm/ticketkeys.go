package tlsterm

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// ticketRotation is how often own keys are replaced. A key opens tickets
	// for two rotations after it has sealed its last, which is TicketLifetime.
	ticketRotation = 6 * time.Hour
	// ticketKeysKept is how many keys open tickets, the one that seals among
	// them.
	ticketKeysKept = 3

	maxTicketKeyFile = 64 << 10 // bytes
)

// ticketMaster is what the keys of all tls blocks that share it are derived
// from; see [sealer].
type ticketMaster struct {
	secret  []byte
	created time.Time // zero: of a file
}

// ticketMasters is a generation of them, immutable.
type ticketMasters struct {
	seal *ticketMaster
	open []*ticketMaster // seal is one of them
}

// ticketKeys are the masters in force: of one tls block, made and rotated
// here; or of a file that the machines of a fleet share. They survive reloads.
type ticketKeys struct {
	file string // "": own keys

	current atomic.Pointer[ticketMasters]
	mu      sync.Mutex // held while current is replaced
}

// newTicketKeys makes own keys, or reads file.
func newTicketKeys(file string) (*ticketKeys, error) {
	k := &ticketKeys{file: file}
	if file == "" {
		k.rotate()
		return k, nil
	}
	m, err := readTicketKeys(file)
	if err != nil {
		return nil, err
	}
	k.current.Store(m)
	return k, nil
}

// masters are the keys to use now.
func (k *ticketKeys) masters() *ticketMasters {
	m := k.current.Load()
	if k.file == "" && time.Since(m.seal.created) >= ticketRotation {
		k.rotate()
		m = k.current.Load()
	}
	return m
}

// rotate makes a new own key if it is time to, forgets those that no ticket
// alive was sealed with, and reports whether it did.
func (k *ticketKeys) rotate() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	now, old := time.Now(), k.current.Load()
	if old != nil && now.Sub(old.seal.created) < ticketRotation {
		return false
	}
	m := &ticketMasters{seal: &ticketMaster{secret: make([]byte, 32), created: now}}
	rand.Read(m.seal.secret) // never fails: crypto/rand
	m.open = []*ticketMaster{m.seal}
	if old != nil {
		for _, master := range old.open[:min(len(old.open), ticketKeysKept-1)] {
			if now.Sub(master.created) < ticketRotation+TicketLifetime {
				m.open = append(m.open, master)
			}
		}
	}
	k.current.Store(m)
	return true
}

// reload reads the file anew. With an error the keys stay as they are.
func (k *ticketKeys) reload() (changed bool, err error) {
	m, err := readTicketKeys(k.file)
	if err != nil {
		return false, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.current.Load().equal(m) {
		return false, nil
	}
	k.current.Store(m)
	return true, nil
}

func (m *ticketMasters) equal(o *ticketMasters) bool {
	if len(m.open) != len(o.open) || !bytes.Equal(m.seal.secret, o.seal.secret) {
		return false
	}
	for i := range m.open {
		if !bytes.Equal(m.open[i].secret, o.open[i].secret) {
			return false
		}
	}
	return true
}

func readTicketKeys(file string) (*ticketMasters, error) {
	data, state := readBounded(file)
	if state.err != nil {
		return nil, describeReadError(state.err)
	}
	m, err := parseTicketKeys(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return m, nil
}

var errTicketKeys = errors.New(`want one key of 48 or 80 random bytes ("openssl rand 80"), or one key per line in base64 ("openssl rand -base64 80 | tr -d '\n'")`)

// parseTicketKeys reads a key file in either of two customary forms:
//
//   - 48 or 80 bytes, one key (nginx: ssl_session_ticket_key)
//   - lines of 48 or 80 bytes in base64, the newest last (HAProxy:
//     tls-ticket-keys); empty lines and those that begin with # do not count
//
// Of several lines the last three are in use. They all open tickets, and the
// last but one seals: a key that was appended is known to the whole fleet
// before the first ticket is sealed with it. A file of one key seals with that.
//
// All of a key's bytes count. Which of them are whose AES or HMAC key, in which
// the two programs differ, does not matter here: tickets are not exchanged with
// them, only files.
func parseTicketKeys(data []byte) (*ticketMasters, error) {
	if len(data) > maxTicketKeyFile {
		return nil, fmt.Errorf("%d bytes are too many; %w", len(data), errTicketKeys)
	}
	var keys []*ticketMaster
	if ticketKeyLen(len(data)) && !isText(data) {
		keys = append(keys, &ticketMaster{secret: bytes.Clone(data)})
	} else if len(data) > 0 && !isText(data) {
		return nil, fmt.Errorf("%d bytes that are no text: a raw key has 48 or 80; %w", len(data), errTicketKeys)
	} else {
		n := 0
		for line := range bytes.Lines(data) {
			n++
			if line = bytes.TrimSpace(line); len(line) == 0 || line[0] == '#' {
				continue
			}
			// The line itself is a secret, or nearly one: it is not shown.
			secret, err := base64.StdEncoding.AppendDecode(nil, line)
			switch {
			case err != nil:
				return nil, fmt.Errorf("line %d is not base64; %w", n, errTicketKeys)
			case !ticketKeyLen(len(secret)):
				return nil, fmt.Errorf("line %d has %d bytes; %w", n, len(secret), errTicketKeys)
			}
			keys = append(keys, &ticketMaster{secret: secret})
		}
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("no key; %w", errTicketKeys)
	}
	for _, key := range keys {
		if bytes.Count(key.secret, key.secret[:1]) == len(key.secret) {
			return nil, fmt.Errorf("a key of one byte repeated is no secret; %w", errTicketKeys)
		}
	}
	keys = keys[max(0, len(keys)-ticketKeysKept):]
	return &ticketMasters{seal: keys[max(0, len(keys)-2)], open: keys}, nil
}

func ticketKeyLen(n int) bool { return n == 48 || n == 80 }

// isText tells a base64 file from a raw key of the same length. 48 random
// bytes are text with a probability of 2^-66.
func isText(data []byte) bool {
	for _, c := range data {
		if (c < ' ' || c > '~') && c != '\n' && c != '\r' && c != '\t' {
			return false
		}
	}
	return true
}
