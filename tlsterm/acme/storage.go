package acme

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/caddyserver/certmagic"
)

// lockPoll is how often a lock that somebody else has is tried again.
const lockPoll = 100 * time.Millisecond

// storage is certmagic's folder with locks of the kernel, which end with the
// process that has them. Its own are files that others have to find stale, and
// each is kept fresh by a goroutine that outlives it.
type storage struct {
	certmagic.FileStorage

	mu    sync.Mutex
	locks map[string]*os.File
}

var (
	_ certmagic.Storage   = (*storage)(nil)
	_ certmagic.TryLocker = (*storage)(nil)
)

// newStorage makes the folder, and finds out now rather than after the first
// order whether it can be written.
func newStorage(dir string) (*storage, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("acme: storage: %w; create the folder for the user edgeproxy runs as, or set storage", err)
	}
	f, err := os.CreateTemp(dir, ".writable-*")
	if err != nil {
		return nil, fmt.Errorf("acme: storage: %w; it must be writable for the user edgeproxy runs as", err)
	}
	if err := errors.Join(f.Close(), os.Remove(f.Name())); err != nil {
		return nil, fmt.Errorf("acme: storage: %w", err)
	}
	return &storage{FileStorage: certmagic.FileStorage{Path: dir}, locks: map[string]*os.File{}}, nil
}

// Lock implements certmagic.Storage.
func (s *storage) Lock(ctx context.Context, name string) error {
	for {
		if ok, err := s.TryLock(ctx, name); ok || err != nil {
			return err
		}
		select {
		case <-time.After(lockPoll):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// TryLock implements certmagic.TryLocker. The file stays: to remove one that
// somebody else is about to lock would give the lock to two.
func (s *storage) TryLock(_ context.Context, name string) (bool, error) {
	file := filepath.Join(s.Path, "locks", certmagic.StorageKeys.Safe(name)+".lock")
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return false, err
	}
	f, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return false, err
	}
	// Also between two descriptors of one process.
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return false, nil
		}
		return false, fmt.Errorf("locking %s: %w", file, err)
	}
	s.mu.Lock()
	s.locks[name] = f
	s.mu.Unlock()
	return true, nil
}

// Unlock implements certmagic.Storage.
func (s *storage) Unlock(_ context.Context, name string) error {
	s.mu.Lock()
	f := s.locks[name]
	delete(s.locks, name)
	s.mu.Unlock()
	if f == nil {
		return fmt.Errorf("%s is not locked", name)
	}
	return f.Close()
}

// handOver gives what is in the folder, as far as it is ours, to another user.
func (s *storage) handOver(uid, gid int) error {
	if err := os.Lchown(s.Path, uid, gid); err != nil {
		return fmt.Errorf("acme: storage: %w", err)
	}
	for _, part := range [...]string{"accounts", "certificates", "challenges", "locks", "ocsp"} {
		err := filepath.WalkDir(filepath.Join(s.Path, part), func(path string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			return os.Lchown(path, uid, gid)
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("acme: storage: %w", err)
		}
	}
	return nil
}
