package logging

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// IsFile reports whether an output is a file that can be rotated, rather than
// one of the two standard streams.
func IsFile(output string) bool {
	switch output {
	case "", "stderr", "/dev/stderr", "stdout", "/dev/stdout":
		return false
	}
	return true
}

// Open opens an output for appending: "stderr", "stdout", or a file's path,
// which is created with mode 0640 if need be. An empty output is stderr.
//
// A standard stream is duplicated: a write to descriptor 1 or 2 that finds the
// reader gone (the container runtime's or a pipe's log collector died) makes
// Go's runtime end the process; on another number it is an ordinary EPIPE.
func Open(output string) (*os.File, error) {
	if IsFile(output) {
		// O_NONBLOCK: a FIFO without a reader is an error now, rather than a
		// start or reload that hangs. Regular files do not care.
		f, err := os.OpenFile(output, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NONBLOCK, 0o640)
		if err != nil {
			return nil, fmt.Errorf("opening %s: %w", output, hint(output, err))
		}
		return f, nil
	}
	std := os.Stderr
	if output == "stdout" || output == "/dev/stdout" {
		std = os.Stdout
	}
	fd, err := unix.FcntlInt(std.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", std.Name(), err)
	}
	return os.NewFile(uintptr(fd), std.Name()), nil
}

// hint replaces what the kernel says by what to do about it.
func hint(path string, err error) error {
	var advice string
	switch {
	case errors.Is(err, fs.ErrNotExist):
		advice = fmt.Sprintf("; create the directory %s, writable for the user edgeproxy runs as", filepath.Dir(path))
	case errors.Is(err, fs.ErrPermission):
		advice = "; make the file, or its directory if it is new, writable for the user edgeproxy runs as"
	case errors.Is(err, unix.EISDIR):
		advice = "; name a file in it"
	case errors.Is(err, unix.EROFS):
		advice = "; choose another place, or allow it with ReadWritePaths= in the systemd unit"
	case errors.Is(err, unix.ENXIO):
		advice = "; it is a FIFO that nobody reads or a socket: start its reader first, or write \"stderr\""
	}
	// The path is in the message already.
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		err = pe.Err
	}
	return fmt.Errorf("%w%s", err, advice)
}
