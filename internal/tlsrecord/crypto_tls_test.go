package tlsrecord

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"
)

func roles() []Role { return []Role{Server, Client} }

func (r Role) String() string { return [...]string{"server", "client"}[r] }

// Either end of a crypto/tls session can be ours: what one seals the other
// opens.
func TestAgainstCryptoTLS(t *testing.T) {
	t.Parallel()
	for _, k := range kinds() {
		for _, role := range roles() {
			t.Run(k.String()+"/"+role.String(), func(t *testing.T) {
				t.Parallel()
				ours, w, theirs := peer(t, k, role)
				sizes := []int{1, 2, 15, 16, 17, 100, 1000, 16383, 16384, 16385, 40000}
				for range 20 {
					sizes = append(sizes, 1+rand.IntN(20000))
				}
				for i, n := range sizes {
					if i%7 == 3 {
						ours.Shed()
					}
					want := bytes.Repeat([]byte{byte(n), byte(i), 3}, n/3+1)[:n]
					if _, err := theirs.Write(want); err != nil {
						t.Fatal(err)
					}
					var got []byte
					for _, r := range openAll(t, ours, w.take()) {
						if r.typ != ApplicationData {
							t.Fatalf("record of type %d", r.typ)
						}
						got = append(got, r.plain...)
					}
					if !bytes.Equal(got, want) {
						t.Fatalf("opened %d bytes that differ from the %d sealed", len(got), n)
					}
					for part := range slices.Chunk(want, MaxPlaintext) {
						w.Write(seal(ours, ApplicationData, part))
					}
					got, err := readSome(theirs, n)
					if err != nil || !bytes.Equal(got, want) {
						t.Fatalf("crypto/tls read %d of %d bytes: %v", len(got), n, err)
					}
				}
				theirs.Close()
				all := openAll(t, ours, w.take())
				if len(all) != 1 || all[0].event != Closed {
					t.Fatalf("after Close came %+v", all)
				}
			})
		}
	}
}
