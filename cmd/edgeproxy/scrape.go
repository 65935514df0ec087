package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// counts is the little that the live line tells, summed over all listeners.
type counts struct {
	active, total    float64
	in, out, spliced float64 // bytes
	servers          int
	down             []string // names
}

func scrape(ctx context.Context, client *http.Client, url string) (counts, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return counts{}, err
	}
	res, err := client.Do(req)
	if err != nil {
		return counts{}, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return counts{}, fmt.Errorf("%s: %s", url, res.Status)
	}
	return readCounts(res.Body)
}

// readCounts reads the Prometheus text format as far as the lines go that it
// needs. Label values with escaped quotes do not occur in those.
func readCounts(r io.Reader) (counts, error) {
	var c counts
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		series, value, ok := cutLast(lines.Text(), " ")
		if !ok || series[0] == '#' {
			continue
		}
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			continue
		}
		name, labels, _ := strings.Cut(series, "{")
		switch name {
		case "edgeproxy_sessions_active":
			c.active += v
		case "edgeproxy_sessions_total":
			c.total += v
		case "edgeproxy_bytes_total":
			if label(labels, "direction") == "in" {
				c.in += v
			} else {
				c.out += v
			}
		case "edgeproxy_spliced_bytes_total":
			c.spliced += v
		case "edgeproxy_server_up":
			c.servers++
			if v == 0 {
				c.down = append(c.down, label(labels, "server"))
			}
		}
	}
	slices.Sort(c.down)
	return c, lines.Err()
}

func label(labels, name string) string {
	for pair := range strings.SplitSeq(strings.TrimSuffix(labels, "}"), ",") {
		if v, ok := strings.CutPrefix(pair, name+"="); ok {
			return strings.Trim(v, `"`)
		}
	}
	return ""
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i <= 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}
