package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

const (
	liveTick  = 300 * time.Millisecond // redrawing a terminal
	plainTick = 5 * time.Second        // a line in a file or pipe
)

// liveView prints what happens as it happens. On a terminal that is a line at
// the bottom, drawn again and again, with the log lines above it; anywhere
// else it is a line every few seconds.
type liveView struct {
	out  io.Writer
	logs *os.File // nil: not a terminal, the logs go their own way

	mu     sync.Mutex
	status string // on the screen now

	copying sync.WaitGroup
}

func newLiveView(out io.Writer, logs *os.File) *liveView {
	v := &liveView{out: out, logs: logs}
	if logs != nil {
		v.copying.Go(func() {
			lines := bufio.NewReader(logs)
			for {
				line, err := lines.ReadString('\n')
				v.print(line)
				if err != nil {
					return
				}
			}
		})
	}
	return v
}

// print writes whole lines, above the live line if there is one.
func (v *liveView) print(text string) {
	if text == "" {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.logs == nil {
		io.WriteString(v.out, text)
		return
	}
	io.WriteString(v.out, "\r\x1b[K"+text+v.status)
}

func (v *liveView) setStatus(s string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.logs == nil {
		fmt.Fprintln(v.out, s)
		return
	}
	// A line that wraps cannot be drawn over again.
	s = clip(s, int(width(v.out))-1)
	if s != v.status {
		v.status = s
		io.WriteString(v.out, "\r\x1b[K"+s)
	}
}

// watch asks the admin API again and again, as any monitoring would.
func (v *liveView) watch(ctx context.Context, admin string) {
	client, base, err := adminClient(admin)
	if err != nil {
		v.setStatus(err.Error())
		return
	}
	defer client.CloseIdleConnections()
	tick := plainTick
	if v.logs != nil {
		tick = liveTick
	}
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		c, err := scrape(ctx, client, base+"/metrics")
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			v.setStatus("metrics: " + err.Error())
		default:
			v.setStatus(c.String())
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// close prints the log lines that are still on their way, and clears the line.
// The daemon must have ended.
func (v *liveView) close() {
	if v.logs == nil {
		return
	}
	v.mu.Lock()
	v.status = ""
	io.WriteString(v.out, "\r\x1b[K")
	v.mu.Unlock()
	// Whoever holds the writing end open decides when reading ends; what was
	// written before now is there at once.
	v.logs.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	v.copying.Wait()
	v.logs.Close()
}

// clip shortens s to n columns.
func clip(s string, n int) string {
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	return string([]rune(s)[:max(0, n-1)]) + "…"
}

// String is the live line.
func (c counts) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "sessions %d active, %d in all", int64(c.active), int64(c.total))
	fmt.Fprintf(&b, " | in %s, out %s", byteSize(c.in), byteSize(c.out))
	if sum := c.in + c.out; c.spliced > 0 && sum > 0 {
		fmt.Fprintf(&b, ", %.0f%% spliced", 100*c.spliced/sum)
	}
	fmt.Fprintf(&b, " | %d of %d servers up", c.servers-len(c.down), c.servers)
	if len(c.down) > 0 {
		b.WriteString(", down: " + strings.Join(c.down, " "))
	}
	return b.String()
}

func byteSize(n float64) string {
	if n < 1000 {
		return fmt.Sprintf("%.0f B", n)
	}
	unit := ""
	for _, unit = range []string{"kB", "MB", "GB", "TB"} {
		if n /= 1000; n < 999.5 {
			break
		}
	}
	return fmt.Sprintf("%.3g %s", n, unit)
}
