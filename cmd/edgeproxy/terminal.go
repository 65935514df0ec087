package main

import (
	"io"
	"os"

	"golang.org/x/term"
)

// isTerminal reports whether w is one that a person looks at and that
// understands escape sequences.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && os.Getenv("TERM") != "dumb" && term.IsTerminal(int(f.Fd()))
}

// width returns how many columns w has; 80 when it is no terminal.
func width(w io.Writer) uint {
	if f, ok := w.(*os.File); ok {
		if cols, _, err := term.GetSize(int(f.Fd())); err == nil && cols > 0 {
			return uint(cols)
		}
	}
	return 80
}

// wantsColor follows https://no-color.org.
func wantsColor(w io.Writer) bool {
	return isTerminal(w) && os.Getenv("NO_COLOR") == ""
}
