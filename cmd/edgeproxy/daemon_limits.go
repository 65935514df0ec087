package main

import (
	"fmt"
	"os"
	"os/user"
	"runtime"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"edgeproxy/config"
	"edgeproxy/health"
	"edgeproxy/internal/logging"
	"edgeproxy/listener"
)

// descriptors is how the limit of open files (RLIMIT_NOFILE) is shared out.
type descriptors struct {
	total       uint64
	connections int64 // sessions at one time, two descriptors each; of UDP one
	pipes       int   // per loop, two descriptors each
}

const (
	// spareDescriptors are kept back for logs, the admin API and name servers.
	spareDescriptors = 100
	maxPipesPerLoop  = 4096
	// descriptorCeiling keeps "unlimited" within what an int32 can count.
	descriptorCeiling = 1 << 30
)

// descriptorLimits shares the descriptors out. The Go runtime has raised the
// soft limit to the hard one already.
func descriptorLimits(workers int, cfg *config.Config) (descriptors, error) {
	var rl unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &rl); err != nil {
		return descriptors{}, fmt.Errorf("asking for the limit of open files: %w", err)
	}
	d := descriptors{total: rl.Cur}
	addresses := 0
	each := int64(1)
	for i := range cfg.Listeners {
		addresses += len(cfg.Listeners[i].Addresses)
		if cfg.Listeners[i].Network == listener.TCP {
			each = 2
		}
	}
	checked := 0 // servers, each with a probe in flight at worst
	for i := range cfg.Upstreams {
		checked += len(cfg.Upstreams[i].Servers) * len(cfg.Upstreams[i].Health)
	}
	left := int64(min(rl.Cur, descriptorCeiling)) - spareDescriptors - int64(min(checked, health.MaxProbes)) - int64(workers*(addresses+2))
	// A sixteenth for pipes: only sessions that stream to a slow reader hold
	// one for longer than a moment.
	if each > 1 {
		d.pipes = int(min(left/32/int64(workers), maxPipesPerLoop))
	}
	d.connections = (left - int64(2*d.pipes*workers)) / each
	if d.connections < 1 || d.pipes < 0 {
		return d, fmt.Errorf("the limit of open files is %d, too low for %d listening addresses on %d workers; raise LimitNOFILE= or ulimit -n",
			rl.Cur, addresses, workers)
	}
	if c := int64(cfg.Process.MaxConnections); c > 0 {
		d.connections = min(d.connections, c)
	}
	return d, nil
}

// allowedCPUs lists the CPUs that this process may run on.
func allowedCPUs() ([]int, error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, fmt.Errorf("asking for the CPUs this process may use: %w", err)
	}
	var cpus []int
	for i := range len(set) * 64 {
		if set.IsSet(i) {
			cpus = append(cpus, i)
		}
	}
	return cpus, nil
}

// dropPrivileges changes to the user of that name, "" for none, once all
// sockets are open, and hands the log files over, so that they can be opened
// again; handOver does the same for other files. The right to bind low ports is kept where the kernel
// allows that, so that a reload can add listeners.
func dropPrivileges(name string, handOver func(uid, gid int) error, logs ...string) error {
	if name == "" {
		return nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return fmt.Errorf("process.user: %w; create it with `useradd --system %s`, or name one that exists", err, name)
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	if err1 != nil || err2 != nil {
		return fmt.Errorf("process.user: %q has no numeric ids", name)
	}
	if uid == syscall.Getuid() && gid == syscall.Getgid() {
		return nil
	}
	for _, path := range logs {
		if fi, err := os.Stat(path); err == nil && fi.Mode().IsRegular() && logging.IsFile(path) {
			if err := os.Chown(path, uid, gid); err != nil {
				return fmt.Errorf("process.user: handing %s over to %q: %w", path, name, err)
			}
		}
	}
	if err := handOver(uid, gid); err != nil {
		return fmt.Errorf("process.user: handing files over to %q: %w", name, err)
	}
	// Not with cgo, as in a build with the race detector: threads of C are
	// unknown to the runtime, and the right is given up.
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1, 0)
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"setgroups", func() error { return syscall.Setgroups([]int{gid}) }},
		{"setgid", func() error { return syscall.Setgid(gid) }},
		{"setuid", func() error { return syscall.Setuid(uid) }},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("process.user: becoming %q: %s: %w; start as root, or leave process.user out", name, step.what, err)
		}
	}
	if errno == 0 {
		keepBinding()
	}
	return nil
}

// keepBinding gives up every capability that setuid has left but
// CAP_NET_BIND_SERVICE.
func keepBinding() {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{{Effective: 1 << unix.CAP_NET_BIND_SERVICE, Permitted: 1 << unix.CAP_NET_BIND_SERVICE}}
	// A failure leaves the process with less than it was to keep.
	_, _, _ = syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&data)), 0)
	runtime.KeepAlive(&hdr)
	runtime.KeepAlive(&data)
}
