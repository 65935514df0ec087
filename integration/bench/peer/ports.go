package peer

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
)

// FreePorts finds n ports in a row that nobody listens on. They lie outside the
// range the kernel takes client ports from: one of the thousands of clients
// would else sit on a port before its listener opens it.
func FreePorts(n int) (int, error) {
	low, high := 10000, 32767
	if b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		var from, to int
		if _, err := fmt.Sscan(string(b), &from, &to); err == nil {
			if from > 12000 {
				high = from - 1
			} else if to < 63000 {
				low, high = to+1, 65535
			}
		}
	}
next:
	for range 200 {
		first := low + rand.IntN(high-low-n)
		for port := first; port < first+n; port++ {
			l, err := net.Listen("tcp4", fmt.Sprintf("0.0.0.0:%d", port))
			if err != nil {
				continue next
			}
			l.Close()
			u, err := net.ListenPacket("udp4", fmt.Sprintf("0.0.0.0:%d", port))
			if err != nil {
				continue next
			}
			u.Close()
		}
		return first, nil
	}
	return 0, fmt.Errorf("no %d free ports in a row between %d and %d", n, low, high)
}
