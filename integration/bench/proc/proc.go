// Package proc measures processes from outside: what CPU time they used, what
// memory and descriptors they hold.
package proc

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Tree is pid and all its descendants: a master and its workers.
func Tree(pid int) []int {
	all := []int{pid}
	for i := 0; i < len(all); i++ {
		tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", all[i]))
		for _, t := range tasks {
			b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", all[i], t.Name()))
			for _, f := range strings.Fields(string(b)) {
				if child, err := strconv.Atoi(f); err == nil {
					all = append(all, child)
				}
			}
		}
	}
	return all
}

// CPU is the time the processes have run, threads that have ended included. It
// reads each process's CPU clock: nanoseconds, where /proc/PID/stat has ticks of
// 10 ms.
func CPU(pids []int) (time.Duration, error) {
	var sum time.Duration
	for _, pid := range pids {
		// clockid of another process: ~pid << 3 | CPUCLOCK_SCHED (linux/posix-timers_types.h).
		clock := int32(^uint32(pid)<<3 | 2)
		var ts unix.Timespec
		if err := unix.ClockGettime(clock, &ts); err != nil {
			return 0, fmt.Errorf("CPU clock of process %d: %w", pid, err)
		}
		sum += time.Duration(ts.Nano())
	}
	return sum, nil
}

// Memory is the proportional set size of the processes in bytes: what would be
// freed if they ended, with a fair share of what they share with others.
func Memory(pids []int) (int64, error) {
	var sum int64
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			return 0, err
		}
		kb, err := field(b, "Pss:")
		if err != nil {
			return 0, fmt.Errorf("process %d: %w", pid, err)
		}
		sum += kb << 10
	}
	return sum, nil
}

// Descriptors is how many file descriptors the processes hold.
func Descriptors(pids []int) (int, error) {
	sum := 0
	for _, pid := range pids {
		// Linux 6.2 gives the number as the folder's size; before, it is zero.
		if info, err := os.Stat(fmt.Sprintf("/proc/%d/fd", pid)); err == nil && info.Size() > 0 {
			sum += int(info.Size())
			continue
		}
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			return 0, err
		}
		sum += len(entries)
	}
	return sum, nil
}

// Sockets is how many of the descriptors are sockets.
func Sockets(pids []int) (int, error) {
	sum := 0
	for _, pid := range pids {
		dir := fmt.Sprintf("/proc/%d/fd/", pid)
		entries, err := os.ReadDir(dir)
		if err != nil {
			return 0, err
		}
		for _, e := range entries {
			// One that was closed in between has no target.
			if to, err := os.Readlink(dir + e.Name()); err == nil && strings.HasPrefix(to, "socket:") {
				sum++
			}
		}
	}
	return sum, nil
}

// DescriptorLimit is how many descriptors a process started from here may have,
// if it raises its soft limit to the hard one.
func DescriptorLimit() (int, error) {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return 0, err
	}
	return int(min(l.Max, 1<<20)), nil
}

// Machine is the CPU time of all CPUs together since boot, in ticks of 10 ms.
type Machine struct {
	Busy, Stolen time.Duration
}

// ReadMachine reads /proc/stat.
func ReadMachine() (Machine, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return Machine{}, err
	}
	line, _, _ := bytes.Cut(b, []byte("\n"))
	fields := strings.Fields(string(line))
	if len(fields) < 9 {
		return Machine{}, errors.New("/proc/stat: first line is short")
	}
	var ticks [9]int64
	for i := range ticks[1:] {
		if ticks[i+1], err = strconv.ParseInt(fields[i+1], 10, 64); err != nil {
			return Machine{}, fmt.Errorf("/proc/stat: %w", err)
		}
	}
	const tick = 10 * time.Millisecond // USER_HZ is 100 on every architecture Go knows
	user, nice, system, irq, softirq, steal := ticks[1], ticks[2], ticks[3], ticks[6], ticks[7], ticks[8]
	return Machine{
		Busy:   time.Duration(user+nice+system+irq+softirq) * tick,
		Stolen: time.Duration(steal) * tick,
	}, nil
}

// field finds "name   value kB" in a /proc file.
func field(b []byte, name string) (int64, error) {
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			return strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
		}
	}
	return 0, fmt.Errorf("no %s", name)
}

// CPUModel is what /proc/cpuinfo calls the first CPU.
func CPUModel() string {
	b, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(b)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}

// Kernel is the kernel's release.
func Kernel() string {
	return Sysctl("kernel/osrelease")
}

// Sysctl is a setting of the kernel, or "unknown".
func Sysctl(name string) string {
	b, err := os.ReadFile("/proc/sys/" + name)
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(b))
}
