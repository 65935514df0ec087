package upstream

import (
	"reflect"

	"edgeproxy/health"
)

// watching is the active check of one server. It is touched by whoever
// commits a set, and by nobody else.
type watching struct {
	watch *health.Watch
	opts  []health.Options
}

// watch starts, changes or stops the checks of a server. Checks that stay as
// they are go on in their rhythm: a reload causes no burst of probes.
func (s *Server) watch(env *Env, opts []health.Options) {
	if s.watching != nil && reflect.DeepEqual(s.watching.opts, opts) {
		return
	}
	known := health.Unknown
	if s.watching != nil {
		known = health.Up
		if !s.up.Load() {
			known = health.Down
		}
	}
	s.unwatch()
	if len(opts) == 0 {
		s.checkErr.Store(nil)
		s.setUp(env, true, nil)
		return
	}
	s.watching = &watching{opts: opts}
	s.watching.watch = env.Checks.Add(opts, s.target, known, func(r health.Report) { s.report(env, r) })
}

func (s *Server) unwatch() {
	if s.watching != nil {
		s.watching.watch.Stop()
		s.watching = nil
	}
}

// target is where a probe goes; there is none while the host name has no address.
func (s *Server) target() (health.Target, bool) {
	e := s.endpoint.Load()
	if e == nil {
		return health.Target{}, false
	}
	t := health.Target{Network: "tcp", Address: e.text, Host: s.Address.String()}
	if s.Address.Unix != "" {
		t = health.Target{Network: "unix", Address: s.Address.Unix, Host: "localhost"}
	}
	return t, true
}

func (s *Server) report(env *Env, r health.Report) {
	if r.Err != nil {
		s.failed.Add(1)
		text := r.Err.Error()
		s.checkErr.Store(&text)
	} else {
		s.passed.Add(1)
		s.checkErr.Store(nil)
	}
	s.setUp(env, r.Up, r.Err)
}

// setUp takes over a verdict. Loops leave a server out from the very next
// pick on; the event comes after that.
func (s *Server) setUp(env *Env, up bool, err error) {
	if s.up.Swap(up) == up {
		return
	}
	if g := s.group.Load(); g != nil {
		g.changed()
	}
	env.Events.ServerChanged(s, up, err)
}
