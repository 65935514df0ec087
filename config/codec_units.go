package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// duration takes low to high, zero for the default, and, if it can be
// switched off, "off" or anything negative.
func duration(low, high time.Duration, canBeOff bool) codec[time.Duration] {
	rng := shortDuration(low) + " to " + shortDuration(high)
	if canBeOff {
		rng += `, or "off"`
	}
	return codec[time.Duration]{typ: "a duration", rng: rng, read: func(v *value) (time.Duration, bool) {
		s, ok := v.text(-1, v.v)
		if !ok {
			return 0, false
		}
		if canBeOff && s == "off" {
			return -1, true
		}
		d, hint := parseDuration(s)
		switch {
		case hint != "":
			v.fail(-1, hint, "%s is not a duration", show(v.v))
		case d < 0 && canBeOff:
			return -1, true
		case d < 0:
			v.fail(-1, "It cannot be switched off.", "%s is negative", show(v.v))
		case d != 0 && (d < low || d > high):
			v.fail(-1, "", "%s is out of range", show(v.v))
		default:
			return d, true
		}
		return 0, false
	}}
}

// parseDuration is time.ParseDuration with days of 24 hours in front. The
// hint says what is wrong, "" if nothing is.
func parseDuration(s string) (d time.Duration, hint string) {
	rest, negative := strings.CutPrefix(s, "-")
	var days float64
	if n, after, ok := strings.Cut(rest, "d"); ok {
		f, err := strconv.ParseFloat(n, 64)
		if err != nil || f > 100_000 || strings.Trim(n, "0123456789.") != "" {
			return 0, quote(n) + " is not a number of days."
		}
		if days, rest = f, after; rest == "" {
			rest = "0"
		}
	}
	if rest != "" && rest != "0" && strings.Trim(rest, "0123456789.") == "" {
		return 0, fmt.Sprintf("It has no unit; write \"%ss\" for seconds, \"%sms\" for milliseconds.", s, s)
	}
	d, err := time.ParseDuration(rest)
	if err != nil || strings.HasPrefix(rest, "-") || strings.HasPrefix(rest, "+") {
		return 0, "The units are ms, s, m, h and d, and can be combined: \"1h30m\"."
	}
	if d += time.Duration(days * float64(24*time.Hour)); d < 0 {
		return 0, "It is longer than 290 years."
	}
	if negative {
		d = -d
	}
	return d, ""
}

// shortDuration is "1h", not "1h0m0s".
func shortDuration(d time.Duration) string {
	if d >= 24*time.Hour && d%(24*time.Hour) == 0 {
		return strconv.Itoa(int(d/(24*time.Hour))) + "d"
	}
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}

// rate is events per second.
func rate() codec[float64] {
	return codec[float64]{typ: "a rate", rng: `a number per second, minute or hour, such as "100/s", "6000/m" or "10/h"`, read: func(v *value) (float64, bool) {
		s, ok := v.text(-1, v.v)
		if !ok {
			return 0, false
		}
		n, unit, _ := strings.Cut(s, "/")
		per := map[string]float64{"s": 1, "m": 60, "h": 3600}[strings.TrimSpace(unit)]
		f, err := strconv.ParseFloat(strings.TrimSpace(n), 64)
		if s == "0" {
			return 0, true
		}
		if err != nil || per == 0 || !(f >= 0 && f <= 1e9) || strings.ContainsAny(n, "xXpP") {
			v.fail(-1, "", "%s is not a rate", show(v.v))
			return 0, false
		}
		return f / per, true
	}}
}

var units = map[string]float64{
	"B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12,
	"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40,
}

// parseSize reads "64KiB" or "1.5MB". The hint says what is wrong, "" if
// nothing is.
func parseSize(s string) (n int64, hint string) {
	i := strings.IndexFunc(s, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
	if i < 0 {
		return 0, fmt.Sprintf("It has no unit; write \"%sB\" for bytes.", s)
	}
	f, err := strconv.ParseFloat(s[:i], 64)
	unit, known := units[strings.TrimSpace(s[i:])]
	if err != nil || !known {
		return 0, "The units are B, KB, MB, GB, TB (powers of 1000) and KiB, MiB, GiB, TiB (powers of 1024)."
	}
	if f *= unit; f > 1<<60 {
		return 0, "It is more than 2⁶⁰ bytes."
	}
	return int64(math.Ceil(f)), ""
}

// size is bytes, low to high, zero for the default.
func size(low, high int64) codec[int] {
	return codec[int]{typ: "a size", rng: fmt.Sprintf("%q to %q", shortSize(low), shortSize(high)), read: func(v *value) (int, bool) {
		s, ok := v.text(-1, v.v)
		if !ok || s == "0" {
			return 0, ok
		}
		n, hint := parseSize(s)
		switch {
		case hint != "":
			v.fail(-1, hint, "%s is not a size", show(v.v))
		case n != 0 && (n < low || n > high):
			v.fail(-1, "", "%s is out of range", show(v.v))
		default:
			return int(n), true
		}
		return 0, false
	}}
}

// shortSize is "4KiB", for powers of 1024.
func shortSize(n int64) string {
	i := 0
	for ; n >= 1024 && n%1024 == 0 && i < 3; i++ {
		n /= 1024
	}
	return strconv.FormatInt(n, 10) + []string{"B", "KiB", "MiB", "GiB"}[i]
}

// bandwidth is bytes per second.
func bandwidth() codec[int64] {
	return codec[int64]{typ: "a bandwidth", rng: `a size per second, from "1KB/s"`, read: func(v *value) (int64, bool) {
		s, ok := v.text(-1, v.v)
		if !ok {
			return 0, false
		}
		if s == "0" {
			return 0, true
		}
		size, perSecond := strings.CutSuffix(s, "/s")
		if !perSecond {
			v.fail(-1, fmt.Sprintf("Write \"%s/s\" for so many bytes in each second.", s), "%s is not a bandwidth", show(v.v))
			return 0, false
		}
		n, hint := parseSize(size)
		switch {
		case hint != "":
			v.fail(-1, hint, "%s is not a bandwidth", show(v.v))
			return 0, false
		case n != 0 && n < 1000:
			v.fail(-1, "", "%s is out of range", show(v.v))
			return 0, false
		}
		return n, true
	}}
}

// percent is 0 to 1.
func percent() codec[float64] {
	return codec[float64]{typ: "a percentage", rng: `"0%" to "100%"`, read: func(v *value) (float64, bool) {
		s, ok := v.text(-1, v.v)
		if !ok {
			return 0, false
		}
		n, hasSign := strings.CutSuffix(s, "%")
		f, err := strconv.ParseFloat(n, 64)
		if !hasSign || err != nil || !(f >= 0 && f <= 100) || strings.ContainsAny(n, "xXpP") {
			v.fail(-1, "", "%s is not a percentage", show(v.v))
			return 0, false
		}
		return f / 100, true
	}}
}
