package config

import "strings"

// nearest returns the candidate closest to s, or "" if none is close enough
// to be what was meant.
func nearest(s string, candidates []string) string {
	if len(s) > 64 {
		return ""
	}
	best, bestDist := "", 1+max(1, len(s)/3)
	low := strings.ToLower(s)
	for _, c := range candidates {
		if d := distance(low, strings.ToLower(c), bestDist); d < bestDist {
			best, bestDist = c, d
		}
	}
	return best
}

// distance is the optimal string alignment distance (an edit is an insertion,
// a deletion, a substitution or a swap of neighbours), or limit if it is not
// below that.
func distance(a, b string, limit int) int {
	if abs(len(a)-len(b)) >= limit {
		return limit
	}
	prev2, prev, cur := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := btoi(a[i-1] != b[j-1])
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], prev2[j-2]+1)
			}
		}
		prev2, prev, cur = prev, cur, prev2
	}
	return min(prev[len(b)], limit)
}

func abs(n int) int { return max(n, -n) }

// didYouMean is a sentence to put behind a list of what is allowed.
func didYouMean(s string, candidates []string) string {
	if n := nearest(s, candidates); n != "" {
		return " Did you mean \"" + n + "\"?"
	}
	return ""
}

// anyOf joins words for people: a, b and c.
func anyOf(words []string, last string) string {
	switch len(words) {
	case 0:
		return ""
	case 1:
		return words[0]
	}
	return strings.Join(words[:len(words)-1], ", ") + " " + last + " " + words[len(words)-1]
}
