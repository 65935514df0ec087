package config

import "time"

// root is what a whole configuration is decoded into.
type root struct {
	node
	cfg       Config
	admin     *adminNode
	tls       []*tlsNode
	listeners []*listenerNode
	upstreams []*upstreamNode
}

type adminNode struct {
	node
	admin *Admin
}

// rootBlock is a file. It is set by init, as messages about it look it up.
var rootBlock *block

func init() {
	rootBlock = &block{blocks: []*block{processBlock, logBlock, accessLogBlock, adminBlock, localsBlock, tlsBlock, tcpListenerBlock, udpListenerBlock, upstreamBlock}}
}

var localsBlock = &block{
	name: "locals", many: true,
	doc: "Values with names of your own, used as `local.NAME` in all files. They may refer to each other in any order.",
}

var processBlock = &block{
	name: "process",
	doc:  "The daemon itself.",
	open: in(func(r *root) *Process { return &r.cfg.Process }),
	attrs: []attr{
		{
			name: "workers", def: "the CPUs this process may use", example: "4",
			doc:     "Event loops. Each owns its sockets and sessions.",
			binding: to(whole(0, 1024), func(p *Process) *int { return &p.Workers }),
		},
		{
			name: "pin_cpus", def: "false", example: "true",
			doc:     "Each loop stays on one CPU.",
			binding: to(boolean(), func(p *Process) *bool { return &p.PinCPUs }),
		},
		{
			name: "max_connections", def: "what the descriptor limit allows", example: "200000",
			doc:     "Sessions at one time, over all listeners. Accepting pauses while it is reached.",
			binding: to(whole(0, 1_000_000_000), func(p *Process) *int { return &p.MaxConnections }),
		},
		{
			name: "user", def: "no change", example: `"edgeproxy"`,
			doc:     "Privileges are dropped to this user after binding.",
			binding: to(userName(), func(p *Process) *string { return &p.User }),
		},
		{
			name: "steering", def: `"auto"`, example: `"auto"`,
			doc: "A BPF program gives each new connection to the loop that has the fewest, where the process may load one " +
				"(`CAP_BPF`, or root). With `off`, and without the right, the kernel's hash of the addresses decides.",
			binding: to(words("auto", "off"), func(p *Process) *string { return &p.Steering }),
		},
		{
			name: "kernel_tls", def: `"off"`, example: `"off"`,
			doc: "With `auto` the kernel encrypts and decrypts (kTLS), where it can renew keys and passes a probe at start; " +
				"what it cannot do is done as without it. See [engines](tls.md#engines).",
			binding: to(words("off", "auto"), func(p *Process) *string { return &p.KernelTLS }),
		},
		{
			name: "shutdown_timeout", def: `"30s"`, example: `"30s"`,
			doc:     "From SIGTERM until sessions that still live are closed with `drained`.",
			binding: to(duration(time.Millisecond, 30*24*time.Hour, false), func(p *Process) *time.Duration { return &p.ShutdownTimeout }),
		},
	},
}

var logBlock = &block{
	name: "log",
	doc:  "The program's own messages.",
	open: in(func(r *root) *Log { return &r.cfg.Log }),
	attrs: []attr{
		{
			name: "level", def: `"info"`, example: `"info"`,
			doc:     "Messages below this level are left out.",
			binding: to(words("debug", "info", "warn", "error"), func(l *Log) *string { return &l.Level }),
		},
		{
			name: "format", def: `"json"`, example: `"json"`,
			doc:     "One JSON object per line, or columns for people.",
			binding: to(words("json", "console"), func(l *Log) *string { return &l.Format }),
		},
		{
			name: "output", def: `"stderr"`, example: `"stderr"`,
			doc:     "Where they go. A file is opened again on SIGUSR1.",
			binding: to(outputPath(), func(l *Log) *string { return &l.Output }),
		},
	},
}

var accessLogBlock = &block{
	name: "access_log",
	doc:  "One line for each session, at its end. Without this block there is none.",
	open: in(func(r *root) *AccessLog { return &r.cfg.AccessLog }),
	attrs: []attr{
		{
			name: "output", required: true, example: `"/var/log/edgeproxy/access.log"`,
			doc:     "Where the lines go. A file is opened again on SIGUSR1.",
			binding: to(outputPath(), func(l *AccessLog) *string { return &l.Output }),
		},
		{
			name: "format", def: `"json"`, example: `"json"`,
			doc:     "One JSON object per line, or columns for people.",
			binding: to(words("json", "console"), func(l *AccessLog) *string { return &l.Format }),
		},
	},
}

var adminBlock = &block{
	name: "admin",
	doc:  "The admin server: health of the proxy itself, metrics. Without this block there is none.",
	open: in(func(r *root) *adminNode {
		r.admin = &adminNode{admin: &r.cfg.Admin}
		return r.admin
	}),
	attrs: []attr{{
		name: "address", required: true, example: `"127.0.0.1:9901"`,
		doc:     "Where it listens. It asks nobody who they are: keep it on loopback or a unix socket.",
		binding: to(adminAddress(), func(a *adminNode) *string { return &a.admin.Address }),
	}},
}
