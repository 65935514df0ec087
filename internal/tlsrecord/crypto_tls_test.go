package tlsrecord

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"os"
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

// crypto/tls answers our requests for an update, and follows ours.
func TestKeyUpdatesAgainstCryptoTLS(t *testing.T) {
	t.Parallel()
	for _, k := range few()[:3] {
		for _, role := range roles() {
			t.Run(k.String()+"/"+role.String(), func(t *testing.T) {
				t.Parallel()
				ours, w, theirs := peer(t, k, role)
				ours.RekeyAfter = 10
				updates := 0
				for i := range 60 {
					for range i % 4 {
						w.Write(seal(ours, Handshake, updateRequest))
						ours.updated()
					}
					want := bytes.Repeat([]byte{byte(i)}, 100+i)
					for _, b := range slices.Collect(slices.Chunk(want, 30)) {
						w.Write(ours.AppendDue(nil))
						w.Write(seal(ours, ApplicationData, b))
					}
					if got, err := readSome(theirs, len(want)); err != nil || !bytes.Equal(got, want) {
						t.Fatalf("round %d: crypto/tls read %d bytes: %v", i, len(got), err)
					}
					theirs.Write(want)
					all := openAll(t, ours, w.take())
					if len(all) != i%4+1 || !bytes.Equal(all[i%4].plain, want) {
						t.Fatalf("round %d: got %d records", i, len(all))
					}
					for _, r := range all[:i%4] {
						if r.event != Rekeyed {
							t.Fatalf("round %d: no KeyUpdate but %+v", i, r)
						}
						updates++
					}
					if i%5 == 0 {
						ours.Shed()
					}
				}
				if updates != 90 {
					t.Errorf("crypto/tls answered %d times", updates)
				}
			})
		}
	}
}

// crypto/tls understands our alerts.
func TestAlertsToCryptoTLS(t *testing.T) {
	t.Parallel()
	for _, k := range []kind{few()[0], few()[3]} {
		for alert := range 256 {
			if AlertName(uint8(alert)) == "unassigned" && alert%32 != 5 {
				continue // a handshake for each of 256 takes its time
			}
			ours, w, theirs := peer(t, k, Server)
			w.Write(ours.AppendAlert(nil, uint8(alert)))
			_, err := theirs.Read(make([]byte, 1))
			switch {
			case alert == AlertCloseNotify:
				if err != io.EOF {
					t.Errorf("%v: alert %d: %v", k, alert, err)
				}
			case k.version == tls.VersionTLS13 && alert == AlertUserCanceled, k.version == tls.VersionTLS12 && alert == AlertNoRenegotiation:
				if !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("%v: alert %d: %v", k, alert, err)
				}
			default:
				if want := "remote error: " + tls.AlertError(alert).Error(); err == nil || err.Error() != want {
					t.Errorf("%v: alert %d: %v, want %s", k, alert, err, want)
				}
			}
		}
	}
}

// What crypto/tls says to a forged record is its alert to us.
func TestAlertFromCryptoTLS(t *testing.T) {
	t.Parallel()
	for _, k := range few() {
		for _, role := range roles() {
			ours, w, theirs := peer(t, k, role)
			rec := seal(ours, ApplicationData, []byte("x"))
			rec[len(rec)-1]++
			w.Write(rec)
			theirs.Read(make([]byte, 1))
			_, _, _, err := take1(ours, w.take())
			var e *AlertError
			if !errors.As(err, &e) || !e.Remote || e.Alert != AlertBadRecordMAC {
				t.Errorf("%v: %v", k, err)
			}
		}
	}
}

// Of all that a server has written during its handshake, Wrote finds what went
// under the keys we go on with: the tickets.
func TestWrote(t *testing.T) {
	t.Parallel()
	for _, k := range few() {
		s := handshake(t, k)
		if k.version != tls.VersionTLS13 {
			ours := s.conn(t, Server, 0, 0)
			if ours.Wrote(records(s.serverWire.out.all)[0]) || ours.out.seq != 1 {
				t.Errorf("%v: took a ServerHello for a sealed record", k)
			}
			continue
		}
		ours := s.conn(t, Server, 0, 0)
		ours.Shed()
		var found []bool
		for _, rec := range records(s.serverWire.out.all) {
			before := bytes.Clone(rec)
			found = append(found, ours.Wrote(rec))
			if !bytes.Equal(rec, before) {
				t.Errorf("%v: Wrote has changed the record", k)
			}
		}
		last := len(found) - 1
		if slices.Index(found, true) != last || ours.out.seq != 1 {
			t.Fatalf("%v: found %v, next is %d; want the last one to be a ticket", k, found, ours.out.seq)
		}
		for _, bad := range [][]byte{nil, {23, 3, 3}, {23, 3, 3, 0, 50, 1}, {22, 3, 3, 0, 0}} {
			if ours.Wrote(bad) {
				t.Errorf("%v: %x was taken for a record", k, bad)
			}
		}
		s.serverWire.Write(seal(ours, ApplicationData, []byte("next")))
		if got, err := readSome(s.client, 4); err != nil || string(got) != "next" {
			t.Errorf("%v: after that the client read %q, %v", k, got, err)
		}
	}
}
