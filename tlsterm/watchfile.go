package tlsterm

import "time"

// watchInterval is how often files of ticket keys and revocation lists are
// looked at. That is one stat each: cheap enough for a few files, and unlike
// notifications it works with all file systems and all ways to replace a file.
const watchInterval = 400 * time.Millisecond

// watchedFile is read anew when it changes.
type watchedFile struct {
	name    string
	reload  func() (changed bool, err error) // with an error what was read before stays in use
	loaded  func()
	refused func(error)

	state    fileState
	readAt   time.Time
	failing  bool   // the last reading
	reported string // the error that was told last
}

// poll looks whether the file has changed. An error is told only if it is still
// there at the next look, since there are writers that do not replace files
// atomically.
func (f *watchedFile) poll(now time.Time) {
	state := statFile(f.name)
	if !f.failing && state.same(f.state) && f.state.settledSince(f.readAt) {
		return
	}
	if f.failing && f.reported != "" && state.same(f.state) && f.state.settledSince(f.readAt) {
		return // it is as it was when that was told
	}
	f.state, f.readAt = state, now
	changed, err := f.reload()
	switch {
	case err == nil:
		if changed || f.reported != "" {
			f.loaded()
		}
		f.failing, f.reported = false, ""
	case !f.failing:
		f.failing = true
	case f.reported != err.Error():
		f.reported = err.Error()
		f.refused(err)
	}
}
