package tlsterm

import (
	"bytes"
	"container/heap"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"
)

// Times of OCSP. A response is renewed before half of its validity has passed,
// so that a responder may be away for the other half.
const (
	ocspTimeout     = 10 * time.Second
	ocspMinInterval = time.Minute
	ocspMaxBackoff  = time.Hour
	ocspFirstRetry  = 30 * time.Second
	// ocspNoUpdate stands for a nextUpdate that a response does not have: newer
	// information is always available (RFC 6960, section 4.2.2.1).
	ocspNoUpdate = time.Hour
	ocspFetches  = 4 // at the same time
)

// staple is an OCSP response, or the lack of one for a reason. Immutable.
type staple struct {
	raw     []byte // nil if revoked
	from    time.Time
	until   time.Time
	revoked time.Time // zero: good
}

// stapler keeps OCSP responses of a store's certificates fresh (RFC 6960;
// stapled by RFC 6066, section 8, and RFC 8446, section 4.4.2.1).
//
// A response that is refused, or none, leaves the last one in place until it
// expires; then nothing is stapled. A certificate that its issuer calls
// revoked is reported and served without a staple: what clients make of it is
// theirs, a stapled "revoked" would help nobody who cannot renew it, and the
// last good response would be a lie.
type stapler struct {
	store *certStore
	http  *http.Client
	kick  chan struct{}

	// Of the goroutine of run:
	tasks map[*certificate]*staplerTask
	queue taskQueue
	busy  int
}

// staplerTask is what is next for a certificate.
type staplerTask struct {
	cert     *certificate
	due      time.Time // to ask again
	wake     time.Time // due, or when the staple expires, if that is earlier
	failures int
	busy     bool
	pos      int // in the queue; -1: busy or dropped
}

type stapleResult struct {
	task   *staplerTask
	staple *staple
	err    error
}

func (st *stapler) init(s *certStore) {
	st.store = s
	st.kick = make(chan struct{}, 1)
	st.tasks = make(map[*certificate]*staplerTask)
	if st.http = s.env.http; st.http == nil {
		st.http = newOCSPClient()
	}
}

// inherit takes over what the store before had for the same certificates.
func (st *stapler) inherit(previous *certStore) {
	if !st.store.staple {
		return
	}
	old := make(map[string]*certificate)
	for _, c := range previous.index.Load().all {
		old[string(c.leaf.Raw)] = c
	}
	for _, c := range st.store.index.Load().all {
		c.takeStaple(old[string(c.leaf.Raw)])
	}
}

// takeStaple gives a certificate that is not in use yet the staple of the one
// that it replaces, if both are the same but for their files.
func (c *certificate) takeStaple(old *certificate) {
	if old != nil && bytes.Equal(c.leaf.Raw, old.leaf.Raw) {
		if s := old.staple.Load(); s != nil {
			c.setStaple(s)
		}
	}
}

// setStaple makes s what clients get; nil for nothing. A certificate in use is
// changed by the stapler's goroutine alone.
func (c *certificate) setStaple(s *staple) {
	pair := *c.current.Load()
	pair.OCSPStaple = nil
	if s != nil {
		pair.OCSPStaple = s.raw
	}
	c.staple.Store(s)
	c.current.Store(&pair)
}

// askable reports whether there is somebody to ask about c.
func askable(c *certificate) bool { return len(c.leaf.OCSPServer) > 0 && c.issuer != nil }

// mustStaple reports whether clients are to refuse c without a staple: the TLS
// feature status_request (RFC 7633).
func mustStaple(c *certificate) bool {
	for _, ext := range c.leaf.Extensions {
		if ext.Id.Equal(oidTLSFeature) {
			return bytes.Contains(ext.Value, []byte{0x02, 0x01, 0x05})
		}
	}
	return false
}

var oidTLSFeature = []int{1, 3, 6, 1, 5, 5, 7, 1, 24}

// warning says why there will never be a staple, where there should.
func (st *stapler) warning(c *certificate) string {
	must := mustStaple(c)
	switch {
	case !st.store.staple && must:
		return c.file + " demands an OCSP staple (must-staple), clients will refuse it; set ocsp_stapling = true"
	case !st.store.staple:
		return ""
	case len(c.leaf.OCSPServer) == 0 && must:
		return c.file + " demands an OCSP staple (must-staple) but names no responder; clients will refuse it"
	case len(c.leaf.OCSPServer) > 0 && c.issuer == nil:
		return c.file + ": no OCSP response can be verified without the certificate of its issuer; put that behind it in the file"
	}
	return ""
}

func (st *stapler) status(c *certificate) OCSPStatus {
	s := c.staple.Load()
	switch {
	case !st.store.staple || !askable(c):
		return OCSPNone
	case s == nil:
		return OCSPPending
	case !s.revoked.IsZero():
		return OCSPRevoked
	}
	return OCSPGood
}

// changed says that the certificates in use are others.
func (st *stapler) changed() {
	select {
	case st.kick <- struct{}{}:
	default:
	}
}

// run asks responders until the store closes.
func (st *stapler) run() {
	ctx := st.store.ctx
	var fetches sync.WaitGroup
	defer fetches.Wait()
	results := make(chan stapleResult, ocspFetches)
	timer := time.NewTimer(0)
	defer timer.Stop()
	st.adopt(time.Now())
	for {
		now := time.Now()
		for st.busy < ocspFetches && len(st.queue) > 0 && !st.queue[0].wake.After(now) {
			t := heap.Pop(&st.queue).(*staplerTask)
			if s := t.cert.staple.Load(); s != nil && s.raw != nil && !s.until.After(now) {
				t.cert.setStaple(nil)
			}
			if t.due.After(now) {
				st.enqueue(t)
				continue
			}
			t.busy = true
			st.busy++
			fetches.Go(func() {
				s, err := st.ask(ctx, t.cert, t.failures)
				results <- stapleResult{t, s, err}
			})
		}
		wait := 24 * time.Hour
		if len(st.queue) > 0 && st.busy < ocspFetches {
			wait = max(0, st.queue[0].wake.Sub(now))
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return
		case <-st.kick:
			st.adopt(time.Now())
		case <-timer.C:
		case r := <-results:
			st.busy--
			r.task.busy = false
			if ctx.Err() == nil && st.tasks[r.task.cert] == r.task {
				st.take(r, time.Now())
			}
		}
	}
}

// adopt makes the tasks those of the certificates in use.
func (st *stapler) adopt(now time.Time) {
	inUse := make(map[*certificate]bool)
	for _, c := range st.store.index.Load().all {
		if !askable(c) {
			continue
		}
		inUse[c] = true
		if st.tasks[c] == nil {
			t := &staplerTask{cert: c, due: now}
			if s := c.staple.Load(); s != nil {
				t.due = renewal(s, now)
			}
			st.tasks[c] = t
			st.enqueue(t)
		}
	}
	for c, t := range st.tasks {
		if !inUse[c] {
			delete(st.tasks, c)
			if t.pos >= 0 {
				heap.Remove(&st.queue, t.pos)
			}
		}
	}
}

// take makes the best of an answer.
func (st *stapler) take(r stapleResult, now time.Time) {
	c := r.task.cert
	old := c.staple.Load()
	switch {
	case r.err != nil:
		r.task.failures++
		r.task.due = now.Add(backoff(r.task.failures))
		err := r.err
		if mustStaple(c) && (old == nil || old.raw == nil) {
			err = fmt.Errorf("%w; nothing is stapled, and the certificate demands it (must-staple): clients will refuse it", err)
		}
		st.store.event(func(e CertificateEvents) { e.StapleFailed(st.store.name, c.file, c.subject(), err) })
	default:
		r.task.failures = 0
		r.task.due = renewal(r.staple, now)
		c.setStaple(r.staple)
		if at := r.staple.revoked; !at.IsZero() && (old == nil || old.revoked.IsZero()) {
			st.store.event(func(e CertificateEvents) { e.CertificateRevoked(st.store.name, c.file, c.subject(), at) })
		}
	}
	st.enqueue(r.task)
}

func (st *stapler) enqueue(t *staplerTask) {
	t.wake = t.due
	if s := t.cert.staple.Load(); s != nil && s.raw != nil && s.until.Before(t.wake) {
		t.wake = s.until
	}
	heap.Push(&st.queue, t)
}

// renewal is when to ask for the next response: somewhere between 40 and 50 %
// of the validity of s, so that many certificates do not all ask at once; if
// that has passed, after a part of what is left.
func renewal(s *staple, now time.Time) time.Time {
	if !s.revoked.IsZero() {
		return now.Add(ocspMaxBackoff)
	}
	part := 0.4 + rand.Float64()/10
	at := s.from.Add(time.Duration(part * float64(s.until.Sub(s.from))))
	if at.Before(now) {
		at = now.Add(time.Duration(part * float64(s.until.Sub(now))))
	}
	if soonest := now.Add(ocspMinInterval); at.Before(soonest) {
		return soonest
	}
	return at
}

// backoff is the pause after so many failures in a row, give or take a fifth.
func backoff(failures int) time.Duration {
	d := min(ocspFirstRetry<<min(failures-1, 10), ocspMaxBackoff)
	return time.Duration((0.8 + 0.4*rand.Float64()) * float64(d))
}

// ask makes one attempt. Several responders take turns.
func (st *stapler) ask(ctx context.Context, c *certificate, attempt int) (*staple, error) {
	ctx, cancel := context.WithTimeout(ctx, ocspTimeout)
	defer cancel()
	url := c.leaf.OCSPServer[attempt%len(c.leaf.OCSPServer)]
	raw, err := fetchOCSP(ctx, st.http, url, c.leaf, c.issuer)
	if err != nil {
		return nil, fmt.Errorf("OCSP responder %s: %w", quoted(url), err)
	}
	s, err := verifyOCSP(raw, c.leaf, c.issuer, time.Now())
	if err != nil {
		return nil, fmt.Errorf("OCSP responder %s: %w", quoted(url), err)
	}
	return s, nil
}

// taskQueue is a heap by wake.
type taskQueue []*staplerTask

func (q taskQueue) Len() int           { return len(q) }
func (q taskQueue) Less(i, j int) bool { return q[i].wake.Before(q[j].wake) }
func (q taskQueue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].pos, q[j].pos = i, j
}

func (q *taskQueue) Push(x any) {
	t := x.(*staplerTask)
	t.pos = len(*q)
	*q = append(*q, t)
}

func (q *taskQueue) Pop() any {
	t := (*q)[len(*q)-1]
	*q = slices.Delete(*q, len(*q)-1, len(*q))
	t.pos = -1
	return t
}
