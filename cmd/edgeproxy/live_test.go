package main

import (
	"io"
	"os"
	"strings"
	"testing"
)

// Log lines stand above the live line, whole and in order, also those that are
// still in the pipe when the daemon has ended.
func TestLiveViewOnTerminal(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	var out transcript
	v := newLiveView(&out, r)
	v.setStatus("one session")
	v.setStatus("one session") // nothing new, nothing drawn
	v.print("intro\n")
	v.setStatus(strings.Repeat("x", 100))
	io.WriteString(w, "first\nsecond\n")
	v.close()

	const erase = "\r\x1b[K"
	long := strings.Repeat("x", 78) + "…"
	got := out.String()
	if want := erase + "one session" + erase + "intro\none session" + erase + long; !strings.HasPrefix(got, want) {
		t.Errorf("got %q, want %q at the beginning", got, want)
	}
	// Clearing the line at the end and the last log lines come in any order.
	for _, want := range []string{erase + "first\n", erase + "second\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing in %q", want, got)
		}
	}
	if last := got[strings.LastIndex(got, erase)+len(erase):]; strings.HasSuffix(last, long) {
		t.Errorf("the live line is left on the screen: %q", got)
	}
}

func TestLiveViewElsewhere(t *testing.T) {
	t.Parallel()
	var out transcript
	v := newLiveView(&out, nil)
	v.print("intro\n")
	v.setStatus(strings.Repeat("x", 100))
	v.close()
	if want := "intro\n" + strings.Repeat("x", 100) + "\n"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}
