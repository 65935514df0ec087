package listener

// tally is a loop's side of its [lane]. All of it is on the loop.
//
//	steered  = settled + pending      pending: in a handshake or an accept queue
//	released = settled − live
//
// What the program has steered may never arrive: SYNs without an answer, stray
// segments of connections long gone, both the SYN and the ACK where SYN cookies
// are sent. Such phantoms would weigh for ever. What arrives does so soon, and
// so the number pending falls to that of the phantoms now and then: its least
// value within a second or so is what the tally gives up.
type tally struct {
	lane     *lane
	settled  int64 // steered connections that were accepted, or given up as phantoms
	released int64
	least    int64 // pending, since the last settle
	queued   bool  // more may wait than was accepted
}

// begin counts an accepted connection.
func (t *tally) begin(steered bool) {
	if steered {
		t.settled++ // it was pending and is live: the load stays
		t.queued = true
		return
	}
	t.released--
	t.lane.released.Store(t.released)
}

// end counts a session that has ended.
func (t *tally) end() {
	t.released++
	t.lane.released.Store(t.released)
}

// drained notes that an accept queue was found empty.
func (t *tally) drained() {
	t.queued = false
	t.least = min(t.least, t.pending())
}

func (t *tally) pending() int64 { return t.lane.steered.Load() - t.settled }

// settle corrects the load, about once a second. What waits because the loop
// is paused or does not keep up is real, however long it waits.
func (t *tally) settle(paused bool) {
	p := t.pending()
	phantoms := min(t.least, p)
	// Less than none: more has come than was steered. Phantoms have arrived
	// after all, or the kernel's hash chose.
	if phantoms > 0 && (paused || t.queued) {
		phantoms = 0
	}
	t.least, t.queued = p-phantoms, false
	if phantoms != 0 {
		t.settled += phantoms
		t.released += phantoms
		t.lane.released.Store(t.released)
	}
}
