package peer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"edgeproxy/integration/bench/proc"
)

// Process is a program the harness has started, and stops by its process id.
type Process struct {
	Name string

	cmd     *exec.Cmd
	log     tail
	exited  chan struct{}
	exitErr error // after exited is closed
}

// tail keeps the end of what is written to it.
type tail struct {
	mu sync.Mutex
	b  []byte
}

const tailSize = 4 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if over := len(t.b) - tailSize; over > 0 {
		t.b = t.b[over:]
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.TrimSpace(t.b))
}

// StartProcess runs argv until [Process.Stop], or until the harness dies. stdin
// and stdout may be nil.
func StartProcess(name string, argv, env []string, stdin io.Reader, stdout io.Writer) (*Process, error) {
	p := &Process{Name: name, cmd: exec.Command(argv[0], argv[1:]...), exited: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stdin = stdin
	p.cmd.Stdout = stdout
	p.cmd.Stderr = &p.log
	if stdout == nil {
		p.cmd.Stdout = &p.log
	}
	// Pdeathsig: a harness that is killed leaves nothing behind. It is sent when
	// the thread that started the process ends, which Go does only to threads
	// that a goroutine has locked. Setpgid: Ctrl-C at the terminal is for the
	// harness, which then stops its processes in order.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	go func() {
		p.exitErr = p.cmd.Wait()
		close(p.exited)
	}()
	return p, nil
}

// PID is the id of the process itself.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// PIDs are the ids of the process and all its descendants.
func (p *Process) PIDs() []int { return proc.Tree(p.PID()) }

// Exited is closed when the process has ended.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// Failure describes a process that has ended by itself.
func (p *Process) Failure() error {
	return fmt.Errorf("%s ended: %v; it said:\n%s", p.Name, p.exitErr, p.log.String())
}

// Log is the end of what the process wrote to its standard error.
func (p *Process) Log() string { return p.log.String() }

// WaitReady calls try until it succeeds or the process ends.
func (p *Process) WaitReady(ctx context.Context, every time.Duration, try func() error) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		err := try()
		if err == nil {
			return nil
		}
		timer.Reset(every)
		select {
		case <-timer.C:
		case <-p.exited:
			return p.Failure()
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w; it said:\n%s", p.Name, errors.Join(context.Cause(ctx), err), p.log.String())
		}
	}
}

// Stop ends the process: SIGTERM, again after a second (to a proxy that drains
// it means now), SIGKILL to it and its descendants after three.
func (p *Process) Stop() {
	for range 3 {
		select {
		case <-p.exited:
			return
		default:
		}
		p.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-p.exited:
			return
		case <-time.After(time.Second):
		}
	}
	for _, pid := range p.PIDs() {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	<-p.exited
}
