package udp

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What build writes, as x/sys/unix reads it.
func TestControlBuild(t *testing.T) {
	t.Parallel()
	local := func(ip string, index uint32) *Local {
		return &Local{IP: netip.MustParseAddr(ip).As16(), Interface: index}
	}
	for _, test := range []struct {
		ipv4    bool
		local   *Local
		tos     uint8
		segment int
		want    []string // level/type/value
	}{
		{true, nil, 0, 0, nil},
		{true, nil, 0xb9, 0, []string{"0/1/b9000000"}}, // IP_TOS
		{false, nil, 3, 0, []string{"41/67/03000000"}}, // IPV6_TCLASS
		{false, nil, 0, 1200, []string{"17/103/b004"}}, // UDP_SEGMENT is 16 bits
		{true, nil, 0, 65507, []string{"17/103/e3ff"}}, //
		{true, local("192.0.2.1", 0), 0, 0, []string{"0/8/00000000c000020100000000"}},
		{true, local("127.0.0.2", 0), 255, 1, []string{"0/8/000000007f00000200000000", "0/1/ff000000", "17/103/0100"}},
		{false, local("fe80::1", 4), 1, 65487, []string{"41/50/fe80000000000000000000000000000104000000", "41/67/01000000", "17/103/cfff"}},
	} {
		var c sendControl
		for i := range c {
			c[i] = ^uint64(0) // left over
		}
		b := unsafe.Slice((*byte)(unsafe.Pointer(&c)), unsafe.Sizeof(c))[:c.build(test.ipv4, test.local, test.tos, test.segment)]
		var got []string
		if len(b) > 0 {
			messages, err := unix.ParseSocketControlMessage(b)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range messages {
				got = append(got, fmt.Sprintf("%d/%d/%x", m.Header.Level, m.Header.Type, m.Data))
			}
		}
		if !slices.Equal(got, test.want) && binary.NativeEndian.Uint16([]byte{1, 0}) == 1 {
			t.Errorf("%v %+v %d %d: %q; want %q", test.ipv4, test.local, test.tos, test.segment, got, test.want)
		}
	}
}

// A Local that was received is one that can be sent, and comes back as it is.
func TestControlParse(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		ip   string
		want told
	}{
		{"192.0.2.1", told{tos: 0xb9, many: true}}, // of in_pktinfo, a sender fills in the source alone
		{"2001:db8::1", told{tos: 0xb9}},
		{"fe80::1", told{tos: 0xb9}},
		{"ff02::1", told{tos: 0xb9, many: true}}, // RFC 4291 section 2.7
		{"::ffff:192.0.2.1", told{tos: 0xb9, many: true}},
	} {
		ip := netip.MustParseAddr(test.ip)
		local := Local{IP: ip.As16()}
		if ip.IsLinkLocalUnicast() {
			local.Interface = 3
		}
		if !ip.IsMulticast() {
			test.want.local = local
		}
		var sent sendControl
		var received receiveControl
		n := sent.build(local.isIPv4(), &local, 0xb9, 0)
		copy(received[:], sent[:])
		var got told
		if received.parse(n, &got); got != test.want {
			t.Errorf("%s: %+v; want %+v", test.ip, got, test.want)
		}
	}
}

// Whatever the bytes, parse ends, and does not read behind them.
func FuzzControlParse(f *testing.F) {
	var c sendControl
	local := &Local{IP: netip.MustParseAddr("fe80::1").As16(), Interface: 4}
	n := c.build(false, local, 7, 1200)
	good := unsafe.Slice((*byte)(unsafe.Pointer(&c)), unsafe.Sizeof(c))[:n]
	f.Add(good)
	f.Add(good[:len(good)-5])
	f.Add([]byte{})
	f.Add(slices.Concat(good, good))
	f.Fuzz(func(t *testing.T, b []byte) {
		var c receiveControl
		room := unsafe.Slice((*byte)(unsafe.Pointer(&c)), unsafe.Sizeof(c))
		n := copy(room, b)
		var got, again told
		c.parse(n, &got)
		for i := n; i < len(room); i++ {
			room[i] = 0xff
		}
		c.parse(n, &again)
		if got != again {
			t.Fatalf("%+v, and with other bytes behind %+v", got, again)
		}
		c.parse(1<<30, &again)
	})
}
