//go:build !linux

package reactor

// edgeproxy needs epoll, splice, accept4 and SO_REUSEPORT as Linux ≥ 5.10 has them.
var _ = edgeproxy_runs_on_Linux_only
