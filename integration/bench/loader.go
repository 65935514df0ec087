package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"edgeproxy/integration/bench/peer"
	"edgeproxy/integration/bench/traffic"
)

// loader is the client process.
type loader struct {
	*peer.Process
	pids    []int // whose CPU time is the load's
	in, out *os.File
	enc     *json.Encoder
	dec     *json.Decoder
	release func() bool
	closed  bool
}

// startLoad starts one. An attacker has other machines: what it computes is not
// to take CPU from those that are measured, so it gets what they leave.
func (h *harness) startLoad(ctx context.Context, target string, speech traffic.Speech, attacker bool) (*loader, error) {
	theirIn, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	out, theirOut, err := os.Pipe()
	if err != nil {
		theirIn.Close()
		in.Close()
		return nil, err
	}
	argv := []string{h.self, "load", "-target", target, "-speech", string(speech), "-threads", fmt.Sprint(h.Threads)}
	if attacker {
		argv = append([]string{"nice", "-n", "19"}, argv...)
	}
	process, err := peer.StartProcess("load", argv, leanRuntime(h.Threads), theirIn, theirOut)
	theirIn.Close()
	theirOut.Close()
	if err != nil {
		in.Close()
		out.Close()
		return nil, err
	}
	l := &loader{Process: process, pids: []int{process.PID()}, in: in, out: out, enc: json.NewEncoder(in), dec: json.NewDecoder(out)}
	l.release = context.AfterFunc(ctx, process.Stop)
	return l, nil
}

func (l *loader) close() {
	if l.closed {
		return
	}
	l.closed = true
	l.release()
	l.in.Close() // it ends at the end of its commands
	l.Stop()
	l.out.Close()
}

func (l *loader) do(c traffic.Command) (traffic.Reply, error) {
	var r traffic.Reply
	if err := l.enc.Encode(c); err != nil {
		return r, fmt.Errorf("load: %w: %s", err, l.Log())
	}
	if err := l.dec.Decode(&r); err != nil {
		return r, fmt.Errorf("load: %w: %s", err, l.Log())
	}
	if r.Error != "" {
		return r, errors.New(r.Error)
	}
	return r, nil
}

func (l *loader) open(connections int, answer int64) error {
	_, err := l.do(traffic.Command{Open: &traffic.Open{Connections: connections, Request: requestSize, Answer: answer}})
	if err != nil {
		return fmt.Errorf("opening %d connections: %w", connections, err)
	}
	return nil
}

// run fails if any request did: numbers of a proxy that loses requests mean
// nothing.
func (l *loader) run(r traffic.Run) (*traffic.Result, error) {
	reply, err := l.do(traffic.Command{Run: &r})
	if err != nil {
		return nil, err
	}
	if reply.Result.Errors > 0 {
		return nil, fmt.Errorf("%d of %d requests failed, the first: %s",
			reply.Result.Errors, reply.Result.Errors+reply.Result.Requests, reply.Result.FirstError)
	}
	if reply.Result.Requests == 0 && !r.Open {
		return nil, errors.New("no request was answered")
	}
	return reply.Result, nil
}
