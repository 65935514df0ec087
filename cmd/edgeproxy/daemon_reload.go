package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"go.uber.org/zap"

	"edgeproxy/config"
	"edgeproxy/internal/accesslog"
	"edgeproxy/internal/admin"
	"edgeproxy/internal/logging"
	"edgeproxy/internal/sdnotify"
	"edgeproxy/listener"
	"edgeproxy/tlsterm"
	"edgeproxy/upstream"
)

// transition is a configuration of which everything that can fail has been done.
type transition struct {
	d         *daemon
	cfg       *config.Config
	logs      *logging.Change
	access    *accesslog.Change // nil: unchanged
	admin     *admin.Change
	tls       *tlsterm.Set
	upstreams *upstream.Set
	listeners *listener.Plan
}

// prepare does all of a start or a reload that can fail. What runs goes on
// unchanged.
func (d *daemon) prepare(cfg *config.Config) (t *transition, err error) {
	t = &transition{d: d, cfg: cfg}
	defer func() {
		if err != nil {
			t.discard()
		}
	}()
	var errs [6]error
	t.logs, errs[0] = d.logger.Prepare(d.logOptions(cfg))
	if o := accesslog.Options(cfg.AccessLog); o != d.accessOpts {
		// Not otherwise: after privileges were dropped the file may be open
		// and yet not to be opened.
		t.access, errs[1] = d.access.Prepare(o)
	}
	t.admin, errs[2] = d.admin.Prepare(cfg.Admin.Address)
	t.tls, errs[3] = tlsterm.Prepare(d.tlsEnv, d.tls.Load(), cfg.TLS)
	t.upstreams, errs[4] = upstream.Prepare(d.upEnv, d.upstreams.Load(), cfg.Upstreams)
	if errs[3] == nil && errs[4] == nil {
		t.listeners, errs[5] = d.manager.Prepare(cfg.Listeners, t.upstreams.Group, t.tls.Context)
	}
	return t, errors.Join(errs[:]...)
}

func (t *transition) discard() {
	if t.logs != nil {
		t.logs.Discard()
	}
	if t.access != nil {
		t.access.Discard()
	}
	if t.admin != nil {
		t.admin.Discard()
	}
	if t.tls != nil {
		t.tls.Discard()
	}
	if t.listeners != nil {
		t.listeners.Discard()
	}
}

// commit puts the configuration into effect. It cannot fail.
func (t *transition) commit() {
	d := t.d
	t.logs.Commit()
	if t.access != nil {
		t.access.Commit()
		d.accessOpts = accesslog.Options(t.cfg.AccessLog)
	}
	if t.cfg.AccessLog.Output != "" {
		d.manager.SetAccessLog(d.access)
	} else {
		d.manager.SetAccessLog(nil)
	}
	oldTLS := d.tls.Load()
	t.tls.Commit(oldTLS)
	d.tls.Store(t.tls)
	// Upstreams first: a route must not lead to a group that is not checked.
	old := d.upstreams.Load()
	t.upstreams.Commit(old)
	d.upstreams.Store(t.upstreams)
	t.listeners.Commit()
	t.admin.Commit()
	d.config.Store(t.cfg)
}

// reload loads the configuration anew and puts it into effect; with any error
// the running one stays.
func (d *daemon) reload() error {
	d.reloading.Lock()
	defer d.reloading.Unlock()
	if admin.Phase(d.state.Load()) != admin.Running {
		return errors.New("the process is stopping")
	}
	began := time.Now()
	d.notify(sdnotify.Reloading())
	defer func() { d.notify(sdnotify.Ready, sdnotify.Status(d.summary())) }()
	cfg, diags := d.opts.load()
	var err error
	if diags.HasErrors() {
		lines := diags.Lines(100)
		for _, line := range lines {
			d.log.Error(line)
		}
		err = errors.New(strings.Join(lines, "\n"))
	} else {
		for _, line := range diags.Lines(20) {
			d.log.Warn(line)
		}
		var t *transition
		if t, err = d.prepare(cfg); err == nil {
			d.explainUnchanged(cfg)
			t.commit()
		}
	}
	if err != nil {
		d.reloadOK.Store(false)
		reason := zap.Error(err)
		if diags.HasErrors() {
			reason = zap.Int("errors", diags.Errors()) // each has its line above
		}
		d.log.Error("reload failed; the running configuration stays in force", reason)
		return err
	}
	d.reloadOK.Store(true)
	d.reloadAt.Store(time.Now().UnixNano())
	d.log.Info("reloaded", zap.Int("listeners", len(cfg.Listeners)), zap.Int("upstreams", len(cfg.Upstreams)), zap.Duration("took", time.Since(began)))
	return nil
}

// explainUnchanged names what only a restart changes, and changes what a
// reload can of the process block.
func (d *daemon) explainUnchanged(cfg *config.Config) {
	now := d.config.Load().Process
	for _, c := range []struct {
		name    string
		differs bool
		why     string
	}{
		{"workers", cfg.Process.Workers != now.Workers, "; another number of sockets on an address would have the kernel give UDP sessions to loops that do not know them"},
		{"pin_cpus", cfg.Process.PinCPUs != now.PinCPUs, ""},
		{"user", cfg.Process.User != now.User, ""},
		{"steering", cfg.Process.Steering != now.Steering, ""},
		{"kernel_tls", cfg.Process.KernelTLS != now.KernelTLS, ""},
	} {
		if c.differs {
			d.log.Warn(fmt.Sprintf("process.%s has changed: that is refused until edgeproxy is restarted%s", c.name, c.why))
		}
	}
	cfg.Process.Workers, cfg.Process.PinCPUs, cfg.Process.User = now.Workers, now.PinCPUs, now.User
	cfg.Process.Steering, cfg.Process.KernelTLS = now.Steering, now.KernelTLS
	if limits, err := descriptorLimits(len(d.loops), cfg); err == nil {
		d.manager.SetMaxConnections(limits.connections)
	}
}
