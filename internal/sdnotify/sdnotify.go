// Package sdnotify talks to systemd: it says what the daemon is doing
// (sd_notify(3)), keeps the watchdog fed as long as the daemon is alive, and
// takes over the sockets of socket units (sd_listen_fds(3)).
//
// Without systemd, that is without its environment variables, everything here
// does nothing and fails at nothing.
package sdnotify

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
)

// States for [Notify].
const (
	Ready    = daemon.SdNotifyReady    // started, or the reload is over, whether it succeeded or not
	Stopping = daemon.SdNotifyStopping // draining
)

// Notify sends a state, such as [Ready], [Reloading]() or [Status](text), or
// several, separated by newlines.
func Notify(state string) error {
	if _, err := daemon.SdNotify(false, state); err != nil {
		return fmt.Errorf("telling systemd %q: %w", firstLine(state), err)
	}
	return nil
}

// Reloading is the state at the start of a reload. Type=notify-reload matches
// it to its request by the time stamp, so it has to be made when it is sent.
func Reloading() string {
	return daemon.SdNotifyReloading + "\n" + daemon.SdNotifyMonotonicUsec()
}

// Status is the state that sets the line shown by "systemctl status".
func Status(text string) string {
	return "STATUS=" + firstLine(text)
}

// firstLine keeps a text from adding assignments of its own.
func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return s
}

// StartWatchdog tells systemd twice per WatchdogSec= that the daemon is alive,
// but only if alive says so. An alive that hangs counts as dead: systemd then
// ends and restarts the daemon. It does nothing where the unit has no
// watchdog. The returned function stops it; from then on systemd expects
// nothing only if the daemon has said that it is stopping.
func StartWatchdog(alive func() bool) (stop func()) {
	period, err := daemon.SdWatchdogEnabled(false)
	if err != nil || period <= 0 {
		return func() {}
	}
	done := make(chan struct{})
	go func() {
		// Never zero, as NewTicker would panic: WATCHDOG_USEC may say 1.
		t := time.NewTicker(max(period/2, time.Microsecond))
		defer t.Stop()
		for {
			if alive() {
				// Nobody to tell: if systemd does not hear it, it acts.
				_ = Notify(daemon.SdNotifyWatchdog)
			}
			select {
			case <-t.C:
			case <-done:
				return
			}
		}
	}()
	return sync.OnceFunc(func() { close(done) })
}

// Sockets returns the sockets systemd has passed, by their
// FileDescriptorName=; several may share a name. They stay open and belong to
// this package: duplicate those you use. The environment is read and cleared
// at the first call, so that no child takes them for its own; later calls, as
// at a reload, return the same.
func Sockets() (map[string][]*os.File, error) {
	return sockets()
}

var sockets = sync.OnceValues(func() (map[string][]*os.File, error) {
	byName := make(map[string][]*os.File)
	for _, f := range activation.Files(true) {
		var st unix.Stat_t
		switch err := unix.Fstat(int(f.Fd()), &st); {
		case err != nil:
			return nil, fmt.Errorf("descriptor %d (%q), promised by LISTEN_FDS, is not open: %w; start edgeproxy directly from its unit, without a wrapper that closes descriptors", f.Fd(), f.Name(), err)
		case st.Mode&unix.S_IFMT != unix.S_IFSOCK:
			return nil, fmt.Errorf("descriptor %d (%q), passed by systemd, is not a socket; the unit may pass only ListenStream= sockets", f.Fd(), f.Name())
		}
		byName[f.Name()] = append(byName[f.Name()], f)
	}
	return byName, nil
})
