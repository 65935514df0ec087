package main

import (
	"bytes"
	"fmt"
	"html"
	"math"
)

// scalingPlot draws CPU per request over the number of connections, a line for
// each proxy with the range of the rounds, as SVG. It is nil with fewer than two
// points.
func (r *results) scalingPlot() []byte {
	const (
		width, height                    = 720, 420
		left, right, top, bottom float64 = 60, 120, 40, 50
		plotWidth                        = width - left - right
		plotHeight                       = height - top - bottom
		firstPoint, lastPoint            = 16.0, 8000.0
	)
	type point struct {
		connections int
		spread
	}
	type line struct {
		name   string
		points []point
	}
	var lines []line
	highest, most := 0.0, 0
	for _, p := range r.Peers {
		l := line{name: p.Name}
		for _, n := range curvePoints {
			if s := spreadOf(r.series(keptScenario(n), p.Name, cpuPerRequest)); s.n > 0 {
				l.points = append(l.points, point{n, s})
				highest = max(highest, s.max)
			}
		}
		if len(l.points) > 0 {
			lines = append(lines, l)
			most = max(most, len(l.points))
		}
	}
	if most < 2 {
		return nil
	}
	step := 5.0
	for highest/step > 10 {
		step *= 2
	}
	ceiling := math.Ceil(highest/step) * step
	x := func(n int) float64 {
		return left + plotWidth*math.Log(float64(n)/firstPoint)/math.Log(lastPoint/firstPoint)
	}
	y := func(v float64) float64 { return top + plotHeight*(1-v/ceiling) }

	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n", width, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="white"/>`+"\n", width, height)
	fmt.Fprintf(&b, `<text x="%g" y="22" font-size="14">CPU per request (µs), 100 B → 1 KB, by connections; median and range of %d rounds</text>`+"\n", left, r.Rounds)
	for v := 0.0; v <= ceiling; v += step {
		fmt.Fprintf(&b, `<line x1="%g" y1="%.1f" x2="%g" y2="%.1f" stroke="#ddd"/><text x="%g" y="%.1f" text-anchor="end">%g</text>`+"\n",
			left, y(v), left+plotWidth, y(v), left-8, y(v)+4, v)
	}
	for _, n := range curvePoints {
		fmt.Fprintf(&b, `<line x1="%.1f" y1="%g" x2="%.1f" y2="%g" stroke="#eee"/><text x="%.1f" y="%g" text-anchor="middle">%d</text>`+"\n",
			x(n), top, x(n), top+plotHeight, x(n), top+plotHeight+18, n)
	}
	fmt.Fprintf(&b, `<text x="%g" y="%g" text-anchor="middle">connections</text>`+"\n", left+plotWidth/2, top+plotHeight+38)

	// Distinguishable with any colour vision (Okabe and Ito).
	colours := []string{"#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"}
	for i, l := range lines {
		colour := colours[i%len(colours)]
		fmt.Fprintf(&b, `<polyline fill="none" stroke="%s" stroke-width="2" points="`, colour)
		for _, p := range l.points {
			fmt.Fprintf(&b, "%.1f,%.1f ", x(p.connections), y(p.median))
		}
		b.WriteString("\"/>\n")
		for _, p := range l.points {
			// Moved apart a little, so that ranges do not hide each other.
			at := x(p.connections) + 2*float64(i) - float64(len(lines)-1)
			fmt.Fprintf(&b, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s"/><circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>`+"\n",
				at, y(p.min), at, y(p.max), colour, x(p.connections), y(p.median), colour)
		}
		fmt.Fprintf(&b, `<rect x="%g" y="%g" width="12" height="12" fill="%s"/><text x="%g" y="%g">%s</text>`+"\n",
			left+plotWidth+15, top+20*float64(i), colour, left+plotWidth+32, top+20*float64(i)+11, html.EscapeString(l.name))
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}
