package splice

import (
	"math/bits"

	"golang.org/x/sys/unix"

	"edgeproxy/internal/reactor"
)

const (
	bufferSize = 64 << 10
	// turnBudget bounds what one direction moves before others get their
	// turn; turnCost is what a call counts for beside its bytes, so that many
	// small reads are bounded, too.
	turnBudget = 1 << 20
	turnCost   = 16 << 10

	coarseShift = 20 // about a millisecond

	sparePipes = 16      // clean pipes kept for the next to come
	spareBytes = 4 << 20 // of buffers kept likewise
	minKept    = 12      // 4 KiB, the smallest size class
	keptSizes  = 9       // … to 1 MiB
)

// Engine is what the relays of one loop share: the buffer, the pipes, the
// buffers of what was not taken at once.
type Engine struct {
	Loop *reactor.Loop
	// MaxPipes bounds the pipes (two descriptors each) that are held at one
	// time; beyond it relays copy. 0: none, nothing is spliced.
	MaxPipes int

	buf   []byte
	tls   *sealed // made for the first TLS session
	pipes *pipe
	spare int // clean pipes in the free list
	held  int // pipes given out
	kept  [keptSizes]*kept
	free  int  // bytes in the free lists
	used  bool // since the last Tidy
}

// NewEngine makes the engine of a loop.
func NewEngine(l *reactor.Loop, maxPipes int) *Engine {
	return &Engine{Loop: l, MaxPipes: maxPipes, buf: make([]byte, bufferSize)}
}

// Scratch is a buffer for what is done at once, on the loop.
func (e *Engine) Scratch() []byte { return e.buf }

// ScratchSize is the length of Scratch.
func (e *Engine) ScratchSize() int { return len(e.buf) }

func (e *Engine) coarse() uint32 { return uint32(e.Loop.Now() >> coarseShift) }

// getPipe returns an empty pipe, or nil.
func (e *Engine) getPipe() *pipe {
	e.used = true
	if p := e.pipes; p != nil {
		e.pipes = p.next
		e.spare--
		e.held++
		return p
	}
	if e.held >= e.MaxPipes {
		return nil
	}
	p, err := newPipe()
	if err != nil {
		return nil
	}
	e.held++
	return p
}

// putPipe takes a pipe back. One that is not empty is closed: its bytes must
// not reach another session.
func (e *Engine) putPipe(p *pipe) {
	e.held--
	if p.n != 0 || e.spare >= sparePipes {
		e.Loop.CloseLater(int(p.r))
		e.Loop.CloseLater(int(p.w))
		return
	}
	p.next = e.pipes
	e.pipes = p
	e.spare++
}

func class(n int) int { return max(bits.Len(uint(n-1)), minKept) - minKept }

func (e *Engine) getKept(n int) *kept {
	e.used = true
	c := class(n)
	k := e.kept[c]
	if k == nil {
		return &kept{buf: make([]byte, 1<<(c+minKept))}
	}
	e.kept[c] = k.next
	e.free -= len(k.buf)
	k.next, k.from, k.to = nil, 0, 0
	return k
}

func (e *Engine) keep(b []byte) *kept {
	k := e.getKept(len(b))
	k.to = copy(k.buf, b)
	return k
}

func (e *Engine) putKept(k *kept) {
	if e.free+len(k.buf) > spareBytes {
		return
	}
	c := class(len(k.buf))
	e.free += len(k.buf)
	k.next = e.kept[c]
	e.kept[c] = k
}

// Tidy is called now and then. It gives back the spare pipes and buffers of a
// loop that has not used any since the last call.
func (e *Engine) Tidy() {
	if !e.used {
		for p := e.pipes; p != nil; p = p.next {
			e.Loop.CloseLater(int(p.r))
			e.Loop.CloseLater(int(p.w))
		}
		e.pipes, e.spare = nil, 0
		e.kept, e.free = [keptSizes]*kept{}, 0
	}
	e.used = false
}

func newPipe() (*pipe, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		return nil, err
	}
	// Beyond fs.pipe-max-size or the user's share of pipe pages the kernel
	// refuses: a pipe of the default size works as well, only less at a time.
	unix.FcntlInt(uintptr(fds[0]), unix.F_SETPIPE_SZ, spliceSize)
	return &pipe{r: int32(fds[0]), w: int32(fds[1])}, nil
}
