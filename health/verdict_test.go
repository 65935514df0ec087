package health

import (
	"fmt"
	"testing"
)

// history is the oracle: it looks at all results so far, each time anew.
func history(known State, results []bool, rise, fall int) State {
	state, since := known, 0 // since: results[since:] came after the state was reached
	for i, ok := range results {
		if state == Unknown {
			state, since = Down, i+1
			if ok {
				state = Up
			}
			continue
		}
		need, against := fall, false
		if state == Down {
			need, against = rise, true
		}
		if i+1-since < need {
			continue
		}
		all := true
		for _, r := range results[i+1-need : i+1] {
			all = all && r == against
		}
		if all {
			state, since = Up+Down-state, i+1
		}
	}
	return state
}

func TestVerdictOverAllSequences(t *testing.T) {
	for _, known := range []State{Unknown, Up, Down} {
		for rise := 1; rise <= 4; rise++ {
			for fall := 1; fall <= 4; fall++ {
				for length := range 9 {
					for bits := range 1 << length {
						v := verdict{state: known}
						results := make([]bool, length)
						for i := range results {
							results[i] = bits>>i&1 == 1
							v.add(results[i], rise, fall)
							if want := history(known, results[:i+1], rise, fall); v.state != want {
								t.Fatalf("known %v, rise %d, fall %d, results %v: %v, want %v", known, rise, fall, results[:i+1], v.state, want)
							}
						}
					}
				}
			}
		}
	}
}

func (s State) String() string { return [...]string{"unknown", "up", "down"}[s] }

func ExampleKind() {
	fmt.Println(TCP, HTTP)
	// Output: tcp http
}
