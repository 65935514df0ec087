// Package version says which build of the program is running.
package version

import (
	"runtime"
	"runtime/debug"
	"strings"
)

// stamped is set by the linker:
//
//	go build -ldflags "-X edgeproxy/internal/version.stamped=$(git describe --tags --always --dirty)"
var stamped string

// String returns the version: the one the linker was given, or what the Go
// toolchain recorded of the module or the commit, or "devel".
func String() string {
	if stamped != "" {
		return stamped
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "devel"
	}
	return fromBuildInfo(info)
}

// Go returns the Go release the program was built with, without the experiments
// and distributor's marks that may follow it.
func Go() string {
	v, _, _ := strings.Cut(runtime.Version(), " ")
	return v
}

// Platform returns the operating system and architecture built for.
func Platform() string { return runtime.GOOS + "/" + runtime.GOARCH }

func fromBuildInfo(info *debug.BuildInfo) string {
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	var revision string
	dirty := false
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			revision = s.Value
		case "vcs.modified":
			dirty = s.Value == "true"
		}
	}
	if revision == "" {
		return "devel"
	}
	v := "devel-" + revision[:min(12, len(revision))]
	if dirty {
		v += "-dirty"
	}
	return v
}
