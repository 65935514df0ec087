package tlsterm

import (
	"crypto/tls"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"edgeproxy/internal/testcert"
)

// folder drives a store's scans of a folder beside a model of what the
// documentation promises.
type folder struct {
	t      *testing.T
	dir    string
	store  *certStore
	events recorder
	now    time.Time
	stamp  time.Time // modification times, each used once: old, so that unchanged files are not read
	texts  *folderTexts
	other  bool // a certificate outside the folder

	cert, key map[string]int // by stem: what lies there; missing: nothing
	inUse     map[string]int // the model: which pair, by stem
	touched   map[string]bool
}

// Contents of files: pair i is 0 … pairs-1.
const (
	folderPairs = 4
	garbage     = folderPairs
	cut         = folderPairs + 1
	issuerOnly  = folderPairs + 2
)

// folderTexts are made once; they may be written anywhere.
type folderTexts struct {
	cert, key [folderPairs + 3][]byte
	outside   *testcert.Pair
}

func newFolderTexts(t testing.TB) *folderTexts {
	ca := testcert.NewCA(t, "root")
	x := &folderTexts{outside: ca.Server(t, "outside.test")}
	for i := range folderPairs {
		p := ca.Server(t, fmt.Sprintf("p%d.test", i), "all.test")
		x.cert[i], x.key[i] = p.CertPEM, p.KeyPEM
	}
	x.cert[garbage], x.key[garbage] = []byte("garbage"), []byte("garbage")
	x.cert[cut], x.key[cut] = x.cert[0][:len(x.cert[0])/2], x.key[0][:len(x.key[0])/2]
	x.cert[issuerOnly], x.key[issuerOnly] = ca.PEM(), nil
	return x
}

func newFolder(t *testing.T, texts *folderTexts, other bool) *folder {
	f := &folder{
		t: t, dir: t.TempDir(), texts: texts, other: other, now: time.Now(), stamp: time.Now().Add(-24 * time.Hour),
		cert: map[string]int{}, key: map[string]int{}, inUse: map[string]int{}, touched: map[string]bool{},
	}
	o := Options{Certificates: []CertificateOptions{{Dir: f.dir}}}
	if other {
		o.Certificates = append(o.Certificates, files(texts.outside.Write(t, t.TempDir(), "outside")))
	} else {
		f.write("a", 0, 0)
		f.inUse["a"] = 0
	}
	f.store = mustStore(t, &o, certEnv{events: &f.events})
	f.touched = map[string]bool{}
	f.agree("at the start")
	return f
}

// write puts texts into a stem's files; -1 removes one.
func (f *folder) write(stem string, cert, key int) {
	f.put(stem, ".crt", cert, f.cert, f.texts.cert[:])
	f.put(stem, ".key", key, f.key, f.texts.key[:])
}

func (f *folder) put(stem, ext string, what int, state map[string]int, texts [][]byte) {
	f.touched[stem] = true
	file := filepath.Join(f.dir, stem+ext)
	if what < 0 {
		delete(state, stem)
		os.Remove(file)
		return
	}
	state[stem] = what
	if err := os.WriteFile(file, texts[what], 0o600); err != nil {
		f.t.Fatal(err)
	}
	f.stamp = f.stamp.Add(time.Second)
	if err := os.Chtimes(file, f.stamp, f.stamp); err != nil {
		f.t.Fatal(err)
	}
}

// rename moves both files of a stem, as far as they are there.
func (f *folder) rename(from, to string) {
	if from == to {
		return
	}
	f.touched[from], f.touched[to] = true, true
	for ext, state := range map[string]map[string]int{".crt": f.cert, ".key": f.key} {
		if what, ok := state[from]; ok {
			if err := os.Rename(filepath.Join(f.dir, from+ext), filepath.Join(f.dir, to+ext)); err != nil {
				f.t.Fatal(err)
			}
			state[to] = what
			delete(state, from)
		}
	}
}

// scan has the store look, at everything or at what was touched alone, and
// steps the model.
func (f *folder) scan(all bool) {
	d := dirty{all: all}
	if !all {
		src := f.store.sources[0]
		for stem := range f.touched {
			d.add(src, stem)
		}
	}
	f.touched = map[string]bool{}
	f.now = f.now.Add(2 * settle)
	f.store.scan(d, f.now)

	var vanished []string
	live := f.other
	for stem := range f.stems() {
		cert, hasCert := f.cert[stem]
		key, hasKey := f.key[stem]
		if hasCert && hasKey && cert == key && cert < folderPairs {
			f.inUse[stem] = cert
		}
		if _, ok := f.inUse[stem]; ok && !hasCert && !hasKey {
			vanished = append(vanished, stem)
		} else if ok {
			live = true
		}
	}
	if live {
		for _, stem := range vanished {
			delete(f.inUse, stem)
		}
	}
	f.agree(fmt.Sprintf("after a scan (all: %v)", all))
}

func (f *folder) stems() map[string]bool {
	all := map[string]bool{}
	for _, m := range []map[string]int{f.cert, f.key, f.inUse} {
		for stem := range m {
			all[stem] = true
		}
	}
	return all
}

// agree compares store and model: what is in use, what is found by name, and
// of which files an operator has been told that they are broken.
func (f *folder) agree(when string) {
	f.t.Helper()
	got := map[string]int{}
	for _, c := range f.store.index.Load().all {
		if c.names[len(c.names)-1] == "outside.test" {
			continue
		}
		var pair int
		fmt.Sscanf(c.subject(), "p%d.test", &pair)
		base := filepath.Base(c.file)
		got[base[:len(base)-len(".crt")]] = pair
	}
	if !maps.Equal(got, f.inUse) {
		f.t.Fatalf("%s: in use are %v; expected %v\n%v", when, got, f.inUse, &f.events)
	}
	for i := range folderPairs {
		cert, err := f.store.get(&tls.ClientHelloInfo{ServerName: fmt.Sprintf("p%d.test", i)})
		if err != nil || cert == nil {
			f.t.Fatalf("%s: p%d.test: %v", when, i, err)
		}
		found := cert.Leaf.DNSNames[0] == fmt.Sprintf("p%d.test", i)
		if expected := slices.Contains(slices.Collect(maps.Values(f.inUse)), i); found != expected {
			f.t.Fatalf("%s: p%d.test found: %v; expected %v", when, i, found, expected)
		}
	}
	for stem := range f.stems() {
		cert, hasCert := f.cert[stem]
		key, hasKey := f.key[stem]
		_, used := f.inUse[stem]
		broken := true
		switch {
		case hasCert && hasKey:
			broken = cert != key || cert >= folderPairs
		case hasCert:
			broken = used || cert != issuerOnly
		case hasKey:
			broken = used
		default:
			broken = false
		}
		sl := f.store.sources[0].slots[stem]
		if got := sl != nil && sl.problem.err != nil; got != broken {
			f.t.Fatalf("%s: %s is broken: %v; expected %v", when, stem, got, broken)
		}
		if broken && !f.store.pending.empty() {
			// It was bad in this scan for the first time: told in the next.
			f.now = f.now.Add(2 * settle)
			f.store.scan(dirty{}, f.now)
		}
		if broken && (!sl.problem.reported || !f.events.has("refused "+stem+".crt: ")) {
			f.t.Fatalf("%s: nobody was told that %s is broken:\n%v", when, stem, &f.events)
		}
	}
}

func FuzzFolder(f *testing.F) {
	const steps = 200
	texts := newFolderTexts(f)
	stems := []string{"a", "b", "c", "tls"}
	f.Add(false, []byte{0x00, 0x11, 0x22, 0xf0, 0x33, 0xf1})
	f.Add(true, []byte("renewed, half-written, removed and put back"))
	f.Add(false, []byte{0xa0, 0xf0, 0xa1, 0xf0, 0xb0, 0xf1, 0x05, 0xf0, 0x45, 0xf1}) // all vanish, others come
	f.Add(true, []byte{0x00, 0xf0, 0xc1, 0xf1, 0xd6, 0xf0, 0x80, 0xf1, 0x90, 0xf0})
	f.Fuzz(func(t *testing.T, other bool, ops []byte) {
		x := newFolder(t, texts, other)
		for _, op := range ops[:min(len(ops), steps)] {
			stem, what := stems[op&3], int(op>>2)&3
			cert, hasCert := x.cert[stem]
			key, hasKey := x.key[stem]
			if !hasCert {
				cert = -1
			}
			if !hasKey {
				key = -1
			}
			switch op >> 4 {
			case 0, 1, 2, 3:
				x.write(stem, what, what)
			case 4, 5:
				x.write(stem, what, key)
			case 6, 7:
				x.write(stem, cert, what)
			case 8:
				x.write(stem, garbage+what%3, key)
			case 9:
				x.write(stem, cert, garbage+what%2)
			case 10:
				x.write(stem, -1, -1)
			case 11:
				x.write(stem, -1, key)
			case 12:
				x.write(stem, cert, -1)
			case 13:
				x.rename(stem, stems[what])
			default:
				x.scan(op&1 == 0)
			}
		}
		x.scan(true)
	})
}

// A pair is bad for a moment whenever its files change one after the other.
func TestRefusalIsToldOnceAndOnlyIfItLasts(t *testing.T) {
	t.Parallel()
	f := newFolder(t, newFolderTexts(t), false)
	at := func(d time.Duration) { f.store.scan(everything, f.now.Add(d)) }
	f.write("a", 1, 0)
	at(0)
	at(settle - time.Millisecond)
	f.write("a", 1, 1)
	at(settle)
	if f.events.has("refused") || !f.events.has("loaded a.crt", "p1.test") {
		t.Errorf("a renewal in two steps:\n%v", &f.events)
	}
	f.write("a", 2, 1)
	for i := range 10 {
		at(2*settle + time.Duration(i)*settle)
	}
	if n := f.events.count("refused a.crt", "does not belong"); n != 1 {
		t.Errorf("told %d times:\n%v", n, &f.events)
	}
	f.write("a", garbage, 1)
	at(20 * settle)
	at(21 * settle)
	if n := f.events.count("refused a.crt", "no complete PEM"); n != 1 {
		t.Errorf("another error was told %d times:\n%v", n, &f.events)
	}
	if _, err := f.store.get(&tls.ClientHelloInfo{}); err != nil || f.store.expiry()[0].Subject != "p1.test" {
		t.Errorf("the old pair is gone: %v", f.store.expiry())
	}
}

func TestVanishedPairs(t *testing.T) {
	t.Parallel()
	f := newFolder(t, newFolderTexts(t), false)
	f.write("b", 1, 1)
	f.scan(true)
	f.write("a", -1, -1)
	f.scan(true)
	if !f.events.has("dropped a.crt") {
		t.Errorf("nobody was told:\n%v", &f.events)
	}
	f.write("b", -1, -1)
	f.scan(true)
	f.scan(true)
	if n := f.events.count("warning b.crt", "is gone"); n != 1 || f.events.has("dropped b.crt") {
		t.Errorf("the last one:\n%v", &f.events)
	}
	// The folder itself goes, and comes back with something else.
	if err := os.Remove(f.dir); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		f.store.scan(everything, f.now.Add(time.Duration(i)*settle))
	}
	f.agree("without the folder")
	if n := f.events.count("refused "+filepath.Base(f.dir), "no such file"); n != 1 {
		t.Errorf("the folder's end was told %d times:\n%v", n, &f.events)
	}
	if err := os.Mkdir(f.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	f.write("c", 2, 2)
	f.scan(true)
	if !f.events.has("dropped b.crt") || !f.events.has("loaded c.crt") {
		t.Errorf("after the folder came back:\n%v", &f.events)
	}
}

// What inotify misses, as on network file systems, the sweep finds. What is
// broken is told, by the running store as well.
func TestSweepAndRefusal(t *testing.T) {
	t.Parallel()
	ca := testcert.NewCA(t, "ca")
	dir := t.TempDir()
	certFile, keyFile := ca.Server(t, "a.test").Write(t, dir, "a")
	var events recorder
	s := mustStore(t, &Options{Certificates: []CertificateOptions{files(certFile, keyFile)}}, certEnv{events: &events, sweep: 50 * time.Millisecond})
	s.start()
	inode := filepath.Join(t.TempDir(), "elsewhere") // an open file has no name for inotify to report
	if err := os.Link(certFile, inode); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(inode, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	until(t, 10*time.Second, "the broken file is reported", func() bool { return events.has("refused a.crt", "no complete PEM block") })
	cert, err := s.get(&tls.ClientHelloInfo{ServerName: "a.test"})
	if err != nil || cert == nil {
		t.Fatal("the old pair is not in use any more")
	}
	renewed := ca.Server(t, "a.test")
	renewed.Write(t, dir, "a")
	until(t, 10*time.Second, "the good pair is in use", func() bool {
		cert, _ := s.get(&tls.ClientHelloInfo{ServerName: "a.test"})
		return cert.Leaf.Equal(renewed.Leaf)
	})
}

func TestCloseLeavesNothing(t *testing.T) {
	ca := testcert.NewCA(t, "ca")
	dir := t.TempDir()
	ca.Server(t, "a.test").Write(t, dir, "a")
	descriptors := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, e := range entries {
			if target, _ := os.Readlink("/proc/self/fd/" + e.Name()); target == "anon_inode:inotify" {
				n++
			}
		}
		return n
	}
	before := descriptors()
	for range 20 {
		s := mustStore(t, &Options{OCSPStapling: true, Certificates: []CertificateOptions{{Dir: dir}}}, certEnv{})
		s.start()
		s.Close()
		s.Close() // again does no harm
	}
	until(t, 10*time.Second, "inotify descriptors are closed", func() bool { return descriptors() <= before })
	if _, err := newCertStore(&Options{Certificates: []CertificateOptions{{Dir: filepath.Join(dir, "none")}}}, certEnv{}); err == nil {
		t.Error("no error")
	}
}

// Look-ups, renewals and staples at the same time; under -race.
func TestConcurrentUse(t *testing.T) {
	t.Parallel()
	texts := newFolderTexts(t)
	f := newFolder(t, texts, true)
	done := make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(done)
	for i := range 4 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if cert, err := f.store.get(&tls.ClientHelloInfo{ServerName: fmt.Sprintf("p%d.test", i)}); err != nil || cert == nil || cert.Leaf == nil {
					t.Error("no certificate", err)
					return
				}
				f.store.expiry()
			}
		})
	}
	wg.Go(func() {
		for i := range 300 {
			for _, c := range f.store.index.Load().all {
				c.setStaple(&staple{raw: []byte{byte(i)}, until: time.Now().Add(time.Hour)})
			}
		}
	})
	for i := range 50 {
		f.write("abc"[i%3:i%3+1], i%folderPairs, i%folderPairs)
		f.scan(i%2 == 0)
	}
}
