package quic

import (
	"bytes"
	"errors"
	"slices"
	"sort"

	"edgeproxy/internal/sniff"
)

var (
	errConflict  = errors.New("CRYPTO frames of the QUIC client contradict each other")
	errFragments = errors.New("the QUIC client sends its ClientHello in too many fragments")
	errLong      = errors.New("a CRYPTO frame of the QUIC client reaches beyond 64 KiB")
)

// maxParts bounds the fragments of a ClientHello that come out of order. Some
// clients cut it up on purpose, into a few dozen.
const maxParts = 256

// stream puts together what CRYPTO frames carry. It takes no more memory than
// what has arrived: bytes are stored in the order in which they came, and parts
// says which ones they are.
type stream struct {
	data  []byte
	parts []part // by offset; they do not overlap
	need  int    // how many bytes from the beginning on there must be to get further
}

// part is a run of bytes that stand together in the stream and in data.
type part struct {
	offset, at, n int32 // of the stream, in data, bytes
}

func (p *part) end() int { return int(p.offset + p.n) }

// add takes the bytes of one frame. Those that are there already must be the
// same: if they are not, which ones the server will take is its own affair.
func (s *stream) add(offset int, b []byte) error {
	i := sort.Search(len(s.parts), func(i int) bool { return s.parts[i].end() > offset })
	for len(b) > 0 {
		if i == len(s.parts) || int(s.parts[i].offset) >= offset+len(b) {
			_, err := s.insert(i, offset, b)
			return err
		}
		var err error
		if gap := int(s.parts[i].offset) - offset; gap > 0 {
			if i, err = s.insert(i, offset, b[:gap]); err != nil {
				return err
			}
			offset, b = offset+gap, b[gap:]
		}
		p := &s.parts[i]
		n := min(p.end()-offset, len(b))
		if at := int(p.at) + offset - int(p.offset); !bytes.Equal(s.data[at:at+n], b[:n]) {
			return errConflict
		}
		offset, b = offset+n, b[n:]
		i++
	}
	return nil
}

// insert stores bytes that belong before part i, and returns where that part is
// then.
func (s *stream) insert(i, offset int, b []byte) (int, error) {
	at := len(s.data)
	if i > 0 {
		if p := &s.parts[i-1]; p.end() == offset && int(p.at+p.n) == at {
			s.data = append(s.data, b...)
			p.n += int32(len(b))
			return i, nil
		}
	}
	if len(s.parts) == maxParts {
		return i, errFragments
	}
	s.data = append(s.data, b...)
	s.parts = slices.Insert(s.parts, i, part{int32(offset), int32(at), int32(len(b))})
	return i + 1, nil
}

// ready returns how many bytes there are from the beginning on.
func (s *stream) ready() (n int) {
	for i := range s.parts {
		if int(s.parts[i].offset) != n {
			break
		}
		n = s.parts[i].end()
	}
	return n
}

// bytes returns the first n bytes, which must be there.
func (s *stream) bytes(n int) []byte {
	if p := &s.parts[0]; int(p.n) >= n {
		return s.data[p.at:][:n:n]
	}
	b := make([]byte, 0, n)
	for i := range s.parts {
		p := &s.parts[i]
		b = append(b, s.data[p.at:][:min(int(p.n), n-len(b))]...)
		if len(b) == n {
			break
		}
	}
	return b
}

// hello looks for a ClientHello; as long as it is not whole, it is not done.
func (s *stream) hello(info *sniff.Info) (done bool, err error) {
	n := s.ready()
	if n == 0 || n < s.need {
		return false, nil
	}
	s.need, err = info.Hello(s.bytes(n))
	return s.need == 0 && err == nil, err
}
