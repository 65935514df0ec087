package proc

import (
	"net"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestCPUOfThisProcess(t *testing.T) {
	t.Parallel()
	used := func() time.Duration {
		var ru unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &ru); err != nil {
			t.Fatal(err)
		}
		return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
	}
	before := used()
	got, err := CPU([]int{os.Getpid()})
	if err != nil {
		t.Fatal(err)
	}
	// A thread that runs on another CPU may be a tick behind.
	const tick = 20 * time.Millisecond
	if after := used(); got < before-tick || got > after+tick {
		t.Errorf("CPU clock %v, getrusage %v before and %v after", got, before, after)
	}
}

func TestAnotherProcess(t *testing.T) {
	t.Parallel()
	// A shell that has a child, and waits for it.
	cmd := exec.Command("sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; cat; :")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer in.Close()
	var pids []int
	for len(pids) < 2 { // until the shell has started cat
		if pids = Tree(cmd.Process.Pid); len(pids) == 0 || cmd.ProcessState != nil {
			t.Fatal("the shell has ended")
		}
	}
	if cpu, err := CPU(pids); err != nil || cpu <= 0 {
		t.Errorf("CPU %v, %v", cpu, err)
	}
	if memory, err := Memory(pids); err != nil || memory < 4096 {
		t.Errorf("memory %d, %v", memory, err)
	}
	if n, err := Descriptors(pids); err != nil || n < 6 {
		t.Errorf("%d descriptors, %v; want 3 of each at least", n, err)
	}
	if n, err := Sockets(pids); err != nil || n != 0 {
		t.Errorf("%d sockets, %v", n, err)
	}
	if !slices.Contains(Tree(os.Getpid()), pids[1]) {
		t.Errorf("%d is not among this process's descendants", pids[1])
	}
}

func TestSocketsAreCounted(t *testing.T) {
	t.Parallel()
	self := []int{os.Getpid()}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	// Other tests run beside; this one has a socket for certain.
	sockets, err := Sockets(self)
	if err != nil || sockets < 1 {
		t.Errorf("%d sockets, %v", sockets, err)
	}
	if all, err := Descriptors(self); err != nil || all <= 3 {
		t.Errorf("%d descriptors, %v", all, err)
	}
}

func TestGoneProcess(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	pids := []int{cmd.Process.Pid}
	if _, err := CPU(pids); err == nil {
		t.Error("CPU: no error")
	}
	if _, err := Memory(pids); err == nil {
		t.Error("Memory: no error")
	}
	if _, err := Descriptors(pids); err == nil {
		t.Error("Descriptors: no error")
	}
}

func TestMachine(t *testing.T) {
	t.Parallel()
	m, err := ReadMachine()
	if err != nil || m.Busy <= 0 {
		t.Errorf("%+v, %v", m, err)
	}
	if n, err := DescriptorLimit(); err != nil || n < 256 {
		t.Errorf("descriptor limit %d, %v", n, err)
	}
	if Kernel() == "" || CPUModel() == "" {
		t.Error("no kernel or CPU model")
	}
}
