package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"edgeproxy/config"
	"edgeproxy/internal/admin"
	"edgeproxy/internal/sdnotify"
)

// daemonOptions are the run command's.
type daemonOptions struct {
	configPath string
	source     func() (*config.Config, *config.Diagnostics) // overrides configPath
	logLevel   string                                       // overrides log.level
	pidFile    string
	ready      func(d *daemon) // called once sessions are accepted
	stderr     io.Writer       // for what goes wrong before there is a log; nil: os.Stderr
}

func (o *daemonOptions) load() (*config.Config, *config.Diagnostics) {
	if o.source != nil {
		return o.source()
	}
	return config.Load(o.configPath)
}

// runDaemon runs the proxy until it is told to stop or ctx is done, and until
// its sessions have ended or shutdown_timeout is over.
func runDaemon(ctx context.Context, o daemonOptions) error {
	stderr := o.stderr
	if stderr == nil {
		stderr = os.Stderr
	}
	// From the first moment: a signal that comes during the start waits.
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGHUP, unix.SIGUSR1, unix.SIGTERM, unix.SIGINT)
	defer signal.Stop(signals)

	cfg, diags := o.load()
	if diags.HasErrors() {
		_ = diags.Write(stderr, isTerminal(stderr), 0)
		return errReported
	}
	d, err := newDaemon(o, cfg)
	if err != nil {
		return err
	}
	for _, line := range diags.Lines(20) {
		d.log.Warn(line)
	}
	if err := d.start(cfg); err != nil {
		d.log.Error("not started", zap.Error(err))
		d.close()
		if cfg.Log.Output != "" && cfg.Log.Output != "stderr" {
			return err // nobody looks into a file for the reason of a failed start
		}
		return errReported
	}
	if o.ready != nil {
		o.ready(d)
	}
	d.serve(ctx, signals)
	return d.shutdown(signals)
}

// serve handles signals until one says to stop.
func (d *daemon) serve(ctx context.Context, signals <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case sig := <-signals:
			switch sig {
			case unix.SIGHUP:
				_ = d.reload() // logged there
			case unix.SIGUSR1:
				d.reopenLogs()
			default:
				d.log.Info("stopping", zap.Stringer("signal", sig))
				return
			}
		}
	}
}

// shutdown drains and takes everything down. A second SIGTERM or SIGINT ends
// the wait for sessions.
func (d *daemon) shutdown(signals <-chan os.Signal) error {
	d.reloading.Lock() // a reload under way comes to its end; none begins any more
	defer d.reloading.Unlock()
	d.state.Store(uint32(admin.Draining))
	d.notify(sdnotify.Stopping)
	began := time.Now()
	d.manager.StopAccepting()
	limit := d.shutdownTimeout()
	d.log.Info("draining", zap.Int64("sessions", d.manager.Active()), zap.Duration("shutdown_timeout", limit))

	stop := make(chan struct{})
	drained := make(chan struct{})
	go func() {
		timeout := time.NewTimer(limit)
		defer timeout.Stop()
		for {
			select {
			case <-drained:
				return
			case <-timeout.C:
				close(stop)
				return
			case sig := <-signals:
				if sig == unix.SIGTERM || sig == unix.SIGINT {
					close(stop)
					return
				}
			}
		}
	}()
	cut := d.manager.Drain(stop)
	close(drained)
	d.log.Info("stopped", zap.Int64("sessions_cut", cut), zap.Duration("took", time.Since(began)))
	return d.close()
}

// reopenLogs follows a log rotation.
func (d *daemon) reopenLogs() {
	if err := errors.Join(d.logger.Reopen(), d.access.Reopen()); err != nil {
		d.log.Error("reopening the logs failed", zap.Error(err))
		return
	}
	d.log.Info("logs reopened")
}

// notify tells systemd, where there is one.
func (d *daemon) notify(state ...string) {
	if err := sdnotify.Notify(strings.Join(state, "\n")); err != nil {
		d.log.Warn("notifying systemd failed", zap.Error(err))
	}
}

// writePIDFile writes the process id, and returns what removes the file again.
func writePIDFile(path string) (remove func(), err error) {
	if path == "" {
		return func() {}, nil
	}
	pid := strconv.Itoa(os.Getpid())
	if err := os.WriteFile(path, []byte(pid+"\n"), 0o644); err != nil {
		return nil, fmt.Errorf("writing the pid file: %w; choose a folder that this user may write to, or leave --pid-file out", err)
	}
	return func() {
		// Another instance may have taken the file over meanwhile.
		if b, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(b)) == pid {
			os.Remove(path)
		}
	}, nil
}
