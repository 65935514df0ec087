package logging

import (
	"slices"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// core keeps the fields of a derived logger as they are, and encodes them with
// every line: zapcore's own core encodes them once, and would keep the format
// of that time for ever.
type core struct {
	l      *Logger
	fields []zapcore.Field
}

func (c *core) Enabled(level zapcore.Level) bool { return c.l.level.Enabled(level) }

func (c *core) With(fields []zapcore.Field) zapcore.Core {
	return &core{c.l, slices.Concat(c.fields, fields)}
}

func (c *core) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c *core) Write(e zapcore.Entry, fields []zapcore.Field) error {
	if len(c.fields) > 0 {
		fields = slices.Concat(c.fields, fields)
	}
	e.Time = e.Time.UTC() // as in the access log
	enc := *c.l.encoder.Load()
	line, err := enc.EncodeEntry(e, fields)
	if err != nil {
		return err
	}
	defer line.Free()
	return c.l.write(enc, e, line.Bytes())
}

// Sync does nothing: lines are not buffered, and whether the disk has them is
// the kernel's business.
func (c *core) Sync() error { return nil }

func (l *Logger) write(enc zapcore.Encoder, e zapcore.Entry, line []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, err := l.file.Write(line)
	if err == nil {
		l.failing = false
		return nil
	}
	if !IsFile(l.output) {
		return err // there is nowhere to say it
	}
	if !l.failing {
		l.failing = true
		notice := zapcore.Entry{Level: zap.ErrorLevel, Time: e.Time, Message: "the log cannot be written; its lines go to stderr until it can"}
		if b, encErr := enc.EncodeEntry(notice, []zapcore.Field{zap.Error(err)}); encErr == nil {
			l.stderr.Write(b.Bytes())
			b.Free()
		}
	}
	_, err = l.stderr.Write(line)
	return err
}
