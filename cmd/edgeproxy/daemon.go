package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"edgeproxy/config"
	"edgeproxy/health"
	"edgeproxy/internal/accesslog"
	"edgeproxy/internal/admin"
	"edgeproxy/internal/logging"
	"edgeproxy/internal/reactor"
	"edgeproxy/internal/sdnotify"
	"edgeproxy/internal/version"
	"edgeproxy/listener"
	"edgeproxy/tlsterm"
	"edgeproxy/tlsterm/acme"
	"edgeproxy/upstream"
)

// stuckAfter is how long a loop may be silent before the watchdog calls the
// process dead. An idle loop turns once a second.
const stuckAfter = 10 * time.Second

// daemon is the running proxy: every part, put together.
type daemon struct {
	opts       daemonOptions
	logger     *logging.Logger
	log        *zap.Logger
	access     *accesslog.Logger
	accessOpts accesslog.Options // in force
	loops      []*reactor.Loop
	running    sync.WaitGroup // loops
	checks     *health.Scheduler
	upEnv      *upstream.Env
	handshakes *tlsterm.Pool
	tlsEnv     *tlsterm.Env
	steering   *listener.Steering // nil: the kernel spreads connections over the loops
	manager    *listener.Manager
	admin      *admin.Server
	limits     descriptors
	removePID  func()
	watchdog   func() // stops it
	memory     func() // likewise

	reloading sync.Mutex                    // held by whoever changes the configuration
	state     atomic.Uint32                 // admin.Phase
	config    atomic.Pointer[config.Config] // in force
	upstreams atomic.Pointer[upstream.Set]
	tls       atomic.Pointer[tlsterm.Set]
	reloadOK  atomic.Bool
	reloadAt  atomic.Int64 // unix ns of the last success

	acceptWarned atomic.Int64 // unix ns
}

// newDaemon opens the logs.
func newDaemon(o daemonOptions, cfg *config.Config) (*daemon, error) {
	d := &daemon{opts: o, removePID: func() {}, watchdog: func() {}, memory: func() {}}
	var err error
	if d.logger, err = logging.New(d.logOptions(cfg)); err != nil {
		return nil, err
	}
	d.log = d.logger.Zap()
	d.admin = admin.New(d, d.log)
	d.accessOpts = accesslog.Options(cfg.AccessLog)
	d.access, err = accesslog.New(d.accessOpts, func(err error) {
		d.log.Error("writing the access log failed", zap.Error(err))
	})
	if err != nil {
		d.logger.Close()
		return nil, err
	}
	return d, nil
}

func (d *daemon) logOptions(cfg *config.Config) logging.Options {
	o := logging.Options(cfg.Log)
	if d.opts.logLevel != "" {
		o.Level = d.opts.logLevel
	}
	return o
}

// start brings everything up. On failure the caller closes.
func (d *daemon) start(cfg *config.Config) (err error) {
	began := time.Now()
	if d.removePID, err = writePIDFile(d.opts.pidFile); err != nil {
		d.removePID = func() {}
		return err
	}
	if _, err := sdnotify.Sockets(); err != nil {
		return err
	}
	workers := cfg.Process.Workers
	if workers == 0 {
		workers = runtime.GOMAXPROCS(0) // as cgroups and affinity have it
	}
	// Loops keep their Ps while they wait for a moment (see package reactor):
	// goroutines need others.
	runtime.GOMAXPROCS(workers + max(2, min(4, runtime.NumCPU())))
	if err := d.startLoops(workers, cfg.Process.PinCPUs); err != nil {
		return err
	}
	if d.limits, err = descriptorLimits(workers, cfg); err != nil {
		return err
	}
	d.checks = health.NewScheduler()
	d.handshakes = tlsterm.NewPool(workers, d.kernelTLS(cfg))
	d.memory = keepMemory(d.handshakes)
	events := tlsEvents{d.log}
	d.tlsEnv = &tlsterm.Env{Events: events, ACME: acme.NewService(d.log)}
	d.upEnv = &upstream.Env{Loops: workers, Checks: d.checks, Events: d, TLS: events}
	d.steer(cfg)
	d.manager = listener.NewManager(listener.Env{
		Loops: d.loops, MaxConnections: d.limits.connections, MaxPipes: d.limits.pipes, Inherited: inherited, Events: d,
		Steering: d.steering, Handshakes: d.handshakes,
	})
	p, err := d.prepare(cfg)
	if err != nil {
		return err
	}
	if err := dropPrivileges(cfg.Process.User, d.tlsEnv.ACME.HandOver, cfg.Log.Output, cfg.AccessLog.Output); err != nil {
		p.discard()
		return err
	}
	dropBPF()
	p.commit()
	d.reloadOK.Store(true)
	d.reloadAt.Store(time.Now().UnixNano())
	d.state.Store(uint32(admin.Running))
	d.log.Info("started", zap.String("version", version.String()), zap.Int("workers", workers), zap.Strings("addresses", d.addresses(16)), zap.Int("listeners", len(cfg.Listeners)),
		zap.Int("upstreams", len(cfg.Upstreams)), zap.Int64("max_connections", d.limits.connections), zap.Uint64("descriptor_limit", d.limits.total),
		zap.Duration("took", time.Since(began)))
	if c := int64(cfg.Process.MaxConnections); c > d.limits.connections {
		d.log.Warn("process.max_connections is more than the limit of open files allows; raise LimitNOFILE= or ulimit -n",
			zap.Int64("max_connections", c), zap.Int64("in_force", d.limits.connections), zap.Uint64("descriptor_limit", d.limits.total))
	}
	d.watchdog = sdnotify.StartWatchdog(d.alive)
	d.notify(sdnotify.Ready, sdnotify.Status(d.summary()))
	return nil
}

// addresses lists the first n that sessions are accepted on, as really bound.
func (d *daemon) addresses(n int) (out []string) {
	for _, l := range d.manager.Stats() {
		for _, a := range l.Addresses {
			if len(out) == n {
				return append(out, "…")
			}
			out = append(out, a)
		}
	}
	return out
}

func (d *daemon) summary() string {
	c := d.config.Load()
	return fmt.Sprintf("%d listeners, %d upstreams", len(c.Listeners), len(c.Upstreams))
}

func (d *daemon) startLoops(n int, pin bool) error {
	cpus, err := allowedCPUs()
	if err != nil {
		return err
	}
	for i := range n {
		cpu := -1
		if pin {
			cpu = cpus[i%len(cpus)]
		}
		l, err := reactor.New(i, cpu)
		if err != nil {
			return fmt.Errorf("starting event loop %d: %w", i, err)
		}
		d.loops = append(d.loops, l)
		d.running.Go(l.Run)
	}
	return nil
}

// close takes down whatever start has brought up.
func (d *daemon) close() error {
	d.watchdog()
	d.memory()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	d.admin.Close(ctx)
	if s := d.upstreams.Load(); s != nil {
		s.Close()
	}
	if d.checks != nil {
		d.checks.Close()
	}
	if d.handshakes != nil {
		d.handshakes.Close() // before the loops, which are told of their ends
	}
	for _, l := range d.loops {
		l.Post(l.Stop)
	}
	d.running.Wait()
	if s := d.tls.Load(); s != nil {
		s.Close()
	}
	d.steering.Close()
	d.removePID()
	return errors.Join(d.access.Close(), d.logger.Close())
}

func (d *daemon) shutdownTimeout() time.Duration {
	if t := d.config.Load().Process.ShutdownTimeout; t > 0 {
		return t
	}
	return config.DefaultShutdownTimeout
}

// alive is the watchdog's question: do all loops turn?
func (d *daemon) alive() bool {
	for _, l := range d.loops {
		if l.LastBeat() > stuckAfter {
			return false
		}
	}
	return true
}

func inherited(name string) []*os.File {
	byName, err := sdnotify.Sockets()
	if err != nil {
		return nil // start has reported it
	}
	return byName[name]
}

// ServerChanged implements [upstream.Events].
func (d *daemon) ServerChanged(s *upstream.Server, up bool, err error) {
	fields := []zap.Field{zap.String("upstream", s.Upstream), zap.String("server", s.Name), zap.Stringer("address", s.Address)}
	if up {
		d.log.Info("server is up", fields...)
		return
	}
	d.log.Warn("server is down", append(fields, zap.Error(err), zap.Int64("sessions", s.Active()))...)
	if s.OnDown() == upstream.CloseSessions {
		d.manager.CloseServer(s, listener.ServerDown)
	}
}

// ServerResolved implements [upstream.Events].
func (d *daemon) ServerResolved(s *upstream.Server, addr string, err error) {
	fields := []zap.Field{zap.String("upstream", s.Upstream), zap.String("server", s.Name), zap.String("host", s.Address.Host)}
	if err != nil {
		d.log.Warn("looking up a server's host name failed; the address known before stays in use, if there is one", append(fields, zap.Error(err))...)
		return
	}
	d.log.Info("server has an address", append(fields, zap.String("address", addr))...)
}

// AcceptFailed implements [listener.Events]. Loops call it, so it only starts
// the logging, and at most once a second.
func (d *daemon) AcceptFailed(name string, errno unix.Errno) {
	now := time.Now().UnixNano()
	if last := d.acceptWarned.Load(); now-last < int64(time.Second) || !d.acceptWarned.CompareAndSwap(last, now) {
		return
	}
	go d.log.Warn("accepting is paused for a moment; raise the limit of open files or lower process.max_connections",
		zap.String("listener", name), zap.Error(errno))
}
