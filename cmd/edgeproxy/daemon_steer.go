package main

import (
	"runtime"
	"syscall"
	"unsafe"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"edgeproxy/config"
	"edgeproxy/listener"
)

// steer loads the program that gives connections to the loop with the fewest,
// if that is wanted and possible.
func (d *daemon) steer(cfg *config.Config) {
	if cfg.Process.Steering == "off" || len(d.loops) < 2 {
		return
	}
	var err error
	if d.steering, err = listener.NewSteering(len(d.loops)); err != nil {
		d.log.Info("the kernel's hash spreads connections over the loops, less evenly than process.steering would", zap.Error(err))
		return
	}
	d.log.Info("each connection goes to the loop that has the fewest")
}

// dropBPF gives up CAP_BPF of an unprivileged process that was started with
// it: what it was for is loaded. Root keeps it, as it keeps everything unless
// process.user is set.
func dropBPF() {
	if syscall.Geteuid() == 0 {
		return
	}
	const word, bit = unix.CAP_BPF / 32, 1 << (unix.CAP_BPF % 32)
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if unix.Capget(&hdr, &data[0]) != nil || data[word].Permitted&bit == 0 {
		return
	}
	data[word].Effective &^= bit
	data[word].Permitted &^= bit
	data[word].Inheritable &^= bit
	// A failure leaves the process with what it was given. In a build with cgo
	// there is no way to reach all threads.
	_, _, _ = syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&data)), 0)
	runtime.KeepAlive(&hdr)
	runtime.KeepAlive(&data)
}
