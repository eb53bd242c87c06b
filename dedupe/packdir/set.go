package packdir

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/keelblock/keelblock/dedupe/pack"
)

const (
	// PacksName is the folder of the packs in each location.
	PacksName = "packs"
	suffix    = ".pack"
)

// Options of Open.
type Options struct {
	// Hook, nil for none.
	Hook Hook
	// Logger gets what an operator should know; nil is silent.
	Logger *slog.Logger
}

// Set is the locations of one vault. Its methods may be called from any number of
// goroutines.
type Set struct {
	o    Options
	locs []*location
}

// location is one folder with packs.
type location struct {
	dir string
}

func (l *location) path(id pack.ID) string {
	return filepath.Join(l.dir, PacksName, id.String()+suffix)
}

// Open opens the locations in the folders dirs.
func Open(dirs []string, o Options) (*Set, error) {
	if o.Hook == nil {
		o.Hook = func(string, string) error { return nil }
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Set{o: o}
	for _, dir := range dirs {
		s.locs = append(s.locs, &location{dir: dir})
	}
	return s, nil
}

// Path is the file of a pack at the first location.
func (s *Set) Path(id pack.ID) string { return s.locs[0].path(id) }

// Create makes a pack's empty file of size preallocated bytes. Its name is durable
// after SyncNames.
func (s *Set) Create(id pack.ID, size int64) (_ *File, err error) {
	f := &File{set: s, id: id}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), f.removeFiles())
		}
	}()
	for _, l := range s.locs {
		path := l.path(id)
		if err := s.o.Hook("create", path); err != nil {
			return nil, NoSpace(err)
		}
		c, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return nil, NoSpace(err)
		}
		f.copies = append(f.copies, &copyFile{loc: l, f: file{c, s.o.Hook}})
	}
	return f, f.Allocate(0, size)
}

// SyncNames makes the names of packs durable.
func (s *Set) SyncNames() error {
	for _, l := range s.locs {
		if err := SyncDir(filepath.Join(l.dir, PacksName), s.o.Hook); err != nil {
			return fmt.Errorf("sync packs folder: %w", err)
		}
	}
	return nil
}

// OpenRead opens a pack for reading. It is fs.ErrNotExist when no location has it.
func (s *Set) OpenRead(id pack.ID) (*os.File, error) {
	var first error
	for _, l := range s.locs {
		f, err := os.Open(l.path(id))
		if err == nil {
			return f, nil
		}
		if first == nil || errors.Is(first, fs.ErrNotExist) {
			first = err
		}
	}
	return nil, first
}

// OpenWrite opens a pack that is there for writing.
func (s *Set) OpenWrite(id pack.ID) (*File, error) {
	f := &File{set: s, id: id}
	for _, l := range s.locs {
		c, err := os.OpenFile(l.path(id), os.O_RDWR, 0)
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		f.copies = append(f.copies, &copyFile{loc: l, f: file{c, s.o.Hook}})
	}
	return f, nil
}

// Size is the length of a pack's file, in bytes.
func (s *Set) Size(id pack.ID) (int64, error) {
	st, err := os.Stat(s.Path(id))
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// Remove removes a pack at every location. One that is not there is no error.
func (s *Set) Remove(id pack.ID) error {
	var errs []error
	for _, l := range s.locs {
		if err := s.o.Hook("remove", l.path(id)); err != nil {
			return err
		}
		if err := os.Remove(l.path(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// List is the packs of all locations, in order of their ids.
func (s *Set) List() ([]pack.ID, error) {
	seen := make(map[pack.ID]bool)
	var ids []pack.ID
	for _, l := range s.locs {
		names, err := l.names()
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			base, ok := strings.CutSuffix(name, suffix)
			id, err := pack.ParseID(base)
			if !ok || err != nil {
				s.o.Logger.Warn("not a pack, left alone", "vault", l.dir, "file", name)
				continue
			}
			if !seen[id] {
				seen[id] = true
				ids = append(ids, id)
			}
		}
	}
	slices.SortFunc(ids, func(a, b pack.ID) int { return slices.Compare(a[:], b[:]) })
	return ids, nil
}

func (l *location) names() ([]string, error) {
	dir, err := os.Open(filepath.Join(l.dir, PacksName))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return dir.Readdirnames(-1)
}
