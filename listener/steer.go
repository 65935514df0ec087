package listener

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Steering gives each new connection to the loop that has the fewest, before
// it is accepted. Without it the kernel's hash of the addresses decides, which
// is even only in the long run.
//
// One BPF program serves all addresses of the process: the kernel runs it when
// a SYN arrives at a group of SO_REUSEPORT sockets, and takes its answer as the
// number of the socket within the group. That is the number of the loop, as
// [openTCP] listens in the order of the loops. A number that the group does
// not have, such as while it is being closed, falls back to the hash.
//
// The program is of the type socket filter, not SK_REUSEPORT, which would need
// CAP_NET_ADMIN besides CAP_BPF, and a map of sockets and so a program for
// every address. Once loaded it is attached without any privilege, so that
// listeners can be added after privileges have been dropped.
type Steering struct {
	program *ebpf.Program
	lanes   []lane
}

// lane is what the program and one loop know of each other, in memory that the
// kernel and the process share. The loop's load, in sessions, is steered −
// released. As the program counts what it sends itself, connections that are
// still in a handshake or in an accept queue weigh as much as those that are
// accepted: a burst between two turns of a loop is spread as well.
type lane struct {
	steered  atomic.Int64 // only the program adds
	released atomic.Int64 // only the loop stores
	_        [laneSize - 16]byte
}

const laneSize = 64 // bytes; the cache line that a loop and the program share

// NewSteering loads the program for so many loops, at most 1024.
func NewSteering(loops int) (*Steering, error) {
	m, err := ebpf.NewMap(&ebpf.MapSpec{
		Type: ebpf.Array, KeySize: 4, ValueSize: laneSize, MaxEntries: uint32(loops), Flags: unix.BPF_F_MMAPABLE,
	})
	if err != nil {
		return nil, explainBPF(err)
	}
	defer m.Close() // the program and the mapping hold it
	p, err := ebpf.NewProgramWithOptions(&ebpf.ProgramSpec{
		Type: ebpf.SocketFilter, Instructions: steerProgram(m.FD(), loops), License: "Apache-2.0",
	}, ebpf.ProgramOptions{LogDisabled: true})
	if err != nil {
		return nil, explainBPF(err)
	}
	mem, err := unix.Mmap(m.FD(), 0, loops*laneSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err == nil {
		if err = tryAttach(p.FD()); err != nil {
			unix.Munmap(mem)
		}
	}
	if err != nil {
		p.Close()
		return nil, explainBPF(err)
	}
	return &Steering{program: p, lanes: unsafe.Slice((*lane)(unsafe.Pointer(&mem[0])), loops)}, nil
}

// Close gives up the program's descriptor. Sockets that have the program keep
// it, and the loops their memory, until they are closed themselves.
func (s *Steering) Close() error {
	if s == nil {
		return nil
	}
	return s.program.Close()
}

// attach has the program choose among the sockets of one address, which listen.
func (s *Steering) attach(sock *socket) {
	if s == nil || sock.shared {
		return
	}
	sock.steered = setProgram(sock.fds[0], s.program.FD()) == nil
}

func setProgram(sock, program int) error {
	return os.NewSyscallError("setsockopt", unix.SetsockoptInt(sock, unix.SOL_SOCKET, unix.SO_ATTACH_REUSEPORT_EBPF, program))
}

// tryAttach finds out whether the program can be attached, so that the start
// tells if not. What works for one socket works for all.
func tryAttach(program int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	return setProgram(fd, program)
}

// lane is the loop's.
func (s *Steering) lane(loop int) *lane {
	if s == nil {
		return new(lane)
	}
	return &s.lanes[loop]
}

// explainBPF says what to do about a program that the kernel does not take.
func explainBPF(err error) error {
	hint := ""
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		hint = "; run as root, or grant CAP_BPF, and allow bpf(2) where system calls are filtered " +
			"(systemd: AmbientCapabilities=CAP_BPF, SystemCallFilter=bpf); before Linux 5.11 also raise the limit of locked memory"
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EINVAL), errors.Is(err, ebpf.ErrNotSupported):
		hint = "; this kernel lacks what is needed (CONFIG_BPF_SYSCALL), or a filter of system calls denies bpf(2)"
	}
	return fmt.Errorf("loading and attaching a BPF program: %w%s", err, hint)
}
