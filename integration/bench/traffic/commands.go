package traffic

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"sync"
)

// Command is one line on the standard input of a client process: one of the
// fields is set.
type Command struct {
	Open  *Open  `json:"open,omitempty"`
	Run   *Run   `json:"run,omitempty"`
	Stall *Stall `json:"stall,omitempty"`
}

// Stall opens connections that say a ClientHello and never go on, until the
// client ends.
type Stall struct {
	Connections int `json:"connections"`
}

// Open adds kept connections, each of which makes one request.
type Open struct {
	Connections int   `json:"connections"`
	Request     int   `json:"request"`
	Answer      int64 `json:"answer"`
}

// Reply is the client process's answer to one command.
type Reply struct {
	Result *Result `json:"result,omitempty"` // of a run
	Error  string  `json:"error,omitempty"`
}

// worker is one thread of the client process. Only a broken client is an error
// of a run; what the proxy did wrong is counted in the result.
type worker interface {
	open(connections, request int, answer int64) error
	do(Run) (*Result, error)
	close()
}

func newWorker(targets []netip.AddrPort, speech Speech) (worker, error) {
	switch speech {
	case Datagrams:
		return newDatagramClient(targets[0])
	case QUIC:
		return newQUICClient(targets[0]), nil
	}
	return newClient(targets, speech)
}

// Obey is the client process: it obeys commands from in until it ends, and
// replies to out.
func Obey(targets []netip.AddrPort, speech Speech, threads int, in io.Reader, out io.Writer) error {
	clients := make([]worker, threads)
	for i := range clients {
		c, err := newWorker(targets, speech)
		if err != nil {
			return err
		}
		defer c.close()
		clients[i] = c
	}
	// All commands of one client run on one thread, which is the one that is
	// locked to it.
	type job struct {
		i    int
		work func(c worker, share int) error
		done *sync.WaitGroup
	}
	jobs := make([]chan job, threads)
	failed := make([]error, threads)
	for i, c := range clients {
		jobs[i] = make(chan job)
		defer close(jobs[i])
		go func() {
			runtime.LockOSThread()
			sharpTimers()
			for j := range jobs[i] {
				failed[i] = j.work(c, j.i)
				j.done.Done()
			}
		}()
	}
	everyone := func(work func(c worker, i int) error) error {
		var done sync.WaitGroup
		for i := range clients {
			done.Add(1)
			jobs[i] <- job{i, work, &done}
		}
		done.Wait()
		return errors.Join(failed...)
	}

	var stalled []net.Conn
	defer func() {
		for _, c := range stalled {
			c.Close()
		}
	}()
	commands, replies := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var cmd Command
		if err := commands.Decode(&cmd); err == io.EOF {
			return nil
		} else if err != nil {
			return fmt.Errorf("load: reading a command: %w", err)
		}
		var reply Reply
		var err error
		switch {
		case cmd.Open != nil:
			err = everyone(func(c worker, i int) error {
				return c.open(share(cmd.Open.Connections, i, threads), cmd.Open.Request, cmd.Open.Answer)
			})
		case cmd.Run != nil:
			reply.Result = new(Result)
			var mu sync.Mutex
			err = everyone(func(c worker, i int) error {
				r := *cmd.Run
				r.Rate /= float64(threads)
				r.Connections = share(r.Connections, i, threads)
				r.Window = share(r.Window, i, threads)
				result, err := c.do(r)
				mu.Lock()
				defer mu.Unlock()
				reply.Result.merge(result)
				return err
			})
		case cmd.Stall != nil:
			for i := 0; i < cmd.Stall.Connections && err == nil; i++ {
				var c net.Conn
				if c, err = net.Dial("tcp", targets[0].String()); err == nil {
					stalled = append(stalled, c)
					_, err = c.Write(hello)
				}
			}
		default:
			err = errors.New("a command says neither open nor run nor stall")
		}
		if err != nil {
			reply = Reply{Error: err.Error()}
		}
		if err := replies.Encode(reply); err != nil {
			return fmt.Errorf("load: writing a reply: %w", err)
		}
	}
}

// share is the i-th of parts nearly equal parts of n.
func share(n, i, parts int) int {
	return (i+1)*n/parts - i*n/parts
}
