package main

import (
	"context"
	"fmt"
	"time"

	"edgeproxy/internal/admin"
	"edgeproxy/internal/reactor"
	"edgeproxy/listener"
	"edgeproxy/upstream"
)

// The methods here implement [admin.Source].
var _ admin.Source = (*daemon)(nil)

func (d *daemon) State() admin.State { return admin.State{Phase: admin.Phase(d.state.Load())} }

func (d *daemon) Listeners() []listener.Stats { return d.manager.Stats() }

// Certificates implements [admin.Source].
func (d *daemon) Certificates() (all []admin.Certificate) {
	set := d.tls.Load()
	if set == nil {
		return nil
	}
	for _, c := range set.Contexts() {
		for _, s := range c.Certificates() {
			all = append(all, admin.Certificate{TLS: c.Name(), CertificateStatus: s})
		}
	}
	return all
}

func (d *daemon) Upstreams() []upstream.Stats {
	if s := d.upstreams.Load(); s != nil {
		return s.Stats()
	}
	return nil
}

func (d *daemon) Loops() []reactor.Stats {
	out := make([]reactor.Stats, len(d.loops))
	for i, l := range d.loops {
		out[i] = l.Stats()
	}
	return out
}

func (d *daemon) LastReload() (ok bool, success time.Time) {
	return d.reloadOK.Load(), time.Unix(0, d.reloadAt.Load())
}

func (d *daemon) AccessLogDropped() uint64 { return d.access.Dropped() }

func (d *daemon) Reload(context.Context) (string, error) {
	if err := d.reload(); err != nil {
		return "", err
	}
	c := d.config.Load()
	return fmt.Sprintf("reloaded: %d listeners, %d upstreams", len(c.Listeners), len(c.Upstreams)), nil
}
