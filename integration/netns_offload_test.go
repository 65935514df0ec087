package integration

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// withoutOffload is a cgroup in which the kernel knows neither UDP_SEGMENT nor
// UDP_GRO, as none before 4.18 and 5.0 does.
type withoutOffload struct {
	t       testing.TB
	dir     string
	refused *ebpf.Map
}

func newWithoutOffload(t testing.TB) *withoutOffload {
	t.Helper()
	root := ""
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); f[2] == "cgroup2" {
			root = f[1]
		}
	}
	if root == "" {
		missing(t, "a mounted cgroup2")
	}
	dir, err := os.MkdirTemp(root, "edgeproxy-test-")
	if errors.Is(err, os.ErrPermission) || errors.Is(err, syscall.EROFS) {
		missing(t, "a cgroup2 that may be written to")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // after the end of all processes in it
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	w := &withoutOffload{t: t, dir: dir}
	w.refused, err = ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if errors.Is(err, os.ErrPermission) {
		missing(t, "the right to load BPF programs (CAP_BPF)")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.refused.Close() })
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.CGroupSockopt, AttachType: ebpf.AttachCGroupSetsockopt, License: "MIT", Instructions: w.program(),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer prog.Close()
	l, err := link.AttachCgroup(link.CgroupOptions{Path: dir, Attach: ebpf.AttachCGroupSetsockopt, Program: prog})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return w
}

// program answers setsockopt(2) of the two options with ENOPROTOOPT and counts.
func (w *withoutOffload) program() asm.Instructions {
	const level, optname = 24, 28 // in struct bpf_sockopt
	return asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, level, asm.Word),
		asm.JNE.Imm(asm.R2, unix.SOL_UDP, "allow"),
		asm.LoadMem(asm.R2, asm.R1, optname, asm.Word),
		asm.JEq.Imm(asm.R2, unix.UDP_SEGMENT, "refuse"),
		asm.JEq.Imm(asm.R2, unix.UDP_GRO, "refuse"),
		asm.Mov.Imm(asm.R0, 1).WithSymbol("allow"),
		asm.Return(),
		asm.StoreImm(asm.RFP, -4, 0, asm.Word).WithSymbol("refuse"),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.LoadMapPtr(asm.R1, w.refused.FD()),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "deny"),
		asm.Mov.Imm(asm.R1, 1),
		asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R1, -int32(unix.ENOPROTOOPT)).WithSymbol("deny"),
		asm.FnSetRetval.Call(),
		asm.Mov.Imm(asm.R0, 0),
		asm.Return(),
	}
}

// start runs a process in the cgroup.
func (w *withoutOffload) start(n *namespace, cmd *exec.Cmd) error {
	dir, err := os.Open(w.dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
	return n.start(cmd)
}

func (w *withoutOffload) count() uint64 {
	w.t.Helper()
	var n [8]byte
	if err := w.refused.Lookup(uint32(0), &n); err != nil {
		w.t.Fatal(err)
	}
	return binary.NativeEndian.Uint64(n[:])
}

// A kernel that refuses UDP_GRO and UDP_SEGMENT costs speed, nothing else.
func TestNetnsKernelWithoutOffload(t *testing.T) {
	t.Parallel()
	h := newThreeHosts(t)
	w := newWithoutOffload(t)
	h.server.echo(server4+":7", "")
	p := Start(t, udpListener(`timeouts { idle = "2s" }`, "", []string{clientEdge4 + ":7"}, server4+":7"),
		WithStart(func(cmd *exec.Cmd) error { return w.start(h.edge, cmd) }))
	c := h.client.udp(client4)
	to := netip.MustParseAddrPort(clientEdge4 + ":7")
	for _, size := range []int{100, 1200, 1400} {
		if err := train(c, to, size, 40, size/2); err != nil {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
	if w.count() == 0 {
		t.Error("no option was refused")
	}
	if n := p.Metrics().Sum("edgeproxy_datagrams_dropped_total"); n != 0 {
		t.Errorf("%v datagrams dropped", n)
	}
	if group, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p.Pid())); err != nil || !strings.Contains(string(group), filepath.Base(w.dir)) {
		t.Errorf("the program runs in %s, %v", group, err)
	}
}
