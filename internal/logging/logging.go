// Package logging is where the program's own messages go: a zap logger whose
// level, format and output can be changed while it is in use, and whose file
// can be reopened after a rotation, without losing a line.
//
// Its life: [New] at start; [Logger.Reopen] at SIGUSR1; at a reload
// [Logger.Prepare], which does all that can fail, then [Change.Commit] or
// [Change.Discard]; [Logger.Close] at the end.
//
// A line whose write fails (the disk is full) goes to stderr instead.
package logging

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// Options say what is logged, how and where to. The zero value is JSON from
// level info on stderr.
type Options struct {
	Level  string // debug, info, warn, error; "": info
	Format string // json, console; "": json
	Output string // stderr, stdout, or a file's path; "": stderr
}

// Logger owns the output. Get the logger to write with from [Logger.Zap].
type Logger struct {
	zap     *zap.Logger
	level   zap.AtomicLevel
	encoder atomic.Pointer[zapcore.Encoder]

	mu      sync.Mutex // held while writing, so that no line goes to a closed file
	output  string
	file    *os.File
	failing bool     // the last write to file failed
	stderr  *os.File // for lines that file does not take
}

// New opens the output.
func New(o Options) (*Logger, error) {
	level, enc, err := parse(o)
	if err != nil {
		return nil, err
	}
	stderr, err := Open("stderr")
	if err != nil {
		return nil, err
	}
	f, err := Open(o.Output)
	if err != nil {
		stderr.Close()
		return nil, fmt.Errorf("log: %w", err)
	}
	l := &Logger{level: zap.NewAtomicLevelAt(level), output: o.Output, file: f, stderr: stderr}
	l.encoder.Store(&enc)
	l.zap = zap.New(&core{l: l}, zap.ErrorOutput(zapcore.Lock(stderr)))
	return l, nil
}

// Zap returns the logger. It, and what is derived from it, follows every
// change of level, format and output.
func (l *Logger) Zap() *zap.Logger { return l.zap }

// Reopen opens the file of that name anew, after someone has moved it away.
// If that fails the old one stays in use.
func (l *Logger) Reopen() error {
	l.mu.Lock()
	output := l.output
	l.mu.Unlock()
	if !IsFile(output) {
		return nil
	}
	f, err := Open(output)
	if err != nil {
		return fmt.Errorf("log: %w; still writing to the file opened before", err)
	}
	l.swap(output, f)
	return nil
}

func (l *Logger) swap(output string, f *os.File) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.file.Close()
	l.output, l.file, l.failing = output, f, false
}

// Close closes the output. What is logged from then on goes to stderr.
func (l *Logger) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	err := l.file.Close()
	l.stderr.Close()
	l.output, l.file = "stderr", os.Stderr
	return err
}

// Change is a prepared change of options. End it with [Change.Commit] or
// [Change.Discard].
type Change struct {
	l       *Logger
	level   zapcore.Level
	encoder zapcore.Encoder
	output  string
	file    *os.File // nil: the output stays
}

// Prepare opens what the new options ask for and changes nothing yet.
func (l *Logger) Prepare(o Options) (*Change, error) {
	level, enc, err := parse(o)
	if err != nil {
		return nil, err
	}
	c := &Change{l: l, level: level, encoder: enc, output: o.Output}
	l.mu.Lock()
	same := l.output == o.Output
	l.mu.Unlock()
	if !same {
		if c.file, err = Open(o.Output); err != nil {
			return nil, fmt.Errorf("log: %w", err)
		}
	}
	return c, nil
}

// Commit makes the change.
func (c *Change) Commit() {
	if c.file != nil {
		c.l.swap(c.output, c.file)
	}
	c.l.encoder.Store(&c.encoder)
	c.l.level.SetLevel(c.level)
}

// Discard gives the change up.
func (c *Change) Discard() {
	if c.file != nil {
		c.file.Close()
	}
}

func parse(o Options) (level zapcore.Level, enc zapcore.Encoder, err error) {
	switch o.Level {
	case "", "info":
		level = zap.InfoLevel
	case "debug":
		level = zap.DebugLevel
	case "warn":
		level = zap.WarnLevel
	case "error":
		level = zap.ErrorLevel
	default:
		return 0, nil, fmt.Errorf("log level %q is unknown; use debug, info, warn or error", o.Level)
	}
	ec := zapcore.EncoderConfig{
		TimeKey:     "time",
		LevelKey:    "level",
		NameKey:     "logger",
		MessageKey:  "msg",
		EncodeTime:  zapcore.TimeEncoderOfLayout("2006-01-02T15:04:05.000Z07:00"),
		EncodeLevel: zapcore.LowercaseLevelEncoder,
	}
	switch o.Format {
	case "", "json":
		ec.EncodeDuration = zapcore.SecondsDurationEncoder
		return level, zapcore.NewJSONEncoder(ec), nil
	case "console":
		ec.EncodeDuration = zapcore.StringDurationEncoder
		ec.EncodeLevel = func(l zapcore.Level, enc zapcore.PrimitiveArrayEncoder) {
			enc.AppendString(fmt.Sprintf("%-5s", l.CapitalString()))
		}
		ec.ConsoleSeparator = "  "
		return level, zapcore.NewConsoleEncoder(ec), nil
	}
	return 0, nil, fmt.Errorf("log format %q is unknown; use json or console", o.Format)
}
