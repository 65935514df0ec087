package traffic

import (
	"bytes"
	"strings"
	"testing"
)

func TestRequestArrivesInPieces(t *testing.T) {
	t.Parallel()
	want := header{size: 100, close: true, offset: patternPeriod - 1, answer: 1 << 40}
	whole := appendRequest([]byte("before"), want)[len("before"):]
	if len(whole) != 100 {
		t.Fatalf("request has %d bytes", len(whole))
	}
	for n := range whole {
		if _, ok, err := parseRequest(whole[:n]); ok || err != nil {
			t.Fatalf("the first %d bytes: whole=%v, %v", n, ok, err)
		}
	}
	if got, ok, err := parseRequest(whole); got != want || !ok || err != nil {
		t.Errorf("got %+v, %v, %v; want %+v", got, ok, err, want)
	}
}

func TestBrokenRequests(t *testing.T) {
	t.Parallel()
	good := appendRequest(nil, header{size: 100, answer: 1024, offset: 5})
	changed := func(at int, to byte) []byte {
		b := bytes.Clone(good)
		b[at] = to
		return b
	}
	for name, tt := range map[string]struct {
		in   []byte
		want string
	}{
		"magic":        {changed(0, 1), "starts with"},
		"size, small":  {changed(7, 23), "size"},
		"size, large":  {changed(4, 1), "size"},
		"offset":       {changed(16, 1), "offset"},
		"filler":       {changed(60, good[60]+1), "other bytes"},
		"last byte":    {changed(99, good[99]+1), "other bytes"},
		"more than it": {append(bytes.Clone(good), 0), "after a request"},
	} {
		if _, ok, err := parseRequest(tt.in); ok || err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, %v; want an error with %q", name, ok, err, tt.want)
		}
	}
}

func TestPatternRepeatsSeamlessly(t *testing.T) {
	t.Parallel()
	for _, offset := range []uint32{0, 1, patternPeriod - 1} {
		p := patternAt(offset, 0)
		for _, step := range []int64{1, 4096, patternPeriod, 3*patternPeriod + 7} {
			q := patternAt(offset, step)
			if n := int64(len(p)) - step; n > 0 && !bytes.Equal(p[step:], q[:n]) {
				t.Errorf("offset %d: the pattern from byte %d differs from its continuation", offset, step)
			}
		}
	}
}
