package tlsterm

import (
	"fmt"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// dirty says which slots have to be looked at.
type dirty struct {
	all   bool
	stems map[*certSource]map[string]bool
}

var everything = dirty{all: true}

func (d *dirty) add(src *certSource, stem string) {
	if d.stems == nil {
		d.stems = make(map[*certSource]map[string]bool)
	}
	if d.stems[src] == nil {
		d.stems[src] = make(map[string]bool)
	}
	d.stems[src][stem] = true
}

func (d *dirty) merge(other dirty) {
	d.all = d.all || other.all
	for src, stems := range other.stems {
		for stem := range stems {
			d.add(src, stem)
		}
	}
}

func (d dirty) empty() bool { return !d.all && len(d.stems) == 0 }

// scan looks at the files of what is dirty, takes over what is good, and
// reports the rest once it has been bad for long enough. It returns whether
// the set of certificates in use changed. The first scan, of a store that has
// no index yet, only reads.
func (s *certStore) scan(d dirty, now time.Time) (changed bool) {
	initial := s.index.Load() == nil
	d.merge(s.pending)
	s.pending = dirty{}

	type job struct {
		src  *certSource
		stem string
		slot *slot
		news bool
	}
	var jobs []job
	for _, src := range s.sources {
		if src.dynamic != nil {
			continue
		}
		stems := d.stems[src]
		if d.all {
			var ok bool
			if stems, ok = s.list(src, now, initial); !ok {
				continue
			}
		}
		for stem, linked := range stems {
			sl := src.slots[stem]
			if sl == nil {
				base := filepath.Join(src.dir, stem)
				sl = &slot{certFile: base + ".crt", keyFile: base + ".key"}
				src.slots[stem] = sl
			}
			sl.linked = sl.linked || linked
			jobs = append(jobs, job{src: src, stem: stem, slot: sl})
		}
	}
	parallel(len(jobs), func(i int) { jobs[i].news = jobs[i].slot.check(jobs[i].src.dir != "", now) })

	var news []*certificate
	for _, j := range jobs {
		if j.news {
			news = append(news, j.slot.inUse)
		}
		if !initial {
			if !s.report(&j.slot.problem, j.slot.certFile, now) {
				s.pending.add(j.src, j.stem)
			}
		}
	}
	dropped := s.dropVanished()
	if initial || len(news) == 0 && len(dropped) == 0 {
		return false
	}
	if err := s.rebuild(); err != nil {
		s.event(func(e CertificateEvents) { e.CertificateRefused(s.name, "", err) })
		return false
	}
	for _, c := range news {
		s.announce(c)
	}
	for _, c := range dropped {
		s.event(func(e CertificateEvents) { e.CertificateDropped(s.name, c.file) })
	}
	return true
}

// list gives all slots of a source to look at. A folder that cannot be read
// keeps what it had.
func (s *certStore) list(src *certSource, now time.Time, initial bool) (stems map[string]bool, ok bool) {
	if src.dir == "" {
		return map[string]bool{"": true}, true
	}
	stems, err := listDir(src.dir)
	src.listing.set(err, now)
	if !initial && !s.report(&src.listing, src.dir, now) {
		s.pending.all = true
	}
	if err != nil {
		return nil, false
	}
	for stem := range src.slots {
		if _, ok := stems[stem]; !ok {
			stems[stem] = false
		}
	}
	return stems, true
}

// report tells of a problem that has lasted; it reports whether there is
// nothing left to be told.
func (s *certStore) report(p *problem, file string, now time.Time) (done bool) {
	switch {
	case p.err == nil || p.reported:
		return true
	case now.Sub(p.since) < settle:
		return false
	}
	p.reported = true
	err := p.err
	s.event(func(e CertificateEvents) { e.CertificateRefused(s.name, file, err) })
	return true
}

func (p *problem) set(err error, now time.Time) {
	switch {
	case err == nil:
		*p = problem{}
	case p.err == nil || p.err.Error() != err.Error():
		*p = problem{err: err, since: now}
	}
}

// dropVanished forgets the pairs whose files are gone. If nothing would be left
// to serve they are kept until something else is there.
func (s *certStore) dropVanished() (dropped []*certificate) {
	left := len(s.dynamic)
	gone := false
	for _, src := range s.sources {
		for _, sl := range src.slots {
			if gone = gone || sl.vanished; !sl.vanished && sl.inUse != nil {
				left++
			}
		}
	}
	if !gone {
		return nil
	}
	for _, src := range s.sources {
		for _, stem := range src.stems() {
			sl := src.slots[stem]
			if !sl.vanished {
				continue
			}
			switch {
			case sl.inUse == nil:
				delete(src.slots, stem)
			case left > 0:
				delete(src.slots, stem)
				dropped = append(dropped, sl.inUse)
			case !sl.keptTold:
				sl.keptTold = true
				s.event(func(e CertificateEvents) {
					e.CertificateWarning(s.name, sl.certFile, sl.certFile+" is gone, but without it there would be no certificate at all; it stays in use until there is another")
				})
			}
		}
	}
	return dropped
}

// check reads the files of a slot if they changed, and reports whether there
// is something new in use. It may run beside the checks of other slots.
func (sl *slot) check(inDir bool, now time.Time) (news bool) {
	cert, key := statFile(sl.certFile), fileState{}
	if sl.keyFile == "" {
		key = cert
	} else {
		key = statFile(sl.keyFile)
	}
	sl.vanished = inDir && cert.missing() && key.missing()
	if sl.vanished {
		sl.problem, sl.last = problem{}, loaded{}
		return false
	}
	sl.keptTold = false
	if cert.same(sl.last.cert) && key.same(sl.last.key) && cert.settledSince(sl.lastRead) && key.settledSince(sl.lastRead) {
		return false
	}
	sl.lastRead = time.Now()
	l := loadPair(sl.certFile, sl.keyFile, now)
	if inDir && l.err != nil {
		if l.err = sl.half(l); l.err == nil {
			sl.last = l
			sl.problem.set(nil, now)
			return false
		}
	}
	sl.problem.set(l.err, now)
	unchanged := l.sum == sl.last.sum && sl.last.err == nil
	sl.last = l
	sl.last.pair = nil
	if l.err != nil || unchanged && sl.inUse != nil {
		return false
	}
	l.pair.takeStaple(sl.inUse)
	sl.inUse = l.pair
	return true
}

// half says what is wrong with a pair of which one file is missing; nil if it
// never was one. A certificate alone is an error unless it is an authority's
// (certificate managers leave the issuer's in the same folder); a key alone waits
// for its certificate to be issued.
func (sl *slot) half(l loaded) error {
	switch {
	case l.key.missing() && l.cert.err == nil:
		if sl.inUse == nil && isAuthority(sl.certFile) {
			return nil
		}
		return fmt.Errorf("%s has no key beside it; expected %s", sl.certFile, sl.keyFile)
	case l.cert.missing() && l.key.err == nil:
		if sl.inUse == nil {
			return nil
		}
		return fmt.Errorf("%s has no certificate beside it; expected %s", sl.keyFile, sl.certFile)
	}
	return l.err
}

// parallel runs f(0) … f(n-1) on all CPUs, if there are enough of them to
// matter: reading 100 000 pairs takes seconds.
func parallel(n int, f func(int)) {
	workers := min(runtime.GOMAXPROCS(0), n/32)
	if workers <= 1 {
		for i := range n {
			f(i)
		}
		return
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				f(i)
			}
		})
	}
	wg.Wait()
}
