package tlsterm

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

// watch looks for renewed files until the store is closed. inotify tells of
// changes at once; where it cannot (network file systems, no watches left) a
// sweep that only asks for the files' times finds them later.
func (s *certStore) watch() {
	sweep := s.env.sweep
	w := &fileWatcher{}
	notify, err := fsnotify.NewBufferedWatcher(256)
	if err == nil {
		defer notify.Close()
		w.notify = notify
		w.aim(s.sources)
	} else {
		sweep = min(sweep, time.Second)
		s.event(func(e CertificateEvents) {
			e.CertificateWarning(s.name, "", fmt.Sprintf("files cannot be watched: %v; they are looked at every %v instead (sysctl fs.inotify.max_user_instances)", err, sweep))
		})
		notify = &fsnotify.Watcher{} // whose nil channels never speak
	}

	var todo dirty
	soon := time.NewTimer(0) // what changed between reading and watching
	defer soon.Stop()
	slow := time.NewTimer(sweep)
	defer slow.Stop()
	armed := true
	arm := func(d time.Duration) {
		if !armed {
			armed = true
			soon.Reset(d)
		}
	}
	pause := debounce
	todo.all = true
	for {
		var asked chan []error
		select {
		case asked = <-s.ask:
			todo.all = true
		case <-s.ctx.Done():
			return
		case e := <-notify.Events:
			if w.note(&todo, e) {
				arm(pause)
			}
			continue
		case <-notify.Errors: // above all: the kernel's queue ran over
			todo.all = true
			arm(pause)
			continue
		case <-slow.C:
			todo.all = true
			armed = false
		case <-soon.C:
			armed = false
		}
		began := time.Now()
		full := todo.all
		changed := s.scan(todo, began)
		todo = dirty{}
		if changed {
			s.stapling.changed()
		}
		if asked != nil {
			asked <- s.problems()
		}
		if w.notify != nil && (changed || full) {
			w.aim(s.sources)
		}
		if !s.pending.empty() {
			arm(settle + debounce)
		}
		// A store so large that a scan takes long is not to fill a CPU with scans.
		took := time.Since(began)
		pause = max(debounce, 2*took)
		slow.Reset(max(sweep, 50*took))
	}
}

// refresh looks at all files at once, as a reload wants it. The error joins
// what is wrong with them, whether that is new or not.
func (s *certStore) refresh() error {
	if !s.started.Load() {
		return nil // read a moment ago
	}
	answer := make(chan []error, 1)
	select {
	case s.ask <- answer:
	case <-s.ctx.Done():
		return nil
	}
	select {
	case errs := <-answer:
		return s.joined(errs)
	case <-s.ctx.Done():
		return nil
	}
}

// fileWatcher tells from inotify's events what has to be read again. It watches
// folders, never files: a file that is replaced is another one.
type fileWatcher struct {
	notify  *fsnotify.Watcher
	sources map[string][]*certSource // by the folder's real path
	entries map[string]bool          // real paths of links and files that decide what is read
}

// aim watches every folder that has a say in what the sources' paths lead to:
// the one a file lies in, and those of all symbolic links on the way.
func (w *fileWatcher) aim(sources []*certSource) {
	w.sources = make(map[string][]*certSource)
	w.entries = make(map[string]bool)
	see := func(entry string) { w.entries[entry] = true }
	for _, src := range sources {
		if src.dynamic != nil {
			continue
		}
		if src.dir != "" {
			if dir := follow(src.dir, see); dir != "" {
				w.sources[dir] = append(w.sources[dir], src)
			}
		}
		for _, sl := range src.slots {
			if src.dir != "" && !sl.linked {
				continue
			}
			follow(sl.certFile, see)
			if sl.keyFile != "" {
				follow(sl.keyFile, see)
			}
		}
	}
	dirs := make(map[string]bool)
	for dir := range w.sources {
		dirs[dir] = true
	}
	for entry := range w.entries {
		dirs[filepath.Dir(entry)] = true
	}
	for _, dir := range w.notify.WatchList() {
		if dirs[dir] {
			delete(dirs, dir)
		} else {
			w.notify.Remove(dir)
		}
	}
	for dir := range dirs {
		w.notify.Add(dir) // where it fails the sweep remains
	}
}

// note adds to todo what e is about, and reports whether it is anything.
func (w *fileWatcher) note(todo *dirty, e fsnotify.Event) bool {
	dir, base := filepath.Split(e.Name)
	relevant := false
	if stem, ok := stemOf(base); ok {
		for _, src := range w.sources[filepath.Clean(dir)] {
			todo.add(src, stem)
			relevant = true
		}
	}
	if relevant {
		return true
	}
	if w.entries[e.Name] || w.sources[e.Name] != nil {
		todo.all = true
		return true
	}
	return false
}

// follow goes to path as the kernel does, and calls see for every entry that
// decides where it leads: symbolic links, the last one, or the first one that
// is missing. It returns the real path, "" if there is none.
func follow(path string, see func(entry string)) string {
	const maxLinks = 40 // as Linux has it
	path, err := filepath.Abs(path)
	if err != nil {
		return ""
	}
	real, rest, links := "/", split(path), 0
	for len(rest) > 0 {
		if rest[0] == ".." {
			real, rest = filepath.Dir(real), rest[1:]
			continue
		}
		next := filepath.Join(real, rest[0])
		info, err := os.Lstat(next)
		if err != nil {
			see(next)
			return ""
		}
		if info.Mode()&fs.ModeSymlink != 0 {
			see(next)
			target, err := os.Readlink(next)
			if links++; err != nil || links > maxLinks {
				return ""
			}
			if filepath.IsAbs(target) {
				real = "/"
			}
			rest = append(split(target), rest[1:]...)
			continue
		}
		if len(rest) == 1 {
			see(next)
		}
		real, rest = next, rest[1:]
	}
	return real
}

func split(path string) []string {
	return strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
}
