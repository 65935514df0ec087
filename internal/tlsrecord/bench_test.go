package tlsrecord

import (
	"fmt"
	"io"
	"runtime"
	"testing"
	"unsafe"
)

var sizes = []int{100, 1 << 10, MaxPlaintext}

func BenchmarkSeal(b *testing.B) {
	for _, k := range few() {
		for _, n := range sizes {
			b.Run(fmt.Sprintf("%v/%d", k, n), func(b *testing.B) {
				c, _ := pair(b, k)
				c.RekeyAfter = 1 << 40
				buf := make([]byte, MaxRecord)
				b.SetBytes(int64(n))
				b.ReportAllocs()
				for b.Loop() {
					c.Seal(ApplicationData, buf, n)
				}
			})
		}
	}
}

// Open is measured with the same record again and again, which needs its
// sequence number set back.
func BenchmarkOpen(b *testing.B) {
	for _, k := range few() {
		for _, n := range sizes {
			b.Run(fmt.Sprintf("%v/%d", k, n), func(b *testing.B) {
				c, s := pair(b, k)
				rec, dst := seal(c, ApplicationData, make([]byte, n)), make([]byte, MaxRecord)
				seq := s.in.seq
				b.SetBytes(int64(n))
				b.ReportAllocs()
				for b.Loop() {
					s.in.seq = seq
					if _, _, err := s.Open(dst, rec); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkCryptoTLS is the same by crypto/tls, without a network.
func BenchmarkCryptoTLS(b *testing.B) {
	for _, k := range few() {
		for _, n := range sizes {
			b.Run(fmt.Sprintf("Seal/%v/%d", k, n), func(b *testing.B) {
				s := handshake(b, k)
				s.clientWire.out.discard = true
				text := make([]byte, n)
				b.SetBytes(int64(n))
				b.ReportAllocs()
				for b.Loop() {
					s.client.Write(text)
				}
			})
			b.Run(fmt.Sprintf("Open/%v/%d", k, n), func(b *testing.B) {
				s := handshake(b, k)
				text := make([]byte, n)
				b.SetBytes(int64(n))
				b.ReportAllocs()
				b.ResetTimer()
				for i := range b.N {
					const batch = 64
					if i%batch == 0 {
						b.StopTimer()
						s.clientWire.out.all = nil
						for range batch {
							s.client.Write(text)
						}
						b.StartTimer()
					}
					if _, err := io.ReadFull(s.server, text); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkRemake is the price of Shed: the next record of one direction.
func BenchmarkRemake(b *testing.B) {
	for _, k := range few() {
		b.Run(k.String(), func(b *testing.B) {
			c, _ := pair(b, k)
			b.ReportAllocs()
			for b.Loop() {
				c.out.aead = nil
				c.out.aead = c.p.mustAEAD(&c.out.key)
			}
		})
	}
}

func BenchmarkNew(b *testing.B) {
	for _, k := range few() {
		b.Run(k.String(), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				pair(b, k)
			}
		})
	}
}

func BenchmarkKeyUpdate(b *testing.B) {
	for _, k := range few()[:3] {
		b.Run(k.String(), func(b *testing.B) {
			_, s := pair(b, k)
			text := []byte{keyUpdate, 0, 0, 1, 1}
			b.ReportAllocs()
			for b.Loop() {
				s.useless = 0
				if _, err := s.Control(Handshake, text); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// An idle session is to cost little; see the package comment.
func TestMemory(t *testing.T) {
	if n := unsafe.Sizeof(Conn{}); n > 288 {
		t.Errorf("a Conn has %d bytes, which take more than the 288 of their size class", n)
	}
	const sessions = 2000
	for _, k := range few() {
		all := make([]*Conn, sessions)
		before := heap()
		for i := range all {
			_, all[i] = pair(t, k)
		}
		live := heap() - before
		for _, c := range all {
			c.Shed()
		}
		shed := heap() - before
		runtime.KeepAlive(all)
		t.Logf("%v: %d bytes per session, %d when shed", k, live/sessions, shed/sessions)
		if shed/sessions > 350 {
			t.Errorf("%v: a session that is shed has %d bytes", k, shed/sessions)
		}
	}
}

func heap() int {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}
