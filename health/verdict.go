package health

// State is a verdict on a server.
type State uint8

const (
	Unknown State = iota // counts as up, until the first probe
	Up
	Down
)

// verdict turns single results into a state:
//
//	        one success           fall failures in a row
//	Unknown ───────────▶ Up ──────────────────────────────▶ Down
//	   │                  ◀──────────────────────────────     ▲
//	   │                       rise successes in a row        │
//	   └──────────────────────────────────────────────────────┘
//	                         one failure
type verdict struct {
	state State
	run   int // results in a row that speak against the state
}

// add takes the result of a probe.
func (v *verdict) add(ok bool, rise, fall int) {
	says, need := Down, fall
	if ok {
		says, need = Up, rise
	}
	if v.state == Unknown {
		need = 1
	}
	if v.state == says {
		v.run = 0
		return
	}
	if v.run++; v.run >= need {
		*v = verdict{state: says}
	}
}
