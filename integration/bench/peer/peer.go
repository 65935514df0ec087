// Package peer knows the proxies that are compared: where they are found, how
// they are configured alike, how they are started and stopped.
package peer

import (
	"embed"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"text/template"
)

//go:embed templates
var templates embed.FS

// Kind is how one proxy program is run.
type Kind struct {
	Template string   // of its configuration, under templates
	Install  string   // what to do when it is missing
	Programs []string // where it is looked for, in turn
	Run      func(program, config string) []string
	Check    func(program, config string) []string // reads the configuration and ends; nil: it cannot
	Version  []string
	// Descriptors of one session; 0: 2.
	Descriptors int
	// BulkListener: bulk scenarios have a listener of their own, configured for
	// them; TLSBulkListener: those with TLS do.
	BulkListener, TLSBulkListener bool
	// Datagrams: it relays UDP.
	Datagrams bool
}

// The kinds. Additional binaries of edgeproxy are of kind Edgeproxy.
var (
	Edgeproxy = &Kind{
		Template: "edgeproxy.hcl.tmpl",
		Install:  "go build -o bin/edgeproxy ./cmd/edgeproxy",
		Programs: []string{"bin/edgeproxy"},
		Run:      func(program, config string) []string { return []string{program, "run", "-c", config} },
		Check:    func(program, config string) []string { return []string{program, "check", "-c", config} },
		Version:  []string{"version"},

		Datagrams: true,
	}
	HAProxy = &Kind{
		Template: "haproxy.cfg.tmpl",
		Install:  "apt-get install haproxy",
		Programs: []string{"haproxy", "/usr/sbin/haproxy"},
		// -db: in the foreground, one process.
		Run:     func(program, config string) []string { return []string{program, "-db", "-f", config} },
		Check:   func(program, config string) []string { return []string{program, "-c", "-f", config} },
		Version: []string{"-v"},

		BulkListener:    true,
		TLSBulkListener: true,
	}
	Nginx = &Kind{
		Template: "nginx.conf.tmpl",
		Install:  "apt-get install nginx libnginx-mod-stream",
		Programs: []string{"nginx", "/usr/sbin/nginx"},
		// -e: before it has read error_log it would open the system's log file.
		Run: func(program, config string) []string {
			return []string{program, "-e", "stderr", "-p", filepath.Dir(config), "-c", config}
		},
		Check: func(program, config string) []string {
			return []string{program, "-e", "stderr", "-p", filepath.Dir(config), "-c", config, "-t", "-q"}
		},
		Version: []string{"-v"},

		TLSBulkListener: true,
		Datagrams:       true,
	}
	// IOCopy is a sub-command of the harness itself. It holds two pipes in each
	// session for as long as it lasts, without TLS. Over UDP it has a goroutine
	// for each session.
	IOCopy = &Kind{
		Template: "iocopy.conf.tmpl",
		Run:      func(program, config string) []string { return []string{program, "iocopy", config} },

		Descriptors: 6,
		Datagrams:   true,
	}
	// Direct is no proxy at all: the client speaks to the backend.
	Direct = &Kind{Datagrams: true}
)

// Peer is one of the compared programs.
type Peer struct {
	Name    string
	Kind    *Kind
	Program string
	module  string // nginx: the stream module to load
}

// Find looks for the program of a peer. program may name it; else it is found
// where its kind usually is.
func Find(name string, kind *Kind, program string) (*Peer, error) {
	p := &Peer{Name: name, Kind: kind, Program: program}
	switch kind {
	case Direct:
		return p, nil
	case IOCopy:
		self, err := os.Executable()
		p.Program = self
		return p, err
	}
	looked := kind.Programs
	if program != "" {
		looked = []string{program}
	}
	for _, candidate := range looked {
		found, err := exec.LookPath(candidate)
		if err != nil {
			continue
		}
		if p.Program, err = filepath.Abs(found); err != nil {
			return nil, err
		}
		if kind == Nginx {
			return p, p.findModule()
		}
		return p, nil
	}
	return nil, fmt.Errorf("%s is missing (looked for %s); install with: %s; or leave it out with -peers",
		name, strings.Join(looked, ", "), kind.Install)
}

// findModule finds nginx's stream module, unless it is built in.
func (p *Peer) findModule() error {
	out, err := exec.Command(p.Program, "-V").CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s -V: %w", p.Program, err)
	}
	var dirs []string
	for flag := range strings.FieldsSeq(string(out)) {
		if flag == "--with-stream" {
			return nil
		}
		if dir, ok := strings.CutPrefix(flag, "--modules-path="); ok {
			dirs = append(dirs, dir)
		}
	}
	for _, dir := range append(dirs, "/usr/lib/nginx/modules", "/usr/lib64/nginx/modules") {
		path := filepath.Join(dir, "ngx_stream_module.so")
		if _, err := os.Stat(path); err == nil {
			p.module = path
			return nil
		}
	}
	return fmt.Errorf("nginx has no stream module; install with: %s; or leave it out with -peers", p.Kind.Install)
}

// Version is the first line the program says about itself.
func (p *Peer) Version() string {
	if len(p.Kind.Version) == 0 {
		return ""
	}
	out, err := exec.Command(p.Program, p.Kind.Version...).CombinedOutput()
	if err != nil {
		return "unknown: " + err.Error()
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return line
}

// Setup is what a peer is to do.
type Setup struct {
	Workers int
	Listen  []string // addresses
	Servers []string
	Admin   string
	Bulk    string // the address of the bulk listener, where the kind has one

	Certificate *Certificate // nil: Listen and Bulk speak no TLS
	Named       string       // address that takes only TLS clients that ask for Name, which are passed through; "": none
	Name        string

	Datagrams bool // Listen is UDP

	Descriptors int // a process may have
	Sessions    int // that fit into them
}

// WriteConfig writes the peer's configuration into dir and returns its file.
func (p *Peer) WriteConfig(dir string, s Setup) (string, error) {
	name := strings.TrimSuffix(p.Kind.Template, ".tmpl")
	t, err := template.ParseFS(templates, "templates/"+p.Kind.Template)
	if err != nil {
		return "", err
	}
	who := "nobody"
	if u, err := user.Current(); err == nil {
		who = u.Username
	}
	f, err := os.Create(filepath.Join(dir, name))
	if err != nil {
		return "", err
	}
	defer f.Close()
	return f.Name(), t.Execute(f, struct {
		Setup
		Dir, Module, User string
	}{s, dir, p.module, who})
}
